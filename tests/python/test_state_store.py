"""Stored states: whose they are, and that the room for them is taken before they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from loradrop.state_store import StateStore, StateWriter, inputs_name

TOKENS = np.arange(12, dtype=np.int32).reshape(3, 4)
NAME = inputs_name(2)


def test_states_come_back(tmp_path: Path) -> None:
    states = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float16)
    for text in range(3):  # each by a new writer, as after an interrupt
        writer = StateWriter(tmp_path, TOKENS, {NAME: 8}, model="a")
        assert writer.done == text
        writer.append({NAME: states[text : text + 1]})
    store = StateStore(tmp_path)
    np.testing.assert_array_equal(store.inputs(2), states)
    np.testing.assert_array_equal(store.tokens, TOKENS)
    assert store.model == "a"


@pytest.mark.parametrize(
    ("tokens", "widths", "model", "says"),
    [
        (TOKENS + 1, {NAME: 8}, "a", "holds the states of other texts"),
        (TOKENS, {NAME: 8}, "b", "holds the states of another model"),
        (TOKENS, {NAME: 16}, "a", r"holds \[3, 4, 8\] numbers, not \[3, 4, 16\]"),
        (TOKENS, {NAME: 8, inputs_name(3): 8}, "a", "lacks the inputs-003"),
    ],
)
def test_states_of_others_are_refused(
    tmp_path: Path, tokens: np.ndarray, widths: dict[str, int], model: str, says: str
) -> None:
    StateWriter(tmp_path, TOKENS, {NAME: 8}, model="a").append({NAME: np.ones((1, 4, 8))})
    with pytest.raises(ValueError, match=says):
        StateWriter(tmp_path, tokens, widths, model=model)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot take room before it is written")
def test_room_is_taken_at_once(tmp_path: Path) -> None:
    StateWriter(tmp_path, np.zeros((8, 256), np.int32), {NAME: 256})
    info = (tmp_path / f"{NAME}.npy").stat()
    assert info.st_blocks * 512 >= info.st_size > 2**20


def test_no_room_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="are free") as caught:
        StateWriter(tmp_path, TOKENS, {NAME: 2**50})
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / f"{NAME}.npy").exists()
