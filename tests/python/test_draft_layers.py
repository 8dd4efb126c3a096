"""Layers to leave out in drafts: the trial against NumPy, the search, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradrop import Llama
from loradrop._core import Corrector, Model
from loradrop.draft_layers import _BEGINNINGS, _DRAFTS, _N_TOKENS, _least, _Trial, draft_layers
from loradrop.fixed_text import prompt_tokens
from reference import Decoder, Entry, FloatArray
from tiny import TinyModel, make_corrector, make_model, write_gguf

N_LAYER = 8
TOLERANCE = 0.01  # of a divergence: the engine keeps K and V as float16


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "draft_layers"


def written(folder: Path, model: TinyModel) -> Model:
    path = folder / "model.gguf"
    write_gguf(path, model)
    return Model(str(path))


def probabilities(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    out: FloatArray = powers / powers.sum()
    return out


def divergence_by_numpy(model: TinyModel, layers: list[int], tokens: list[int]) -> float:
    """Return the mean divergence of two drafts after each beginning, one text at a time."""
    corrector = make_corrector(model, "anchor-delta", layers=layers)
    for tensor in corrector.tensors.values():
        tensor[:] = 0  # y = x: left out
    total = 0.0
    for position in _BEGINNINGS:
        full, drafts = (Decoder(model, corrector, dropped, _DRAFTS, "single", 64) for dropped in ([], layers))
        for decoder in (full, drafts):
            decoder.decode([Entry(0, tokens[: position + 1])])
        for token in tokens[position + 1 : position + 1 + _DRAFTS]:
            p, q = (probabilities(one.decode([Entry(0, [token])])[0]) for one in (full, drafts))  # type: ignore[arg-type]
            total += float((p * np.log(p / q)).sum())
    return total / (_DRAFTS * len(_BEGINNINGS))


@pytest.mark.parametrize("layers", [[1, 2], [4, 5, 6]])
def test_the_trial_measures_the_divergence_of_drafts(tmp_path: Path, layers: list[int]) -> None:
    model = make_model(n_layer=N_LAYER)
    native = written(tmp_path, model)
    tokens = prompt_tokens(native, _N_TOKENS)
    expected = divergence_by_numpy(model, layers, tokens)
    assert _Trial(native, len(layers), tokens).divergence(layers[0]) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_the_best_run_is_taken(tmp_path: Path, cache: Path, n: int) -> None:
    native = written(tmp_path, make_model(n_layer=N_LAYER))
    trial = _Trial(native, n, prompt_tokens(native, _N_TOKENS))
    found = draft_layers(native, n)
    assert found == list(range(found[0], found[0] + n))
    near = [first for first in (found[0] - 1, found[0], found[0] + 1) if 1 <= first <= N_LAYER - 1 - n]
    assert min(near, key=trial.divergence) == found[0]


@given(st.integers(1, 90), st.integers(0, 89))
def test_the_search_finds_the_bottom_of_a_valley(n_places: int, bottom: int) -> None:
    places = range(1, 1 + n_places)
    bottom = 1 + bottom % n_places
    tried: list[int] = []

    def value(place: int) -> float:
        tried.append(place)
        return abs(place - bottom)

    assert _least(places, value) == bottom
    assert len(tried) == len(set(tried)) <= 22


def test_what_was_found_is_kept(tmp_path: Path, cache: Path) -> None:
    native = written(tmp_path, make_model(n_layer=N_LAYER))
    found = draft_layers(native, 2)
    (kept,) = cache.iterdir()
    assert json.loads(kept.read_text())["first"] == found[0]
    other = 5 if found[0] != 5 else 2
    kept.write_text(json.dumps({"first": other}))
    assert draft_layers(native, 2) == [other, other + 1]
    for damaged in ("", "{}", '{"first": "x"}', '{"first": 7}', '{"first": null}', "[]"):
        kept.write_text(damaged)
        assert draft_layers(native, 2) == found
    assert len(list(cache.iterdir())) == 1
    draft_layers(native, 3)
    another = written(tmp_path, make_model(n_layer=N_LAYER, seed=9))
    draft_layers(another, 2)
    assert len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LORADROP_CACHE", str(tmp_path / "file"))
    assert len(draft_layers(written(tmp_path, make_model(n_layer=N_LAYER)), 2)) == 2


def test_a_model_without_a_tokenizer_leaves_out_its_middle(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, make_model(n_layer=N_LAYER), tokenizer=False)
    native = Model(str(path))
    assert draft_layers(native, 2) == Corrector.none(native).layers[:2]


def test_a_model_with_few_positions_leaves_out_its_middle(tmp_path: Path, cache: Path) -> None:
    native = written(tmp_path, make_model(n_layer=N_LAYER, n_ctx_train=_N_TOKENS - 1))
    assert draft_layers(native, 2) == Corrector.none(native).layers[:2]


def test_llama_takes_them(tmp_path: Path, cache: Path) -> None:
    native = written(tmp_path, make_model(n_layer=N_LAYER))
    with Llama(native.path, refresh="verify", n_ctx=128) as llm:
        assert sorted(llm.dropped_layers) == draft_layers(native, 2)
    with Llama(native.path, rho=0.5, refresh="verify", n_ctx=128) as llm:
        assert sorted(llm.dropped_layers) == draft_layers(native, 4)
