"""The point for exact decoding: from what a corrector's file says of its drafts, and what rounds take here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradrop import Llama
from loradrop._core import Corrector, Model
from loradrop.cli.exact_advice import exact_advice
from loradrop.recommended import (
    best_exact_count,
    draft_quality,
    exact_speed,
    expected_tokens_per_round,
    measured_agreements,
)
from loradrop.round_pace import round_pace
from tiny import make_corrector, make_model, write_gguf, write_sidecar

N_LAYER = 8
LAYERS = [3, 4, 2, 5]
TINY = make_model(n_layer=N_LAYER)
GOOD = [
    {"rho": 0.25, **draft_quality([0.9, 0.8, 0.7])},
    {"rho": 0.5, **draft_quality([0.5, 0.4])},
]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    write_gguf(tmp_path / "model.gguf", TINY)
    return Model(str(tmp_path / "model.gguf"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "round_pace"


def with_quality(folder: Path, model: Model, quality: Any) -> Corrector:
    text = quality if isinstance(quality, str) else json.dumps(quality)
    corrector = dataclasses.replace(make_corrector(TINY, "anchor-delta", layers=LAYERS), rho=0.5, k=3, quality=text)
    write_sidecar(folder / "corrector.gguf", TINY, corrector)
    loaded = Corrector.load(str(folder / "corrector.gguf"), model)
    assert loaded is not None
    return loaded


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_tokens_of_a_round_are_those_of_rounds_played(agreements: list[float], seed: int) -> None:
    right = np.random.default_rng(seed).random((20_000, len(agreements))) < agreements
    until_wrong = np.logical_and.accumulate(right, axis=1).sum(axis=1)
    assert expected_tokens_per_round(agreements) == pytest.approx(1 + until_wrong.mean(), abs=0.06)


def test_the_best_number_of_drafts_counts() -> None:
    assert exact_speed([0.9, 0.9], [1.5, 3.0]) == pytest.approx(1.9 / 1.5)
    assert exact_speed([0.9, 0.9], [1.5, 2.0]) == pytest.approx((1 + 0.9 + 0.81) / 2.0)
    assert exact_speed([0.1], [2.0]) == pytest.approx(0.55)


def test_a_file_tells_the_agreements(tmp_path: Path, model: Model) -> None:
    corrector = with_quality(tmp_path, model, {"points": GOOD})
    assert measured_agreements(corrector, N_LAYER) == {2: [0.9, 0.8, 0.7], 4: [0.5, 0.4]}


@pytest.mark.parametrize(
    "quality",
    [
        "no JSON",
        "[" * 100_000,
        [],
        {},
        {"points": 3},
        {"points": [3, None, "x", [], {}]},
        {"points": [{"rho": 0.25}, {"agreement_by_distance": [0.5]}]},
        {"points": [{"rho": "0.25", "agreement_by_distance": [0.5]}]},
        {"points": [{"rho": 0.25, "agreement_by_distance": []}]},
        {"points": [{"rho": 0.25, "agreement_by_distance": [0.5] * 8}]},
        {"points": [{"rho": 0.25, "agreement_by_distance": [0.5, "x"]}]},
        {"points": [{"rho": 0.25, "agreement_by_distance": [1.5]}]},
        {"points": [{"rho": 0.25, "agreement_by_distance": [float("nan")]}]},
        {"points": [{"rho": -0.25, "agreement_by_distance": [0.5]}]},
        {"points": [{"rho": 0.01, "agreement_by_distance": [0.5]}]},
        {"points": [{"rho": 0.9, "agreement_by_distance": [0.5]}]},
    ],
)
def test_files_that_tell_nothing(tmp_path: Path, model: Model, cache: Path, quality: Any) -> None:
    corrector = with_quality(tmp_path, model, quality)
    assert measured_agreements(corrector, N_LAYER) == {}
    assert best_exact_count(model, corrector) is None
    assert exact_advice(tmp_path / "model.gguf", tmp_path / "corrector.gguf") == ""
    with Llama(model.path, corrector=corrector.path, refresh="verify", n_ctx=64) as llm:
        assert llm.rho == 0.5


def test_rounds_are_measured_once(tmp_path: Path, model: Model, cache: Path) -> None:
    corrector = with_quality(tmp_path, model, {"points": GOOD})
    pace = round_pace(model, corrector, 2, 3)
    assert len(pace) == 3 and all(one > 0 for one in pace)
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["pace"] == pace
    assert round_pace(model, corrector, 2, 3) == pace
    for damaged in ("", "[]", '{"pace": [1.5]}', '{"pace": [1.5, 2.0, -1.0]}', '{"pace": [1.5, 2.0, "x"]}'):
        kept.write_text(damaged)
        assert len(round_pace(model, corrector, 2, 3)) == 3
        assert json.loads(kept.read_text())["pace"] != [1.5]
    round_pace(model, corrector, 4, 2)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(("slow", "best"), [(0.25, 4), (0.5, 2)])
def test_verify_takes_the_quickest_on_this_machine(
    tmp_path: Path, model: Model, cache: Path, slow: float, best: int
) -> None:
    corrector = with_quality(tmp_path, model, {"points": GOOD})
    for n, k in ((2, 3), (4, 2)):
        before = set(cache.iterdir()) if cache.exists() else set()
        round_pace(model, corrector, n, k)
        (kept,) = set(cache.iterdir()) - before
        of_drafts = 1.0 if n == slow * N_LAYER else 0.1
        kept.write_text(json.dumps({"pace": [1 + of_drafts * i for i in range(1, k + 1)]}))
    agreements = GOOD[0 if best == 2 else 1]["agreement_by_distance"]
    assert isinstance(agreements, list)
    speed = exact_speed(agreements, [1 + 0.1 * i for i in range(1, len(agreements) + 1)])
    assert best_exact_count(model, corrector) == (best, pytest.approx(speed))
    with Llama(model.path, corrector=corrector.path, refresh="verify", n_ctx=64) as llm:
        assert llm.rho == best / N_LAYER
    with Llama(model.path, corrector=corrector.path, refresh="verify", rho=slow, n_ctx=64) as llm:
        assert llm.rho == slow  # what is asked for
    with Llama(model.path, corrector=corrector.path, refresh="refill", n_ctx=64) as llm:
        assert llm.rho == 0.5  # what the file recommends
    advice = exact_advice(tmp_path / "model.gguf", tmp_path / "corrector.gguf")
    assert f"rho {best / N_LAYER:.3f}, about {speed:.2f} times" in advice


def test_nothing_pays(tmp_path: Path, model: Model, cache: Path) -> None:
    corrector = with_quality(tmp_path, model, {"points": GOOD[:1]})
    round_pace(model, corrector, 2, 3)
    (kept,) = cache.iterdir()
    kept.write_text('{"pace": [5.0, 6.0, 7.0]}')
    assert "does not pay" in exact_advice(tmp_path / "model.gguf", tmp_path / "corrector.gguf")
