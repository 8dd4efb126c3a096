"""Decoding, loading and memory of a model that is mapped, read, and read into huge pages.

    python bench/huge_pages.py MODEL.gguf [--tokens 40] [--rounds 7] [--threads 2] [--loads 5]

The three decode the same tokens one by one in one process, eight at a time and in turn. A round counts by its median
step, and a speed-up is within a round. Each load is in a process of its own, in turn; the file is in the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from loradrop._core import Context, Model
from loradrop.bench.report import Spread
from loradrop.bench.timing import Job, run_rounds
from loradrop.fixed_text import greedy_tokens, prompt_tokens

WAYS: dict[str, dict[str, Any]] = {
    "mapped": {},
    "read": {"use_mmap": False},
    "huge pages": {"use_mmap": False, "use_hugepages": True},
}
MIB = 2.0**20


def load(path: Path, way: str) -> None:
    """Load the model, and print seconds, the process's peak and what is in huge pages, as JSON."""
    started = time.perf_counter()
    model = Model(str(path), **WAYS[way])
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak": peak / MIB, "huge": model.huge_page_bytes / MIB}))


def load_in_turn(path: Path, n_loads: int) -> None:
    """Print how long loading takes, and the memory."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(n_loads):
        for way in WAYS:
            command = [sys.executable, __file__, str(path), "--load", way]
            found[way].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    for way, runs in found.items():
        seconds, peak, huge = (Spread.of([run[name] for run in runs]) for name in ("seconds", "peak", "huge"))
        print(
            f"{way:12}load {seconds.median:.2f} s ({seconds.least:.2f} to {seconds.greatest:.2f}), "
            f"peak {peak.median:.0f} MiB, in huge pages {huge.least:.0f} MiB"
        )


def decode_in_turn(path: Path, n_tokens: int, n_rounds: int, n_threads: int) -> None:
    """Print how quickly the three decode."""
    models = {way: Model(str(path), **options) for way, options in WAYS.items()}
    jobs = [Job(Context(model, n_ctx=512, n_threads=n_threads, n_threads_batch=n_threads)) for model in models.values()]
    prompt = prompt_tokens(models["mapped"], 32)
    tokens = greedy_tokens(jobs[0].context, prompt, n_tokens)
    run_rounds(jobs, prompt, tokens, n_rounds, lambda _: None)
    steps = {way: [statistics.median(seconds) for seconds in job.rounds] for way, job in zip(models, jobs, strict=True)}
    for way, ours in steps.items():
        gains = {
            other: Spread.of([a / b for a, b in zip(steps[other], ours, strict=True)]) for other in ("mapped", "read")
        }
        text = ", ".join(f"over {o} {g.median:.3f} ({g.least:.3f} to {g.greatest:.3f})" for o, g in gains.items())
        print(f"{way:12}{statistics.median(ours) * 1e3:.2f} ms, speed-up {text}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--load", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.model, args.load)
        return
    load_in_turn(args.model, args.loads)
    decode_in_turn(args.model, args.tokens, args.rounds, args.threads)


if __name__ == "__main__":
    main()
