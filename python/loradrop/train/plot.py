"""A picture of a training's log."""

from __future__ import annotations

import csv
from pathlib import Path


def plot_log(log: Path, picture: Path) -> None:
    """Draw KL and loss over the tokens seen, from a ``log.csv``, as PNG."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for dropped in dict.fromkeys(row["dropped"] for row in rows):
        chosen = [row for row in rows if row["dropped"] == dropped]
        tokens = [float(row["tokens"]) for row in chosen]
        (line,) = axes.plot(tokens, [float(row["kl"]) for row in chosen], label=f"layers {dropped}: KL, held out")
        rise = [float(row["nll_rise"]) for row in chosen]
        axes.plot(tokens, rise, "--", color=line.get_color(), label=f"layers {dropped}: rise of NLL, held out")
    axes.plot(tokens, [float(row["loss"]) for row in chosen], color="gray", label="loss", alpha=0.5)
    axes.set_xlabel("tokens")
    axes.set_ylabel("nats")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(picture, format="png")
