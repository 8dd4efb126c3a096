"""Saved states: all that belongs to the sequences goes along, and what does not fit is refused."""

from __future__ import annotations

import copy
import dataclasses
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loradrop._core import Context, DecodeError, LoradropError, Model
from pair import FLASH_TOLERANCE
from reference import Entry
from sequence_pair import SequencePair
from test_engine import POLICIES, REUSES, TEXT, corrector_for
from tiny import Reuse, TinyModel, make_model, write_gguf

N_LAYER = 8
N_SEQ = 3
STATE_MAGIC = struct.pack("<I", 0x504F5244)  # a version follows it


def make_pair(
    folder: Path, reuse: Reuse = "segment", refresh: str = "refill", model: TinyModel | None = None, **options: Any
) -> SequencePair:
    folder.mkdir(exist_ok=True)
    model = model or make_model(n_layer=N_LAYER)
    point: dict[str, Any] = {"rho": 0.5, "k": 3, "kv_window": 6, "n_seq_max": N_SEQ, "n_ctx": 1536, "n_ubatch": 32}
    return SequencePair(folder, model, corrector_for(model, reuse), refresh=refresh, **(point | options))


def move(here: SequencePair, there: SequencePair) -> None:
    there.engine.load_state(here.engine.save_state())
    there.reference.sequences = copy.deepcopy(here.reference.sequences)
    there.check_lengths()


