"""A folder with hidden states of texts: what a frozen model gives, computed once and mapped from disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from loradrop_convert.output import check_space, no_room_names

F16_MAX = 65504.0
N_SKIPPED = 4  # first tokens of a text, whose states are unlike all others
Tokens = NDArray[np.int32]
States = NDArray[np.float16]


class StateStore:
    """Texts and their states, by name; what a `StateWriter` has written.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    tokens : int32 array [n_texts, n_tokens]
    model : str
        What tells the model from others.

    Raises
    ------
    FileNotFoundError
        If the folder holds no states.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        done = _n_done(self._folder)
        if not done:
            raise FileNotFoundError(f"{self._folder}: holds no states; give the folder of an earlier run")
        self.tokens: Tokens = np.load(self._folder / "tokens.npy")[:done]
        self.model: str = _read_done(self._folder).get("model", "")

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.tokens)

    def inputs(self, layer: int) -> States:
        """Return the inputs of a layer, float16 [n_texts, n_tokens, n_embd], mapped from disk.

        ``layer`` = n_layer gives the last layer's output.
        """
        return self[inputs_name(layer)]

    def __contains__(self, name: str) -> bool:
        """Return whether the states of that name were kept."""
        return _path(self._folder, name).exists()

    def __getitem__(self, name: str) -> States:
        """Return states by name, float16 [n_texts, n_tokens, width], mapped from disk.

        Raises
        ------
        FileNotFoundError
            If they were not kept.
        """
        path = _path(self._folder, name)
        if not path.exists():
            raise FileNotFoundError(f"{path}: the {name} were not kept; give an empty folder")
        states: States = np.load(path, mmap_mode="r")[: len(self)]
        return states


class StateWriter:
    """Fills a folder text by text; a folder that was left half-way is gone on with.

    It takes n_texts x n_tokens x width x 2 bytes for each name.

    Parameters
    ----------
    folder : path
        Made if needed.
    tokens : int32 array [n_texts, n_tokens]
    widths : mapping of str to int
        Name of each kind of states -> numbers for each token; see `inputs_name`.
    model : str
        What tells the model from others; a folder is gone on with by the same one alone.

    Attributes
    ----------
    done : int
        Texts that are written.

    Raises
    ------
    ValueError
        If the folder holds the states of other texts, of another model or of other sizes, or lacks one of the names.
    OSError
        If there is no room for them; all of it is taken at once.
    """

    def __init__(
        self, folder: str | os.PathLike[str], tokens: Tokens, widths: Mapping[str, int], *, model: str = ""
    ) -> None:
        self._folder, self._model = Path(folder), model
        self._folder.mkdir(parents=True, exist_ok=True)
        self._start(tokens)
        self.done = _n_done(self._folder)
        self._files = {name: self._open(name, (*tokens.shape, width)) for name, width in widths.items()}

    def append(self, states: Mapping[str, NDArray[np.floating[Any]]], tokens: Tokens | None = None) -> None:
        """Write the states of the next texts.

        Parameters
        ----------
        states : mapping of str to float array [n, n_tokens, width]
            Name -> states, for all names of the writer.
        tokens : int32 array [n, n_tokens], optional
            Replaces what the writer was made with, where texts come to be only with their states.

        Raises
        ------
        ValueError
            If a state does not fit into float16.
        """
        n = len(next(iter(states.values())))
        for name, file in self._files.items():
            largest = float(np.abs(states[name]).max())
            if not largest < F16_MAX:
                raise ValueError(f"{name}: a state of {largest:g}; float16 holds {F16_MAX:g}")
            file[self.done : self.done + n] = states[name]
        if tokens is not None:
            known = np.load(self._folder / "tokens.npy", mmap_mode="r+")
            known[self.done : self.done + n] = tokens
            known.flush()
        self.done += n
        self._write_done(self.done)

    def _start(self, tokens: Tokens) -> None:
        path = self._folder / "tokens.npy"
        if not path.exists():
            self._write_done(0)
            np.save(path, tokens)
        elif not np.array_equal(np.load(path), tokens):
            raise ValueError(f"{self._folder}: holds the states of other texts; give an empty folder")
        elif _read_done(self._folder).get("model", self._model) != self._model:
            raise ValueError(f"{self._folder}: holds the states of another model; give an empty folder")

    def _open(self, name: str, shape: tuple[int, int, int]) -> States:
        path = _path(self._folder, name)
        if path.exists():
            states: States = open_memmap(path, "r+")
            if states.shape != shape:
                raise ValueError(f"{path}: holds {list(states.shape)} numbers, not {list(shape)}; give an empty folder")
            return states
        if self.done:
            raise ValueError(f"{self._folder}: lacks the {name}; give an empty folder")
        return _new_file(path, shape)

    def _write_done(self, texts: int) -> None:
        temporary = self._folder / "done.json.tmp"
        temporary.write_text(json.dumps({"texts": texts, "model": self._model}))
        os.replace(temporary, self._folder / "done.json")


def _new_file(path: Path, shape: tuple[int, int, int]) -> States:
    """Return a file of states, mapped, with its room taken: a mapping that meets a full disk kills the process."""
    n_bytes = 2 * math.prod(shape)
    check_space(path, n_bytes)
    try:
        states: States = open_memmap(path, "w+", np.float16, shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file, no_room_names(path):
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return states


def inputs_name(layer: int) -> str:
    """Return the name of a layer's inputs; n_layer stands for the last layer's output."""
    return f"inputs-{layer:03d}"


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _n_done(folder: Path) -> int:
    return int(_read_done(folder)["texts"])


def _read_done(folder: Path) -> dict[str, Any]:
    path = folder / "done.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"texts": 0}
    return found
