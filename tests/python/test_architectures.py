"""Each architecture's engine against transformers, and its LoRA steps against the rule on transformers' layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from architectures import POLICIES, REFUSED, SUPPORTED, Checkpoint, Refused, Supported
from loradrop._core import Context, Corrector, LoradropError, Model, UnsupportedError
from pair import ENGINE_OPTIONS, TOLERANCE, Lockstep
from reference import Entry, FloatArray, layers_for
from tiny import Reuse, make_corrector, write_sidecar_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import load_checkpoint, write_checkpoints  # noqa: E402
from transformers_reference import TransformersDecoder  # noqa: E402

GELU_TOLERANCE = 5e-3  # ggml looks GELU up in a table of f16
RHO, K, KV_WINDOW = 0.5, 3, 8
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


def tolerance_of(checkpoint: Checkpoint) -> float:
    return GELU_TOLERANCE if isinstance(checkpoint, Supported) and checkpoint.gelu else TOLERANCE


def assert_decodes_as_transformers(folder: Path, checkpoint: Checkpoint) -> None:
    context = Context(native_model(folder, checkpoint), **ENGINE_OPTIONS)
    context.decode(TEXT[:30], outputs=[True] * 30)
    rows = [context.logits(i) for i in range(30)]
    for token in TEXT[30:]:
        context.decode([token])
        rows.append(context.logits())
    with torch.no_grad():
        expected = load_checkpoint(folder / checkpoint.name, checkpoint)(torch.tensor([TEXT])).logits[0].numpy()
    assert np.abs(np.stack(rows) - expected).max() <= tolerance_of(checkpoint) * np.abs(expected).max()


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
    return Lockstep(engine, reference, tolerance_of(checkpoint))


@pytest.mark.parametrize(("checkpoint", "reuse", "refresh"), LORA_CASES, ids=name_of)
def test_lora_steps_equal_the_rule_on_transformers_layers(
    folder: Path, checkpoint: Supported, reuse: Reuse, refresh: str
) -> None:
    both = lockstep(folder, checkpoint, reuse, refresh)
    both.decode(Entry(0, TEXT[:14]))
    for token in TEXT[14:34]:
        both.decode(Entry(0, [token]))
    assert both.engine.stats["lora_steps"] == 15
