"""Tensors of PyTorch files. PyTorch is imported only here, and only data is unpickled."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from loradrop._core import CorrectorError
from loradrop_convert.corrector import FloatArray
from loradrop_convert.safetensors_file import RawTensor

_SAFETENSORS_TYPES = {
    **{"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float64": "F64"},
    **{"torch.bool": "BOOL", "torch.uint8": "U8", "torch.int8": "I8", "torch.int32": "I32", "torch.int64": "I64"},
}


def read_pytorch(path: Path, wanted: Callable[[str], bool]) -> dict[str, FloatArray]:
    """Return those tensors of a file whose names are wanted, as float32.

    Raises
    ------
    CorrectorError
        If PyTorch is not installed, or the file is not a state dict that can be read safely.
    """
    torch = _import_torch(path)
    tensors = _wanted_tensors(torch, path, wanted)
    return {name: np.asarray(tensor.to(torch.float32).numpy()) for name, tensor in tensors.items()}


def read_raw_pytorch(path: Path, wanted: Callable[[str], bool]) -> dict[str, RawTensor]:
    """Return those tensors of a file whose names are wanted, as they are; their data is read when it is asked for.

    Raises
    ------
    CorrectorError
        As `read_pytorch`, or if a tensor has a type that is not known here.
    """
    torch = _import_torch(path)
    tensors = {}
    for name, tensor in _wanted_tensors(torch, path, wanted).items():
        kind = _SAFETENSORS_TYPES.get(str(tensor.dtype))
        if kind is None:
            expected = ", ".join(_SAFETENSORS_TYPES)
            raise CorrectorError(f"{path}: tensor {name} has type {tensor.dtype}, expected one of {expected}")
        size = tensor.numel() * tensor.element_size()
        tensors[name] = RawTensor(kind, list(tensor.shape), size, _blocks(torch, tensor))
    return tensors


def _blocks(torch: Any, tensor: Any) -> Iterator[memoryview]:
    yield memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _wanted_tensors(torch: Any, path: Path, wanted: Callable[[str], bool]) -> dict[str, Any]:
    state = _load(torch, path)
    if not isinstance(state, dict):
        raise CorrectorError(f"{path}: holds a {type(state).__name__}, expected a state dict")
    tensors = {}
    for name, tensor in state.items():
        if isinstance(name, str) and wanted(name):
            if not isinstance(tensor, torch.Tensor):
                raise CorrectorError(f"{path}: {name} is a {type(tensor).__name__}, expected a tensor")
            tensors[name] = tensor.detach()
    return tensors


def _import_torch(path: Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise CorrectorError(
            f"{path}: reading PyTorch files needs PyTorch, which is not installed; "
            "pip install loradrop[train], or save the checkpoint as safetensors"
        ) from error


def _load(torch: Any, path: Path) -> Any:
    options = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            return torch.load(path, mmap=True, **options)  # base weights beside it are then not read
        except RuntimeError:  # files of before PyTorch 1.6 cannot be mapped
            return torch.load(path, **options)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorrectorError(f"{path}: not a PyTorch file that can be read safely: {first}") from error
