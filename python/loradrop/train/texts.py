"""The texts of a training: windows to learn from, and windows to judge by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loradrop._core import Model
from loradrop.evaluate.windows import text_windows
from loradrop.state_store import Tokens
from loradrop.text_files import read_texts
from loradrop_convert.output import complete_file

HELD_OUT_EVERY = 16
MOST_HELD_OUT = 64  # windows of files that only judge


@dataclass(frozen=True)
class Texts:
    """Windows of tokens, int32 [n, n_tokens], to learn from and to judge by."""

    train: Tokens
    held_out: Tokens


def save_texts(path: Path, texts: Texts) -> None:
    """Write the windows, so that a resumed training has the same ones without writing or tokenising anew."""
    with complete_file(path, force=True) as temporary, temporary.open("wb") as file:
        np.savez(file, train=texts.train, held_out=texts.held_out)


def load_texts(path: Path) -> Texts:
    """Return the windows that `save_texts` has written."""
    with np.load(path) as saved:
        return Texts(saved["train"], saved["held_out"])


def split_texts(model: Model, windows: Tokens, held_out: Sequence[str | os.PathLike[str]] = ()) -> Texts:
    """Return the windows with others to judge by.

    Parameters
    ----------
    model : Model
        Tokenises.
    windows : int32 array [n, n_tokens]
    held_out : sequence of path
        Files to judge by. If there are none, every sixteenth window is set apart.

    Raises
    ------
    ValueError
        If there is one window alone, or a file is shorter than one.
    """
    if held_out:
        return Texts(windows, text_windows(model, read_texts(held_out), windows.shape[1], MOST_HELD_OUT))
    judged = np.arange(len(windows)) % HELD_OUT_EVERY == 0
    if judged.all():
        raise ValueError(f"one window of {windows.shape[1]} tokens is all there is; give more text")
    return Texts(windows[~judged], windows[judged])
