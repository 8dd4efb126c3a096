"""Log-probabilities of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities (natural logarithm) at one position.

    Attributes
    ----------
    logprob : float
        Of the token that was taken.
    top : list of (int, float)
        The most probable tokens and their log-probabilities, the most probable first.
    """

    logprob: float
    top: list[tuple[int, float]]


def token_logprobs(logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprobs:
    """Return the log-probability of `token` and of the `n_top` most probable tokens.

    Parameters
    ----------
    logits : float32 array [n_vocab]
        The model's output, before any sampling option.
    token : int
        The token that was taken.
    n_top : int
        How many of the most probable tokens to list; 0 for none.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    # A plain sort of a large vocabulary would take longer than a decode step of a small model.
    best = np.argpartition(-logprobs, n_top - 1)[:n_top] if n_top else np.array([], np.intp)
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return TokenLogprobs(float(logprobs[token]), [(int(i), float(logprobs[i])) for i in best])
