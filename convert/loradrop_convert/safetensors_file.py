"""Tensors of safetensors files, read one by one, BF16 too, which the package ``safetensors`` cannot give NumPy."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loradrop._core import CorrectorError
from loradrop_convert.corrector import FloatArray

_MAX_HEAD = 100_000_000  # the format's own limit
_BLOCK = 1 << 22
FLOAT_TYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True)
class RawTensor:
    """A tensor of any type, to be written as it is.

    Attributes
    ----------
    dtype : str
        The format's name of its type.
    shape : list of int
        In PyTorch's order.
    n_bytes : int
        Size of the data.
    blocks : iterable of bytes
        The data, made when it is asked for, once.
    """

    dtype: str
    shape: list[int]
    n_bytes: int
    blocks: Iterable[bytes | memoryview]

    def floats(self) -> FloatArray:
        """Return the data as float32; its type must be one of `FLOAT_TYPES`."""
        data = np.frombuffer(b"".join(self.blocks), FLOAT_TYPES[self.dtype])
        if self.dtype == "BF16":
            data = (data.astype(np.uint32) << 16).view(np.float32)
        return data.astype(np.float32).reshape(self.shape)


@dataclass(frozen=True)
class SafetensorsFile:
    """A file's list of tensors.

    Attributes
    ----------
    entries : dict
        Name -> ``dtype``, ``shape`` and ``data_offsets``, checked against the file's size.
    begin : int
        Where the data begins, in bytes.
    """

    path: Path
    entries: dict[str, dict[str, Any]]
    begin: int

    @staticmethod
    def open(path: str | os.PathLike[str]) -> SafetensorsFile:
        """Read the list.

        Raises
        ------
        OSError
            If the file cannot be read.
        CorrectorError
            If it is no whole safetensors file.
        """
        path = Path(path)
        size = path.stat().st_size
        with open(path, "rb") as file:
            n = int.from_bytes(file.read(8), "little")
            if size < 8 or n > min(size - 8, _MAX_HEAD):
                raise _failure(path, f"its {size} bytes end inside its head; the file is truncated or something else")
            try:
                entries = json.loads(file.read(n))
            except (ValueError, RecursionError) as error:
                raise _failure(path, f"its head is not JSON ({error})") from error
        if not isinstance(entries, dict):
            raise _failure(path, "its head is not a JSON object")
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            if not _is_entry(entry):
                raise _failure(path, f"tensor {name} is described by {str(entry)[:80]}")
            if entry["data_offsets"][1] > size - 8 - n:
                raise _failure(path, f"tensor {name} ends after the end of the file; the file is truncated")
        return SafetensorsFile(path, entries, 8 + n)

    def read(self, name: str) -> FloatArray:
        """Return a tensor as float32.

        Raises
        ------
        CorrectorError
            If it has no floating-point type that is known here, or its size is not that of its shape.
        """
        tensor = self.raw(name)
        kind, shape, n_bytes = tensor.dtype, tensor.shape, tensor.n_bytes
        if kind not in FLOAT_TYPES:
            expected = ", ".join(FLOAT_TYPES)
            raise CorrectorError(f"{self.path}: tensor {name} has type {kind}, expected one of {expected}")
        if prod(shape) * np.dtype(FLOAT_TYPES[kind]).itemsize != n_bytes:
            raise _failure(self.path, f"tensor {name} of shape {shape} and type {kind} has {n_bytes} bytes")
        return tensor.floats()

    def raw(self, name: str) -> RawTensor:
        """Return a tensor as it is in the file."""
        entry = self.entries[name]
        first, last = entry["data_offsets"]
        return RawTensor(entry["dtype"], entry["shape"], last - first, self._blocks(first, last))

    def _blocks(self, first: int, last: int) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            file.seek(self.begin + first)
            for offset in range(first, last, _BLOCK):
                yield file.read(min(_BLOCK, last - offset))


def write_safetensors(path: Path, tensors: dict[str, FloatArray]) -> None:
    """Write float32 tensors."""
    write_raw_safetensors(
        path, {name: RawTensor("F32", list(t.shape), t.nbytes, _float_blocks(t)) for name, t in tensors.items()}
    )


def write_raw_safetensors(path: Path, tensors: Mapping[str, RawTensor]) -> None:
    """Write tensors of any type, block by block."""
    entries = {}
    offset = 0
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.n_bytes],
        }
        offset += tensor.n_bytes
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    head = head.ljust(-(-len(head) // 8) * 8)  # the format asks for alignment to 8
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for tensor in tensors.values():
            for block in tensor.blocks:
                file.write(block)


def encoded(tensor: FloatArray, dtype: str) -> bytes:
    """Return float32 values in one of `FLOAT_TYPES`, each rounded to the nearest, to even between two."""
    if dtype != "BF16":
        return bytes(tensor.astype(FLOAT_TYPES[dtype]).tobytes())
    bits = np.ascontiguousarray(tensor, "<f4").view("<u4")
    return bytes(((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2").tobytes())


def _float_blocks(tensor: FloatArray) -> Iterator[bytes]:
    yield tensor.astype("<f4", order="C", copy=False).tobytes()


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    numbers = [entry.get("shape"), entry.get("data_offsets")]
    if not all(isinstance(n, list) and all(type(i) is int and i >= 0 for i in n) for n in numbers):
        return False
    offsets = entry["data_offsets"]
    return isinstance(entry.get("dtype"), str) and len(offsets) == 2 and offsets[0] <= offsets[1]


def _failure(path: Path, what: str) -> CorrectorError:
    return CorrectorError(f"{path}: not a readable safetensors file: {what}")
