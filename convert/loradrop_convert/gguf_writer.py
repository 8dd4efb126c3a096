"""Writing a GGUF file from keys and tensors, some of which are copied from other files in blocks."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from loradrop._core import ModelError
from loradrop_convert.gguf_header import DEFAULT_ALIGNMENT, Field, packed_string, padded
from loradrop_convert.output import check_space, complete_file
from loradrop_convert.storage import FileRange, StoredTensor

# Told what is being done, how many bytes of it are done, and how many there are.
Progress = Callable[[str, int, int | None], None]

_BLOCK = 1 << 22
GGUF_VERSION = 3


def write_gguf(
    path: str | os.PathLike[str],
    fields: Iterable[Field],
    tensors: Sequence[StoredTensor],
    *,
    version: int = GGUF_VERSION,
    alignment: int = DEFAULT_ALIGNMENT,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file that appears only when it is whole.

    Parameters
    ----------
    fields : iterable of Field
        In the order in which they are written; `alignment`, if not 32, is one of them.
    tensors : sequence of StoredTensor
        In the order in which they are written.
    force : bool
        Whether a file of that name may be replaced.
    progress : callable, optional
        Called after each block.

    Raises
    ------
    OSError
        As `complete_file` and `check_space`.
    ModelError
        If a file that is copied from ends early.
    """
    head = _head(list(fields), tensors, version, alignment)
    size = len(head) + sum(padded(tensor.n_bytes, alignment) for tensor in tensors)
    with complete_file(path, force) as temporary:
        check_space(path, size)
        with open(temporary, "xb") as target:
            target.write(head)
            for tensor in tensors:
                for block in _blocks(tensor):
                    target.write(block)
                    if progress is not None:
                        progress(f"writing {Path(path).name}", target.tell(), size)
                _pad(target, alignment)


def _head(fields: Sequence[Field], tensors: Sequence[StoredTensor], version: int, alignment: int) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(fields))]
    parts += [packed_string(field.key) + struct.pack("<I", field.type) + field.value for field in fields]
    offset = 0
    for tensor in tensors:
        n_dims = len(tensor.ne)
        parts.append(packed_string(tensor.name))
        parts.append(struct.pack(f"<I{n_dims}QIQ", n_dims, *tensor.ne, tensor.type, offset))
        offset += padded(tensor.n_bytes, alignment)
    head = b"".join(parts)
    return head.ljust(padded(len(head), alignment), b"\0")


def _blocks(tensor: StoredTensor) -> Iterable[bytes | memoryview]:
    if not isinstance(tensor.data, FileRange):
        yield tensor.data.data
        return
    with open(tensor.data.path, "rb") as source:
        source.seek(tensor.data.offset)
        left = tensor.data.n_bytes
        while left:
            block = source.read(min(_BLOCK, left))
            if not block:
                raise ModelError(f"{tensor.data.path}: tensor {tensor.name} ends early; the file became shorter")
            yield block
            left -= len(block)


def _pad(target: BinaryIO, alignment: int) -> None:
    at = target.tell()
    target.write(bytes(padded(at, alignment) - at))
