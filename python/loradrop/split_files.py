"""Models that lie in several GGUF files, as llama.cpp splits and names them."""

from __future__ import annotations

import re
from pathlib import Path

from loradrop._core import ModelError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def part_names(name: str) -> list[str]:
    """Return the names of all parts of the model whose first part has this name; itself where it is whole.

    Raises
    ------
    ModelError
        If it is another part than the first.
    """
    match = _PART.fullmatch(name)
    if match is None or int(match[3]) == 0:
        return [name]
    stem, number, count = match[1], int(match[2]), int(match[3])
    names = [f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]
    if number != 1:
        raise ModelError(f"{name}: part {number} of {count} of a model; give the first, {names[0]}")
    return names


def check_parts(path: Path) -> None:
    """Check that all parts lie beside the first.

    Raises
    ------
    FileNotFoundError
        If one is missing.
    ModelError
        As `part_names`.
    """
    for name in part_names(path.name):
        if not path.with_name(name).is_file():
            raise FileNotFoundError(f"{path.with_name(name)}: no such file, but a part of the model of {path.name}")
