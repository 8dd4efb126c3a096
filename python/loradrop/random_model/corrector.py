"""A random corrector of any reuse rule, for a model of any shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from loradrop.checks import check_choice, check_float, check_int
from loradrop.random_model.shape import MAX_SIZE, Shape
from loradrop.random_model.tensor import RandomTensor, matrix, vector
from loradrop_convert.corrector import (
    ANCHOR_DELTA,
    REUSE_RULES,
    SEGMENT,
    CorrectorData,
    layer_tensor,
    segment_tensor,
)
from loradrop_convert.rules import check_rules
from loradrop_convert.storage import STORAGE_TYPES

_GAIN = 0.1  # a correction's size over its input's: small, so that the states stay those of a real model
_GATE = 0.5  # share of the anchor's delta that is carried over


@dataclass(frozen=True, kw_only=True)
class RandomCorrector:
    """What a random corrector is to be.

    Attributes
    ----------
    reuse : str
        The rule, one of `REUSE_RULES`.
    rank : int
        Rank of the low-rank part.
    hidden : int
        Width of a segment's hidden part, 0 for none; other rules have none.
    segments : tuple of (int, int)
        First and last layer of each run, for ``segment`` only; empty takes the runs that `rho` gives.
    rho : tuple of float
        Shares of the layers that can drop; each one's layers are the middle of the model. Rules of single layers take
        the largest, and drop from the middle outwards.
    type : {"f16", "q8_0"}
        Of the matrices; as in any corrector, Q8_0 holds for a segment's rows of whole blocks, and else F16.
    """

    reuse: str = SEGMENT
    rank: int = 64
    hidden: int = 1024
    segments: tuple[tuple[int, int], ...] = ()
    rho: tuple[float, ...] = (0.5,)
    type: str = "f16"

    def __post_init__(self) -> None:
        check_choice("reuse", self.reuse, REUSE_RULES)
        check_choice("corrector type", self.type, STORAGE_TYPES)
        check_int("rank", self.rank, 1, MAX_SIZE)
        check_int("hidden", self.hidden, 0, MAX_SIZE)
        if self.segments and self.reuse != SEGMENT:
            raise ValueError(f"segments={self.segments}: reuse={self.reuse!r} has none, only {SEGMENT!r} has")
        if not self.segments and not self.rho:
            raise ValueError("rho=(): give at least one share of the layers")
        for rho in self.rho:
            check_float("rho", rho, 0.0, 1.0, below=True)

    def data(self, shape: Shape) -> CorrectorData:
        """Return the corrector's keys, checked against the model; `tensors` is empty.

        Raises
        ------
        ValueError
            If it does not fit the model.
        """
        runs = list(dict.fromkeys(self.segments or (_middle(rho, shape.layers) for rho in self.rho)))
        layers = [] if self.reuse == SEGMENT else _from_the_middle(max(map(len_of, runs)), shape.layers)
        data = CorrectorData(
            reuse=self.reuse,
            rank=self.rank,
            alpha=float(self.rank),
            tensors={},
            layers=layers,
            segments=runs if self.reuse == SEGMENT else [],
            rho=max(map(len_of, runs)) / shape.layers,
        )
        # one value that looks like a tensor, as only names and shapes are to be checked
        tensors = {t.name: np.broadcast_to(np.float32(0), t.shape) for t in self.tensors(data, shape)}
        check_rules(CorrectorData(**{**vars(data), "tensors": tensors}), shape.layers, shape.embd, "random corrector")
        return data

    def tensors(self, data: CorrectorData, shape: Shape) -> Iterator[RandomTensor]:
        """Yield the corrector's tensors; `data` is what the method of that name returns."""
        n, rank = shape.embd, self.rank
        for layer in data.layers:
            yield self._matrix(layer_tensor(layer, "a"), rank, n)
            yield self._matrix(layer_tensor(layer, "b"), n, rank, _GAIN)
            if self.reuse == ANCHOR_DELTA:
                yield vector(layer_tensor(layer, "gate"), n, mean=_GATE)
        for j in range(len(data.segments)):
            yield self._matrix(segment_tensor(j, "a"), rank, 3 * n)
            yield self._matrix(segment_tensor(j, "b"), n, rank, _GAIN)
            if self.hidden:
                yield self._matrix(segment_tensor(j, "gate"), self.hidden, 3 * n)
                yield self._matrix(segment_tensor(j, "up"), self.hidden, 3 * n)
                yield self._matrix(segment_tensor(j, "down"), n, self.hidden, _GAIN)
            yield vector(segment_tensor(j, "carry"), n, mean=_GATE)

    def _matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> RandomTensor:
        # the choice of loradrop_convert.storage.encode, which needs the values
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
        quantised = self.type == "q8_0" and self.reuse == SEGMENT and n_in % block == 0
        return matrix(name, n_out, n_in, GGMLQuantizationType.Q8_0 if quantised else GGMLQuantizationType.F16, gain)


def len_of(run: tuple[int, int]) -> int:
    """Return how many layers a run has."""
    return run[1] - run[0] + 1


def _middle(rho: float, n_layer: int) -> tuple[int, int]:
    n = int(rho * n_layer + 0.5)
    if not 1 <= n <= n_layer - 2:
        raise ValueError(f"rho={rho:g}: it drops {n} of {n_layer} layers; from 1 to {n_layer - 2} can drop")
    first = (n_layer - n + 1) // 2
    return first, first + n - 1


def _from_the_middle(n: int, n_layer: int) -> list[int]:
    """Return the `n` middle layers, in an order in which the first ones are always the middle ones."""
    layers: list[int] = []
    for length in range(1, n + 1):
        first = (n_layer - length + 1) // 2
        layers += [i for i in range(first, first + length) if i not in layers]
    return layers
