"""Time to the first token (load, context, prompt, one token), beside llama-completion of the unpatched tree.

    python bench/first_token.py MODEL.gguf [--rho 0.5 --k 3] [--rounds 7] [--threads N] [--build-dir build/stock]

Each round starts new processes in turn: llama.cpp's program, from its start to its end; ours decoding in full, and ours
at the point, from the call of Llama to the first token, with the time before that (Python and its imports) given apart.
The file is in the system's cache. Prints medians, the least and the greatest. Needs what beside_llama_bench.py does.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from loradrop._core import usable_processors

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "native"))
from stock_tools import build_stock_tool

PROMPT = "The harbour lay quiet in the early light, and a thin mist drifted over the water."
N_CTX = 512
OURS = """
import sys, time
from loradrop import Llama
begin = time.perf_counter()
model, prompt, threads, rho, k = sys.argv[1:]
llm = Llama(model, n_ctx={n_ctx}, n_threads=int(threads), rho=float(rho), k=int(k))
next(llm(prompt, max_tokens=1, temperature=0, stream=True))
print(time.perf_counter() - begin)
"""


def seconds_of(command: list[str]) -> tuple[float, str]:
    """Run a program; return how long it took and what it printed."""
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - begin, done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rho", type=float, default=0.5)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--build-dir", type=Path, default=Path("build/stock"))
    args = parser.parse_args()

    program = build_stock_tool("llama-completion", args.build_dir).resolve()
    theirs = [
        *(str(program), "-m", str(args.model), "-p", PROMPT, "-n", "1", "-c", str(N_CTX), "--temp", "0"),
        *("-t", str(args.threads), "--no-warmup", "--no-conversation"),
    ]
    script = [sys.executable, "-c", OURS.format(n_ctx=N_CTX), str(args.model), PROMPT, str(args.threads)]
    measured: dict[str, list[float]] = {}
    for _ in range(args.rounds + 1):
        measured.setdefault("llama.cpp", []).append(seconds_of(theirs)[0])
        for name, rho in (("loradrop, in full", 0.0), (f"loradrop, rho {args.rho:g}", args.rho)):
            whole, printed = seconds_of([*script, str(rho), str(args.k)])
            measured.setdefault(name, []).append(float(printed))
            measured.setdefault(f"{name}: Python before it", []).append(whole - float(printed))
    for name, seconds in measured.items():
        counted = seconds[1:]  # the first round has read the file from disk
        median, least, most = statistics.median(counted), min(counted), max(counted)
        print(f"{name:40} {median * 1e3:7.0f} ms   ({least * 1e3:.0f} to {most * 1e3:.0f})")


if __name__ == "__main__":
    main()
