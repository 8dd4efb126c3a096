"""Adapters in folders of PEFT, merged into a checkpoint or beside a model, against PEFT itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from architectures import SUPPORTED, Checkpoint
from loradrop import Llama
from loradrop._core import Context, Model, ModelError
from loradrop.adapters import load_adapters
from loradrop_convert.convert import convert
from loradrop_convert.gguf_base_config import _CLASSES
from loradrop_convert.merge_adapter import plan_merge
from loradrop_convert.peft_adapter import read_peft_adapter
from pair import ENGINE_OPTIONS
from tiny import TinyModel, make_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from checkpoints import load_checkpoint, write_checkpoints  # noqa: E402
from hf import transformers_model  # noqa: E402
from peft_adapters import adapted_model, change_config, logits_of, write_peft  # noqa: E402
from test_convert import contents, fails, run, write_checkpoint, write_reference  # noqa: E402

pytestmark = pytest.mark.usefixtures("converter")
TOLERANCE = 1e-3  # of the largest logit
TOKENS = np.random.default_rng(3).integers(3, 300, 16).tolist()
GPT2 = Checkpoint("gpt2", "gpt2", "GPT2LMHeadModel", {"n_ctx": 512}, "GPT2Config")
KNOWN = [c for c in SUPPORTED if c.arch in _CLASSES and c.name != "mixtral"]
RANKS = {"r": 6, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 9}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama() -> TinyModel:
    return make_model("llama", n_layer=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, llama: TinyModel) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), llama)


@pytest.fixture(scope="module")
def base_gguf(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, converter: None) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    convert(checkpoint, path, outtype="f32")
    return path


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("architectures")
    write_checkpoints(folder, [*KNOWN, GPT2])
    return folder


def engine_logits(model: Model, adapters: Sequence[tuple[Path, float]] = ()) -> np.ndarray:
    context = Context(model, adapters=load_adapters(model, adapters), **ENGINE_OPTIONS)
    context.decode(TOKENS, outputs=[True] * len(TOKENS))
    return np.stack([context.logits(i) for i in range(len(TOKENS))])


def assert_close(actual: np.ndarray, expected: np.ndarray, base: np.ndarray) -> None:
    largest = np.abs(expected).max()
    assert np.abs(actual - expected).max() < TOLERANCE * largest
    assert np.abs(base - expected).max() > 100 * TOLERANCE * largest, "the adapter changes too little to be seen"


# --- merged -------------------------------------------------------------------------------------


def merged_weights(checkpoint: Path, out: Path, *adapters: tuple[Path, float]) -> dict[str, Any]:
    plan_merge(checkpoint, [(read_peft_adapter(folder), scale) for folder, scale in adapters]).write(out)
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_merged(actual: dict[str, Any], expected: Any, precision: float = 1e-6, cut: str = "") -> None:
    """Compare all weights of a merged checkpoint with those of a model that PEFT merged."""
    state = expected.state_dict()
    for name, tensor in actual.items():
        theirs = state[cut + name]
        assert torch.allclose(tensor.float(), theirs.float(), precision, precision), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {**RANKS, "alpha_pattern": {"v_proj": 5, "model.layers.0.self_attn.q_proj": 3.5}},
        {**RANKS, "use_rslora": True},
        {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=["plain", "rslora", "patterns", "rslora of several ranks", "embeddings", "weights saved whole"],
)
def test_merged_weights_are_those_of_peft(
    tmp_path: Path, checkpoint: Path, llama: TinyModel, options: dict[str, Any]
) -> None:
    folder = write_peft(tmp_path / "adapter", transformers_model(llama), **options)
    expected = adapted_model(transformers_model(llama), [folder]).merge_and_unload()
    actual = merged_weights(checkpoint, tmp_path / "merged", (folder, 1.0))
    assert actual.keys() == load_file(checkpoint / "model.safetensors").keys()
    assert_merged(actual, expected)
    changed = "model.layers.1.self_attn.o_proj.weight"
    assert not torch.equal(actual[changed], load_file(checkpoint / "model.safetensors")[changed])


def test_biases_are_merged(tmp_path: Path) -> None:
    model = make_model("qwen2", n_layer=2)
    folder = write_peft(tmp_path / "adapter", transformers_model(model), bias="all")
    expected = adapted_model(transformers_model(model), [folder]).merge_and_unload()
    actual = merged_weights(write_checkpoint(tmp_path / "base", model), tmp_path / "merged", (folder, 1.0))
    assert_merged(actual, expected)
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert not torch.equal(actual["model.layers.1.self_attn.q_proj.bias"], base["model.layers.1.self_attn.q_proj.bias"])


@pytest.mark.parametrize("how", ["bfloat16", "float16", "shards", "pytorch"])
def test_weights_keep_their_types(tmp_path: Path, llama: TinyModel, how: str) -> None:
    dtype = getattr(torch, how, torch.float32)
    base = transformers_model(llama).to(dtype)
    base.save_pretrained(tmp_path / "base", max_shard_size="200KB" if how == "shards" else "1GB")
    state = {
        name: tensor for file in (tmp_path / "base").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    if how == "pytorch":
        (tmp_path / "base" / "model.safetensors").unlink()
        torch.save(state | {"model.mask": torch.ones(3, dtype=torch.bool)}, tmp_path / "base" / "pytorch_model.bin")
    save_file({"norm.weight": torch.ones(1)}, tmp_path / "base" / "consolidated.safetensors")
    folder = write_peft(tmp_path / "adapter", transformers_model(llama))
    expected = adapted_model(base.float(), [folder]).merge_and_unload()
    actual = merged_weights(tmp_path / "base", tmp_path / "merged", (folder, 1.0))
    if how == "pytorch":
        assert actual.pop("model.mask").dtype == torch.bool
    assert {tensor.dtype for tensor in actual.values()} == {dtype} and actual.keys() == state.keys()
    assert_merged(actual, expected.to(dtype), {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 1e-6))
    near = [torch.equal(tensor, expected.state_dict()[name].to(dtype)) for name, tensor in actual.items()]
    assert np.mean(near) > 0.5 or dtype == torch.float32  # rounded as torch rounds, but for what lies between two


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("flag", [True, False])
def test_weights_that_are_stored_transposed(tmp_path: Path, architectures: Path, prefix: str, flag: bool) -> None:
    targets = ["c_attn", "c_proj", "c_fc"]
    folder = write_peft(tmp_path / "adapter", load_checkpoint(architectures / "gpt2", GPT2), target_modules=targets)
    expected = adapted_model(load_checkpoint(architectures / "gpt2", GPT2), [folder]).merge_and_unload()
    change_config(folder, fan_in_fan_out=flag)
    base = shutil.copytree(architectures / "gpt2", tmp_path / "base")
    state = load_file(base / "model.safetensors")
    save_file({prefix + n.removeprefix("transformer."): t for n, t in state.items()}, base / "model.safetensors")
    actual = merged_weights(base, tmp_path / "merged", (folder, 1.0))
    assert_merged(actual, expected, cut="" if prefix else "transformer.")


# --- end to end ---------------------------------------------------------------------------------


def test_convert_merges(tmp_path: Path, checkpoint: Path, base_gguf: Path, llama: TinyModel) -> None:
    one = write_peft(tmp_path / "one", transformers_model(llama))
    before = contents(checkpoint) | contents(one)
    out = tmp_path / "model.gguf"
    result = run("convert", checkpoint, "-o", out, "--outtype", "f32", "--lora", one)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    expected = logits_of(adapted_model(transformers_model(llama), [one]), TOKENS)
    base = engine_logits(Model(str(base_gguf)))
    assert_close(engine_logits(Model(str(out))), expected, base)
    assert contents(checkpoint) | contents(one) == before

    two = write_peft(
        tmp_path / "two",
        transformers_model(llama),
        seed=2,
        r=3,
        use_rslora=True,
        target_modules=["q_proj", "down_proj"],
    )
    options = ["--lora", one, "--lora-scale", "-0.5", "--lora", two, "--lora-scale", "2", "--force"]
    assert run("convert", checkpoint, "-o", out, "--outtype", "f32", *options).exit_code == 0
    expected = logits_of(adapted_model(transformers_model(llama), [one, two], [-0.5, 2.0]), TOKENS)
    assert_close(engine_logits(Model(str(out))), expected, base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "one", "two"]


def test_a_checkpoint_of_the_reference_code(tmp_path: Path) -> None:
    model = make_model("qwen2", n_layer=8)
    reference = write_reference(tmp_path / "reference", model)
    folder = write_peft(tmp_path / "adapter", transformers_model(model))
    expected = logits_of(adapted_model(transformers_model(model), [folder]), TOKENS)
    base, merged, adapter = (tmp_path / f"{name}.gguf" for name in ("base", "merged", "lora"))
    convert(reference, base, outtype="f32")
    convert(reference, merged, outtype="f32", lora=folder)
    convert(reference, adapter, outtype="f32", lora=folder, adapter=True)
    base_logits = engine_logits(Model(str(base)))
    assert_close(engine_logits(Model(str(merged))), expected, base_logits)
    assert_close(engine_logits(Model(str(base)), [(adapter, 1.0)]), expected, base_logits)
    assert any("lora_drop" in tensor.name for tensor in GGUFReader(merged).tensors)


def test_an_adapter_file_and_a_folder_with_scales(
    tmp_path: Path, cache: Path, checkpoint: Path, base_gguf: Path, llama: TinyModel
) -> None:
    one = write_peft(tmp_path / "one", transformers_model(llama), **RANKS, alpha_pattern={"v_proj": 5})
    two = write_peft(tmp_path / "two", transformers_model(llama), seed=2, use_rslora=True)
    out = tmp_path / "adapter.gguf"
    configuration = tmp_path / "configuration"  # no weights are needed, and no tokenizer
    configuration.mkdir()
    shutil.copy(checkpoint / "config.json", configuration)
    result = run("convert", configuration, "--lora", one, "--adapter", "-o", out, "--outtype", "f32")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    model = Model(str(base_gguf))
    base = engine_logits(model)
    expected = logits_of(adapted_model(transformers_model(llama), [one]), TOKENS)
    assert_close(engine_logits(model, [(out, 1.0)]), expected, base)
    expected = logits_of(adapted_model(transformers_model(llama), [one, two], [0.5, -1.5]), TOKENS)
    assert_close(engine_logits(model, [(out, 0.5), (two, -1.5)]), expected, base)
    [kept] = (cache / "adapters").iterdir()

    def text(**options: Any) -> str:
        llm = Llama(base_gguf, n_ctx=64, n_threads=1, **options)
        return llm("a", max_tokens=20, temperature=0)["choices"][0]["text"]  # type: ignore[index]

    both = text(lora_path=[out, two], lora_scale=[0.5, -1.5])
    assert both == text(lora_path=[str(out), kept], lora_scale=[0.5, -1.5]) != text(lora_path=[out, two])
    assert text(lora_path=[out, two]) == text(lora_path=[out, two], lora_scale=1)
    assert list((cache / "adapters").iterdir()) == [kept]


def test_a_folder_is_converted_once_for_its_contents(
    tmp_path: Path, cache: Path, base_gguf: Path, llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write_peft(tmp_path / "one", transformers_model(llama))
    Llama(base_gguf, lora_path=one, n_ctx=64)
    [kept] = (cache / "adapters").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "no converter can be started")
        Llama(base_gguf, lora_path=shutil.copytree(one, tmp_path / "copy"), n_ctx=64)
        change_config(one, lora_alpha=7)
        with pytest.raises(OSError, match="no converter can be started"):
            Llama(base_gguf, lora_path=one, n_ctx=64)
    assert list((cache / "adapters").iterdir()) == [kept]
    Llama(base_gguf, lora_path=one, n_ctx=64)
    assert len(list((cache / "adapters").iterdir())) == 2


@pytest.mark.parametrize("known", [*KNOWN, GPT2], ids=lambda c: c.name)
def test_a_folder_beside_a_model_of_each_architecture(tmp_path: Path, architectures: Path, known: Checkpoint) -> None:
    path = architectures / known.name
    base = str(path) if known is GPT2 else "no/such-model"
    folder = write_peft(tmp_path / "adapter", load_checkpoint(path, known), base=base)
    if known is GPT2:
        assert read_peft_adapter(folder).fan_in_fan_out
    expected = logits_of(adapted_model(load_checkpoint(path, known), [folder]), TOKENS)
    model = Model(str(path.with_suffix(".gguf")))
    assert_close(engine_logits(model, [(folder, 1.0)]), expected, engine_logits(model))


def test_an_adapter_of_the_embeddings(tmp_path: Path, base_gguf: Path, llama: TinyModel) -> None:
    folder = write_peft(
        tmp_path / "adapter", transformers_model(llama), target_modules=["embed_tokens", "lm_head", "o_proj"]
    )
    expected = logits_of(adapted_model(transformers_model(llama), [folder]), TOKENS)
    model = Model(str(base_gguf))
    assert_close(engine_logits(model, [(folder, 1.0)]), expected, engine_logits(model))


# --- what cannot be converted -------------------------------------------------------------------


def test_refused_before_any_work(
    tmp_path: Path, checkpoint: Path, llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_peft(tmp_path / "plain", transformers_model(llama))
    dora = write_peft(tmp_path / "dora", transformers_model(llama), use_dora=True)
    whole = write_peft(tmp_path / "whole", transformers_model(llama), modules_to_save=["lm_head"])
    embedding = write_peft(tmp_path / "embedding", transformers_model(llama), target_modules=["embed_tokens"])
    other = write_peft(tmp_path / "other", transformers_model(make_model("llama", n_layer=3, n_embd=32)))
    deeper = write_peft(tmp_path / "deeper", transformers_model(make_model("llama", n_layer=4)))
    tied = write_checkpoint(tmp_path / "tied", make_model("llama", n_layer=3, tied=True))
    (tmp_path / "nothing").mkdir()
    monkeypatch.setattr("sys.executable", "no converter can be started")
    out = tmp_path / "model.gguf"

    def refused(says: str, *arguments: object, base: Path = checkpoint) -> None:
        fails(tmp_path, says, base, "-o", out, *arguments)

    refused("dora/adapter_config.json: use_dora is True", "--lora", dora)
    refused("lm_head.weight was trained whole (modules_to_save), so it can neither be scaled", "--lora", whole,
            "--lora-scale", "0.5")  # fmt: skip
    refused("lm_head.weight was trained whole", "--lora", whole, "--lora", whole)
    refused("lm_head.weight was trained whole (modules_to_save or bias)", "--lora", whole, "--adapter")
    refused("of shape [32, 96]", "--lora", other)
    refused("deeper: adapts model.layers.3.", "--lora", plain, "--lora", deeper)
    refused("embedding and the output layer are one weight", "--lora", embedding, base=tied)
    refused("embedding and the output layer are one weight", "--lora", embedding, "--adapter", base=tied)
    refused("there is no adapter_config.json in it", "--lora", tmp_path / "nothing")
    refused("there is no adapter_config.json in it", "--lora", tmp_path / "gone")
    refused("plain: holds an adapter alone; give the folder of its model", base=plain)
    refused("lora_scale has 3 numbers, lora 1 paths", "--lora", plain, *["--lora-scale", "1"] * 3)
    refused("lora_scale=nan", "--lora", plain, "--lora-scale", "nan")
    refused("adapter=True: give one adapter", "--adapter")
    refused("adapter=True: give one adapter", "--lora", plain, "--lora", plain, "--adapter")
    refused("adapter=True: give one adapter", "--lora", plain, "--lora-scale", "2", "--adapter")
    refused("adapter=True: a corrector goes into", "--lora", plain, "--adapter", "--corrector", plain)
    refused("outtype='q4_0': give one of f32", "--lora", plain, "--adapter", "--outtype", "q4_0")
    for key, value in {
        "peft_type": "ADALORA",
        "init_lora_weights": "pissa_niter_4",
        "lora_bias": True,
        "target_parameters": ["x"],
        "alpha_pattern": {"(": 1},
        "lora_alpha": "much",
    }.items():
        changed = shutil.copytree(plain, tmp_path / "changed")
        change_config(changed, **{key: value})
        refused(f"changed/adapter_config.json: {key}", "--lora", changed)
        shutil.rmtree(changed)
    inside = plain / "adapter_model.safetensors"
    fails(tmp_path, "is an input", checkpoint, "-o", inside, "--lora", plain, "--force")
    quantised = shutil.copytree(checkpoint, tmp_path / "quantised")
    state = load_file(quantised / "model.safetensors")
    save_file({n: t.to(torch.int8) if "v_proj" in n else t for n, t in state.items()}, quantised / "model.safetensors")
    refused("v_proj.weight has type I8, to which nothing can be added", "--lora", plain, base=quantised)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {n: t for n, t in state.items() if "0.self_attn.q_proj.lora_B" not in n}, "only lora_A"),
        (lambda state: {n: t[:, :3].contiguous() if "lora_B" in n else t for n, t in state.items()}, "cannot be B A"),
        (lambda state: {n: t * float("nan") for n, t in state.items()}, "not finite"),
        (lambda state: {"x": next(iter(state.values()))}, "tensor x is none of plain LoRA's"),
        (lambda state: {"base_model.model.x.lora_C.weight": torch.ones(1)}, "is none of plain LoRA's"),
        (lambda state: {}, "there are no LoRA weights"),
    ],
    ids=["half a pair", "ranks", "nan", "foreign", "unknown", "empty"],
)
def test_damaged_adapters(tmp_path: Path, llama: TinyModel, change: Any, says: str) -> None:
    folder = write_peft(tmp_path / "adapter", transformers_model(llama))
    save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=says):
        read_peft_adapter(folder)


def test_files_that_are_not_whole(tmp_path: Path, llama: TinyModel) -> None:
    folder = write_peft(tmp_path / "adapter", transformers_model(llama))
    expected = read_peft_adapter(folder)
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ModelError, match=r"adapter_model.safetensors: not a readable safetensors file"):
        read_peft_adapter(folder)
    path.unlink()
    actual = read_peft_adapter(folder)
    assert all(np.array_equal(actual.pairs[name].a, pair.a) for name, pair in expected.pairs.items())
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no adapter_model.safetensors or adapter_model.bin in it"):
        read_peft_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json: not readable as JSON"):
        read_peft_adapter(folder)


def test_llama_refuses(tmp_path: Path, cache: Path, base_gguf: Path, llama: TinyModel, architectures: Path) -> None:
    plain = write_peft(tmp_path / "plain", transformers_model(llama))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"nothing': there is no adapter_config.json in it"):
        Llama(base_gguf, lora_path=[plain, tmp_path / "nothing"])
    with pytest.raises(ValueError, match="lora_scale has 2 numbers, lora_path 1 paths"):
        Llama(base_gguf, lora_path=plain, lora_scale=[1.0, 2.0])
    with pytest.raises(TypeError, match="lora_scale='2': give a number"):
        Llama(base_gguf, lora_path=[plain], lora_scale=["2"])  # type: ignore[list-item]
    with pytest.raises(ModelError, match=r"gpt2.*base_model_name_or_path is 'no/such-model'.*--adapter"):
        Llama(architectures / "gpt2.gguf", lora_path=plain)
    deeper = write_peft(tmp_path / "deeper", transformers_model(make_model("llama", n_layer=4)))
    with pytest.raises(ModelError, match=r"deeper: llama.cpp's converter failed: .*layers.3.*; merge it"):
        Llama(base_gguf, lora_path=deeper)
    wider = write_peft(tmp_path / "wider", transformers_model(make_model("llama", n_layer=3, n_embd=128)))
    with pytest.raises(ModelError, match=r"cannot be used as a LoRA adapter of .*base.gguf"):
        Llama(base_gguf, lora_path=wider)
    tied = tmp_path / "tied.gguf"
    convert(write_checkpoint(tmp_path / "tied", make_model("llama", n_layer=3, tied=True)), tied)
    embedding = write_peft(tmp_path / "embedding", transformers_model(llama), target_modules=["embed_tokens"])
    for _ in range(2):  # when it is converted, and from the cache
        with pytest.raises(
            ModelError, match=r"embedding: adapts the embedding, which in .*tied.gguf is the output layer"
        ):
            Llama(tied, lora_path=embedding)
