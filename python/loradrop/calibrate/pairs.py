"""What a corrector is fitted to: tokens of LoRA steps with their anchors, on the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loradrop.state_store import StateStore

Array = NDArray[np.floating[Any]]
NORM_EPS = 1e-5  # of the engine's reuse rules
N_SKIPPED = 4  # first tokens of a text, whose states are unlike all others


class Pairs(NamedTuple):
    """Tokens of LoRA steps, float32 [n, n_embd] each.

    Attributes
    ----------
    x, y : array
        Input and full output of the run at the token.
    x_r, y_r : array
        The same at its anchor.
    """

    x: Array
    y: Array
    x_r: Array
    y_r: Array


def norm(x: Array) -> Array:
    """Return the RMS norm without weight, over the last axis."""
    normed: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + NORM_EPS)
    return normed


def pairs(
    store: StateStore, run: tuple[int, int], distances: Sequence[int], texts: Sequence[int] | NDArray[np.int64]
) -> Iterator[Pairs]:
    """Yield the tokens of some texts, once for each distance to the anchor; a text at a time, so memory stays small.

    With refill a LoRA step sees the exact states of all tokens before it below the run, and its anchor's are exact:
    these are then the very inputs that the engine will have.
    """
    before, after = store.inputs(run[0]), store.inputs(run[1] + 1)
    for text in texts:
        x, y = before[text].astype(np.float32), after[text].astype(np.float32)
        for distance in distances:
            now, anchor = slice(max(N_SKIPPED, distance), None), slice(max(N_SKIPPED - distance, 0), -distance)
            yield Pairs(x[now], y[now], x[anchor], y[anchor])
