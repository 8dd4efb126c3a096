"""A folder with the states that the full model gives for a set of texts: what training never changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from loradrop.train.decoder import LayeredDecoder

F16_MAX = 65504.0


class StateStore:
    """Texts and, for some layers, the layer's inputs; opened from a folder that `collect` has written.

    Parameters
    ----------
    folder : path

    Attributes
    ----------
    tokens : int32 array [n_texts, n_tokens]

    Raises
    ------
    FileNotFoundError
        If the folder holds no finished states.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        done = _n_done(self._folder)
        if not done:
            raise FileNotFoundError(f"{self._folder}: holds no states; make them with `loradrop train`")
        self.tokens: NDArray[np.int32] = np.load(self._folder / "tokens.npy")[:done]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.tokens)

    def inputs(self, layer: int) -> NDArray[np.float16]:
        """Return the inputs of a layer, float16 [n_texts, n_tokens, n_embd], mapped from disk.

        ``layer`` = n_layer gives the last layer's output.
        """
        path = _layer_path(self._folder, layer)
        if not path.exists():
            raise FileNotFoundError(f"{path}: the inputs of layer {layer} were not kept")
        states: NDArray[np.float16] = np.load(path, mmap_mode="r")[: len(self)]
        return states


@torch.no_grad()
def collect(
    decoder: LayeredDecoder,
    tokens: NDArray[np.int32],
    layers: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    batch: int = 8,
    advance: Callable[[int], None] | None = None,
) -> StateStore:
    """Run texts through the full model and keep the inputs of some layers; goes on where it was stopped.

    Parameters
    ----------
    decoder : LayeredDecoder
    tokens : int32 array [n_texts, n_tokens]
    layers : sequence of int
        0 to n_layer; n_layer stands for the last layer's output.
    folder : path
        Made if needed. 2 bytes a number: n_texts x n_tokens x n_embd x layers x 2.
    batch : int
        Texts at once.
    advance : callable, optional
        Called with the number of texts done since the last call.

    Raises
    ------
    ValueError
        If the folder belongs to other texts, or a state does not fit into float16.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = _start(folder, tokens)
    shape = (*tokens.shape, decoder.n_embd)
    files = {}
    for layer in layers:
        path = _layer_path(folder, layer)
        files[layer] = open_memmap(path, "r+" if path.exists() else "w+", np.float16, None if path.exists() else shape)
    while done < len(tokens):
        ids = torch.from_numpy(tokens[done : done + batch].astype(np.int64)).to(decoder.device)
        positions = torch.arange(ids.shape[1], device=decoder.device)
        x = decoder.embed(ids)
        for layer in range(max(layers) + 1):
            if layer in files:
                files[layer][done : done + len(ids)] = _as_f16(x, layer)
            if layer < decoder.n_layer:
                x = decoder.layer(layer, x, positions)
        done += len(ids)
        for file in files.values():
            file.flush()
        _write_done(folder, done)
        if advance is not None:
            advance(len(ids))
    return StateStore(folder)


def _as_f16(x: torch.Tensor, layer: int) -> NDArray[np.float16]:
    largest = float(x.abs().max())
    if not largest < F16_MAX:
        raise ValueError(f"input of layer {layer} reaches {largest:g}, float16 holds {F16_MAX:g}; train without a cache")
    return x.to("cpu", torch.float16).numpy()


def _start(folder: Path, tokens: NDArray[np.int32]) -> int:
    path = folder / "tokens.npy"
    if not path.exists():
        np.save(path, tokens)
        _write_done(folder, 0)
    elif not np.array_equal(np.load(path), tokens):
        raise ValueError(f"{folder}: holds the states of other texts; give an empty folder")
    return _n_done(folder)


def _layer_path(folder: Path, layer: int) -> Path:
    return folder / f"inputs-{layer:03d}.npy"


def _n_done(folder: Path) -> int:
    path = folder / "done.json"
    return int(json.loads(path.read_text())["texts"]) if path.exists() else 0


def _write_done(folder: Path, texts: int) -> None:
    temporary = folder / "done.json.tmp"
    temporary.write_text(json.dumps({"texts": texts}))
    os.replace(temporary, folder / "done.json")
