"""How many bytes of weights each kind of step reads, and how many products it computes, from the heads of the files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from gguf import GGUFValueType

from loradrop._core import Corrector, Model
from loradrop.options import Drop
from loradrop_convert.base import base_of, read_model_header
from loradrop_convert.corrector import SEGMENT, is_corrector_tensor, is_vector, layer_tensor, segment_tensor
from loradrop_convert.gguf_header import Header, TensorInfo, read_header

_LOOKED_UP = ("token_embd.weight", "position_embd.weight")  # a token reads one row
_OUTPUT = "output.weight"
_LAYER = re.compile(r"blk\.(\d+)\.")
# of their three thirds one meets x_t, and the others meet the anchor's states
_SPLIT_PARTS = ("a", "gate", "up")


@dataclass(frozen=True)
class StepBytes:
    """Bytes of weights that a step of one token reads.

    Attributes
    ----------
    full : int
        A step of the full model: all layers, norms and the output head, and one row of a token embedding that is not
        the output head too; of a mixture's experts those that a token uses.
    refresh : int
        A refresh step: `full`, and what of the corrector meets the anchor's states alone.
    lora : int
        A LoRA step: `full` without the dropped layers, and the rest of the corrector.
    head : int
        The output head, which is in all of them.
    """

    full: int
    refresh: int
    lora: int
    head: int

    def with_draft_head(self, n_bytes: int) -> StepBytes:
        """Return what is read where LoRA steps have an output head of `n_bytes`; 0 is the model's own."""
        return dataclasses.replace(self, lora=self.lora + n_bytes - self.head) if n_bytes else self


def step_bytes(model: Model, drop: Drop) -> StepBytes:
    """Return the bytes of weights that the steps of a point read.

    Not counted are the K/V cache, activations and the corrector's states of a sequence: a few rows a layer each,
    except for the cache of long texts, which LoRA-Drop makes smaller too. There the speed-up may exceed the ceiling.

    Parameters
    ----------
    drop : Drop
        What the point comes to; `FULL` for the full model.

    Raises
    ------
    ModelError
        If the file is one part of several.
    """
    header = read_model_header(model.path)
    layers, rest = _model_bytes(header)
    full = rest + sum(layers)
    head = _head_bytes(header)
    if drop.corrector is None:
        return StepBytes(full, full, full, head)
    dropped = drop.dropped_layers(model.n_layer)
    lora, anchor = (0, 0) if drop.corrector.is_none else _corrector_bytes(drop.corrector, dropped)
    return StepBytes(full, full + anchor, full - sum(layers[i] for i in dropped) + lora, head)


def step_products(model: Model) -> int:
    """Return how many products of a quantised weight with an activation a full step computes for each token.

    Activations are quantised for them to bytes. Not counted are products of other weights and those of the attention.

    Raises
    ------
    ModelError
        If the file is one part of several.
    """
    layers, rest = _model_sums(read_model_header(model.path), _products)
    return rest + sum(layers)


def _head_bytes(header: Header) -> int:
    sizes = {tensor.name: tensor.n_bytes for tensor in header.tensors}
    return sizes[_OUTPUT] if _OUTPUT in sizes else sizes.get(_LOOKED_UP[0], 0)


def _model_bytes(header: Header) -> tuple[list[int], int]:
    """Return the bytes of each layer, and those of what else a step reads."""
    return _model_sums(header, _read_bytes)


def _read_bytes(tensor: TensorInfo, is_looked_up: bool) -> int:
    return tensor.n_bytes // tensor.ne[1] if is_looked_up else tensor.n_bytes


def _products(tensor: TensorInfo, is_looked_up: bool) -> int:
    n_weights = prod(tensor.ne)
    is_quantised = tensor.n_bytes < 2 * n_weights  # F16 and BF16 take two bytes
    return n_weights if is_quantised and not is_looked_up else 0


def _model_sums(header: Header, amount: Callable[[TensorInfo, bool], int]) -> tuple[list[int], int]:
    """Return the sum of an amount over the tensors of each layer, and over what else a step of one token reads.

    Parameters
    ----------
    amount : callable
        Of a tensor, of which all counts unless a token looks up a row; of a mixture's experts all.
    """
    layers, rest = [0] * base_of(header).n_layer, 0
    tied = all(tensor.name != _OUTPUT for tensor in header.tensors)
    used_experts = _used_experts(header)
    for tensor in header.tensors:
        if is_corrector_tensor(tensor.name):
            continue
        n = amount(tensor, _is_looked_up(tensor, tied))
        if "_exps." in tensor.name:
            n = round(n * used_experts)
        layer = _LAYER.match(tensor.name)
        if layer is None:
            rest += n
        elif int(layer[1]) < len(layers):  # llama.cpp does not load layers for multi-token prediction
            layers[int(layer[1])] += n
    return layers, rest


def _is_looked_up(tensor: TensorInfo, tied: bool) -> bool:
    return tensor.name in _LOOKED_UP and not (tied and tensor.name == _LOOKED_UP[0])


def _used_experts(header: Header) -> float:
    """Return the share of a mixture's experts that a token uses."""
    arch = header.need("general.architecture", GGUFValueType.STRING)
    there = header.get(f"{arch}.expert_count", GGUFValueType.UINT32)
    used = header.get(f"{arch}.expert_used_count", GGUFValueType.UINT32)
    return used / there if there and used else 1.0


def _corrector_bytes(corrector: Corrector, dropped: tuple[int, ...]) -> tuple[int, int]:
    """Return the bytes that a LoRA step reads, and those that a refresh step reads."""
    sizes = {tensor.name: tensor.n_bytes for tensor in read_header(corrector.path).tensors}
    if corrector.reuse != SEGMENT:
        parts = [layer_tensor(layer, part) for layer in dropped for part in ("a", "b", "gate")]
        lora = sum(sizes.get(name, 0) for name in parts if not is_vector(name))
        return lora, sum(sizes.get(name, 0) for name in parts) - lora
    run = corrector.segments.index((dropped[0], dropped[-1]))
    lora = sum(sizes.get(segment_tensor(run, part), 0) for part in ("b", "down"))
    split = sum(sizes.get(segment_tensor(run, part), 0) for part in _SPLIT_PARTS)
    carry = sizes.get(segment_tensor(run, "carry"), 0)
    return lora + split // 3, split - split // 3 + carry
