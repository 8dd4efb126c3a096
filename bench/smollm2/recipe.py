"""Train the correctors of SmolLM2-135M-Instruct that the package carries.

    python corpus.py TEXTS
    python recipe.py MODEL.gguf TEXTS OUT texts     the windows, of which the model writes a part itself
    python recipe.py MODEL.gguf TEXTS OUT states    what the full model gives for them (12 GB)
    python recipe.py MODEL.gguf TEXTS OUT run FIRST LAST HIDDEN STATE_STEPS STEPS    one run; may be stopped
    python recipe.py MODEL.gguf TEXTS OUT single FIRST LAST HIDDEN STEPS    goes on from `run`, for the paper's policy
    python recipe.py MODEL.gguf TEXTS OUT join      all runs as one corrector for each policy:
                                                    OUT/refill.gguf, OUT/single.gguf

Runs are independent of each other: start as many at once as there are cores. grid.py measures them; `join` after it
puts what was measured into the files. Needs the extra ``train``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joined import join

from loradrop._core import Model
from loradrop.evaluate.windows import text_windows
from loradrop.self_text import write_texts
from loradrop.train.decoder import load_decoder
from loradrop.train.loop import LoopOptions
from loradrop.train.states import collect
from loradrop.train.student import Shape
from loradrop.train.texts import Texts, load_texts, save_texts
from loradrop.train.train import TrainOptions, train
from loradrop_convert.sources import read_corrector

N_TOKENS = 256
WINDOWS = {"prose.txt": 1400, "documents.txt": 700}
OWN = 400  # windows that the model writes
HELD_OUT = 16  # of each kind
HELD_OUT_SEED = 10**6  # of the model's own writing, apart from what it learns from
ENDS = (3, 8, 10, 12, 15, 18, 26, 30)  # layers whose inputs runs begin or end with
KV_LAYERS = range(18, 30)
SHOW_EVERY = 30.0  # seconds


def make_texts(model_path: Path, folder: Path, out: Path) -> None:
    """Write OUT/texts.npz."""
    model = Model(str(model_path))

    def windows(part: str, name: str, n: int) -> np.ndarray:
        return text_windows(model, (folder / part / name).read_text(), N_TOKENS, n)

    train_parts = [windows("train", name, n) for name, n in WINDOWS.items()] + [write_texts(model, OWN, N_TOKENS)]
    held_out = [windows("held-out", name, HELD_OUT) for name in WINDOWS]
    held_out.append(write_texts(model, HELD_OUT, N_TOKENS, seed=HELD_OUT_SEED))
    mixed = np.concatenate(train_parts)
    mixed = mixed[np.random.default_rng(0).permutation(len(mixed))]
    out.mkdir(parents=True, exist_ok=True)
    save_texts(out / "texts.npz", Texts(mixed, np.concatenate(held_out)))


def make_states(model_path: Path, texts: Texts, out: Path) -> None:
    """Fill OUT/states, which all runs share."""
    decoder = load_decoder(model_path)
    for name, tokens in (("train", texts.train), ("held-out", texts.held_out)):
        collect(decoder, tokens, ENDS, out / "states" / name, kv_layers=KV_LAYERS, advance=_Shown(len(tokens)))


class _Shown:
    """Prints how far a long task has come, now and then."""

    def __init__(self, total: int) -> None:
        self._done, self._total, self._start, self._last = 0, total, time.monotonic(), 0.0

    def __call__(self, n: int) -> None:
        self._done += n
        self.at("texts", self._done, self._total)

    def at(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last > SHOW_EVERY:
            self._last = now
            print(f"{now - self._start:.0f} s  {what}  {done}/{total}", flush=True)


def make_run(model_path: Path, texts: Texts, out: Path, arguments: list[str]) -> None:
    """Train one run of layers for refill in OUT/run-FIRST-LAST."""
    first, last, hidden, state_steps, steps = map(int, arguments)
    options = _options(first, last, hidden, steps, state_steps=state_steps)
    folder = out / f"run-{first}-{last}"
    print(train(model_path, texts, folder, options, states=out / "states", resume=True, progress=_Shown(0).at))


def make_single(model_path: Path, texts: Texts, out: Path, arguments: list[str]) -> None:
    """Train one run of layers for single in OUT/single-FIRST-LAST, starting from the one for refill."""
    first, last, hidden, steps = map(int, arguments)
    options = _options(first, last, hidden, steps, state_steps=0, refresh="single", store_kv=False)
    print(
        train(
            model_path,
            texts,
            out / f"single-{first}-{last}",
            options,
            start=read_corrector(out / f"run-{first}-{last}" / "corrector"),
            states=out / "states",
            resume=True,
            progress=_Shown(0).at,
        )
    )


def _options(first: int, last: int, hidden: int, steps: int, **more: Any) -> TrainOptions:
    return TrainOptions(
        shape=Shape("segment", 64, 64.0, segments=[(first, last)], hidden=hidden),
        loop=LoopOptions(steps=steps, lr=5e-4, evaluate_every=100),
        share=0.4,
        held_out=HELD_OUT * 3,
        **more,
    )


def main() -> None:
    """Run one step of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("step", choices=("texts", "states", "run", "single", "join"))
    parser.add_argument("numbers", nargs="*")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.step == "texts":
        make_texts(args.model, args.texts, args.out)
        return
    if args.step == "join":
        for refresh in ("refill", "single"):
            join(args.model, args.out, refresh)
        return
    texts = load_texts(args.out / "texts.npz")
    if args.step == "states":
        make_states(args.model, texts, args.out)
    elif args.step == "run":
        make_run(args.model, texts, args.out, args.numbers)
    else:
        make_single(args.model, texts, args.out, args.numbers)


if __name__ == "__main__":
    main()
