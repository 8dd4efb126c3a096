"""Exact decoding beside llama.cpp's own speculation: the same model, prompts and threads, in turn.

    python bench/beside_llama_speculation.py MODEL.gguf [--draft SMALL.gguf] [--corrector C] [--point 0.5:auto]
        [--kind code ...] [--prompts 6] [--tokens 140] [--temperature 0] [--threads N] [--build-dir build/server]

llama.cpp's server of the unpatched tree answers the prompts of exact_speed.py in full, by n-grams of the text so far
(of its defaults, and of 3 tokens that give 7), and with drafts of a smaller model; speeds are those that it reports, of
tokens after the prompt. A speed-up is over llama.cpp in full, within a prompt; the first prompt does not count at
first. Needs the build requirements of pyproject.toml, CMake and Ninja; the first build takes half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from exact_speed import answer, prompts

from loradrop import Llama
from loradrop._core import usable_processors
from loradrop.bench.report import Spread
from loradrop.cli.points import parse_k

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "native"))
from stock_tools import build_stock_tool

N_CTX = 1024
PAUSE = 0.3  # seconds after which the threads of the program before no longer poll for work

Way = Callable[[str, int, float], tuple[str, float]]


class Server:
    """llama.cpp's server, for one way to decode."""

    def __init__(self, program: Path, model: Path, options: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [str(program), "-m", str(model), "-c", str(N_CTX), "-np", "1", "--port", str(port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Server:
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.process.args!r}: ended with status {self.process.returncode}")
            try:
                urllib.request.urlopen(f"{self.address}/health").close()
                return self
            except OSError:
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def answer(self, prompt: str, n_tokens: int, temperature: float) -> tuple[str, float]:
        """Return an answer and the tokens/s of its decode."""
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            **{"max_tokens": n_tokens, "temperature": temperature, "seed": 1, "cache_prompt": False},
        }
        with urllib.request.urlopen(f"{self.address}/v1/chat/completions", json.dumps(request).encode()) as reply:
            found = json.load(reply)
        return found["choices"][0]["message"]["content"], found["timings"]["predicted_per_second"]


def ours(llm: Llama) -> Way:
    """Return a way to decode by this package."""

    def way(prompt: str, n_tokens: int, temperature: float) -> tuple[str, float]:
        text, stats = answer(llm, prompt, n_tokens, temperature)
        return text, stats.decode_tokens_per_second

    return way


def measure(ways: dict[str, Way], kind: str, texts: list[str], n_tokens: int, temperature: float) -> None:
    """Print a line for each way to decode; the first one is what speed-ups are over."""
    names = list(ways)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    other = dict.fromkeys(names, 0)
    for i, prompt in enumerate([texts[0], *texts]):
        replies = {}
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            time.sleep(PAUSE)
            replies[name], speed = ways[name](prompt, n_tokens, temperature)
            speeds[name] += [speed] if i else []
        for name in names:
            other[name] += bool(i) and replies[name] != replies[names[0]]
    for name, found in speeds.items():
        gain = Spread.of([a / b for a, b in zip(found, speeds[names[0]], strict=True)])
        print(
            f"{kind:10} {temperature:3.1f} {name:26} {Spread.of(found).median:6.1f} tokens/s  "
            f"{gain.median:.2f} ({gain.least:.2f} to {gain.greatest:.2f})  {other[name]} of {len(found)} texts differ",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--corrector", type=Path)
    parser.add_argument("--point", action="append", help="RHO:K, or RHO:K:bare")
    parser.add_argument("--kind", choices=("code", "questions", "stories"), action="append")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=140)
    parser.add_argument("--temperature", type=float, action="append")
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--build-dir", type=Path, default=Path("build/server"))
    args = parser.parse_args()
    program = build_stock_tool("llama-server", args.build_dir)
    full = Llama(str(args.model), rho=0, n_ctx=N_CTX, n_threads=args.threads)
    threads = ["-t", str(args.threads)]
    by_ngrams = ["--spec-type", "ngram-simple"]
    servers = {
        "llama.cpp, full": [],
        "llama.cpp, n-grams 12 -> 48": by_ngrams,
        "llama.cpp, n-grams 3 -> 7": [
            *by_ngrams,
            *("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "7"),
        ],
    }
    if args.draft is not None:
        servers["llama.cpp, draft model"] = ["--spec-type", "draft-simple", "-md", str(args.draft), "-td", threads[1]]
    with ExitStack() as stack:
        ways: dict[str, Way] = {
            name: stack.enter_context(Server(program, args.model, [*threads, *options])).answer
            for name, options in servers.items()
        }
        ways["loradrop, full"] = ours(full)
        for point in args.point or ["0.25:auto:bare"]:
            rho, k, *bare = point.split(":")
            corrector = None if bare else args.corrector
            llm = Llama(
                str(args.model),
                rho=float(rho),
                k=parse_k(k),
                corrector=corrector,
                refresh="verify",
                n_ctx=N_CTX,
                n_threads=args.threads,
            )
            ways[f"loradrop, {point}"] = ours(stack.enter_context(llm))
        for kind, texts in prompts(args.prompts).items():
            if args.kind and kind not in args.kind:
                continue
            for temperature in args.temperature or [0.0]:
                measure(ways, kind, texts, args.tokens, temperature)


if __name__ == "__main__":
    main()
