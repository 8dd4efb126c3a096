"""Text from files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def read_texts(paths: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Return the contents of text files, without byte order marks, by their names.

    Raises
    ------
    FileNotFoundError
        If one is not there.
    ValueError
        If one is not UTF-8.
    """
    texts = {}
    for path in map(Path, paths):
        try:
            texts[str(path)] = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8: {error}; convert it first") from None
    return texts
