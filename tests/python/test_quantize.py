"""Quantising by llama.cpp: the weights against gguf's own reference, and what happens when it fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from gguf.quants import quantize as quantize_array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loradrop._core import Context, LoradropError, Model, ModelError, quantize, quantize_types
from test_engine import corrector_for
from tiny import _add_tokenizer, _finish, make_model, write_gguf

MODEL = make_model(n_layer=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.gguf"
    write_gguf(path, MODEL)
    return path


def weights(path: Path) -> dict[str, tuple[GGMLQuantizationType, np.ndarray]]:
    return {t.name: (t.tensor_type, dequantize(t.data, t.tensor_type)) for t in GGUFReader(path).tensors}


@pytest.mark.parametrize("n_threads", [-1, 0, 1, 2])
@pytest.mark.parametrize(
    ("name", "expected_type"),
    [
        ("q8_0", GGMLQuantizationType.Q8_0),
        ("f16", GGMLQuantizationType.F16),
        ("bf16", GGMLQuantizationType.BF16),
        ("f32", GGMLQuantizationType.F32),
    ],
)
def test_weights(tmp_path: Path, source: Path, name: str, expected_type: GGMLQuantizationType, n_threads: int) -> None:
    target = tmp_path / "target.gguf"
    quantize(str(source), str(target), name, n_threads=n_threads)
    written = weights(target)
    assert written.keys() == MODEL.tensors.keys()
    for tensor_name, tensor in MODEL.tensors.items():
        type_, actual = written[tensor_name]
        assert type_ == (expected_type if tensor.ndim == 2 else GGMLQuantizationType.F32)
        expected = dequantize(quantize_array(tensor, type_), type_)
        assert np.array_equal(actual.reshape(tensor.shape), expected.reshape(tensor.shape)), tensor_name


@pytest.mark.parametrize("name", quantize_types())
def test_every_type_decodes(tmp_path: Path, name: str) -> None:
    model = make_model(n_layer=2, n_embd=256, n_ff=256)  # whole blocks of every type
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_gguf(source, model, weight_type="f16")
    quantize(str(source), str(target), name)
    context = Context(Model(str(target)), n_ctx=256, n_threads=1, n_threads_batch=1)
    context.decode([1, 2, 3])
    assert np.isfinite(context.logits()).all()
    if name in ("q1_0", "q2_0"):
        return  # not known to the package gguf
    for tensor_name, (_, actual) in weights(target).items():
        tensor = model.tensors[tensor_name]
        assert np.corrcoef(actual.ravel(), tensor.ravel())[0, 1] > 0.6, tensor_name


def test_more_threads_than_a_system_has(tmp_path: Path) -> None:
    write_gguf(tmp_path / "source.gguf", MODEL, weight_type="f16")
    quantize(str(tmp_path / "source.gguf"), str(tmp_path / "target.gguf"), "q8_0", n_threads=10**6)
    Model(str(tmp_path / "target.gguf"))


def test_rows_that_are_no_whole_blocks_fall_back(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target.gguf"
    quantize(str(source), str(target), "q4_k_m")  # blocks of 256, rows of 64 and 96
    assert weights(target)["blk.0.attn_q.weight"][0] == GGMLQuantizationType.Q5_0
    Context(Model(str(target)), n_ctx=256).decode([1, 2, 3])


def test_an_unknown_type_is_named_with_those_there_are(tmp_path: Path, source: Path) -> None:
    assert {"f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"} <= set(quantize_types())
    for name in ("q9_9", "Q8_0", "", "iq2_xxs"):
        with pytest.raises(ValueError, match=f"type = '{name}', expected one of .*q8_0, q6_k.*q4_k_m"):
            quantize(str(source), str(tmp_path / "target.gguf"), name)
    assert list(tmp_path.iterdir()) == []


def test_a_target_with_contents_is_left_alone(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "other.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"other\.gguf: exists already"):
        quantize(str(source), str(target), "q8_0")
    assert target.read_bytes() == b"precious"
    before = source.read_bytes()
    (tmp_path / "link.gguf").symlink_to(source)
    for same in (source, tmp_path / "link.gguf"):
        with pytest.raises(ValueError, match="exists already"):
            quantize(str(source), str(same), "q8_0")
    assert source.read_bytes() == before
    with pytest.raises(ValueError, match="exists already"):
        quantize(str(source), str(tmp_path), "q8_0")


def test_an_empty_target_is_filled_or_stays_empty(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target.gguf"
    target.touch()
    quantize(str(source), str(target), "q8_0")
    Model(str(target))
    second = tmp_path / "second.gguf"
    second.touch()
    with pytest.raises(ModelError, match="requantizing from type q8_0 is disabled"):
        quantize(str(target), str(second), "q4_0")
    assert second.read_bytes() == b""


def failing(source: Path, name: str, match: str) -> None:
    """Quantise a source that cannot be quantised; nothing may be left of it."""
    target = source.parent / "failed.gguf"
    with pytest.raises(LoradropError, match=match) as error:
        quantize(str(source), str(target), name)
    assert str(source) in str(error.value)
    assert not target.exists()


def test_a_source_that_is_no_model(tmp_path: Path, source: Path) -> None:
    failing(tmp_path / "gone.gguf", "q8_0", "no such file")
    failing(tmp_path, "q8_0", "no such file")
    bad = tmp_path / "bad.gguf"
    for content in (b"", b"GGUF", b"not a model at all" * 100):
        bad.write_bytes(content)
        failing(bad, "q8_0", "cannot be read as GGUF")
    whole = source.read_bytes()
    for i in range(1, 30):
        bad.write_bytes(whole[: len(whole) * i // 30])
        failing(bad, "q8_0", r"bad\.gguf: cannot be")


def test_a_corrector_would_be_lost(tmp_path: Path) -> None:
    model = make_model(n_layer=8)
    write_gguf(tmp_path / "model.gguf", model, corrector_for(model, "segment"))
    failing(tmp_path / "model.gguf", "q8_0", "holds a corrector")


def test_a_target_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.target\.gguf"):
        quantize(str(source), str(tmp_path / "nowhere" / "target.gguf"), "q8_0")


def test_no_space_left(tmp_path: Path, source: Path) -> None:
    resource = pytest.importorskip("resource")
    target = tmp_path / "target.gguf"
    quantize(str(source), str(target), "q8_0")
    size = target.stat().st_size
    target.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in (1, 100, size // 3, size // 2, size - 4096, size - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(ModelError, match=r"target\.gguf \(\d+ MiB free there\)"):
                quantize(str(source), str(target), "q8_0")
            assert not target.exists()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        quantize(str(source), str(target), "q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


#
# hostile sources: an exception or a file that loads, but neither an end of the process nor a word on its streams
#


def write_with(path: Path, change: Callable[[dict[str, np.ndarray]], None], alignment: int | None = None) -> None:
    tensors: dict[str, np.ndarray] = dict(MODEL.tensors)
    change(tensors)
    writer = GGUFWriter(path, MODEL.arch)
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_vocab_size(MODEL.n_vocab)
    writer.add_context_length(MODEL.n_ctx_train)
    writer.add_embedding_length(MODEL.n_embd)
    writer.add_block_count(MODEL.n_layer)
    writer.add_feed_forward_length(MODEL.n_ff)
    writer.add_head_count(MODEL.n_head)
    writer.add_head_count_kv(MODEL.n_head_kv)
    writer.add_layer_norm_rms_eps(MODEL.rms_eps)
    writer.add_rope_dimension_count(MODEL.n_embd // MODEL.n_head)
    _add_tokenizer(writer, None, True)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    _finish(writer)


def poisoned(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        bad = tensors["blk.1.ffn_up.weight"].copy()
        bad[3, 5] = value
        tensors["blk.1.ffn_up.weight"] = bad

    return change


def added(name: str, tensor: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda tensors: tensors.update({name: tensor})


HOSTILE: dict[str, tuple[Callable[[dict[str, np.ndarray]], None], str]] = {
    "NaN": (poisoned(np.nan), "'blk.1.ffn_up.weight' has invalid data"),
    "infinity": (poisoned(-np.inf), "'blk.1.ffn_up.weight' has invalid data"),
    "more than a half holds": (poisoned(1e30), "quantized data validation failed"),
    "no columns": (added("blk.9.x.weight", np.zeros((4, 0), np.float32)), "tensor 'blk.9.x.weight' is empty"),
    "no rows": (added("blk.9.x.weight", np.zeros((0, 64), np.float32)), "tensor 'blk.9.x.weight' is empty"),
    "four dimensions": (added("blk.9.x.weight", np.zeros((2, 2, 4, 64), np.float32)), "GGML_ASSERT"),
    "integers": (added("blk.9.x.weight", np.zeros((4, 64), np.int32)), "cannot dequantize/convert tensor type i32"),
    "narrow rows": (added("blk.9.x.weight", np.zeros((4, 3), np.float32)), "no tensor type fallback"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tensors(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    change, message = HOSTILE[name]
    write_with(tmp_path / "bad.gguf", change)
    failing(tmp_path / "bad.gguf", "q8_0", message)
    assert capfd.readouterr() == ("", "")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_head_is_an_error_or_quantises(tmp_path: Path, source: Path, data: st.DataObject) -> None:
    content = bytearray(source.read_bytes())
    keys_end = content.index(b"tokenizer.ggml.tokens")
    tensors_begin = content.index(b"token_embd.weight")
    places = st.one_of(st.integers(0, keys_end), st.integers(tensors_begin, tensors_begin + 1500))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    path, target = tmp_path / "damaged.gguf", tmp_path / "target.gguf"
    path.write_bytes(content)
    try:
        quantize(str(path), str(target), data.draw(st.sampled_from(["q8_0", "f16", "q4_k_m"])), n_threads=2)
    except LoradropError as error:
        assert str(path) in str(error)
        assert not target.exists()
    else:
        target.unlink()


def test_an_alignment_that_llama_cpp_does_not_keep(tmp_path: Path) -> None:
    write_with(tmp_path / "bad.gguf", lambda tensors: None, alignment=4096)
    failing(tmp_path / "bad.gguf", "q8_0", "what was written cannot be read")


EXTREME = """
import sys
from pathlib import Path
import numpy as np
from loradrop._core import ModelError, quantize, quantize_types
sys.path.append(sys.argv[2])
from tiny import make_model, write_gguf

folder = Path(sys.argv[1])
model = make_model(n_layer=1, n_embd=256, n_ff=256)
rng = np.random.default_rng(0)
for i, scale in enumerate([0, 1e-45, 1e20, 3e38]):
    for name, tensor in model.tensors.items():
        if tensor.ndim == 2:
            tensor[:] = rng.uniform(-1, 1, tensor.shape) * scale
            tensor[::3] = rng.choice([0, scale, -scale], tensor[::3].shape)
    source = folder / f"{i}.gguf"
    write_gguf(source, model)
    for type_ in quantize_types():
        target = folder / "target.gguf"
        try:
            quantize(str(source), str(target), type_, n_threads=2)
        except ModelError:
            assert not target.exists()
        else:
            target.unlink()
"""


def test_weights_of_any_size_with_every_type(tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXTREME, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
