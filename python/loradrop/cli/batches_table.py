"""A report on batches as tables on stdout."""

from __future__ import annotations

from rich.table import Table

from loradrop.bench.batch_report import BatchReport, ContextBatches
from loradrop.cli.tables import figures_table, size_text, spread_text, stdout_console


def print_batches(report: BatchReport) -> None:
    """Print the machine's floor, and a table of batches for each length of the context."""
    console = stdout_console()
    console.print(
        f"{report.description}: {report.n_rounds} rounds, {report.n_threads} threads, "
        f"kernels {' and '.join(report.kernels)}, {report.processor}",
        soft_wrap=True,
    )
    console.print(_floor_text(report))
    for one in report.contexts:
        n_bytes = report.floor.step_bytes + one.kv_bytes
        console.print(
            f"after {one.context} tokens: {size_text(one.kv_bytes)} of K/V too, "
            f"one token in {report.floor.read_ms(n_bytes):.2f} ms at the floor"
        )
        console.print(_table(report, one))
    console.print(
        "ms: median over the rounds; ratios: within a round, in brackets least and greatest; products: at the floor"
    )


def _floor_text(report: BatchReport) -> str:
    floor = report.floor
    text = (
        f"floor: {floor.bytes_per_second / 1e9:.1f} GB/s, one token's {size_text(floor.step_bytes)} of weights in "
        f"{floor.read_ms(floor.step_bytes):.2f} ms"
    )
    if floor.products_per_second is None:
        return text
    return f"{text}; {floor.products_per_second / 1e9:.0f} G int8 products/s"


def _table(report: BatchReport, context: ContextBatches) -> Table:
    first, *others = report.kernels
    headings = [text for name in report.kernels for text in (f"{name} ms", "ratio")]
    table = figures_table("tokens", *headings, *(f"{name}/{first}" for name in others), "products ms")
    for size in report.sizes:
        times = [one for one in context.times if one.size == size]
        cells = [text for one in times for text in (f"{one.ms.median:.2f}", spread_text(one.ratio))]
        products = report.floor.products_ms(size)
        table.add_row(
            str(size),
            *cells,
            *(spread_text(one.beside_first) for one in times[1:]),
            "" if products is None else f"{products:.2f}",
        )
    return table
