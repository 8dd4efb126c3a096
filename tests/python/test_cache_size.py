"""What a context is said to need for its caches before it is made, against what such contexts take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from loradrop._core import Context, Corrector, Model
from test_engine import POLICIES
from tiny import make_corrector, make_model, write_gguf

FAR = 2**31 - 256  # tokens; no machine has the memory for them
DROPS = [{}, *({"rho": 0.5, "k": 9, "refresh": refresh} for refresh in POLICIES)]


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("flash_attn", ["on", "off"])
@pytest.mark.parametrize("sequences", [{}, {"n_seq_max": 3}, {"n_seq_max": 3, "kv_unified": False}])
@pytest.mark.parametrize("n_swa", [0, 100])
@pytest.mark.parametrize("drop", DROPS)
def test_the_refusal_names_what_it_would_take(
    tmp_path: Path, drop: dict[str, Any], n_swa: int, sequences: dict[str, Any], flash_attn: str, swa_full: bool
) -> None:
    tiny = make_model("olmo2" if n_swa else "llama", n_layer=8, n_swa=n_swa)
    path = tmp_path / "model.gguf"
    write_gguf(path, tiny, make_corrector(tiny, "anchor-delta", layers=[2, 3, 4, 5]))
    model = Model(str(path))
    options: dict[str, Any] = {"n_threads": 1, "flash_attn": flash_attn, "swa_full": swa_full} | sequences
    if drop:
        options |= drop | {"corrector": Corrector.load(str(path), model)}

    def kv_bytes(n_ctx: int) -> int:
        return Context(model, n_ctx=n_ctx, **options).stats["kv_bytes"]

    near = 3 * 256 * 8  # more than the windows, and as many cells for each sequence
    per_token = (kv_bytes(2 * near) - kv_bytes(near)) / near
    expected = kv_bytes(near) + per_token * (FAR - near)
    with pytest.raises(RuntimeError, match="KV cache") as error:
        Context(model, n_ctx=FAR, **options)
    found = re.search(r"needs (\d+) MiB", str(error.value))
    assert found
    assert abs(int(found[1]) - expected / 2**20) <= 1
