"""Exact decoding: every decode gives the full model's logits, whatever was drafted and however much of it was right."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loradrop._core import Context, Corrector, DecodeAborted, Model
from pair import ENGINE_OPTIONS, Pair
from reference import Entry
from sequence_pair import SequencePair
from test_engine import REUSES, TEXT, corrector_for
from tiny import Reuse, make_model, write_gguf
from verify_walk import VerifyWalk, needs_exact_rows

N_LAYER = 8
K = 3


def walk_for(folder: Path, reuse: Reuse = "segment", k: int = K, **options: Any) -> VerifyWalk:
    arch = options.pop("arch", "llama")
    model = make_model(arch, n_layer=N_LAYER, n_swa=options.pop("n_swa", 0))
    pair = SequencePair(folder, model, corrector_for(model, reuse), rho=0.5, k=k, refresh="verify", **options)
    return VerifyWalk(pair, k)


@pytest.mark.parametrize("reuse", REUSES)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_pattern_of_acceptance(tmp_path: Path, reuse: Reuse, k: int) -> None:
    walk = walk_for(tmp_path, reuse, k)
    walk.begin(TEXT[:9])
    for n_hits, n_next in product(range(k + 1), repeat=2):
        for n in (n_hits, n_next):
            walk.step(hit=False)
            for _ in range(n):
                walk.step(hit=True)
    assert walk.rounds == 2 * (k + 1) ** 2


@pytest.mark.parametrize("options", [{"flash_attn": "on", "type_k": "f16", "type_v": "f16"}, {"arch": "qwen2"}])
def test_random_acceptance(tmp_path: Path, options: dict[str, Any]) -> None:
    walk = walk_for(tmp_path, k=5, **options)
    walk.begin(TEXT[:5])
    rng = np.random.default_rng(2)
    for hit in rng.random(150) < 0.7:
        walk.step(hit=bool(hit))
    assert min(walk.accepted) > 0


@pytest.mark.parametrize("reuse", REUSES)
@pytest.mark.parametrize("swa_full", [True, False])
def test_sliding_windows(tmp_path: Path, reuse: Reuse, swa_full: bool) -> None:
    walk = walk_for(tmp_path, reuse, arch="olmo2", n_swa=5, swa_full=swa_full)
    walk.begin(TEXT[:9])
    rng = np.random.default_rng(4)
    for hit in rng.random(120) < 0.7:
        walk.step(hit=bool(hit))


@needs_exact_rows
def test_a_model_without_corrector_drafts_too(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    path = tmp_path / "bare.gguf"
    write_gguf(path, model)
    native = Model(str(path))
    options = {**ENGINE_OPTIONS, "n_threads": 1}
    bare = Context(native, corrector=Corrector.none(native), rho=0.25, k=K, refresh="verify", **options)
    full = Context(native, **options)
    for context in (bare, full):
        context.decode(TEXT[:9])
    token = TEXT[9]
    for _ in range(40):
        for context in (bare, full):
            context.decode([token])
        assert np.array_equal(bare.logits(), full.logits())
        token = int(full.logits().argmax())
    assert bare.stats["rounds"] > 0 and sum(bare.stats["drafts_accepted"]) > 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [([3, 0], "layers names 0; layers 1 to 6 can drop"), ([7], "names 7; layers 1 to 6"), ([2, 3, 2], "names 2 twice")],
)
def test_layers_to_leave_out_that_cannot_be(tmp_path: Path, layers: list[int], message: str) -> None:
    path = tmp_path / "bare.gguf"
    write_gguf(path, make_model(n_layer=N_LAYER))
    native = Model(str(path))
    with pytest.raises(ValueError, match=message):
        Corrector.none(native, layers)
    assert Corrector.none(native, [4, 2]).layers == [4, 2]


#
# what clients do to a sequence
#


@pytest.mark.parametrize("reuse", REUSES)
@pytest.mark.parametrize("n_hits", [1, 2, 3])
def test_cut_back_to_a_row_that_is_kept(tmp_path: Path, reuse: Reuse, n_hits: int) -> None:
    for n_left in range(n_hits):
        walk = walk_for(tmp_path, reuse)
        walk.begin(TEXT[:9])
        walk.step(hit=False)
        for _ in range(n_hits):
            walk.step(hit=True)
        begin_anew(walk, 9 + 1 + n_left)
        walk.step(hit=False)
        walk.step(hit=True)


def begin_anew(walk: VerifyWalk, n_left: int) -> None:
    """Cut the sequence back to n_left tokens; the reference decodes these again, so that it has their last's state."""
    pair = walk.pair
    assert isinstance(pair, SequencePair)
    tokens = pair.tokens[0][:n_left]
    assert pair.engine.seq_rm(0, n_left)
    pair.reference.sequences.clear()
    pair.reference.decode([Entry(0, tokens)])
    walk.forget_drafts()
    walk.check()


