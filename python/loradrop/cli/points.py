"""Options that name points, one or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import click

from loradrop.evaluate.point import Point
from loradrop.options import AUTO, REFRESH_POLICIES

F = TypeVar("F", bound=Callable[..., Any])

POINT_SYNTAX = "RHO:K[:REFRESH[:WINDOW]]"
K_SYNTAX = "INTEGER|auto"


def parse_point(text: str) -> Point:
    """Return the point that RHO:K[:REFRESH[:WINDOW]] names."""
    parts = text.split(":")
    try:
        if not 2 <= len(parts) <= 4 or (len(parts) > 2 and parts[2] not in REFRESH_POLICIES):
            raise ValueError
        refresh = parts[2] if len(parts) > 2 else Point.refresh
        if len(parts) > 3 and refresh != "refill":
            raise ValueError
        kv_window = int(parts[3]) if len(parts) > 3 else Point.kv_window
        return Point(float(parts[0]), parse_k(parts[1]), refresh, kv_window)
    except (ValueError, click.BadParameter):
        raise click.BadParameter(f"{text!r} is no {POINT_SYNTAX}; give for example 0.5:3 or 0.5:3:refill:64") from None


def parse_k(text: str) -> int | str:
    """Return the number that a text gives, or ``auto``."""
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor {AUTO!r}") from None


def point_name(point: Point) -> str:
    """Return what `parse_point` reads, for a point with rho and k."""
    window = f":{point.kv_window}" if point.refresh == "refill" else ""
    return f"{point.rho:g}:{point.k}:{point.refresh}{window}"


_OPTIONS = [
    click.option(
        "--point",
        type=parse_point,
        metavar=POINT_SYNTAX,
        multiple=True,
        help="A point, for example 0.5:3, 0.5:3:refill:64 or 0.5:3:verify; may be repeated.",
    ),
    click.option(
        "--rho",
        type=float,
        multiple=True,
        help="Share of the layers that drop. May be repeated, as the three below: all their combinations are points. "
        "[default: the corrector's]",
    ),
    click.option(
        "--k",
        type=parse_k,
        metavar=K_SYNTAX,
        multiple=True,
        help="LoRA steps between two refresh steps. [default: the corrector's, else 3; with verify auto]",
    ),
    click.option(
        "--refresh",
        type=click.Choice(REFRESH_POLICIES),
        multiple=True,
        help="Whether a refresh step runs one token or the LoRA steps' tokens again, or whether LoRA steps only draft. "
        "[default: the corrector's, else single]",
    ),
    click.option(
        "--kv-window",
        type=int,
        multiple=True,
        help=f"With refill: newest tokens whose K/V droppable layers keep. [default: {Point.kv_window}]",
    ),
    click.option(
        "--corrector", type=click.Path(path_type=Path), help="A sidecar. [default: the model's own, or the package's]"
    ),
    click.option("--allow-uncorrected", is_flag=True, help="Drop layers even without a trained corrector."),
]


def point_options(function: F) -> F:
    """Add the options that `chosen_points` takes, and the corrector's for all points, to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def chosen_points(
    point: Sequence[Point],
    rho: Sequence[float],
    k: Sequence[int | str],
    refresh: Sequence[str],
    kv_window: Sequence[int],
) -> list[Point]:
    """Return the points of --point, and then all combinations of the other options, each point once."""
    points = list(point)
    if rho or k or refresh or kv_window or not points:
        rhos: Sequence[float | None] = rho or [None]
        ks: Sequence[int | str | None] = k or [None]
        policies: Sequence[str | None] = refresh or [None]
        for one in product(rhos, ks, policies, kv_window or [Point.kv_window]):
            points.append(_without_idle_window(Point(*one)))
    return list(dict.fromkeys(points))


def _without_idle_window(point: Point) -> Point:
    # It means nothing to other policies, which would be measured once for each.
    return replace(point, kv_window=Point.kv_window) if point.refresh in ("single", "verify") else point
