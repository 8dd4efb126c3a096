"""A model with a table of positions, as GPT-2 has: the context ends where the table does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loradrop import Llama
from loradrop._core import Context, ContextFullError, Corrector, Model
from tiny import BOS, _add_tensors, _add_tokenizer, _finish, vocabulary

N_LAYER, N_EMBD, N_FF = 8, 32, 48
N_POSITIONS = 40
TOKENS = np.random.default_rng(0).integers(3, 319, 2 * N_POSITIONS).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}

    def add(name: str, *shape: int) -> None:
        tensors[f"{name}.weight"] = rng.normal(0.0, shape[-1] ** -0.5, shape).astype(np.float32)

    def add_norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(N_EMBD, np.float32)
        tensors[f"{name}.bias"] = np.zeros(N_EMBD, np.float32)

    add("token_embd", len(vocabulary()), N_EMBD)
    add("position_embd", N_POSITIONS, N_EMBD)
    add_norm("output_norm")
    for i in range(N_LAYER):
        for norm in ("attn_norm", "ffn_norm"):
            add_norm(f"blk.{i}.{norm}")
        for name, n_out, n_in in (
            ("attn_qkv", 3 * N_EMBD, N_EMBD),
            ("attn_output", N_EMBD, N_EMBD),
            ("ffn_up", N_FF, N_EMBD),
            ("ffn_down", N_EMBD, N_FF),
        ):
            add(f"blk.{i}.{name}", n_out, n_in)
            tensors[f"blk.{i}.{name}.bias"] = np.zeros(n_out, np.float32)

    file = tmp_path_factory.mktemp("model") / "gpt2.gguf"
    writer = GGUFWriter(file, "gpt2")
    writer.add_type("model")
    writer.add_vocab_size(len(vocabulary()))
    writer.add_context_length(N_POSITIONS)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    _add_tokenizer(writer, None, add_bos=True)
    _add_tensors(writer, tensors, "f32")
    _finish(writer)
    return file


def make_context(path: Path, rho: float, refresh: str, **options: Any) -> Context:
    model = Model(str(path))
    drop = {"corrector": Corrector.none(model), "rho": rho, "k": 3, "refresh": refresh} if rho else {}
    threads = min(2, os.cpu_count() or 1)  # of two, the one that does not decode would meet the failed check
    return Context(model, n_threads=threads, n_threads_batch=threads, **({"n_ctx": 4096} | drop | options))


@pytest.mark.parametrize(("rho", "refresh"), [(0.0, "single"), (0.25, "single"), (0.25, "refill"), (0.25, "verify")])
def test_the_context_is_full_where_the_table_ends(path: Path, rho: float, refresh: str) -> None:
    context = make_context(path, rho, refresh)
    assert context.n_ctx == N_POSITIONS
    context.decode(TOKENS[:30])
    for tokens in (TOKENS[30:45], TOKENS[30:41]):
        with pytest.raises(ContextFullError, match=f"position {N_POSITIONS} .* the model has {N_POSITIONS}"):
            context.decode(tokens)
        assert context.seq_pos_max(0) == 29
    for token in TOKENS[30:40]:
        context.decode([token])
    for _ in range(2):
        with pytest.raises(ContextFullError, match=f"position {N_POSITIONS} "):
            context.decode([5])
    assert context.seq_pos_max(0) == N_POSITIONS - 1
    assert np.isfinite(context.logits()).all()
    context.seq_rm(0, 20)
    context.decode(TOKENS[20:40])


@pytest.mark.parametrize("kv_unified", [True, False])
def test_each_sequence_has_the_whole_table(path: Path, kv_unified: bool) -> None:
    context = make_context(path, 0.25, "refill", n_seq_max=2, kv_unified=kv_unified)
    assert context.n_ctx == 2 * N_POSITIONS
    context.decode(TOKENS[: 2 * N_POSITIONS], seq_ids=[0, 1] * N_POSITIONS)
    for batch in (
        {"tokens": [5], "seq_ids": [1]},
        {"tokens": [5, 6], "seq_ids": [0, 1], "positions": [3, N_POSITIONS]},
    ):
        with pytest.raises(ContextFullError, match=f"position {N_POSITIONS} of sequence 1"):
            context.decode(**batch)  # type: ignore[arg-type]
    context.clear()
    context.decode([5], positions=[0])
    with pytest.raises(ContextFullError, match="position 2147483647"):
        context.decode([5], positions=[2**31 - 1])
    with pytest.raises(ValueError, match=r"positions\[0\] = -1"):
        context.decode([5], positions=[-1])


def test_a_completion_ends_there(path: Path) -> None:
    with Llama(path, n_ctx=4096, n_threads=1) as llm:
        assert llm.n_ctx() == N_POSITIONS
        result = llm.create_completion([BOS, *TOKENS[:9]], max_tokens=None, logit_bias={2: -1e9})
        assert result["choices"][0]["finish_reason"] == "length"
        assert result["usage"]["total_tokens"] == N_POSITIONS
