"""LoRA adapters of PEFT as GGUF files, by llama.cpp's converter."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loradrop._core import ModelError
from loradrop_convert.corrector import FloatArray
from loradrop_convert.gguf_writer import Progress
from loradrop_convert.llama_converter import run_lora_converter
from loradrop_convert.output import no_room_names
from loradrop_convert.peft_adapter import CONFIG, WEIGHTS, PeftAdapter
from loradrop_convert.safetensors_file import write_safetensors

_CARD = "README.md"


def write_adapter(
    adapter: PeftAdapter,
    base_config: Mapping[str, Any],
    out: Path,
    outtype: str,
    progress: Progress | None = None,
) -> None:
    """Write an adapter as GGUF.

    Parameters
    ----------
    base_config : dict
        The ``config.json`` of the model that it adapts.
    out : Path
        The new file. If the converter fails a part of it may be left.
    outtype : str
        One of `llama_converter.DIRECT_TYPES`.

    Raises
    ------
    ModelError
        If the adapter has what a GGUF adapter cannot hold, or the converter fails.
    OSError
        If the room on the disk runs out.
    """
    if adapter.saved:
        raise ModelError(
            f"{adapter.path}: {next(iter(adapter.saved))} was trained whole (modules_to_save or bias), which an "
            "adapter file cannot hold; merge the adapter into the weights instead (loradrop convert HF_DIR --lora)"
        )
    with no_room_names(out), tempfile.TemporaryDirectory(prefix=".loradrop-", dir=out.parent) as work:
        base = Path(work, "base")
        base.mkdir()
        _write_json(base / "config.json", {key: value for key, value in base_config.items() if key != "auto_map"})
        # The converter makes the adapter's name from the folder's.
        plain = Path(work, "adapter", adapter.path.absolute().name)
        plain.mkdir(parents=True)
        _write_plain(adapter, plain)
        try:
            run_lora_converter(plain, base, out, outtype, progress)
        except ModelError as error:
            what = str(error).replace(os.fspath(plain), os.fspath(adapter.path))
            raise ModelError(f"{what}; merge it into the weights instead (loradrop convert HF_DIR --lora)") from error


def _write_plain(adapter: PeftAdapter, folder: Path) -> None:
    """Write an adapter so that what is added to each weight is alpha / rank * B A, which alone the converter knows."""
    alphas = {name: pair.scale * pair.rank for name, pair in adapter.pairs.items()}
    alpha = next((alpha for alpha in alphas.values() if alpha), 1.0)
    tensors: dict[str, FloatArray] = {}
    for name, pair in adapter.pairs.items():
        b = pair.b * np.float32(alphas[name] / alpha)
        module = "base_model.model." + name.removesuffix(".weight")
        if pair.embedding:
            tensors |= {f"{module}.lora_embedding_A": b.T, f"{module}.lora_embedding_B": pair.a.T}
        elif adapter.fan_in_fan_out and not name.endswith("lm_head.weight"):
            tensors |= {f"{module}.lora_A.weight": b.T, f"{module}.lora_B.weight": pair.a.T}
        else:
            tensors |= {f"{module}.lora_A.weight": pair.a, f"{module}.lora_B.weight": b}
    write_safetensors(folder / WEIGHTS[0], tensors)
    _write_json(folder / CONFIG, {"lora_alpha": alpha})
    if (adapter.path / _CARD).is_file():
        shutil.copyfile(adapter.path / _CARD, folder / _CARD)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")
