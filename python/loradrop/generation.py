"""The token loop: prefill, then one decode step per generated token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from loradrop._core import ContextFullError, Model, Sampler
from loradrop.logprobs import TokenLogprobs, token_logprobs
from loradrop.session import Session
from loradrop.stats import RequestStats, request_stats

if TYPE_CHECKING:
    from loradrop._core import ContextStats


class GeneratedToken(NamedTuple):
    """A token, and its log-probabilities if they were asked for."""

    token: int
    logprobs: TokenLogprobs | None


class Generation:
    """One request, from its prompt to its last token.

    Parameters
    ----------
    session : Session
        Its turn is taken when the iteration starts.
    sampler : Sampler
        Chooses the tokens.
    prompt : sequence of int
        At least one token, appended to what the session holds.
    n_top : int, optional
        How many of the most probable tokens to give with each token's log-probability; None for
        no log-probabilities.
    reset : bool
        Whether the session forgets first what it holds.
    reuse : bool
        With `reset`, whether it keeps what a prefill of the prompt would leave too.
    forced : sequence of int
        The first tokens to take instead of the sampler's, which is asked all the same.
    on_end : callable, optional
        Called with the stats when the iteration ends, however it does.

    Attributes
    ----------
    context_full : bool
        Whether the iteration ended because the context is full.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        sampler: Sampler,
        prompt: Sequence[int],
        *,
        n_top: int | None = None,
        reset: bool = True,
        reuse: bool = False,
        forced: Sequence[int] = (),
        on_end: Callable[[RequestStats], None] | None = None,
    ) -> None:
        self._model = model
        self._session = session
        self._sampler = sampler
        self._prompt = prompt
        self._n_top = n_top
        self._reset = reset
        self._reuse = reuse
        self._forced = forced
        self._on_end = on_end
        self.context_full = False

    def run(self) -> Generator[GeneratedToken, None, None]:
        """Yield tokens until the context is full.

        A token that ends the generation is yielded like any other. A token is decoded when the
        next one is asked for, so the last one never is.

        Raises
        ------
        StreamLost
            If a newer request has taken the turn.
        """
        session, turns = self._session, self._session.turns
        step_seconds: list[float] = []
        n_taken = n_tokens = 0

        def take(tokens: Sequence[int]) -> tuple[GeneratedToken, float]:
            start = perf_counter()
            session.decode(tokens)
            token = self._sampler.sample(session.context)
            seconds = perf_counter() - start
            if n_taken < len(self._forced):
                token = self._forced[n_taken]
            return GeneratedToken(token, self._logprobs(token)), seconds

        turn = turns.take()
        after_prompt: ContextStats | None = None
        try:
            if self._sampler.is_plain:
                session.context.draft_greedily()
            else:
                self._sampler.drafts_for(session.context)
            n_reused = 0
            if self._reset and self._reuse:
                n_reused = session.keep_common(self._prompt)
            elif self._reset:
                session.clear()
            taken, prompt_seconds = take(self._prompt[n_reused:])
            after_prompt = session.context.stats
            while True:
                n_taken += 1
                n_tokens += not self._model.is_eog(taken.token)
                turns.pause(turn)
                yield taken
                turns.resume(turn)
                try:
                    taken, seconds = take([taken.token])
                except ContextFullError:
                    self.context_full = True
                    return
                step_seconds.append(seconds)
        finally:
            if after_prompt is not None and turns.holds(turn):
                self._end(n_reused, n_tokens, prompt_seconds, step_seconds, after_prompt)
            turns.end(turn)

    def run_tokens(self) -> Generator[int, None, None]:
        """Yield the tokens of `run` alone."""
        with closing(self.run()) as run:
            for taken in run:
                yield taken.token

    def _end(
        self,
        n_reused: int,
        n_tokens: int,
        prompt_seconds: float,
        step_seconds: list[float],
        after_prompt: ContextStats,
    ) -> None:
        if self._on_end is not None:
            self._on_end(
                request_stats(
                    prompt_tokens=len(self._prompt),
                    reused_tokens=n_reused,
                    tokens=n_tokens,
                    prompt_seconds=prompt_seconds,
                    step_seconds=step_seconds,
                    after_prompt=after_prompt,
                    at_end=self._session.context.stats,
                )
            )

    def _logprobs(self, token: int) -> TokenLogprobs | None:
        if self._n_top is None:
            return None
        return token_logprobs(self._session.context.logits(), token, self._n_top)
