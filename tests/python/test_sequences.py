"""Operations on sequences: caches, schedule and reuse state follow together, as the reference's do."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from pair import Pair
from reference import Entry
from test_engine import POLICIES, REUSES, SCHEDULED, TEXT, corrector_for
from tiny import Reuse, make_model

N_LAYER = 8
N_SWA = [0, 7]  # without and with sliding-window layers


def make_pair(folder: Path, reuse: Reuse, refresh: str, kv_unified: bool = True, n_swa: int = 0) -> Pair:
    model = make_model("olmo2" if n_swa else "llama", n_layer=N_LAYER, n_swa=n_swa)
    return Pair(
        folder,
        model,
        corrector_for(model, reuse),
        rho=0.5,
        k=3,
        refresh=refresh,
        kv_window=6,
        n_seq_max=3,
        n_ctx=1536,
        n_ubatch=32,
        kv_unified=kv_unified,
        swa_full=False,
    )


@pytest.mark.parametrize("n_swa", N_SWA)
@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_a_copy_goes_on_by_itself(tmp_path: Path, reuse: Reuse, refresh: str, kv_unified: bool, n_swa: int) -> None:
    pair = make_pair(tmp_path, reuse, refresh, kv_unified, n_swa)
    pair.decode(Entry(0, TEXT[:9]))
    for i in range(9, 40):
        if i in (10, 15, 20):  # at different phases
            pair.engine.seq_rm(1)
            pair.engine.seq_cp(0, 1)
            pair.reference.sequences[1] = copy.deepcopy(pair.reference.sequences[0])
            pair.decode(Entry(1, [TEXT[i + 100]]))
        pair.decode(Entry(0, [TEXT[i]]), Entry(1, [TEXT[i + 50]])) if i > 10 else pair.decode(Entry(0, [TEXT[i]]))


@pytest.mark.parametrize("n_swa", N_SWA)
@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_a_removed_tail_is_decoded_again_in_full(tmp_path: Path, reuse: Reuse, refresh: str, n_swa: int) -> None:
    pair = make_pair(tmp_path, reuse, refresh, n_swa=n_swa)
    pair.decode(Entry(0, TEXT[:9]))
    seen = [copy.deepcopy(pair.reference.sequences[0])]
    for token in TEXT[9:12]:
        pair.decode(Entry(0, [token]))
        seen.append(copy.deepcopy(pair.reference.sequences[0]))
    assert pair.reference.last_step == "lora"
    for n_kept in (2, 1, 0):
        pair.engine.seq_rm(0, 9 + n_kept)
        pair.reference.sequences[0] = copy.deepcopy(seen[n_kept])
        pair.reference.sequences[0].previous_logits_wanted = False  # the next token was not sampled from these
        pair.decode(Entry(0, [TEXT[60 + n_kept]]))
        assert pair.reference.last_step == "full"
        # back to where the tail was cut, for the next one
        pair.engine.seq_rm(0)
        del pair.reference.sequences[0]
        pair.decode(Entry(0, TEXT[:9]))
        for token in TEXT[9:12]:
            pair.decode(Entry(0, [token]))


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("refresh", POLICIES)
def test_keeping_one_forgets_the_others(tmp_path: Path, refresh: str, kv_unified: bool) -> None:
    pair = make_pair(tmp_path, "segment", refresh, kv_unified)
    pair.decode(*(Entry(i, TEXT[: 9 + i]) for i in range(3)))
    for token in TEXT[9:11]:
        pair.decode(*(Entry(i, [token]) for i in range(3)))
    pair.engine.seq_keep(1)
    pair.reference.sequences = {1: pair.reference.sequences[1]}
    assert [pair.engine.seq_pos_max(i) for i in range(3)] == [-1, 11, -1]
    for token in TEXT[20:30]:
        pair.decode(*(Entry(i, [token]) for i in range(3)))


def test_a_second_request_after_clear_starts_anew(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "anchor-state", "refill")
    for _ in range(2):
        pair.decode(Entry(0, TEXT[:9]))
        for token in TEXT[9:20]:
            pair.decode(Entry(0, [token]))
        pair.engine.clear()
        pair.reference.sequences.clear()
