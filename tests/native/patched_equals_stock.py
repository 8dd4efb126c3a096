"""Builds the pinned llama.cpp with and without our patches and compares the logits of single tokens bit by bit.

    python tests/native/patched_equals_stock.py MODEL.gguf [--build-dir build/parity]

A single query's attention is split in neither (unsplit-attention.patch). Batches are not compared: ours give each token
what it gets alone, llama.cpp's do not. Needs the build requirements of pyproject.toml, CMake and Ninja. Takes some ten
minutes on two cores the first time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from parity_build import build


def main() -> int:
    """Compare; exit code 0 when every bit is the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--build-dir", type=Path, default=Path("build/parity"))
    args = parser.parse_args()

    dumps = []
    for name in ("stock", "patched"):
        program = build("dump_logits", args.build_dir / name, stock=name == "stock")
        dump = args.build_dir / f"{name}.f32"
        subprocess.run(
            [str(program), str(args.model), str(dump)],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        dumps.append(dump.read_bytes())
    if dumps[0] != dumps[1]:
        differ = sum(a != b for a, b in zip(*dumps, strict=False))
        print(f"different: {differ} of {len(dumps[0])} bytes")
        return 1
    print(f"the same: {len(dumps[0]) // 4} logits, bit by bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
