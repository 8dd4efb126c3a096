"""A model's own writing with the states of the passes that write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loradrop._core import Model
from loradrop.calibrate.engine_states import engine_states
from loradrop.self_text import write_texts
from loradrop.state_store import States, Tokens
from tiny import make_model, write_gguf

N_TEXTS = 19  # more than one round
N_TOKENS = 21
CAPTURE = (-1, 2, 4)
TOLERANCE = 2e-3  # of the largest entry: float16, and K/V in float16 read by another kernel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("self") / "tiny.gguf"
    write_gguf(path, make_model(n_layer=6))
    return Model(str(path))


@pytest.fixture(scope="module")
def rounds(model: Model) -> list[tuple[Tokens, dict[int, States]]]:
    seen: list[tuple[Tokens, dict[int, States]]] = []
    texts = write_texts(
        model,
        N_TEXTS,
        N_TOKENS,
        seed=3,
        n_threads=1,
        capture=CAPTURE,
        observe=lambda tokens, states: seen.append((tokens, states)),
    )
    np.testing.assert_array_equal(np.concatenate([tokens for tokens, _ in seen]), texts)
    return seen


def test_observed_texts_are_those_without(model: Model, rounds: list[tuple[Tokens, dict[int, States]]]) -> None:
    texts = write_texts(model, N_TEXTS, N_TOKENS, seed=3, n_threads=1)
    assert [len(tokens) for tokens, _ in rounds] == [16, 3]
    np.testing.assert_array_equal(np.concatenate([tokens for tokens, _ in rounds]), texts)
    assert not np.array_equal(texts, write_texts(model, N_TEXTS, N_TOKENS, seed=4, n_threads=1))


def test_states_are_those_of_a_prefill(
    tmp_path: Path, model: Model, rounds: list[tuple[Tokens, dict[int, States]]]
) -> None:
    texts = np.concatenate([tokens for tokens, _ in rounds])
    store = engine_states(model, texts, [layer + 1 for layer in CAPTURE], tmp_path, n_threads=1)
    for layer in CAPTURE:
        written = np.concatenate([states[layer] for _, states in rounds])
        expected = store.inputs(layer + 1).astype(np.float32)
        assert written.dtype == np.float16 and written.shape == expected.shape
        assert np.abs(written - expected).max() < TOLERANCE * np.abs(expected).max(), layer
