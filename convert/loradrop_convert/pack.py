"""Joining a model and a corrector in one file, or in a pair of files, and taking them apart again."""

from __future__ import annotations

import os

from loradrop._core import CorrectorError
from loradrop_convert.base import BaseInfo, base_of, check_corrector, check_same_base, read_base, read_model_header
from loradrop_convert.corrector import CorrectorData, is_corrector_tensor
from loradrop_convert.folder import check_folder_output, write_folder
from loradrop_convert.gguf_file import KEY_PREFIX, corrector_fields, holds_corrector, write_stored_sidecar
from loradrop_convert.gguf_header import Header, read_header
from loradrop_convert.gguf_writer import Progress, write_gguf
from loradrop_convert.output import check_outputs
from loradrop_convert.sources import Source, gguf_source, read_source
from loradrop_convert.storage import StorageType, StoredTensor, encode, in_file

AnyPath = str | os.PathLike[str]


def pack(
    base: AnyPath,
    corrector: AnyPath | CorrectorData,
    out: AnyPath,
    *,
    type: StorageType | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a model's file with a corrector inside.

    The model's keys and tensors are copied byte by byte, in blocks.

    Parameters
    ----------
    base : path
        The model's GGUF file, without a corrector.
    corrector : path or CorrectorData
        As `read_corrector` takes it.
    out : path
        The new file.
    type : {"f16", "q8_0"}, optional
        Of the corrector's matrices; see `encode`. None keeps a GGUF file's tensors as they are, and
        makes F16 of others.
    force : bool
        Whether a file of that name may be replaced.
    progress : callable, optional
        Called after each block.

    Raises
    ------
    ModelError
        If `base` is no whole GGUF file of a model.
    CorrectorError
        If `corrector` cannot be read, does not fit the model, or the model holds one already.
    OSError
        As `complete_file` and `check_space`, or if an input is missing or is the output.
    """
    check_outputs([out], force, inputs=_paths(base, corrector))
    header = read_model_header(base)
    base_info = base_of(header)
    if holds_corrector(header):
        raise CorrectorError(
            f"{os.fspath(base)}: holds a corrector already; take it out first: "
            f"loradrop unpack {os.fspath(base)} --base MODEL.gguf"
        )
    data, stored = _fitting(corrector, base_info, type)
    write_gguf(
        out,
        [*header.fields.values(), *corrector_fields(data)],
        [*(in_file(header, info) for info in header.tensors), *stored],
        version=header.version,
        alignment=header.alignment,
        force=force,
        progress=progress,
    )


def pack_sidecar(
    base: AnyPath,
    corrector: AnyPath | CorrectorData,
    out: AnyPath,
    *,
    type: StorageType | None = None,
    force: bool = False,
) -> None:
    """Write a corrector as a sidecar for a model, whose file stays as it is; see `pack`."""
    check_outputs([out], force, inputs=_paths(base, corrector))
    base_info = read_base(base)
    data, stored = _fitting(corrector, base_info, type)
    write_stored_sidecar(out, data, stored, base_info, force=force)


def unpack(
    path: AnyPath,
    out: AnyPath | None = None,
    *,
    folder: bool = False,
    base_out: AnyPath | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Take a corrector out of a model's file, and the model without it.

    Parameters
    ----------
    path : path
        A model with a corrector inside. With `folder` and no `base_out` also a sidecar.
    out : path, optional
        Where the corrector goes; its tensors keep their types.
    folder : bool
        Whether `out` is a folder of ours, with float32 tensors, instead of a sidecar.
    base_out : path, optional
        Where the model goes, with its tensors and keys as they were before packing.
    force : bool
        Whether files of these names may be replaced.
    progress : callable, optional
        Called after each block of the model.

    Raises
    ------
    ValueError
        If there is nothing to write.
    ModelError, CorrectorError, OSError
        As `pack`.
    """
    if out is None and base_out is None:
        raise ValueError("out=None, base_out=None: give at least one of them")
    outputs = [base_out, None if folder else out]
    check_outputs([output for output in outputs if output is not None], force, inputs=[path])
    if folder and out is not None:
        check_folder_output(out, force)
    source = None if out is None else _source_to_unpack(path, folder and base_out is None)
    if base_out is not None:
        _write_model(read_model_header(path), base_out, force, progress)
    if source is not None and out is not None:
        _write_corrector(source, out, folder, force)


def _source_to_unpack(path: AnyPath, sidecar_too: bool) -> Source:
    source = gguf_source(read_header(path, CorrectorError))
    if source.kind == "sidecar" and not sidecar_too:
        raise CorrectorError(f"{os.fspath(path)}: a sidecar already; it can be unpacked with --folder only")
    assert source.base is not None
    check_corrector(source.corrector, source.base, os.fspath(path))
    return source


def _write_model(header: Header, out: AnyPath, force: bool, progress: Progress | None) -> None:
    base_of(header)  # raises if it is no model
    if not holds_corrector(header):
        raise CorrectorError(f"{header.path}: holds no corrector; the model is the file itself")
    write_gguf(
        out,
        [field for key, field in header.fields.items() if not key.startswith(KEY_PREFIX)],
        [in_file(header, info) for info in header.tensors if not is_corrector_tensor(info.name)],
        version=header.version,
        alignment=header.alignment,
        force=force,
        progress=progress,
    )


def _write_corrector(source: Source, out: AnyPath, folder: bool, force: bool) -> None:
    assert source.base is not None and source.stored is not None
    if folder:
        write_folder(out, source.corrector, source.base, force=force)
    else:
        write_stored_sidecar(out, source.corrector, source.stored, source.base, force=force)


def _fitting(
    corrector: AnyPath | CorrectorData, base: BaseInfo, type_: StorageType | None
) -> tuple[CorrectorData, list[StoredTensor]]:
    """Return a corrector that fits the model, and its tensors as they are to be written."""
    if isinstance(corrector, CorrectorData):
        where, data, stored = "corrector", corrector, None
    else:
        source = read_source(corrector)
        where, data, stored = os.fspath(corrector), source.corrector, source.stored
        if source.base is not None:
            _check_origin(source, source.base, base)
    check_corrector(data, base, where)
    if stored is None or type_ is not None:
        stored = encode(data, type_ or "f16", where)
    return data, stored


def _check_origin(source: Source, claimed: BaseInfo, base: BaseInfo) -> None:
    # A folder is the form in which a corrector goes from one quantisation of a model to another.
    if source.stored is None:
        claimed = BaseInfo(claimed.arch, claimed.n_layer, claimed.n_embd, None)
    check_same_base(claimed, base, os.fspath(source.path))


def _paths(base: AnyPath, corrector: AnyPath | CorrectorData) -> list[AnyPath]:
    return [base] if isinstance(corrector, CorrectorData) else [base, corrector]