def step(pair: SequencePair, start: int, n_steps: int) -> None:
    for i in range(start, start + n_steps):
        pair.decode(*(Entry(s, [TEXT[i + 50 * s]]) for s in sorted(pair.reference.sequences)))


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("n_swa", [0, 7])
@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_it_goes_on_elsewhere(tmp_path: Path, reuse: Reuse, refresh: str, n_swa: int, kv_unified: bool) -> None:
    model = make_model("olmo2" if n_swa else "llama", n_layer=N_LAYER, n_swa=n_swa)
    options = {"model": model, "kv_unified": kv_unified, "swa_full": False}
    here, there = (make_pair(tmp_path, reuse, refresh, **options) for _ in range(2))
    here.decode(Entry(0, TEXT[:9]), Entry(2, TEXT[:5]))
    step(here, 9, 21)
    move(here, there)
    step(there, 30, 20)


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("refresh", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_a_copy_that_waits_for_the_next_decode_goes_along(
    tmp_path: Path, reuse: Reuse, refresh: str, kv_unified: bool
) -> None:
    here, there = (make_pair(tmp_path, reuse, refresh, kv_unified=kv_unified) for _ in range(2))
    here.decode(Entry(0, TEXT[:9]))
    step(here, 9, 2)
    here.copy(0, 1)
    here.copy(1, 2)
    move(here, there)
    step(there, 20, 8)
    step(here, 20, 8)


@pytest.mark.parametrize("refresh", POLICIES)
def test_a_shift_that_waits_for_the_next_decode_goes_along(tmp_path: Path, refresh: str) -> None:
    here, there = (make_pair(tmp_path, "anchor-delta", refresh) for _ in range(2))
    here.decode(Entry(0, TEXT[:20]))
    step(here, 20, 2)
    here.discard(0, 4, 9)
    move(here, there)
    step(there, 30, 8)
    step(here, 30, 8)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_it_replaces_all_that_was_there(tmp_path: Path, kv_unified: bool) -> None:
    here, there = (make_pair(tmp_path, kv_unified=kv_unified) for _ in range(2))
    there.decode(*(Entry(i, TEXT[: 12 + i]) for i in range(N_SEQ)))
    step(there, 12, 2)
    there.discard(0, 4, 9)
    there.copy(2, 1)  # neither this nor the shift is to reach what comes in
    here.decode(Entry(1, TEXT[:9]))
    step(here, 9, 2)
    move(here, there)
    step(there, 20, 8)
    here.engine.clear()
    here.reference.sequences.clear()
    move(here, there)
    there.decode(Entry(0, TEXT[:9]))


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("before", [("single", 3), ("refill", 1)])
@pytest.mark.parametrize("after", [("single", 2), ("refill", 3)])
def test_another_schedule_takes_over_after_a_full_step(
    tmp_path: Path, before: tuple[str, int], after: tuple[str, int], kv_unified: bool
) -> None:
    here, there = (make_pair(tmp_path, refresh=refresh, k=k, kv_unified=kv_unified) for refresh, k in (before, after))
    here.decode(Entry(0, TEXT[:9]), Entry(2, TEXT[:5]))
    step(here, 9, 5 * (before[1] + 1))
    assert here.engine.stats["last_step"] == "full"
    move(here, there)
    step(there, 30, 20)


def test_tokens_that_a_failed_refill_owes_go_along(tmp_path: Path) -> None:
    here, there = make_pair(tmp_path), make_pair(tmp_path)
    here.decode(Entry(0, TEXT[:9]))
    step(here, 9, 3)
    here.abort(0, after=20)
    move(here, there)
    step(there, 20, 8)


def test_a_larger_cache_of_droppable_layers_goes_along(tmp_path: Path) -> None:
    here, there = (make_pair(tmp_path, n_ctx=2048, kv_window=1000) for _ in range(2))
    here.engine.decode(TEXT[:300])
    for token in TEXT[300:310]:
        here.engine.decode([token])
    assert here.engine.stats["kv_cells_droppable"] > there.engine.stats["kv_cells_droppable"]
    there.engine.load_state(here.engine.save_state())
    for token in TEXT[310:320]:
        for pair in (here, there):
            pair.engine.decode([token])
        assert np.abs(here.engine.logits() - there.engine.logits()).max() <= 1e-5 * np.abs(here.engine.logits()).max()
        assert here.engine.stats["last_step"] == there.engine.stats["last_step"]


def another_version(state: bytes) -> bytes:
    at = state.index(STATE_MAGIC) + len(STATE_MAGIC)
    (version,) = struct.unpack_from("<I", state, at)
    return state[:at] + struct.pack("<I", version + 1) + state[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (another_version, "version"),
        (lambda state: state[:-1], "end of buffer"),
        (lambda state: state[: len(state) // 2], "failed to restore kv cache"),
        (lambda state: b"", "end of buffer"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    here, there = make_pair(tmp_path), make_pair(tmp_path)
    here.decode(Entry(0, TEXT[:9]))
    step(here, 9, 2)
    there.decode(Entry(0, TEXT[:5]))
    with pytest.raises(ValueError, match=message):
        there.engine.load_state(damage(here.engine.save_state()))
    # it is empty now, and can be used
    there.reference.sequences.clear()
    there.check_lengths()
    there.decode(Entry(0, TEXT[:9]))
    step(there, 9, 5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"refresh": "single"}, "k or the refresh policy"),
        ({"k": 2}, "k or the refresh policy"),
        ({"rho": 0.25}, "the dropped layers"),
        ({"reuse": "anchor-delta"}, "the dropped layers"),
        ({"model": make_model(n_layer=N_LAYER, n_ff=128)}, "the model"),
        ({"model": make_model("qwen2", n_layer=N_LAYER)}, "wrong model arch"),
        ({"type_v": "f16"}, "failed to restore kv cache"),
        ({"kv_unified": False}, "n_stream"),
    ],
)
def test_a_state_of_another_context_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    here, there = make_pair(tmp_path / "here"), make_pair(tmp_path / "there", **other)
    here.decode(Entry(0, TEXT[:9]))
    step(here, 9, 2)
    with pytest.raises(ValueError, match=message):
        there.engine.load_state(here.engine.save_state())
    there.tolerance = FLASH_TOLERANCE  # one of them keeps V as f16
    there.decode(Entry(0, TEXT[:9]))
    step(there, 9, 5)


def test_states_with_and_without_lora_drop_do_not_mix(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    write_gguf(tmp_path / "plain.gguf", make_model(n_layer=N_LAYER))
    plain = Context(Model(str(tmp_path / "plain.gguf")), n_ctx=256, n_threads=1, n_threads_batch=1)
    plain.decode(TEXT[:9])
    pair.engine.decode(TEXT[:9])
    with pytest.raises(ValueError, match="saved without LoRA-Drop"):
        pair.engine.load_state(plain.save_state())
    pair.engine.decode(TEXT[:9])
    with pytest.raises(ValueError, match="n_stream mismatch"):
        plain.load_state(pair.engine.save_state())
    plain.decode(TEXT[:9])


@pytest.mark.parametrize("reuse", REUSES)
def test_a_state_of_another_corrector_is_refused(tmp_path: Path, reuse: Reuse) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = corrector_for(model, reuse)
    changed = {name: tensor.copy() for name, tensor in corrector.tensors.items()}
    for name in changed:
        if "lora_drop.seg.0." not in name:  # this run is not used
            changed[name].flat[-1] *= -1
    here, there = make_pair(tmp_path / "here", reuse), make_pair(tmp_path / "there", reuse)
    (tmp_path / "other").mkdir()
    point = {"rho": 0.5, "k": 3, "n_seq_max": N_SEQ, "n_ctx": 1536}
    other = SequencePair(
        tmp_path / "other", model, dataclasses.replace(corrector, tensors=changed), refresh="refill", **point
    )
    for pair in (here, other):
        pair.decode(Entry(0, TEXT[:9]))
        step(pair, 9, 2)
    with pytest.raises(ValueError, match="it differs in the corrector's weights"):
        other.engine.load_state(here.engine.save_state())
    other.reference.sequences.clear()
    other.decode(Entry(0, TEXT[:9]))
    move(here, there)


def lora_tokens(*tokens: tuple[int, int]) -> bytes:
    """Return how a state holds tokens of LoRA steps: their number, then each with its position."""
    return struct.pack("<Q", len(tokens)) + b"".join(struct.pack("<ii", *token) for token in tokens)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lora_tokens((320 + 999, 9), (TEXT[10], 10)), "a token"),
        (lora_tokens((-1, 9), (TEXT[10], 10)), "a token"),
        (lora_tokens((TEXT[9], -9), (TEXT[10], 10)), "a position"),
        (lora_tokens((TEXT[9], 10), (TEXT[10], 10)), "a position"),
        (lora_tokens((TEXT[9], 11), (TEXT[10], 10)), "a position"),
        (struct.pack("<Q", 4), "the number of LoRA steps"),
        (struct.pack("<Q", 2**63), "the number of LoRA steps"),
        (lora_tokens((TEXT[9], 9), (TEXT[10], 10)) + struct.pack("<Q", 3), "the number of pending tokens"),
        (lora_tokens((TEXT[9], 9), (TEXT[10], 10)) + struct.pack("<Q", 1), "the number of pending tokens"),
        (lora_tokens((TEXT[9], 9), (TEXT[10], 10)) + struct.pack("<Q", 2), "the place of pending tokens"),
    ],
    ids=[
        *("a token too large", "a token below zero", "a position below zero", "a position twice", "descending"),
        *("more than k", "many more", "more pending than there are", "some pending", "pending and in the cache"),
    ],
)
@pytest.mark.parametrize("kv_unified", [True, False])
def test_tokens_that_cannot_be_are_refused(tmp_path: Path, damaged: bytes, message: str, kv_unified: bool) -> None:
    pair = make_pair(tmp_path, kv_unified=kv_unified)
    pair.decode(Entry(0, TEXT[:9]))
    step(pair, 9, 2)
    state = pair.engine.save_state()
    at = state.index(lora_tokens((TEXT[9], 9), (TEXT[10], 10)))
    with pytest.raises(ValueError, match=message):
        pair.engine.load_state(state[:at] + damaged + state[at + len(damaged) :])
    pair.reference.sequences.clear()
    pair.check_lengths()
    pair.decode(Entry(0, TEXT[:9]))


