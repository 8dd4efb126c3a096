"""How long work shows on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from loradrop.models import Progress as PullProgress
from loradrop.progress import Progress, StageProgress


@contextmanager
def pull_progress() -> Iterator[PullProgress]:
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
def token_progress(what: str) -> Iterator[Progress]:
    """Give a callback that shows how many tokens are done, and of how many, on stderr, if that is a terminal."""
    with stage_progress(what) as show:
        yield partial(show, what)


@contextmanager
def stage_progress(first: str = "", *, hidden: bool = False) -> Iterator[StageProgress]:
    """Give a callback that shows what is being done and how far it is, on stderr, if that is a terminal.

    Before it is called, `first` is shown as what is being done.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bars:
        task = bars.add_task(first, total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)
