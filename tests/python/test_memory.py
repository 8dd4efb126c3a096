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
