"""Random models: the files are what was asked for, they decode, and writing them takes little memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from loradrop._core import Context, Corrector, Model
from loradrop.cli import main
from loradrop.random_model import SHAPES, RandomCorrector, Shape, write_random_model
from loradrop.random_model.architecture import ARCHITECTURES, model_tensors
from loradrop.random_model.types import weight_types

TINY = Shape(layers=8, embd=64, heads=4, kv_heads=2, ff=96, vocab=400, tied=False, context=2048)
WIDE = dataclasses.replace(TINY, layers=2, embd=256, ff=512)  # whole blocks of every type
Q = GGMLQuantizationType

# Parameters as the models' pages on the Hugging Face Hub count them.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "mixtral-8x7b": 46_702_792_704,
}

LAYER_TENSORS = {  # name -> [n_out, n_in] of WIDE
    "attn_norm.weight": (256,),
    "attn_q.weight": (256, 256),
    "attn_k.weight": (128, 256),
    "attn_v.weight": (128, 256),
    "attn_output.weight": (256, 256),
    "ffn_norm.weight": (256,),
    "ffn_gate.weight": (512, 256),
    "ffn_up.weight": (512, 256),
    "ffn_down.weight": (256, 512),
}
EXPERT_TENSORS = {
    "gate_inp": (6, 256),
    "gate_exps": (6, 512, 256),
    "up_exps": (6, 512, 256),
    "down_exps": (6, 256, 512),
}
OTHERS = {
    "llama": {},
    "qwen2": {"attn_q.bias": (256,), "attn_k.bias": (128,), "attn_v.bias": (128,)},
    "qwen3": {"attn_q_norm.weight": (64,), "attn_k_norm.weight": (64,)},
}


def value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def context_of(path: Path, rho: float = 0.0, k: int = 0, **options: Any) -> Context:
    model = Model(str(path))
    corrector = Corrector.load(str(path), model) if rho else None
    options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, **options}
    return Context(model, corrector=corrector, rho=rho, k=k, **options)


def assert_finite_decode(context: Context, n_tokens: int) -> None:
    token = 1
    for _ in range(n_tokens):
        context.decode([token])
        logits = context.logits()
        assert np.isfinite(logits).all()
        assert logits.std() > 0.1
        token = int(logits.argmax())


@pytest.mark.parametrize("name", PARAMETERS)
def test_known_shapes_have_as_many_parameters(name: str) -> None:
    assert sum(prod(t.shape) for t in model_tensors(SHAPES[name], Q.F16, Q.F16)) == PARAMETERS[name]
    assert SHAPES.keys() == {*PARAMETERS, "tiny"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_file_is_what_was_asked_for(tmp_path: Path, arch: str, tied: bool) -> None:
    path = tmp_path / "model.gguf"
    shape = dataclasses.replace(WIDE, arch=arch, tied=tied, rope_base=5e4, rms_eps=1e-6)
    write_random_model(path, shape, type="q4_0")

    expected = {f"blk.{i}.{name}": s for i in range(2) for name, s in {**LAYER_TENSORS, **OTHERS[arch]}.items()}
    expected |= {"token_embd.weight": (400, 256), "output_norm.weight": (256,)}
    if not tied:
        expected["output.weight"] = (400, 256)
    head = "token_embd.weight" if tied else "output.weight"
    reader = GGUFReader(path)
    assert {t.name: tuple(t.shape.tolist()[::-1]) for t in reader.tensors} == expected
    for t in reader.tensors:
        assert t.tensor_type == (Q.F32 if len(t.shape) == 1 else Q.Q6_K if t.name == head else Q.Q4_0)
        values = dequantize(t.data, t.tensor_type)
        if "norm" in t.name:
            assert (values == 1).all()
        elif t.name.endswith("bias"):
            assert 0.05 < values.std() < 0.2
        else:
            residual = t.name.endswith(("attn_output.weight", "ffn_down.weight"))
            scale = (4 if residual else 1) ** -0.5  # 2 layers
            assert values.std() == pytest.approx(scale * values.shape[1] ** -0.5, rel=0.03)
            assert abs(values.mean()) < 0.02 * values.std() + 1e-4
            assert len(np.unique(values, axis=0)) == len(values)  # no row twice

    keys = {
        "general.architecture": arch,
        f"{arch}.block_count": 2,
        f"{arch}.embedding_length": 256,
        f"{arch}.feed_forward_length": 512,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.context_length": 2048,
        f"{arch}.rope.freq_base": 5e4,
        f"{arch}.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "tokenizer.chat_template": None,
        "lora_drop.version": None,
    }
    assert {key: value(reader, key) for key in keys} == keys
    model = Model(str(path))
    assert (model.arch, model.n_layer, model.n_embd, model.n_vocab, model.n_ctx_train) == (arch, 2, 256, 400, 2048)
    assert_finite_decode(context_of(path), 20)


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = dataclasses.replace(WIDE, layers=8, experts=6, experts_used=2)
    write_random_model(path, shape, type="q4_k", corrector=RandomCorrector(rank=4, hidden=32))
    reader = GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    found = {name: tuple(tensors[f"blk.7.ffn_{name}.weight"].shape.tolist()[::-1]) for name in EXPERT_TENSORS}
    assert found == EXPERT_TENSORS
    assert not any(name.endswith("ffn_up.weight") for name in tensors)
    down = tensors["blk.7.ffn_down_exps.weight"]
    assert dequantize(down.data, down.tensor_type).std() == pytest.approx((16 * 512) ** -0.5, rel=0.03)
    assert (value(reader, "llama.expert_count"), value(reader, "llama.expert_used_count")) == (6, 2)
    assert_finite_decode(context_of(path), 20)
    assert_finite_decode(context_of(path, 0.5, 3), 20)


@pytest.mark.parametrize("name", weight_types())
def test_every_type_decodes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, WIDE, type=name)
    types = {t.name: t.tensor_type.name.lower() for t in GGUFReader(path).tensors}
    assert types["blk.1.ffn_down.weight"] == types["token_embd.weight"] == name
    more_bits = ("f32", "f16", "bf16", "q8_0", "q6_k")
    assert types["output.weight"] == (name if name in more_bits else "q6_k")
    assert_finite_decode(context_of(path), 3)


def test_the_output_head(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for shape, asked, expected in (
        (WIDE, "q4_0", Q.Q4_0),
        (WIDE, "f16", Q.F16),
        (TINY, None, Q.Q8_0),  # 64 is no multiple of 256
    ):
        write_random_model(path, shape, type="q4_1", output_type=asked, force=True)
        assert {t.name: t.tensor_type for t in GGUFReader(path).tensors}["output.weight"] == expected


@pytest.mark.parametrize("n_vocab", [260, 261, 1000, 5000])
def test_the_tokenizer(tmp_path: Path, n_vocab: int) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, dataclasses.replace(TINY, layers=1, vocab=n_vocab))
    pieces = value(GGUFReader(path), "tokenizer.ggml.tokens")
    assert len(pieces) == len(set(pieces)) == n_vocab
    model = Model(str(path))
    text = "The cat's 9 lives, <s> and ünïcödé 猫\n twice".encode()
    tokens = model.tokenize(text, False, False)
    assert model.detokenize(tokens, False).lstrip() == text
    assert all(model.token_to_piece(token, True) for token in range(n_vocab))
    assert model.chat_template is None
    if n_vocab == 5000:
        assert len(tokens) < len(text)  # words of several letters are found


@pytest.mark.parametrize("type_", ["f16", "q8_0"])
@pytest.mark.parametrize("reuse", ["previous-state", "anchor-state", "anchor-delta", "segment"])
def test_correctors(tmp_path: Path, reuse: str, type_: str) -> None:
    path = tmp_path / "model.gguf"
    corrector = RandomCorrector(reuse=reuse, rank=4, hidden=32, rho=(0.25, 0.5), type=type_)
    write_random_model(path, TINY, corrector=corrector)
    expected = {t.name: t.tensor_type for t in GGUFReader(path).tensors if "lora_drop" in t.name}
    matrices = {name: t for name, t in expected.items() if not name.endswith(("drop_gate.weight", "carry.weight"))}
    if reuse == "segment":
        assert len(expected) == 2 * 6
        b = {name: t for name, t in matrices.items() if name.endswith(".b.weight")}  # rows of rank 4
        assert set(b.values()) == {Q.F16}
        rest = {t for name, t in matrices.items() if name not in b}
        assert rest == {Q.Q8_0 if type_ == "q8_0" else Q.F16}
    else:
        assert len(expected) == 4 * (3 if reuse == "anchor-delta" else 2)
        assert set(matrices.values()) == {Q.F16}

    for refresh in ("single", "refill"):
        context = context_of(path, 0.5, 3, refresh=refresh)
        assert sorted(context.dropped_layers) == [2, 3, 4, 5]
        assert_finite_decode(context, 200)
        assert context.stats["lora_steps"] == 150
    assert sorted(context_of(path, 0.25, 1).dropped_layers) == [3, 4]
    loaded = Corrector.load(str(path), Model(str(path)))
    assert loaded is not None
    assert (loaded.reuse, loaded.rank, loaded.alpha, loaded.rho) == (reuse, 4, 4.0, 0.5)


def test_segments_by_their_layers(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, TINY, corrector=RandomCorrector(rank=4, hidden=0, segments=((1, 2), (1, 6))))
    assert sorted(context_of(path, 0.25, 1).dropped_layers) == [1, 2]
    assert sorted(context_of(path, 0.75, 1).dropped_layers) == [1, 2, 3, 4, 5, 6]
    assert not [t.name for t in GGUFReader(path).tensors if ".seg." in t.name and "down" in t.name]


def test_the_full_model_stays_finite(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, dataclasses.replace(TINY, layers=40, tied=True))
    assert_finite_decode(context_of(path), 200)


def test_tensors_of_any_size_lie_where_the_head_says(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, dataclasses.replace(TINY, layers=2, embd=32, vocab=401), output_type="q4_0")
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    assert tensors["token_embd.weight"].n_bytes % 32  # GGUF's alignment
    assert (tensors["blk.0.attn_norm.weight"].data == 1).all()
    assert_finite_decode(context_of(path), 3)


def test_the_seed_decides(tmp_path: Path) -> None:
    corrector = RandomCorrector(rank=4, hidden=8)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_model(tmp_path / name, TINY, corrector=corrector, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c and len(a) == len(c)


MEMORY = """
import resource, sys
from loradrop.random_model import Shape, write_random_model
shape = dict(heads=16, kv_heads=4, vocab=20000, tied=False)
write_random_model(sys.argv[1], Shape(layers=1, embd=256, ff=256, **shape), type="f16")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_random_model(sys.argv[1], Shape(layers=1, embd=2048, ff=8192, **shape), type="f16", force=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], check=True, capture_output=True, text=True)
    assert path.stat().st_size > 270 * 2**20  # the largest tensor alone has 78 MiB
    assert int(done.stdout) * 2**10 < 40 * 2**20


