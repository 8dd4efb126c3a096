"""The model that a corrector belongs to, and whether a corrector fits it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from gguf import GGUFValueType

from loradrop._core import CorrectorError
from loradrop_convert.corrector import CorrectorData, is_corrector_tensor
from loradrop_convert.gguf_header import Header, TensorInfo, read_header
from loradrop_convert.rules import check_rules

SAMPLE = 256  # bytes of a tensor; there are hundreds of tensors
WEIGHTS_KEY = "lora_drop.base.weights"


@dataclass(frozen=True)
class BaseInfo:
    """What is known of a model without loading it.

    Attributes
    ----------
    arch : str
        llama.cpp's name of the architecture.
    n_layer : int
        Layers that decode.
    n_embd : int
        Width of their states.
    layout_hash : str, optional
        `loradrop._core.Model.layout_hash` of its GGUF file; None where it is not known.
    weights_hash : str, optional
        See `weights_hash`; None where it is not known. Two descriptions that differ in it alone are equal.
    """

    arch: str
    n_layer: int
    n_embd: int
    layout_hash: str | None
    weights_hash: str | None = field(default=None, compare=False)


def read_base(path: str | os.PathLike[str]) -> BaseInfo:
    """Return what a model's GGUF file says of the model, by its head and the beginning of each tensor.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelError
        If it is no whole GGUF file of a model, or one part of several.
    """
    return base_of(read_model_header(path))


def read_model_header(path: str | os.PathLike[str]) -> Header:
    """Return the head of a model's file; see `read_base`."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file; give the GGUF file of a model")
    return read_header(path)


def base_of(header: Header) -> BaseInfo:
    """Return what the head of a model's file says of the model; see `read_base`."""
    _check_is_model(header)
    arch = header.need("general.architecture", GGUFValueType.STRING)
    n_block = header.need(f"{arch}.block_count", GGUFValueType.UINT32)
    n_extra = header.get(f"{arch}.nextn_predict_layers", GGUFValueType.UINT32) or 0
    n_embd = header.need(f"{arch}.embedding_length", GGUFValueType.UINT32)
    if n_extra >= n_block:
        raise header.failure(f"{arch}.block_count is {n_block}, of which {n_extra} predict further tokens")
    loaded = _loaded_tensors(header, n_block - n_extra, n_block)
    return BaseInfo(arch, n_block - n_extra, n_embd, layout_hash(loaded), weights_hash(header.path, loaded))


def weights_hash(path: str | os.PathLike[str], tensors: Iterable[TensorInfo]) -> str:
    """Return a hash, 16 hexadecimal digits, of the first bytes of each tensor: what tells a model from its fine-tunes.

    Parameters
    ----------
    path : path
        The GGUF file that the tensors are in.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for tensor in sorted(tensors, key=lambda tensor: tensor.name):
            file.seek(tensor.offset)
            digest.update(file.read(min(tensor.n_bytes, SAMPLE)))
    return digest.hexdigest()[:16]


def check_weights(corrector: Header, model_path: str | os.PathLike[str]) -> None:
    """Check that a sidecar was made for the weights of a model, as far as it tells.

    Raises
    ------
    CorrectorError
        If it was made for others of the same layout.
    """
    theirs = corrector.get(WEIGHTS_KEY, GGUFValueType.STRING)
    if theirs:
        header = read_header(model_path)
        if _n_split(header) == 1:  # the hash is one of all parts
            check_same_weights(theirs, base_of(header).weights_hash, os.fspath(corrector.path))


def check_same_weights(theirs: str | None, ours: str | None, where: str) -> None:
    """Raise a CorrectorError if both hashes of weights are known and differ."""
    if None not in (theirs, ours) and theirs != ours:
        raise CorrectorError(
            f"{where}: made for a model whose weights hash to {theirs}, this one's to {ours}; it is another model of "
            "the same shape, a fine-tune for example, with which this corrector decodes badly. To use it all the same, "
            "take it out as a folder (loradrop unpack --folder) and pack that"
        )


def layout_hash(tensors: Iterable[TensorInfo]) -> str:
    """Return FNV-1a, 64 bit, of names, types and shapes, as `loradrop._core.Model.layout_hash`."""
    digest = 0xCBF29CE484222325
    for line in sorted(_layout_line(tensor).encode() for tensor in tensors):
        for byte in line:
            digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return f"{digest:016x}"


def check_same_base(claimed: BaseInfo, base: BaseInfo, where: str) -> None:
    """Check that a corrector which was made for `claimed` may be used with `base`.

    Raises
    ------
    CorrectorError
        If it belongs to another model.
    """
    for name in ("arch", "n_layer", "n_embd"):
        theirs, ours = getattr(claimed, name), getattr(base, name)
        if theirs != ours:
            raise CorrectorError(
                f"{where}: made for a model with {name} = {theirs}, this one has {ours}; "
                "this corrector belongs to another model"
            )
    if claimed.layout_hash not in (None, base.layout_hash):
        raise CorrectorError(
            f"{where}: made for a model whose tensors hash to {claimed.layout_hash}, this one's to {base.layout_hash}; "
            "this corrector belongs to another model or another quantisation of it. To use it all the same, "
            "take it out as a folder (loradrop unpack --folder) and pack that"
        )
    check_same_weights(claimed.weights_hash, base.weights_hash, where)


def check_corrector(corrector: CorrectorData, base: BaseInfo, where: str) -> None:
    """Check that the engine can use a corrector with a model.

    Parameters
    ----------
    where : str
        What an error calls the corrector, usually its file.

    Raises
    ------
    CorrectorError
        If it cannot; the message names the field or tensor, its value and what is expected.
    """
    check_rules(corrector, base.n_layer, base.n_embd, where)


def _check_is_model(header: Header) -> None:
    if header.get("general.type", GGUFValueType.STRING) == "adapter" or "adapter.type" in header.fields:
        raise header.failure("holds an adapter, not a model; give the GGUF file of a model")
    if (n_split := _n_split(header)) > 1:
        raise header.failure(
            f"split.count is {n_split}: it is one part of a model; "
            f"join the parts first with llama.cpp's tool: llama-gguf-split --merge {header.path} MERGED.gguf"
        )


def _n_split(header: Header) -> int:
    """Return how many files the model lies in."""
    n_split = header.fields.get("split.count")
    return 1 if n_split is None else max(1, int.from_bytes(n_split.value, "little"))


def _loaded_tensors(header: Header, n_layer: int, n_block: int) -> list[TensorInfo]:
    # llama.cpp leaves layers for multi-token prediction out when it loads a model.
    skipped = tuple(f"blk.{i}." for i in range(n_layer, n_block))
    return [t for t in header.tensors if not t.name.startswith(skipped) and not is_corrector_tensor(t.name)]


def _layout_line(tensor: TensorInfo) -> str:
    ne = list(tensor.ne)
    while len(ne) > 1 and ne[-1] == 1:
        ne.pop()
    return f"{tensor.name} {tensor.type} {'x'.join(map(str, ne))}\n"
