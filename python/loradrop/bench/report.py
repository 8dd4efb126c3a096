"""What was measured, put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loradrop.bench.ceiling import refill_ceiling, single_ceiling, verify_ceiling
from loradrop.bench.step_bytes import StepBytes
from loradrop.bench.timing import Job
from loradrop.evaluate.point import Point
from loradrop.options import Drop


@dataclass(frozen=True)
class Spread:
    """The median over the rounds, and the least and the greatest of them: there are too few for an interval."""

    median: float
    least: float
    greatest: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return the spread of one value for each round."""
        return Spread(float(np.median(values)), min(values), max(values))


@dataclass(frozen=True)
class Decode:
    """What was measured of one way to decode.

    Attributes
    ----------
    counted_steps : int
        Of a round, from the first: the figures are over these. A point's are whole periods of k + 1, as a period
        begins with its LoRA steps and would make what is left over look too quick; with ``verify`` all.
    tokens_per_second : Spread
        Of the decode.
    ms_per_token_p50, ms_per_token_p95 : float
        Median and 95th percentile of a step's milliseconds, over all rounds.
    lora_steps, refresh_steps, draft_rounds, drafted, accepted : int
        As in `Job`, of a round, counted or not.
    kv_bytes, kv_bytes_full : int
        Bytes of K/V that the cache holds of tokens at the end, and those of one that keeps every token in every layer.
    round_seconds : list of list of float
        Seconds of every step of every round, counted or not.
    """

    counted_steps: int
    tokens_per_second: Spread
    ms_per_token_p50: float
    ms_per_token_p95: float
    lora_steps: int
    refresh_steps: int
    draft_rounds: int
    drafted: int
    accepted: int
    kv_bytes: int
    kv_bytes_full: int
    round_seconds: list[list[float]]


@dataclass(frozen=True)
class PointBench:
    """What was measured at a point.

    Attributes
    ----------
    point : Point
        The point, with rho and k filled in.
    reuse : str
        The corrector's rule; ``none`` where there was no trained one.
    dropped_layers : tuple of int
        The layers that LoRA steps leave out.
    decode : Decode
        Speed and memory.
    speed_up : Spread
        The full model's seconds over the point's, of the same tokens in the same round.
    step_bytes : StepBytes
        What a step reads.
    batch_round_seconds : list of list of float, optional
        With ``refill`` and ``verify``: the full model's seconds of each batch of k + 1 tokens, of every round.
    ceiling : float, optional
        The most that the speed-up can be; see `single_ceiling`, `refill_ceiling` and `verify_ceiling`. None where k
        adapts.
    """

    point: Point
    reuse: str
    dropped_layers: tuple[int, ...]
    decode: Decode
    speed_up: Spread
    step_bytes: StepBytes
    batch_round_seconds: list[list[float]] | None
    ceiling: float | None

    @property
    def share_of_ceiling(self) -> float | None:
        """The median speed-up over the ceiling."""
        return None if self.ceiling is None else self.speed_up.median / self.ceiling

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        return {
            **self.point.to_dict(),
            "reuse": self.reuse,
            "dropped_layers": list(self.dropped_layers),
            "speed_up": dataclasses.asdict(self.speed_up),
            "ceiling": self.ceiling,
            "share_of_ceiling": self.share_of_ceiling,
            "step_bytes": dataclasses.asdict(self.step_bytes),
            **dataclasses.asdict(self.decode),
            "batch_round_seconds": self.batch_round_seconds,
        }


@dataclass(frozen=True)
class BenchReport:
    """What was measured.

    Attributes
    ----------
    model : str
        The model, as the caller has named it.
    description : str
        llama.cpp's words for it.
    prompt, tokens, n_rounds, n_threads : int
        Tokens of the prompt, tokens decoded in each round, rounds, threads.
    huge_page_bytes : int
        Bytes of the weights that the system has in huge pages.
    full : Decode
        The full model's.
    points : tuple of PointBench
        One for each point at which layers drop, in the order of the call.
    """

    model: str
    description: str
    prompt: int
    tokens: int
    n_rounds: int
    n_threads: int
    huge_page_bytes: int
    full: Decode
    points: tuple[PointBench, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name, as JSON can hold them."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        full, points = dataclasses.asdict(self.full), [point.to_dict() for point in self.points]
        return {**named, "full": full, "points": points}


def decode_of(job: Job, counted: int) -> Decode:
    """Return the figures of a job, over the first `counted` steps of each round."""
    rounds = [seconds[:counted] for seconds in job.rounds]
    p50, p95 = np.percentile(rounds, (50, 95)) * 1e3
    return Decode(
        counted_steps=counted,
        tokens_per_second=Spread.of([counted / sum(seconds) for seconds in rounds]),
        ms_per_token_p50=float(p50),
        ms_per_token_p95=float(p95),
        lora_steps=job.lora_steps,
        refresh_steps=job.refresh_steps,
        draft_rounds=job.draft_rounds,
        drafted=job.drafted,
        accepted=job.accepted,
        kv_bytes=job.kv_bytes,
        kv_bytes_full=job.kv_bytes_full,
        round_seconds=job.rounds,
    )


def speed_up_of(full: Job, job: Job, counted: int) -> Spread:
    """Return the speed-up of a job over the full model's, over the first `counted` steps of each round."""
    pairs = zip(full.rounds, job.rounds, strict=True)
    return Spread.of([sum(theirs[:counted]) / sum(ours[:counted]) for theirs, ours in pairs])


def ceiling_of(n_bytes: StepBytes, drop: Drop, full: Job, job: Job, batch: Job | None) -> float:
    """Return the ceiling of a point; `batch` is the job of batches of k + 1 tokens, None with ``single``."""
    if batch is None:
        return single_ceiling(n_bytes, drop.k)
    full_seconds, batch_seconds = _median_seconds(full), _median_seconds(batch)
    if drop.refresh == "refill":
        return refill_ceiling(n_bytes, drop.k, full_seconds, batch_seconds)
    n_plain = job.refresh_steps - job.draft_rounds
    return verify_ceiling(n_bytes, n_plain, job.draft_rounds, job.lora_steps, job.accepted, full_seconds, batch_seconds)


def _median_seconds(job: Job) -> float:
    """Return the median over the rounds of a batch's mean seconds."""
    return float(np.median([np.mean(seconds) for seconds in job.rounds]))
