"""Batches drawn at random: texts, a point of (rho, k), a prompt's length, and what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loradrop.state_store import StateStore
from loradrop.train.simulate import Frozen
from loradrop.train.states import stored_kv
from loradrop.train.student import Shape
from loradrop.train.timeline import Timeline


@dataclass(frozen=True)
class Batch:
    """What one step of training needs; the fields are the arguments of `Student.forward`."""

    tokens: Tensor
    teacher: Tensor
    timeline: Timeline
    choice: int
    scored: Tensor
    frozen: Frozen | None


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """Draws batches from stored states.

    The draw depends on the seed and the step alone, so that a resumed training goes on as if never stopped.

    Attributes
    ----------
    store : StateStore
        Texts, and the inputs that `layers_needed` names.
    shape : Shape
    n_layer, n_head_kv : int
        Layers and heads of K and V of the model.
    ks : sequence of int
        Values of k, each as likely as the others.
    refresh : str
        The refresh policy.
    kv_window : int
        With refill: newest tokens whose K/V droppable layers keep.
    prompt : (int, int)
        Least and most tokens of prompt.
    size : int
        Texts in a batch.
    share : float
        Share of the tokens at which the loss is taken.
    device : torch.device
    seed : int
    """

    store: StateStore
    shape: Shape
    n_layer: int
    n_head_kv: int
    ks: Sequence[int]
    refresh: str
    kv_window: int
    prompt: tuple[int, int]
    size: int
    share: float
    device: torch.device
    seed: int

    def draw(self, step: int, process: int = 0) -> Batch:
        """Return the batch of a step, at the same point in every process: all have gradients of the same correctors."""
        rng = np.random.default_rng((self.seed, step))
        choice = int(rng.choice(self.shape.choices))
        timeline = self._timeline(int(rng.choice(self.ks)), int(rng.integers(*self.prompt, endpoint=True)))
        rng = np.random.default_rng((self.seed, step, process))
        texts = rng.choice(len(self.store), min(self.size, len(self.store)), replace=False)
        candidates = self._candidates(timeline)
        n = max(1, round(self.share * len(candidates)))
        return self._batch(np.sort(texts), choice, timeline, np.sort(rng.choice(candidates, n, replace=False)))

    def in_order(self, n_texts: int, choice: int, k: int) -> list[Batch]:
        """Return batches of the first texts at one point, all tokens scored, for an evaluation."""
        timeline = self._timeline(k, self.prompt[1])
        starts = range(0, min(n_texts, len(self.store)), self.size)
        return [
            self._batch(
                np.arange(start, min(start + self.size, n_texts, len(self.store))),
                choice,
                timeline,
                self._candidates(timeline),
            )
            for start in starts
        ]

    def _timeline(self, k: int, n_prompt: int) -> Timeline:
        return Timeline(self.store.tokens.shape[1], n_prompt, k, self.refresh, self.kv_window, self.device)

    def _candidates(self, timeline: Timeline) -> NDArray[np.int64]:
        """Return positions whose prediction a corrector can change, but the last, which has no next token."""
        positions = timeline.lora if self.refresh == "refill" else timeline.position[timeline.n_prompt :]
        return positions[positions < timeline.n_tokens - 1].cpu().numpy()

    def _batch(self, texts: NDArray[np.int64], choice: int, timeline: Timeline, scored: NDArray[np.int64]) -> Batch:
        return Batch(
            tokens=torch.from_numpy(self.store.tokens[texts].astype(np.int64)).to(self.device),
            teacher=self._states(self.n_layer, texts),
            timeline=timeline,
            choice=choice,
            scored=torch.from_numpy(scored).to(self.device),
            frozen=self._frozen(texts, choice, timeline),
        )

    def _frozen(self, texts: NDArray[np.int64], choice: int, timeline: Timeline) -> Frozen:
        first, last = first_run(self.shape, choice)
        exact = self.refresh == "refill" and self.kv_window >= timeline.n_tokens
        x = self._states(first, texts)
        if not exact:
            return Frozen(x)
        above = range(last + 1, self.n_layer)
        return Frozen(
            x, self._states(last + 1, texts), stored_kv(self.store, above, texts, self.n_head_kv, self.device)
        )

    def _states(self, layer: int, texts: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.store.inputs(layer)[texts].astype(np.float32)).to(self.device)


def first_run(shape: Shape, choice: int) -> tuple[int, int]:
    """Return the first and last layer of the lowest run of a choice."""
    if shape.segments:
        return shape.segments[choice]
    lowest = min(shape.layers[:choice])
    return lowest, lowest


def kv_layers_needed(shape: Shape, n_layer: int) -> range:
    """Return the layers whose K and V spare running the exact tokens: those above the lowest segment."""
    if not shape.segments:
        return range(0)
    return range(min(last for _, last in shape.segments) + 1, n_layer)


def layers_needed(shape: Shape, n_layer: int) -> list[int]:
    """Return the layers whose inputs a store must hold: before and after each first run, and the end."""
    runs = [first_run(shape, choice) for choice in shape.choices]
    return sorted({n_layer, *(first for first, _ in runs), *(last + 1 for _, last in runs)})
