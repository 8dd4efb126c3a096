"""Files that hold a corrector alone: sidecars, folders of ours, checkpoints of the reference code."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loradrop._core import Corrector, CorrectorError, LoradropError, Model, ModelError
from loradrop_convert.base import BaseInfo, check_corrector, check_same_base, check_weights, read_base
from loradrop_convert.corrector import CorrectorData
from loradrop_convert.folder import read_folder, read_folder_base, write_folder
from loradrop_convert.gguf_file import read_gguf_corrector, write_sidecar
from loradrop_convert.gguf_header import Field, read_header
from loradrop_convert.gguf_writer import write_gguf as write_parts
from loradrop_convert.reference_checkpoint import read_reference_checkpoint
from loradrop_convert.sources import read_corrector, read_source
from loradrop_convert.storage import in_file
from test_bad_files import BAD_CORRECTORS
from test_engine import REUSES, corrector_for
from tiny import Reuse, TinyCorrector, TinyModel, as_stored, make_corrector, make_model, write_gguf
from tiny import write_sidecar as write_tiny_sidecar

N_LAYER = 8
MODEL = make_model(n_layer=N_LAYER)
N_EMBD = MODEL.n_embd
QUALITY = {"nll": 3.26, "full": 3.14, "at": {"rho": 0.25, "k": 3}, "text": "Prosa, ungesehen: äöü"}


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    write_gguf(path, MODEL)
    return path


@pytest.fixture(scope="module")
def base(base_path: Path) -> BaseInfo:
    return read_base(base_path)


@pytest.fixture(scope="module")
def model(base_path: Path) -> Model:
    return Model(str(base_path))


def as_data(corrector: TinyCorrector) -> CorrectorData:
    return CorrectorData(
        reuse=corrector.reuse,
        rank=corrector.rank,
        alpha=corrector.alpha,
        tensors=corrector.tensors,
        layers=corrector.layers,
        segments=corrector.segments or [],
        rho=corrector.rho,
        k=corrector.k,
        refresh=corrector.refresh,
        quality=None if corrector.quality is None else json.loads(corrector.quality),
    )


def some_corrector(reuse: Reuse) -> CorrectorData:
    return dataclasses.replace(as_data(corrector_for(MODEL, reuse)), rho=0.25, k=3, refresh="refill", quality=QUALITY)


def assert_same(a: CorrectorData, b: CorrectorData) -> None:
    """Tensors bit by bit; alpha and rho as f32, which GGUF makes of them."""
    for field in dataclasses.fields(a):
        if field.name in ("alpha", "rho"):
            ours, theirs = getattr(a, field.name), getattr(b, field.name)
            assert (ours is None) == (theirs is None)
            assert ours is None or np.float32(ours) == np.float32(theirs)
        elif field.name != "tensors":
            assert getattr(a, field.name) == getattr(b, field.name), field.name
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        assert b.tensors[name].dtype == tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, b.tensors[name], err_msg=name)


def rounded(corrector: CorrectorData) -> CorrectorData:
    """What a sidecar in F16 holds."""
    tensors = {n: t if t.ndim == 1 else t.astype(np.float16).astype(np.float32) for n, t in corrector.tensors.items()}
    return dataclasses.replace(corrector, tensors=tensors)


# --- the model ----------------------------------------------------------------------------------


# some writers keep a dimension of 1
PADDED = dataclasses.replace(MODEL, tensors={name: t[None] if t.ndim == 1 else t for name, t in MODEL.tensors.items()})


@pytest.mark.parametrize(
    ("tiny", "weight_type"),
    [
        (MODEL, "f32"),
        (PADDED, "f32"),
        (MODEL, "f16"),
        (make_model("qwen2", tied=True, n_layer=4, n_embd=32), "f16"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_base_is_what_the_engine_says(tmp_path: Path, tiny: TinyModel, weight_type: Any, inside: bool) -> None:
    corrector = make_corrector(tiny, "anchor-delta", layers=[2]) if inside else None
    write_gguf(tmp_path / "m.gguf", tiny, corrector, weight_type)
    model = Model(str(tmp_path / "m.gguf"))
    assert read_base(tmp_path / "m.gguf") == BaseInfo(model.arch, model.n_layer, model.n_embd, model.layout_hash)


def test_base_of_a_quantised_model(smollm2: Path) -> None:
    model = Model(str(smollm2))
    assert read_base(smollm2) == BaseInfo("llama", 30, 576, model.layout_hash)


def test_layers_for_further_tokens_do_not_count(tmp_path: Path) -> None:
    tensors = dict(MODEL.tensors)
    for i in range(N_LAYER):
        tensors[f"blk.{i}.post_attention_norm.weight"] = tensors[f"blk.{i}.post_ffw_norm.weight"] = np.ones(
            N_EMBD, np.float32
        )
        up = tensors[f"blk.{i}.ffn_up.weight"]
        tensors[f"blk.{i}.ffn_up.weight"] = np.concatenate([tensors.pop(f"blk.{i}.ffn_gate.weight"), up])
    last = f"blk.{N_LAYER - 1}.nextn"
    tensors[f"{last}.eh_proj.weight"] = np.zeros((N_EMBD, 2 * N_EMBD), np.float32)
    tensors[f"{last}.enorm.weight"] = tensors[f"{last}.hnorm.weight"] = np.ones(N_EMBD, np.float32)
    glm: Any = dataclasses.replace(MODEL, arch="glm4", tensors=tensors)
    write_gguf(tmp_path / "plain.gguf", glm)
    header = read_header(tmp_path / "plain.gguf")
    extra = Field.make("glm4.nextn_predict_layers", GGUFValueType.UINT32, 1)
    path = tmp_path / "glm.gguf"
    write_parts(path, [*header.fields.values(), extra], [in_file(header, info) for info in header.tensors])
    model = Model(str(path))
    assert model.n_layer == N_LAYER - 1
    assert read_base(path) == BaseInfo("glm4", model.n_layer, N_EMBD, model.layout_hash)
    sidecar = tmp_path / "sidecar.gguf"
    write_sidecar(sidecar, as_data(make_corrector(MODEL, "segment", segments=[(2, 5)])), read_base(path))
    check_weights(read_header(sidecar), path)  # of the layers that are loaded, as the sidecar's hash is


# --- sidecars -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", REUSES)
def test_sidecar_is_what_another_writer_makes(tmp_path: Path, model: Model, base: BaseInfo, reuse: Reuse) -> None:
    corrector = dataclasses.replace(
        corrector_for(MODEL, reuse), rho=0.25, k=3, refresh="refill", quality=json.dumps(QUALITY)
    )
    write_tiny_sidecar(tmp_path / "theirs.gguf", MODEL, corrector, "f16")
    write_sidecar(tmp_path / "ours.gguf", as_data(corrector), base)
    theirs, ours = GGUFReader(tmp_path / "theirs.gguf"), GGUFReader(tmp_path / "ours.gguf")
    values = [
        {k: (f.types, f.contents()) for k, f in reader.fields.items() if k != "GGUF.kv_count"}
        for reader in (theirs, ours)
    ]
    assert values[0] == values[1]
    for a, b in zip(theirs.tensors, ours.tensors, strict=True):
        assert (a.name, a.tensor_type, a.shape.tolist()) == (b.name, b.tensor_type, b.shape.tolist())
        np.testing.assert_array_equal(a.data, b.data)

    native = Corrector.load(str(tmp_path / "ours.gguf"), model)
    assert native is not None
    assert (native.reuse, native.rank, native.alpha, native.rho, native.k) == (reuse, 4, 8.0, 0.25, 3)
    assert native.refresh == "refill"
    assert native.layers == corrector.layers
    assert native.segments == (corrector.segments or [])
    assert json.loads(native.quality) == QUALITY
    assert_same(read_gguf_corrector(tmp_path / "theirs.gguf"), rounded(as_data(corrector)))


def test_q8_0_where_rows_are_whole_blocks(tmp_path: Path, model: Model, base: BaseInfo) -> None:
    corrector = make_corrector(MODEL, "segment", segments=[(2, 5), (2, 6)], rank=4, hidden=32)
    path = tmp_path / "s.gguf"
    write_sidecar(path, as_data(corrector), base, type="q8_0")
    stored = as_stored(corrector.tensors, "q8_0")
    types = {}
    for tensor in GGUFReader(path).tensors:
        types[tensor.name.split(".")[-2]] = tensor.tensor_type.name
        shape = corrector.tensors[tensor.name].shape
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        np.testing.assert_array_equal(values, stored[tensor.name])
    assert types == {"a": "Q8_0", "b": "F16", "gate": "Q8_0", "up": "Q8_0", "down": "Q8_0", "carry": "F32"}
    assert Corrector.load(str(path), model) is not None
    for name, values in read_gguf_corrector(path).tensors.items():
        np.testing.assert_array_equal(values, stored[name])


def test_q8_0_is_for_segments(tmp_path: Path, base: BaseInfo) -> None:
    write_sidecar(tmp_path / "s.gguf", some_corrector("anchor-delta"), base, type="q8_0")
    assert {t.tensor_type.name for t in GGUFReader(tmp_path / "s.gguf").tensors} == {"F16", "F32"}


def test_unknown_type(tmp_path: Path, base: BaseInfo) -> None:
    with pytest.raises(ValueError, match="type='q4_0': give one of 'f16', 'q8_0'"):
        write_sidecar(tmp_path / "s.gguf", some_corrector("segment"), base, type="q4_0")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("type_", "value"), [("f16", 65520.0), ("q8_0", 1e8)])
def test_weights_that_a_type_cannot_hold(tmp_path: Path, base: BaseInfo, type_: Any, value: float) -> None:
    corrector = as_data(make_corrector(MODEL, "segment", segments=[(2, 5)], hidden=32))
    name = "lora_drop.seg.0.gate.weight"
    corrector.tensors[name][3, 5] = value
    with pytest.raises(CorrectorError, match=rf"s\.gguf: tensor {name} holds .* too large for"):
        write_sidecar(tmp_path / "s.gguf", corrector, base, type=type_)
    assert list(tmp_path.iterdir()) == []


def test_sidecar_needs_to_know_its_model(tmp_path: Path, base: BaseInfo) -> None:
    nameless = dataclasses.replace(base, layout_hash=None)
    with pytest.raises(ValueError, match="layout_hash=None"):
        write_sidecar(tmp_path / "s.gguf", some_corrector("segment"), nameless)


# --- the rules, as the engine has them ----------------------------------------------------------


@pytest.mark.parametrize("name", BAD_CORRECTORS)
def test_what_the_engine_refuses_is_refused(tmp_path: Path, base: BaseInfo, name: str) -> None:
    bad, message = BAD_CORRECTORS[name]
    if name == "B transposed":  # shapes are in NumPy's order here, in ggml's there
        message = "has shape [4, 64], expected [64, 4]"
    path = tmp_path / "bad.gguf"
    write_tiny_sidecar(path, MODEL, bad)
    with pytest.raises(CorrectorError) as error:
        check_corrector(read_gguf_corrector(path), base, str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert message.replace("lora_drop.", "") in str(error.value).replace("lora_drop.", "")


def test_vectors_with_a_dimension_of_1(tmp_path: Path, base: BaseInfo, model: Model) -> None:
    corrector = corrector_for(MODEL, "anchor-delta")
    tensors = {name: t[None] if t.ndim == 1 else t for name, t in corrector.tensors.items()}
    path = tmp_path / "s.gguf"
    write_tiny_sidecar(path, MODEL, dataclasses.replace(corrector, tensors=tensors))
    assert Corrector.load(str(path), model) is not None
    check_corrector(read_gguf_corrector(path), base, str(path))
    assert_same(read_gguf_corrector(path), as_data(corrector))


def head_of(*fields: bytes, tensors: bytes = b"", n_tensors: int = 0) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, len(fields)) + b"".join(fields) + tensors


def text(string: bytes) -> bytes:
    return struct.pack("<Q", len(string)) + string


def tensor_at(offset: int, name: bytes = b"x", n: int = 8, type_: int = 0) -> bytes:
    return text(name) + struct.pack("<IqIQ", 1, n, type_, offset)


U32, STRING, ARRAY = 4, 8, 9
VERSION = text(b"lora_drop.version") + struct.pack("<II", U32, 1)

BAD_HEADS: dict[str, tuple[bytes, str]] = {
    "version": (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "GGUF version is 1"),
    "no tensors": (head_of(VERSION), "key general.architecture is missing"),
    "key twice": (head_of(VERSION, VERSION), "key lora_drop.version is there twice"),
    "value of no type": (head_of(VERSION, text(b"a") + struct.pack("<I", 77)), "has the unknown type 77"),
    "array of arrays": (
        head_of(VERSION, text(b"a") + struct.pack("<IIQIQ", ARRAY, ARRAY, 1, U32, 0)),
        "key a is an array of arrays",
    ),
    "endless array": (head_of(VERSION, text(b"a") + struct.pack("<IIQ", ARRAY, STRING, 2**63)), "has 9223372036854"),
    "endless string": (head_of(VERSION, text(b"a") + struct.pack("<IQ", STRING, 2**62)), "ends after"),
    "many keys": (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**40), "ends after"),
    "key that is no text": (head_of(VERSION, text(b"\xff") + struct.pack("<II", U32, 1)), "is not UTF-8"),
    "alignment": (
        head_of(VERSION, text(b"general.alignment") + struct.pack("<II", U32, 24)),
        "general.alignment is 24, expected a power of two",
    ),
    "alignment of another type": (
        head_of(VERSION, text(b"general.alignment") + struct.pack("<IQ", 10, 32)),
        "key general.alignment has type uint64, expected uint32",
    ),
    "tensor twice": (head_of(VERSION, tensors=tensor_at(0) + tensor_at(32), n_tensors=2), "tensor x is there twice"),
    "gap": (head_of(VERSION, tensors=tensor_at(32), n_tensors=1), "tensor x has offset 32, expected 0"),
    "backwards": (
        head_of(VERSION, tensors=tensor_at(0) + tensor_at(0, b"y"), n_tensors=2),
        "tensor y has offset 0, expected 32",
    ),
    "negative size of a type that is not known": (
        head_of(VERSION, tensors=tensor_at(0) + tensor_at(32, b"y", 8, 4) + tensor_at(0, b"z"), n_tensors=3),
        "tensor y has offset 32",
    ),
    "negative shape": (head_of(VERSION, tensors=tensor_at(0, n=-8), n_tensors=1), "tensor x has shape [-8]"),
    "half blocks": (head_of(VERSION, tensors=tensor_at(0, n=40, type_=8), n_tensors=1), "tensor x has rows of 40"),
    "many dimensions": (
        head_of(VERSION, tensors=text(b"x") + struct.pack("<I5qIQ", 5, 1, 1, 1, 1, 1, 0, 0), n_tensors=1),
        "tensor x has 5 dimensions",
    ),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_bad_heads(tmp_path: Path, model: Model, name: str) -> None:
    content, says = BAD_HEADS[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content.ljust(4096, b"\0") if says != "ends after" else content)
    for read in (read_corrector, lambda path: Corrector.load(str(path), model)):
        with pytest.raises(CorrectorError, match=r"bad\.gguf"):
            read(path)
    with pytest.raises(ModelError) as error:
        read_base(path)
    assert f"{path}: " in str(error.value) and says in str(error.value)


def test_tensor_types_that_correctors_do_not_have(tmp_path: Path, base: BaseInfo, model: Model) -> None:
    write_tiny_sidecar(tmp_path / "f32.gguf", MODEL, corrector_for(MODEL, "anchor-state"))
    header = read_header(tmp_path / "f32.gguf")
    tensors = [dataclasses.replace(in_file(header, info), type=GGMLQuantizationType.I32) for info in header.tensors]
    path = tmp_path / "i32.gguf"
    write_parts(path, header.fields.values(), tensors)
    for read in (read_gguf_corrector, lambda path: Corrector.load(str(path), model)):
        with pytest.raises(CorrectorError, match="has type i32, expected f32, f16 or q8_0"):
            read(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"alpha": 1e39}, "alpha is 1e+39"),
        ({"rho": 0.99999999}, "rho is 0.99999999"),
        ({"rho": -0.1}, "rho is -0.1"),
        ({"refresh": "often"}, "refresh is 'often', expected single or refill"),
        ({"k": -1}, "k is -1"),
        ({"k": 2**32}, "k is 4294967296"),
        ({"segments": [(2, 5)]}, "which only the reuse rule segment knows"),
        ({"reuse": "segment"}, "give segments"),
        ({"tensors": {}}, "blk.3.lora_drop_a.weight is missing"),
    ],
)
def test_values_that_no_file_can_hold(base: BaseInfo, change: dict[str, Any], says: str) -> None:
    corrector = dataclasses.replace(some_corrector("anchor-delta"), **change)
    with pytest.raises(CorrectorError) as error:
        check_corrector(corrector, base, "here")
    assert str(error.value).startswith("here: ")
    assert says in str(error.value)


def test_tensors_are_float32(base: BaseInfo) -> None:
    corrector = some_corrector("anchor-state")
    double: Any = {name: tensor.astype(np.float64) for name, tensor in corrector.tensors.items()}
    with pytest.raises(CorrectorError, match="has type float64, expected float32"):
        check_corrector(dataclasses.replace(corrector, tensors=double), base, "here")


def test_hidden_part_without_units(base: BaseInfo) -> None:
    corrector = as_data(make_corrector(MODEL, "segment", segments=[(2, 5)]))
    for part in ("gate", "up", "down"):
        name = f"lora_drop.seg.0.{part}.weight"
        corrector.tensors[name] = corrector.tensors[name][:, :0] if part == "down" else corrector.tensors[name][:0]
    with pytest.raises(CorrectorError, match=r"gate\.weight has shape \[0, 192\], expected \[1, 192\]"):
        check_corrector(corrector, base, "here")


def test_another_models_corrector(base: BaseInfo) -> None:
    check_same_base(dataclasses.replace(base, layout_hash=None), base, "here")
    for change in ({"arch": "qwen2"}, {"n_layer": 9}, {"n_embd": 128}, {"layout_hash": "0" * 16}):
        with pytest.raises(CorrectorError, match=r"here: made for a model .* belongs to another model"):
            check_same_base(dataclasses.replace(base, **change), base, "here")  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_sidecar_is_an_error_or_good_for_the_engine(
    tmp_path: Path, base: BaseInfo, model: Model, data: st.DataObject
) -> None:
    path = tmp_path / "damaged.gguf"
    write_tiny_sidecar(path, MODEL, corrector_for(MODEL, "segment"))
    content = bytearray(path.read_bytes())
    head = content.index(b"lora_drop.seg.2") + 400
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        source = read_source(path)
        assert source.base is not None
        check_same_base(source.base, base, str(path))
        check_corrector(source.corrector, base, str(path))
    except LoradropError as error:
        assert str(path) in str(error)
    else:
        if source.kind == "sidecar":
            assert Corrector.load(str(path), model) is not None


def test_truncated_at_any_place(tmp_path: Path, base_path: Path) -> None:
    write_tiny_sidecar(tmp_path / "sidecar.gguf", MODEL, corrector_for(MODEL, "segment"))
    whole_model, whole_sidecar = base_path.read_bytes(), (tmp_path / "sidecar.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for i in range(40):
        cut.write_bytes(whole_model[: len(whole_model) * i // 40])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            read_base(cut)
        cut.write_bytes(whole_sidecar[: len(whole_sidecar) * i // 40])
        with pytest.raises(CorrectorError, match=r"cut\.gguf"):
            read_corrector(cut)


# --- folders ------------------------------------------------------------------------------------


def weights(*shape: int) -> st.SearchStrategy[np.ndarray]:
    finite = st.floats(-60000, 60000, width=32).map(lambda x: x + 0.0)
    return arrays.arrays(np.float32, shape, elements=finite, fill=finite)


@st.composite
def correctors(draw: st.DrawFn) -> CorrectorData:
    reuse = draw(st.sampled_from(REUSES))
    rank = draw(st.integers(2, 6))
    span = st.tuples(st.integers(1, N_LAYER - 2), st.integers(1, N_LAYER - 2)).map(lambda t: (min(t), max(t)))
    layers = [] if reuse == "segment" else draw(st.lists(st.integers(1, N_LAYER - 2), min_size=1, unique=True))
    segments = draw(st.lists(span, min_size=1, max_size=3, unique=True)) if reuse == "segment" else []
    shapes: dict[str, tuple[int, ...]] = {}
    for i in layers:
        shapes |= {f"blk.{i}.lora_drop_a.weight": (rank, N_EMBD), f"blk.{i}.lora_drop_b.weight": (N_EMBD, rank)}
        if reuse == "anchor-delta" and draw(st.booleans()):
            shapes[f"blk.{i}.lora_drop_gate.weight"] = (N_EMBD,)
    for j in range(len(segments)):
        prefix = f"lora_drop.seg.{j}."
        linear, hidden = draw(st.sampled_from([(True, 0), (False, 5), (True, 32)]))
        if linear:
            shapes |= {f"{prefix}a.weight": (rank, 3 * N_EMBD), f"{prefix}b.weight": (N_EMBD, rank)}
        if hidden:
            wide = (hidden, 3 * N_EMBD)
            shapes |= {f"{prefix}gate.weight": wide, f"{prefix}up.weight": wide}
            shapes[f"{prefix}down.weight"] = (N_EMBD, hidden)
        if draw(st.booleans()):
            shapes[f"{prefix}carry.weight"] = (N_EMBD,)
    return CorrectorData(
        reuse=reuse,
        rank=rank,
        alpha=draw(st.floats(-100, 100, width=32)),
        tensors={name: draw(weights(*shape)) for name, shape in shapes.items()},
        layers=layers,
        segments=segments,
        rho=draw(st.none() | st.floats(0, 0.75, width=32)),
        k=draw(st.none() | st.integers(0, 2**32 - 1)),
        refresh=draw(st.sampled_from([None, "single", "refill"])),
        quality=draw(st.none() | st.dictionaries(st.text(), st.integers() | st.text() | st.none(), min_size=1)),
    )


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(corrector=correctors(), type_=st.sampled_from(["f16", "q8_0"]))
def test_round_trips(tmp_path: Path, base: BaseInfo, model: Model, corrector: CorrectorData, type_: Any) -> None:
    check_corrector(corrector, base, "drawn")
    write_folder(tmp_path / "folder", corrector, base, force=True)
    assert_same(read_corrector(tmp_path / "folder"), corrector)
    assert read_folder_base(tmp_path / "folder") == base

    write_sidecar(tmp_path / "s.gguf", corrector, base, type=type_, force=True)
    stored = read_corrector(tmp_path / "s.gguf")
    assert Corrector.load(str(tmp_path / "s.gguf"), model) is not None
    if type_ == "f16":
        assert_same(stored, rounded(corrector))
    write_folder(tmp_path / "folder", stored, base, force=True)
    assert_same(read_corrector(tmp_path / "folder"), stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "s.gguf"]


def test_folder_is_read_by_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    corrector = some_corrector("segment")
    write_folder(tmp_path / "c", corrector)
    tensors = safetensors.load_file(tmp_path / "c" / "lora_drop.safetensors")
    assert tensors.keys() == corrector.tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, corrector.tensors[name])
    config = json.loads((tmp_path / "c" / "lora_drop.json").read_text())
    assert (config["reuse"], config["rank"], config["segments"]) == ("segment", 4, [[3, 3], [2, 5], [1, 6]])
    assert read_folder_base(tmp_path / "c") is None


def test_folder_keeps_what_else_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_folder(tmp_path, some_corrector("segment"))
    with pytest.raises(FileExistsError, match=r"lora_drop\.json exists; .*--force"):
        write_folder(tmp_path, some_corrector("anchor-state"))
    assert read_folder(tmp_path).reuse == "segment"
    write_folder(tmp_path, some_corrector("anchor-state"), force=True)
    assert read_folder(tmp_path).reuse == "anchor-state"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "lora_drop.json", "lora_drop.safetensors"]


@pytest.mark.parametrize("quality", [{"nll": float("nan")}, {"nll": object()}])
def test_quality_that_is_not_json(tmp_path: Path, quality: dict[str, Any]) -> None:
    corrector = dataclasses.replace(some_corrector("segment"), quality=quality)
    with pytest.raises(CorrectorError, match=r"lora_drop\.json cannot hold this corrector"):
        write_folder(tmp_path / "c", corrector)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("version", 2, "version is 2, this build reads version 1"),
        ("version", None, "version is missing"),
        ("reuse", 3, "reuse is '3', expected a string"),
        ("rank", 4.5, "rank is '4.5', expected an integer"),
        ("rank", True, "rank is 'True', expected an integer"),
        ("alpha", "8", "alpha is '8', expected a finite number"),
        ("alpha", float("inf"), "alpha is 'inf', expected a finite number"),
        ("layers", [1, "2"], "expected integers"),
        ("segments", [[1, 2], [3]], "segments holds [3], expected"),
        ("k", 3.0, "k is '3.0', expected an integer"),
        ("refresh", 3, "refresh is '3', expected a string"),
        ("quality", "good", "quality is 'good', expected an object"),
        ("base", {"arch": "llama", "n_layer": 8}, "base.n_embd is missing"),
    ],
)
def test_folder_with_a_wrong_value(tmp_path: Path, key: str, value: Any, says: str) -> None:
    write_folder(tmp_path, some_corrector("segment"))
    config = json.loads((tmp_path / "lora_drop.json").read_text()) | {key: value}
    (tmp_path / "lora_drop.json").write_text(json.dumps(config))
    with pytest.raises(CorrectorError) as error:
        read_source(tmp_path)
    assert says in str(error.value)
    assert str(tmp_path / "lora_drop.json") in str(error.value)


def test_json_without_end(tmp_path: Path) -> None:
    deep = b"[" * 200_000
    write_folder(tmp_path, some_corrector("segment"))
    (tmp_path / "lora_drop.json").write_bytes(deep)
    with pytest.raises(CorrectorError, match=r"lora_drop\.json: not readable as JSON"):
        read_corrector(tmp_path)
    write_folder(tmp_path, some_corrector("segment"), force=True)
    (tmp_path / "lora_drop.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    with pytest.raises(CorrectorError, match="its head is not JSON"):
        read_corrector(tmp_path)
    quality = text(b"lora_drop.quality") + struct.pack("<I", STRING) + text(deep)
    fields = [
        VERSION,
        text(b"lora_drop.reuse") + struct.pack("<I", STRING) + text(b"segment"),
        text(b"lora_drop.segments") + struct.pack("<IIQ2i", ARRAY, 5, 2, 2, 5),
        text(b"lora_drop.rank") + struct.pack("<II", U32, 4),
        text(b"lora_drop.alpha") + struct.pack("<If", 6, 8.0),
    ]
    (tmp_path / "s.gguf").write_bytes(head_of(*fields, quality))
    with pytest.raises(CorrectorError, match=r"lora_drop\.quality is not JSON"):
        read_corrector(tmp_path / "s.gguf")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ([], "tensor x is described by []"),
        ({"dtype": "F32", "shape": [2]}, "tensor x is described by"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "tensor x is described by"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "tensor x is described by"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}, "ends after the end of the file"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "tensor x of shape [3] and type F32 has 8 bytes"),
        ({"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, "tensor x has type I64, expected one of F32"),
    ],
)
def test_safetensors_with_a_wrong_entry(tmp_path: Path, entry: Any, says: str) -> None:
    write_folder(tmp_path, some_corrector("segment"))
    head = json.dumps({"x": entry}).encode()
    path = tmp_path / "lora_drop.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(8))
    with pytest.raises(CorrectorError) as error:
        read_corrector(tmp_path)
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value)


def test_half_written_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, some_corrector("segment"))
    for name in ("lora_drop.safetensors", "lora_drop.json"):
        whole = (tmp_path / name).read_bytes()
        for i in range(20):
            (tmp_path / name).write_bytes(whole[: len(whole) * i // 20])
            with pytest.raises(CorrectorError, match=name):
                read_corrector(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises((FileNotFoundError, CorrectorError), match=r"lora_drop\.") as error:
            read_corrector(tmp_path)
        assert str(tmp_path) in str(error.value)
        (tmp_path / name).write_bytes(whole)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_are_an_error_or_load(tmp_path: Path, data: st.DataObject) -> None:
    path, whole = tmp_path / "lora_drop.safetensors", tmp_path / "whole"
    if not whole.exists():
        write_folder(tmp_path, some_corrector("anchor-delta"))
        whole.write_bytes(path.read_bytes())
    content = bytearray(whole.read_bytes())
    head = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_corrector(tmp_path)
    except CorrectorError as error:
        assert str(tmp_path) in str(error)


# --- checkpoints of the reference code ----------------------------------------------------------

CONFIG = {"model_type": "qwen2_lora_drop", "hidden_size": N_EMBD, "num_hidden_layers": N_LAYER}
DROPPED = [3, 5, 2, 6, 1]  # i > 0, i % 4 != 0, not the last; from the middle outwards


def reference_tensors(rank: int = 8) -> dict[str, np.ndarray]:
    """As the reference saves them: in every layer, those of layers that never drop untrained, and base weights."""
    rng = np.random.default_rng(5)
    tensors = {"model.embed_tokens.weight": np.full((4, N_EMBD), np.nan, np.float32)}
    for i in range(N_LAYER):
        tensors[f"model.layers.{i}.self_attn.q_proj.weight"] = np.full((N_EMBD, N_EMBD), np.nan, np.float32)
        a, b = rng.normal(size=(rank, N_EMBD)), rng.normal(size=(N_EMBD, rank))
        used = 1.0 if i in DROPPED else np.nan
        tensors[f"model.layers.{i}.lora_adapter.A.weight"] = (used * a).astype(np.float32)
        tensors[f"model.layers.{i}.lora_adapter.B.weight"] = (used * b).astype(np.float32)
    return tensors


def adapters(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in tensors.items() if "lora_adapter" in name}


def write_checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def save_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    pytest.importorskip("safetensors.numpy").save_file(tensors, path, {"format": "pt"})


def save_shards(folder: Path, tensors: dict[str, np.ndarray], save: Callable[[Path, Any], None], suffix: str) -> None:
    """Split between the halves of the model, as transformers does."""
    names = list(tensors)
    shards = {f"1-of-2.{suffix}": names[: len(names) // 2], f"2-of-2.{suffix}": names[len(names) // 2 :]}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for shard, held in shards.items():
        save(folder / f"{stem}-{shard}", {name: tensors[name] for name in held})
    weight_map = {name: f"{stem}-{shard}" for shard, held in shards.items() for name in held}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_is_reference(corrector: CorrectorData, tensors: dict[str, np.ndarray], rank: int = 8) -> None:
    check_corrector(corrector, BaseInfo("qwen2", N_LAYER, N_EMBD, None), "read")
    assert (corrector.reuse, corrector.rank, corrector.segments) == ("anchor-state", rank, [])
    assert corrector.layers == DROPPED
    assert corrector.rho == len(DROPPED) / N_LAYER
    assert len(corrector.tensors) == 2 * len(DROPPED)
    for i in DROPPED:
        for part in "AB":
            theirs = tensors[f"model.layers.{i}.lora_adapter.{part}.weight"]
            np.testing.assert_array_equal(corrector.tensors[f"blk.{i}.lora_drop_{part.lower()}.weight"], theirs)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_reference_checkpoint(tmp_path: Path, with_base: bool, sharded: bool) -> None:
    tensors = reference_tensors() if with_base else adapters(reference_tensors())
    folder = write_checkpoint(tmp_path)
    if sharded:
        save_shards(folder, tensors, save_safetensors, "safetensors")
    else:
        save_safetensors(folder / "model.safetensors", tensors)
    (folder / "training_args.bin").write_bytes(b"not weights")
    source = read_source(folder)
    assert source.kind == "reference checkpoint"
    assert source.base == BaseInfo("qwen2", N_LAYER, N_EMBD, None)
    assert (source.corrector.alpha, source.corrector.k) == (16.0, 3)
    assert_is_reference(source.corrector, tensors)


def test_reference_config_may_say_otherwise(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, lora_rank=4, lora_alpha=2, drop_cycle=3)
    save_safetensors(folder / "model.safetensors", reference_tensors(4))
    corrector = read_reference_checkpoint(folder)
    assert (corrector.alpha, corrector.k) == (2.0, 2)
    assert_is_reference(corrector, reference_tensors(4), 4)


def test_reference_in_bfloat16(tmp_path: Path) -> None:
    upper = {n: (t.view(np.uint32) >> 16).astype(np.uint16) for n, t in adapters(reference_tensors()).items()}
    path = write_checkpoint(tmp_path) / "model.safetensors"
    save_safetensors(path, upper)
    content = path.read_bytes().replace(b'"U16"', b'"BF16"')  # the package has no such type for NumPy
    path.write_bytes(struct.pack("<Q", int.from_bytes(content[:8], "little") + len(upper)) + content[8:])
    expected = {name: (bits.astype(np.uint32) << 16).view(np.float32) for name, bits in upper.items()}
    assert_is_reference(read_corrector(tmp_path), expected)


@pytest.mark.parametrize("how", ["one file", "shards", "bfloat16", "of before 1.6", "adapters only", "safetensors"])
def test_reference_saved_by_pytorch(tmp_path: Path, how: str) -> None:
    torch = pytest.importorskip("torch")
    folder = write_checkpoint(tmp_path)
    tensors = reference_tensors()
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    if how in ("bfloat16", "safetensors"):
        state = {name: tensor.bfloat16() for name, tensor in state.items()}
        tensors = {name: tensor.float().numpy() for name, tensor in state.items()}
    torch.save({"args": 1}, folder / "training_args.bin")
    if how == "shards":
        save_shards(folder, state, lambda path, part: torch.save(part, path), "bin")
    elif how == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, folder / "model.safetensors")
    elif how == "adapters only":
        torch.save(adapters(state), folder / "adapters.pt")
    else:
        options = {"_use_new_zipfile_serialization": False} if how == "of before 1.6" else {}
        torch.save(state, folder / "pytorch_model.bin", **options)
    assert_is_reference(read_corrector(folder), tensors)


class Malicious:
    def __reduce__(self) -> Any:
        return open, ("pwned", "w")


def test_pickles_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    folder = write_checkpoint(tmp_path / "checkpoint")
    torch.save({"model.layers.1.lora_adapter.A.weight": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(CorrectorError, match=r"pytorch_model\.bin: not a PyTorch file that can be read safely"):
        read_corrector(folder)
    for content in (b"", b"not a pickle", b"PK\x03\x04 half a zip"):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CorrectorError, match=r"pytorch_model\.bin"):
            read_corrector(folder)
    assert not (tmp_path / "pwned").exists()


def test_pytorch_files_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    folder = write_checkpoint(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CorrectorError, match=r"pytorch_model\.bin: .*pip install loradrop\[train\]"):
        read_corrector(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": "8"}, "num_hidden_layers is '8', expected an integer"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, too few"),
        ({"num_hidden_layers": 12}, "tensor model.layers.10.lora_adapter.A.weight is missing"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', expected a finite number"),
        ({"drop_cycle": 0}, "drop_cycle is 0, expected at least 1"),
    ],
)
def test_reference_with_a_wrong_config(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    folder = write_checkpoint(tmp_path, **config)
    save_safetensors(folder / "model.safetensors", adapters(reference_tensors()))
    with pytest.raises(CorrectorError) as error:
        read_corrector(folder)
    assert says in str(error.value)
    assert str(folder) in str(error.value)


def test_reference_with_another_rank_than_its_config(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    save_safetensors(folder / "model.safetensors", adapters(reference_tensors(4)))
    with pytest.raises(CorrectorError, match=r"has shape \[4, 64\], expected \[8, 64\]"):
        check_corrector(read_corrector(folder), BaseInfo("qwen2", N_LAYER, N_EMBD, None), "read")


def test_reference_with_a_missing_shard(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    save_shards(folder, reference_tensors(), save_safetensors, "safetensors")
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CorrectorError, match=r"names model-2-of-2\.safetensors, which is not in the folder"):
        read_corrector(folder)


def test_index_that_points_elsewhere(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "outside.safetensors", reference_tensors())
    folder = write_checkpoint(tmp_path / "checkpoint")
    names = dict.fromkeys(adapters(reference_tensors()), "../outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CorrectorError, match="which is not in the folder"):
        read_corrector(folder)


# --- anything else ------------------------------------------------------------------------------


def test_what_is_no_corrector(tmp_path: Path, base_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone: no such file or folder"):
        read_corrector(tmp_path / "gone")
    with pytest.raises(CorrectorError, match=r"no corrector: expected lora_drop\.json"):
        read_corrector(tmp_path)
    with pytest.raises(CorrectorError, match=r"base\.gguf: holds no corrector"):
        read_corrector(base_path)
    (tmp_path / "text").write_text("hello there")
    with pytest.raises(CorrectorError, match="does not begin with GGUF"):
        read_corrector(tmp_path / "text")
    write_folder(tmp_path / "c", some_corrector("segment"))
    with pytest.raises(CorrectorError, match="give its folder"):
        read_corrector(tmp_path / "c" / "lora_drop.safetensors")
