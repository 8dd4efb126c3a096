"""Values on the command line that are several numbers; for the ``type`` of an option."""

from __future__ import annotations

import click


def int_list(value: str) -> tuple[int, ...]:
    """Return integers with commas between them: ``1,2,3``."""
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: give integers with commas between them, for example 1,2,3") from None


def float_list(value: str) -> tuple[float, ...]:
    """Return numbers with commas between them: ``0.25,0.5``."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: give numbers with commas between them, for example 0.25,0.5") from None


def layer_range(value: str) -> tuple[int, int]:
    """Return the first and the last layer of a run: ``3-17``."""
    try:
        first, last = (int(part) for part in value.split("-"))
    except ValueError:
        raise click.BadParameter(f"{value!r}: give the first and the last layer, for example 3-17") from None
    if not 0 < first <= last:
        raise click.BadParameter(f"{value!r}: the first layer is at least 1 and not after the last")
    return first, last
