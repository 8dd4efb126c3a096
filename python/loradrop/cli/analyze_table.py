"""An analysis as a table on stdout."""

from __future__ import annotations

from rich.table import Table

from loradrop.analyze.report import Analysis, LayerReport
from loradrop.cli.tables import stdout_console
from loradrop.evaluate import Estimate

HEADINGS = ("y to y", "delta to delta", "x to y", "NLL rise alone", "rank", "with those before")


def print_analysis(analysis: Analysis) -> None:
    """Print what was measured of each layer, and the proposed order on a line of its own."""
    console = stdout_console()
    options = analysis.options
    console.print(
        f"{analysis.n_windows} windows of {analysis.window} tokens, {options.prompt} of them prompt; k {options.k}, "
        f"{options.refresh}; {_stand_in(analysis)}\n"
        f"full model's NLL {_text(analysis.full)}; {analysis.n_points} points; ± is the 95 % interval over windows"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", *HEADINGS):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in analysis.layers:
        table.add_row(*_cells(layer))
    console.print(table)
    console.print("order of lora_drop.layers, for --layers of loradrop train:")
    console.print(",".join(map(str, analysis.order)), soft_wrap=True)


def _stand_in(analysis: Analysis) -> str:
    if not analysis.n_fit:
        return "dropped layers hand their input on"
    return f"correctors of rank {analysis.options.rank} fitted to {analysis.n_fit} other windows"


def _cells(layer: LayerReport) -> list[str]:
    cosines = layer.cosines or (None, None, None)
    return [
        str(layer.layer),
        *("" if cosine is None else f"{cosine:.3f}" for cosine in cosines),
        _text(layer.damage),
        "" if layer.rank is None else str(layer.rank),
        _text(layer.together),
    ]


def _text(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.4f}" if value.margin is None else f"{value.mean:.4f} ±{value.margin:.4f}"
