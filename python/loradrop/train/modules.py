"""Between the tensors of a corrector file and the torch modules that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from loradrop.train.rules import LayerCorrector, SegmentCorrector
from loradrop.train.simulate import Run

Tensors = dict[str, NDArray[np.float32]]


def layer_prefix(layer: int) -> str:
    """Return how the names of a layer's tensors begin."""
    return f"blk.{layer}.lora_drop_"


def segment_prefix(index: int) -> str:
    """Return how the names of a segment's tensors begin."""
    return f"lora_drop.seg.{index}."


def module_tensors(module: nn.Module, prefix: str) -> Tensors:
    """Return a corrector's parameters under their names in a file."""
    return {
        f"{prefix}{name}.weight": parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in module.named_parameters()
    }


def load_module(module: nn.Module, prefix: str, tensors: Mapping[str, NDArray[np.float32]]) -> nn.Module:
    """Fill a corrector's parameters from a file's tensors; what the file lacks counts as zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            tensor = tensors.get(f"{prefix}{name}.weight")
            parameter.copy_(torch.zeros_like(parameter) if tensor is None else torch.tensor(np.asarray(tensor)))
    return module


def layer_runs(
    reuse: str, layers: Sequence[int], n_embd: int, rank: int, scale: float, tensors: Mapping[str, NDArray[np.float32]]
) -> list[Run]:
    """Return one run for each layer, with what `tensors` holds for it."""
    return [
        Run(i, i, load_module(LayerCorrector(reuse, n_embd, rank, scale), layer_prefix(i), tensors))
        for i in sorted(layers)
    ]


def segment_run(
    segments: Sequence[tuple[int, int]],
    index: int,
    n_embd: int,
    rank: int,
    scale: float,
    tensors: Mapping[str, NDArray[np.float32]],
) -> Run:
    """Return the run of one segment, with what `tensors` holds for it."""
    prefix = segment_prefix(index)
    down = tensors.get(f"{prefix}down.weight")
    module = SegmentCorrector(n_embd, rank, 0 if down is None else down.shape[1], scale)
    return Run(*segments[index], load_module(module, prefix, tensors))
