"""Any of the places that a corrector is read from: a GGUF file, our own folder, a checkpoint of the reference code."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from loradrop._core import CorrectorError
from loradrop_convert import folder, reference_checkpoint
from loradrop_convert.base import BaseInfo, base_of
from loradrop_convert.corrector import CorrectorData, is_corrector_tensor
from loradrop_convert.gguf_file import base_of_sidecar, corrector_of, is_sidecar
from loradrop_convert.gguf_header import Header, read_header
from loradrop_convert.json_file import read_json
from loradrop_convert.storage import StoredTensor, in_file

Kind = Literal["model", "sidecar", "folder", "reference checkpoint"]


@dataclass(frozen=True)
class Source:
    """A corrector, and what the place that it was read from tells beside it.

    Attributes
    ----------
    path : path
        The place.
    kind : str
        What it is.
    corrector : CorrectorData
        The corrector.
    base : BaseInfo, optional
        The model that it was made for, as far as it is named.
    stored : list of StoredTensor, optional
        Its tensors as they lie in the file, for a GGUF file.
    """

    path: Path
    kind: Kind
    corrector: CorrectorData
    base: BaseInfo | None
    stored: list[StoredTensor] | None = None


def read_corrector(path: str | os.PathLike[str]) -> CorrectorData:
    """Return the corrector in a GGUF file, a folder of ours, or a checkpoint of the reference code.

    Raises
    ------
    OSError
        If a file is missing or cannot be read.
    CorrectorError
        If there is no corrector, or one that cannot be read.
    """
    return read_source(path).corrector


def read_source(path: str | os.PathLike[str]) -> Source:
    """Return the corrector and what is known of where it comes from; see `read_corrector`."""
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; give a sidecar, a corrector's folder or a checkpoint")
    if path.suffix in (".safetensors", ".bin", ".json", ".pt", ".pth"):
        raise CorrectorError(f"{path}: a single file of a corrector; give its folder, {path.parent}")
    return gguf_source(read_header(path, CorrectorError))


def gguf_source(header: Header) -> Source:
    """Return the corrector in the file that has this head."""
    sidecar = is_sidecar(header)
    return Source(
        path=header.path,
        kind="sidecar" if sidecar else "model",
        corrector=corrector_of(replace(header, error=CorrectorError)),
        base=base_of_sidecar(header) if sidecar else base_of(header),
        stored=[in_file(header, info) for info in header.tensors if is_corrector_tensor(info.name)],
    )


def _read_folder(path: Path) -> Source:
    if (path / folder.CONFIG).exists():
        return Source(path, "folder", folder.read_folder(path), folder.read_folder_base(path))
    if (path / reference_checkpoint.CONFIG).exists():
        model_type = read_json(path / reference_checkpoint.CONFIG).get("model_type", str)
        if model_type == reference_checkpoint.MODEL_TYPE:
            return Source(
                path,
                "reference checkpoint",
                reference_checkpoint.read_reference_checkpoint(path),
                reference_checkpoint.read_reference_base(path),
            )
        found = f"a {reference_checkpoint.CONFIG} of model_type {model_type!r}"
    else:
        found = "neither"
    raise CorrectorError(
        f"{path}: no corrector: expected {folder.CONFIG}, or a {reference_checkpoint.CONFIG} of model_type "
        f"{reference_checkpoint.MODEL_TYPE!r}; there is {found}"
    )
