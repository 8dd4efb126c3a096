"""A bench report as a table on stdout."""

from __future__ import annotations

from collections.abc import Sequence

from loradrop.bench.profile import StepProfile
from loradrop.bench.report import BenchReport, Decode, PointBench
from loradrop.cli.points import point_name
from loradrop.cli.tables import figures_table, size_text, spread_text, stdout_console
from loradrop.stats import tokens_per_round


def print_report(report: BenchReport) -> None:
    """Print speed, memory and the ceiling of the full model and all points."""
    console = stdout_console()
    console.print(
        f"{report.description}: {report.tokens} tokens decoded after a prompt of {report.prompt}, "
        f"{report.n_rounds} rounds, {report.n_threads} threads"
    )
    verified = any(point.decode.draft_rounds for point in report.points)
    drafts = ["a round"] if verified else []
    table = figures_table("point", "tokens/s", "speed-up", "ms p50", "p95", "KV cache", *drafts, "ceiling", "reached")
    table.add_row("full", *_cells(report.full, ""), *("" for _ in drafts), "", "")
    for point in report.points:
        cells = _cells(point.decode, spread_text(point.speed_up))
        if verified:
            cells.append(_tokens_per_round(point.decode))
        table.add_row(point_name(point.point), *cells, *_ceiling(point))
    console.print(table)
    console.print("tokens/s and speed-up: median over the rounds; in brackets the speed-up's least and greatest")


def print_profiles(profiles: Sequence[StepProfile]) -> None:
    """Print a table of operations for each kind of step."""
    console = stdout_console()
    for profile in profiles:
        where = "full model" if profile.point is None else f"{point_name(profile.point)}, {profile.kind} step"
        console.print(f"{where}: {profile.seconds * 1e3:.2f} ms in operations, median of {profile.n_steps} steps")
        table = figures_table("operation", "type", "count", "ms", "share", "MiB", "GB/s")
        for one in profile.operations:
            share = one.seconds / profile.seconds
            rate = f"{one.n_bytes / one.seconds / 1e9:.1f}" if one.n_bytes else ""
            size = f"{one.n_bytes / 2**20:.1f}" if one.n_bytes else ""
            table.add_row(one.name, one.type, str(one.count), f"{one.seconds * 1e3:.3f}", f"{share:.1%}", size, rate)
        console.print(table)


def _tokens_per_round(decode: Decode) -> str:
    return f"{tokens_per_round(decode.draft_rounds, decode.accepted):.2f}" if decode.draft_rounds else ""


def _ceiling(point: PointBench) -> tuple[str, str]:
    if point.ceiling is None or point.share_of_ceiling is None:
        return "", ""
    return f"{point.ceiling:.2f}", f"{point.share_of_ceiling:.0%}"


def _cells(decode: Decode, speed_up: str) -> list[str]:
    return [
        f"{decode.tokens_per_second.median:.1f}",
        speed_up,
        f"{decode.ms_per_token_p50:.2f}",
        f"{decode.ms_per_token_p95:.2f}",
        size_text(decode.kv_bytes),
    ]
