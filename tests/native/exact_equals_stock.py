"""Compares texts that are decoded exactly, with drafts, with those of the pinned llama.cpp without our patches.

    python tests/native/exact_equals_stock.py [MODEL.gguf ...] [--tokens 300] [--build-dir build/parity]

Greedy and sampled with a seed, token by token; without a model for tiny ones of random F32 weights, of three
architectures. A single query's attention is split in neither (unsplit-attention.patch), and prompts are decoded token
by token, so that not even a near-tie may fall otherwise. Needs the build requirements of pyproject.toml, CMake and
Ninja, and the installed package. Takes some five minutes on two cores the first time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from parity_build import build

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from loradrop._core import Context, Corrector, Model, Sampler
from loradrop.draft_layers import draft_layers
from tiny import make_model, write_gguf

PROMPT = [1, 21, 34, 55, 89, 144, 233, 7, 11]
SEEDS = {0.0: (0,), 0.8: (1, 2), 1.5: (3,)}  # by temperature


def texts(model: Model, n_tokens: int, temperature: float, seed: int) -> tuple[list[int], list[int]]:
    """Return a text that was decoded exactly, and what was drafted and accepted in it."""
    n_dropped = max(1, model.n_layer // 4)
    context = Context(
        model,
        n_ctx=len(PROMPT) + n_tokens,
        n_threads=2,
        corrector=Corrector.none(model, draft_layers(model, n_dropped)),
        rho=n_dropped / model.n_layer,
        k=3,
        refresh="verify",
        draft_rows=model.n_vocab // 2,
    )
    sampler = Sampler(model, temperature=temperature, seed=seed)
    if temperature > 0:
        sampler.drafts_for(context)
    for token in PROMPT:
        context.decode([token])
    tokens = []
    for _ in range(n_tokens):
        tokens.append(sampler.sample(context))
        context.decode(tokens[-1:])
    stats = context.stats
    return tokens, [stats["drafted"], sum(stats["drafts_accepted"])]


def compare(program: Path, path: Path, n_tokens: int) -> bool:
    """Print how the texts of a model compare; return whether all are the same."""
    model = Model(str(path))
    same = True
    for temperature, seeds in SEEDS.items():
        for seed in seeds:
            command = [program, path, n_tokens, temperature, seed, *PROMPT]
            done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
            theirs = [int(token) for token in done.stdout.split()]
            ours, (drafted, accepted) = texts(model, n_tokens, temperature, seed)
            first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
            verdict = "the same" if first is None else f"different from token {first} on"
            print(
                f"{model.description}, temperature {temperature}, seed {seed}: {n_tokens} tokens, {verdict}; "
                f"{accepted} of {drafted} drafts accepted",
                flush=True,
            )
            same &= first is None
    return same


def main() -> int:
    """Compare; exit code 0 when every token is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--build-dir", type=Path, default=Path("build/parity"))
    args = parser.parse_args()
    program = build("write_text", args.build_dir / "stock", stock=True)
    with tempfile.TemporaryDirectory() as folder:
        models = args.models
        for arch in () if models else ("llama", "qwen2", "olmo2"):
            models.append(Path(folder) / f"{arch}.gguf")
            write_gguf(models[-1], make_model(arch, n_layer=8))  # type: ignore[arg-type]
        results = [compare(program, path, args.tokens) for path in models]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
