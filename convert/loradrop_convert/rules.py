"""The rules that a corrector must keep to be used: those of csrc/loradrop/corrector_reader.cpp."""

from __future__ import annotations

import numpy as np

from loradrop._core import CorrectorError
from loradrop_convert.corrector import (
    ANCHOR_DELTA,
    CORRECTED_POLICIES,
    REUSE_RULES,
    SEGMENT,
    CorrectorData,
    layer_tensor,
    segment_tensor,
)

_MAX_UINT32 = 2**32 - 1


def check_rules(corrector: CorrectorData, n_layer: int, n_embd: int, where: str) -> None:
    """Check a corrector against the layers and the width of a model.

    Raises
    ------
    CorrectorError
        If it breaks a rule; the message names `where`, the field or tensor, and its value.
    """
    _Check(corrector, n_layer, n_embd, where).run()


class _Check:
    def __init__(self, corrector: CorrectorData, n_layer: int, n_embd: int, where: str) -> None:
        self.corrector, self.n_layer, self.n_embd, self.where = corrector, n_layer, n_embd, where
        self.known: set[str] = set()

    def run(self) -> None:
        self.numbers()
        if self.corrector.reuse == SEGMENT:
            self.segments()
        else:
            self.layers()
        for name in self.corrector.tensors:
            if name not in self.known:
                self.fail(f"tensor {name} belongs to no layer or run of this corrector")
        self.finite()

    def fail(self, what: str) -> None:
        raise CorrectorError(f"{self.where}: {what}")

    def numbers(self) -> None:
        c = self.corrector
        if c.reuse not in REUSE_RULES:
            self.fail(f"reuse is {c.reuse!r}, expected {', '.join(REUSE_RULES)}")
        if not 1 <= c.rank <= self.n_embd:
            self.fail(f"rank is {c.rank}, expected 1 to {self.n_embd}")
        with np.errstate(over="ignore"):  # files hold them as f32
            alpha, rho = np.float32(c.alpha), np.float32(c.rho or 0)
        if not np.isfinite(alpha):
            self.fail(f"alpha is {c.alpha}, expected a finite number")
        if not 0 <= rho < 1:
            self.fail(f"rho is {c.rho}, expected 0 <= rho < 1")
        if c.k is not None and not 0 <= c.k <= _MAX_UINT32:
            self.fail(f"k is {c.k}, expected 0 to {_MAX_UINT32}")
        if c.refresh not in (None, *CORRECTED_POLICIES):
            self.fail(f"refresh is {c.refresh!r}, expected {' or '.join(CORRECTED_POLICIES)}")

    def droppable(self, key: str, layer: int) -> None:
        last = self.n_layer - 2
        if not 1 <= layer <= last:
            self.fail(f"{key} names layer {layer}; layers 1 to {last} of this model can drop")

    # --- one pair of matrices for each layer -----------------------------------------------------

    def layers(self) -> None:
        layers = self.corrector.layers
        if self.corrector.segments:
            self.fail(f"it has segments, which only the reuse rule {SEGMENT} knows; it says {self.corrector.reuse}")
        if not layers:
            self.fail("layers is empty")
        for i, layer in enumerate(layers):
            self.droppable("layers", layer)
            if layer in layers[:i]:
                self.fail(f"layers names layer {layer} twice")
            self.layer(layer)

    def layer(self, layer: int) -> None:
        n_embd, rank = self.n_embd, self.corrector.rank
        self.expect(layer_tensor(layer, "a"), rank, n_embd)
        self.expect(layer_tensor(layer, "b"), n_embd, rank)
        gate = layer_tensor(layer, "gate")
        if gate in self.corrector.tensors:
            if self.corrector.reuse != ANCHOR_DELTA:
                self.fail(f"tensor {gate} is only known to the reuse rule {ANCHOR_DELTA}")
            self.expect(gate, n_embd)

    # --- a small network for each run ------------------------------------------------------------

    def segments(self) -> None:
        segments = self.corrector.segments
        if self.corrector.layers:
            self.fail(f"it has layers, which the reuse rule {SEGMENT} does not know; give segments")
        if not segments:
            self.fail("segments is empty")
        for j, (first, last) in enumerate(segments):
            self.droppable("segments", first)
            self.droppable("segments", last)
            if first > last:
                self.fail(f"segments has a run from layer {first} to {last}")
            if (first, last) in segments[:j]:
                self.fail(f"segments has the run {first} to {last} twice")
            self.segment(j)

    def segment(self, j: int) -> None:
        n_embd, rank = self.n_embd, self.corrector.rank
        names = {part: segment_tensor(j, part) for part in ("a", "b", "gate", "up", "down", "carry")}
        there = {part for part, name in names.items() if name in self.corrector.tensors}
        if not there - {"carry"}:
            self.fail(f"run {j} of segments has no tensors")
        if there & {"a", "b"}:
            self.expect(names["a"], rank, 3 * n_embd)
            self.expect(names["b"], n_embd, rank)
        if there & {"gate", "up", "down"}:
            gate = self.corrector.tensors.get(names["gate"])
            n_ff = max(1, gate.shape[0]) if gate is not None and gate.ndim else 1
            self.expect(names["gate"], n_ff, 3 * n_embd)
            self.expect(names["up"], n_ff, 3 * n_embd)
            self.expect(names["down"], n_embd, n_ff)
        if "carry" in there:
            self.expect(names["carry"], n_embd)

    # --- tensors ---------------------------------------------------------------------------------

    def expect(self, name: str, *shape: int) -> None:
        tensor = self.corrector.tensors.get(name)
        if tensor is None:
            raise CorrectorError(f"{self.where}: tensor {name} is missing")
        if tensor.shape != shape:
            self.fail(f"tensor {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        if tensor.dtype != np.float32:
            self.fail(f"tensor {name} has type {tensor.dtype}, expected float32")
        self.known.add(name)

    def finite(self) -> None:
        for name, tensor in self.corrector.tensors.items():
            bad = np.flatnonzero(~np.isfinite(np.atleast_2d(tensor)).all(axis=1))
            if bad.size:
                self.fail(f"tensor {name} holds NaN or infinity in row {bad[0]}")
