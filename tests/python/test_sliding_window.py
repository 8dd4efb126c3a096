"""Models with sliding-window layers, kept and droppable ones, against the NumPy reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf import transformers_logits
from loradrop import Llama
from loradrop._core import Context, Corrector, Model
from pair import Pair
from reference import Entry
from test_engine import N_LAYER, POLICIES, REUSES, SCHEDULED, TEXT, corrector_for, run
from tiny import Reuse, make_model, write_gguf

F16_OF_A_TOKEN = 2 * 32 * 2
KV_OF_A_TOKEN = 2 * 32 * 4  # bytes in one layer: K and V, 2 heads of 16, f32


def windowed_pair(folder: Path, reuse: Reuse, n_swa: int = 12, rho: float = 0.5, **options: Any) -> Pair:
    model = make_model("olmo2", n_layer=N_LAYER, n_swa=n_swa)
    return Pair(folder, model, corrector_for(model, reuse), rho=rho, **options)


@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_a_hundred_and_twenty_steps(tmp_path: Path, reuse: Reuse, refresh: str) -> None:
    pair = windowed_pair(tmp_path, reuse, k=3, refresh=refresh, kv_window=20)
    run(pair, 17, 120)
    assert pair.engine.stats["lora_steps"] == 90


# droppable layers with a window and without: none and one, one and one, three and one, three and three
@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize(("rho", "k", "n_swa"), [(1 / 8, 1, 1), (1 / 4, 2, 2), (0.5, 4, 3), (0.75, 5, 40)])
def test_points(tmp_path: Path, refresh: str, rho: float, k: int, n_swa: int) -> None:
    pair = windowed_pair(tmp_path, "anchor-delta", n_swa, rho, k=k, refresh=refresh, kv_window=7)
    run(pair, 9, 60)


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_several_sequences(tmp_path: Path, reuse: Reuse, refresh: str, kv_unified: bool, swa_full: bool) -> None:
    pair = windowed_pair(
        tmp_path,
        reuse,
        n_swa=6,
        k=3,
        refresh=refresh,
        kv_window=8,
        n_seq_max=4,
        n_ctx=2048,
        n_ubatch=32,
        kv_unified=kv_unified,
        swa_full=swa_full,
    )
    rng = np.random.default_rng(5)
    for seq_id, n in enumerate([3, 11, 1, 24]):
        pair.decode(Entry(seq_id, TEXT[:n]))
    for _ in range(120):
        chosen = rng.permutation(4)[: rng.integers(1, 5)].tolist()
        if not kv_unified:
            chosen.sort()
        lengths = [int(rng.integers(2, 5)) if rng.random() < 0.05 else 1 for _ in chosen]
        pair.decode(*(Entry(s, rng.integers(3, 320, n).tolist()) for s, n in zip(chosen, lengths, strict=True)))
    assert pair.engine.stats["lora_steps"] > 10


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("refresh", SCHEDULED)
def test_a_cache_that_holds_little_more_than_the_window(tmp_path: Path, refresh: str, k: int) -> None:
    # with the 256 cells that llama.cpp gives these layers the last LoRA step takes what the first replayed token sees
    pair = windowed_pair(
        tmp_path, "anchor-state", n_swa=254, k=k, refresh=refresh, kv_window=300, n_ctx=512, n_ubatch=2, swa_full=False
    )
    run(pair, 245, 60)


def test_cells_out_of_order(tmp_path: Path) -> None:
    options: dict[str, Any] = {"n_swa": 9, "k": 5, "kv_window": 300, "n_ctx": 512, "n_ubatch": 8, "swa_full": False}
    here, there = (windowed_pair(tmp_path, "anchor-state", **options) for _ in range(2))
    # the last 12 tokens are in the first cells again; a restored cache looks for cells from there on
    run(here, 250, 18)
    there.engine.load_state(here.engine.save_state())
    there.reference.sequences = here.reference.sequences
    for token in TEXT[268:290]:
        there.decode(Entry(0, [token]))


def test_refill_with_a_wide_window_keeps_the_context_exact(tmp_path: Path) -> None:
    pair = windowed_pair(tmp_path, "segment", rho=0.75, k=3, kv_window=1000, swa_full=False)
    full = windowed_pair(tmp_path, "segment", rho=0.75, k=0, swa_full=False)
    pair.decode(Entry(0, TEXT[:5]))
    full.decode(Entry(0, TEXT[:5]))
    for token in TEXT[5:105]:
        (logits,) = pair.decode(Entry(0, [token]))
        (exact,) = full.decode(Entry(0, [token]))
        assert logits is not None and exact is not None
        if pair.reference.last_step == "full":
            assert np.abs(logits - exact).max() <= 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("options", [{"flash_attn": "on"}, {"n_batch": 4, "n_ubatch": 4}])
def test_flash_attention_and_replays_of_their_own(tmp_path: Path, options: dict[str, Any]) -> None:
    pair = windowed_pair(tmp_path, "segment", k=5, kv_window=8, **options)
    for i in range(0, 12, 4):
        pair.decode(Entry(0, TEXT[i : i + 4], want_logits=i == 8))
    for token in TEXT[12:72]:
        pair.decode(Entry(0, [token]))


def test_switching_variants_rebuilds_nothing(tmp_path: Path) -> None:
    pair = windowed_pair(tmp_path, "segment", k=3, kv_window=8)
    run(pair, 4, 8)
    warm = pair.engine.stats
    for token in TEXT[12:52]:
        pair.decode(Entry(0, [token]))
    after = pair.engine.stats
    for counter in ("graph_builds_full", "graph_builds_lora"):
        assert after[counter] == warm[counter]  # type: ignore[literal-required]


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("swa_full", [True, False])
def test_growth(tmp_path: Path, swa_full: bool, kv_unified: bool) -> None:
    pair = windowed_pair(
        tmp_path,
        "anchor-delta",
        n_swa=200,
        k=1,
        refresh="single",
        n_ctx=2048,
        n_seq_max=2,
        n_ubatch=64,
        kv_unified=kv_unified,
        swa_full=swa_full,
    )
    # two sequences, which share the cells or fill a stream each
    for seq_id in (0, 1):
        pair.decode(Entry(seq_id, TEXT[:240]))
    for token in TEXT[240:290]:
        pair.decode(Entry(0, [token]), Entry(1, [token]))
    stats = pair.engine.stats
    assert stats["kv_cells_droppable"] == (768 if kv_unified else 512)
    if not swa_full:
        # one kept layer and three droppable ones have a window: 2 * 200 + 64 tokens, or 200 + 64 in each stream
        streams = 1 if kv_unified else 2
        cells_kept, cells_droppable = stats["kv_cells_kept"], stats["kv_cells_droppable"]
        expected = streams * (3 * cells_kept + cells_droppable + 4 * 512)
        assert stats["kv_bytes"] == pytest.approx(expected * KV_OF_A_TOKEN, rel=0.01)
        assert stats["kv_bytes_full"] == pytest.approx(streams * (4 * cells_kept + 4 * 512) * KV_OF_A_TOKEN, rel=0.01)


def test_rho_zero_equals_transformers(tmp_path: Path) -> None:
    model = make_model("olmo2", n_layer=N_LAYER, n_swa=7)
    expected = transformers_logits(model, TEXT[:40])
    write_gguf(tmp_path / "model.gguf", model)
    context = Context(Model(str(tmp_path / "model.gguf")), n_ctx=256, flash_attn="off", type_k="f32", type_v="f32")
    context.decode(TEXT[:40], outputs=[True] * 40)
    actual = np.stack([context.logits(i) for i in range(40)])
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_llama_keeps_no_more_than_the_windows(tmp_path: Path) -> None:
    model = make_model("olmo2", n_layer=N_LAYER, n_swa=12)
    write_gguf(tmp_path / "model.gguf", model, corrector_for(model, "segment"))
    n_ctx = 8192
    for rho in (0.0, 0.5):
        kept = Llama(tmp_path / "model.gguf", rho=rho, k=3, n_ctx=n_ctx, n_threads=1)
        kept("a", max_tokens=4)
        # a window's cells come in blocks of 256, after those of one ubatch
        windowed = N_LAYER // 2
        n_bytes = kept._session.context.stats["kv_bytes"]
        assert n_bytes <= (N_LAYER - windowed) * n_ctx * F16_OF_A_TOKEN + windowed * 1024 * F16_OF_A_TOKEN


@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("n_swa", [12, 40])
def test_windows_alone_are_saved_and_put_back(tmp_path: Path, refresh: str, n_swa: int) -> None:
    """As llama.cpp's server does: where it cuts a sequence back, the lost windows come from a saved state."""
    model = make_model("olmo2", n_layer=N_LAYER, n_swa=n_swa)
    write_gguf(tmp_path / "model.gguf", model, corrector_for(model, "anchor-delta"))
    native = Model(str(tmp_path / "model.gguf"))
    corrector = Corrector.load(native.path, native)
    options: dict[str, Any] = {"n_ctx": 512, "n_ubatch": 16, "swa_full": False, "type_k": "f32", "type_v": "f32"}
    options |= {"corrector": corrector, "rho": 0.5, "k": 3, "refresh": refresh, "kv_window": 400}
    text = np.random.default_rng(1).integers(3, 320, 200).tolist()
    context, expected = Context(native, **options), Context(native, **options)
    for one in (context, expected):
        for first in range(0, 64, 16):
            one.decode(text[first : first + 16])
    saved = context.save_sequence(0, windows_only=True)
    assert len(saved) < len(context.save_sequence(0))
    for token in text[64:180]:
        context.decode([token])
    context.seq_rm(0, 64)
    context.load_sequence(0, saved, windows_only=True)
    assert context.seq_pos_max(0) == 63
    for token in text[64:100]:
        context.decode([token])
        expected.decode([token])
        np.testing.assert_allclose(context.logits(), expected.logits(), atol=1e-4)

    whole = context.save_sequence(0)
    other = Context(native, **options)
    other.load_sequence(0, whole)
    for token in text[100:120]:
        other.decode([token])
        expected.decode([token])
        np.testing.assert_allclose(other.logits(), expected.logits(), atol=1e-4)
    with pytest.raises(ValueError, match="cannot be restored"):
        other.load_sequence(0, whole[:-5])
    assert other.seq_pos_max(0) == -1
