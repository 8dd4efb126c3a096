"""How a corrector's tensors are stored: F16 or Q8_0 matrices, F32 vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from loradrop._core import CorrectorError
from loradrop_convert.corrector import SEGMENT, CorrectorData, FloatArray, is_vector
from loradrop_convert.gguf_header import Header, TensorInfo

StorageType = Literal["f16", "q8_0"]
STORAGE_TYPES: tuple[StorageType, ...] = ("f16", "q8_0")

_READABLE = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0}


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file, to be copied in blocks."""

    path: Path
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a GGUF file holds it.

    Attributes
    ----------
    ne : tuple of int
        Shape in ggml's order, the contiguous dimension first.
    type : int
        ggml's number of the type.
    data : array of uint8 or FileRange
        Its bytes, or where they are.
    """

    name: str
    ne: tuple[int, ...]
    type: int
    data: npt.NDArray[np.uint8] | FileRange

    @property
    def n_bytes(self) -> int:
        """Return the size of the data, without padding."""
        return self.data.n_bytes if isinstance(self.data, FileRange) else self.data.nbytes


def in_file(header: Header, info: TensorInfo) -> StoredTensor:
    """Return a tensor of a file as something that can be written to another one."""
    return StoredTensor(info.name, info.ne, info.type, FileRange(header.path, info.offset, info.n_bytes))


def encode(corrector: CorrectorData, type_: StorageType, where: str) -> list[StoredTensor]:
    """Return a corrector's tensors as a file is to hold them.

    Parameters
    ----------
    type_ : {"f16", "q8_0"}
        Of the matrices; vectors are always F32. Q8_0 holds for matrices of ``segment`` whose rows
        are whole blocks of 32, other matrices become F16.
    where : str
        What an error calls the corrector.

    Raises
    ------
    ValueError
        If `type_` is neither.
    CorrectorError
        If a weight is too large for the type.
    """
    if type_ not in STORAGE_TYPES:
        raise ValueError(f"type={type_!r}: give one of {', '.join(map(repr, STORAGE_TYPES))}")
    stored = []
    for name, tensor in corrector.tensors.items():
        chosen = _chosen_type(name, tensor, type_, corrector.reuse)
        with np.errstate(all="ignore"):  # what is too large shows as infinity or NaN
            data = quantize(np.ascontiguousarray(tensor), chosen)
            fits = bool(np.isfinite(dequantize(data, chosen)).all())
        if not fits:
            raise CorrectorError(
                f"{where}: tensor {name} holds {np.abs(tensor).max():g}, too large for {chosen.name}; "
                "scale it down, and alpha or the other matrix up"
            )
        stored.append(StoredTensor(name, tensor.shape[::-1], int(chosen), data.reshape(-1).view(np.uint8)))
    return stored


def decode(header: Header, info: TensorInfo) -> FloatArray:
    """Return a corrector's tensor of a file as float32, a matrix as [n_out, n_in].

    Raises
    ------
    CorrectorError
        If it has a type that correctors do not have.
    """
    if info.type not in _READABLE:
        raise header.failure(f"tensor {info.name} has type {type_name(info.type)}, expected f32, f16 or q8_0")
    with open(header.path, "rb") as file:
        file.seek(info.offset)
        data = np.frombuffer(file.read(info.n_bytes), np.uint8)
    if data.size != info.n_bytes:
        raise header.failure(f"tensor {info.name} cannot be read to its end")
    shape = info.ne[::-1]
    if not data.size:
        return np.zeros(shape, np.float32)
    values = dequantize(data.reshape(*shape[:-1], -1), GGMLQuantizationType(info.type))
    if is_vector(info.name) and values.size == shape[-1]:
        shape = shape[-1:]  # some writers keep a dimension of 1
    return np.asarray(values, np.float32).reshape(shape)


def type_name(type_: int) -> str:
    """Return the name of one of ggml's types, in lower case."""
    try:
        return GGMLQuantizationType(type_).name.lower()
    except ValueError:
        return f"number {type_}"


def _chosen_type(name: str, tensor: FloatArray, type_: StorageType, reuse: str) -> GGMLQuantizationType:
    if is_vector(name):
        return GGMLQuantizationType.F32
    # The engine splits rows of 3 n_embd at n_embd: they are whole blocks exactly where n_embd is.
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    if type_ == "q8_0" and reuse == SEGMENT and tensor.shape[-1] % block == 0:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType.F16
