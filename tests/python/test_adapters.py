"""LoRA adapters of the usual kind beside LoRA-Drop: the engine against the reference with merged weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from loradrop import Llama
from loradrop._core import Adapter, Context, Corrector, Model, ModelError
from pair import ENGINE_OPTIONS, TOLERANCE, Lockstep
from reference import Decoder, Entry, layers_for
from tiny import FloatArray, Reuse, TinyModel, make_corrector, make_model, write_gguf, write_sidecar

RANK, ALPHA = 3, 6.0
ADAPTED = ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down")
TEXT = [int(token) for token in np.random.default_rng(5).integers(3, 300, 40)]


def adapter_tensors(model: TinyModel, seed: int = 3) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Return A [rank, n_in] and B [n_out, rank] for some matrices of every layer, by tensor name."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for layer in range(model.n_layer):
        for name in ADAPTED:
            weight = model.tensors[f"blk.{layer}.{name}.weight"]
            a = rng.normal(0, weight.shape[1] ** -0.5, (RANK, weight.shape[1])).astype(np.float32)
            b = rng.normal(0, 0.2, (weight.shape[0], RANK)).astype(np.float32)
            pairs[f"blk.{layer}.{name}.weight"] = (a, b)
    return pairs


def write_adapter(path: Path, arch: str, pairs: dict[str, tuple[FloatArray, FloatArray]]) -> None:
    """Write an adapter as llama.cpp's convert_lora_to_gguf.py does."""
    writer = GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merged(model: TinyModel, pairs: dict[str, tuple[FloatArray, FloatArray]], scale: float) -> TinyModel:
    """Return the model with the adapter in its weights."""
    added = {name: model.tensors[name] + scale * ALPHA / RANK * b @ a for name, (a, b) in pairs.items()}
    return dataclasses.replace(model, tensors=model.tensors | added)


@pytest.mark.parametrize("refresh", ["single", "refill"])
@pytest.mark.parametrize("reuse", ["anchor-delta", "segment"])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_an_adapter_goes_on_working(tmp_path: Path, reuse: Reuse, refresh: str, scale: float) -> None:
    model = make_model()
    chosen = {"segments": [(2, 4)]} if reuse == "segment" else {"layers": [3, 2, 4]}
    corrector = make_corrector(model, reuse, **chosen)  # type: ignore[arg-type]
    pairs = adapter_tensors(model)
    write_gguf(tmp_path / "model.gguf", model, corrector)
    write_adapter(tmp_path / "adapter.gguf", model.arch, pairs)

    native = Model(str(tmp_path / "model.gguf"))
    engine = Context(
        native,
        corrector=Corrector.load(str(tmp_path / "model.gguf"), native),
        rho=0.5,
        k=3,
        refresh=refresh,
        kv_window=4,
        adapters=[(Adapter(native, str(tmp_path / "adapter.gguf")), scale)],
        **ENGINE_OPTIONS,
    )
    dropped = layers_for(0.5, model.n_layer, corrector)
    reference = Decoder(merged(model, pairs, scale), corrector, dropped, 3, refresh, 4)
    pair = Lockstep(engine, reference, TOLERANCE)
    pair.decode(Entry(0, TEXT[:9]))
    for token in TEXT[9:]:
        pair.decode(Entry(0, [token]))
    assert engine.stats["lora_steps"] > engine.stats["full_steps"]


def test_llama_takes_an_adapter(tmp_path: Path) -> None:
    model = make_model()
    write_gguf(tmp_path / "model.gguf", model)
    pairs = adapter_tensors(model)
    write_adapter(tmp_path / "adapter.gguf", model.arch, pairs)
    corrector = make_corrector(model, "segment", segments=[(2, 4)])
    for name, one in (("model", model), ("merged", merged(model, pairs, 0.5))):
        write_gguf(tmp_path / f"{name}.gguf", one)
        write_sidecar(tmp_path / f"{name}.corrector.gguf", one, corrector)

    def text(name: str, **options: object) -> str:
        sidecar = (tmp_path / name).with_suffix(".corrector.gguf")
        llm = Llama(tmp_path / name, rho=0.5, k=2, corrector=sidecar, refresh="refill", n_ctx=256, **options)  # type: ignore[arg-type]
        return llm("a", max_tokens=24, temperature=0)["choices"][0]["text"]  # type: ignore[index]

    adapted = text("model.gguf", lora_path=tmp_path / "adapter.gguf", lora_scale=0.5)
    assert adapted == text("merged.gguf")
    assert adapted != text("model.gguf")


def test_adapters_that_cannot_be_used(tmp_path: Path) -> None:
    model, other = make_model(), make_model(n_embd=32)
    write_gguf(tmp_path / "model.gguf", model)
    native = Model(str(tmp_path / "model.gguf"))
    write_adapter(tmp_path / "other.gguf", other.arch, adapter_tensors(other))
    (tmp_path / "half.gguf").write_bytes((tmp_path / "other.gguf").read_bytes()[:900])
    for name in ("other.gguf", "half.gguf", "model.gguf", "missing.gguf"):
        with pytest.raises(ModelError, match=name):
            Adapter(native, str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="lora_path"):
        Llama(tmp_path / "model.gguf", lora_path=tmp_path / "missing.gguf")
    with pytest.raises(ValueError, match="lora_scale"):
        Llama(tmp_path / "model.gguf", lora_scale=float("nan"))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    model = make_model()
    write_gguf(tmp_path / "model.gguf", model)
    write_adapter(tmp_path / "adapter.gguf", model.arch, adapter_tensors(model))
    one, two = (Model(str(tmp_path / "model.gguf")) for _ in range(2))
    with pytest.raises(ValueError, match="another model"):
        Context(one, n_ctx=64, adapters=[(Adapter(two, str(tmp_path / "adapter.gguf")), 1.0)])
