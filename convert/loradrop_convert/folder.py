"""A corrector as a folder: ``lora_drop.json`` and ``lora_drop.safetensors``.

The first holds what `CorrectorData` holds beside the tensors, and may name the model; the second holds the
tensors in float32 under their GGUF names, a matrix as [n_out, n_in].
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from loradrop._core import CorrectorError
from loradrop_convert.base import BaseInfo
from loradrop_convert.corrector import CorrectorData
from loradrop_convert.json_file import JsonObject, read_json
from loradrop_convert.output import check_output, check_space, complete_file
from loradrop_convert.safetensors_file import SafetensorsFile, write_safetensors

CONFIG = "lora_drop.json"
TENSORS = "lora_drop.safetensors"
FORMAT_VERSION = 1


def write_folder(
    path: str | os.PathLike[str], corrector: CorrectorData, base: BaseInfo | None = None, *, force: bool = False
) -> None:
    """Write a corrector into a folder, which is made if it is not there; other files in it stay.

    Parameters
    ----------
    base : BaseInfo, optional
        The model that it was made for, to be named.
    force : bool
        Whether a corrector that is there may be replaced.

    Raises
    ------
    CorrectorError
        If `quality` holds what JSON cannot.
    OSError
        As `complete_file` and `check_space`.
    """
    folder = Path(path)
    config = _config_text(corrector, base, folder)
    check_folder_output(folder, force)
    made = not folder.is_dir()
    folder.mkdir(exist_ok=True)
    try:
        check_space(folder / TENSORS, sum(tensor.nbytes for tensor in corrector.tensors.values()) + len(config))
        # The tensors get their name first, so that a config is never there without them.
        with complete_file(folder / CONFIG, force) as text, complete_file(folder / TENSORS, force) as tensors:
            write_safetensors(tensors, corrector.tensors)
            text.write_text(config, encoding="utf-8")
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_folder_output(path: str | os.PathLike[str], force: bool = False) -> None:
    """Check, before any work, that a corrector can be written into a folder, which need not be there.

    Raises
    ------
    FileExistsError
        If there is one and `force` is not given, or `path` is a file.
    FileNotFoundError
        If the folder's own folder does not exist.
    """
    folder = Path(path)
    if folder.is_dir():
        for name in (CONFIG, TENSORS):
            check_output(folder / name, force)
    elif folder.exists():
        raise FileExistsError(f"{folder} is a file; give the name of a folder")
    else:
        check_output(folder)


def read_folder(path: str | os.PathLike[str]) -> CorrectorData:
    """Return the corrector in a folder.

    Raises
    ------
    OSError
        If a file is missing or cannot be read.
    CorrectorError
        If one is not as it should be. Whether it fits a model is for `check_corrector` to say.
    """
    config = read_json(Path(path) / CONFIG)
    version = config.need("version", int)
    if version != FORMAT_VERSION:
        raise config.failure(f"version is {version}, this build reads version {FORMAT_VERSION}; update loradrop")
    file = SafetensorsFile.open(Path(path) / TENSORS)
    return CorrectorData(
        reuse=config.need("reuse", str),
        rank=config.need("rank", int),
        alpha=config.need("alpha", float),
        tensors={name: file.read(name) for name in file.entries},
        layers=config.ints("layers"),
        segments=_segments(config),
        rho=config.get("rho", float),
        k=config.get("k", int),
        refresh=config.get("refresh", str),
        quality=config.get("quality", dict),
    )


def read_folder_base(path: str | os.PathLike[str]) -> BaseInfo | None:
    """Return the model that a folder names, None if it names none."""
    config = read_json(Path(path) / CONFIG)
    values = config.get("base", dict)
    if values is None:
        return None
    base = JsonObject(config.path, values, "base.")
    return BaseInfo(
        arch=base.need("arch", str),
        n_layer=base.need("n_layer", int),
        n_embd=base.need("n_embd", int),
        layout_hash=base.get("layout_hash", str),
    )


def _config_text(corrector: CorrectorData, base: BaseInfo | None, folder: Path) -> str:
    config: dict[str, Any] = {"version": FORMAT_VERSION}
    for field in dataclasses.fields(corrector):
        value = getattr(corrector, field.name)
        if field.name != "tensors" and value is not None:
            config[field.name] = value
    if base is not None:
        config["base"] = dataclasses.asdict(base)
    try:
        return json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CorrectorError(f"{folder}: {CONFIG} cannot hold this corrector: {error}") from error


def _segments(config: JsonObject) -> list[tuple[int, int]]:
    runs = []
    for run in config.get("segments", list) or []:
        if not (isinstance(run, list) and len(run) == 2 and all(type(i) is int for i in run)):
            raise config.failure(f"segments holds {run!r}, expected the first and the last layer of a run")
        runs.append((run[0], run[1]))
    return runs
