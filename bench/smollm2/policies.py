"""What training for a refresh policy does to decoding with it: a table of docs/correctors.md.

    python policies.py MODEL.gguf OUT [--threads N]

Uses the texts and states that recipe.py has made in OUT. The same small training, on states and then on predictions,
simulates one policy or the other; each corrector is judged by decoding held-out prose with both: k = 3, window 64.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from grid import PER_KIND, PROMPT, windows_of
from study import KL

from loradrop.evaluate import Point, perplexity
from loradrop.train.texts import load_texts
from loradrop.train.train import train

RHO, K = 0.27, 3
OPTIONS = {"refill": KL, "single": replace(KL, refresh="single", store_kv=False)}


def main() -> None:
    """Train, decode and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = load_texts(args.out / "texts.npz")
    windows = windows_of(args.out, "prose", PER_KIND)
    points = [Point(RHO, K, policy, 64) for policy in OPTIONS]
    print(
        f"| trained for | {' | '.join(f'decoded with `{policy}`' for policy in OPTIONS)} |\n|---|---|---|", flush=True
    )
    for policy, options in OPTIONS.items():
        folder = args.out / "study" / f"policy-{policy}"
        if not (folder / "corrector.gguf").exists():
            train(args.model, texts, folder, options, states=args.out / "states", resume=True)
        report = perplexity(
            args.model, windows, points, corrector=folder / "corrector.gguf", prompt=PROMPT, n_threads=args.threads
        )
        rises = [point.total.delta_nll for point in report.points]
        print(f"| `{policy}` | {' | '.join(f'{rise.mean:+.3f} ± {rise.margin:.3f}' for rise in rises)} |", flush=True)


if __name__ == "__main__":
    main()
