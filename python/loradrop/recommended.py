"""Which point a corrector's file recommends, and which one exact decoding takes on the machine at hand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loradrop._core import Corrector, Model
from loradrop.round_pace import MOST_DRAFTS, round_pace

WITHIN = 0.05  # nats of NLL that the recommended point may lose


def recommended_count(losses: Mapping[int, float]) -> int:
    """Return the most dropped layers that lose at most 0.05 nats, or the fewest where all lose more.

    Parameters
    ----------
    losses : mapping of int to float
        Dropped layers -> rise of the NLL of a token, in nats; at least one.
    """
    good = [count for count, loss in losses.items() if loss <= WITHIN]
    return max(good) if good else min(losses)


def expected_tokens_per_round(agreements: Sequence[float]) -> float:
    """Return the tokens that a round of exact decoding gives where the most probable token is taken.

    1 + q_1 + q_1 q_2 + ... + q_1 ... q_k, as if drafts were right independently of each other.

    Parameters
    ----------
    agreements : sequence of float
        q_i, the share of i-th LoRA steps whose most probable token is the full model's.
    """
    return 1 + float(np.cumprod(agreements).sum())


def draft_quality(agreements: Sequence[float] | None) -> dict[str, Any]:
    """Return what a corrector's file says of its drafts; `measured_agreements` reads it.

    Parameters
    ----------
    agreements : sequence of float, optional
        As in `expected_tokens_per_round`; nothing is said where there are none.
    """
    if not agreements:
        return {}
    return {
        "agreement_by_distance": [round(one, 4) for one in agreements],
        "tokens_per_round": round(expected_tokens_per_round(agreements), 3),
    }


def exact_speed(agreements: Sequence[float], pace: Sequence[float]) -> float:
    """Return the speed of exact decoding over the full model's, with as many drafts a round as are best.

    Parameters
    ----------
    agreements : sequence of float
        As in `expected_tokens_per_round`.
    pace : sequence of float
        As `round_pace` gives it, for as many drafts.
    """
    return max(expected_tokens_per_round(agreements[: i + 1]) / one for i, one in enumerate(pace))


def best_exact_count(model: Model, corrector: Corrector) -> tuple[int, float] | None:
    """Return the dropped layers with which exact decoding should be quickest on this machine, and its `exact_speed`.

    What the corrector's file says of its LoRA steps is joined to `round_pace`. None where it does not say enough.
    """
    speeds = {
        n: exact_speed(agreements, round_pace(model, corrector, n, len(agreements)))
        for n, agreements in measured_agreements(corrector, model.n_layer).items()
    }
    return max(speeds.items(), key=lambda item: item[1]) if speeds else None


def measured_agreements(corrector: Corrector, n_layer: int) -> dict[int, list[float]]:
    """Return what a corrector's file says of agreements by distance, for each number of layers that can be dropped.

    The file may be anybody's: what is not as `calibrate` and `train` write it is left out.
    """
    try:
        quality = json.loads(corrector.quality)
    except (ValueError, RecursionError):
        return {}
    points = quality.get("points") if isinstance(quality, dict) else None
    found = {}
    for point in points if isinstance(points, list) else ():
        match point:
            case {"rho": float(rho), "agreement_by_distance": [_, *_] as agreements} if _are_shares([rho, *agreements]):
                with contextlib.suppress(ValueError):  # no such choice of layers
                    found[len(corrector.dropped_layers(rho, n_layer))] = agreements
    return found


def _are_shares(values: list[Any]) -> bool:
    return len(values) <= 1 + MOST_DRAFTS and all(isinstance(one, (int, float)) and 0 <= one <= 1 for one in values)
