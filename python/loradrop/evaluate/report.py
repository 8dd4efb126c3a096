"""What was measured, put together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loradrop.evaluate.interval import CONFIDENCE, Estimate, estimate
from loradrop.evaluate.lockstep import Measures
from loradrop.evaluate.point import Point
from loradrop.recommended import expected_tokens_per_round


@dataclass(frozen=True)
class Scores:
    """Means over scored tokens, with 95 % intervals over the windows.

    Attributes
    ----------
    n_tokens : int
        How many tokens were scored.
    nll : Estimate
        Negative log-likelihood of a token, in nats.
    delta_nll : Estimate
        The same minus the full model's of the same tokens; its interval is that of the differences.
    kl : Estimate
        KL(full model || this), in nats.
    agreement : Estimate
        Share of tokens at which both have the same most probable next token, [0, 1].
    """

    n_tokens: int
    nll: Estimate
    delta_nll: Estimate
    kl: Estimate
    agreement: Estimate

    @property
    def perplexity(self) -> float:
        """exp(mean NLL)."""
        return math.exp(self.nll.mean)

    @property
    def perplexity_interval(self) -> tuple[float, float] | None:
        """The ends of the perplexity's 95 % interval; None where there is only one window."""
        if self.nll.margin is None:
            return None
        return math.exp(self.nll.mean - self.nll.margin), math.exp(self.nll.mean + self.nll.margin)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name, each estimate as its mean and its margin."""
        interval = self.perplexity_interval
        return {
            "n_tokens": self.n_tokens,
            "nll": vars(self.nll),
            "perplexity": self.perplexity,
            "perplexity_interval": None if interval is None else list(interval),
            "delta_nll": vars(self.delta_nll),
            "kl": vars(self.kl),
            "agreement": vars(self.agreement),
        }


@dataclass(frozen=True)
class PointReport:
    """What was measured at a point.

    Attributes
    ----------
    point : Point
        The point, with rho and k filled in.
    reuse : str
        The corrector's rule; ``none`` where there was no trained one.
    dropped_layers : tuple of int
        The layers that LoRA steps leave out.
    total : Scores
        Over all scored tokens.
    by_distance : tuple of Scores
        By the number of LoRA steps since the last full step: first the tokens that were scored with logits of a full
        step (of the prompt's end or a refresh), then those of the first LoRA step, and so on.
    """

    point: Point
    reuse: str
    dropped_layers: tuple[int, ...]
    total: Scores
    by_distance: tuple[Scores, ...]

    @property
    def tokens_per_round(self) -> float | None:
        """Tokens that a round of ``refresh="verify"`` with as many drafts gives where the most probable token is taken.

        See `expected_tokens_per_round`. None with ``single``, whose LoRA steps begin from a context that is not
        exact.
        """
        return None if self.point.refresh == "single" else expected_tokens_per_round(self.draft_agreements)

    @property
    def draft_agreements(self) -> list[float]:
        """The agreement of the first, second, ... LoRA step after a full step, [0, 1]."""
        return [scores.agreement.mean for scores in self.by_distance[1:]]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        return {
            **self.point.to_dict(),
            "reuse": self.reuse,
            "dropped_layers": list(self.dropped_layers),
            **self.total.to_dict(),
            "tokens_per_round": self.tokens_per_round,
            "by_distance": [{"distance": i, **s.to_dict()} for i, s in enumerate(self.by_distance)],
        }


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes
    ----------
    model : str
        The model, as the caller has named it.
    n_windows, window, prompt : int
        How many windows, and tokens of each and of its prompt.
    full : Scores
        The full model's.
    points : tuple of PointReport
        One for each point at which layers drop, in the order of the call.
    """

    model: str
    n_windows: int
    window: int
    prompt: int
    full: Scores
    points: tuple[PointReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name, as JSON can hold them."""
        return {
            "model": self.model,
            "n_windows": self.n_windows,
            "window": self.window,
            "prompt": self.prompt,
            "confidence": CONFIDENCE,
            "full": self.full.to_dict(),
            "points": [point.to_dict() for point in self.points],
        }


def scores(measures: Measures, i: int) -> Scores:
    """Return the scores of context `i` over all tokens."""
    return _scores(measures, i, np.ones(measures.distance.shape[1], bool))


def scores_by_distance(measures: Measures, i: int) -> tuple[Scores, ...]:
    """Return the scores of context `i` for each distance from the last full step."""
    distance = measures.distance[i]
    return tuple(_scores(measures, i, distance == d) for d in range(distance.max() + 1))


def _scores(measures: Measures, i: int, columns: npt.NDArray[np.bool_]) -> Scores:
    def over_windows(values: npt.NDArray[np.float64]) -> Estimate:
        return estimate(values[:, columns].mean(axis=1))

    return Scores(
        n_tokens=measures.nll.shape[1] * int(columns.sum()),
        nll=over_windows(measures.nll[i]),
        delta_nll=over_windows(measures.nll[i] - measures.nll[0]),
        kl=over_windows(measures.kl[i]),
        agreement=over_windows(measures.agrees[i]),
    )
