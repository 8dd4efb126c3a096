"""What was measured of batches, put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loradrop.bench.machine_floor import MachineFloor
from loradrop.bench.report import Spread


@dataclass(frozen=True)
class BatchTime:
    """What a batch of one size takes with one set of kernels.

    Attributes
    ----------
    size : int
        Tokens of the batch.
    kernels : str
        As in `BatchReport`.
    ms : Spread
        Milliseconds of a batch.
    ratio : Spread
        Its time over that of one token with the same kernels in the same round.
    beside_first : Spread
        Its time over that with the first set of kernels in the same round.
    round_seconds : list of float
        Of each round.
    """

    size: int
    kernels: str
    ms: Spread
    ratio: Spread
    beside_first: Spread
    round_seconds: list[float]


@dataclass(frozen=True)
class ContextBatches:
    """What batches take after so many tokens.

    Attributes
    ----------
    context : int
        Tokens before the batch.
    kv_bytes : int
        Bytes of K/V that a token reads, but for those of its own batch.
    times : tuple of BatchTime
        By size, and of each size by kernels, in the order of `BatchReport`.
    """

    context: int
    kv_bytes: int
    times: tuple[BatchTime, ...]


@dataclass(frozen=True)
class BatchReport:
    """What was measured.

    Attributes
    ----------
    model : str
        The model, as the caller has named it.
    description : str
        llama.cpp's words for it.
    processor : str
        Its name.
    n_rounds, n_threads : int
        Rounds, threads.
    sizes : tuple of int
        Tokens of the batches, 1 the first.
    kernels : tuple of str
        Sets of CPU kernels.
    floor : MachineFloor
        What the machine can do at best.
    contexts : tuple of ContextBatches
        One for each length of the context, in the order of the call.
    """

    model: str
    description: str
    processor: str
    n_rounds: int
    n_threads: int
    sizes: tuple[int, ...]
    kernels: tuple[str, ...]
    floor: MachineFloor
    contexts: tuple[ContextBatches, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name, as JSON can hold them."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        contexts = [
            {**dataclasses.asdict(one), "floor_ms": self.floor.read_ms(self.floor.step_bytes + one.kv_bytes)}
            for one in self.contexts
        ]
        return {
            **named,
            "sizes": list(self.sizes),
            "kernels": list(self.kernels),
            "floor": self.floor.to_dict(),
            "contexts": contexts,
        }


def batch_times(
    seconds: Mapping[tuple[int, str], list[float]], sizes: Sequence[int], kernels: Sequence[str]
) -> tuple[BatchTime, ...]:
    """Return the figures of every size and set of kernels, from the seconds of every round; 1 is among the sizes."""
    return tuple(
        BatchTime(
            size=size,
            kernels=name,
            ms=Spread.of([1e3 * one for one in seconds[size, name]]),
            ratio=_ratio(seconds[size, name], seconds[1, name]),
            beside_first=_ratio(seconds[size, name], seconds[size, kernels[0]]),
            round_seconds=seconds[size, name],
        )
        for size in sizes
        for name in kernels
    )


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    return Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])
