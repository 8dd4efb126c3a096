"""Texts to fit to: how many windows are read, and how many the model writes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from loradrop._core import Model
from loradrop.evaluate.windows import text_windows
from loradrop.gathered_text import n_to_write
from loradrop.state_store import Tokens
from loradrop.text_files import read_texts


def read_windows(
    model: Model, paths: Sequence[str | os.PathLike[str]], write: bool, n_texts: int, n_tokens: int
) -> tuple[Tokens, int]:
    """Return the windows that are read, int32 [n, n_tokens], in the order of the files, and how many to write.

    Parameters
    ----------
    model : Model
    paths : sequence of path
        Files of text, UTF-8.
    write : bool
        Whether the model writes windows too, see `n_to_write`.
    n_texts, n_tokens : int
        Windows, and tokens of each.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is not there, not UTF-8, or shorter than a window.
    """
    n_written = n_to_write(n_texts, files=bool(paths), write=write)
    if not paths:
        return np.empty((0, n_tokens), np.int32), n_written
    return text_windows(model, read_texts(paths), n_tokens, n_texts - n_written), n_written
