"""``loradrop inspect``: show what a model's or corrector's file holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from loradrop.cli.tables import size_text

QUALITY_WIDTH = 240  # characters


@click.command(
    name="inspect",
    short_help="Show what a model's or corrector's file holds.",
    help="Show the corrector in FILE: a GGUF file, a corrector's folder, or a checkpoint of the reference code.",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, as_json: bool) -> None:
    """Run the command."""
    from loradrop_convert.describe import describe

    found = describe(file)
    click.echo(json.dumps(found) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    rows = [("file", found["path"]), ("kind", found["kind"]), ("model", _base_text(found["base"]))]
    corrector = found["corrector"]
    if corrector is None:
        return _columns([*rows, ("corrector", "none")])
    rows += [("reuse", corrector["reuse"]), *_droppable(corrector)]
    rows += [("rank, alpha", f"{corrector['rank']}, {corrector['alpha']:g}")]
    rows += [("recommended", _point_text(corrector)), *_quality(corrector["quality"])]
    rows += [("tensors", f"{len(corrector['tensors'])}, {size_text(corrector['n_bytes'])}")]
    tensors = [
        (f"  {t['name']}", t["type"], " x ".join(map(str, t["shape"])), size_text(t["n_bytes"]))
        for t in corrector["tensors"]
    ]
    return _columns(rows) + _columns(tensors)


def _base_text(base: dict[str, Any] | None) -> str:
    if base is None:
        return "not named"
    hash_ = base["layout_hash"]
    return f"{base['arch']}, {base['n_layer']} layers, width {base['n_embd']}, tensors {hash_ or 'not named'}"


def _droppable(corrector: dict[str, Any]) -> list[tuple[str, str]]:
    if corrector["segments"]:
        return [("segments", ", ".join(f"{first}-{last}" for first, last in corrector["segments"]))]
    return [("layers", ", ".join(map(str, corrector["layers"])))]


def _point_text(corrector: dict[str, Any]) -> str:
    point = [f"{name} = {corrector[name]:g}" for name in ("rho", "k") if corrector[name] is not None]
    if corrector["refresh"] is not None:
        point.append(f"refresh = {corrector['refresh']}")
    return ", ".join(point) or "nothing"


def _quality(quality: dict[str, Any] | None) -> list[tuple[str, str]]:
    if quality is None:
        return [("quality", "not measured")]
    text = json.dumps(quality, ensure_ascii=False)
    if len(text) > QUALITY_WIDTH:
        text = f"{text[:QUALITY_WIDTH]} … ({len(text)} characters; --json shows all)"
    return [("quality", text)]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
