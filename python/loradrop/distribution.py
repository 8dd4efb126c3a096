"""Next-token distributions and how far apart they are."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


class Distribution:
    """The softmax of one row of logits.

    Attributes
    ----------
    top : int
        The most probable token.
    log_total : float
        Logarithm of the sum of the logits' exponentials.

    Raises
    ------
    ValueError
        If the logits are not finite.
    """

    def __init__(self, logits: npt.NDArray[np.float32]) -> None:
        self.top = int(logits.argmax())
        peak = logits[self.top]
        self._logits = logits
        self._weights = np.exp(logits - peak)
        # float32 loses the tail of the vocabulary in a sum
        self._total = float(self._weights.sum(dtype=np.float64))
        self.log_total = float(peak) + math.log(self._total)
        if not math.isfinite(self.log_total):
            raise ValueError("the model's logits are not finite")

    def nll(self, token: int) -> float:
        """Return the negative log-likelihood of a token, in nats."""
        return self.log_total - float(self._logits[token])

    def divergence(self, other: Distribution) -> float:
        """Return the Kullback-Leibler divergence KL(self || other), in nats.

        It is computed as E_p[a - b] - (log_total of a - log_total of b) with a and b the logits and p the softmax of
        a, which loses no digits where the two are close.
        """
        difference = self._logits - other._logits
        expected = float(np.dot(self._weights, difference)) / self._total
        return expected - (self.log_total - other.log_total)
