"""LoRA adapters of the usual kind in the folders that PEFT saves."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loradrop._core import CorrectorError, ModelError
from loradrop_convert.corrector import FloatArray
from loradrop_convert.json_file import JsonObject, read_json
from loradrop_convert.pytorch_file import read_pytorch
from loradrop_convert.safetensors_file import SafetensorsFile

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
# What an adapter with one of these adds is not scale * B A, or not to the weights of the base alone.
_OTHER_METHODS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "layer_replication", "target_parameters", "trainable_token_indices"),
)
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_EMBEDDINGS = {"embed_tokens", "embed_in", "word_embeddings", "wte", "lm_head", "embed_out"}


@dataclass(frozen=True)
class LoraPair:
    """What is added to a weight [n_out, n_in]: ``scale * b @ a``.

    Attributes
    ----------
    a, b : float32 [rank, n_in], [n_out, rank]
        The two matrices.
    scale : float
        PEFT's alpha / rank, or alpha / sqrt(rank).
    embedding : bool
        Whether the weight is an embedding's, which PEFT keeps the other way round.
    """

    a: FloatArray
    b: FloatArray
    scale: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Return the rank."""
        return int(self.a.shape[0])


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter in memory.

    Attributes
    ----------
    path : Path
        Its folder.
    base : str, optional
        The name or the folder of the model that it was trained on.
    fan_in_fan_out : bool
        Whether the weights are stored [n_in, n_out], as those of GPT-2 are.
    pairs : dict of LoraPair
        By the name of the weight in the checkpoint of transformers.
    saved : dict of float32 arrays
        Weights that were trained whole.
    """

    path: Path
    base: str | None
    fan_in_fan_out: bool
    pairs: dict[str, LoraPair]
    saved: dict[str, FloatArray]

    def check_untied(self, where: str, tied: bool) -> None:
        """Check that the adapter leaves an embedding alone that is the output layer too.

        Raises
        ------
        ModelError
            If it does not: PEFT changes one of the two, and a GGUF file holds them as one.
        """
        found = [name for name in (*self.pairs, *self.saved) if _module(name) in _EMBEDDINGS]
        if tied and found:
            raise ModelError(
                f"{self.path}: adapts {found[0]}, but in {where} the embedding and the output layer are one weight, "
                "and the adapter changes only one of the two; save the model untied (tie_word_embeddings false) first"
            )


def is_peft_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder is one that PEFT saved an adapter in."""
    return (Path(path) / CONFIG).is_file()


def weights_file(folder: Path) -> Path:
    """Return the file of an adapter's weights.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: there is no {' or '.join(WEIGHTS)} in it; give the folder of a whole adapter")


def read_peft_adapter(path: str | os.PathLike[str]) -> PeftAdapter:
    """Read the adapter in a folder that PEFT saved. No code of it runs.

    Raises
    ------
    OSError
        If a file is missing or cannot be read.
    ModelError
        If it is no LoRA adapter, one of a kind that is more than two matrices for a weight, or damaged.
    """
    folder = Path(path)
    if not is_peft_folder(folder):
        raise FileNotFoundError(f"{folder}: there is no {CONFIG} in it; give the folder of an adapter that PEFT saved")
    try:
        config = read_json(folder / CONFIG)
        _check_method(config)
        tensors = _read_tensors(weights_file(folder))
        pairs, saved = _sort(config, tensors)
        return PeftAdapter(
            path=folder,
            base=config.get("base_model_name_or_path", str),
            fan_in_fan_out=config.values.get("fan_in_fan_out") is True,
            pairs=pairs,
            saved=saved,
        )
    except CorrectorError as error:  # of the readers that correctors have too
        raise ModelError(str(error)) from error


def _check_method(config: JsonObject) -> None:
    kind = config.get("peft_type", str)
    if kind != "LORA":
        raise config.failure(f"peft_type is {kind!r}; only adapters of type 'LORA' can be converted")
    for key in _OTHER_METHODS:
        if config.values.get(key):
            raise config.failure(
                f"{key} is {str(config.values[key])[:80]}: not plain LoRA, of which alone llama.cpp knows; merge it "
                "into its model with PEFT's merge_and_unload, and convert that"
            )
    start = config.values.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise config.failure(
            f"init_lora_weights is {str(start)[:80]!r}: its training began with other base weights than the model's; "
            "save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...) first"
        )


def _read_tensors(path: Path) -> dict[str, FloatArray]:
    if path.suffix != ".safetensors":
        return read_pytorch(path, lambda name: True)
    file = SafetensorsFile.open(path)
    return {name: file.read(name) for name in file.entries}


def _sort(config: JsonObject, tensors: Mapping[str, FloatArray]) -> tuple[dict[str, LoraPair], dict[str, FloatArray]]:
    """Return the pairs, and the weights that were trained whole."""
    saved: dict[str, FloatArray] = {}
    parts: dict[tuple[str, bool], dict[str, FloatArray]] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(_PREFIX)
        if not np.isfinite(tensor).all():
            raise config.failure(f"its tensor {full_name} holds numbers that are not finite; the training failed")
        if part := _PART.fullmatch(name):
            parts.setdefault((part[1], part[2] is not None), {})[part[3]] = tensor
        elif name == full_name or "lora_" in name:
            raise config.failure(f"its tensor {full_name} is none of plain LoRA's")
        elif not name.endswith(".base_layer.weight"):  # a copy of the base's
            saved[name.replace(".base_layer.", ".")] = tensor
    if not parts:
        raise config.failure("there are no LoRA weights beside it")
    return {f"{name}.weight": _pair(config, name, found, kind) for (name, kind), found in parts.items()}, saved


def _pair(config: JsonObject, module: str, found: Mapping[str, FloatArray], embedding: bool) -> LoraPair:
    if len(found) != 2:
        raise config.failure(f"of {module} there is only lora_{''.join(found)}; the adapter is incomplete")
    a, b = found["A"], found["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise config.failure(f"of {module} lora_A has shape {list(a.shape)}, lora_B {list(b.shape)}; cannot be B A")
    scale = _alpha(config, module) / (math.sqrt(a.shape[0]) if config.values.get("use_rslora") is True else a.shape[0])
    return LoraPair(b.T, a.T, scale, True) if embedding else LoraPair(a, b, scale)


def _alpha(config: JsonObject, module: str) -> float:
    """Return a module's alpha, by PEFT's rule for patterns: the first that matches the end of its name."""
    patterns: dict[str, Any] = config.get("alpha_pattern", dict) or {}
    for pattern in patterns:
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise config.failure(f"alpha_pattern: {pattern!r} is no regular expression ({error})") from error
        if fits:
            return JsonObject(config.path, patterns, "alpha_pattern: ").need(pattern, float)
    return config.need("lora_alpha", float)


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]
