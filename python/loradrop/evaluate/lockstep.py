"""The full model and the points decode the same windows at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from loradrop._core import Context
from loradrop.distribution import Distribution
from loradrop.interrupts import deferred_interrupts
from loradrop.state_store import Tokens

BATCHES_AT_ONCE = 3  # of which the full model's distributions are kept


@dataclass(frozen=True)
class Measures:
    """What was measured of each scored token; the contexts are in their order, the full model first.

    Attributes
    ----------
    nll : float64 array [n_contexts, n_windows, n_scored]
        Negative log-likelihood of the window's own token, in nats.
    kl : float64 array, the same shape
        KL(full model || context) of the distributions that the token was scored with, in nats.
    agrees : float64 array, the same shape
        1 where both have the same most probable token, else 0.
    distance : int array [n_contexts, n_scored]
        LoRA steps since the last full step, that of the logits included: 0 for logits of a full step.
    """

    nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    agrees: npt.NDArray[np.float64]
    distance: npt.NDArray[np.intp]

    @staticmethod
    def empty(n_contexts: int, n_windows: int, n_scored: int) -> Measures:
        """Return room for the measures, not filled in."""
        nll, kl, agrees = np.empty((3, n_contexts, n_windows, n_scored))
        return Measures(nll, kl, agrees, np.zeros((n_contexts, n_scored), np.intp))

    def of_windows(self, part: slice) -> Measures:
        """Return a view of some of the windows."""
        return Measures(self.nll[:, part], self.kl[:, part], self.agrees[:, part], self.distance)


@dataclass(frozen=True)
class Batch:
    """Tokens of some windows, as many of each.

    Attributes
    ----------
    tokens : int32 array [n, width]
        The tokens.
    first : int
        The first one's window; its number is that of its sequence too.
    column : int
        Which of the scored tokens follows.
    """

    tokens: Tokens
    first: int
    column: int

    @property
    def is_prompt(self) -> bool:
        """Whether the tokens are the windows' first."""
        return self.column == 0

    @property
    def windows(self) -> range:
        """The windows."""
        return range(self.first, self.first + len(self.tokens))

    def decode(self, context: Context) -> None:
        """Decode the batch; the logits of each window's last token are kept."""
        width = self.tokens.shape[1]
        context.decode(
            self.tokens.ravel().tolist(),
            seq_ids=np.repeat(self.windows, width).tolist(),
            outputs=([False] * (width - 1) + [True]) * len(self.tokens),
        )

    def distributions(self, context: Context) -> Iterator[Distribution]:
        """Yield each window's next-token distribution."""
        width = self.tokens.shape[1]
        for row in range(len(self.tokens)):
            yield Distribution(context.logits((row + 1) * width - 1))


