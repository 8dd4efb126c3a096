"""A corrector serves the model that it was loaded for, and contexts of other models refuse it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loradrop import Llama
from loradrop._core import Context, Corrector, CorrectorError, Model, Sampler
from loradrop_convert.base import read_base
from loradrop_convert.gguf_file import read_gguf_corrector, write_sidecar
from loradrop_convert.pack import pack, pack_sidecar, unpack
from test_engine import corrector_for
from tiny import base_fingerprint, make_model, write_gguf, write_sidecar_of


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


def test_a_sidecar_of_a_fine_tune_is_refused(tmp_path: Path) -> None:
    tiny, tuned = make_model(n_layer=8), make_model(n_layer=8)
    for name, tensor in tuned.tensors.items():
        if "attn_q" in name:  # as a merged adapter changes them: no norm is another
            tensor += 0.01
    ours, theirs, sidecar = (tmp_path / f"{name}.gguf" for name in ("ours", "theirs", "sidecar"))
    write_gguf(ours, tiny)
    write_gguf(theirs, tuned)
    write_gguf(tmp_path / "holder.gguf", tiny, corrector_for(tiny, "segment"))
    write_sidecar(sidecar, read_gguf_corrector(tmp_path / "holder.gguf"), read_base(ours))

    options = {"corrector": sidecar, "rho": 0.5, "k": 3, "n_ctx": 64}
    with Llama(ours, **options) as llm:  # type: ignore[arg-type]
        assert llm("a", max_tokens=2)
    for use in (
        lambda: Llama(theirs, **options),  # type: ignore[arg-type]
        lambda: pack(theirs, sidecar, tmp_path / "packed.gguf"),
        lambda: pack_sidecar(theirs, sidecar, tmp_path / "other.gguf"),
    ):
        with pytest.raises(CorrectorError, match=r"sidecar\.gguf: made for .* weights hash to .* a fine-tune"):
            use()

    # the way to use it all the same
    unpack(sidecar, tmp_path / "folder", folder=True)
    pack_sidecar(theirs, tmp_path / "folder", tmp_path / "other.gguf")
    with Llama(theirs, **options | {"corrector": tmp_path / "other.gguf"}) as llm:  # type: ignore[arg-type]
        assert llm("a", max_tokens=2)
    # and one that does not tell
    write_sidecar_of(tmp_path / "old.gguf", tiny, base_fingerprint(tiny), corrector_for(tiny, "segment"))
    with Llama(theirs, **options | {"corrector": tmp_path / "old.gguf"}) as llm:  # type: ignore[arg-type]
        assert llm("a", max_tokens=2)


def test_a_sampler_of_another_model_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "ours.gguf", make_model())
    write_gguf(tmp_path / "theirs.gguf", make_model())
    ours, theirs = Model(str(tmp_path / "ours.gguf")), Model(str(tmp_path / "theirs.gguf"))
    context, sampler = Context(ours, n_ctx=64), Sampler(theirs)
    context.decode([3, 4])
    for use in (lambda: sampler.sample(context), lambda: sampler.drafts_for(context)):
        with pytest.raises(ValueError, match=r"the sampler was made for .*theirs\.gguf, the context for .*ours\.gguf"):
            use()
    assert Sampler(ours, temperature=0.0).sample(context) == context.logits().argmax()
