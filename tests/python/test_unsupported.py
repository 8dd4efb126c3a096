"""A model that LoRA-Drop cannot serve: refused with rho > 0, decoded as ever with rho = 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from loradrop._core import Context, Corrector, Model, UnsupportedError
from tiny import _add_tokenizer, _finish, vocabulary

N_LAYER, N_EMBD, N_INNER, N_STATE, N_CONV, DT_RANK = 8, 32, 64, 8, 4, 4


def write_mamba(path: Path) -> None:
    """Write a tiny random Mamba, whose layers keep a recurrent state and no K/V."""
    writer = GGUFWriter(path, "mamba")
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(N_LAYER)
    writer.add_ssm_conv_kernel(N_CONV)
    writer.add_ssm_inner_size(N_INNER)
    writer.add_ssm_state_size(N_STATE)
    writer.add_ssm_time_step_rank(DT_RANK)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokenizer(writer, None, True)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.1).astype(np.float32))

    add("token_embd.weight", len(vocabulary()), N_EMBD)
    add("output_norm.weight", N_EMBD)
    for i in range(N_LAYER):
        add(f"blk.{i}.attn_norm.weight", N_EMBD)
        add(f"blk.{i}.ssm_in.weight", 2 * N_INNER, N_EMBD)
        add(f"blk.{i}.ssm_conv1d.weight", N_INNER, N_CONV)
        add(f"blk.{i}.ssm_conv1d.bias", N_INNER)
        add(f"blk.{i}.ssm_x.weight", DT_RANK + 2 * N_STATE, N_INNER)
        add(f"blk.{i}.ssm_dt.weight", N_INNER, DT_RANK)
        add(f"blk.{i}.ssm_dt.bias", N_INNER)
        writer.add_tensor(f"blk.{i}.ssm_a", -np.ones((N_INNER, N_STATE), np.float32))
        add(f"blk.{i}.ssm_d", N_INNER)
        add(f"blk.{i}.ssm_out.weight", N_EMBD, N_INNER)
    _finish(writer)


def test_a_recurrent_model(tmp_path: Path) -> None:
    write_mamba(tmp_path / "mamba.gguf")
    model = Model(str(tmp_path / "mamba.gguf"))
    with pytest.raises(UnsupportedError, match=r"'mamba'.*use rho = 0"):
        Context(model, n_ctx=256, corrector=Corrector.none(model), rho=0.5, k=3)
    context = Context(model, n_ctx=256)
    for token in (5, 6, 7):
        context.decode([token])
    assert np.isfinite(context.logits()).all()


def test_more_memory_than_there_is(tmp_path: Path) -> None:
    from tiny import make_model, write_gguf

    write_gguf(tmp_path / "model.gguf", make_model())
    with pytest.raises(RuntimeError, match=r"n_ctx = 2000000000 needs \d+ MiB"):
        Context(Model(str(tmp_path / "model.gguf")), n_ctx=2_000_000_000)
