"""Files that cannot be used: each gives an exception that names file, field and value, and the process lives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loradrop._core import Context, Corrector, CorrectorError, LoradropError, Model, ModelError
from test_engine import corrector_for
from tiny import TinyCorrector, TinyModel, make_corrector, make_model, write_gguf, write_sidecar

N_LAYER = 8
MODEL = make_model(n_layer=N_LAYER)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    write_gguf(path, MODEL)
    return path


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return Model(str(model_path))


def layered() -> TinyCorrector:
    return corrector_for(MODEL, "anchor-delta")


def segment() -> TinyCorrector:
    return corrector_for(MODEL, "segment")


def without(corrector: TinyCorrector, *parts: str) -> TinyCorrector:
    kept = {n: t for n, t in corrector.tensors.items() if not any(p in n for p in parts)}
    assert len(kept) < len(corrector.tensors)
    return dataclasses.replace(corrector, tensors=kept)


def with_tensor(corrector: TinyCorrector, part: str, change: Callable[..., np.ndarray]) -> TinyCorrector:
    name = next(n for n in corrector.tensors if part in n)
    return dataclasses.replace(corrector, tensors=corrector.tensors | {name: change(corrector.tensors[name])})


def poison(tensor: np.ndarray) -> np.ndarray:
    bad = tensor.copy()
    bad.flat[-1] = np.nan
    return bad


def without_hidden_units(corrector: TinyCorrector) -> TinyCorrector:
    for part in ("seg.0.gate", "seg.0.up"):
        corrector = with_tensor(corrector, part, lambda t: t[:0])
    return with_tensor(corrector, "seg.0.down", lambda t: t[:, :0])


BAD_CORRECTORS: dict[str, tuple[TinyCorrector, str]] = {
    "unknown reuse": (dataclasses.replace(layered(), reuse="magic"), "lora_drop.reuse is 'magic'"),
    "rank 0": (dataclasses.replace(layered(), rank=0), "lora_drop.rank is 0"),
    "huge rank": (dataclasses.replace(layered(), rank=65), "lora_drop.rank is 65"),
    "infinite alpha": (dataclasses.replace(layered(), alpha=float("inf")), "lora_drop.alpha"),
    "no layers": (dataclasses.replace(layered(), layers=[]), "lora_drop.layers"),
    "layer 0": (dataclasses.replace(layered(), layers=[0, 3]), "names layer 0; layers 1 to 6"),
    "last layer": (dataclasses.replace(layered(), layers=[3, 7]), "names layer 7"),
    "negative layer": (dataclasses.replace(layered(), layers=[-1]), "names layer -1"),
    "layer beyond": (dataclasses.replace(layered(), layers=[99]), "names layer 99"),
    "layer twice": (dataclasses.replace(layered(), layers=[3, 4, 3]), "names layer 3 twice"),
    "rho 1": (dataclasses.replace(layered(), rho=1.0), "lora_drop.rho is 1.0"),
    "rho NaN": (dataclasses.replace(layered(), rho=float("nan")), "lora_drop.rho is nan"),
    "unknown refresh": (dataclasses.replace(layered(), refresh="never"), "lora_drop.refresh is 'never'"),
    "no A": (without(layered(), "lora_drop_a"), "lora_drop_a.weight is missing"),
    "no B": (without(layered(), "lora_drop_b"), "lora_drop_b.weight is missing"),
    "B transposed": (
        with_tensor(layered(), "lora_drop_b", np.transpose),
        "has shape [64, 4], expected [4, 64]",
    ),
    "NaN": (with_tensor(layered(), "lora_drop_a", poison), "holds NaN or infinity in row 3"),
    "long gate": (
        with_tensor(layered(), "lora_drop_gate", lambda g: np.tile(g, 2)),
        "expected [64]",
    ),
    "gate of another rule": (
        dataclasses.replace(layered(), reuse="anchor-state"),
        "only known to the reuse rule anchor-delta",
    ),
    "layer of no list": (dataclasses.replace(layered(), layers=[3]), "belongs to no layer or run"),
    "odd segments": (
        dataclasses.replace(segment(), segments=[(3,)]),
        "lora_drop.segments has 1 entries",
    ),  # type: ignore[list-item]
    "reversed segment": (
        dataclasses.replace(segment(), segments=[(5, 2)]),
        "a run from layer 5 to 2",
    ),
    "segment twice": (
        dataclasses.replace(segment(), segments=[(2, 5), (2, 5)]),
        "run 2 to 5 twice",
    ),
    "segment of the last layer": (
        dataclasses.replace(segment(), segments=[(4, 7)]),
        "names layer 7",
    ),
    "segment without tensors": (
        dataclasses.replace(segment(), segments=[*(segment().segments or []), (2, 4)]),
        "run 3 of lora_drop.segments has no tensors",
    ),
    "half a hidden layer": (without(segment(), ".down"), "down.weight is missing"),
    "half a linear part": (without(segment(), "seg.0.b"), "lora_drop.seg.0.b.weight is missing"),
    "no hidden units": (without_hidden_units(segment()), "gate.weight has shape"),
    "narrow up": (with_tensor(segment(), ".up", lambda t: t[:-1]), "up.weight has shape"),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "sidecar"])
@pytest.mark.parametrize("name", BAD_CORRECTORS)
def test_bad_corrector(tmp_path: Path, name: str, inside: bool) -> None:
    bad, message = BAD_CORRECTORS[name]
    base, holder = tmp_path / "base.gguf", tmp_path / "holder.gguf"
    write_gguf(base, MODEL, bad if inside else None)
    write_sidecar(holder, MODEL, bad)
    path = str(base if inside else holder)
    model = Model(str(base))  # also with a corrector that nobody can use inside
    with pytest.raises(CorrectorError) as error:
        Corrector.load(path, model)
    assert message in str(error.value)
    assert path in str(error.value)
    Context(model, n_ctx=256).decode([1, 2, 3])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_model("qwen2", n_layer=N_LAYER), "general.architecture is 'llama'"),
        (make_model(n_layer=6), "lora_drop.base.block_count is 8, the model has 6"),
        (make_model(n_layer=N_LAYER, n_embd=32), "lora_drop.base.embedding_length is 64"),
        (make_model(n_layer=N_LAYER, n_ff=128), "lora_drop.base.tensors"),
    ],
)
def test_a_sidecar_for_another_model(tmp_path: Path, other: TinyModel, message: str) -> None:
    write_gguf(tmp_path / "other.gguf", other)
    write_sidecar(tmp_path / "sidecar.gguf", MODEL, layered())
    with pytest.raises(CorrectorError, match="another model") as error:
        Corrector.load(str(tmp_path / "sidecar.gguf"), Model(str(tmp_path / "other.gguf")))
    assert message in str(error.value)


def test_a_file_without_corrector_has_none(model_path: Path, model: Model) -> None:
    assert Corrector.load(str(model_path), model) is None


@pytest.mark.parametrize("corrector_type", ["f16", "q8_0"])
def test_smaller_types_work(tmp_path: Path, model: Model, corrector_type: str) -> None:
    corrector = make_corrector(MODEL, "segment", segments=[(2, 5)], rank=32, hidden=32)
    write_sidecar(tmp_path / "s.gguf", MODEL, corrector, corrector_type)  # type: ignore[arg-type]
    native = Corrector.load(str(tmp_path / "s.gguf"), model)
    context = Context(model, n_ctx=256, corrector=native, rho=0.5, k=3)
    for token in range(3, 30):
        context.decode([token])
    assert np.isfinite(context.logits()).all()


def test_a_missing_file(tmp_path: Path, model: Model) -> None:
    with pytest.raises(ModelError, match=r"gone\.gguf: no such file"):
        Model(str(tmp_path / "gone.gguf"))
    with pytest.raises(CorrectorError, match=r"gone\.gguf"):
        Corrector.load(str(tmp_path / "gone.gguf"), model)


def test_something_else_than_a_gguf(tmp_path: Path, model: Model) -> None:
    for content in (b"", b"GGUF", b"not a model at all" * 100):
        path = tmp_path / "other.bin"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"other\.bin"):
            Model(str(path))
        with pytest.raises(CorrectorError, match=r"other\.bin"):
            Corrector.load(str(path), model)


def test_truncated_at_any_place(tmp_path: Path, model_path: Path, model: Model) -> None:
    write_sidecar(tmp_path / "sidecar.gguf", MODEL, segment())
    whole_model = model_path.read_bytes()
    whole_sidecar = (tmp_path / "sidecar.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for i in range(1, 40):
        cut.write_bytes(whole_model[: len(whole_model) * i // 40])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            Model(str(cut))
        cut.write_bytes(whole_sidecar[: len(whole_sidecar) * i // 40])
        with pytest.raises(CorrectorError, match=r"cut\.gguf"):
            Corrector.load(str(cut), model)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_sidecar_with_a_damaged_head_is_an_error_or_loads(tmp_path: Path, model: Model, data: st.DataObject) -> None:
    path = tmp_path / "damaged.gguf"
    write_sidecar(path, MODEL, segment())
    content = bytearray(path.read_bytes())
    head = content.index(b"lora_drop.seg.2") + 400
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        corrector = Corrector.load(str(path), model)
    except LoradropError as error:
        assert str(path) in str(error)
    else:
        if corrector is not None:
            Context(model, n_ctx=256, corrector=corrector, rho=0.5, k=3).decode([1, 2, 3])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_model_with_a_damaged_head_is_an_error_or_loads(
    tmp_path: Path, model_path: Path, data: st.DataObject
) -> None:
    content = bytearray(model_path.read_bytes())
    keys_end = content.index(b"tokenizer.ggml.tokens")
    tensors_begin = content.index(b"token_embd.weight")
    places = st.one_of(st.integers(0, keys_end), st.integers(tensors_begin, tensors_begin + 3000))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        Model(str(path))
    except LoradropError as error:
        assert str(path) in str(error)
