"""How long a prompt takes with llama.cpp's CPU kernels, and with ours.

    python bench/prompts.py MODEL.gguf [--tokens 512] [--rounds 7] [--threads 2]

Each round decodes the same prompt into an emptied context with each set of kernels, one right after the other, and
begins with another one; a speed-up is within a round. A first round does not count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from loradrop._core import Context, Model, cpu_kernels, use_cpu_kernels
from loradrop.bench.report import Spread
from loradrop.fixed_text import prompt_tokens


def prompt_seconds(context: Context, tokens: list[int], kernels: str) -> float:
    """Return how long the prompt takes."""
    use_cpu_kernels(kernels)
    context.clear()
    started = time.perf_counter()
    context.decode(tokens)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    model = Model(str(args.model))
    context = Context(model, n_ctx=args.tokens, n_threads=args.threads, n_threads_batch=args.threads)
    tokens = prompt_tokens(model, args.tokens)
    names = cpu_kernels()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(args.rounds + 1):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            taken = prompt_seconds(context, tokens, name)
            if i:
                seconds[name].append(taken)
    print(f"{model.description}: a prompt of {args.tokens} tokens, {args.rounds} rounds, {args.threads} threads")
    for name, ours in seconds.items():
        speed = Spread.of([args.tokens / one for one in ours])
        gain = Spread.of([a / b for a, b in zip(seconds[names[0]], ours, strict=True)])
        print(
            f"{name:10} {speed.median:7.1f} tokens/s, speed-up over {names[0]} "
            f"{gain.median:.2f} ({gain.least:.2f} to {gain.greatest:.2f})"
        )


if __name__ == "__main__":
    main()
