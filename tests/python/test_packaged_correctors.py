"""The correctors in the package: there, right, and found by a model's weights alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from loradrop import CorrectorError, Llama
from loradrop._core import Corrector, Model, build_info, quantize
from loradrop.evaluate import Point, perplexity
from loradrop.packaged_correctors import FOLDER, PACKAGED_CORRECTORS, packaged_corrector
from loradrop_convert.base import read_base, read_model_header
from loradrop_convert.corrector import CorrectorData
from loradrop_convert.gguf_file import write_sidecar
from loradrop_convert.gguf_header import read_header
from tiny import make_model, write_gguf


def test_every_file_is_there_and_known() -> None:
    assert {path.name for path in FOLDER.glob("*.gguf")} == {known.file_name for known in PACKAGED_CORRECTORS}


def test_each_policy_has_its_own(smollm2: Path) -> None:
    model = Model(str(smollm2))
    files = [packaged_corrector(model, known.refresh) for known in PACKAGED_CORRECTORS]
    assert files == [FOLDER / known.file_name for known in PACKAGED_CORRECTORS]
    for known, path in zip(PACKAGED_CORRECTORS, files, strict=True):
        corrector = Corrector.load(str(path), model)
        assert corrector is not None and corrector.refresh == known.refresh
        with Llama("smollm2", rho=0.25, refresh=known.refresh, n_ctx=128) as llm:
            assert llm.corrector is not None and Path(llm.corrector.path) == path


def test_renamed_model_is_known(tmp_path: Path, smollm2: Path) -> None:
    renamed = tmp_path / "other.gguf"
    renamed.symlink_to(smollm2)
    path = packaged_corrector(Model(str(renamed)))
    assert path == FOLDER / "SmolLM2-135M-Instruct.Q4_1.corrector.gguf"
    corrector = Corrector.load(str(path), Model(str(renamed)))
    assert corrector is not None and corrector.reuse == "segment"
    assert corrector.rho is not None and corrector.k is not None


def test_model_of_the_same_shape_but_other_weights_is_not(tmp_path: Path, smollm2: Path) -> None:
    changed = tmp_path / "finetuned.gguf"
    shutil.copyfile(smollm2, changed)
    norm = next(tensor for tensor in read_model_header(changed).tensors if tensor.name == "output_norm.weight")
    with changed.open("r+b") as file:
        file.seek(norm.offset)
        first = file.read(1)
        file.seek(norm.offset)
        file.write(bytes([first[0] ^ 1]))
    model = Model(str(changed))
    assert model.layout_hash == Model(str(smollm2)).layout_hash
    assert packaged_corrector(model) is None
    with pytest.raises(CorrectorError, match="holds no corrector"):
        Llama(changed, rho=0.25, k=3)


def test_tensor_bytes_are_the_files(smollm2: Path) -> None:
    model, data = Model(str(smollm2)), smollm2.read_bytes()
    for tensor in read_model_header(smollm2).tensors:
        assert model.tensor_bytes(tensor.name) == data[tensor.offset : tensor.offset + tensor.n_bytes]
    with pytest.raises(IndexError, match="no tensor output_norm"):
        model.tensor_bytes("output_norm")


def test_weights_in_an_order_of_the_processors_own(tmp_path: Path) -> None:
    write_gguf(tmp_path / "f32.gguf", make_model(n_embd=256))
    quantize(str(tmp_path / "f32.gguf"), str(tmp_path / "q4_0.gguf"), "q4_0")
    model = Model(str(tmp_path / "q4_0.gguf"))
    header, data = read_header(model.path), Path(model.path).read_bytes()
    refused = 0
    for tensor in header.tensors:
        try:
            assert model.tensor_bytes(tensor.name) == data[tensor.offset : tensor.offset + tensor.n_bytes]
        except RuntimeError as error:
            refused += "an order of the CPU's own" in str(error)
    assert refused or "REPACK" not in build_info()["system"]


def test_unknown_model_has_none(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", make_model(n_layer=4))
    assert packaged_corrector(Model(str(tmp_path / "tiny.gguf"))) is None


def test_llama_takes_it_when_lora_drop_is_asked_for() -> None:
    with Llama("smollm2", rho=0.25, k=3, n_ctx=128) as llm:
        assert llm.corrector is not None and Path(llm.corrector.path).parent == FOLDER
        assert llm.create_completion("The sky is", max_tokens=8)["choices"][0]["text"]
    with Llama("smollm2", k=2, refresh="single", n_ctx=128) as llm:
        assert llm.corrector is not None and llm.rho == llm.corrector.rho and (llm.k, llm.refresh) == (2, "single")
    for off in ({}, {"rho": 0}, {"k": 0}):
        with Llama("smollm2", n_ctx=128, **off) as llm:
            assert llm.corrector is None


def test_it_comes_nearer_to_the_full_model_than_nothing(smollm2: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    bare = write_bare(tmp_path / "bare.gguf", smollm2)
    points = [Point(rho=8 / 30, k=3, refresh="refill", corrector=path) for path in (None, bare)]
    report = perplexity(smollm2, text, points, prompt=32, window=96, n_windows=2)
    ours, nothing = (point.total.kl.mean for point in report.points)
    assert ours < 0.5 * nothing


def write_bare(path: Path, model: Path) -> Path:
    """Write a sidecar that drops layers 10 to 17 and corrects nothing."""
    n_embd = Model(str(model)).n_embd
    zero = {
        "lora_drop.seg.0.a.weight": np.zeros((1, 3 * n_embd), np.float32),
        "lora_drop.seg.0.b.weight": np.zeros((n_embd, 1), np.float32),
    }
    write_sidecar(path, CorrectorData("segment", 1, 1.0, zero, [], [(10, 17)]), read_base(model))
    return path
