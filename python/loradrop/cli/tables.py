"""What the tables of commands have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from loradrop.bench.report import Spread

PIPE_WIDTH = 120  # of a console that is no terminal


def stdout_console() -> Console:
    """Return a console for tables on stdout."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def figures_table(first: str, *others: str) -> Table:
    """Return an empty table with a column of names and then columns of figures, under these headings."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def spread_text(spread: Spread) -> str:
    """Return a ratio's median, and in brackets its least and greatest."""
    return f"{spread.median:.2f} ({spread.least:.2f} to {spread.greatest:.2f})"


def size_text(n_bytes: int) -> str:
    """Return a size in MiB, or in KiB if it is small."""
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:.1f} KiB"
    return f"{n_bytes / 2**20:.1f} MiB"
