"""Bytes of the K/V cache, and the process's memory, after a long text: measured, and by the formula.

    python bench/kv_memory.py MODEL.gguf [--prompt 128] [--tokens 2048] [--k 3] RHO...

Decodes with refresh="single", each rho in a process of its own. The formula: kept layers hold a cell for every token
that fits (n_ctx), dropped ones a cell for each prompt and refresh token; they grow by an eighth, at least 256 cells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CELL_BLOCK = 256  # n_ctx is rounded up to whole blocks


def decode(model_path: str, prompt: int, tokens: int, rho: float, k: int) -> None:
    """Decode, and print what the cache and the process hold, as JSON."""
    from loradrop._core import Context, Model
    from loradrop.options import DropOptions, resolve_drop

    model = Model(model_path)
    drop = resolve_drop(DropOptions(rho=rho, k=k, refresh="single", allow_uncorrected=True), model)
    context = Context(
        model,
        n_ctx=-(-(prompt + tokens) // CELL_BLOCK) * CELL_BLOCK,
        n_threads=1,
        corrector=drop.corrector,
        rho=drop.rho,
        k=drop.k,
        refresh=drop.refresh,
    )
    context.decode([100 + i for i in range(prompt)])
    for i in range(tokens):
        context.decode([100 + i % 1000])
    stats = context.stats
    anonymous = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line
    )
    names = ("kv_bytes", "kv_bytes_full", "kv_cells_kept", "kv_cells_droppable", "kv_growth_step")
    print(
        json.dumps(
            {name: stats[name] for name in names}
            | {"anonymous": anonymous, "dropped": len(context.dropped_layers), "layers": model.n_layer}
        )
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rhos", type=float, nargs="+", metavar="RHO")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        decode(str(args.model), args.prompt, args.tokens, args.rhos[0], args.k)
        return

    mib = 2.0**20
    before = 0.0
    print("| rho | dropped | K/V cache MiB | formula MiB | above it | of which growth step | process, to full MiB |")
    print("|---|---|---|---|---|---|---|")
    for rho in [0.0, *args.rhos]:
        command = [sys.executable, __file__, str(args.model), str(rho), "--one"]
        command += [f"--prompt={args.prompt}", f"--tokens={args.tokens}", f"--k={args.k}"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        n_dropped, n_layer, kv_bytes = found["dropped"], found["layers"], found["kv_bytes"]
        before = before or found["anonymous"]
        cells = args.prompt + args.tokens // (args.k + 1)
        row = found["kv_bytes_full"] / found["kv_cells_kept"] / n_layer  # a cell of one layer
        formula = row * ((n_layer - n_dropped) * found["kv_cells_kept"] + n_dropped * cells)
        growth = row * n_dropped * found["kv_growth_step"]
        print(
            f"| {rho:g} | {n_dropped} of {n_layer} | {kv_bytes / mib:.1f} | {formula / mib:.1f} "
            f"| {kv_bytes / formula - 1:+.1%} | {growth / formula:.1%} | {(found['anonymous'] - before) / mib:+.1f} |"
        )


if __name__ == "__main__":
    main()
