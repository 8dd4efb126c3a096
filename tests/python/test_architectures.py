"""Each architecture's engine against transformers, and its LoRA steps against the rule on transformers' layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from architectures import POLICIES, REFUSED, SUPPORTED, Checkpoint, Refused, Supported
from draft_rows import DraftRows
from loradrop._core import Context, Corrector, LoradropError, Model, UnsupportedError
from loradrop.draft_layers import draft_layers
from pair import ENGINE_OPTIONS, TOLERANCE, Lockstep
from reference import Entry, layers_for
from tiny import Reuse, make_corrector, write_sidecar_of
from verify_walk import needs_exact_rows

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import GeluOfGgml, load_checkpoint, write_checkpoints  # noqa: E402
from transformers_reference import TransformersDecoder  # noqa: E402

GELU_TOLERANCE = 2e-3  # the last bit of an f32 decides which f16 is looked up
RHO, K, KV_WINDOW = 0.5, 3, 6
DROPPED = [2]  # so few that drafts are often right
TEXT = np.random.default_rng(3).integers(3, 300, 40).tolist()
LORA_CASES = [(c, reuse, refresh) for c in SUPPORTED for reuse in c.rules for refresh in POLICIES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    write_checkpoints(path, [*SUPPORTED, *REFUSED])
    return path


def name_of(value: object) -> str:
    return value.name if isinstance(value, Checkpoint) else str(value)


def native_model(folder: Path, checkpoint: Checkpoint) -> Model:
    if not (folder / checkpoint.name).exists():
        pytest.skip(f"this transformers has no {checkpoint.model_class}")
    model = Model(str(folder / f"{checkpoint.name}.gguf"))
    assert model.arch == checkpoint.arch
    return model


def tolerance_for(model: torch.nn.Module) -> float:
    return GELU_TOLERANCE if any(isinstance(module, GeluOfGgml) for module in model.modules()) else TOLERANCE


def assert_decodes_as_transformers(folder: Path, checkpoint: Checkpoint) -> None:
    context = Context(native_model(folder, checkpoint), **ENGINE_OPTIONS)
    context.decode(TEXT[:30], outputs=[True] * 30)
    rows = [context.logits(i) for i in range(30)]
    for token in TEXT[30:]:
        context.decode([token])
        rows.append(context.logits())
    other = load_checkpoint(folder / checkpoint.name, checkpoint)
    with torch.no_grad():
        expected = other(torch.tensor([TEXT])).logits[0].numpy()
    assert np.abs(np.stack(rows) - expected).max() <= tolerance_for(other) * np.abs(expected).max()


@pytest.mark.parametrize("checkpoint", SUPPORTED, ids=name_of)
def test_full_path_equals_transformers(folder: Path, checkpoint: Supported) -> None:
    assert_decodes_as_transformers(folder, checkpoint)


def lockstep(folder: Path, checkpoint: Supported, reuse: Reuse, refresh: str) -> Lockstep:
    model = native_model(folder, checkpoint)
    place = {"segments": [(2, 5)]} if reuse == "segment" else {"layers": [3, 4, 2, 5]}
    corrector = make_corrector(model, reuse, **place)
    sidecar = folder / f"{checkpoint.name}-{reuse}.gguf"
    write_sidecar_of(sidecar, model, model.layout_hash, corrector)
    point = {"k": K, "kv_window": KV_WINDOW}
    engine = Context(
        model,
        corrector=Corrector.load(str(sidecar), model),
        rho=RHO,
        refresh=refresh,
        **point,
        **ENGINE_OPTIONS,
    )
    dropped = layers_for(RHO, model.n_layer, corrector)
    other = load_checkpoint(folder / checkpoint.name, checkpoint)
    reference = TransformersDecoder(other, corrector, dropped, policy=refresh, **point)
    return Lockstep(engine, reference, tolerance_for(other))


@pytest.mark.parametrize(("checkpoint", "reuse", "refresh"), LORA_CASES, ids=name_of)
def test_lora_steps_equal_the_rule_on_transformers_layers(
    folder: Path, checkpoint: Supported, reuse: Reuse, refresh: str
) -> None:
    both = lockstep(folder, checkpoint, reuse, refresh)
    both.decode(Entry(0, TEXT[:10]))
    for token in TEXT[10:26]:
        both.decode(Entry(0, [token]))
    assert both.engine.stats["lora_steps"] == 12


@needs_exact_rows
@pytest.mark.parametrize("checkpoint", SUPPORTED, ids=name_of)
def test_exact_decoding_gives_the_full_models_logits(folder: Path, checkpoint: Supported) -> None:
    model = native_model(folder, checkpoint)
    drops: dict[str, Any] = {
        "corrector": Corrector.none(model, DROPPED),
        "rho": len(DROPPED) / model.n_layer,
        "k": K,
        "refresh": "verify",
    }
    exact, full = Context(model, **drops, **ENGINE_OPTIONS), Context(model, **ENGINE_OPTIONS)
    tokens = TEXT[:10]
    for step in range(25):
        for context in (exact, full):
            context.decode(tokens)
        assert np.array_equal(exact.logits(), full.logits()), f"step {step}"
        draft = exact.drafted()
        tokens = [TEXT[10 + step] if draft is None or step % 5 == 0 else draft]
    assert exact.stats["rounds"] > 3 and sum(exact.stats["drafts_accepted"]) > 3


@pytest.mark.parametrize("checkpoint", SUPPORTED, ids=name_of)
def test_drafts_among_a_part_of_the_vocabulary(folder: Path, checkpoint: Supported) -> None:
    """Where the best of all tokens has a row it is drafted, soft caps and scales included; else one that has."""
    model = native_model(folder, checkpoint)
    drops: dict[str, Any] = {"rho": len(DROPPED) / model.n_layer, "k": 1, "refresh": "verify"}
    whole, part = (
        Context(model, corrector=Corrector.none(model, DROPPED), draft_rows=n, **drops, **ENGINE_OPTIONS)
        for n in (0, 60)
    )
    rows = DraftRows(model.n_vocab, 60, [token for token in range(model.n_vocab) if model.is_eog(token)])
    n_other = 0
    for context in (whole, part):
        context.decode(TEXT[:10])
    for token in TEXT[:10]:
        rows.add(token)
    best = ours = None
    for token in TEXT[10:]:
        while token in (best, ours):  # so that each decode is a round
            token += 1
        rows.add(token)
        allowed = rows.allowed
        for context in (whole, part):
            context.decode([token])
        rows.add_likely(part.logits())
        best, ours = whole.drafted(), part.drafted()
        assert best is not None and ours is not None
        assert ours == best if allowed[best] or checkpoint.arch == "phi2" else allowed[ours]
        n_other += ours != best
    assert (part.stats["draft_head_bytes"] > 0) == (n_other > 0) == (checkpoint.arch != "phi2")  # whose head has a bias


@pytest.mark.parametrize("checkpoint", SUPPORTED, ids=name_of)
def test_layers_for_drafts_are_found(
    folder: Path, checkpoint: Supported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path))
    found = draft_layers(native_model(folder, checkpoint), 2)
    assert found[1] == found[0] + 1
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize("checkpoint", REFUSED, ids=name_of)
def test_refused_with_rho_above_zero(folder: Path, checkpoint: Refused) -> None:
    model = native_model(folder, checkpoint)
    with pytest.raises(UnsupportedError, match=f"'{checkpoint.arch}'.*{checkpoint.reason}.*use rho = 0"):
        Context(model, corrector=Corrector.none(model), rho=RHO, k=K, **ENGINE_OPTIONS)


@pytest.mark.parametrize("checkpoint", [c for c in REFUSED if c.logits], ids=name_of)
def test_refused_decodes_with_rho_zero(folder: Path, checkpoint: Refused) -> None:
    assert_decodes_as_transformers(folder, checkpoint)


@pytest.mark.parametrize("checkpoint", [c for c in REFUSED if not c.logits], ids=name_of)
def test_encoders_do_not_crash(folder: Path, checkpoint: Refused) -> None:
    context = Context(native_model(folder, checkpoint), **ENGINE_OPTIONS)
    try:
        context.decode(TEXT[:5])
    except LoradropError as e:
        assert "llama_encode must be called first" in str(e)
