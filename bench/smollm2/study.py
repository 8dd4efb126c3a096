"""What makes a good corrector: small trainings that differ in one thing, for the tables of docs/correctors.md.

    python study.py MODEL.gguf OUT NAME [--threads N]      NAME: places, sizes, ranks, losses, points

Uses the texts and states that recipe.py has made in OUT, and prints a line for each training: LoRA steps alone, k = 3,
refill, nothing thinned, on the held-out windows of all kinds. What is done is kept in OUT/study and not done again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from loradrop.train.loop import LoopOptions
from loradrop.train.student import Shape
from loradrop.train.texts import Texts, load_texts
from loradrop.train.train import TrainOptions, train

BLOCK = (10, 17)
STATE_STEPS, STEPS = 150, 40
BASE = TrainOptions(
    shape=Shape("segment", 64, 64.0, segments=[BLOCK], hidden=1024),
    loop=LoopOptions(steps=0, lr=5e-4, evaluate_every=STEPS),
    state_steps=STATE_STEPS,
    share=0.4,
    held_out=48,
    store_kv=False,
)
KL = replace(BASE, store_kv=True, loop=replace(BASE.loop, steps=STEPS))


def _shape(**changes: Any) -> TrainOptions:
    return replace(BASE, shape=replace(BASE.shape, **changes))


EXPERIMENTS: dict[str, dict[str, TrainOptions]] = {
    "places": {f"layers {a}-{b}": _shape(segments=[(a, b)]) for a, b in ((3, 9), (8, 14), (10, 17), (18, 24))},
    "sizes": {f"hidden {n}": _shape(hidden=n) for n in (0, 256, 1024, 2048)},
    "ranks": {f"rank {n}": _shape(rank=n, alpha=float(n)) for n in (8, 64, 256)},
    "losses": {
        "states alone": BASE,
        "KL from the start": replace(KL, state_steps=0),
        "states, then KL": KL,
        "states, then KL + 0.1 cross-entropy": replace(KL, loop=replace(KL.loop, ce_weight=0.1)),
        "states, then KL + 0.1 hidden states": replace(KL, loop=replace(KL.loop, state_weight=0.1)),
    },
    "points": {
        "k drawn from 1, 2, 3": KL,
        "k = 3 alone": replace(KL, ks=(3,)),
    },
}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = load_texts(args.out / "texts.npz")
    print("| | KL | NLL rise | top-1 agreement |\n|---|---|---|---|", flush=True)
    for label, options in EXPERIMENTS[args.name].items():
        row = _result(args.model, texts, args.out, options)
        print(f"| {label} | {row['kl']:.3f} | {row['nll_rise']:+.3f} | {row['agreement']:.3f} |", flush=True)


def _result(model: Path, texts: Texts, out: Path, options: TrainOptions) -> dict[str, float]:
    name = hashlib.sha256(json.dumps(asdict(options)).encode()).hexdigest()[:12]  # some labels mean the same training
    folder = out / "study" / name
    path = folder / "result.json"
    if not path.exists():
        (fidelity,) = train(model, texts, folder, options, states=out / "states", resume=True).values()
        path.write_text(json.dumps(asdict(fidelity)))
    result: dict[str, float] = json.loads(path.read_text())
    return result


if __name__ == "__main__":
    main()
