"""The engine against the NumPy reference: schedule, refresh policies, thinned K/V, reuse rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf import transformers_logits
from loradrop._core import Context, Model
from pair import Pair
from reference import Entry, layers_for
from tiny import Arch, Reuse, TinyCorrector, TinyModel, make_corrector, make_model, write_gguf

N_LAYER = 8
REUSES: list[Reuse] = ["previous-state", "anchor-state", "anchor-delta", "segment"]
SCHEDULED = ["single", "refill"]  # whose LoRA steps decode tokens
POLICIES = [*SCHEDULED, "verify"]
TEXT = np.random.default_rng(3).integers(3, 320, 400).tolist()


def corrector_for(model: TinyModel, reuse: Reuse) -> TinyCorrector:
    if reuse == "segment":
        return make_corrector(model, reuse, segments=[(3, 3), (2, 5), (1, 6)])
    return make_corrector(model, reuse, layers=[3, 4, 2, 6, 5, 1])


def run(pair: Pair, n_prompt: int, n_generated: int, seq_id: int = 0) -> None:
    pair.decode(Entry(seq_id, TEXT[:n_prompt]))
    for token in TEXT[n_prompt : n_prompt + n_generated]:
        pair.decode(Entry(seq_id, [token]))


@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_two_hundred_steps(tmp_path: Path, reuse: Reuse, refresh: str) -> None:
    model = make_model(n_layer=N_LAYER)
    pair = Pair(tmp_path, model, corrector_for(model, reuse), rho=0.5, k=3, refresh=refresh, kv_window=32)
    run(pair, 17, 200)
    assert pair.engine.stats["lora_steps"] == 150


@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
@pytest.mark.parametrize(("rho", "k", "n_prompt"), [(1 / 8, 1, 1), (0.5, 2, 5), (0.75, 7, 40), (0.75, 5, 3)])
def test_points(tmp_path: Path, reuse: Reuse, refresh: str, rho: float, k: int, n_prompt: int) -> None:
    model = make_model(n_layer=N_LAYER, seed=k)
    pair = Pair(tmp_path, model, corrector_for(model, reuse), rho=rho, k=k, refresh=refresh, kv_window=7)
    run(pair, n_prompt, 60)


@pytest.mark.parametrize("reuse", REUSES)
def test_smallest_correctors(tmp_path: Path, reuse: Reuse) -> None:
    model = make_model(n_layer=N_LAYER)
    place: dict[str, Any] = {"segments": [(2, 5)]} if reuse == "segment" else {"layers": [2, 3, 4, 5]}
    corrector = make_corrector(model, reuse, rank=1, hidden=1, **place)
    run(Pair(tmp_path, model, corrector, rho=0.5, k=3), 5, 20)


@pytest.mark.parametrize("kv_window", [0, 1, 4, 16, 1000])
def test_windows(tmp_path: Path, kv_window: int) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "anchor-delta")
    pair = Pair(tmp_path, model, corrector, rho=0.5, k=3, kv_window=kv_window)
    run(pair, 9, 80)


def test_refill_with_a_wide_window_keeps_the_context_exact(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "segment")
    pair = Pair(tmp_path, model, corrector, rho=0.75, k=3, kv_window=1000)
    full = Pair(tmp_path, model, corrector, rho=0.75, k=0)
    pair.decode(Entry(0, TEXT[:5]))
    full.decode(Entry(0, TEXT[:5]))
    n_refresh = 0
    for token in TEXT[5:105]:
        (logits,) = pair.decode(Entry(0, [token]))
        (exact,) = full.decode(Entry(0, [token]))
        assert logits is not None and exact is not None
        if pair.reference.last_step == "full":
            n_refresh += 1
            assert np.abs(logits - exact).max() <= 1e-5 * np.abs(exact).max()
    assert n_refresh == 25


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("flash_attn", ["on", "off"])
def test_architectures(tmp_path: Path, arch: Arch, flash_attn: str) -> None:
    model = make_model(arch, n_layer=N_LAYER)
    corrector = corrector_for(model, "segment")
    pair = Pair(tmp_path, model, corrector, rho=0.75, k=3, kv_window=16, flash_attn=flash_attn)
    run(pair, 12, 80)


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_several_sequences(tmp_path: Path, reuse: Reuse, refresh: str, kv_unified: bool) -> None:
    model = make_model(n_layer=N_LAYER)
    pair = Pair(
        tmp_path,
        model,
        corrector_for(model, reuse),
        rho=0.5,
        k=3,
        refresh=refresh,
        kv_window=8,
        n_seq_max=4,
        n_ctx=2048,
        kv_unified=kv_unified,
    )
    rng = np.random.default_rng(5)
    for seq_id, n in enumerate([3, 11, 1, 24]):
        pair.decode(Entry(seq_id, TEXT[:n]))
    for _ in range(120):
        # any sequences, in any order, now and then one with several tokens: phases drift apart and meet again
        chosen = rng.permutation(4)[: rng.integers(1, 5)].tolist()
        if not kv_unified:
            chosen.sort()
        lengths = [int(rng.integers(2, 5)) if rng.random() < 0.05 else 1 for _ in chosen]
        pair.decode(*(Entry(s, rng.integers(3, 320, n).tolist()) for s, n in zip(chosen, lengths, strict=True)))
    assert pair.engine.stats["lora_steps"] > 10


def test_a_prompt_piece_of_one_token_is_no_lora_step(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    pair = Pair(tmp_path, model, corrector_for(model, "anchor-delta"), rho=0.5, k=3)
    pair.decode(Entry(0, TEXT[:8], want_logits=False))
    pair.decode(Entry(0, TEXT[8:9]))
    assert pair.engine.stats["lora_steps"] == 0


def test_a_refill_larger_than_a_batch_runs_alone(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "segment")
    pair = Pair(tmp_path, model, corrector, rho=0.5, k=7, kv_window=8, n_batch=4, n_ubatch=4)
    pair.decode(Entry(0, TEXT[:4]))
    for token in TEXT[4:64]:
        pair.decode(Entry(0, [token]))


def test_a_sidecar_is_as_good_as_a_corrector_in_the_model(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "anchor-state")
    run(Pair(tmp_path, model, corrector, rho=0.5, k=2, sidecar=True), 6, 20)


def test_k_zero_equals_rho_zero_to_the_bit(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "segment")
    k_zero = Pair(tmp_path, model, corrector, rho=0.75, k=0)
    rho_zero = Pair(tmp_path, model, corrector, rho=0.0, k=3)
    for tokens in [TEXT[:9], *([t] for t in TEXT[9:60])]:
        (a,) = k_zero.decode(Entry(0, tokens))
        (b,) = rho_zero.decode(Entry(0, tokens))
        assert a is not None and b is not None and a.tobytes() == b.tobytes()


def test_switching_variants_rebuilds_nothing(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    pair = Pair(tmp_path, model, corrector_for(model, "segment"), rho=0.5, k=3, kv_window=8)
    run(pair, 4, 8)
    warm = pair.engine.stats
    for token in TEXT[12:112]:
        pair.decode(Entry(0, [token]))
    after = pair.engine.stats
    assert after["lora_steps"] - warm["lora_steps"] == 75
    for counter in ("graph_builds_full", "graph_builds_lora"):
        assert after[counter] == warm[counter]  # type: ignore[literal-required]
    for counter in ("compute_bytes_full", "compute_bytes_lora"):
        assert after[counter] == warm[counter]  # type: ignore[literal-required]


@pytest.mark.parametrize("refresh", SCHEDULED)
def test_droppable_cache_grows_with_the_formula(tmp_path: Path, refresh: str) -> None:
    model = make_model(n_layer=N_LAYER, n_ctx_train=4096)
    corrector = corrector_for(model, "anchor-delta")
    k, window, n_prompt, n_generated = 3, 32, 300, 1800
    pair = Pair(
        tmp_path,
        model,
        corrector,
        rho=0.5,
        k=k,
        refresh=refresh,
        kv_window=window,
        n_ctx=2304,
    )
    engine = pair.engine  # the reference would take minutes
    rng = np.random.default_rng(0)
    engine.decode(rng.integers(3, 320, n_prompt).tolist())
    for token in rng.integers(3, 320, n_generated).tolist():
        engine.decode([token])
        stats = engine.stats
        generated = stats["full_tokens"] + stats["lora_tokens"] - n_prompt
        needed = n_prompt + generated / (k + 1) + (window + 2 * k if refresh == "refill" else 0)
        assert stats["kv_cells_droppable"] <= needed + 1 + stats["kv_growth_step"]
    n_layer, n_drop = model.n_layer, len(layers_for(0.5, model.n_layer, corrector))
    share = (stats["kv_cells_kept"] * (n_layer - n_drop) + stats["kv_cells_droppable"] * n_drop) / (
        stats["kv_cells_kept"] * n_layer
    )
    assert stats["kv_bytes"] == pytest.approx(share * stats["kv_bytes_full"], rel=0.01)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_rho_zero_equals_transformers(tmp_path: Path, arch: Arch, tied: bool) -> None:
    model = make_model(arch, n_layer=N_LAYER, tied=tied)
    expected = transformers_logits(model, TEXT[:40])
    write_gguf(tmp_path / "model.gguf", model)
    context = Context(
        Model(str(tmp_path / "model.gguf")),
        n_ctx=256,
        flash_attn="off",
        type_k="f32",
        type_v="f32",
    )
    context.decode(TEXT[:30], outputs=[True] * 30)
    actual = [context.logits(i) for i in range(30)]
    for token in TEXT[30:40]:
        context.decode([token])
        actual.append(context.logits())
    assert np.abs(np.stack(actual) - expected).max() <= 1e-4 * np.abs(expected).max()