class Lockstep:
    """Decodes windows with several contexts, token by token, and compares them at each token.

    So no logits have to be kept but those of a few tokens. Contexts decode side by side on few threads each, rather
    than in turn on all threads: threads of one decode wait for each other at every operation, those of two do not. Nor
    do contexts wait for each other at every token: each takes the next one as soon as a worker is free.

    Parameters
    ----------
    contexts : sequence of Context
        The first decodes in full; all with the same n_batch and n_seq_max.
    leaders : sequence of int
        For each context which one's prompt it takes over, rather than to decode the same once more: its own number, or
        an earlier one's that drops the same layers in the same way, whatever its schedule.
    n_workers : int
        How many of them decode at the same time.
    """

    def __init__(self, contexts: Sequence[Context], leaders: Sequence[int], n_workers: int) -> None:
        self._contexts = contexts
        self._leaders = leaders
        self._pool = ThreadPoolExecutor(n_workers)

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After a failure some may still be decoding.
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._stop()
        self._pool.shutdown()

    def _stop(self) -> None:
        for context in self._contexts:
            context.abort()

    def run(self, windows: Tokens, prompt: int, out: Measures, advance: Callable[[int], None]) -> None:
        """Decode windows, as many as there are sequences at most.

        The prompt is one full step; each later token is decoded as if it had been sampled. The last token is only
        scored.

        Parameters
        ----------
        windows : int32 array [n, window]
            The tokens.
        prompt : int
            Tokens of the prompt.
        out : Measures
            Filled in, with n_scored = window - prompt.
        advance : callable
            Told how many more tokens of the windows are done.
        """
        with deferred_interrupts(self._stop) as check:
            self._run(windows, prompt, out, advance, check)

    def _run(
        self,
        windows: Tokens,
        prompt: int,
        out: Measures,
        advance: Callable[[int], None],
        check: Callable[[], None],
    ) -> None:
        for context in self._contexts:
            context.clear()
        before: list[Future[Any] | None] = [None] * len(self._contexts)
        under_way: deque[tuple[Batch, list[Future[Any]]]] = deque()
        for batch in _batches(windows, prompt, self._contexts[0].n_batch):
            targets = windows[:, prompt + batch.column]
            # a task waits only for earlier ones, which the pool has started before it
            full = self._pool.submit(self._full, batch, targets, out, before[0])
            tasks: list[Future[Any]] = [full]
            for i in range(1, len(self._contexts)):
                if batch.is_prompt and self._leaders[i] != i:
                    task = self._pool.submit(_copy_row, out, batch, i, tasks[self._leaders[i]], self._leaders[i])
                else:
                    task = self._pool.submit(self._point, i, batch, targets, out, before[i], full)
                tasks.append(task)
            before = [*tasks]
            under_way.append((batch, tasks))
            if batch.is_prompt and batch.windows.stop == len(windows):
                before = self._hand_over(tasks)
            if len(under_way) == BATCHES_AT_ONCE:
                _finish(*under_way.popleft(), advance)
            check()
        while under_way:
            _finish(*under_way.popleft(), advance)
            check()

    def _hand_over(self, before: Sequence[Future[Any]]) -> list[Future[Any] | None]:
        """Let contexts take over their leaders' prompts; return what each has to wait for."""
        after: list[Future[Any] | None] = [*before]
        for leader in sorted(set(self._leaders)):
            followers = [i for i, other in enumerate(self._leaders) if other == leader != i]
            if followers:
                saved = after[leader] = self._pool.submit(self._save, leader, before[leader])
                for i in followers:
                    after[i] = self._pool.submit(self._load, i, saved)
        return after

    def _save(self, i: int, before: Future[Any]) -> bytes:
        before.result()
        return self._contexts[i].save_state()

    def _load(self, i: int, saved: Future[bytes]) -> None:
        self._contexts[i].load_state(saved.result())

    def _full(self, batch: Batch, targets: Tokens, out: Measures, before: Future[Any] | None) -> list[Distribution]:
        """Decode a batch in full, and return its distributions, which the points are compared with."""
        distributions = list(self._decode(0, batch, before))
        self._note(0, batch, targets, out, zip(distributions, distributions, strict=True))
        return distributions

    def _point(
        self,
        i: int,
        batch: Batch,
        targets: Tokens,
        out: Measures,
        before: Future[Any] | None,
        full: Future[list[Distribution]],
    ) -> None:
        own = self._decode(i, batch, before)
        self._note(i, batch, targets, out, zip(full.result(), own, strict=True))

    def _decode(self, i: int, batch: Batch, before: Future[Any] | None) -> Iterator[Distribution]:
        if before is not None:
            before.result()
        batch.decode(self._contexts[i])
        return batch.distributions(self._contexts[i])

    def _note(
        self,
        i: int,
        batch: Batch,
        targets: Tokens,
        out: Measures,
        pairs: Iterable[tuple[Distribution, Distribution]],
    ) -> None:
        """Fill in what the full model's distribution and a context's own tell of each window."""
        for window, (reference, own) in zip(batch.windows, pairs, strict=True):
            at = (i, window, batch.column)
            out.nll[at] = own.nll(targets[window])
            out.kl[at] = reference.divergence(own)
            out.agrees[at] = reference.top == own.top
        if self._contexts[i].stats["last_step"] == "lora":
            out.distance[i, batch.column] = out.distance[i, batch.column - 1] + 1


def _copy_row(out: Measures, batch: Batch, i: int, done: Future[Any], leader: int) -> None:
    """Fill in for a context what another one has left of a batch of prompts."""
    done.result()
    for measures in (out.nll, out.kl, out.agrees):
        measures[i, batch.windows, batch.column] = measures[leader, batch.windows, batch.column]


def _finish(batch: Batch, tasks: Sequence[Future[Any]], advance: Callable[[int], None]) -> None:
    for task in tasks:
        task.result()
    advance(batch.tokens.size)


def _batches(windows: Tokens, prompt: int, n_batch: int) -> Iterator[Batch]:
    at_once = n_batch // prompt
    for first in range(0, len(windows), at_once):
        yield Batch(windows[first : first + at_once, :prompt], first, 0)
    for token in range(prompt, windows.shape[1] - 1):
        yield Batch(windows[:, token : token + 1], 0, token - prompt + 1)
