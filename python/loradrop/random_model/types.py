"""Types of the weights: which there are, which the output head gets, and which rows they can hold."""

from __future__ import annotations

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from loradrop._core import quantize_types
from loradrop.checks import check_choice
from loradrop.random_model.shape import Shape

_OUTPUT = GGMLQuantizationType.Q6_K
_OUTPUT_FALLBACK = GGMLQuantizationType.Q8_0


def weight_types() -> list[str]:
    """Return the types of a single tensor that llama.cpp's quantiser makes; mixtures such as q4_k_m are none."""
    known = {type_.name.lower() for type_ in GGMLQuantizationType}
    return [name for name in quantize_types() if name in known]


def choose_types(
    shape: Shape, type_: str, output_type: str | None
) -> tuple[GGMLQuantizationType, GGMLQuantizationType]:
    """Return the types of the matrices and of the output head.

    Parameters
    ----------
    type_ : str
        Of the matrices, one of `weight_types`.
    output_type : str, optional
        None takes Q6_K if `type_` has fewer bits, Q8_0 where the rows are no whole blocks of Q6_K (as llama.cpp's
        quantiser does), and else `type_`.

    Raises
    ------
    ValueError
        If a type is unknown, or the model's rows are not whole blocks of it.
    """
    weights = GGMLQuantizationType[check_choice("type", type_, weight_types()).upper()]
    _check_rows(shape, ("embd", "ff"), f"type={type_!r}", weights)
    if output_type is not None:
        output = GGMLQuantizationType[check_choice("output_type", output_type, weight_types()).upper()]
        _check_rows(shape, ("embd",), f"output_type={output_type!r}", output)
        return weights, output
    if _bits(weights) >= _bits(_OUTPUT):
        return weights, weights
    return weights, _OUTPUT_FALLBACK if shape.embd % GGML_QUANT_SIZES[_OUTPUT][0] else _OUTPUT


def _bits(type_: GGMLQuantizationType) -> float:
    """Return the bits of a weight."""
    block, block_bytes = GGML_QUANT_SIZES[type_]
    return 8 * block_bytes / block


def _check_rows(shape: Shape, fields: tuple[str, ...], asked: str, type_: GGMLQuantizationType) -> None:
    block, _ = GGML_QUANT_SIZES[type_]
    for field in fields:
        n = getattr(shape, field)
        if n % block:
            raise ValueError(f"{field}={n}: {asked} stores rows as whole blocks of {block}, which it is no multiple of")
