"""The texts of a calibration: how many windows are read, and how many written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from loradrop._core import Model
from loradrop.gathered_text import gather_windows
from loradrop.state_store import Tokens


def calibration_texts(
    model: Model,
    paths: Sequence[str | os.PathLike[str]],
    write: bool,
    n_texts: int,
    n_tokens: int,
    seed: int,
    n_threads: int,
    progress: Callable[[str, int, int], None],
) -> Tokens:
    """Return windows of tokens, int32 [n, n_tokens], shuffled.

    Parameters
    ----------
    model : Model
    paths : sequence of path
        Files of text, UTF-8.
    write : bool
        Whether the model writes windows too: half of them where there are files as well.
    n_texts, n_tokens : int
        Windows, and tokens of each.
    seed, n_threads : int
    progress : callable
        Called with what is being done, how much of it is done, and of how much.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is not there, not UTF-8, or shorter than a window.
    """
    n_written = 0 if not write else n_texts // 2 if paths else n_texts
    return gather_windows(
        model, paths, n_texts - n_written, n_written, n_tokens, seed=seed, n_threads=n_threads, progress=progress
    )