@pytest.mark.parametrize("reuse", REUSES)
def test_cut_back_further_takes_a_full_step_first(tmp_path: Path, reuse: Reuse) -> None:
    walk = walk_for(tmp_path, reuse)
    walk.begin(TEXT[:9])
    walk.step(hit=False)
    walk.step(hit=True)
    begin_anew(walk, 7)
    walk.step(hit=False, drafts=False)
    walk.step(hit=False)


def test_removing_what_is_not_there_keeps_the_drafts(tmp_path: Path) -> None:
    walk = walk_for(tmp_path)
    walk.begin(TEXT[:9])
    walk.step(hit=False)
    for _ in range(K):
        assert walk.pair.engine.seq_rm(0, walk.pair.engine.seq_pos_max(0) + 1)
        walk.step(hit=True)


@pytest.mark.parametrize("reuse", REUSES)
def test_a_clients_own_small_batch_leaves_rows(tmp_path: Path, reuse: Reuse) -> None:
    for n_left in range(1, K + 2):
        walk = walk_for(tmp_path, reuse)
        walk.begin(TEXT[:9])
        pair = walk.pair
        pair.engine.decode(TEXT[9 : 9 + K + 1], outputs=[True] * (K + 1))
        pair.reference.decode([Entry(0, TEXT[9 : 9 + n_left])])
        assert pair.engine.seq_rm(0, 9 + n_left)
        walk.step(hit=False)
        walk.step(hit=True)


def test_a_small_batch_without_all_logits_leaves_no_rows(tmp_path: Path) -> None:
    walk = walk_for(tmp_path)
    walk.begin(TEXT[:9])
    walk.pair.engine.decode(TEXT[9:12], outputs=[True, False, True])
    walk.pair.reference.decode([Entry(0, TEXT[9:11])])
    assert walk.pair.engine.seq_rm(0, 11)
    walk.step(hit=False, drafts=False)
    walk.step(hit=False)


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("reuse", REUSES)
def test_copies_and_saved_states_begin_at_the_last_token(tmp_path: Path, reuse: Reuse, kv_unified: bool) -> None:
    walk = walk_for(tmp_path, reuse, n_seq_max=2, n_ctx=1024, kv_unified=kv_unified)
    pair = walk.pair
    assert isinstance(pair, SequencePair)
    walk.begin(TEXT[:9])
    walk.step(hit=False)
    walk.step(hit=True)
    pair.copy(0, 1)
    walk.forget_drafts()
    walk.check()
    walk.step(hit=False)
    walk.step(hit=True)
    pair.engine.load_state(pair.engine.save_state())
    walk.forget_drafts()
    walk.check()
    walk.step(hit=False)
    walk.step(hit=True)
    other = VerifyWalk(pair, K, seq_id=1)
    other.rounds, other.drafted, other.tried, other.accepted = walk.rounds, walk.drafted, walk.tried, walk.accepted
    other.step(hit=False, drafts=False)  # sequences that take turns do not look ahead
    other.step(hit=False)
    other.step(hit=True)


@pytest.mark.parametrize("reuse", REUSES)
def test_a_copy_drafts_from_the_state_of_its_last_token(tmp_path: Path, reuse: Reuse) -> None:
    walk = walk_for(tmp_path, reuse, n_seq_max=2, n_ctx=1024)
    pair = walk.pair
    assert isinstance(pair, SequencePair)
    walk.begin(TEXT[:9])
    walk.step(hit=False)
    walk.step(hit=True)
    pair.decode(Entry(1, TEXT[20:25]))
    pair.copy(0, 1)
    other = VerifyWalk(pair, K, seq_id=1)
    other.rounds, other.drafted, other.tried, other.accepted = walk.rounds, walk.drafted, walk.tried, walk.accepted
    other.step(hit=False)
    other.step(hit=True)


