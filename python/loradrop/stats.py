"""What a request took."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loradrop._core import ContextStats


@dataclass(frozen=True)
class RequestStats:
    """Counts, times and memory of one request.

    Times cover the native calls, not what the caller does between two tokens of a stream.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt.
    reused_tokens : int
        Those of them, from the first, that the context held from the request before, and that were not computed again.
    tokens : int
        Tokens generated, without the one that ends the generation.
    lora_steps : int
        LoRA steps of the decode.
    refresh_steps : int
        Steps of the decode through all layers; all of them where nothing drops.
    rounds, drafted : int
        With ``verify``: steps through all layers that have checked drafts, and the drafts.
    accepted : int
        Drafts that were right, each a token for which nothing was left to compute.
    prompt_seconds : float
        Prefill and the choice of the first token: the time to the first token.
    decode_seconds : float
        All later steps, each one decode call and the choice of the next token.
    prompt_tokens_per_second, decode_tokens_per_second : float
        Tokens over seconds, without those that were reused; 0 where nothing was decoded.
    ms_per_token_p50, ms_per_token_p95 : float
        Median and 95th percentile of a step's milliseconds; 0 where nothing was decoded.
    kv_bytes : int
        Bytes of K/V that the cache holds of tokens at the end of the request; with what it keeps free it takes more.
    kv_bytes_full : int
        The same of a cache that keeps every token in every layer.
    """

    prompt_tokens: int
    reused_tokens: int
    tokens: int
    lora_steps: int
    refresh_steps: int
    rounds: int
    drafted: int
    accepted: int
    prompt_seconds: float
    decode_seconds: float
    prompt_tokens_per_second: float
    decode_tokens_per_second: float
    ms_per_token_p50: float
    ms_per_token_p95: float
    kv_bytes: int
    kv_bytes_full: int

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a round of drafts has given, its first one counted; 0 where there was no round."""
        return tokens_per_round(self.rounds, self.accepted)

    def to_dict(self) -> dict[str, int | float]:
        """Return all fields by name."""
        return dataclasses.asdict(self)


def tokens_per_round(rounds: int, accepted: int) -> float:
    """Return how many tokens a round of drafts has given, its first one counted; 0 where there was no round.

    Parameters
    ----------
    rounds, accepted : int
        Rounds, and drafts of theirs that were right.
    """
    return 1 + accepted / rounds if rounds else 0.0


def request_stats(
    *,
    prompt_tokens: int,
    reused_tokens: int,
    tokens: int,
    prompt_seconds: float,
    step_seconds: Sequence[float],
    after_prompt: ContextStats,
    at_end: ContextStats,
) -> RequestStats:
    """Return the stats of a request.

    Parameters
    ----------
    step_seconds : sequence of float
        Seconds of each step of the decode.
    after_prompt, at_end : ContextStats
        The context's counters after the prefill and at the end.
    """
    decode_seconds = sum(step_seconds)
    lora_tokens = at_end["lora_tokens"] - after_prompt["lora_tokens"]
    accepted = sum(at_end["drafts_accepted"]) - sum(after_prompt["drafts_accepted"])
    p50, p95 = np.percentile(step_seconds, (50, 95)) * 1e3 if step_seconds else (0.0, 0.0)
    return RequestStats(
        prompt_tokens=prompt_tokens,
        reused_tokens=reused_tokens,
        tokens=tokens,
        lora_steps=at_end["lora_steps"] - after_prompt["lora_steps"],
        refresh_steps=len(step_seconds) - lora_tokens - accepted,
        rounds=at_end["rounds"] - after_prompt["rounds"],
        drafted=at_end["drafted"] - after_prompt["drafted"],
        accepted=accepted,
        prompt_seconds=prompt_seconds,
        decode_seconds=decode_seconds,
        prompt_tokens_per_second=(prompt_tokens - reused_tokens) / prompt_seconds if prompt_seconds else 0.0,
        decode_tokens_per_second=len(step_seconds) / decode_seconds if decode_seconds else 0.0,
        ms_per_token_p50=float(p50),
        ms_per_token_p95=float(p95),
        kv_bytes=at_end["kv_used_bytes"],
        kv_bytes_full=at_end["kv_used_bytes_full"],
    )
