"""What the text of the training does to the loss on each kind of text: a table of docs/correctors.md.

    python text_kinds.py MODEL.gguf OUT [--threads N]

Uses the texts and states that recipe.py has made in OUT. As many windows of each kind, and of all three mixed, train a
corrector on states alone; each is judged by decoding held-out windows of each kind: k = 3, refill, window 64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from grid import KINDS, PROMPT, windows_of
from numpy.typing import NDArray
from recipe import OWN, WINDOWS
from study import BASE

from loradrop.evaluate import Point, perplexity
from loradrop.state_store import StateStore, StateWriter, inputs_name
from loradrop.train.texts import Texts, load_texts
from loradrop.train.train import train

LAYERS = (10, 18, 30)  # whose inputs BASE needs
POINT = Point(rho=0.27, k=3, refresh="refill", kv_window=64)
HELD_OUT = 8  # windows of each kind


def rows_of_kinds() -> dict[str, NDArray[np.intp]]:
    """Return as many rows of texts.npz for each kind, and for all of them mixed."""
    mixed = np.random.default_rng(0).permutation(sum(WINDOWS.values()) + OWN)  # as recipe.py has mixed them
    edges = np.cumsum([0, *WINDOWS.values(), OWN])
    kinds = {
        kind: np.flatnonzero((mixed >= start) & (mixed < end))[:OWN]
        for kind, start, end in zip(KINDS, edges, edges[1:], strict=False)
    }
    third = [rows[: OWN // len(KINDS)] for rows in kinds.values()]
    return kinds | {"a third of each": np.sort(np.concatenate(third))}


def part_of(store: StateStore, rows: NDArray[np.intp], folder: Path) -> None:
    """Copy the states of some texts into a folder of their own."""
    widths = {inputs_name(layer): store.inputs(layer).shape[-1] for layer in LAYERS}
    writer = StateWriter(folder, store.tokens[rows], widths, model=store.model)
    for row in rows[writer.done :]:
        writer.append({inputs_name(layer): store.inputs(layer)[row : row + 1].astype(np.float32) for layer in LAYERS})


def main() -> None:
    """Train, decode and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = load_texts(args.out / "texts.npz")
    everything = range(len(texts.held_out))
    print(f"| trained on | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 1)}", flush=True)
    for name, rows in rows_of_kinds().items():
        folder = args.out / "study" / f"text-{name.replace(' ', '-')}"
        part_of(StateStore(args.out / "states" / "train"), rows, folder / "states" / "train")
        part_of(StateStore(args.out / "states" / "held-out"), np.array(everything), folder / "states" / "held-out")
        if not (folder / "corrector.gguf").exists():
            train(args.model, Texts(texts.train[rows], texts.held_out), folder, BASE, resume=True)
        rises = [_rise(args.model, args.out, kind, folder / "corrector.gguf", args.threads) for kind in KINDS]
        print(f"| {name} | {' | '.join(rises)} |", flush=True)


def _rise(model: Path, out: Path, kind: str, corrector: Path, n_threads: int) -> str:
    windows = windows_of(out, kind, HELD_OUT)
    (point,) = perplexity(model, windows, [POINT], corrector=corrector, prompt=PROMPT, n_threads=n_threads).points
    return f"{point.total.delta_nll.mean:+.3f} ± {point.total.delta_nll.margin:.3f}"


if __name__ == "__main__":
    main()
