"""The texts of a training as windows of tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loradrop._core import Model
from loradrop.evaluate.windows import text_windows
from loradrop.self_text import write_texts
from loradrop.text_files import read_texts

Tokens = NDArray[np.int32]
HELD_OUT_EVERY = 16


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, int32 [n, n_tokens], to learn from and to judge by."""

    train: Tokens
    held_out: Tokens


def make_texts(
    model: Model,
    paths: Sequence[str | os.PathLike[str]],
    n_written: int,
    *,
    n_tokens: int,
    n_texts: int | None = None,
    held_out: Sequence[str | os.PathLike[str]] = (),
    seed: int = 0,
    n_threads: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Texts:
    """Return windows of files and of the model's own writing, shuffled.

    Parameters
    ----------
    model : Model
        Tokenises, and writes.
    paths : sequence of path
        Files of text, UTF-8.
    n_written : int
        How many windows the model writes itself.
    n_tokens : int
        Tokens of a window.
    n_texts : int, optional
        The most windows to take from all files together, evenly spread over them.
    held_out : sequence of path
        Files to judge by. If there are none, every sixteenth window is set apart.
    seed : int
    n_threads : int
    advance : callable, optional
        Called with the number of windows just written by the model.

    Raises
    ------
    ValueError
        If there is nothing to learn from, or a file is shorter than a window.
    """
    parts = []
    if paths:
        parts.append(text_windows(model, read_texts(paths), n_tokens, n_texts))
    if n_written:
        parts.append(write_texts(model, n_written, n_tokens, seed=seed, n_threads=n_threads, advance=advance))
    if not parts:
        raise ValueError("there is no text: give files of text, or let the model write some itself")
    windows = np.concatenate(parts)
    windows = windows[np.random.default_rng(seed).permutation(len(windows))]
    if held_out:
        return Texts(windows, text_windows(model, read_texts(held_out), n_tokens, 64))
    judged = np.arange(len(windows)) % HELD_OUT_EVERY == 0
    if judged.all():
        raise ValueError(f"one window of {n_tokens} tokens is all there is; give more text")
    return Texts(windows[~judged], windows[judged])
