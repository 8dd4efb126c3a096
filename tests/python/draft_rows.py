"""Which tokens an exact decode can draft when it looks at a part of the vocabulary: a second account of it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from reference import FloatArray
from tiny import EOS

LIKELY_MARGIN = 6.0  # of a logit, below the best


class DraftRows:
    """The first half stays, with the ends of a text; in the other half a new token replaces the oldest."""

    def __init__(self, n_vocab: int, n_rows: int, ends: Iterable[int] = (EOS,)) -> None:
        self.n_vocab = n_vocab
        self.fixed = set(range(n_rows // 2)) | set(ends)
        rest = (token for token in range(n_vocab) if token not in self.fixed)
        self.others = [next(rest) for _ in range(n_rows - len(self.fixed))]  # the oldest first

    def add(self, token: int) -> None:
        """Note that a token was decoded."""
        if token not in self.fixed and token not in self.others:
            self.others = [*self.others[1:], token]

    def add_likely(self, logits: FloatArray) -> None:
        """Note the full model's logits after it."""
        for token in np.flatnonzero(logits > logits.max() - LIKELY_MARGIN):
            self.add(int(token))

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """For each token whether it can be drafted."""
        allowed = np.zeros(self.n_vocab, bool)
        allowed[[*self.fixed, *self.others]] = True
        return allowed
