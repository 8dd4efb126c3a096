"""How far work is, told to a caller's callback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

# Told how much is done, and of how much.
Progress = Callable[[int, int], None]
# Told what is being done, how much of it is done, and of how much.
StageProgress = Callable[[str, int, int], None]


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Return a callback that is told how much more is done, and tells `progress` how much is in all."""
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(done, total)

    return advance


def stage_counter(show: StageProgress, what: str, total: int) -> Callable[[int], None]:
    """Show that a stage begins, and return a callback that is told how much more of it is done, and shows it."""
    show(what, 0, total)
    return counter(partial(show, what), total)
