"""A walk along and off the drafts of an exact decode, with what has to come of each step."""

from __future__ import annotations

import numpy as np
import pytest

from draft_rows import DraftRows
from loradrop._core import cpu_kernels, current_cpu_kernels
from pair import Lockstep
from reference import Entry, FloatArray
from tiny import EOS

# without kernels of ours the last bits of a small batch may be others
needs_exact_rows = pytest.mark.skipif(current_cpu_kernels() == cpu_kernels()[0], reason="needs the CPU kernels")

DRAFT_TOLERANCE = 1e-3  # of the largest logit, by which a draft may miss the reference's most probable token


class VerifyWalk:
    """One sequence that goes on with drafted tokens or with others, as it is told.

    Every decode is compared with the full model by the pair. Drafts are compared with the reference's LoRA steps from
    the last token before the round, and the engine's counts with what was done.

    Parameters
    ----------
    pair : Lockstep
        With ``refresh="verify"``.
    k : int
        Drafts of a round.
    seq_id : int
        The sequence.
    rows : DraftRows, optional
        The tokens that can be drafted; None for all.
    """

    def __init__(self, pair: Lockstep, k: int, seq_id: int = 0, rows: DraftRows | None = None) -> None:
        self.pair, self.k, self.seq_id, self.rows = pair, k, seq_id, rows
        self.rng = np.random.default_rng(11)
        self.expected: list[FloatArray] = []  # logits of the LoRA steps whose drafts have not been reached
        self.distance = 0
        self.rounds = self.drafted = 0
        self.tried, self.accepted = [0] * k, [0] * k

    def begin(self, tokens: list[int]) -> None:
        """Decode a prompt."""
        self._decode(tokens)
        self.expected = []
        self.check()

    def step(self, hit: bool, drafts: bool = True) -> None:
        """Decode one token: the drafted one if there is one and it is to be hit, else another.

        Parameters
        ----------
        drafts : bool
            Whether a round is due when the token is not the drafted one.
        """
        draft = self.pair.engine.drafted(self.seq_id)
        token = int(self.rng.integers(3, 300))
        if draft is not None:
            token = draft if hit else token + (token >= draft)
            self.tried[self.distance] += 1
        if token == draft:
            self.accepted[self.distance] += 1
            self.distance += 1
            del self.expected[0]
        elif drafts:
            allowed = None
            if self.rows is not None:
                self.rows.add(token)
                allowed = self.rows.allowed
            self.expected = self._until_end(self.pair.reference.draft(self.seq_id, token, self.k, allowed))
            self.distance = 0
            self.rounds += 1
            self.drafted += len(self.expected)
        else:
            self.expected = []
        self._decode([token])
        self.check()

    def _decode(self, tokens: list[int]) -> None:
        (logits,) = self.pair.decode(Entry(self.seq_id, tokens))
        if self.rows is not None:
            for token in tokens:
                self.rows.add(token)
            if len(tokens) == 1 and logits is not None:
                self.rows.add_likely(logits)

    def forget_drafts(self) -> None:
        """Note that something was done to the context that leaves no drafts."""
        self.expected = []

    def check(self) -> None:
        """Fail where the next draft or the counts are not those expected."""
        draft = self.pair.engine.drafted(self.seq_id)
        assert (draft is None) == (not self.expected)
        if draft is not None:
            logits = self.expected[0]
            largest = np.abs(logits[np.isfinite(logits)]).max()
            assert logits[draft] >= logits.max() - DRAFT_TOLERANCE * largest
        stats = self.pair.engine.stats
        assert (stats["rounds"], stats["drafted"]) == (self.rounds, self.drafted)
        assert (stats["drafts_tried"], stats["drafts_accepted"]) == (self.tried, self.accepted)

    @staticmethod
    def _until_end(logits: list[FloatArray]) -> list[FloatArray]:
        """Drop what comes after a draft that ends the text."""
        ends = [i for i, one in enumerate(logits) if one.argmax() == EOS]
        return logits[: ends[0] + 1] if ends else logits
