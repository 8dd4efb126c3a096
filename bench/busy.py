"""How quickly a model decodes while other processes want the processors, with one thread and with all.

    python bench/busy.py MODEL.gguf [--tokens 200] [--rounds 3] [--busy N]

First alone, then beside N processes that only compute (default: as many as there are processors).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from loradrop._core import Context, Model, usable_processors
from loradrop.bench.report import Spread

WARM_UP = 8  # tokens


def tokens_per_second(model: Model, n_tokens: int, n_threads: int) -> float:
    """Return the speed of tokens decoded one by one."""
    context = Context(model, n_ctx=WARM_UP + n_tokens, n_threads=n_threads, n_threads_batch=n_threads)
    context.decode(range(1, 1 + WARM_UP))
    began = time.perf_counter()
    for token in range(n_tokens):
        context.decode([token])
    took = time.perf_counter() - began
    context.close()
    return n_tokens / took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=usable_processors())
    args = parser.parse_args()
    model = Model(args.model)
    for n_busy in (0, args.busy):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        try:
            for n_threads in (1, usable_processors()):
                speed = Spread.of([tokens_per_second(model, args.tokens, n_threads) for _ in range(args.rounds)])
                print(
                    f"beside {n_busy} busy processes, {n_threads} threads: {speed.median:.1f} tokens/s "
                    f"({speed.least:.1f} to {speed.greatest:.1f})",
                    flush=True,
                )
        finally:
            for other in others:
                other.kill()
                other.wait()


if __name__ == "__main__":
    main()
