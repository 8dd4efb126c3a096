"""Windows of text to fit correctors to: from files, from the model's own writing, or from both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from loradrop._core import Model
from loradrop.checks import check_int
from loradrop.evaluate.windows import text_windows
from loradrop.progress import StageProgress, counter
from loradrop.self_text import MAX_SEED, write_texts
from loradrop.state_store import Tokens


def gather_windows(
    model: Model,
    texts: Mapping[str, str],
    n_read: int | None,
    n_written: int,
    n_tokens: int,
    *,
    seed: int = 0,
    n_threads: int = 0,
    progress: StageProgress | None = None,
) -> Tokens:
    """Return windows of tokens, int32 [n, n_tokens], shuffled.

    Parameters
    ----------
    model : Model
        Tokenises, and writes.
    texts : mapping of str to str
        Name -> text.
    n_read : int, optional
        The most windows to take from all texts together, evenly spread over them; None takes all.
    n_written : int
        How many windows the model writes itself.
    n_tokens : int
        Tokens of a window.
    seed, n_threads : int
        See `write_texts`.
    progress : callable, optional
        Called with what is being done, how much of it is done, and of how much.

    Raises
    ------
    ValueError
        If there is no text, or one is shorter than a window, or a number is out of its range.
    """
    check_int("seed", seed, 0, MAX_SEED)
    check_int("self", n_written, 0)
    advance = None if progress is None else counter(partial(progress, "texts written by the model"), n_written)
    parts = []
    if texts:
        parts.append(text_windows(model, texts, n_tokens, n_read))
    if n_written:
        parts.append(write_texts(model, n_written, n_tokens, seed=seed, n_threads=n_threads, advance=advance))
    if not parts:
        raise ValueError("there is no text: give files of text, or let the model write some itself")
    windows = np.concatenate(parts)
    return windows[np.random.default_rng(seed).permutation(len(windows))]


def n_to_write(n_texts: int, *, files: bool, write: bool) -> int:
    """Return how many of `n_texts` windows the model writes itself, if it writes: half where there are files too."""
    return 0 if not write else n_texts // 2 if files else n_texts