@pytest.mark.parametrize("position", [-1, -7])
@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_cell_without_a_position_is_refused(tmp_path: Path, position: int, kv_unified: bool) -> None:
    pair = make_pair(tmp_path, kv_unified=kv_unified)
    pair.decode(Entry(0, TEXT[:9]))
    state = pair.engine.save_state()
    cell = struct.pack("<iIi", 8, 1, 0)  # position 8 of one sequence, the first
    at = state.index(cell)
    with pytest.raises(ValueError, match="failed to restore kv cache"):
        pair.engine.load_state(state[:at] + struct.pack("<i", position) + state[at + 4 :])
    pair.reference.sequences.clear()
    pair.decode(Entry(0, TEXT[:9]))


@pytest.mark.parametrize("kv_unified", [True, False])
def test_more_cells_than_there_are_take_no_memory(tmp_path: Path, kv_unified: bool) -> None:
    pair = make_pair(tmp_path, kv_unified=kv_unified)
    pair.decode(Entry(0, TEXT[:9]))
    state = pair.engine.save_state()
    n_streams = 1 if kv_unified else N_SEQ
    cache = struct.pack("<III", pair.engine.stats["kv_cells_droppable"], n_streams, 9)
    at = state.index(cache) + len(cache) - 4
    for n_cells in (4_000_000, 2**32 - 1):
        before = peak_memory()
        with pytest.raises(ValueError, match="failed to restore kv cache"):
            pair.engine.load_state(state[:at] + struct.pack("<I", n_cells) + state[at + 4 :])
        assert peak_memory() - before < 64 << 20


