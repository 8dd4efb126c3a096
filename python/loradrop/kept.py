"""What takes a while to find for a model on a machine: kept in the cache folder, as far as that can be written to."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from loradrop.models import cache_folder
from loradrop_convert.output import complete_file


def kept_path(kind: str, *key: object) -> Path:
    """Return the file of what was found; `key` is everything that it depends on, with the version of the way."""
    name = hashlib.sha256(" ".join(map(str, key)).encode())
    return cache_folder() / kind / f"{name.hexdigest()}.json"


def read_kept(path: Path) -> dict[str, Any]:
    """Return what was kept; nothing where there is no such file, or not one of ours."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    return {}


def keep(path: Path, found: dict[str, Any]) -> None:
    """Write what was found, if that can be done."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(path, force=True) as temporary:
            temporary.write_text(json.dumps(found))
