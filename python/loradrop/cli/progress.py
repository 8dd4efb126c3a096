"""How long work shows on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
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


@contextmanager
def token_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callback that shows how many tokens are done, and of how many, on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def stage_progress(*, hidden: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Give a callback that shows what is being done and how far it is, on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)
