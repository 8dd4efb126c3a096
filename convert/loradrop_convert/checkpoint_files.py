"""The files of a checkpoint, copied into a new folder with other weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from loradrop_convert.output import check_space
from loradrop_convert.pytorch_file import read_raw_pytorch
from loradrop_convert.safetensors_file import RawTensor, SafetensorsFile, write_raw_safetensors

_COPIED = (".json", ".jinja", ".md", ".model", ".txt", ".tiktoken")


def copy_other_files(checkpoint: Path, folder: Path, *more: str) -> None:
    """Copy what is neither weights, an index of them nor code; `more` are suffixes of other files to copy."""
    for path in checkpoint.iterdir():
        if path.is_file() and path.suffix in _COPIED + more and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


def read_raw(path: Path, wanted: Callable[[str], bool]) -> dict[str, RawTensor]:
    """Return those tensors of a file of weights whose names are wanted; their data is read when it is asked for.

    Raises
    ------
    CorrectorError
        If the file is damaged, or PyTorch is needed and missing.
    OSError
        If it cannot be read.
    """
    if path.suffix != ".safetensors":
        return read_raw_pytorch(path, wanted)
    file = SafetensorsFile.open(path)
    return {name: file.raw(name) for name in file.entries if wanted(name)}


def write_shard(folder: Path, i: int, tensors: Mapping[str, RawTensor]) -> int:
    """Write the `i`-th file of weights and return its size in bytes.

    Raises
    ------
    OSError
        If there is no room for it.
    """
    path = folder / f"model-{i:05}.safetensors"
    n_bytes = sum(tensor.n_bytes for tensor in tensors.values())
    check_space(path, n_bytes)
    write_raw_safetensors(path, tensors)
    return n_bytes
