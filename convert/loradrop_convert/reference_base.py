"""The model inside a checkpoint of the paper's reference code, as a checkpoint that llama.cpp's converter knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loradrop._core import ModelError
from loradrop_convert.checkpoint_files import copy_other_files, read_raw, write_shard
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.json_file import JsonObject, read_json
from loradrop_convert.reference_checkpoint import CONFIG, weight_files

_TOKENIZER_CONFIG = "tokenizer_config.json"
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
    copy_other_files(checkpoint, folder)
    _repair_tokenizer_config(folder / _TOKENIZER_CONFIG)
    _write_json(folder / CONFIG, reference_base_config(config.values))
    copied: set[str] = set()
    n_bytes = 0
    for i, path in enumerate(weight_files(checkpoint)):
        tensors = read_raw(path, _is_base)
        if tensors:
            n_bytes += write_shard(folder, i, tensors)
            copied |= tensors.keys()
        if progress is not None:
            progress(f"copying weights of {checkpoint.name}", n_bytes, None)
    _check_complete(config, copied)


def reference_base_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the model inside a checkpoint of the reference code."""
    return {**config, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def _is_base(name: str) -> bool:
    return not any(part in name for part in _ADDED)


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


def _repair_tokenizer_config(path: Path) -> None:
    if path.is_file():
        values = read_json(path).values
        # The reference gives Qwen2's tokenizer a name that only its own code knows.
        name = str(values.get("tokenizer_class", "")).replace("Qwen2_Lora_Drop", "Qwen2")
        _write_json(path, values | ({"tokenizer_class": name} if name else {}))


def _write_json(path: Path, values: dict[str, object]) -> None:
    # These name Python files, which are not copied and not needed.
    path.write_text(json.dumps({k: v for k, v in values.items() if k != "auto_map"}), encoding="utf-8")
