"""Decoding in full beside llama-bench of the unpatched tree: the same model, threads and number of tokens, in turn.

    python bench/beside_llama_bench.py MODEL.gguf [--tokens 64] [--rounds 7] [--threads N] [--build-dir build/stock]

Both decode random tokens one by one into an empty context after a warm-up. Prints tokens/s of each round, and the mean
ratio with the spread of the rounds. Needs the build requirements of pyproject.toml, CMake and Ninja; the first build
takes some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from loradrop._core import Context, Model, usable_processors

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "native"))
from stock_tools import build_stock_tool

WARM_UP = 8  # tokens


def llama_bench(program: Path, model: Path, n_tokens: int, n_threads: int) -> float:
    """Return tokens/s of llama.cpp."""
    done = subprocess.run(
        [
            *(str(program.resolve()), "-m", str(model), "-p", "0", "-n", str(n_tokens)),
            *("-r", "1", "-t", str(n_threads), "-o", "json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)[0]["avg_ts"])


def ours(context: Context, n_vocab: int, n_tokens: int) -> float:
    """Return our tokens/s."""
    context.clear()
    tokens = [random.randrange(n_vocab) for _ in range(WARM_UP + n_tokens)]
    for token in tokens[:WARM_UP]:
        context.decode([token])
    context.clear()
    start = time.perf_counter()
    for token in tokens[WARM_UP:]:
        context.decode([token])
    return n_tokens / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--build-dir", type=Path, default=Path("build/stock"))
    args = parser.parse_args()

    program = build_stock_tool("llama-bench", args.build_dir)
    model = Model(str(args.model))
    context = Context(
        model,
        n_ctx=WARM_UP + args.tokens,
        n_threads=args.threads,
        n_threads_batch=args.threads,
    )
    ratios = []
    for _ in range(args.rounds):
        theirs = llama_bench(program, args.model, args.tokens, args.threads)
        own = ours(context, model.n_vocab, args.tokens)
        ratios.append(own / theirs)
        print(f"llama-bench {theirs:8.2f} tokens/s   loradrop {own:8.2f} tokens/s   ratio {ratios[-1]:.3f}", flush=True)
    spread = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    print(
        f"ratio {statistics.mean(ratios):.3f}, standard deviation {spread:.3f}, median {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
