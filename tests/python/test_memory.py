"""The process's memory beside the bytes of the K/V cache."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pair import Pair
from tiny import make_corrector, make_model

N_LAYER = 8
N_PROMPT, N_CTX = 256, 4096
MIB = 2**20


def anonymous_bytes() -> int:
    """Return the process's resident memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("n_prompt", [1, 20, 300])
@pytest.mark.parametrize("refresh", [None, "single", "refill", "verify"])
def test_bytes_in_use_are_those_of_tokens(tmp_path: Path, refresh: str | None, n_prompt: int) -> None:
    model = make_model(n_layer=N_LAYER)
    options = {"k": 0} if refresh is None else {"k": 3, "refresh": refresh, "kv_window": 0}
    corrector = make_corrector(model, "anchor-delta", layers=[2, 3, 4, 5])
    engine = Pair(tmp_path, model, corrector, rho=0.5, n_ctx=512, type_k="f16", type_v="f16", **options).engine
    token = 2 * 2 * 16 * 2  # bytes in one layer: K and V of two heads of 16
    engine.decode(list(range(3, 3 + n_prompt)) if n_prompt < 250 else [7] * n_prompt)
    for _ in range(30):
        engine.decode([5])
    stats = engine.stats
    n, n_lora = n_prompt + 30, stats["lora_tokens"]
    dropped = {None: 0, "verify": 0, "single": n_lora}.get(refresh, n_lora)
    if refresh == "refill":  # of the tokens that have been run again the first four of a text stay
        dropped = n_lora - sum(n_prompt <= i < 4 and (i - n_prompt) % 4 < 3 for i in range(4))
    # rows of drafts that were not taken are hidden, but still there
    ahead = 3 if refresh == "verify" else 0
    assert 0 <= stats["kv_used_bytes"] - token * (N_LAYER * n - 4 * dropped) <= token * N_LAYER * ahead
    assert 0 <= stats["kv_used_bytes_full"] - token * N_LAYER * n <= token * N_LAYER * ahead


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_growing_cache_leaves_nothing_behind(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER, n_embd=256, n_head_kv=4, n_ctx_train=8192)
    corrector = make_corrector(model, "anchor-delta", layers=range(1, N_LAYER - 1))
    engine = Pair(tmp_path, model, corrector, rho=0.75, k=3, refresh="single", n_ctx=N_CTX, flash_attn="on").engine
    rng = np.random.default_rng(0)

    engine.decode(rng.integers(3, 320, N_PROMPT).tolist())
    bytes_before, cells_before, memory_before = (
        engine.stats["kv_bytes"],
        engine.stats["kv_cells_droppable"],
        anonymous_bytes(),
    )
    for _ in range(N_CTX // N_PROMPT - 1):
        engine.decode(rng.integers(3, 320, N_PROMPT).tolist())
    assert engine.stats["kv_cells_droppable"] > 8 * cells_before
    grown = engine.stats["kv_bytes"] - bytes_before
    assert grown > 16 * MIB
    assert anonymous_bytes() - memory_before < 1.4 * grown  # graphs grow too
