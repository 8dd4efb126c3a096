"""The head of a GGUF file: its keys, kept byte by byte, and where its tensors lie.

The ``gguf`` package's own reader decodes every value, which cannot be written back exactly and takes
long on a tokenizer's lists; here a value is decoded only when it is asked for.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from loradrop._core import LoradropError, ModelError

DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_TYPE_IDS = {int(type_) for type_ in GGUFValueType}


@dataclass(frozen=True)
class Field:
    """A key and its value.

    Attributes
    ----------
    type : GGUFValueType
        Of the value.
    value : bytes
        The value as the file has it, without the type.
    """

    key: str
    type: GGUFValueType
    value: bytes

    @staticmethod
    def make(key: str, type_: GGUFValueType, value: Any) -> Field:
        """Return a field of a scalar, a str, or a list of int that becomes an array of i32."""
        if type_ == GGUFValueType.STRING:
            return Field(key, type_, packed_string(value))
        if type_ == GGUFValueType.ARRAY:
            head = struct.pack("<IQ", GGUFValueType.INT32, len(value))
            return Field(key, type_, head + np.array(value, "<i4").tobytes())
        return Field(key, type_, struct.pack(_SCALARS[type_], value))

    def decode(self) -> Any:
        """Return the value of a scalar, a string (as str) or an array of i32 (as list of int).

        Raises
        ------
        ValueError
            For an array of anything else.
        """
        if self.type == GGUFValueType.STRING:
            return self.value[8:].decode("utf-8", errors="replace")
        if self.type == GGUFValueType.ARRAY:
            if int.from_bytes(self.value[:4], "little") != GGUFValueType.INT32:
                raise ValueError("must be an array of i32")
            return np.frombuffer(self.value, "<i4", offset=12).tolist()
        return struct.unpack(_SCALARS[self.type], self.value)[0]


@dataclass(frozen=True)
class TensorInfo:
    """What the head says of a tensor.

    Attributes
    ----------
    ne : tuple of int
        Shape in ggml's order, the contiguous dimension first.
    type : int
        ggml's number of the type, also of one that the installed ``gguf`` does not know.
    offset : int
        Bytes from the start of the file.
    n_bytes : int
        Size of the data, without padding.
    """

    name: str
    ne: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """The head of a file.

    Attributes
    ----------
    error : type
        What is raised for a value that is not as it should be.
    """

    path: Path
    version: int
    alignment: int
    fields: dict[str, Field]
    tensors: list[TensorInfo]
    error: type[LoradropError] = field(default=ModelError, repr=False)

    def get(self, key: str, type_: GGUFValueType) -> Any:
        """Return the value of a key, None if there is no such key.

        Raises
        ------
        ModelError or CorrectorError
            If it has another type.
        """
        found = self.fields.get(key)
        if found is None:
            return None
        if found.type != type_:
            raise self.failure(f"key {key} has type {found.type.name.lower()}, expected {type_.name.lower()}")
        try:
            return found.decode()
        except ValueError as error:
            raise self.failure(f"key {key} {error}") from error

    def need(self, key: str, type_: GGUFValueType) -> Any:
        """Return the value of a key that must be there; see `get`."""
        value = self.get(key, type_)
        if value is None:
            raise self.failure(f"key {key} is missing")
        return value

    def failure(self, what: str) -> LoradropError:
        """Return the error that names this file."""
        return self.error(f"{self.path}: {what}")


def read_header(path: str | os.PathLike[str], error: type[LoradropError] = ModelError) -> Header:
    """Read the head of a GGUF file, and check that the data it promises is there.

    Parameters
    ----------
    error : type
        `ModelError` or `CorrectorError`: what to raise for a file that is not as it should be.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        return _Reader(path, file, os.fstat(file.fileno()).st_size, error).header()