def peak_memory() -> int:
    """Return the most bytes that the process has taken, 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_state_with_damaged_books_is_an_error_or_loads(tmp_path: Path, kv_unified: bool, data: st.DataObject) -> None:
    here, state = damaged_context(tmp_path, kv_unified)
    damaged = bytearray(state)
    books = [
        state.index(STATE_MAGIC),
        state.index(struct.pack("<iIi", 0, 1, 0)),  # the first cells
        state.index(lora_tokens((TEXT[9], 9), (TEXT[10], 10))) - 8,
    ]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(books)) + data.draw(st.integers(0, 79))
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        here.load_state(bytes(damaged))
        for token in TEXT[11:19]:
            here.decode([token])
        here.seq_rm(0, 5)
        here.decode(TEXT[:3])
    except (ValueError, LoradropError):
        here.clear()
    here.clear()
    here.decode(TEXT[:3])


CONTEXTS: dict[tuple[Path, bool], tuple[Context, bytes]] = {}


def damaged_context(folder: Path, kv_unified: bool) -> tuple[Context, bytes]:
    """Return a context and a state of it with two LoRA steps; the same for each example of a test."""
    if (folder, kv_unified) not in CONTEXTS:
        pair = make_pair(folder, kv_unified=kv_unified)
        pair.decode(Entry(0, TEXT[:9]))
        step(pair, 9, 2)
        CONTEXTS[folder, kv_unified] = pair.engine, pair.engine.save_state()
    return CONTEXTS[folder, kv_unified]


def test_other_threads_run_while_a_state_is_saved_and_loaded(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    pair.decode(Entry(0, TEXT[:9]))
    errors: set[str] = set()
    done = threading.Event()

    def use() -> None:
        while not done.is_set():
            try:
                pair.engine.seq_pos_max(0)
            except DecodeError as error:
                errors.add(str(error))

    other = threading.Thread(target=use)
    other.start()
    try:
        for _ in range(300):
            pair.engine.load_state(pair.engine.save_state())
    finally:
        done.set()
        other.join()
    assert errors <= {"the context is in use on another thread; one thread at a time may use it"}
    pair.check_lengths()
    step(pair, 9, 5)
