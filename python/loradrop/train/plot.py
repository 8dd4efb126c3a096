"""A picture of a training's log."""

from __future__ import annotations

import csv
from pathlib import Path


def plot_log(log: Path, picture: Path) -> None:
    """Draw KL and loss over the tokens seen, from a ``log.csv``, as PNG."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    tokens = [row["tokens"] for row in rows]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(tokens, [row["kl"] for row in rows], label="KL to the full model, held out")
    axes.plot(tokens, [row["nll_rise"] for row in rows], label="NLL above the full model, held out")
    axes.plot(tokens, [row["loss"] for row in rows], label="loss", alpha=0.5)
    axes.set_xlabel("tokens")
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(picture, format="png")
