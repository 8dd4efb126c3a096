"""A corrector in memory, and the names of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

SEGMENT = "segment"
ANCHOR_DELTA = "anchor-delta"
CORRECTED_POLICIES = ("single", "refill")  # that correctors are made for; verify drafts as refill decodes
REUSE_RULES = ("previous-state", "anchor-state", ANCHOR_DELTA, SEGMENT)


@dataclass(frozen=True)
class CorrectorData:
    """A corrector as read from any kind of file, or as trained.

    Attributes
    ----------
    reuse : str
        The rule: one of `REUSE_RULES`.
    rank : int
        Rank of the low-rank part.
    alpha : float
        Its scale is ``alpha / rank``.
    tensors : dict of str to float32 array
        GGUF tensor name -> weights; a matrix is [n_out, n_in], a vector [n_embd].
    layers : list of int
        Droppable layers in the order in which they drop as rho grows; empty for ``segment``.
    segments : list of (int, int)
        First and last layer of each run; empty for every rule but ``segment``.
    rho, k : float and int, optional
        The recommended point.
    refresh : {"single", "refill"}, optional
        The refresh policy that it was made for.
    quality : dict, optional
        What was measured, how, and at which point; anything that JSON can hold.
    """

    reuse: str
    rank: int
    alpha: float
    tensors: dict[str, FloatArray]
    layers: list[int]
    segments: list[tuple[int, int]]
    rho: float | None = None
    k: int | None = None
    refresh: str | None = None
    quality: dict[str, Any] | None = None


def layer_tensor(layer: int, part: str) -> str:
    """Return the name of a layer's tensor; `part` is a, b or gate."""
    return f"blk.{layer}.lora_drop_{part}.weight"


def segment_tensor(segment: int, part: str) -> str:
    """Return the name of a run's tensor; `part` is a, b, gate, up, down or carry."""
    return f"lora_drop.seg.{segment}.{part}.weight"


def is_corrector_tensor(name: str) -> bool:
    """Return whether a tensor of a model's file belongs to a corrector in it."""
    return "lora_drop" in name


def is_vector(name: str) -> bool:
    """Return whether a corrector's tensor is a vector; every other one is a matrix."""
    return name.endswith((".lora_drop_gate.weight", ".carry.weight"))
