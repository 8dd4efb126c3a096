"""Rounds: every context decodes the same tokens, one context after the other, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loradrop._core import Context

if TYPE_CHECKING:
    from loradrop._core import ContextStats


@dataclass
class Job:
    """What is timed in every round: a context decodes the prompt, and then the tokens in batches of `width`.

    Attributes
    ----------
    context : Context
        Jobs may share one.
    width : int
        Tokens of a batch; 1 is a decode.
    rounds : list of list of float
        Seconds of each batch of each round; the prompt's are not in it. A last batch that is not whole is left out.
    lora_steps, refresh_steps : int
        Steps of the last round's decode; all are refresh steps where nothing drops.
    kv_bytes, kv_bytes_full : int
        As in `ContextStats`, at the end of the last round.
    """

    context: Context
    width: int = 1
    rounds: list[list[float]] = field(default_factory=list)
    lora_steps: int = 0
    refresh_steps: int = 0
    kv_bytes: int = 0
    kv_bytes_full: int = 0

    def run(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Return the seconds of each batch."""
        context = self.context
        context.clear()
        context.decode(prompt)
        before = context.stats
        batches = [tokens[at : at + self.width] for at in range(0, len(tokens) - self.width + 1, self.width)]
        seconds = []
        for batch in batches:
            begin = time.perf_counter()
            context.decode(batch)  # returns when it has been computed, on a GPU too; logits of the last token only
            seconds.append(time.perf_counter() - begin)
        self._note(len(seconds), before, context.stats)
        return seconds

    def _note(self, n_steps: int, before: ContextStats, after: ContextStats) -> None:
        self.lora_steps = after["lora_steps"] - before["lora_steps"]
        self.refresh_steps = n_steps - self.lora_steps
        self.kv_bytes, self.kv_bytes_full = after["kv_bytes"], after["kv_bytes_full"]


def run_rounds(
    jobs: Sequence[Job],
    prompt: Sequence[int],
    tokens: Sequence[int],
    n_rounds: int,
    advance: Callable[[int], None],
) -> None:
    """Run all jobs in every round, each round beginning with another one, and keep their seconds.

    What the machine does to one job it then does to the others too. A first round is not kept: graphs are built in it
    and weights read from disk.

    Parameters
    ----------
    advance : callable
        Told how many more jobs are done.
    """
    for i in range(n_rounds + 1):
        first = i % len(jobs)
        for job in [*jobs[first:], *jobs[:first]]:
            seconds = job.run(prompt, tokens)
            if i:
                job.rounds.append(seconds)
            advance(1)
