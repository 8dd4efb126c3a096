"""LoRA adapters of the usual kind: GGUF files, and folders of PEFT, which are converted once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loradrop._core import Adapter, Model, ModelError
from loradrop.kept import kept_path
from loradrop_convert.adapter_file import write_adapter
from loradrop_convert.gguf_base_config import gguf_base_config
from loradrop_convert.gguf_header import read_header
from loradrop_convert.json_file import read_json
from loradrop_convert.llama_converter import check_requirements
from loradrop_convert.output import complete_file
from loradrop_convert.peft_adapter import CONFIG, is_peft_folder, read_peft_adapter, weights_file

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_VERSION = 1  # of the way in which they are converted
_TYPE = "f32"  # as exact as the adapter, whatever it holds


def check_adapters(adapters: Sequence[tuple[Path, float]]) -> None:
    """Check that adapters are there.

    Raises
    ------
    FileNotFoundError
        If one is neither a file nor a folder of PEFT.
    """
    for path, _ in adapters:
        if path.is_dir() and not is_peft_folder(path):
            raise FileNotFoundError(
                f"lora_path={os.fspath(path)!r}: there is no {CONFIG} in it; give a folder that PEFT saved"
            )
        if not path.exists():
            raise FileNotFoundError(
                f"lora_path={os.fspath(path)!r}: no such file; give the path of a LoRA adapter in GGUF, or the folder "
                "of one that PEFT saved"
            )


def load_adapters(model: Model, adapters: Sequence[tuple[Path, float]]) -> list[tuple[Adapter, float]]:
    """Return adapters of a model with their scales.

    A folder of PEFT is converted once; the file stays in the cache folder, named by its contents and what the converter
    knows of the model.

    Raises
    ------
    ModelError
        If one cannot be used with the model, or cannot be converted.
    OSError
        If a file cannot be read, or the cache folder not be written to.
    """
    loaded = []
    for path, scale in adapters:
        file = converted_adapter(model, path) if path.is_dir() else path
        loaded.append((Adapter(model, os.fspath(file)), scale))
        _check_untied(model, file, path)
    return loaded


def converted_adapter(model: Model, folder: Path) -> Path:
    """Return the GGUF file of an adapter in a folder of PEFT; see `load_adapters`."""
    config = _base_config(model, folder)
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / CONFIG, weights_file(folder))]
    key = (_VERSION, json.dumps(config, sort_keys=True), *contents)
    kept = kept_path("adapters", *key).with_suffix(".gguf")
    if not kept.is_file():
        adapter = read_peft_adapter(folder)
        check_requirements()
        kept.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(kept, force=True) as temporary:
            write_adapter(adapter, config, temporary, _TYPE)
    return kept


def _base_config(model: Model, folder: Path) -> dict[str, Any]:
    if config := gguf_base_config(model.metadata):
        return config
    base = read_json(folder / CONFIG).values.get("base_model_name_or_path")
    if isinstance(base, str) and base and Path(base, "config.json").is_file():
        return read_json(Path(base, "config.json")).values
    raise ModelError(
        f"{folder}: llama.cpp's converter needs the config.json of the adapter's model, which {model.path} of "
        f"architecture {model.arch!r} does not tell, and base_model_name_or_path is {base!r}, no folder here; make a "
        f"file of the adapter (loradrop convert HF_DIR --lora {folder} --adapter -o adapter.gguf) and give that"
    )


def _check_untied(model: Model, file: Path, where: Path) -> None:
    """Check what llama.cpp does not: it would add what is for the embedding to the output layer, and fail at that."""
    if any(tensor.name.startswith(_EMBEDDING) for tensor in read_header(file).tensors):
        try:
            model.tensor_bytes(_OUTPUT)
        except IndexError as error:
            raise ModelError(
                f"{where}: adapts the embedding, which in {model.path} is the output layer too; take an adapter "
                "without it, or a model whose two are apart"
            ) from error
