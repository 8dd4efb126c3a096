"""The model inside a checkpoint of the paper's reference code, as a checkpoint that llama.cpp's converter knows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from loradrop._core import ModelError
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.json_file import JsonObject, read_json
from loradrop_convert.output import check_space
from loradrop_convert.pytorch_file import read_raw_pytorch
from loradrop_convert.reference_checkpoint import CONFIG, weight_files
from loradrop_convert.safetensors_file import RawTensor, SafetensorsFile, write_raw_safetensors

_TOKENIZER_CONFIG = "tokenizer_config.json"
_COPIED = (".json", ".jinja", ".md", ".model", ".txt")
# The second is made by the reference code and used nowhere in it.
_ADDED = (".lora_adapter.", ".post_lora_layernorm.")
_LAYER_PARTS = (
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    *("self_attn.o_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
)


def write_reference_base(checkpoint: Path, folder: Path, progress: Progress | None = None) -> None:
    """Write the model of a checkpoint of the reference code into a new folder, as a Qwen2 checkpoint.

    Weights are copied block by block, in the types they have; PyTorch files become safetensors.

    Raises
    ------
    ModelError
        If weights of the model are missing.
    CorrectorError
        If a file is damaged, or PyTorch is needed and missing.
    OSError
        If a file cannot be read, or the room on the disk runs out.
    """
    config = read_json(checkpoint / CONFIG)
    folder.mkdir()
    _copy_other_files(checkpoint, folder)
    _write_json(folder / CONFIG, {**config.values, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})
    copied: set[str] = set()
    n_bytes = 0
    for i, path in enumerate(weight_files(checkpoint)):
        tensors = _base_tensors(path)
        if tensors:
            n_bytes += _write_shard(folder / f"model-{i:05}.safetensors", tensors)
            copied |= tensors.keys()
        if progress is not None:
            progress(f"copying weights of {checkpoint.name}", n_bytes, None)
    _check_complete(config, copied)


def _base_tensors(path: Path) -> dict[str, RawTensor]:
    if path.suffix != ".safetensors":
        return read_raw_pytorch(path, _is_base)
    file = SafetensorsFile.open(path)
    return {name: file.raw(name) for name in file.entries if _is_base(name)}


def _is_base(name: str) -> bool:
    return not any(part in name for part in _ADDED)


def _write_shard(path: Path, tensors: dict[str, RawTensor]) -> int:
    n_bytes = sum(tensor.n_bytes for tensor in tensors.values())
    check_space(path, n_bytes)
    write_raw_safetensors(path, tensors)
    return n_bytes


def _check_complete(config: JsonObject, copied: set[str]) -> None:
    n_layer = config.need("num_hidden_layers", int)
    layers = [f"model.layers.{i}.{part}" for i in range(n_layer) for part in _LAYER_PARTS]
    missing = [name for name in ("model.embed_tokens.weight", *layers, "model.norm.weight") if name not in copied]
    if not missing:
        return
    checkpoint = config.path.parent
    if not copied:
        raise ModelError(
            f"{checkpoint}: holds a corrector alone; convert the model that it was trained on "
            f"with --corrector {checkpoint}"
        )
    raise ModelError(f"{checkpoint}: tensor {missing[0]} is missing")


def _copy_other_files(checkpoint: Path, folder: Path) -> None:
    for path in checkpoint.iterdir():
        if path.is_file() and path.suffix in _COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    if (checkpoint / _TOKENIZER_CONFIG).is_file():
        values = read_json(checkpoint / _TOKENIZER_CONFIG).values
        # The reference gives Qwen2's tokenizer a name that only its own code knows.
        name = str(values.get("tokenizer_class", "")).replace("Qwen2_Lora_Drop", "Qwen2")
        _write_json(folder / _TOKENIZER_CONFIG, values | ({"tokenizer_class": name} if name else {}))


def _write_json(path: Path, values: dict[str, object]) -> None:
    # These name Python files, which are not copied and not needed.
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "auto_map"}), encoding="utf-8")
