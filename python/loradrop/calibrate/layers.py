"""Correctors of single layers in closed form, each fitted to the inputs that those below it leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loradrop.calibrate.pairs import N_SKIPPED, norm
from loradrop.calibrate.ridge import Moments, fit_gate, reduced_rank
from loradrop.state_store import StateStore

Array = NDArray[np.floating[Any]]
Parts = dict[str, Array]


def fit_layers(
    store: StateStore,
    reuse: str,
    block: tuple[int, int],
    rank: int,
    k: int,
    advance: Callable[[int], None] | None = None,
) -> dict[int, Parts]:
    """Fit one corrector for each layer of a block, from the lowest up.

    The lowest layer sees exact inputs; every other sees what the corrected layers below it give, and is fitted to the
    full model's own output, so that it also takes back their errors. Every token is an anchor, the k after it are its
    LoRA steps.

    Parameters
    ----------
    store : StateStore
        With the inputs of all layers of the block and of the one above it.
    reuse : str
        ``previous-state``, ``anchor-state`` or ``anchor-delta``.
    block : (int, int)
        First and last layer.
    rank : int
    k : int
        LoRA steps after an anchor.
    advance : callable, optional
        Called after each layer with the number of layers done.

    Returns
    -------
    dict of int to dict of str to array
        Layer -> a [rank, n_embd], b [n_embd, rank], and gate [n_embd] for ``anchor-delta``; s = 1.
    """
    fitted: dict[int, Parts] = {}
    for layer in range(block[0], block[1] + 1):
        fitted[layer] = _fit(store, reuse, block[0], fitted, layer, rank, k)
        if advance is not None:
            advance(len(fitted))
    return fitted


class Steps:
    """The LoRA steps of one text at one layer.

    Attributes
    ----------
    x, y : float32 array [k, n_anchors, n_embd]
        Input and full output of the layer, 1 to k tokens after each anchor.
    x_r, y_r : float32 array [n_anchors, n_embd]
        The same at the anchor.
    """

    def __init__(self, store: StateStore, layer: int, text: int, k: int) -> None:
        x = store.inputs(layer)[text, N_SKIPPED:].astype(np.float32)
        y = store.inputs(layer + 1)[text, N_SKIPPED:].astype(np.float32)
        n_anchors = len(x) - k
        self.x = np.stack([x[d : d + n_anchors] for d in range(1, k + 1)])
        self.y = np.stack([y[d : d + n_anchors] for d in range(1, k + 1)])
        self.x_r, self.y_r = x[:n_anchors], y[:n_anchors]


def features(reuse: str, steps: Steps) -> Array:
    """Return what A is applied to, [k, n_anchors, n_embd]."""
    if reuse == "anchor-delta":
        return norm(steps.x)
    # y_t = y_{t-1} + B A x_t is y_r plus B A of the sum of all inputs since r
    return steps.x.cumsum(0) if reuse == "previous-state" else steps.x


def carried(reuse: str, parts: Parts, steps: Steps) -> Array:
    """Return the output without correction, [k, n_anchors, n_embd]."""
    if reuse == "anchor-delta":
        return steps.x + parts["gate"] * (steps.y_r - steps.x_r)
    return np.broadcast_to(steps.y_r, steps.x.shape)


def _fit(store: StateStore, reuse: str, first: int, below: dict[int, Parts], layer: int, rank: int, k: int) -> Parts:
    def texts() -> Iterator[Steps]:
        return (_at_layer(store, reuse, first, below, layer, text, k) for text in range(len(store)))

    parts: Parts = {}
    if reuse == "anchor-delta":
        samples = ((_rows(s.y - s.x), _rows(np.broadcast_to(s.y_r - s.x_r, s.x.shape))) for s in texts())
        parts["gate"] = fit_gate(samples)
    n_embd = store.inputs(layer).shape[-1]
    moments = Moments(n_embd, n_embd)
    for s in texts():
        moments.add(_rows(features(reuse, s)), _rows(s.y - carried(reuse, parts, s)))
    parts["a"], parts["b"] = reduced_rank(moments, rank)
    return parts


def _at_layer(
    store: StateStore, reuse: str, first: int, below: dict[int, Parts], layer: int, text: int, k: int
) -> Steps:
    """Return a text's LoRA steps at a layer, with the inputs that the corrected layers below it leave."""
    x: Array | None = None
    for i in range(first, layer + 1):
        steps = Steps(store, i, text, k)
        if x is not None:
            steps.x = x
        if i < layer:
            parts = below[i]
            x = carried(reuse, parts, steps) + features(reuse, steps) @ parts["a"].T @ parts["b"].T
    return steps


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
