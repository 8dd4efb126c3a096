"""Whether exact decoding gives the full model's logits bit by bit, over thousands of tokens.

    python bench/exact.py MODEL.gguf [--tokens 10000] [--rho R] [--k 3] [--corrector C] [--temperature T ...]

Texts of up to 500 tokens, each after another prompt. A context with refresh="verify" and one that decodes in full get
the same tokens one by one, sampled from the former's logits; both logits are compared after each. With k "auto" sizes
of batches vary. A corrector is the model's own or the package's, else layers are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from loradrop._core import Context, Model, Sampler
from loradrop.cli.points import parse_k
from loradrop.options import DropOptions, resolve_drop
from loradrop.stats import tokens_per_round

SUBJECTS = ("a lighthouse", "the square root", "bread", "a quarrel between neighbours", "binary search", "the moon")
TASKS = ("Write a story about {}.", "Explain {} to a child.", "List ten facts about {}.", "Write Python code about {}.")
TEXT = 500


def main() -> int:
    """Compare; exit code 0 when every bit is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=10000)
    parser.add_argument("--rho", type=float)
    parser.add_argument("--k", type=parse_k, default=3)
    parser.add_argument("--corrector", type=Path)
    parser.add_argument("--temperature", type=float, action="append")
    args = parser.parse_args()
    model = Model(str(args.model))
    asked = DropOptions(rho=args.rho, k=args.k, corrector=args.corrector, refresh="verify")
    drop = resolve_drop(asked, model)
    exact = Context(
        model,
        n_ctx=1024,
        corrector=drop.corrector,
        rho=drop.rho,
        k=drop.k,
        adapt_k=drop.adapt_k,
        refresh=drop.refresh,
    )
    full = Context(model, n_ctx=1024)
    prompts = [task.format(subject) for subject in SUBJECTS for task in TASKS]
    for temperature in args.temperature or [0.0]:
        before, done, n_text = exact.stats, 0, 0
        while done < args.tokens:
            prompt = model.tokenize(prompts[n_text % len(prompts)].encode(), True, True)
            sampler = Sampler(model, temperature=temperature, seed=n_text)
            if not sampler.is_plain:
                sampler.drafts_for(exact)
            for context in (exact, full):
                context.clear()
                context.decode(prompt)
            for _ in range(min(TEXT, args.tokens - done)):
                token = sampler.sample(exact)
                for context in (exact, full):
                    context.decode([token])
                done += 1
                if not np.array_equal(exact.logits(), full.logits()):
                    print(f"different after token {done}, temperature {temperature}")
                    return 1
            n_text += 1
        after = exact.stats
        rounds, accepted = after["rounds"] - before["rounds"], sum(after["drafts_accepted"])
        accepted -= sum(before["drafts_accepted"])
        print(
            f"{model.description}, rho {drop.rho:g}, {drop.reuse}, temperature {temperature}: {done} tokens, the same "
            f"bit by bit; {rounds} rounds of {tokens_per_round(rounds, accepted):.2f} tokens",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
