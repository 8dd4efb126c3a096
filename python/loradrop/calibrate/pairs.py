"""What a corrector is fitted to: tokens of LoRA steps with their anchors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loradrop.state_store import N_SKIPPED, StateStore

Array = NDArray[np.floating[Any]]
NORM_EPS = 1e-5  # of the engine's reuse rules


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


@dataclass(frozen=True)
class LoraSteps:
    """The LoRA steps of some texts.

    Attributes
    ----------
    store : StateStore
        The full model's states, which hold the steps' inputs and what they should give.
    anchors : int array [n_anchors]
        Positions of the anchors, the same in each text; k LoRA steps follow each.
    k : int
    texts : sequence of int
        Which texts of the store are taken.
    at_anchors : StateStore, optional
        States at the anchors alone, [n_texts, n_anchors, n_embd]; None where the full model's are right.
    """

    store: StateStore
    anchors: NDArray[np.intp]
    k: int
    texts: Sequence[int]
    at_anchors: StateStore | None = None

    def inputs(self, layer: int, text: int, distance: int) -> Array:
        """Return a layer's inputs float32 [n_anchors, n_embd], `distance` tokens after each anchor."""
        states: Array = self.store.inputs(layer)[text][self.anchors + distance].astype(np.float32)
        return states

    def anchor_inputs(self, layer: int, text: int) -> Array:
        """Return a layer's inputs at the anchors, float32 [n_anchors, n_embd]."""
        if self.at_anchors is None:
            return self.inputs(layer, text, 0)
        states: Array = self.at_anchors.inputs(layer)[text].astype(np.float32)
        return states

    def pairs(
        self, run: tuple[int, int], distances: Sequence[int], texts: Sequence[int] | None = None
    ) -> Iterator[Pairs]:
        """Yield pairs of each text and distance in turn, so that memory stays small.

        Parameters
        ----------
        run : (int, int)
            First and last layer.
        distances : sequence of int
            From 1 to k.
        texts : sequence of int, optional
            None takes all of `self.texts`.
        """
        before, after = run[0], run[1] + 1
        for text in self.texts if texts is None else texts:
            x_r, y_r = self.anchor_inputs(before, text), self.anchor_inputs(after, text)
            for distance in distances:
                yield Pairs(self.inputs(before, text, distance), self.inputs(after, text, distance), x_r, y_r)

    def of_texts(self, most: int) -> LoraSteps:
        """Return the steps of so many texts at most, evenly spread over all."""
        return dataclasses.replace(self, texts=[self.texts[i] for i in spread(len(self.texts), most)])


def every_token(store: StateStore, k: int) -> LoraSteps:
    """Return LoRA steps after every token but the first ones.

    With refill a LoRA step sees the exact states of all tokens before it below the run, and its anchor's are exact:
    these are then the very inputs that the engine will have.
    """
    return LoraSteps(store, np.arange(N_SKIPPED, store.tokens.shape[1] - k), k, range(len(store)))


def spread(n: int, most: int) -> list[int]:
    """Return `most` of the numbers below n, evenly spread, or all where there are not more."""
    most = min(n, most)
    return [i * n // most for i in range(most)]


def norm(x: Array) -> Array:
    """Return the RMS norm without weight, over the last axis."""
    normed: Array = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + NORM_EPS)
    return normed
