"""Whether a round of exact decoding takes as long as its parts: drafts and a check.

    python bench/exact_formula.py MODEL.gguf [--rho 0.5] [--k 3] [--tokens 96] [--rounds 5]

The client accepts a draft with a given chance, whatever it is, so that a model of random weights will do. A round of k
drafts should take k c + b of a full step's time: c that of a LoRA step (measured with the policy ``single``), b that
of a batch of k + 1 tokens (of the full model). Both are measured in turn with the decodes; drafts look at the whole
vocabulary, for the steps of ``single`` do. Printed are the speed-up by this formula, with the drafts that were right,
the one measured, and the measured over the formula's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from loradrop._core import Context, Corrector, Model
from loradrop.bench.report import Spread
from loradrop.fixed_text import greedy_tokens, prompt_tokens
from loradrop.round_pace import PAUSE

PROMPT = 64


def seconds_of(context: Context, tokens: Sequence[int]) -> float:
    """Return how long a batch takes, all of whose logits are computed."""
    begin = time.perf_counter()
    context.decode(tokens, outputs=[True] * len(tokens))
    return time.perf_counter() - begin


class Turns:
    """Decodes the same text in each way, a stretch of it at a time."""

    def __init__(self, model: Model, rho: float, k: int, n_tokens: int) -> None:
        self.k = k
        corrector = Corrector.load(model.path, model) or Corrector.none(model)
        options = {"n_ctx": PROMPT + n_tokens + k + 1}
        drops = {"corrector": corrector, "rho": rho, "k": k}
        self.full, self.batch = Context(model, **options), Context(model, **options)
        self.single = Context(model, refresh="single", **drops, **options)
        self.exact = Context(model, refresh="verify", draft_rows=0, **drops, **options)
        self.prompt = prompt_tokens(model, PROMPT)
        self.text = greedy_tokens(self.full, self.prompt, n_tokens)
        self.rng = np.random.default_rng(1)

    def begin(self) -> None:
        """Decode the prompt everywhere."""
        for context in (self.full, self.batch, self.single, self.exact):
            context.clear()
            context.decode(self.prompt)

    def stretch(self, at: int, n: int, chance: float) -> tuple[float, float, float, float, int]:
        """Return a full step's seconds, a batch's, a LoRA step's, those of the exact decode, and its rounds."""
        tokens = self.text[at : at + n]
        full = [seconds_of(self.full, [token]) for token in tokens]
        time.sleep(PAUSE)
        batches = [seconds_of(self.batch, tokens[i : i + self.k + 1]) for i in range(0, n, self.k + 1)]
        time.sleep(PAUSE)
        lora = []
        for token in tokens:
            took = seconds_of(self.single, [token])
            if self.single.stats["last_step"] == "lora":
                lora.append(took)
        time.sleep(PAUSE)
        before, exact = self.exact.stats["rounds"], 0.0
        for token in tokens:
            draft = self.exact.drafted()
            if draft is not None:
                token = draft if self.rng.random() < chance else token + (token == draft)
            exact += seconds_of(self.exact, [token])
        time.sleep(PAUSE)
        n_rounds = self.exact.stats["rounds"] - before
        return float(np.mean(full)), float(np.mean(batches)), float(np.mean(lora)), exact, n_rounds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = Model(args.model)
    turns = Turns(model, args.rho, args.k, args.tokens)
    step = 8 * (args.k + 1)
    for chance in (0.6, 0.8, 0.9):
        by_formula, measured, shares = [], [], []
        for i in range(args.rounds + 1):
            turns.begin()
            parts = np.array([turns.stretch(at, step, chance) for at in range(0, args.tokens - step + 1, step)])
            full, batch, lora = parts[:, :3].mean(axis=0)
            exact, n_rounds = parts[:, 3:].sum(axis=0)
            plain = full * step * len(parts)
            if i:
                by_formula.append(plain / (n_rounds * (args.k * lora + batch)))
                measured.append(plain / exact)
                shares.append(n_rounds * (args.k * lora + batch) / exact)
        share = Spread.of(shares)
        print(
            f"{model.description}, rho {args.rho}, k {args.k}, accepted {chance}: c {lora / full:.2f}, "
            f"b {batch / full:.2f}, formula {np.median(by_formula):.2f}, measured {np.median(measured):.2f}, "
            f"measured / formula {share.median:.3f} ({share.least:.3f} to {share.greatest:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
