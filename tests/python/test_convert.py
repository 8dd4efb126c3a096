"""Checkpoints to GGUF: the result decodes as transformers and the NumPy reference say, and bad input leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGUFReader

from loradrop import cli
from loradrop._core import Context, Corrector, CorrectorError, Model
from loradrop_convert import llama_converter
from loradrop_convert.convert import convert, outtypes, sidecar_path
from loradrop_convert.folder import write_folder
from loradrop_convert.reference_base import write_reference_base
from reference import Decoder, Entry
from test_corrector_files import as_data
from tiny import PIECES, TinyModel, as_stored, make_corrector, make_model, vocabulary, write_gguf

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
sentencepiece_model = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")

from safetensors.torch import load_file, save_file  # noqa: E402

from hf import transformers_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("converter")
TOLERANCE = 1e-4  # of the largest logit
F16_TOLERANCE = 1e-3
N_LAYER = 8
DROPPED = [3, 5, 2, 6, 1]  # what the reference code drops, from the middle outwards
TOKENS = np.random.default_rng(3).integers(3, len(vocabulary()), 24).tolist()


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer of tiny models as sentencepiece has it."""
    types = sentencepiece_model.ModelProto.SentencePiece
    kinds = [types.UNKNOWN, types.CONTROL, types.CONTROL] + [types.BYTE] * 256 + [types.NORMAL] * len(PIECES)
    model = sentencepiece_model.ModelProto()
    first_piece = len(kinds) - len(PIECES)
    for i, (piece, kind) in enumerate(zip(vocabulary(), kinds, strict=True)):
        model.pieces.add(piece=piece, score=-float(max(0, i - first_piece)), type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(kinds)
    model.trainer_spec.byte_fallback = True
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def write_checkpoint(folder: Path, model: TinyModel, **options: Any) -> Path:
    transformers_model(model).save_pretrained(folder, **options)
    write_tokenizer(folder)
    return folder


def write_reference(folder: Path, model: TinyModel, how: str = "safetensors", **config: Any) -> Path:
    """As the reference code saves a model: adapters in every layer, and a norm that nothing uses."""
    write_checkpoint(folder, model)
    path = folder / "model.safetensors"
    state = load_file(path)
    path.unlink()
    rng = np.random.default_rng(5)
    for i in range(model.n_layer):
        a, b = rng.normal(size=(8, model.n_embd)), rng.normal(size=(model.n_embd, 8))
        state[f"model.layers.{i}.lora_adapter.A.weight"] = torch.tensor(a * model.n_embd**-0.5, dtype=torch.float32)
        state[f"model.layers.{i}.lora_adapter.B.weight"] = torch.tensor(b * 0.05, dtype=torch.float32)
        state[f"model.layers.{i}.post_lora_layernorm.weight"] = torch.ones(model.n_embd)
    names = list(state)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    if how == "adapters only":
        save_file({name: state[name] for name in names if "lora_adapter" in name}, path)
    elif how == "safetensors":
        save_file(state, path)
    elif how == "bfloat16":
        save_file({name: tensor.bfloat16() for name, tensor in state.items()}, path)
    elif how in ("pytorch", "of before 1.6"):
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=how == "pytorch")
    else:
        suffix = "safetensors" if how == "safetensors shards" else "bin"
        save: Callable[[Any, Path], None] = save_file if suffix == "safetensors" else torch.save
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
        for file, held in zip(files, halves, strict=True):
            save({name: state[name] for name in held}, folder / file)
        weight_map = {name: file for file, held in zip(files, halves, strict=True) for name in held}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    theirs = {"model_type": "qwen2_lora_drop", "architectures": ["Qwen2_Lora_DropForCausalLM"], "lora_rank": 8}
    values = json.loads((folder / "config.json").read_text()) | theirs | config
    (folder / "config.json").write_text(json.dumps(values))
    tokenizer_config = {"tokenizer_class": "Qwen2_Lora_DropTokenizer", "model_max_length": 99}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "training_args.bin").write_bytes(b"not weights")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def context_for(model: Model, **options: Any) -> Context:
    return Context(
        model, n_ctx=256, n_threads=1, n_threads_batch=1, flash_attn="off", type_k="f32", type_v="f32", **options
    )


def engine_logits(path: Path) -> np.ndarray:
    context = context_for(Model(str(path)))
    rows = []
    for token in TOKENS:
        context.decode([token])
        rows.append(context.logits().copy())
    return np.array(rows)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.abs(actual - expected).max() < tolerance * np.abs(expected).max()


def weights(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for file in folder.glob("model*.safetensors"):
        state |= load_file(file)
    for file in folder.glob("pytorch_model*.bin"):
        state |= torch.load(file, weights_only=True)
    return state


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


# --- models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> TinyModel:
    return make_model("qwen2", n_layer=N_LAYER)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny: TinyModel) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny)


