"""A corrector serves the model that it was loaded for, and contexts of other models refuse it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loradrop._core import Context, Corrector, CorrectorError, Model
from test_engine import corrector_for
from tiny import make_model, write_gguf


@pytest.mark.parametrize("other", [{"n_embd": 32}, {"n_embd": 128}, {"n_ff": 128}, {"n_layer": 10}])
def test_it_is_refused(tmp_path: Path, other: dict[str, int]) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    tiny = make_model(n_layer=8)
    write_gguf(theirs, tiny, corrector_for(tiny, "anchor-delta"))
    write_gguf(ours, make_model(**({"n_layer": 8} | other)))
    model, stranger = Model(str(ours)), Model(str(theirs))
    for corrector in (Corrector.load(str(theirs), stranger), Corrector.none(stranger)):
        with pytest.raises(CorrectorError, match="was loaded for another model"):
            Context(model, n_ctx=256, corrector=corrector, rho=0.25, k=3)
        Context(stranger, n_ctx=256, corrector=corrector, rho=0.25, k=3).decode([3, 4, 5])
        Context(Model(str(theirs)), n_ctx=256, corrector=corrector, rho=0.25, k=3).decode([3, 4, 5])