SHAPE_ERRORS = {
    "embd=66: not divisible by heads=4": {"embd": 66},
    "embd=72: type='q4_0' stores rows as whole blocks of 32": {"embd": 72},
    "ff=100: type='q4_0' stores rows as whole blocks of 32": {"ff": 100},
    "heads=64: a head would have embd / heads = 1 channels": {"heads": 64, "kv_heads": 2},
    "kv_heads=3: heads=4 is not divisible by it": {"kv_heads": 3},
    "layers=0: give an integer from 1": {"layers": 0},
    "vocab=259: give an integer from 260": {"vocab": 259},
    "experts=1025: give an integer from 0 to 1024": {"experts": 1025, "experts_used": 1},
    "experts_used=0: give an integer from 1 to 4": {"experts": 4},
    "experts_used=5: give an integer from 1 to 4": {"experts": 4, "experts_used": 5},
    "experts_used=1: give an integer from 0 to 0": {"experts_used": 1},
    "experts=4: a mixture can be written for arch='llama', not 'qwen2'": {
        "experts": 4,
        "experts_used": 2,
        "arch": "qwen2",
    },
    "arch='gpt2': give one of 'llama', 'qwen2'": {"arch": "gpt2"},
}
OTHER_ERRORS: dict[str, dict[str, Any]] = {
    "type='q4_k_m': give one of .*'q4_k'": {"type": "q4_k_m"},
    "type='q9': give one of": {"type": "q9"},
    "output_type='': give one of": {"output_type": ""},
    "embd=64: type='q4_k' stores rows as whole blocks of 256": {"type": "q4_k"},
    "embd=64: output_type='q6_k' stores rows as whole blocks of 256": {"output_type": "q6_k"},
    "seed=-1: give an integer": {"seed": -1},
}
CORRECTOR_ERRORS: dict[str, dict[str, Any]] = {
    "reuse='none': give one of": {"reuse": "none"},
    "corrector type='q4_0': give one of": {"type": "q4_0"},
    "rank=0": {"rank": 0},
    "rank is 65, expected 1 to 64": {"rank": 65},
    "hidden=-1": {"hidden": -1},
    "run 0 to 3|names layer 0; layers 1 to 6": {"segments": ((0, 3),)},
    "names layer 7; layers 1 to 6": {"segments": ((4, 7),)},
    "a run from layer 4 to 3": {"segments": ((4, 3),)},
    "segments=.*reuse='anchor-state' has none": {"reuse": "anchor-state", "segments": ((2, 3),)},
    "rho=0: it drops 0 of 8 layers": {"rho": (0.0,)},
    "rho=0.9: it drops 7 of 8 layers; from 1 to 6 can drop": {"rho": (0.9,), "reuse": "anchor-delta"},
    "rho=1: give a number": {"rho": (1.0,)},
    "rho=.*give at least one": {"rho": ()},
}


