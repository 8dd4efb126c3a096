"""A perplexity report as tables on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from loradrop.cli.points import point_name
from loradrop.evaluate.interval import Estimate
from loradrop.evaluate.report import Report, Scores

PIPE_WIDTH = 120  # of a console that is no terminal


def print_report(report: Report) -> None:
    """Print the scores of all points, and then by the number of LoRA steps since the last full step."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(
        f"{report.n_windows} windows of {report.window} tokens, {report.prompt} of them prompt; "
        f"{report.full.n_tokens} tokens scored; ± is the 95 % interval over windows"
    )
    total = _table("point")
    total.add_row("full", *_cells(report.full))
    for point in report.points:
        total.add_row(point_name(point.point), *_cells(point.total))
    console.print(total)
    if not report.points:
        return
    console.print("\nBy LoRA steps since the last full step")
    by_distance = _table("point", "steps", "tokens")
    for point in report.points:
        for distance, scores in enumerate(point.by_distance):
            name = "" if distance else point_name(point.point)
            by_distance.add_row(name, str(distance), str(scores.n_tokens), *_cells(scores))
    console.print(by_distance)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in (*others, "NLL", "perplexity", "NLL - full's", "KL", "same top-1"):
        table.add_column(heading, justify="right")
    return table


def _cells(scores: Scores) -> list[str]:
    return [
        _text(scores.nll),
        f"{scores.perplexity:.2f}",
        _text(scores.delta_nll),
        _text(scores.kl),
        _text(scores.agreement, digits=3),
    ]


def _text(value: Estimate, digits: int = 4) -> str:
    mean = f"{value.mean:.{digits}f}"
    return mean if value.margin is None else f"{mean} ±{value.margin:.{digits}f}"
