"""A picture of an analysis: cosines and damage by layer."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loradrop.analyze.report import Analysis, LayerReport
from loradrop.checks import check_choice

FORMATS = (".png", ".svg", ".pdf")
COSINES = {"redundancy": "output, token to token", "deltas": "delta, token to token", "input_output": "input to output"}


def check_picture(path: Path) -> None:
    """Check, before any work, that a picture of that name can be drawn.

    Raises
    ------
    ValueError
        If the name ends in no known format.
    RuntimeError
        If matplotlib is missing.
    """
    check_choice("plot", path.suffix.lower(), FORMATS)
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError('plot: matplotlib is missing: pip install "loradrop[train]"')


def draw(analysis: Analysis, path: Path, suffix: str) -> None:
    """Draw cosines above damage, by layer.

    Parameters
    ----------
    analysis : Analysis
    path : path
        Written to.
    suffix : str
        The format: one of `FORMATS`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_cosines(above, analysis.layers)
    _draw_damage(below, [layer for layer in analysis.layers if layer.damage is not None])
    figure.suptitle(f"{Path(analysis.model).name}, k = {analysis.options.k}, {analysis.options.refresh}")
    figure.savefig(path, format=suffix.lower().removeprefix("."))


def _draw_cosines(axes: Any, layers: Sequence[LayerReport]) -> None:
    for name, label in COSINES.items():
        values = [getattr(layer.cosines, name, None) for layer in layers]
        axes.plot(range(len(layers)), [float("nan") if v is None else v for v in values], marker=".", label=label)
    axes.set_ylabel("mean cosine")
    axes.legend()


def _draw_damage(axes: Any, layers: Sequence[LayerReport]) -> None:
    for label, chosen in (("in the order", True), ("not in it", False)):
        shown = [(layer.layer, layer.damage) for layer in layers if (layer.rank is not None) == chosen and layer.damage]
        if shown:
            axes.bar(
                [layer for layer, _ in shown],
                [damage.mean for _, damage in shown],
                yerr=[damage.margin or 0.0 for _, damage in shown],
                capsize=2,
                label=label,
            )
    axes.set_xlabel("layer")
    axes.set_ylabel("rise of NLL when it drops alone, nats")
    axes.legend()
