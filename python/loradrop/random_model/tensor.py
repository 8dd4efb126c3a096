"""A tensor that is to be written, before it has values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType


@dataclass(frozen=True)
class RandomTensor:
    """A tensor of random values.

    Attributes
    ----------
    name : str
        As in the file.
    shape : tuple of int
        [n_out, n_in] of a matrix, [n_experts, n_out, n_in] of one for each expert, [n] of a vector.
    type : GGMLQuantizationType
        Of the values in the file.
    std, mean : float
        Of the normal distribution; std = 0 makes all values `mean`.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    std: float
    mean: float = 0.0

    @property
    def n_bytes(self) -> int:
        """Bytes in the file, without padding; its rows must be whole blocks."""
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return prod(self.shape) // block * block_bytes


def matrix(name: str, n_out: int, n_in: int, type_: GGMLQuantizationType, gain: float = 1.0) -> RandomTensor:
    """Return a matrix that gives inputs of unit size outputs of size `gain`."""
    return RandomTensor(name, (n_out, n_in), type_, std=gain * n_in**-0.5)


def expert_matrices(
    name: str, n_experts: int, n_out: int, n_in: int, type_: GGMLQuantizationType, gain: float
) -> RandomTensor:
    """Return a matrix for each expert, as `matrix`."""
    return RandomTensor(name, (n_experts, n_out, n_in), type_, std=gain * n_in**-0.5)


def vector(name: str, n: int, *, mean: float = 0.0, std: float = 0.0) -> RandomTensor:
    """Return a vector, which is F32 in any file."""
    return RandomTensor(name, (n,), GGMLQuantizationType.F32, std, mean)
