"""Which point a corrector's file recommends."""

from __future__ import annotations

from collections.abc import Mapping

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
