"""Code that checkpoints bring for their tokenizer, and tokenizers that llama.cpp's converter does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loradrop._core import ModelError
from loradrop_convert import llama_converter
from tiny import make_model

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

from hf import transformers_model  # noqa: E402
from test_convert import fails, write_checkpoint  # noqa: E402

pytestmark = pytest.mark.usefixtures("converter")
CODE = """
from pathlib import Path
from transformers import {base}
Path({ran!r}).touch()
class Mine({base}):
    pass
"""
UNKNOWN = "does not know its tokenizer"


@pytest.fixture(autouse=True)
def ran(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that the checkpoint's code makes."""
    folder = tmp_path_factory.mktemp("ran")
    monkeypatch.setenv("HF_HOME", str(folder))  # where transformers copies the code to
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder / "ran"


def write_with_code(folder: Path, ran: Path, config: dict[str, Any] | None, tokenizer: Any) -> Path:
    """Write a checkpoint with a byte tokenizer, and `auto_map` in the configurations of both."""
    transformers_model(make_model("qwen2", n_layer=2)).save_pretrained(folder)
    bytes_ = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({byte: i for i, byte in enumerate(bytes_)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Mine"} | tokenizer))
    if config is not None:
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
    for name, base in {"tokenization": "PreTrainedTokenizerFast", "configuration": "Qwen2Config"}.items():
        (folder / f"{name}_mine.py").write_text(CODE.format(base=base, ran=str(ran)))
    return folder


@pytest.mark.parametrize(
    "auto_map",
    [{"AutoTokenizer": [None, "tokenization_mine.Mine"]}, ["tokenization_mine.Mine", None]],
    ids=["dict", "list"],
)
def test_code_of_a_tokenizer(tmp_path: Path, ran: Path, auto_map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_with_code(tmp_path / "checkpoint", ran, {"model_type": "mine"}, {"auto_map": auto_map})
    arguments = (folder, "-o", tmp_path / "model.gguf")
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "no converter can be started")
        fails(tmp_path, "tokenizer_config.json: auto_map: the tokenizer is Python code of the checkpoint, "
              "tokenization_mine.Mine; read it and, if you trust it, give --trust-remote-code", *arguments)  # fmt: skip
    with pytest.raises(ModelError, match=r"cannot be converted without running Python code.*--trust-remote-code"):
        llama_converter.run_converter(folder, tmp_path / "model.gguf", "f32")
    assert not ran.exists()
    if isinstance(auto_map, dict):  # transformers takes the list no more, if it ever was one of code alone
        fails(tmp_path, UNKNOWN, *arguments, "--trust-remote-code")
        assert ran.exists()


def test_code_that_is_not_needed(tmp_path: Path, ran: Path) -> None:
    code = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine"}
    folder = write_with_code(tmp_path / "one", ran, {"auto_map": code, "model_type": "mine"}, {})
    fails(tmp_path, UNKNOWN, folder, "-o", tmp_path / "model.gguf")
    assert not ran.exists()


def test_code_is_no_obstacle_to_a_conversion(tmp_path: Path, ran: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", make_model("llama", n_layer=2))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": {"AutoConfig": "configuration_mine.Mine"}}))
    (folder / "configuration_mine.py").write_text(CODE.format(base="LlamaConfig", ran=str(ran)))
    llama_converter.run_converter(folder, tmp_path / "model.gguf", "f32")
    assert (tmp_path / "model.gguf").exists() and not ran.exists()


def test_an_unknown_tokenizer(tmp_path: Path, ran: Path) -> None:
    folder = write_with_code(tmp_path / "checkpoint", ran, None, {"tokenizer_class": "PreTrainedTokenizerFast"})
    says = f"{folder}: llama.cpp's converter {UNKNOWN}. If the model was trained from a known one, put that one's"
    arguments = (folder, "-o", tmp_path / "model.gguf")
    fails(tmp_path, says, *arguments)
    pytest.importorskip("peft")
    from peft_adapters import write_peft

    adapter = write_peft(tmp_path / "adapter", transformers_model(make_model("qwen2", n_layer=2)))
    fails(tmp_path, says, *arguments, "--lora", adapter)  # the merged copy is not what the user has
