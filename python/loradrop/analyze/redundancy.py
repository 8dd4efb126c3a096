"""How alike neighbouring tokens' states are, and a layer's input and output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loradrop._core import Context, Model
from loradrop.state_store import Tokens

Array = NDArray[np.floating[Any]]


class Cosines(NamedTuple):
    """Mean cosines of one layer with input x_t and output y_t; None where all of the vectors are zero.

    Attributes
    ----------
    redundancy : float or None
        cos(y_t, y_{t-1}), the redundancy of arXiv 2601.02569.
    deltas : float or None
        cos(y_t - x_t, y_{t-1} - x_{t-1}).
    input_output : float or None
        cos(x_t, y_t).
    """

    redundancy: float | None
    deltas: float | None
    input_output: float | None


def layer_cosines(
    model: Model, windows: Tokens, *, n_threads: int = 0, advance: Callable[[int], None] | None = None
) -> list[Cosines]:
    """Run windows through the full model and return the cosines of all layers but the last.

    The engine does not compute the last layer's output for tokens whose logits nobody asks for.

    Parameters
    ----------
    model : Model
    windows : int32 array [n_windows, n_tokens]
        Two tokens or more each; neighbours are those of one window.
    n_threads : int
        0 lets the core choose.
    advance : callable, optional
        Called after each window with 1.

    Raises
    ------
    UnsupportedError
        If the architecture does not name its layers' outputs.
    """
    n_tokens, n_layer = windows.shape[1], model.n_layer - 1
    context = Context(
        model,
        n_ctx=n_tokens,
        n_batch=n_tokens,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        capture=range(-1, n_layer),
    )
    sums, counts = np.zeros((2, n_layer, len(Cosines._fields)))
    for window in windows:
        context.clear()
        context.decode(window.tolist())
        for layer in range(n_layer):
            for kind, values in enumerate(token_cosines(context.states(layer - 1), context.states(layer))):
                sums[layer, kind] += values.sum()
                counts[layer, kind] += len(values)
        if advance is not None:
            advance(1)
    return [Cosines(*map(_mean, *rows)) for rows in zip(sums.tolist(), counts.tolist(), strict=True)]


def token_cosines(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return the cosines that `Cosines` names, for each token or pair of neighbours where they exist.

    Parameters
    ----------
    x, y : float array [n_tokens, n_embd]
        Input and output of a layer, of tokens in their order.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    delta = y - x
    return _cosines(y[1:], y[:-1]), _cosines(delta[1:], delta[:-1]), _cosines(x, y)


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def _cosines(a: Array, b: Array) -> Array:
    """Return the cosines of rows; rows of zeros have none, and are left out."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    there = norms > 0
    cosines: Array = (a * b).sum(-1)[there] / norms[there]
    return cosines
