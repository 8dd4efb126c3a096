"""Packing a corrector into a model's file, taking it out, and looking at it; what fails leaves nothing behind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loradrop._core import Context, Corrector, CorrectorError, Model, ModelError
from loradrop.cli import main
from loradrop_convert.base import read_base
from loradrop_convert.folder import write_folder
from loradrop_convert.output import check_space, complete_file
from loradrop_convert.pack import pack, pack_sidecar, unpack
from loradrop_convert.sources import read_corrector
from test_corrector_files import (
    CONFIG,
    N_LAYER,
    QUALITY,
    as_data,
    assert_same,
    correctors,
    reference_tensors,
    rounded,
    save_safetensors,
    some_corrector,
)
from test_engine import REUSES
from tiny import Reuse, make_corrector, make_model, write_gguf, write_sidecar

TEXT = np.random.default_rng(3).integers(3, 320, 25).tolist()
MODEL = make_model(n_layer=N_LAYER)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.gguf"
    write_gguf(path, MODEL, weight_type="f16")
    return path


@pytest.fixture
def corrector(tmp_path: Path) -> Path:
    write_folder(tmp_path / "corrector", some_corrector("segment"))
    return tmp_path / "corrector"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def decoded(model_path: Path, corrector_path: Path, tokens: list[int]) -> np.ndarray:
    """Logits of a prompt of five tokens and of each token after it."""
    model = Model(str(model_path))
    corrector = Corrector.load(str(corrector_path), model)
    assert corrector is not None
    context = Context(model, n_ctx=256, n_threads=1, corrector=corrector, rho=corrector.rho or 0.25, k=3)
    context.decode(tokens[:5])
    logits = [context.logits()]
    for token in tokens[5:]:
        context.decode([token])
        logits.append(context.logits())
    assert context.stats["lora_steps"] >= len(tokens) // 2
    return np.array(logits)


# --- packing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", REUSES)
def test_packed_model_decodes_as_model_and_sidecar(tmp_path: Path, base: Path, reuse: Reuse) -> None:
    before = sha256(base)
    write_folder(tmp_path / "c", some_corrector(reuse))
    pack(base, tmp_path / "c", tmp_path / "packed.gguf")
    pack_sidecar(base, tmp_path / "c", tmp_path / "sidecar.gguf")
    assert sha256(base) == before
    packed = decoded(tmp_path / "packed.gguf", tmp_path / "packed.gguf", TEXT)
    np.testing.assert_array_equal(packed, decoded(base, tmp_path / "sidecar.gguf", TEXT))


def test_a_real_model(tmp_path: Path, smollm2: Path) -> None:
    info = read_base(smollm2)
    rng = np.random.default_rng(0)
    tensors = {
        f"lora_drop.seg.0.{part}.weight": rng.normal(0, 0.02, shape).astype(np.float32)
        for part, shape in {"a": (32, 3 * 576), "b": (576, 32), "carry": (576,)}.items()
    }
    data = dataclasses.replace(some_corrector("segment"), rank=32, tensors=tensors, segments=[(11, 18)], rho=0.27)
    packed, sidecar = tmp_path / "packed.gguf", tmp_path / "sidecar.gguf"
    pack(smollm2, data, packed, type="q8_0")
    pack_sidecar(smollm2, data, sidecar, type="q8_0")
    assert read_base(packed) == info
    tokens = TEXT[:12]
    np.testing.assert_array_equal(decoded(packed, packed, tokens), decoded(smollm2, sidecar, tokens))
    unpack(packed, tmp_path / "out.gguf", base_out=tmp_path / "model.gguf")
    assert sha256(tmp_path / "model.gguf") == sha256(smollm2)
    assert sha256(tmp_path / "out.gguf") == sha256(sidecar)


def write_model_with_everything(path: Path, alignment: int) -> None:
    """Keys of every type, with an alignment of its own, and tensors whose sizes are no multiples of it."""
    writer = GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_block_count(N_LAYER)
    writer.add_embedding_length(MODEL.n_embd)
    kinds = GGUFValueType
    for i, (type_, value) in enumerate(
        [
            *((kinds.UINT8, 255), (kinds.INT8, -128), (kinds.UINT16, 65535), (kinds.INT16, -32768)),
            *((kinds.UINT32, 2**32 - 1), (kinds.INT32, -(2**31)), (kinds.UINT64, 2**64 - 1), (kinds.INT64, -(2**63))),
            *((kinds.FLOAT32, float("nan")), (kinds.FLOAT64, 0.1), (kinds.BOOL, True), (kinds.STRING, "Käse\0")),
        ]
    ):
        writer.add_key_value(f"odd.scalar.{i}", value, type_)
        writer.add_key_value(f"odd.array.{i}", [value] * (i + 1), kinds.ARRAY, sub_type=type_)
    writer.add_array("odd.words", ["", "a", "▁the", "\n"] * 1000)
    for i, size in enumerate((1, 3, 32, 77)):
        writer.add_tensor(f"odd.{i}", np.full(size, i, np.float32))
    quants = np.random.default_rng(0).integers(0, 255, (5, 2 * 34), np.uint8)
    writer.add_tensor("odd.q8", quants, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_every_key_and_tensor_of_the_model_stays(tmp_path: Path, corrector: Path, alignment: int) -> None:
    base, packed = tmp_path / "odd.gguf", tmp_path / "packed.gguf"
    write_model_with_everything(base, alignment)
    pack(base, corrector, packed)
    old, new = GGUFReader(base), GGUFReader(packed)
    for name, field in old.fields.items():
        if not name.startswith("GGUF."):
            kept = new.fields[name]
            assert kept.types == field.types
            assert [part.tobytes() for part in kept.parts] == [part.tobytes() for part in field.parts], name
    for a, b in zip(old.tensors, new.tensors, strict=False):
        assert (a.name, a.tensor_type, a.shape.tolist()) == (b.name, b.tensor_type, b.shape.tolist())
        assert a.data.tobytes() == b.data.tobytes()
    added = {tensor.name for tensor in new.tensors[len(old.tensors) :]}
    assert added == read_corrector(corrector).tensors.keys()
    assert all(tensor.data_offset % alignment == 0 for tensor in new.tensors)
    unpack(packed, base_out=tmp_path / "model.gguf")
    assert sha256(tmp_path / "model.gguf") == sha256(base)


def test_types_that_are_not_known_are_copied(tmp_path: Path, base: Path, corrector: Path) -> None:
    removed_type = 4  # of ggml; it stands for those that come after this build
    for name in (b"blk.3.ffn_up.weight", b"output.weight"):
        content = bytearray(base.read_bytes())
        at = content.index(name) + len(name) + 4 + 2 * 8
        assert content[at] == GGMLQuantizationType.F16
        content[at] = removed_type
        base.write_bytes(content)
    pack(base, corrector, tmp_path / "packed.gguf")
    unpack(tmp_path / "packed.gguf", base_out=tmp_path / "model.gguf")
    assert sha256(tmp_path / "model.gguf") == sha256(base)


@pytest.mark.parametrize("kept", ["f16", "q8_0", "f32"])
def test_types_of_a_gguf_stay_unless_asked(tmp_path: Path, base: Path, kept: Any) -> None:
    tiny = make_corrector(MODEL, "segment", segments=[(2, 5)], hidden=32)
    write_sidecar(tmp_path / "s.gguf", MODEL, tiny, kept, "f16")
    whole = read_corrector(tmp_path / "s.gguf")
    pack(base, tmp_path / "s.gguf", tmp_path / "same.gguf")
    assert_same(read_corrector(tmp_path / "same.gguf"), whole)
    pack_sidecar(base, tmp_path / "same.gguf", tmp_path / "again.gguf")
    assert_same(read_corrector(tmp_path / "again.gguf"), whole)
    pack(base, tmp_path / "s.gguf", tmp_path / "half.gguf", type="f16")
    assert_same(read_corrector(tmp_path / "half.gguf"), rounded(whole))
    types = {}
    for name in ("same", "again", "half"):
        tensors = GGUFReader(tmp_path / f"{name}.gguf").tensors
        types[name] = {t.tensor_type.name.lower() for t in tensors if "lora_drop" in t.name and "carry" not in t.name}
    assert types["same"] == types["again"] == ({kept, "f16"} if kept == "q8_0" else {kept})
    assert types["half"] == {"f16"}


def test_a_reference_checkpoint(tmp_path: Path) -> None:
    qwen2 = make_model("qwen2", n_layer=N_LAYER)
    write_gguf(tmp_path / "qwen2.gguf", qwen2)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: 0.05 * tensor for name, tensor in reference_tensors().items()}
    save_safetensors(tmp_path / "checkpoint" / "model.safetensors", tensors)
    pack(tmp_path / "qwen2.gguf", tmp_path / "checkpoint", tmp_path / "packed.gguf")
    assert np.isfinite(decoded(tmp_path / "packed.gguf", tmp_path / "packed.gguf", TEXT)).all()
    write_gguf(tmp_path / "llama.gguf", MODEL)
    with pytest.raises(CorrectorError, match="arch = qwen2, this one has llama"):
        pack(tmp_path / "llama.gguf", tmp_path / "checkpoint", tmp_path / "no.gguf")


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(corrector=correctors(), type_=st.sampled_from(["f16", "q8_0"]))
def test_round_trips(tmp_path: Path, base: Path, corrector: Any, type_: Any) -> None:
    folder, packed, sidecar = tmp_path / "folder", tmp_path / "packed.gguf", tmp_path / "sidecar.gguf"
    pack(base, corrector, packed, type=type_, force=True)
    unpack(packed, sidecar, base_out=tmp_path / "model.gguf", force=True)
    unpack(packed, folder, folder=True, force=True)
    assert sha256(tmp_path / "model.gguf") == sha256(base)
    stored = read_corrector(packed)
    assert_same(read_corrector(sidecar), stored)
    assert_same(read_corrector(folder), stored)
    if type_ == "f16":
        assert_same(stored, rounded(corrector))
        before = sha256(packed)
        pack(base, folder, packed, force=True)
        assert sha256(packed) == before


def test_a_folder_goes_to_another_quantisation(tmp_path: Path, base: Path, corrector: Path) -> None:
    write_gguf(tmp_path / "f32.gguf", MODEL)
    pack_sidecar(base, corrector, tmp_path / "s.gguf")
    with pytest.raises(CorrectorError, match=r"another quantisation of it.*unpack --folder"):
        pack(tmp_path / "f32.gguf", tmp_path / "s.gguf", tmp_path / "no.gguf")
    unpack(tmp_path / "s.gguf", tmp_path / "folder", folder=True)
    pack(tmp_path / "f32.gguf", tmp_path / "folder", tmp_path / "yes.gguf")
    assert_same(read_corrector(tmp_path / "yes.gguf"), read_corrector(tmp_path / "s.gguf"))


def test_model_from_another_writer_is_unpacked(tmp_path: Path, base: Path) -> None:
    corrector = make_corrector(MODEL, "anchor-delta", layers=[3, 2])
    write_gguf(tmp_path / "packed.gguf", MODEL, corrector, "f16")
    unpack(tmp_path / "packed.gguf", tmp_path / "s.gguf", base_out=tmp_path / "model.gguf")
    assert sha256(tmp_path / "model.gguf") == sha256(base)
    assert_same(read_corrector(tmp_path / "s.gguf"), as_data(corrector))


# --- what must not work -------------------------------------------------------------------------


def split_model(path: Path) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYER)
    writer.add_embedding_length(MODEL.n_embd)
    writer.add_uint16("split.count", 2)
    writer.add_tensor("odd", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_bad_models(tmp_path: Path, base: Path, corrector: Path) -> None:
    out = tmp_path / "out.gguf"
    bad = tmp_path / "bad.gguf"
    with pytest.raises(FileNotFoundError, match=r"bad\.gguf: no such file"):
        pack(bad, corrector, out)
    bad.write_bytes(base.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"bad\.gguf: .*ends after the end of the file; the file is truncated"):
        pack(bad, corrector, out)
    bad.write_text("no model")
    with pytest.raises(ModelError, match=r"bad\.gguf: .*does not begin with GGUF"):
        pack(bad, corrector, out)
    bad.unlink()
    pack_sidecar(base, corrector, bad)
    with pytest.raises(ModelError, match=r"bad\.gguf: holds an adapter, not a model"):
        pack(bad, corrector, out)
    bad.unlink()
    split_model(bad)
    with pytest.raises(ModelError, match=r"split\.count is 2.*llama-gguf-split --merge"):
        pack(bad, corrector, out)
    writer = GGUFWriter(bad, "llama", endianess=GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="little-endian"):
        pack(bad, corrector, out)
    assert names(tmp_path) == ["bad.gguf", "base.gguf", "corrector"]


def test_bad_correctors(tmp_path: Path, base: Path) -> None:
    data = some_corrector("anchor-delta")
    out = tmp_path / "out.gguf"
    wrong = dataclasses.replace(data, rank=5)
    with pytest.raises(CorrectorError, match=r"lora_drop_a\.weight has shape \[4, 64\], expected \[5, 64\]"):
        pack(base, wrong, out)
    write_folder(tmp_path / "wrong", wrong)
    with pytest.raises(CorrectorError, match=r"wrong: tensor blk\.3\.lora_drop_a\.weight has shape"):
        pack(base, tmp_path / "wrong", out)
    other = make_model(n_layer=N_LAYER + 2)
    write_sidecar(tmp_path / "other.gguf", other, make_corrector(other, "anchor-delta", layers=[3]))
    with pytest.raises(CorrectorError, match=r"other\.gguf: made for a model with n_layer = 10, this one has 8"):
        pack(base, tmp_path / "other.gguf", out)
    with pytest.raises(CorrectorError, match=r"base\.gguf: holds no corrector"):
        unpack(base, out)
    with pytest.raises(CorrectorError, match=r"base\.gguf: holds no corrector; the model is the file itself"):
        unpack(base, base_out=out)
    with pytest.raises(ValueError, match="out=None, base_out=None"):
        unpack(base)
    assert names(tmp_path) == ["base.gguf", "other.gguf", "wrong"]


def test_packed_twice(tmp_path: Path, base: Path, corrector: Path) -> None:
    packed = tmp_path / "packed.gguf"
    pack(base, corrector, packed)
    with pytest.raises(CorrectorError, match=r"packed\.gguf: holds a corrector already; .*loradrop unpack"):
        pack(packed, corrector, tmp_path / "out.gguf")
    pack_sidecar(packed, corrector, tmp_path / "sidecar.gguf")
    with pytest.raises(CorrectorError, match=r"sidecar\.gguf: a sidecar already"):
        unpack(tmp_path / "sidecar.gguf", tmp_path / "out.gguf")
    with pytest.raises(ModelError, match="holds an adapter, not a model"):
        unpack(tmp_path / "sidecar.gguf", base_out=tmp_path / "out.gguf")
    assert names(tmp_path) == ["base.gguf", "corrector", "packed.gguf", "sidecar.gguf"]


def test_outputs_that_are_there_stay(tmp_path: Path, base: Path, corrector: Path) -> None:
    packed, there = tmp_path / "packed.gguf", tmp_path / "there.gguf"
    pack(base, corrector, packed)
    there.write_text("mine")
    write_folder(tmp_path / "folder", some_corrector("anchor-state"))
    before = {path: sha256(path) for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"there\.gguf exists; .*--force"):
        pack(base, corrector, there)
    with pytest.raises(FileExistsError, match=r"there\.gguf exists"):
        pack_sidecar(base, corrector, there)
    with pytest.raises(FileExistsError, match=r"there\.gguf exists"):
        unpack(packed, there, base_out=tmp_path / "new.gguf")
    with pytest.raises(FileExistsError, match=r"there\.gguf exists"):
        unpack(packed, tmp_path / "new.gguf", base_out=there)
    with pytest.raises(FileExistsError, match=r"lora_drop\.json exists"):
        unpack(packed, tmp_path / "folder", folder=True, base_out=tmp_path / "new.gguf")
    for path in (base, corrector):
        with pytest.raises(OSError, match="is an input; give another name"):
            pack(base, corrector, path, force=True)
    with pytest.raises(FileExistsError, match="is an input"):
        unpack(packed, packed, force=True)
    with pytest.raises(FileExistsError, match=r"new\.gguf is another output too"):
        unpack(packed, tmp_path / "new.gguf", base_out=tmp_path / "folder" / ".." / "new.gguf", force=True)
    with pytest.raises(IsADirectoryError, match="folder is a folder"):
        pack(base, corrector, tmp_path / "folder", force=True)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*gone"):
        pack(base, corrector, tmp_path / "gone" / "out.gguf")
    assert {path: sha256(path) for path in tmp_path.rglob("*") if path.is_file()} == before
    pack(base, corrector, there, force=True)
    assert sha256(there) == sha256(packed)


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("interrupt", [signal.SIGINT, None])
def test_interrupted(tmp_path: Path, base: Path, corrector: Path, interrupt: signal.Signals | None) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")

    def stop(what: str, done: int, total: int | None) -> None:
        assert total is not None
        if done > total / 2:
            assert len(names(tmp_path)) == 4
            if interrupt is not None:
                signal.raise_signal(interrupt)
            raise RuntimeError("stopped")

    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        pack(base, corrector, out, force=True, progress=stop)
    assert out.read_text() == "mine"
    assert names(tmp_path) == ["base.gguf", "corrector", "out.gguf"]


def test_output_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(FileExistsError), complete_file(path) as temporary:
        temporary.write_text("late")
        path.write_text("early")
    assert path.read_text() == "early"
    assert names(tmp_path) == ["out"]


def test_model_that_becomes_shorter_meanwhile(tmp_path: Path, base: Path, corrector: Path) -> None:
    def shorten(what: str, done: int, total: int | None) -> None:
        os.truncate(base, 50_000)

    with pytest.raises(ModelError, match=r"base\.gguf: tensor .* ends early"):
        pack(base, corrector, tmp_path / "out.gguf", progress=shorten)
    assert names(tmp_path) == ["base.gguf", "corrector"]


def test_space_is_checked_before_writing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"needs 1099511627776\.0 MiB, .* are free"):
        check_space(tmp_path / "out.gguf", 2**60)
    check_space(tmp_path / "out.gguf", 1)


LIMITED = """
import resource, sys
from loradrop.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_no_room_while_writing(tmp_path: Path, base: Path, corrector: Path) -> None:
    write_folder(tmp_path / "large", dataclasses.replace(some_corrector("segment"), quality={"notes": "x" * 100_000}))
    pack_sidecar(base, tmp_path / "large", tmp_path / "s.gguf")
    before = names(tmp_path)
    for arguments, out in [
        (["pack", base, corrector, "-o", tmp_path / "out.gguf"], "out.gguf"),
        (["unpack", tmp_path / "s.gguf", "--folder", "-o", tmp_path / "folder"], "lora_drop."),
    ]:
        command = [sys.executable, "-c", LIMITED, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith("Error: ") and out in line and "free some space" in line
        assert names(tmp_path) == before


FULL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$0" && "$@"; code=$?; ls -A "$0" >&2; exit $code'


@pytest.mark.skipif(sys.platform != "linux", reason="name spaces are Linux's")
def test_no_room_on_the_disk(tmp_path: Path, base: Path, corrector: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", "loradrop", "pack", str(base), str(corrector), "-o", str(disk / "out.gguf")]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, str(disk), *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ") and "0.1 MiB are free" in line and "out.gguf" in line


MEASURED = """
import resource, sys
from loradrop_convert.pack import pack
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pack(*sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_a_large_model_needs_little_memory(tmp_path: Path, corrector: Path) -> None:
    large, out = tmp_path / "large.gguf", tmp_path / "out.gguf"
    writer = GGUFWriter(large, "llama")
    writer.add_block_count(N_LAYER)
    writer.add_embedding_length(MODEL.n_embd)
    n_bytes = 2**28
    writer.add_tensor_info("large", (n_bytes // 4,), np.dtype(np.float32), n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(large, -(-large.stat().st_size // 32) * 32 + n_bytes)  # zeros that take no room
    run = [sys.executable, "-c", MEASURED, str(large), str(corrector), str(out)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert out.stat().st_size > n_bytes
    assert int(done.stdout) * 1024 < n_bytes / 8
    out.unlink()


# --- commands -----------------------------------------------------------------------------------


def test_commands(tmp_path: Path, base: Path, corrector: Path) -> None:
    packed, sidecar, folder = tmp_path / "p.gguf", tmp_path / "s.gguf", tmp_path / "f"
    result = run("pack", base, corrector, "-o", packed)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{packed}\n", "")
    assert run("pack", base, corrector, "--sidecar", "-o", sidecar).exit_code == 0
    assert run("unpack", packed, "-o", tmp_path / "out.gguf", "--base", tmp_path / "model.gguf").exit_code == 0
    assert sha256(tmp_path / "out.gguf") == sha256(sidecar)
    assert sha256(tmp_path / "model.gguf") == sha256(base)
    assert run("unpack", packed, "--folder", "-o", folder).stdout == f"{folder}\n"
    assert_same(read_corrector(folder), read_corrector(sidecar))
    result = run("pack", base, folder, "-o", packed)
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ") and "exists" in line
    assert run("pack", base, folder, "-o", packed, "--type", "q8_0", "--force").exit_code == 0
    assert "Q8_0" in {t.tensor_type.name for t in GGUFReader(packed).tensors}
    assert run("pack", base, folder).exit_code == 2
    assert run("pack", base, folder, "-o", packed, "--type", "q4_0").exit_code == 2
    assert run("unpack", packed).exit_code == 2
    shutil.rmtree(folder)
    result = run("inspect", folder)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)


def test_inspect_json(tmp_path: Path, base: Path, corrector: Path) -> None:
    info = dataclasses.asdict(read_base(base))
    assert json.loads(run("inspect", base, "--json").stdout) == {
        "path": str(base),
        "kind": "model",
        "base": info,
        "corrector": None,
    }
    pack(base, corrector, tmp_path / "p.gguf")
    pack_sidecar(base, corrector, tmp_path / "s.gguf")
    found = [json.loads(run("inspect", path, "--json").stdout) for path in (tmp_path / "p.gguf", tmp_path / "s.gguf")]
    assert [one["kind"] for one in found] == ["model", "sidecar"]
    assert found[0]["base"] == found[1]["base"] == info
    assert found[0]["corrector"] == found[1]["corrector"]
    shown = found[0]["corrector"]
    assert (shown["reuse"], shown["rank"], shown["alpha"], shown["rho"], shown["k"]) == ("segment", 4, 8.0, 0.25, 3)
    assert shown["segments"] == [[3, 3], [2, 5], [1, 6]] and shown["layers"] == []
    assert shown["quality"] == QUALITY
    native = Corrector.load(str(tmp_path / "s.gguf"), Model(str(base)))
    assert native is not None and shown["n_bytes"] == native.n_bytes
    tensors = {t["name"]: t for t in shown["tensors"]}
    first = {"name": "lora_drop.seg.0.a.weight", "type": "f16", "shape": [4, 192], "n_bytes": 1536}
    assert tensors[first["name"]] == first
    assert tensors.keys() == read_corrector(corrector).tensors.keys()
    folder = json.loads(run("inspect", corrector, "--json").stdout)
    assert (folder["kind"], folder["base"]) == ("folder", None)
    assert {tensor["type"] for tensor in folder["corrector"]["tensors"]} == {"f32"}


def test_inspect_text(tmp_path: Path, base: Path, corrector: Path) -> None:
    assert "corrector  none" in run("inspect", base).stdout
    pack_sidecar(base, corrector, tmp_path / "s.gguf")
    text = run("inspect", tmp_path / "s.gguf").stdout
    for part in (
        "sidecar",
        "segment",
        "3-3, 2-5, 1-6",
        "4, 8",
        "rho = 0.25, k = 3, refresh = refill",
        "llama, 8 layers, width 64",
    ):
        assert part in text
    assert read_base(base).layout_hash in text
    assert "lora_drop.seg.2.down.weight" in text and "64 x 24" in text
    write_folder(tmp_path / "f", dataclasses.replace(some_corrector("anchor-state"), rho=None, k=None, quality=None))
    text = run("inspect", tmp_path / "f").stdout
    assert "3, 4, 2, 6, 5, 1" in text and "not named" in text and "not measured" in text


def test_inspect_refuses_what_cannot_be_used(tmp_path: Path) -> None:
    corrector = make_corrector(MODEL, "anchor-delta", layers=[3])
    broken = dataclasses.replace(corrector, layers=[3, 7])
    write_gguf(tmp_path / "broken.gguf", MODEL, broken)
    result = run("inspect", tmp_path / "broken.gguf")
    assert result.exit_code == 1 and "names layer 7" in result.stderr
