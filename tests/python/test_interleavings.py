"""Random interleavings of all that can happen to sequences, against the NumPy reference."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from reference import Entry, SequenceState
from sequence_pair import SequencePair
from test_engine import POLICIES, REUSES
from tiny import Reuse, TinyCorrector, TinyModel, make_corrector, make_model

N_LAYER = 6
N_SEQ = 3
N_SWA = 5
MAX_TOKENS = 60  # of a sequence: the reference attends token by token
SETTINGS = settings(
    max_examples=12,
    phases=[Phase.generate, Phase.shrink],
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

tokens = st.integers(3, 319)
seq_ids = st.integers(0, N_SEQ - 1)


def corrector_for(model: TinyModel, reuse: Reuse) -> TinyCorrector:
    if reuse == "segment":
        return make_corrector(model, reuse, segments=[(2, 4)])
    return make_corrector(model, reuse, layers=[3, 2, 4])


class Interleavings(RuleBasedStateMachine):
    """What one context goes through; every decode is compared."""

    def __init__(self, reuse: Reuse, refresh: str) -> None:
        super().__init__()
        self.reuse, self.refresh = reuse, refresh
        self.folder = tempfile.TemporaryDirectory()
        self.sharing = False  # cells that sequences have in common cannot be shifted for one of them

    @initialize(
        k=st.integers(1, 4),
        kv_window=st.integers(0, 8),
        n_swa=st.sampled_from([0, N_SWA]),
        kv_unified=st.booleans(),
    )
    def start(self, k: int, kv_window: int, n_swa: int, kv_unified: bool) -> None:
        self.model = make_model("olmo2" if n_swa else "llama", n_layer=N_LAYER, n_embd=32, n_ff=48, n_swa=n_swa)
        self.kv_unified = kv_unified
        self.k = k
        self.pair = self.fresh_pair(kv_window)

    def fresh_pair(self, kv_window: int) -> SequencePair:
        return SequencePair(
            Path(self.folder.name),
            self.model,
            corrector_for(self.model, self.reuse),
            rho=0.5,
            k=self.k,
            refresh=self.refresh,
            kv_window=kv_window,
            n_seq_max=N_SEQ,
            n_ctx=N_SEQ * 256,
            kv_unified=self.kv_unified,
        )

    def n_past(self, seq_id: int) -> int:
        seq = self.pair.reference.sequences.get(seq_id)
        return 0 if seq is None else seq.n_past

    def decode(self, *entries: Entry) -> None:
        entries = tuple(entry for entry in entries if self.n_past(entry.seq_id) + len(entry.tokens) <= MAX_TOKENS)
        if entries:
            self.pair.decode(*entries)
            self.pair.check_lengths()

    @rule(
        ids=st.sets(seq_ids, min_size=1),
        texts=st.tuples(*[st.lists(tokens, min_size=1, max_size=6)] * N_SEQ),
        wanted=st.tuples(*[st.sampled_from([True, True, True, False])] * N_SEQ),
    )
    def decode_any(self, ids: set[int], texts: tuple[list[int], ...], wanted: tuple[bool, ...]) -> None:
        self.decode(*(Entry(i, texts[i], wanted[i]) for i in sorted(ids)))

    @rule(ids=st.sets(seq_ids, min_size=1), token=tokens, n_steps=st.integers(1, 5))
    def generate(self, ids: set[int], token: int, n_steps: int) -> None:
        for step in range(n_steps):
            self.decode(*(Entry(i, [3 + (token + 7 * step + i) % 317]) for i in sorted(ids)))

    @precondition(lambda self: self.refresh == "verify")
    @rule(seq_id=seq_ids, token=tokens, n_steps=st.integers(2, 6))
    def follow_drafts(self, seq_id: int, token: int, n_steps: int) -> None:
        for _ in range(n_steps):
            draft = self.pair.engine.drafted(seq_id)
            self.decode(Entry(seq_id, [token if draft is None else draft]))

    @precondition(lambda self: self.pair.reference.sequences)
    @rule(data=st.data())
    def remove_tail(self, data: Any) -> None:
        seq_id, seq = self.draw_sequence(data)
        self.pair.remove(seq_id, data.draw(st.integers(0, seq.n_past - 1)))

    @precondition(lambda self: self.pair.reference.sequences)
    @rule(data=st.data())
    def remove_in_between(self, data: Any) -> None:
        seq_id, seq = self.draw_sequence(data)
        # tokens that an aborted refill owes have no other place than after the last one that is left
        owes = self.refresh == "refill" and not seq.previous_logits_wanted
        end = min(seq.n_past - len(seq.lora_tokens) - owes, seq.n_past - 1)
        if end > 0:
            p0 = data.draw(st.integers(0, end - 1))
            self.pair.remove(seq_id, p0, data.draw(st.integers(p0 + 1, end)))

    @precondition(lambda self: self.pair.reference.sequences and not self.sharing)
    @rule(data=st.data())
    def shift_context(self, data: Any) -> None:
        seq_id, seq = self.draw_sequence(data)
        if seq.n_past > 1:
            p0 = data.draw(st.integers(0, seq.n_past - 2))
            self.pair.discard(seq_id, p0, data.draw(st.integers(p0 + 1, seq.n_past - 1)))

    def draw_sequence(self, data: Any) -> tuple[int, SequenceState]:
        seq_id = data.draw(st.sampled_from(sorted(self.pair.reference.sequences)))
        return seq_id, self.pair.reference.sequences[seq_id]

    @precondition(lambda self: self.pair.reference.sequences)
    @rule(data=st.data(), to=seq_ids)
    def copy(self, data: Any, to: int) -> None:
        source, seq = self.draw_sequence(data)
        if source == to:
            return
        # llama.cpp copies from one stream to another in whole only
        whole = not self.kv_unified or data.draw(st.booleans())
        n_tokens = None if whole else data.draw(st.integers(min(seq.kv[0]) + 1, seq.n_past))
        self.pair.copy(source, to, n_tokens)
        self.sharing = self.sharing or self.kv_unified

    @precondition(lambda self: self.pair.reference.sequences)
    @rule(data=st.data())
    def keep_one(self, data: Any) -> None:
        self.pair.keep(self.draw_sequence(data)[0])
        self.sharing = False

    @rule()
    def clear(self) -> None:
        self.pair.engine.clear()
        self.pair.reference.sequences.clear()
        self.sharing = False

    @rule(kv_window=st.integers(0, 8), k=st.integers(1, 4), refresh=st.sampled_from(POLICIES))
    def go_on_elsewhere(self, kv_window: int, k: int, refresh: str) -> None:
        if (refresh == "verify") != (self.refresh == "verify"):
            return  # what others have decoded is not exact, and the reference has no LoRA steps of an exact decode
        if not any(seq.lora_tokens for seq in self.pair.reference.sequences.values()):
            self.k, self.refresh = k, refresh  # LoRA steps that are under way belong to their schedule
        there = self.fresh_pair(kv_window)
        there.engine.load_state(self.pair.engine.save_state())
        there.reference.sequences = self.pair.reference.sequences
        self.pair = there
        self.pair.check_lengths()

    @rule()
    def go_back(self) -> None:
        self.pair.engine.load_state(self.pair.engine.save_state())
        self.pair.check_lengths()

    # one stream each makes one ubatch each, and a decode may then stop between two of them: see test_faults.py
    @precondition(lambda self: self.kv_unified)
    @rule(ids=st.sets(seq_ids, min_size=1), after=st.integers(0, 40))
    def abort(self, ids: set[int], after: int) -> None:
        self.pair.abort(*sorted(ids), after=after)

    def teardown(self) -> None:
        self.folder.cleanup()


@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_any_interleaving(reuse: Reuse, refresh: str) -> None:
    run_state_machine_as_test(lambda: Interleavings(reuse, refresh), settings=SETTINGS)
