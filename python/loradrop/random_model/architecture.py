"""Which tensors a model of an architecture has; the names are those of the package ``gguf``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf import MODEL_TENSOR, TENSOR_NAMES, GGMLQuantizationType

from loradrop.random_model.tensor import RandomTensor, expert_matrices, matrix, vector

if TYPE_CHECKING:
    from loradrop.random_model.shape import Shape

_T = MODEL_TENSOR
_BIAS_STD = 0.1


@dataclass(frozen=True)
class Architecture:
    """What an architecture has besides what all have: attention and a gated feed-forward part, with a norm before each.

    Attributes
    ----------
    biases : tuple of MODEL_TENSOR
        Matrices with a bias.
    head_norms : tuple of MODEL_TENSOR
        Norms over the channels of a head.
    experts : bool
        Whether its feed-forward part can be a mixture of experts.
    """

    biases: tuple[MODEL_TENSOR, ...] = ()
    head_norms: tuple[MODEL_TENSOR, ...] = ()
    experts: bool = False


ARCHITECTURES = {
    "llama": Architecture(experts=True),
    "qwen2": Architecture(biases=(_T.ATTN_Q, _T.ATTN_K, _T.ATTN_V)),
    "qwen3": Architecture(head_norms=(_T.ATTN_Q_NORM, _T.ATTN_K_NORM)),
}


def model_tensors(
    shape: Shape, type_: GGMLQuantizationType, output_type: GGMLQuantizationType
) -> Iterator[RandomTensor]:
    """Yield the tensors of a model, scaled as real ones are.

    A row of n values has standard deviation n^-1/2, which keeps the size of what passes through. What a layer adds to
    the residual stream is smaller by (2 layers)^-1/2, so that all of them together add about as much as one of them
    would: the initialisation of GPT-2 (Radford et al. 2019, section 2.3). Norms are ones.

    Parameters
    ----------
    type_ : GGMLQuantizationType
        Of the matrices.
    output_type : GGMLQuantizationType
        Of the matrix that gives the logits: the token embedding if it is tied.
    """
    n = shape.embd
    yield matrix(_name(_T.TOKEN_EMBD), shape.vocab, n, output_type if shape.tied else type_)
    for layer in range(shape.layers):
        yield from _layer_tensors(shape, layer, type_)
    yield vector(_name(_T.OUTPUT_NORM), n, mean=1.0)
    if not shape.tied:
        yield matrix(_name(_T.OUTPUT), shape.vocab, n, output_type)


def _layer_tensors(shape: Shape, layer: int, type_: GGMLQuantizationType) -> Iterator[RandomTensor]:
    arch = ARCHITECTURES[shape.arch]
    n, n_kv = shape.embd, shape.kv_heads * shape.head_size
    to_residual = (2 * shape.layers) ** -0.5
    yield vector(_name(_T.ATTN_NORM, layer), n, mean=1.0)
    for tensor, n_out, n_in, gain in (
        (_T.ATTN_Q, n, n, 1.0),
        (_T.ATTN_K, n_kv, n, 1.0),
        (_T.ATTN_V, n_kv, n, 1.0),
        (_T.ATTN_OUT, n, n, to_residual),
    ):
        yield matrix(_name(tensor, layer), n_out, n_in, type_, gain)
        if tensor in arch.biases:
            yield vector(_name(tensor, layer, "bias"), n_out, std=_BIAS_STD)
    for tensor in arch.head_norms:
        yield vector(_name(tensor, layer), shape.head_size, mean=1.0)
    yield vector(_name(_T.FFN_NORM, layer), n, mean=1.0)
    yield from _feed_forward(shape, layer, type_, to_residual)


def _feed_forward(shape: Shape, layer: int, type_: GGMLQuantizationType, to_residual: float) -> Iterator[RandomTensor]:
    n, n_ff = shape.embd, shape.ff
    if not shape.experts:
        yield matrix(_name(_T.FFN_GATE, layer), n_ff, n, type_)
        yield matrix(_name(_T.FFN_UP, layer), n_ff, n, type_)
        yield matrix(_name(_T.FFN_DOWN, layer), n, n_ff, type_, to_residual)
        return
    yield matrix(_name(_T.FFN_GATE_INP, layer), shape.experts, n, GGMLQuantizationType.F32)
    yield expert_matrices(_name(_T.FFN_GATE_EXP, layer), shape.experts, n_ff, n, type_, 1.0)
    yield expert_matrices(_name(_T.FFN_UP_EXP, layer), shape.experts, n_ff, n, type_, 1.0)
    yield expert_matrices(_name(_T.FFN_DOWN_EXP, layer), shape.experts, n, n_ff, type_, to_residual)


def _name(tensor: MODEL_TENSOR, layer: int | None = None, part: str = "weight") -> str:
    return f"{TENSOR_NAMES[tensor].format(bid=layer)}.{part}"
