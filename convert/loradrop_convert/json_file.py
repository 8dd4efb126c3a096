"""A JSON file's values, with their types checked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loradrop._core import CorrectorError

T = TypeVar("T", int, float, str, list, dict)  # type: ignore[type-arg]


@dataclass(frozen=True)
class JsonObject:
    """An object of a file.

    Attributes
    ----------
    prefix : str
        What errors put before a key: where in the file the object is.
    """

    path: Path
    values: dict[str, Any]
    prefix: str = ""

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return a value, None if it is not there or null.

        Raises
        ------
        CorrectorError
            If it has another type; an int is a float too, a number must be finite.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (type(value) is float and not math.isfinite(value)):
            raise self.failure(f"{self.prefix}{key} is {str(value)[:80]!r}, expected {_NAMES[kind]}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """Return a value that must be there; see `get`."""
        value = self.get(key, kind)
        if value is None:
            raise self.failure(f"{self.prefix}{key} is missing")
        return value

    def ints(self, key: str) -> list[int]:
        """Return a list of int, empty if it is not there."""
        values: list[Any] = self.get(key, list) or []
        if not all(type(value) is int for value in values):
            raise self.failure(f"{self.prefix}{key} is {str(values)[:80]}, expected integers")
        return values

    def failure(self, what: str) -> CorrectorError:
        """Return the error that names this file."""
        return CorrectorError(f"{self.path}: {what}")


_NAMES: dict[type, str] = {
    int: "an integer",
    float: "a finite number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def read_json(path: Path) -> JsonObject:
    """Read a file that holds one object.

    Raises
    ------
    OSError
        If it cannot be read.
    CorrectorError
        If it is not JSON, or no object.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, of its depth
        raise CorrectorError(f"{path}: not readable as JSON ({error}); the file is truncated or damaged") from error
    if not isinstance(values, dict):
        raise CorrectorError(f"{path}: expected a JSON object")
    return JsonObject(path, values)