def assert_is_transformers(path: Path, model: TinyModel, least: float | None = None) -> None:
    with torch.no_grad():
        expected = transformers_model(model)(torch.tensor([TOKENS])).logits[0].numpy()
    actual = engine_logits(path)
    if least is None:
        assert_close(actual, expected, TOLERANCE)
    else:
        assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > least


def test_llama(tmp_path: Path) -> None:
    model = make_model("llama", n_layer=4, tied=True)
    folder = write_checkpoint(tmp_path / "checkpoint", model)
    assert convert(folder, tmp_path / "model.gguf", outtype="f32") == [tmp_path / "model.gguf"]
    assert_is_transformers(tmp_path / "model.gguf", model)
    write_gguf(tmp_path / "written.gguf", model)
    native, other = Model(str(tmp_path / "model.gguf")), Model(str(tmp_path / "written.gguf"))
    text = "the tokens of a text, and böse.".encode()
    assert native.tokenize(text, True, False) == other.tokenize(text, True, False)


def test_q8_0(tmp_path: Path, checkpoint: Path, tiny: TinyModel) -> None:
    out, folder = tmp_path / "model.gguf", tmp_path / "corrector"
    write_folder(folder, as_data(make_corrector(tiny, "segment", segments=[(2, 5)])))
    options = ["--outtype", "q8_0", "--corrector", folder, "--corrector-type", "q8_0"]
    assert run("convert", checkpoint, "-o", out, *options).exit_code == 0
    types = types_of(out)
    assert (types["blk.1.attn_q.weight"], types["lora_drop.seg.0.a.weight"]) == ("Q8_0", "Q8_0")
    assert_is_transformers(out, tiny, least=0.999)


# --- correctors ---------------------------------------------------------------------------------


def assert_decodes_as_reference(
    path: Path, holder: Path, tiny: TinyModel, checkpoint: Path, tolerance: float = F16_TOLERANCE
) -> None:
    """Refresh and LoRA steps against the NumPy reference, with weights read by the package safetensors or PyTorch."""
    state = weights(checkpoint)
    corrector = make_corrector(tiny, "anchor-state", DROPPED, rank=8, alpha=16.0)
    for i in DROPPED:
        for part in "AB":
            tensor = state[f"model.layers.{i}.lora_adapter.{part}.weight"].numpy()
            corrector.tensors[f"blk.{i}.lora_drop_{part.lower()}.weight"] = tensor
    corrector.tensors = as_stored(corrector.tensors, "f16")
    decoder = Decoder(tiny, corrector, DROPPED, 3, "refill", 64)
    model = Model(str(path))
    native = Corrector.load(str(holder), model)
    assert native is not None and (native.layers, native.k, native.alpha) == (DROPPED, 3, 16.0)
    context = context_for(model, corrector=native, rho=len(DROPPED) / N_LAYER, k=3, refresh="refill", kv_window=64)
    steps = []
    for tokens in [TOKENS[:6], *([token] for token in TOKENS[6:])]:
        [expected] = decoder.decode([Entry(0, tokens)])
        context.decode(tokens)
        steps.append(context.stats["last_step"])
        assert steps[-1] == decoder.last_step
        assert expected is not None
        assert_close(context.logits(), expected, tolerance)
    assert steps.count("lora") > 10


@pytest.mark.parametrize("how", ["safetensors shards", "pytorch"])
def test_a_reference_checkpoint_in_one_command(tmp_path: Path, tiny: TinyModel, how: str) -> None:
    folder = write_reference(tmp_path / "LoRA-Drop-Tiny", tiny, how)
    before = contents(folder)
    out = tmp_path / "model.gguf"
    result = run("convert", folder, "-o", out, "--outtype", "f32")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    assert_decodes_as_reference(out, out, tiny, folder)
    assert {types_of(out)[f"blk.3.lora_drop_{part}.weight"] for part in "ab"} == {"F16"}
    assert "Lora Drop Tiny" in Model(str(out)).metadata["general.name"].replace("LoRA", "Lora")
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LoRA-Drop-Tiny", "model.gguf"]


def test_a_corrector_from_elsewhere_beside_the_model(tmp_path: Path, checkpoint: Path, tiny: TinyModel) -> None:
    adapters = write_reference(tmp_path / "adapters", tiny, "adapters only")
    out = tmp_path / "model.gguf"
    written = convert(checkpoint, out, outtype="f32", corrector=adapters, sidecar=True)
    assert written == [out, tmp_path / "model.lora-drop.gguf"] and sidecar_path(out) == written[1]
    assert not any("lora_drop" in name for name in types_of(out))
    assert_is_transformers(out, tiny)
    assert_decodes_as_reference(out, written[1], tiny, adapters)


