"""All runs that recipe.py has trained as one corrector for each policy, with what grid.py has measured of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from loradrop_convert.base import read_base
from loradrop_convert.corrector import CorrectorData
from loradrop_convert.folder import TENSORS
from loradrop_convert.gguf_file import write_sidecar
from loradrop_convert.sources import read_corrector

KINDS = ("prose", "documents", "own")
RECOMMENDED = {"refill": (0.27, 1), "single": (0.1, 3)}  # rho, k: within 0.05 nats on 64 windows, docs/correctors.md


def runs(out: Path, refresh: str) -> dict[tuple[int, int], Path]:
    """Return the folder of each run's corrector, the shortest first; those not trained for single are as for refill."""
    folders = [*out.glob("run-*/corrector"), *(out.glob("single-*/corrector") if refresh == "single" else ())]
    found = {_layers(folder): folder for folder in folders}
    return dict(sorted(found.items(), key=lambda item: item[0][1] - item[0][0]))


def digest(corrector: Path) -> str:
    """Return what tells a run's weights from those of another training."""
    return hashlib.sha256((corrector / TENSORS).read_bytes()).hexdigest()


def join(model_path: Path, out: Path, refresh: str) -> None:
    """Write OUT/REFRESH.gguf from all runs, with what grid.py has measured of them."""
    found = runs(out, refresh)
    parts = list(map(read_corrector, found.values()))
    tensors = {
        name.replace("seg.0.", f"seg.{index}."): tensor
        for index, part in enumerate(parts)
        for name, tensor in part.tensors.items()
    }
    segments = [part.segments[0] for part in parts]
    rho, k = RECOMMENDED[refresh]
    joined = CorrectorData(
        reuse="segment",
        rank=64,
        alpha=64.0,
        tensors=tensors,
        layers=[],
        segments=segments,
        rho=rho,
        k=k,
        refresh=refresh,
        quality={
            "windows": "256 tokens, 64 of them prompt",
            "points": {kind: short(rows) for kind in KINDS if (rows := measured_rows(out, kind, refresh))},
        },
    )
    write_sidecar(out / f"{refresh}.gguf", joined, read_base(model_path), type="q8_0", force=True)


def measured_rows(out: Path, kind: str, refresh: str) -> list[dict[str, Any]]:
    """Return what grid.py has measured of a policy's runs as they are now."""
    path = out / f"grid-{kind}.json"
    rows = json.loads(path.read_text()).values() if path.exists() else ()
    now = {digest(folder) for folder in runs(out, refresh).values()}
    return [row for row in rows if row.get("refresh") == refresh and row.get("weights") in now]


def short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a corrector's file says of each point."""
    return [
        {name: row[name] for name in ("refresh", "kv_window", "rho", "k")}
        | {name: round(row["total"][name]["mean"], 4) for name in ("delta_nll", "kl", "agreement")}
        for row in rows
    ]


def _layers(corrector: Path) -> tuple[int, int]:
    _, first, last = corrector.parent.name.split("-")
    return int(first), int(last)
