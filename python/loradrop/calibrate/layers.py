"""Correctors of single layers in closed form, each fitted to the inputs that those below it leave."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loradrop.calibrate.pairs import LoraSteps, every_token, norm
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
) -> dict[int, Parts]:
    """Fit one corrector for each layer of a block to the full model's states; every token is an anchor.

    Parameters
    ----------
    store : StateStore
        With the inputs of all layers of the block and of the one above it.
    reuse, block, rank
        See `fit_block`.
    k : int
        LoRA steps after an anchor.
    """
    return fit_block(every_token(store, k), reuse, block, rank)


def fit_block(
    samples: LoraSteps,
    reuse: str,
    block: tuple[int, int],
    rank: int,
    advance: Callable[[int], None] | None = None,
) -> dict[int, Parts]:
    """Fit one corrector for each layer of a block, from the lowest up.

    The lowest layer sees exact inputs; every other sees what the corrected layers below it give, and is fitted to the
    full model's own output, so that it also takes back their errors.

    Parameters
    ----------
    samples : LoraSteps
        With the inputs of all layers of the block and of the one above it.
    reuse : str
        ``previous-state``, ``anchor-state`` or ``anchor-delta``.
    block : (int, int)
        First and last layer.
    rank : int
    advance : callable, optional
        Called after each layer with the number of layers done.

    Returns
    -------
    dict of int to dict of str to array
        Layer -> a [rank, n_embd], b [n_embd, rank], and gate [n_embd] for ``anchor-delta``; s = 1.
    """
    fitted: dict[int, Parts] = {}
    walk = _Walk(samples)
    for layer in range(block[0], block[1] + 1):
        fitted[layer] = _fit(reuse, partial(walk.steps, layer), rank)
        if layer < block[1]:
            walk.pass_on(layer, reuse, fitted[layer])
        if advance is not None:
            advance(len(fitted))
    return fitted


class Steps:
    """The LoRA steps of one text at one layer.

    Parameters
    ----------
    samples : LoraSteps
    layer, text : int
    x : float32 array, optional
        None takes the full model's inputs.

    Attributes
    ----------
    x, y : float32 array [k, n_anchors, n_embd]
        Input and full output of the layer, 1 to k tokens after each anchor.
    x_r, y_r : float32 array [n_anchors, n_embd]
        The same at the anchor.
    """

    def __init__(self, samples: LoraSteps, layer: int, text: int, x: Array | None = None) -> None:
        distances = range(1, samples.k + 1)
        self.x = np.stack([samples.inputs(layer, text, d) for d in distances]) if x is None else x
        self.y = np.stack([samples.inputs(layer + 1, text, d) for d in distances])
        self.x_r, self.y_r = samples.anchor_inputs(layer, text), samples.anchor_inputs(layer + 1, text)


class _Walk:
    """From layer to layer with what the corrected ones leave to the next."""

    def __init__(self, samples: LoraSteps) -> None:
        self._samples = samples
        self._left: Array | None = None

    def steps(self, layer: int) -> Iterator[Steps]:
        """Yield the steps of each text; those of a layer above the first only after `pass_on`."""
        for row, text in enumerate(self._samples.texts):
            yield Steps(self._samples, layer, text, None if self._left is None else np.array(self._left[row]))

    def pass_on(self, layer: int, reuse: str, parts: Parts) -> None:
        """Make the corrected layer's outputs the next one's inputs."""
        left = self._left
        for row, steps in enumerate(self.steps(layer)):
            if left is None:
                left = _room((len(self._samples.texts), *steps.x.shape))
            left[row] = corrected(reuse, parts, steps)
        self._left = left


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


def corrected(reuse: str, parts: Parts, steps: Steps) -> Array:
    """Return the rule's output, [k, n_anchors, n_embd]."""
    return carried(reuse, parts, steps) + features(reuse, steps) @ parts["a"].T @ parts["b"].T


def _fit(reuse: str, texts: Callable[[], Iterable[Steps]], rank: int) -> Parts:
    parts: Parts = {}
    if reuse == "anchor-delta":
        samples = ((_rows(s.y - s.x), _rows(np.broadcast_to(s.y_r - s.x_r, s.x.shape))) for s in texts())
        parts["gate"] = fit_gate(samples)
    moments: Moments | None = None
    for s in texts():
        moments = moments or Moments(s.x.shape[-1], s.x.shape[-1])
        moments.add(_rows(features(reuse, s)), _rows(s.y - carried(reuse, parts, s)))
    assert moments is not None, "there are texts"
    parts["a"], parts["b"] = reduced_rank(moments, rank)
    return parts


def _room(shape: tuple[int, ...]) -> Array:
    # a file without a name, as it may be larger than the memory
    return np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=shape)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
