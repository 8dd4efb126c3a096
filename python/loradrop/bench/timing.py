"""Rounds: every context decodes the same tokens, a few at a time and in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loradrop._core import Context
from loradrop.round_pace import PAUSE

if TYPE_CHECKING:
    from loradrop._core import ContextStats

TURN = 8  # tokens; what slows a machine down for a second or two then meets all contexts alike


@dataclass
class Job:
    """What is timed in every round: a context decodes the prompt, and then the tokens in batches of `width`.

    Attributes
    ----------
    context : Context
        Each job has one of its own.
    width : int
        Tokens of a batch; 1 is a decode.
    rounds : list of list of float
        Seconds of each batch of each round; the prompt's are not in it. A last batch that is not whole is left out.
    lora_steps, refresh_steps : int
        Steps of the last round's decode; all are refresh steps where nothing drops.
    draft_rounds, drafted, accepted : int
        With ``verify``, of the last round's decode: steps that have checked drafts, the drafts, and those that were
        right.
    kv_bytes, kv_bytes_full : int
        As in `ContextStats`, at the end of the last round.
    """

    context: Context
    width: int = 1
    rounds: list[list[float]] = field(default_factory=list)
    lora_steps: int = 0
    refresh_steps: int = 0
    draft_rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    kv_bytes: int = 0
    kv_bytes_full: int = 0

    def begin(self, prompt: Sequence[int]) -> ContextStats:
        """Decode the prompt into the emptied context; return its counts, for `finish`."""
        self.context.clear()
        self.context.decode(prompt)
        return self.context.stats

    def take_turn(self, tokens: Sequence[int], first: int, end: int) -> list[float]:
        """Return the seconds of each whole batch of the tokens that begins at first or later, but before end."""
        seconds = []
        begin = -(-first // self.width) * self.width
        for at in range(begin, min(end, len(tokens) - self.width + 1), self.width):
            batch = tokens[at : at + self.width]
            started = time.perf_counter()
            self.context.decode(batch)  # returns when it has been computed, on a GPU too; logits of the last token only
            seconds.append(time.perf_counter() - started)
        return seconds

    def finish(self, n_steps: int, before: ContextStats) -> None:
        """Note what kinds of step the round's n_steps were, and what the cache holds."""
        after = self.context.stats
        self.lora_steps = after["lora_steps"] - before["lora_steps"]
        self.draft_rounds = after["rounds"] - before["rounds"]
        self.drafted = after["drafted"] - before["drafted"]
        self.accepted = sum(after["drafts_accepted"]) - sum(before["drafts_accepted"])
        self.refresh_steps = n_steps - (after["lora_tokens"] - before["lora_tokens"]) - self.accepted
        self.kv_bytes, self.kv_bytes_full = after["kv_used_bytes"], after["kv_used_bytes_full"]


def run_rounds(
    jobs: Sequence[Job],
    prompt: Sequence[int],
    tokens: Sequence[int],
    n_rounds: int,
    advance: Callable[[int], None],
) -> None:
    """Let all jobs decode the tokens in every round, taking turns every few tokens, and keep their seconds.

    What the machine does to one job it then does to the others too; each turn begins with another one. A first round is
    not kept: graphs are built in it and weights read from disk.

    Parameters
    ----------
    advance : callable
        Told how many more jobs are done.
    """
    for i in range(n_rounds + 1):
        before = [job.begin(prompt) for job in jobs]
        rounds: list[list[float]] = [[] for _ in jobs]
        for turn, first in enumerate(range(0, len(tokens), TURN)):
            for step in range(len(jobs)):
                at = (i + turn + step) % len(jobs)
                time.sleep(PAUSE)
                rounds[at] += jobs[at].take_turn(tokens, first, first + TURN)
        for job, seconds, counts in zip(jobs, rounds, before, strict=True):
            job.finish(len(seconds), counts)
            if i:
                job.rounds.append(seconds)
            advance(1)
