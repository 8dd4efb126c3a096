"""A token of a small batch on the CPU gets, bit for bit, the logits that it gets alone, for whole decodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from loradrop._core import Adapter, Context, Corrector, Model, cpu_kernels, current_cpu_kernels, use_cpu_kernels
from loradrop.random_model import Shape, write_random_model
from test_adapters import adapter_tensors, write_adapter
from tiny import make_corrector, make_model, write_gguf
from verify_walk import needs_exact_rows

FloatArray = npt.NDArray[np.float32]

KERNELS = [name for name in cpu_kernels() if name != "llama.cpp"]
SHAPE = Shape(layers=3, embd=256, heads=8, kv_heads=2, ff=512, vocab=512, tied=True)
# what llama.cpp's mixtures of types are made of, and types without kernels of ours
TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_nl", "q2_k", "q3_k", "f16", "bf16", "f32")
N_CTX = 1100

pytestmark = needs_exact_rows


def text(n: int, seed: int = 0) -> list[int]:
    """Return random tokens."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 300, n)]


def logits_of(context: Context, tokens: Sequence[int], sizes: Iterable[int]) -> list[FloatArray]:
    """Decode in batches of these sizes; return every token's logits."""
    rows: list[FloatArray] = []
    at = 0
    for size in sizes:
        context.decode(tokens[at : at + size], outputs=[True] * size)
        rows += [context.logits(i).copy() for i in range(size)]
        at += size
    assert at == len(tokens)
    return rows


def assert_rows_as_alone(context: Context, past: Sequence[int], tokens: Sequence[int]) -> None:
    """After the past, decode the tokens one by one, and in batches of every size up to 8."""

    context.clear()
    for at in range(0, len(past), context.n_batch):
        context.decode(past[at : at + context.n_batch])

    def after_past(sizes: Iterable[int]) -> list[FloatArray]:
        context.seq_rm(0, len(past))
        return logits_of(context, tokens, sizes)

    alone = after_past([1] * len(tokens))
    for size in range(2, 9):
        whole, rest = divmod(len(tokens), size)
        rows = after_past([size] * whole + [rest] * (rest > 0))
        differ = [i for i, (row, one) in enumerate(zip(rows, alone, strict=True)) if not np.array_equal(row, one)]
        assert not differ, f"batches of {size}: tokens {differ} differ"


@pytest.mark.parametrize("flash_attn", ["on", "off"])
@pytest.mark.parametrize("weight_type", TYPES)
def test_types(tmp_path: Path, weight_type: str, flash_attn: str) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, SHAPE, type=weight_type)
    context = Context(Model(str(path)), n_ctx=N_CTX, n_threads=1, n_threads_batch=1, flash_attn=flash_attn)
    # where llama.cpp's attention turns to another block of cells, and where it would split a single query's
    for n_past in (250, 505):
        assert_rows_as_alone(context, text(n_past, 1), text(12, 2))


@pytest.mark.parametrize("kernels", KERNELS)
def test_kernels(tmp_path: Path, kernels: str) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, SHAPE, type="q4_k")
    before = current_cpu_kernels()
    use_cpu_kernels(kernels)
    try:
        context = Context(Model(str(path)), n_ctx=N_CTX, n_threads=3, n_threads_batch=3, flash_attn="on")
        assert_rows_as_alone(context, text(300, 1), text(24, 2))
    finally:
        use_cpu_kernels(before)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "olmo2"])
@pytest.mark.parametrize("n_swa", [0, 20])
@pytest.mark.parametrize(
    "options",
    [
        {"flash_attn": "on"},
        {"flash_attn": "off", "type_k": "f32", "type_v": "f32"},
        {"flash_attn": "on", "type_k": "q8_0", "type_v": "q8_0"},
        {"flash_attn": "on", "type_k": "f32", "type_v": "f32"},
    ],
)
def test_architectures(tmp_path: Path, arch: Any, n_swa: int, options: dict[str, Any]) -> None:
    """Biases, norms of q and k, windows; caches of other types."""
    if n_swa and arch != "olmo2":
        pytest.skip("the tiny models of this architecture have no windows")
    model = make_model(arch, n_embd=128, n_head=4, n_swa=n_swa)
    path = tmp_path / "model.gguf"
    write_gguf(path, model)
    context = Context(Model(str(path)), n_ctx=N_CTX, n_threads=1, n_threads_batch=1, **options)
    for n_past in (0, 600):
        assert_rows_as_alone(context, text(n_past, 1), text(12, 2))


def test_adapter(tmp_path: Path) -> None:
    model = make_model()
    write_gguf(tmp_path / "model.gguf", model)
    write_adapter(tmp_path / "adapter.gguf", model.arch, adapter_tensors(model))
    native = Model(str(tmp_path / "model.gguf"))
    adapter = Adapter(native, str(tmp_path / "adapter.gguf"))
    context = Context(native, n_ctx=N_CTX, n_threads=1, n_threads_batch=1, adapters=[(adapter, 0.7)])
    assert_rows_as_alone(context, text(30, 1), text(24, 2))


@pytest.mark.parametrize("flash_attn", ["on", "off"])
@pytest.mark.parametrize("corrector_type", ["f32", "f16", "q8_0"])
def test_refreshes_of_a_refill(tmp_path: Path, corrector_type: Any, flash_attn: str) -> None:
    """The replay makes the context exact: a refresh's logits are the full model's, bit for bit."""
    model = make_model(n_layer=8)
    path = tmp_path / "model.gguf"
    write_gguf(path, model, make_corrector(model, "segment", segments=[(2, 5)]), corrector_type=corrector_type)
    native = Model(str(path))
    options: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1, "flash_attn": flash_attn}
    full = Context(native, **options)
    refill = Context(
        native,
        corrector=Corrector.load(str(path), native),
        rho=0.5,
        k=3,
        refresh="refill",
        kv_window=1000,
        **options,
    )
    past, tokens = text(250, 1), text(80, 2)
    rows = []
    for context in (full, refill):
        context.decode(past)
        rows.append(logits_of(context, tokens, [1] * len(tokens)))
    assert refill.stats["lora_steps"] == 60
    for i in range(3, len(tokens), 4):
        np.testing.assert_array_equal(rows[1][i], rows[0][i], err_msg=f"token {i}")


def test_a_real_model(smollm2: Path) -> None:
    context = Context(Model(str(smollm2)), n_ctx=N_CTX, n_threads=2, n_threads_batch=2)
    assert_rows_as_alone(context, text(520, 1), text(12, 2))
