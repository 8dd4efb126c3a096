"""Checkpoints of the paper's reference code (github.com/hosseinbv/LoRA-Drop), model type ``qwen2_lora_drop``.

Every decoder layer has ``lora_adapter.A`` [rank, n_embd] and ``lora_adapter.B`` [n_embd, rank] there; those of layers
that never drop are untrained and left out here. What the reference code fixes in its model class is fixed here too:
the rule, which layers drop, and the defaults of the numbers that a config may lack.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from loradrop._core import CorrectorError
from loradrop_convert.base import BaseInfo
from loradrop_convert.corrector import CorrectorData, FloatArray, layer_tensor
from loradrop_convert.json_file import JsonObject, read_json
from loradrop_convert.pytorch_file import read_pytorch
from loradrop_convert.safetensors_file import SafetensorsFile

CONFIG = "config.json"
MODEL_TYPE = "qwen2_lora_drop"

_ARCH = "qwen2"
_DEFAULT_RANK = 8
_DEFAULT_ALPHA = 16.0
_DEFAULT_CYCLE = 4
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pt", "*.pth")
_NO_WEIGHTS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt"}


def read_reference_checkpoint(path: str | os.PathLike[str]) -> CorrectorData:
    """Return the corrector in a checkpoint's folder, with or without base weights in it.

    The reference drops layer i where ``i > 0 and i % 4 != 0``, all of them at once. The model's
    last layer is left out here: it always runs in the engine. At a rho smaller than that the middle
    layers go first, as they do in the engine without a corrector.

    Raises
    ------
    OSError
        If a file is missing or cannot be read.
    CorrectorError
        If the config or a tensor is not as it should be, or PyTorch is needed and missing.
    """
    folder = Path(path)
    config = _read_config(folder)
    base = _base(config)
    layers = reference_layers(base.n_layer)
    if not layers:
        raise config.failure(f"num_hidden_layers is {base.n_layer}, too few for a layer to drop")
    found = _read_tensors(folder, {_name(i, part) for i in layers for part in "AB"})
    return CorrectorData(
        reuse="anchor-state",
        rank=_rank(config),
        alpha=_alpha(config),
        tensors={layer_tensor(i, part.lower()): found[_name(i, part)] for i in layers for part in "AB"},
        layers=layers,
        segments=[],
        rho=len(layers) / base.n_layer,
        k=_cycle(config) - 1,
    )


def read_reference_base(path: str | os.PathLike[str]) -> BaseInfo:
    """Return the model that a checkpoint's config describes; its layout hash is not known."""
    return _base(_read_config(Path(path)))


def reference_layers(n_layer: int) -> list[int]:
    """Return the layers that the reference drops and the engine can, the middle ones first."""
    layers = [i for i in range(1, n_layer - 1) if i % 4 != 0]
    return sorted(layers, key=lambda i: abs(i - n_layer / 2))


def is_reference_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder's config says that it is a checkpoint of the reference code."""
    config = Path(path) / CONFIG
    return config.is_file() and read_json(config).values.get("model_type") == MODEL_TYPE


def weight_files(path: str | os.PathLike[str], patterns: Sequence[str] = _PATTERNS) -> list[Path]:
    """Return the files that hold a checkpoint's weights: those that its index names, else of the first pattern."""
    return _indexed_files(Path(path)) or _weight_files(Path(path), patterns)


def _name(layer: int, part: str) -> str:
    return f"model.layers.{layer}.lora_adapter.{part}.weight"


# --- config -------------------------------------------------------------------------------------


def _read_config(folder: Path) -> JsonObject:
    config = read_json(folder / CONFIG)
    model_type = config.get("model_type", str)
    if model_type != MODEL_TYPE:
        raise config.failure(f"model_type is {model_type!r}, expected {MODEL_TYPE!r}, a checkpoint of the reference")
    return config


def _base(config: JsonObject) -> BaseInfo:
    n_layer, n_embd = config.need("num_hidden_layers", int), config.need("hidden_size", int)
    return BaseInfo(_ARCH, n_layer, n_embd, None)


def _rank(config: JsonObject) -> int:
    rank = config.get("lora_rank", int)
    return _DEFAULT_RANK if rank is None else rank


def _alpha(config: JsonObject) -> float:
    alpha = config.get("lora_alpha", float)
    return _DEFAULT_ALPHA if alpha is None else alpha


def _cycle(config: JsonObject) -> int:
    cycle = config.get("drop_cycle", int)
    cycle = _DEFAULT_CYCLE if cycle is None else cycle
    if cycle < 1:
        raise config.failure(f"drop_cycle is {cycle}, expected at least 1")
    return cycle


# --- tensors ------------------------------------------------------------------------------------


def _read_tensors(folder: Path, names: set[str]) -> dict[str, FloatArray]:
    found: dict[str, FloatArray] = {}
    files = _indexed_files(folder, names) or _weight_files(folder)
    for path in files:
        found |= _read_file(path, names)
    if missing := sorted(names - found.keys()):
        where = ", ".join(path.name for path in files) or "a folder without weights"
        raise CorrectorError(f"{folder}: tensor {missing[0]} is missing (looked into {where})")
    return found


def _read_file(path: Path, names: set[str]) -> dict[str, FloatArray]:
    if path.suffix != ".safetensors":
        return read_pytorch(path, names.__contains__)
    file = SafetensorsFile.open(path)
    return {name: file.read(name) for name in file.entries if name in names}


def _indexed_files(folder: Path, names: set[str] | None = None) -> list[Path]:
    """Return the shards that hold the tensors, all shards without names; none if the folder has no index."""
    for index in _INDEXES:
        if (folder / index).is_file():
            config = read_json(folder / index)
            shards = config.need("weight_map", dict)
            names = set(shards) if names is None else names
            if missing := sorted(names - shards.keys()):
                raise config.failure(f"weight_map does not name {missing[0]}")
            files = sorted({str(shards[name]) for name in names})
            for file in files:
                if PurePath(file).name != file or not (folder / file).is_file():
                    raise config.failure(f"weight_map names {file}, which is not in the folder")
            return [folder / file for file in files]
    return []


def _weight_files(folder: Path, patterns: Sequence[str] = _PATTERNS) -> list[Path]:
    for pattern in patterns:
        if files := sorted(file for file in folder.glob(pattern) if file.name not in _NO_WEIGHTS):
            return files
    return []