def refused(folder: Path, match: str, corrector: dict[str, Any] | None = None, **changes: Any) -> None:
    options = {name: changes.pop(name) for name in ("type", "output_type", "seed") if name in changes}
    with pytest.raises(ValueError, match=match):
        write_random_model(
            folder / "model.gguf",
            dataclasses.replace(TINY, **changes),
            corrector=None if corrector is None else RandomCorrector(**{"rank": 4, "hidden": 8, **corrector}),
            **options,
        )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("match", [*SHAPE_ERRORS, *OTHER_ERRORS])
def test_what_does_not_fit_is_refused(tmp_path: Path, match: str) -> None:
    refused(tmp_path, match, **SHAPE_ERRORS.get(match, {}), **OTHER_ERRORS.get(match, {}))


@pytest.mark.parametrize("match", CORRECTOR_ERRORS)
def test_a_corrector_that_does_not_fit_is_refused(tmp_path: Path, match: str) -> None:
    refused(tmp_path, match, CORRECTOR_ERRORS[match])


def test_the_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"

    def stop(what: str, done: int, total: int | None) -> None:
        assert total is not None
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_model(path, TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="--force"):
        write_random_model(path, TINY)
    assert path.read_bytes() == b"precious"
    write_random_model(path, TINY, force=True)
    assert Model(str(path)).n_layer == 8
    assert list(tmp_path.iterdir()) == [path]


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    command = ["random-model", "-o", str(path), "--shape", "tiny", "--layers", "8", "--embd", "128", "--heads", "8"]
    command += ["--kv-heads", "4", "--ff", "64", "--vocab", "300", "--tied", "--arch", "qwen2", "--type", "q8_0"]
    command += ["--output-type", "f16", "--corrector", "segment", "--segments", "2-5", "--segments", "3-4"]
    command += ["--rank", "8", "--hidden", "32", "--corrector-type", "q8_0", "--seed", "7"]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.output.strip()) == (0, str(path))
    reader = GGUFReader(path)
    assert value(reader, "general.architecture") == "qwen2"
    assert value(reader, "qwen2.attention.head_count_kv") == 4
    assert value(reader, "lora_drop.segments") == [2, 5, 3, 4]
    tensors = {t.name: (t.tensor_type, t.shape.tolist()) for t in reader.tensors}
    assert tensors["blk.7.ffn_up.weight"] == (Q.Q8_0, [128, 64])
    assert tensors["token_embd.weight"] == (Q.F16, [128, 300])
    assert tensors["lora_drop.seg.1.up.weight"] == (Q.Q8_0, [384, 32])
    assert sorted(context_of(path, 0.5, 3).dropped_layers) == [2, 3, 4, 5]

    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1 and "--force" in again.output
    assert CliRunner().invoke(main, [*command, "--force"]).exit_code == 0
    for wrong, message in (
        (["--embd", "100"], "embd=100: not divisible by heads=8"),
        (["--type", "q9"], "type='q9'"),
        (["--rho", "0.5"], "give one of them"),
    ):
        done = CliRunner().invoke(main, [*command, "--force", *wrong])
        assert done.exit_code != 0 and message in done.output
    done = CliRunner().invoke(main, ["random-model", "-o", str(path), "--shape", "tiny", "--rho", "0.5"])
    assert done.exit_code != 0 and "--corrector" in done.output
