"""A corrector in a GGUF file: a sidecar, or the model's own."""

from __future__ import annotations

import json
import os
from typing import Any

from gguf import GGUFValueType

from loradrop._core import CorrectorError
from loradrop_convert.base import WEIGHTS_KEY, BaseInfo, check_corrector
from loradrop_convert.corrector import SEGMENT, CorrectorData, is_corrector_tensor
from loradrop_convert.gguf_header import Field, Header, read_header
from loradrop_convert.gguf_writer import write_gguf
from loradrop_convert.storage import StorageType, StoredTensor, decode, encode

FORMAT_VERSION = 1
KEY_PREFIX = "lora_drop."

_STR, _U32, _F32, _ARRAY = (
    GGUFValueType.STRING,
    GGUFValueType.UINT32,
    GGUFValueType.FLOAT32,
    GGUFValueType.ARRAY,
)


def write_sidecar(
    path: str | os.PathLike[str],
    corrector: CorrectorData,
    base: BaseInfo,
    *,
    type: StorageType = "f16",
    force: bool = False,
) -> None:
    """Write a corrector as a GGUF file of its own, for use beside its model's.

    Parameters
    ----------
    base : BaseInfo
        The model that it is for, with its layout hash.
    type : {"f16", "q8_0"}
        Of the matrices; see `encode`.
    force : bool
        Whether a file of that name may be replaced.

    Raises
    ------
    CorrectorError
        If the corrector does not fit the model or the type.
    OSError
        As `complete_file` and `check_space`.
    """
    check_corrector(corrector, base, os.fspath(path))
    write_stored_sidecar(path, corrector, encode(corrector, type, os.fspath(path)), base, force=force)


def write_stored_sidecar(
    path: str | os.PathLike[str],
    corrector: CorrectorData,
    stored: list[StoredTensor],
    base: BaseInfo,
    *,
    force: bool = False,
) -> None:
    """Write a sidecar from tensors that are encoded already; see `write_sidecar`."""
    write_gguf(path, [*_base_fields(base), *corrector_fields(corrector)], stored, force=force)


def read_gguf_corrector(path: str | os.PathLike[str]) -> CorrectorData:
    """Return the corrector in a sidecar or in a model's file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CorrectorError
        If the file holds none, or one that cannot be read. Whether it fits a model is for
        `check_corrector` to say.
    """
    return corrector_of(read_header(path, CorrectorError))


def corrector_of(header: Header) -> CorrectorData:
    """Return the corrector in the file that has this head; see `read_gguf_corrector`."""
    if f"{KEY_PREFIX}version" not in header.fields:
        raise header.failure("holds no corrector (there is no key lora_drop.version)")
    version = header.need("lora_drop.version", _U32)
    if version != FORMAT_VERSION:
        raise header.failure(
            f"lora_drop.version is {version}, this build reads version {FORMAT_VERSION}; update loradrop"
        )
    reuse = header.need("lora_drop.reuse", _STR)
    flat = header.need("lora_drop.segments", _ARRAY) if reuse == SEGMENT else []
    if len(flat) % 2:
        raise header.failure(
            f"lora_drop.segments has {len(flat)} entries, expected the first and the last layer of each run"
        )
    return CorrectorData(
        reuse=reuse,
        rank=header.need("lora_drop.rank", _U32),
        alpha=header.need("lora_drop.alpha", _F32),
        tensors={info.name: decode(header, info) for info in header.tensors if is_corrector_tensor(info.name)},
        layers=[] if reuse == SEGMENT else header.need("lora_drop.layers", _ARRAY),
        segments=list(zip(flat[::2], flat[1::2], strict=True)),
        rho=header.get("lora_drop.rho", _F32),
        k=header.get("lora_drop.k", _U32),
        refresh=header.get("lora_drop.refresh", _STR) or None,
        quality=_quality(header),
    )


def is_sidecar(header: Header) -> bool:
    """Return whether a file is a corrector's own."""
    return bool(header.get("adapter.type", _STR) == "lora_drop")


def holds_corrector(header: Header) -> bool:
    """Return whether a file holds a corrector, or a part of one."""
    keys = any(key.startswith(KEY_PREFIX) for key in header.fields)
    return keys or any(is_corrector_tensor(info.name) for info in header.tensors)


def base_of_sidecar(header: Header) -> BaseInfo:
    """Return the model that a sidecar was made for."""
    return BaseInfo(
        arch=header.need("general.architecture", _STR),
        n_layer=header.need("lora_drop.base.block_count", _U32),
        n_embd=header.need("lora_drop.base.embedding_length", _U32),
        layout_hash=header.need("lora_drop.base.tensors", _STR),
        weights_hash=header.get(WEIGHTS_KEY, _STR) or None,
    )


def corrector_fields(corrector: CorrectorData) -> list[Field]:
    """Return the keys that describe a corrector, in a sidecar and in a model's file alike."""
    fields = [
        Field.make("lora_drop.version", _U32, FORMAT_VERSION),
        Field.make("lora_drop.reuse", _STR, corrector.reuse),
        Field.make("lora_drop.rank", _U32, corrector.rank),
        Field.make("lora_drop.alpha", _F32, corrector.alpha),
    ]
    if corrector.reuse == SEGMENT:
        fields.append(Field.make("lora_drop.segments", _ARRAY, [i for run in corrector.segments for i in run]))
    else:
        fields.append(Field.make("lora_drop.layers", _ARRAY, corrector.layers))
    if corrector.rho is not None:
        fields.append(Field.make("lora_drop.rho", _F32, corrector.rho))
    if corrector.k is not None:
        fields.append(Field.make("lora_drop.k", _U32, corrector.k))
    if corrector.refresh is not None:
        fields.append(Field.make("lora_drop.refresh", _STR, corrector.refresh))
    if corrector.quality is not None:
        fields.append(Field.make("lora_drop.quality", _STR, json.dumps(corrector.quality)))
    return fields


def _base_fields(base: BaseInfo) -> list[Field]:
    if base.layout_hash is None:
        raise ValueError("layout_hash=None: a sidecar names its model's; take BaseInfo from read_base")
    weights = [] if base.weights_hash is None else [Field.make(WEIGHTS_KEY, _STR, base.weights_hash)]
    return [
        *weights,
        Field.make("general.architecture", _STR, base.arch),
        Field.make("general.type", _STR, "adapter"),
        Field.make("adapter.type", _STR, "lora_drop"),
        Field.make("lora_drop.base.block_count", _U32, base.n_layer),
        Field.make("lora_drop.base.embedding_length", _U32, base.n_embd),
        Field.make("lora_drop.base.tensors", _STR, base.layout_hash),
    ]


def _quality(header: Header) -> dict[str, Any] | None:
    text = header.get("lora_drop.quality", _STR)
    if not text:
        return None
    try:
        quality = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise header.failure(f"lora_drop.quality is not JSON ({error})") from error
    if not isinstance(quality, dict):
        raise header.failure(f"lora_drop.quality is {text[:40]}, expected a JSON object")
    return quality
