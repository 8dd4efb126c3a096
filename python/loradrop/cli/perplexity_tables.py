"""A perplexity report as tables on stdout."""

from __future__ import annotations

from loradrop.cli.points import point_name
from loradrop.cli.tables import figures_table, stdout_console
from loradrop.evaluate.interval import Estimate
from loradrop.evaluate.report import Report, Scores

HEADINGS = ("NLL", "perplexity", "NLL - full's", "KL", "same top-1")


def print_report(report: Report) -> None:
    """Print the scores of all points, and then by the number of LoRA steps since the last full step."""
    console = stdout_console()
    console.print(
        f"{report.n_windows} windows of {report.window} tokens, {report.prompt} of them prompt; "
        f"{report.full.n_tokens} tokens scored; ± is the 95 % interval over windows"
    )
    total = figures_table("point", *HEADINGS, "a round")
    total.add_row("full", *_cells(report.full), "")
    for point in report.points:
        per_round = "" if point.tokens_per_round is None else f"{point.tokens_per_round:.2f}"
        total.add_row(point_name(point.point), *_cells(point.total), per_round)
    console.print(total)
    if not report.points:
        return
    if any(point.tokens_per_round is not None for point in report.points):
        console.print("a round: tokens that one of verify would give with these drafts")
    console.print("\nBy LoRA steps since the last full step")
    by_distance = figures_table("point", "steps", "tokens", *HEADINGS)
    for point in report.points:
        for distance, scores in enumerate(point.by_distance):
            name = "" if distance else point_name(point.point)
            by_distance.add_row(name, str(distance), str(scores.n_tokens), *_cells(scores))
    console.print(by_distance)


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
