"""One adapter or several, with a scale for each or one for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loradrop.checks import check_float

AdapterPaths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
MAX_SCALE = 1e6


def adapter_scales(
    paths: AdapterPaths, scales: float | Sequence[float], names: tuple[str, str]
) -> list[tuple[Path, float]]:
    """Return each adapter's path and scale; `names` are those of the two arguments, for errors.

    Raises
    ------
    ValueError, TypeError
        If a scale is no number from -`MAX_SCALE` to `MAX_SCALE`, or there are not as many scales as paths.
    """
    if paths is None:
        listed = []
    elif isinstance(paths, (str, os.PathLike)):
        listed = [Path(paths)]
    else:
        listed = [Path(path) for path in paths]
    if isinstance(scales, Sequence) and not isinstance(scales, str):
        if len(scales) != len(listed):
            raise ValueError(
                f"{names[1]} has {len(scales)} numbers, {names[0]} {len(listed)} paths; give a number for each, or one"
            )
        given = [check_float(names[1], scale, -MAX_SCALE, MAX_SCALE) for scale in scales]
    else:
        given = [check_float(names[1], scales, -MAX_SCALE, MAX_SCALE)] * len(listed)
    return list(zip(listed, given, strict=True))
