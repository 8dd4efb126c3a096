"""What a file or folder holds, as plain values."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from loradrop_convert.base import base_of, check_corrector
from loradrop_convert.gguf_file import holds_corrector
from loradrop_convert.gguf_header import read_header
from loradrop_convert.sources import Source, gguf_source, read_source
from loradrop_convert.storage import type_name


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what is in a model's file, a sidecar, a corrector's folder or a checkpoint.

    Returns
    -------
    dict
        ``path``; ``kind``, one of model, sidecar, folder, reference checkpoint; ``base``, the model as
        far as it is named (``arch``, ``n_layer``, ``n_embd``, ``layout_hash``) or None; and
        ``corrector``, None for a model without one: ``reuse``, ``layers``, ``segments``, ``rank``,
        ``alpha``, ``rho``, ``k``, ``refresh``, ``quality``, ``n_bytes`` of all tensors, and ``tensors``, each
        with ``name``, ``type``, ``shape`` (a matrix is [n_out, n_in]) and ``n_bytes``.

    Raises
    ------
    ModelError, CorrectorError, OSError
        If it cannot be read, or its corrector cannot be used with the model that it names.
    """
    path = Path(path)
    if path.is_file():
        header = read_header(path)
        if not holds_corrector(header):
            return {"path": str(path), "kind": "model", "base": dataclasses.asdict(base_of(header)), "corrector": None}
        source = gguf_source(header)
    else:
        source = read_source(path)
    if source.base is not None:
        check_corrector(source.corrector, source.base, str(path))
    return {
        "path": str(path),
        "kind": source.kind,
        "base": None if source.base is None else dataclasses.asdict(source.base),
        "corrector": _corrector(source),
    }


def _corrector(source: Source) -> dict[str, Any]:
    tensors = _tensors(source)
    values = {
        field.name: getattr(source.corrector, field.name)
        for field in dataclasses.fields(source.corrector)
        if field.name != "tensors"
    }
    return {**values, "n_bytes": sum(tensor["n_bytes"] for tensor in tensors), "tensors": tensors}


def _tensors(source: Source) -> list[dict[str, Any]]:
    if source.stored is None:
        kept = [(name, GGMLQuantizationType.F32, t.nbytes) for name, t in source.corrector.tensors.items()]
    else:
        kept = [(t.name, GGMLQuantizationType(t.type), t.n_bytes) for t in source.stored]
    shapes = {name: list(tensor.shape) for name, tensor in source.corrector.tensors.items()}
    return [{"name": n, "type": type_name(t), "shape": shapes[n], "n_bytes": size} for n, t, size in kept]
