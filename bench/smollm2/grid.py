"""Measure a corrector at every point of a grid, and print the tables of docs/correctors.md and correctors-grid.md.

    python grid.py MODEL.gguf OUT measure KIND WINDOWS [--policy P] [--kv-window N ...] [--rho R ...] [--k K ...]
    python grid.py MODEL.gguf OUT summary KIND    the rise of NLL alone
    python grid.py MODEL.gguf OUT table KIND      every point, with KL and agreement

KIND is prose, documents or own: the windows that recipe.py has set apart in OUT/texts.npz. The runs that recipe.py has
trained are joined first. Each point's result is kept in OUT/grid-KIND.json, so a stopped run goes on where it was; a
run that has been trained anew is measured anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from joined import KINDS, digest, join, measured_rows, runs

from loradrop._core import Corrector, Model
from loradrop.evaluate import Point, PointReport, perplexity
from loradrop.options import REFRESH_POLICIES

RHOS = (0.1, 0.2, 0.27, 0.33, 0.5, 0.75)
KS = (1, 2, 3, 5)
KV_WINDOWS = (0, 16, 64, 256)
PER_KIND = 16  # windows of each kind in texts.npz
AT_ONCE = 8  # points that share a run of the full model
PROMPT = 64


def windows_of(out: Path, kind: str, n: int) -> np.ndarray:
    """Return the first n held-out windows of a kind."""
    with np.load(out / "texts.npz") as saved:
        start = KINDS.index(kind) * PER_KIND
        return saved["held_out"][start : start + PER_KIND][:n]


def key(point: Point, n_windows: int) -> str:
    """Return the name of a point's result."""
    kept = f" {point.kv_window}" if point.refresh == "refill" else ""
    return f"{point.refresh}{kept} rho {point.rho} k {point.k} on {n_windows}"


def result(report: PointReport) -> dict[str, Any]:
    """Return what the table needs of a report."""
    return {
        "refresh": report.point.refresh,
        "kv_window": report.point.kv_window if report.point.refresh == "refill" else None,
        "rho": report.point.rho,
        "k": report.point.k,
        "layers": [report.dropped_layers[0], report.dropped_layers[-1]],
        "total": report.total.to_dict(),
        "by_distance": [scores.to_dict() for scores in report.by_distance],
    }


def weights_of(model: Path, out: Path, points: list[Point]) -> dict[Point, str]:
    """Return the digest of the run that each point drops."""
    opened = Model(str(model))
    correctors = {point.corrector: Corrector.load(str(point.corrector), opened) for point in points}
    found = {}
    for point in points:
        corrector = correctors[point.corrector]
        assert corrector is not None and point.rho is not None and point.refresh is not None
        dropped = corrector.dropped_layers(point.rho, opened.n_layer)
        found[point] = digest(runs(out, point.refresh)[min(dropped), max(dropped)])
    return found


def measure(model: Path, out: Path, kind: str, n_windows: int, points: list[Point], n_threads: int | None) -> None:
    """Measure the points that are still missing."""
    path = out / f"grid-{kind}.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    weights = weights_of(model, out, points)
    missing = [point for point in points if done.get(key(point, n_windows), {}).get("weights") != weights[point]]
    windows = windows_of(out, kind, n_windows)
    for at in range(0, len(missing), AT_ONCE):
        chosen = missing[at : at + AT_ONCE]
        report = perplexity(model, windows, chosen, prompt=PROMPT, n_threads=n_threads)
        done["full"] = report.full.to_dict()
        for point, found in zip(chosen, report.points, strict=True):
            done[key(point, n_windows)] = result(found) | {"weights": weights[point]}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(done, indent=1))
        os.replace(temporary, path)
        print(f"{at + len(chosen)} of {len(missing)} points", flush=True)


def summary(out: Path, kind: str) -> None:
    """Print the rise of NLL by rho and k, for each policy, and by rho and kv_window at k = 3."""
    rows = _rows(out, kind)
    refill = [row for row in rows if row["kv_window"] == 64]
    single = [row for row in rows if row["refresh"] == "single"]
    windows = [row for row in rows if row["refresh"] == "refill" and row["k"] == 3]
    for title, chosen, column in (
        ("`refill`, window 64", refill, "k"),
        ("`single`", single, "k"),
        ("`refill`, k = 3", windows, "kv_window"),
    ):
        if len({row[column] for row in chosen}) > 1:
            print(f"\n{title}:\n")
            _pivot(chosen, column)


def _pivot(rows: list[dict[str, Any]], column: str) -> None:
    heads = sorted({row[column] for row in rows})
    print(f"| rho | layers | {' | '.join(f'{column} = {head}' for head in heads)} |")
    print("|---|---|" + "---|" * len(heads))
    for rho in sorted({row["rho"] for row in rows}):
        line = {row[column]: row for row in rows if row["rho"] == rho}
        layers = _layers(next(iter(line.values())))
        print(f"| {rho} | {layers} | {' | '.join(_rise(line[head]) if head in line else '' for head in heads)} |")


def table(out: Path, kind: str) -> None:
    """Print rise of NLL, KL and agreement, a line for each point."""
    rows = _rows(out, kind)
    print("\n| refresh | kv_window | rho | k | layers | NLL rise | KL | top-1 agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=_order):
        total = row["total"]
        print(
            f"| {row['refresh']} | {'' if row['kv_window'] is None else row['kv_window']} | {row['rho']} | {row['k']} "
            f"| {_layers(row)} | {_rise(row)} | {total['kl']['mean']:.3f} | {total['agreement']['mean']:.3f} |"
        )


def _rows(out: Path, kind: str) -> list[dict[str, Any]]:
    full = json.loads((out / f"grid-{kind}.json").read_text())["full"]
    print(f"{kind}; full model: NLL {full['nll']['mean']:.3f}")
    return [row for policy in REFRESH_POLICIES for row in measured_rows(out, kind, policy)]


def _layers(row: dict[str, Any]) -> str:
    return f"{row['layers'][0]}-{row['layers'][1]}"


def _rise(row: dict[str, Any]) -> str:
    rise = row["total"]["delta_nll"]
    return f"{rise['mean']:+.3f} ± {rise['margin']:.3f}"


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["refresh"], row["kv_window"] or 0, row["rho"], row["k"]


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("step", choices=("measure", "summary", "table"))
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("windows", type=int, nargs="?", default=PER_KIND)
    parser.add_argument("--policy", choices=("single", "refill"), default="refill")
    parser.add_argument("--kv-window", type=int, nargs="+", default=KV_WINDOWS)
    parser.add_argument("--rho", type=float, nargs="+", default=RHOS)
    parser.add_argument("--k", type=int, nargs="+", default=KS)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.step != "measure":
        {"summary": summary, "table": table}[args.step](args.out, args.kind)
        return
    join(args.model, args.out, args.policy)
    kept = args.kv_window if args.policy == "refill" else [0]
    points = [
        Point(rho=rho, k=k, refresh=args.policy, kv_window=kv_window, corrector=args.out / f"{args.policy}.gguf")
        for kv_window, rho, k in itertools.product(kept, args.rho, args.k)
    ]
    measure(args.model, args.out, args.kind, args.windows, points, args.threads)


if __name__ == "__main__":
    main()