def packed_string(text: str) -> bytes:
    """Return a string as GGUF has it: length and UTF-8."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def padded(size: int, alignment: int) -> int:
    """Return `size` rounded up to whole `alignment`."""
    return -(-size // alignment) * alignment


class _Reader:
    """Reads a head from front to back; every step checks that the file goes on."""

    def __init__(self, path: Path, file: BinaryIO, size: int, error: type[LoradropError]) -> None:
        self.path, self.file, self.size, self.error = path, file, size, error
        self.at = 0

    def header(self) -> Header:
        if self.take(4) != b"GGUF":
            raise self.failure("does not begin with GGUF")
        version = self.u32()
        if version not in (2, 3):
            raise self.failure(f"GGUF version is {version}, expected 2 or 3 in little-endian order")
        n_tensors, n_fields = self.u64(), self.u64()
        fields: dict[str, Field] = {}
        for _ in range(n_fields):
            entry = self.field()
            if entry.key in fields:
                raise self.failure(f"key {entry.key} is there twice")
            fields[entry.key] = entry
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            name = self.string()
            if name in infos:
                raise self.failure(f"tensor {name} is there twice")
            infos[name] = self.tensor_info(name)
        head = Header(self.path, version, DEFAULT_ALIGNMENT, fields, [], self.error)
        alignment = head.get("general.alignment", GGUFValueType.UINT32)
        if alignment is None:
            alignment = DEFAULT_ALIGNMENT
        if alignment <= 0 or alignment & (alignment - 1):
            raise self.failure(f"general.alignment is {alignment}, expected a power of two")
        return Header(self.path, version, alignment, fields, self.placed(infos, alignment), self.error)

    def field(self) -> Field:
        key, type_ = self.string(), self.value_type()
        begin = self.at
        if type_ == GGUFValueType.STRING:
            self.skip(self.u64())
        elif type_ == GGUFValueType.ARRAY:
            self.skip_array(key)
        else:
            self.skip(struct.calcsize(_SCALARS[type_]))
        end, self.at = self.at, begin
        self.file.seek(begin)
        return Field(key, type_, self.take(end - begin))

    def skip_array(self, key: str) -> None:
        item, n = self.value_type(), self.u64()
        if item == GGUFValueType.ARRAY:
            raise self.failure(f"key {key} is an array of arrays, which llama.cpp does not read")
        if item == GGUFValueType.STRING:
            if n > self.size:
                raise self.failure(f"key {key} has {n} entries")
            for _ in range(n):
                self.skip(self.u64())
        else:
            self.skip(n * struct.calcsize(_SCALARS[item]))

    def tensor_info(self, name: str) -> tuple[tuple[int, ...], int, int]:
        n_dims = self.u32()
        if n_dims > MAX_DIMS:
            raise self.failure(f"tensor {name} has {n_dims} dimensions")
        ne = struct.unpack(f"<{n_dims}q", self.take(8 * n_dims)) or (1,)
        if min(ne) < 0:
            raise self.failure(f"tensor {name} has shape {list(ne)}")
        return ne, self.u32(), self.u64()

    def placed(self, infos: dict[str, tuple[tuple[int, ...], int, int]], alignment: int) -> list[TensorInfo]:
        """Return where each tensor's data lies; GGUF has them one after the other, in this order."""
        begin = padded(self.at, alignment)
        offsets = [offset for _, _, offset in infos.values()]
        ends = [*offsets, max(self.size - begin, 0)][1:]
        tensors = []
        due = 0
        for (name, (ne, type_, offset)), end in zip(infos.items(), ends, strict=True):
            n_bytes = self.n_bytes(name, ne, type_)
            if n_bytes is None:  # a type that is newer than the installed gguf package
                n_bytes = end - offset
            if offset != due or n_bytes < 0:
                raise self.failure(f"tensor {name} has offset {offset}, expected {due}")
            if begin + offset + n_bytes > self.size:
                raise self.failure(f"tensor {name} ends after the end of the file; the file is truncated")
            tensors.append(TensorInfo(name, ne, type_, begin + offset, n_bytes))
            due = padded(offset + n_bytes, alignment)
        return tensors

    def n_bytes(self, name: str, ne: tuple[int, ...], type_: int) -> int | None:
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type_)]
        except ValueError:
            return None
        if ne[0] % block:
            raise self.failure(f"tensor {name} has rows of {ne[0]}, its type stores blocks of {block}")
        return prod(ne) // block * block_bytes

    # --- pieces ---------------------------------------------------------------------------------

    def failure(self, what: str) -> LoradropError:
        return self.error(f"{self.path}: not a readable GGUF file: {what}")

    def take(self, n: int) -> bytes:
        self.check_left(n)
        data = self.file.read(n)
        if len(data) != n:
            raise self.failure("it became shorter while it was read")
        self.at += n
        return data

    def skip(self, n: int) -> None:
        self.check_left(n)
        self.file.seek(n, os.SEEK_CUR)
        self.at += n

    def check_left(self, n: int) -> None:
        if n > self.size - self.at:
            raise self.failure(f"it ends after {self.size} bytes, inside its head; the file is truncated or damaged")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        try:
            return self.take(self.u64()).decode()
        except UnicodeDecodeError as error:
            raise self.failure(f"a name before byte {self.at} is not UTF-8") from error

    def value_type(self) -> GGUFValueType:
        number = self.u32()
        if number not in _TYPE_IDS:
            raise self.failure(f"a value before byte {self.at} has the unknown type {number}")
        return GGUFValueType(number)
