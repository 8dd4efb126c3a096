"""Positions that are removed and closed up, or left open, while tokens wait for a refill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loradrop._core import DecodeAborted
from reference import Entry
from sequence_pair import SequencePair
from test_engine import POLICIES, REUSES, TEXT, corrector_for
from tiny import Reuse, make_model

N_LAYER = 8
K = 3


def make_pair(folder: Path, reuse: Reuse, refresh: str, n_swa: int = 0, **options: Any) -> SequencePair:
    model = make_model("olmo2" if n_swa else "llama", n_layer=N_LAYER, n_swa=n_swa)
    corrector = corrector_for(model, reuse)
    return SequencePair(folder, model, corrector, rho=0.5, k=K, refresh=refresh, kv_window=6, **options)


def generate(pair: SequencePair, start: int, n: int) -> None:
    for token in TEXT[start : start + n]:
        pair.decode(Entry(0, [token]))


@pytest.mark.parametrize("n_swa", [0, 7])
@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_the_context_shifts_at_every_phase(tmp_path: Path, reuse: Reuse, refresh: str, n_swa: int) -> None:
    pair = make_pair(tmp_path, reuse, refresh, n_swa)
    pair.decode(Entry(0, TEXT[:20]))
    for i, n_before in enumerate([1, 2, 3, 4, 5, 9]):
        generate(pair, 20 + 10 * i, n_before)
        pair.discard(0, 4, 9)
    generate(pair, 100, 10)
    assert pair.engine.stats["lora_steps"] > 20


@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize(("p0", "p1"), [(0, 5), (7, 11), (9, 11), (10, 11)])
def test_a_shift_may_take_the_anchor_and_lora_tokens(tmp_path: Path, refresh: str, p0: int, p1: int) -> None:
    pair = make_pair(tmp_path, "anchor-delta", refresh)
    pair.decode(Entry(0, TEXT[:9]))
    generate(pair, 9, K)  # at positions 9 to 11
    pair.discard(0, p0, p1)
    generate(pair, 20, 12)


@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("p0", [4, 9])
def test_a_gap_is_no_hindrance(tmp_path: Path, refresh: str, p0: int) -> None:
    pair = make_pair(tmp_path, "segment", refresh)
    pair.decode(Entry(0, TEXT[:9]))
    generate(pair, 9, K)
    # llama.cpp takes no batch that leaves positions out, so tokens after a gap cannot run again
    pair.engine.seq_rm(0, p0, 11)
    seq = pair.reference.sequences[0]
    for store in seq.kv:
        for pos in [pos for pos in store if p0 <= pos < 11]:
            del store[pos]
    seq.previous_logits_wanted = False
    seq.lora_tokens = []
    generate(pair, 20, 12)


@pytest.mark.parametrize(("p0", "p1", "last"), [(10, 11, 8), (7, 9, 6), (4, 6, 11), (10, -1, 9)])
def test_a_gap_among_owed_tokens_is_no_hindrance(tmp_path: Path, p0: int, p1: int, last: int) -> None:
    pair = make_pair(tmp_path, "segment", "refill", n_ctx=256)
    engine = pair.engine
    engine.decode(TEXT[:9])
    for token in TEXT[9 : 9 + K]:
        engine.decode([token])
    engine.abort_after(0)
    with pytest.raises(DecodeAborted):
        engine.decode([5])  # a refill, which now owes what was at positions 9 to 11
    engine.seq_rm(0, p0, p1)
    for i, token in enumerate(TEXT[20:30], start=1):
        engine.decode([token])
        assert engine.seq_pos_max(0) == last + i
    assert np.isfinite(engine.logits()).all()


def test_positions_below_zero_are_removed(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "segment", "refill")
    pair.decode(Entry(0, TEXT[:9]))
    generate(pair, 9, K)
    pair.engine.seq_add(0, 0, -1, -11)  # of the tokens to run again only the last has a place
    assert pair.engine.seq_pos_max(0) == 0
    pair.engine.decode([5])
    assert np.isfinite(pair.engine.logits()).all()
    assert pair.engine.stats["replayed_tokens"] == 1
    assert pair.engine.seq_pos_max(0) == 1


# nothing is computed between a shift and the next decode, so the keys still wait to be turned when that is stopped
@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_an_abort_after_a_shift_turns_no_key_twice(tmp_path: Path, refresh: str, after: int) -> None:
    pair = make_pair(tmp_path, "previous-state", refresh)
    pair.decode(Entry(0, TEXT[:20]))
    generate(pair, 20, 2)
    pair.discard(0, 4, 9)
    pair.abort(0, after=after)
    generate(pair, 30, 8)
