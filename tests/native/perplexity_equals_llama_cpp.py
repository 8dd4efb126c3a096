"""Compares our perplexity at rho = 0 with that of the pinned llama.cpp's own llama-perplexity.

    python tests/native/perplexity_equals_llama_cpp.py MODEL.gguf TEXT [--window 256] [--build-dir build/parity]

Needs the installed package, gguf, the build requirements of pyproject.toml, CMake and Ninja. Takes some ten minutes on
two cores the first time.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stock_tools import build_stock_tool

from loradrop.evaluate import Report, perplexity

sys.path.insert(0, str(Path(__file__).parent.parent / "python"))
from tiny import make_model, write_gguf

# In nats. A tiny F32 model leaves nothing but the order of sums.
TOLERANCE_F32 = 1e-4
# With quantised weights activations are rounded to 8 bits, and what a batch of another shape sums in another order tips
# some of them: llama.cpp's own figure for 900 tokens of SmolLM2 Q4_1 moves by 5e-3 from -b 2048 to -b 1 -fa off. A
# token that is scored twice or left out in each window moves it by some 1e-2.
TOLERANCE = 5e-3

EXACT = {"flash_attn": "off", "type_k": "f32", "type_v": "f32"}
EXACT_FLAGS = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")


def llama_cpp(program: Path, model: Path, text: Path, window: int, flags: Sequence[str]) -> tuple[int, float]:
    """Return the number of llama.cpp's chunks, and the mean NLL of their second halves."""
    done = subprocess.run(
        [str(program.resolve()), "-m", str(model), "-f", str(text), "-c", str(window), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    chunks = re.search(r"over (\d+) chunks", printed)
    final = re.search(r"Final estimate: PPL = ([\d.]+)", printed)
    if done.returncode != 0 or not chunks or not final:
        raise SystemExit(f"llama-perplexity failed:\n{printed}")
    return int(chunks[1]), math.log(float(final[1]))


def ours(model: Path, text: Path, window: int, options: dict[str, str]) -> Report:
    """Measure the same windows; llama.cpp scores what follows the first window / 2 + 1 tokens."""
    # it drops a newline at the file's end
    content = text.read_bytes().decode().removesuffix("\n")
    return perplexity(model, content, (), prompt=window // 2 + 1, window=window, n_windows=None, **options)


def main() -> int:
    """Compare; exit code 0 when both agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, help="at least two windows of it")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--build-dir", type=Path, default=Path("build/parity"))
    args = parser.parse_args()

    program = build_stock_tool("llama-perplexity", args.build_dir / "stock-tools")
    exact = args.build_dir / "tiny.gguf"
    write_gguf(exact, make_model())
    agree = True
    for model, flags, options, tolerance in (
        (exact, EXACT_FLAGS, EXACT, TOLERANCE_F32),
        (args.model, (), {}, TOLERANCE),
    ):
        n_chunks, theirs = llama_cpp(program, model, args.text, args.window, flags)
        report = ours(model, args.text, args.window, options)
        difference = report.full.nll.mean - theirs
        agree = agree and report.n_windows == n_chunks and abs(difference) <= tolerance
        print(f"{model.name}: mean NLL of llama.cpp {theirs:.5f} over {n_chunks} windows, ours {difference:+.1e}")
        print(f"    over {report.n_windows} windows; at most {tolerance:g} is allowed")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