def test_a_corrector_in_a_quantised_model(tmp_path: Path, checkpoint: Path, tiny: TinyModel) -> None:
    adapters = write_reference(tmp_path / "adapters", tiny, "adapters only")
    out = tmp_path / "model.gguf"
    convert(checkpoint, out, outtype="q4_0", corrector=adapters, n_threads=1)
    assert types_of(out)["blk.3.lora_drop_a.weight"] == "F16"
    assert types_of(out)["blk.3.attn_q.weight"] == "Q4_0"
    assert_is_transformers(out, tiny, least=0.8)
    model = Model(str(out))
    context = context_for(model, corrector=Corrector.load(model.path, model), rho=len(DROPPED) / N_LAYER, k=3)
    for token in TOKENS:
        context.decode([token])
        assert np.isfinite(context.logits()).all()
    assert context.stats["lora_steps"] > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "model.gguf"]


@pytest.mark.parametrize("how", ["safetensors", "pytorch shards", "bfloat16", "of before 1.6"])
def test_the_model_in_a_reference_checkpoint_stays_as_it_is(tmp_path: Path, tiny: TinyModel, how: str) -> None:
    folder = write_reference(tmp_path / "reference", tiny, how)
    write_reference_base(folder, tmp_path / "base")
    expected = {
        name: t for name, t in weights(folder).items() if "lora_adapter" not in name and "post_lora" not in name
    }
    config, base_config = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "base"))
    assert base_config == config | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    tokenizer_config = json.loads((tmp_path / "base" / "tokenizer_config.json").read_text())
    assert tokenizer_config == {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 99}
    actual = weights(tmp_path / "base")
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


# --- bad input ----------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def fails(folder: Path, says: str, *arguments: object) -> None:
    """Convert what cannot be converted: one line that names the cause, and the folder stays as it is."""
    before = contents(folder)
    result = run("convert", *arguments)
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line, line
    assert contents(folder) == before


