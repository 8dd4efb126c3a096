"""Operations on sequences, done by the engine and by the reference."""

from __future__ import annotations

import copy

import pytest

from loradrop._core import DecodeAborted
from pair import Pair
from reference import Decoder, SequenceState, rope


def remove(seq: SequenceState, p0: int, p1: int) -> None:
    """Take positions p0 to p1 - 1 out of the reference's sequence."""
    first_lora = seq.n_past - len(seq.lora_tokens)
    # The next step may be a LoRA step only where the anchor and all that came after it are left.
    if p1 >= first_lora and p0 < seq.n_past:
        seq.previous_logits_wanted = False
    del seq.lora_tokens[max(0, p0 - first_lora) : max(0, p1 - first_lora)]
    seq.thinnable -= set(range(p0, p1))
    for store in seq.kv:
        for pos in [pos for pos in store if p0 <= pos < p1]:
            del store[pos]
    # The first layer never drops, so it holds every token that is left.
    seq.n_past = max(seq.kv[0], default=-1) + 1


def shift(decoder: Decoder, seq: SequenceState, p0: int, delta: int) -> None:
    """Move all positions of the reference's sequence from p0 on by delta, and turn their keys on."""
    model = decoder.model
    for store in seq.kv:
        moved = {pos: kv for pos, kv in store.items() if pos < p0}
        for pos, (k, v) in store.items():
            if pos >= p0:
                moved[pos + delta] = decoder.stored(rope(k, delta, model.rope_base, neox=model.arch != "llama"), v)
        store.clear()
        store.update(moved)
    seq.thinnable = {pos + delta if pos >= p0 else pos for pos in seq.thinnable}
    seq.n_past += delta


class SequencePair(Pair):
    """Engine and reference, which also change their sequences together."""

    def remove(self, seq_id: int, p0: int = 0, p1: int | None = None) -> None:
        """Remove positions p0 to p1 - 1, or all from p0 on; the reference cannot part LoRA tokens."""
        seq = self.reference.sequences[seq_id]
        assert p1 is None or p1 <= seq.n_past - len(seq.lora_tokens)
        assert self.engine.seq_rm(seq_id, p0, -1 if p1 is None else p1)
        remove(seq, p0, seq.n_past if p1 is None else p1)
        if seq.n_past == 0:
            del self.reference.sequences[seq_id]
        self.check_lengths()

    def copy(self, source: int, target: int, n_tokens: int | None = None) -> None:
        """Replace the target by the source's first n_tokens positions, or by all."""
        self.engine.seq_rm(target)
        self.engine.seq_cp(source, target, -1, -1 if n_tokens is None else n_tokens)
        seq = copy.deepcopy(self.reference.sequences[source])
        if n_tokens is not None:
            remove(seq, n_tokens, seq.n_past)
        self.reference.sequences[target] = seq
        self.check_lengths()

    def keep(self, seq_id: int) -> None:
        """Remove all other sequences."""
        self.engine.seq_keep(seq_id)
        self.reference.sequences = {seq_id: self.reference.sequences[seq_id]}
        self.check_lengths()

    def discard(self, seq_id: int, p0: int, p1: int) -> None:
        """Shift the context: remove positions p0 to p1 - 1 and let what follows close up."""
        seq = self.reference.sequences[seq_id]
        assert self.engine.seq_rm(seq_id, p0, p1)
        remove(seq, p0, p1)
        self.engine.seq_add(seq_id, p1, -1, p0 - p1)
        assert isinstance(self.reference, Decoder)
        shift(self.reference, seq, p1, p0 - p1)
        self.check_lengths()

    def abort(self, *seq_ids: int, after: int) -> None:
        """Decode a token of each sequence, and stop after so many operations, before the end."""
        before = [self.engine.seq_pos_max(i) for i in range(self.engine.n_seq_max)]
        self.engine.abort_after(after)
        with pytest.raises(DecodeAborted):
            self.engine.decode([6 if self.engine.drafted(i) == 5 else 5 for i in seq_ids], seq_ids=seq_ids)
        assert [self.engine.seq_pos_max(i) for i in range(self.engine.n_seq_max)] == before
        for seq_id in seq_ids:
            if seq_id in self.reference.sequences:
                seq = self.reference.sequences[seq_id]
                seq.previous_logits_wanted = False  # what is left of the step cannot be trusted, so the next is full
                seq.forget_unreachable_lora_tokens()

    def check_lengths(self) -> None:
        """Fail where the engine's last positions are not the reference's."""
        sequences = self.reference.sequences
        for seq_id in range(self.engine.n_seq_max):
            expected = sequences[seq_id].n_past - 1 if seq_id in sequences else -1
            assert self.engine.seq_pos_max(seq_id) == expected, f"sequence {seq_id}"