def test_sequences_that_take_turns_decode_plainly(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "segment")
    pair = Pair(tmp_path, model, corrector, rho=0.5, k=K, refresh="verify", n_seq_max=2, n_ctx=1024)
    for seq_id in (0, 1):
        pair.decode(Entry(seq_id, TEXT[:5]))
    for i in range(10):
        pair.decode(Entry(i % 2, [TEXT[5 + i]]))
    pair.decode(Entry(0, [7]), Entry(1, [8]))
    assert pair.engine.stats["rounds"] == 0
    assert pair.engine.stats["lora_steps"] == 0


@pytest.mark.parametrize("reuse", REUSES)
def test_a_shifted_sequence_goes_on(tmp_path: Path, reuse: Reuse) -> None:
    walk = walk_for(tmp_path, reuse)
    pair = walk.pair
    assert isinstance(pair, SequencePair)
    walk.begin(TEXT[:19])
    walk.step(hit=False)
    walk.step(hit=True)
    pair.discard(0, 4, 9)
    walk.forget_drafts()
    walk.check()
    walk.step(hit=False)
    walk.step(hit=True)


def test_logits_that_nobody_wants_end_the_drafts(tmp_path: Path) -> None:
    walk = walk_for(tmp_path)
    walk.begin(TEXT[:9])
    walk.step(hit=False)
    draft = walk.pair.engine.drafted()
    assert draft is not None
    walk.pair.decode(Entry(0, [draft], want_logits=False))
    walk.forget_drafts()
    walk.check()
    walk.step(hit=False, drafts=False)
    walk.step(hit=False)


#
# limits and failures
#


@pytest.mark.parametrize("n_operations", [0, 30, 100, 170, 260])
@pytest.mark.parametrize("reuse", REUSES)
def test_abort_anywhere_in_a_round(tmp_path: Path, reuse: Reuse, n_operations: int) -> None:
    walk = walk_for(tmp_path, reuse)
    walk.begin(TEXT[:9])
    walk.step(hit=False)
    walk.step(hit=True)
    draft = walk.pair.engine.drafted()
    assert draft is not None
    walk.pair.engine.abort_after(n_operations)
    with pytest.raises(DecodeAborted):
        walk.pair.engine.decode([5 if draft != 5 else 6])
    walk.tried[1] += 1
    assert walk.pair.engine.seq_pos_max(0) == 10
    walk.forget_drafts()
    walk.check()
    # in the drafts nothing was lost, in the check the rows were
    lora_steps = walk.pair.engine.stats["lora_steps"]
    walk.step(hit=False, drafts=lora_steps < 2 * K)
    walk.step(hit=False)


def test_the_last_cells_of_a_context(tmp_path: Path) -> None:
    walk = walk_for(tmp_path, n_ctx=256)
    walk.begin(TEXT[:240])
    pair = walk.pair
    for token in TEXT[240:256]:
        pair.decode(Entry(0, [token]))
    assert pair.engine.seq_pos_max(0) == 255
    assert pair.engine.stats["rounds"] > 0


def test_k_beyond_a_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"k = 4: .* batch of k \+ 1 tokens, n_ubatch and n_batch allow for 4"):
        walk_for(tmp_path, k=4, n_ubatch=4)
    walk = walk_for(tmp_path, k=3, n_ubatch=4)
    walk.begin(TEXT[:9])
    walk.step(hit=False)
    walk.step(hit=True)


def test_only_exact_states_are_taken_over(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, "segment")
    single = Pair(tmp_path, model, corrector, rho=0.5, k=K, refresh="single")
    exact = Pair(tmp_path, model, corrector, rho=0.5, k=K, refresh="verify")
    single.decode(Entry(0, TEXT[:9]))
    exact.decode(Entry(0, TEXT[:9]))
    with pytest.raises(ValueError, match="only what was saved under verify is exact"):
        exact.engine.load_state(single.engine.save_state())
    exact.engine.decode(TEXT[:9])
    single.engine.load_state(exact.engine.save_state())
    assert single.engine.seq_pos_max(0) == 8