def test_refused_before_any_work(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "no converter can be started")
    there = tmp_path / "there.gguf"
    there.write_text("mine")
    (tmp_path / "model.lora-drop.gguf").write_text("mine")
    (tmp_path / "no-config").mkdir()
    adapters = write_reference(tmp_path / "adapters", make_model("qwen2", n_layer=N_LAYER), "adapters only")
    out = tmp_path / "model.gguf"
    fails(tmp_path, "there.gguf exists; give another name, or --force", checkpoint, "-o", there)
    fails(tmp_path, "model.lora-drop.gguf exists", checkpoint, "-o", out, "--corrector", adapters, "--sidecar")
    fails(tmp_path, "there is no folder", checkpoint, "-o", tmp_path / "gone" / "model.gguf")
    fails(tmp_path, "gone is not there; give the folder", tmp_path / "gone", "-o", out)
    fails(tmp_path, "there.gguf is a file; give the folder", there, "-o", out)
    fails(tmp_path, "there is no config.json in it", tmp_path / "no-config", "-o", out)
    fails(tmp_path, "outtype='q9_9': give one of f32, f16, bf16, q8_0", checkpoint, "-o", out, "--outtype", "q9_9")
    fails(tmp_path, "there is no corrector for it", checkpoint, "-o", out, "--sidecar")
    fails(tmp_path, "gone: no such file or folder", checkpoint, "-o", out, "--corrector", tmp_path / "gone")
    fails(tmp_path, "no-config: no corrector", checkpoint, "-o", out, "--corrector", tmp_path / "no-config")
    inside = adapters / "model.safetensors"
    fails(tmp_path, "is an input", adapters, "-o", inside, "--force")
    fails(tmp_path, "is an input", checkpoint, "-o", inside, "--corrector", adapters, "--force")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentencepiece", None)
        fails(tmp_path, 'needs sentencepiece: pip install "loradrop[convert]"', checkpoint, "-o", out)
    monkeypatch.setattr(sys, "path", [])
    if not (Path(llama_converter.__file__).parent / "llama_cpp").exists():
        fails(tmp_path, "llama_cpp/convert_hf_to_gguf.py, is missing", checkpoint, "-o", out)
    assert {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"} <= set(outtypes())


def copied(checkpoint: Path, folder: Path, **config: Any) -> Path:
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_checkpoints_that_cannot_be_converted(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "model.gguf"
    unknown = copied(checkpoint, tmp_path / "unknown", architectures=["NothingForCausalLM"], model_type="nothing")
    fails(tmp_path, f"{unknown}: llama.cpp's converter failed: Model NothingForCausalLM", unknown, "-o", out)
    truncated = copied(checkpoint, tmp_path / "truncated")
    os.truncate(truncated / "model.safetensors", 50_000)
    fails(tmp_path, f"{truncated}: llama.cpp's converter failed: ", truncated, "-o", out)


def test_weights_that_are_not_there(tmp_path: Path, checkpoint: Path) -> None:
    half = copied(checkpoint, tmp_path / "half")
    state = load_file(half / "model.safetensors")
    save_file({n: t for n, t in state.items() if not n.startswith("model.layers.7.")}, half / "model.safetensors")
    fails(tmp_path, "no weights for blk.7.*; is a file of the checkpoint missing?", half, "-o", tmp_path / "model.gguf")


def test_a_corrector_of_another_model(tmp_path: Path, checkpoint: Path) -> None:
    other = write_reference(tmp_path / "other", make_model("qwen2", n_layer=12), "adapters only")
    out = tmp_path / "model.gguf"
    out.write_text("mine")
    fails(tmp_path, "made for a model with n_layer = 12", checkpoint, "-o", out, "--corrector", other, "--force")


def test_reference_checkpoints_that_lack_something(tmp_path: Path, tiny: TinyModel) -> None:
    out = tmp_path / "model.gguf"
    adapters = write_reference(tmp_path / "adapters", tiny, "adapters only")
    fails(tmp_path, f"corrector alone; convert the model that it was trained on with --corrector {adapters}", adapters,
          "-o", out)  # fmt: skip
    whole = write_reference(tmp_path / "whole", tiny)
    state = load_file(whole / "model.safetensors")
    lacking = {name: tensor for name, tensor in state.items() if name != "model.layers.4.mlp.up_proj.weight"}
    save_file(lacking, whole / "model.safetensors")
    fails(tmp_path, f"{whole}: tensor model.layers.4.mlp.up_proj.weight is missing", whole, "-o", out)
    save_file(
        {name: tensor for name, tensor in state.items() if "lora_adapter" not in name}, whole / "model.safetensors"
    )
    fails(tmp_path, "lora_adapter.A.weight is missing", whole, "-o", out)
    for content in (b"", b"not a pickle"):
        (whole / "model.safetensors").write_bytes(content)
        fails(tmp_path, "model.safetensors: not a readable safetensors file", whole, "-o", out)
    (whole / "model.safetensors").unlink()
    (whole / "pytorch_model.bin").write_bytes(b"not a pickle")
    fails(tmp_path, "pytorch_model.bin: not a PyTorch file that can be read safely", whole, "-o", out)


LIMITED = """
import resource, sys
sys.path.extend(sys.argv.pop(1).split(":"))
from loradrop.cli import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
@pytest.mark.parametrize("what", ["converter", "copy of weights"])
def test_no_room(tmp_path: Path, checkpoint: Path, tiny: TinyModel, what: str) -> None:
    folder = checkpoint if what == "converter" else write_reference(tmp_path / "reference", tiny)
    out = tmp_path / "model.gguf"
    out.write_text("mine")
    before = contents(tmp_path)
    command = [sys.executable, "-c", LIMITED, ":".join(sys.path), "300000", "convert", str(folder), "-o", str(out)]
    done = subprocess.run([*command, "--force", "--outtype", "f32"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ") and "model.gguf" in line and "free some space" in line
    assert os.strerror(errno.ENOSPC) in line or os.strerror(errno.EFBIG) in line
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("interrupt", [True, False])
def test_interrupted(tmp_path: Path, checkpoint: Path, interrupt: bool) -> None:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    seen = []

    def stop(what: str, done: int, total: int | None) -> None:
        assert what == f"converting {checkpoint.name}"
        assert len(list(tmp_path.iterdir())) == 2
        seen.append(children.read_text().split() if children.exists() else [])
        if interrupt:
            signal.raise_signal(signal.SIGINT)
        raise RuntimeError("stopped")

    out = tmp_path / "model.gguf"
    out.write_text("mine")
    before = children.read_text().split() if children.exists() else []
    with pytest.raises(KeyboardInterrupt if interrupt else RuntimeError):
        convert(checkpoint, out, force=True, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert out.read_text() == "mine"
    if children.exists():
        assert len(seen[0]) == len(before) + 1
        assert children.read_text().split() == before


def test_errors_of_the_python_function(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="corrector_type='q4_0': give one of f16, q8_0"):
        convert(checkpoint, tmp_path / "model.gguf", corrector_type="q4_0")  # type: ignore[arg-type]
    with pytest.raises(CorrectorError, match="no corrector"):
        convert(checkpoint, tmp_path / "model.gguf", corrector=checkpoint)
    assert list(tmp_path.iterdir()) == []
