"""How a download shows on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from loradrop.models import Progress


@contextmanager
def pull_progress() -> Iterator[Progress]:
    """Give a callback that shows progress on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
    task: TaskID | None = None

    def show(what: str, done: int, total: int | None) -> None:
        nonlocal task
        if task is None:
            bars.start()
            task = bars.add_task(what, total=total)
        bars.update(task, description=what, completed=done, total=total)

    try:
        yield show
    finally:
        bars.stop()
