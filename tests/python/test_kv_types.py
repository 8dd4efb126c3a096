"""K and V in smaller types, with and without flash attention, against the reference that stores what the type holds."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from pair import FLASH_TOLERANCE
from reference import Decoder, Entry, FloatArray
from sequence_pair import SequencePair
from test_engine import POLICIES, TEXT, corrector_for
from tiny import make_model

N_LAYER = 8
TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
# Mostly it is 1e-6, but what lies between two steps of a type (1/127 and 1/8 of a block's largest value) may fall to
# either side; for f16 see FLASH_TOLERANCE.
TOLERANCE = {"f16": FLASH_TOLERANCE, "q8_0": 1e-2, "q4_0": 5e-2}
COMBINATIONS = [
    ("f16", "f16", "off"),
    ("f16", "f16", "on"),
    ("q8_0", "f32", "off"),
    ("q8_0", "q8_0", "on"),
    ("q4_0", "f32", "off"),
    ("q4_0", "q4_0", "on"),
]


def rounded(x: FloatArray, name: str) -> FloatArray:
    """Return x [n_head, head_dim] after a round trip through the type."""
    head_dim = x.shape[1]
    turn = np.eye(head_dim, dtype=np.float32)
    if name.startswith("q") and head_dim == 64:
        # llama.cpp spreads outliers over the head with a Hadamard matrix, which is its own inverse
        turn = functools.reduce(np.kron, [np.array([[1, 1], [1, -1]], np.float32)] * 6) / 8
    stored: FloatArray = dequantize(quantize(x @ turn, TYPES[name]), TYPES[name])
    return stored @ turn


class RoundingDecoder(Decoder):
    """Keeps K and V as the types hold them."""

    type_k = type_v = "f16"

    def stored(self, k: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return K and V [n_head_kv, head_dim] as they come back from the cache."""
        return rounded(k, self.type_k), rounded(v, self.type_v)

    def in_attention(self, q: FloatArray) -> FloatArray:
        """Return Q [n_head, head_dim] in the type that ggml multiplies with the keys'."""
        return rounded(q, "f16" if self.type_k == "f16" else "q8_0")


def make_pair(
    folder: Path, refresh: str, type_k: str, type_v: str, flash_attn: str, head_dim: int = 64
) -> SequencePair:
    n_head = 128 // head_dim
    model = make_model(n_layer=N_LAYER, n_embd=128, n_head=n_head, n_head_kv=n_head // 2)
    options = {"type_k": type_k, "type_v": type_v, "flash_attn": flash_attn, "n_seq_max": 2}
    corrector = corrector_for(model, "segment")
    pair = SequencePair(folder, model, corrector, rho=0.5, k=3, refresh=refresh, kv_window=6, **options)
    ours = pair.reference
    pair.reference = RoundingDecoder(model, corrector, sorted(ours.dropped), ours.k, ours.policy, ours.kv_window)
    pair.reference.type_k, pair.reference.type_v = type_k, type_v
    pair.tolerance = TOLERANCE[type_k]
    return pair


@pytest.mark.parametrize(("type_k", "type_v", "flash_attn"), COMBINATIONS)
@pytest.mark.parametrize("refresh", POLICIES)
def test_types(tmp_path: Path, refresh: str, type_k: str, type_v: str, flash_attn: str) -> None:
    pair = make_pair(tmp_path, refresh, type_k, type_v, flash_attn)
    pair.decode(Entry(0, TEXT[:20]))
    for i in range(20, 34):
        pair.decode(Entry(0, [TEXT[i]]))
    pair.copy(0, 1)
    for i in range(34, 44):
        pair.decode(Entry(0, [TEXT[i]]), Entry(1, [TEXT[i + 50]]))
    pair.engine.load_state(pair.engine.save_state())
    pair.remove(1)
    pair.discard(0, 4, 9)
    for i in range(44, 54):
        pair.decode(Entry(0, [TEXT[i]]))


@pytest.mark.parametrize(("type_k", "type_v", "flash_attn"), COMBINATIONS[2:])
def test_small_heads(tmp_path: Path, type_k: str, type_v: str, flash_attn: str) -> None:
    pair = make_pair(tmp_path, "refill", type_k, type_v, flash_attn, head_dim=32)
    pair.decode(Entry(0, TEXT[:20]))
    for i in range(20, 40):
        pair.decode(Entry(0, [TEXT[i]]))
    with pytest.raises(ValueError, match=f"type_k = '{type_k}'.*heads of 32"):
        pair.engine.seq_add(0, 9, -1, -5)
    pair.decode(Entry(0, [TEXT[40]]))
