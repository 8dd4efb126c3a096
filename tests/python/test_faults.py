"""Decodes that stop half-way: caches, schedule and reuse state have to fit each other afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loradrop._core import ContextFullError, DecodeAborted
from pair import Pair
from reference import Entry
from test_engine import POLICIES, REUSES, SCHEDULED, TEXT, corrector_for
from tiny import Reuse, make_model

N_LAYER = 8


@pytest.mark.parametrize("n_swa", [0, 7])
@pytest.mark.parametrize("n_operations", [0, 5, 40, 90])
@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_abort_at_every_phase(tmp_path: Path, reuse: Reuse, refresh: str, n_operations: int, n_swa: int) -> None:
    model = make_model("olmo2" if n_swa else "llama", n_layer=N_LAYER, n_swa=n_swa)
    pair = Pair(tmp_path, model, corrector_for(model, reuse), rho=0.5, k=3, refresh=refresh, kv_window=6)
    pair.decode(Entry(0, TEXT[:9]))
    position = 9
    for n_before in [1, 2, 3, 4, 5]:
        for _ in range(n_before):
            pair.decode(Entry(0, TEXT[position : position + 1]))
            position += 1
        before = pair.engine.seq_pos_max(0)
        pair.engine.abort_after(n_operations)
        with pytest.raises(DecodeAborted):
            pair.engine.decode(TEXT[position : position + 1])
        assert pair.engine.seq_pos_max(0) == before
        # what is left of the interrupted step cannot be trusted, so the next one is a full step
        pair.reference.sequences[0].previous_logits_wanted = False
    pair.decode(Entry(0, TEXT[position : position + 1]))


# of several ubatches those before the abort stay
@pytest.mark.parametrize("n_before", [0, 2, 3])
@pytest.mark.parametrize("refresh", POLICIES)
def test_abort_between_ubatches(tmp_path: Path, refresh: str, n_before: int) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "segment")
    pair = Pair(tmp_path, model, corrector, rho=0.5, k=3, refresh=refresh, kv_window=1000, n_ubatch=4)
    pair.decode(Entry(0, TEXT[:9]))
    for token in TEXT[9 : 9 + n_before]:
        pair.decode(Entry(0, [token]))
    start = 9 + n_before
    seen = set()
    for n_operations in range(0, 640, 60):
        pair.engine.abort_after(n_operations)
        with pytest.raises(DecodeAborted):
            pair.engine.decode(TEXT[start : start + 20])
        n_stored = pair.engine.seq_pos_max(0) + 1 - start
        seen.add(n_stored)
        if n_stored:
            pair.reference.decode([Entry(0, TEXT[start : start + n_stored], want_logits=False)])
        pair.reference.sequences[0].previous_logits_wanted = False
        start += n_stored
    assert {0, 4} <= seen
    for tokens in (TEXT[start : start + 5], *([token] for token in TEXT[start + 5 : start + 15])):
        pair.decode(Entry(0, tokens))


@pytest.mark.parametrize("n_operations", [5, 150, 250])
@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_abort_between_ubatches_of_a_lora_step(tmp_path: Path, reuse: Reuse, refresh: str, n_operations: int) -> None:
    model = make_model(n_layer=N_LAYER)
    options = {"n_seq_max": 3, "n_ubatch": 1}
    pair = Pair(tmp_path, model, corrector_for(model, reuse), rho=0.5, k=3, refresh=refresh, kv_window=6, **options)
    pair.decode(*(Entry(i, TEXT[: 9 + i]) for i in range(3)))
    pair.decode(*(Entry(i, [TEXT[20 + i]]) for i in range(3)))
    before = [pair.engine.seq_pos_max(i) for i in range(3)]
    pair.engine.abort_after(n_operations)
    with pytest.raises(DecodeAborted):
        pair.engine.decode(TEXT[30:33], seq_ids=[0, 1, 2])
    stored = [i for i in range(3) if pair.engine.seq_pos_max(i) > before[i]]
    assert len(stored) == [5, 150, 250].index(n_operations)
    if stored:
        pair.reference.decode([Entry(i, [TEXT[30 + i]]) for i in stored])
    for i in range(3):
        pair.reference.sequences[i].previous_logits_wanted = False
    for start in range(40, 64, 3):
        pair.decode(*(Entry(i, [TEXT[start + i]]) for i in range(3)))


def test_a_full_context_is_an_error_and_leaves_it_usable(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    pair = Pair(tmp_path, model, corrector_for(model, "segment"), rho=0.5, k=3, n_ctx=256)
    engine = pair.engine
    engine.decode(TEXT[:250])
    for token in TEXT[250:256]:
        engine.decode([token])
    for _ in range(2):
        with pytest.raises(ContextFullError, match="n_ctx = 256"):
            engine.decode([TEXT[256]])
    assert engine.seq_pos_max(0) == 255
    engine.clear()
    pair.decode(Entry(0, TEXT[:20]))
    for token in TEXT[20:30]:
        pair.decode(Entry(0, [token]))


def test_invalid_batches_change_nothing(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    pair = Pair(tmp_path, model, corrector_for(model, "previous-state"), rho=0.5, k=3, n_seq_max=2)
    engine = pair.engine
    pair.decode(Entry(0, TEXT[:9]))
    for token in TEXT[9:14]:
        with pytest.raises(ValueError, match="empty"):
            engine.decode([])
        with pytest.raises(IndexError, match="token 99999"):
            engine.decode([99999])
        with pytest.raises(IndexError, match="seq_id = 2"):
            engine.decode([5], seq_ids=[2])
        with pytest.raises(ValueError, match="positions has 2 entries for 1 tokens"):
            engine.decode([5], positions=[1, 2])
        with pytest.raises(ValueError, match=r"positions\[1\] = -3"):
            engine.decode([5, 6], seq_ids=[0, 1], positions=[engine.seq_pos_max(0) + 1, -3])
        with pytest.raises(ValueError, match="n_batch"):
            engine.decode([5] * 513)
        with pytest.raises(IndexError, match="output 7"):
            engine.logits(7)
        pair.decode(Entry(0, [token]))


def test_a_position_that_does_not_follow_is_an_error(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    pair = Pair(tmp_path, model, corrector_for(model, "anchor-delta"), rho=0.5, k=1)
    pair.decode(Entry(0, TEXT[:9]))
    pair.decode(Entry(0, TEXT[9:10]))
    with pytest.raises(ValueError, match="positions"):
        pair.engine.decode([5], positions=[77])  # a refresh step: its LoRA token is out of the caches by now
    assert pair.engine.seq_pos_max(0) == 9
    (logits,) = pair.decode(Entry(0, TEXT[10:11]))
    assert logits is not None and np.isfinite(logits).all()
