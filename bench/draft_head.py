"""What a smaller output head of drafts gains, and what it costs in drafts that are right.

    python bench/draft_head.py MODEL.gguf [--rho 0.25] [--k 3] [--corrector C] [--prompts 3] [--tokens 100]

Greedy answers to the prompts of exact_speed.py, with drafts chosen among all tokens and among a part of them. For each
prompt all ways decode one after the other, and begin with another one; a speed-up is within a prompt, over the whole
head. The texts are the same.
"""

from __future__ import annotations

import argparse
import time

from exact_speed import prompts

from loradrop._core import Context, Corrector, Model
from loradrop.bench.report import Spread
from loradrop.chat_template import model_template
from loradrop.fixed_text import greedy_continuation
from loradrop.stats import tokens_per_round

SHARES = (1, 4, 8, 16)  # of the vocabulary, one over


def decode(context: Context, prompt: list[int], n_tokens: int) -> tuple[list[int], float]:
    """Return the most probable tokens, and the seconds that they took."""
    context.clear()
    context.decode(prompt)
    begin = time.perf_counter()
    tokens = greedy_continuation(context, n_tokens)
    return tokens, time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rho", type=float, default=0.25)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--corrector")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    model = Model(args.model)
    template = model_template(model)
    corrector = Corrector.none(model) if args.corrector is None else Corrector.load(args.corrector, model)
    drops = {"corrector": corrector, "rho": args.rho, "k": args.k, "refresh": "verify", "n_ctx": 1024}
    contexts = {share: Context(model, draft_rows=model.n_vocab // share, **drops) for share in SHARES}
    for kind, texts in prompts(args.prompts).items():
        seconds: dict[int, list[float]] = {share: [] for share in SHARES}
        before = {share: context.stats for share, context in contexts.items()}
        for i, text in enumerate(texts):
            prompt = model.tokenize(template.render([{"role": "user", "content": text}]).encode(), False, True)
            answers = []
            for j in range(len(SHARES)):
                share = SHARES[(i + j) % len(SHARES)]
                tokens, took = decode(contexts[share], prompt, args.tokens)
                answers.append(tokens)
                seconds[share].append(took)
            if answers.count(answers[0]) < len(answers):
                raise SystemExit("the texts are not the same")
        for share, context in contexts.items():
            stats, old = context.stats, before[share]
            accepted = sum(stats["drafts_accepted"]) - sum(old["drafts_accepted"])
            gain = Spread.of([a / b for a, b in zip(seconds[1], seconds[share], strict=True)])
            print(
                f"{kind:10} 1/{share:<2} of {model.n_vocab} rows: {gain.median:.2f} ({gain.least:.2f} to "
                f"{gain.greatest:.2f}), {tokens_per_round(stats['rounds'] - old['rounds'], accepted):.2f} a round",
                flush=True,
            )


if __name__ == "__main__":
    main()
