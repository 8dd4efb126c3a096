"""Outputs that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def complete_file(path: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` if the block succeeds.

    Whatever ends the block early, an interrupt too, removes the temporary file and leaves what was
    there before.

    Parameters
    ----------
    path : path
        The output.
    force : bool
        Whether a file of that name may be replaced.

    Raises
    ------
    FileExistsError, IsADirectoryError, FileNotFoundError
        As `check_output`.
    OSError
        If the room on the disk runs out; it names `path`.
    """
    path = Path(path)
    check_output(path, force)
    temporary = path.with_name(f".loradrop-{uuid.uuid4().hex}.part")
    try:
        with no_room_names(path):
            yield temporary
            _sync(temporary)
        check_output(path, force)  # one may have appeared meanwhile
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], force: bool = False) -> None:
    """Check, before any work, that a file can be put there.

    Raises
    ------
    FileExistsError
        If there is one and `force` is not given.
    IsADirectoryError
        If it is a folder.
    FileNotFoundError
        If its folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if os.path.lexists(path) and not force:
        raise FileExistsError(f"{path} exists; give another name, or --force (force=True) to replace it")


def check_outputs(
    outputs: Iterable[str | os.PathLike[str]], force: bool, inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Check, before any work, that files can be put there and are neither inputs nor each other.

    Raises
    ------
    FileExistsError
        If one is an input or another output, whatever `force` says.
    OSError
        As `check_output`.
    """
    inputs = [path for path in inputs if os.path.exists(path)]
    taken = set()
    for out in outputs:
        name = os.path.realpath(out)
        if name in taken:
            raise FileExistsError(f"{os.fspath(out)} is another output too; give another name")
        taken.add(name)
        if os.path.exists(out) and any(os.path.samefile(out, path) for path in inputs):
            raise FileExistsError(f"{os.fspath(out)} is an input; give another name")
        check_output(out, force)


def check_space(path: str | os.PathLike[str], n_bytes: int) -> None:
    """Check, before any work, that `n_bytes` fit beside `path`.

    Raises
    ------
    OSError
        With errno ENOSPC if they do not.
    """
    free = shutil.disk_usage(Path(path).parent).free
    if n_bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"needs {n_bytes / 2**20:.1f} MiB, {free / 2**20:.1f} MiB are free; free some or write to another disk",
            os.fspath(path),
        )


@contextlib.contextmanager
def no_room_names(path: Path) -> Iterator[None]:
    """Name the file in an error of the kind that a write raises without a name."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            what = f"{error.strerror} while writing; free some space or write to another disk"
            raise OSError(error.errno, what, os.fspath(path)) from error
        raise


def _sync(path: Path) -> None:
    # Without it a crash of the machine could leave the new name on an empty file.
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
