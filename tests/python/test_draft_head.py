"""Drafts of an exact decode are the best of some rows of the output head: which these are, and where all are taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draft_rows import DraftRows
from loradrop._core import Adapter, Context, Corrector, Model
from loradrop.random_model import SHAPES, write_random_model
from pair import ENGINE_OPTIONS
from sequence_pair import SequencePair
from test_adapters import write_adapter
from test_engine import REUSES, TEXT, corrector_for
from tiny import Reuse, make_model, vocabulary, write_gguf
from verify_walk import VerifyWalk

N_VOCAB = len(vocabulary())
K = 3


@pytest.mark.parametrize("n_rows", [4, 40, 200])
@pytest.mark.parametrize("reuse", REUSES)
@pytest.mark.parametrize("tied", [False, True])
def test_drafts_are_the_best_of_the_rows(tmp_path: Path, reuse: Reuse, n_rows: int, tied: bool) -> None:
    model = make_model(n_layer=8, tied=tied)
    pair = SequencePair(tmp_path, model, corrector_for(model, reuse), rho=0.5, k=K, refresh="verify", draft_rows=n_rows)
    walk = VerifyWalk(pair, K, rows=DraftRows(N_VOCAB, n_rows))
    walk.begin(TEXT[:9])
    rng = np.random.default_rng(n_rows)
    for hit in rng.random(80) < 0.6:
        walk.step(hit=bool(hit))
    assert walk.rounds > 10 and walk.accepted[0] > 0


def drafts(context: Context, n_steps: int) -> list[int | None]:
    """Return the first draft of each round, where no draft is ever taken."""
    context.decode(TEXT[:9])
    out = []
    for token in TEXT[9 : 9 + n_steps]:
        out.append(context.drafted())
        context.decode([token + (token == out[-1])])
    return out[1:]


def verify_context(path: Path, **options: Any) -> Context:
    model = Model(str(path))
    adapters = [(Adapter(model, str(adapter)), 1.0) for adapter in options.pop("adapters", [])]
    corrector = Corrector.none(model)
    options = {**ENGINE_OPTIONS, "rho": 0.25, "k": K, "refresh": "verify", "adapters": adapters, **options}
    return Context(model, corrector=corrector, **options)


def test_logits_that_are_more_than_the_heads_product_are_computed_whole(tmp_path: Path) -> None:
    model = make_model(n_layer=8, tied=False)
    write_gguf(tmp_path / "model.gguf", model)
    rng = np.random.default_rng(1)
    pair = rng.normal(0, 0.3, (3, model.n_embd)), rng.normal(0, 0.3, (N_VOCAB, 3))
    a, b = (matrix.astype(np.float32) for matrix in pair)
    write_adapter(tmp_path / "adapter.gguf", model.arch, {"output.weight": (a, b)})
    for adapters, same in (([tmp_path / "adapter.gguf"], True), ([], False)):
        whole, part = (
            drafts(verify_context(tmp_path / "model.gguf", adapters=adapters, draft_rows=n), 20) for n in (0, 4)
        )
        assert (whole == part) is same


@pytest.mark.parametrize("n_rows", [0, 1, N_VOCAB, N_VOCAB + 1, 2**32 - 1, None])
def test_all_rows(tmp_path: Path, n_rows: int | None) -> None:
    """None takes all of a small vocabulary; a single row is less than what ends a text needs."""
    write_gguf(tmp_path / "model.gguf", make_model(n_layer=8))
    assert verify_context(tmp_path / "model.gguf", draft_rows=n_rows).stats["draft_head_bytes"] == 0


@pytest.mark.parametrize("type_", ["q4_0", "q8_0", "f16"])
def test_an_eighth_of_a_large_vocabulary(tmp_path: Path, type_: str) -> None:
    path = tmp_path / "model.gguf"
    shape = dataclasses.replace(SHAPES["tiny"], layers=8, vocab=20_000)
    write_random_model(path, shape, type=type_)
    row = {"q4_0": 210, "q8_0": 272, "f16": 512}[type_]  # bytes of 256 weights; that head is q6_k
    assert 2500 * row <= verify_context(path).stats["draft_head_bytes"] < 2500 * row + 4096
    assert verify_context(path, refresh="single").stats["draft_head_bytes"] == 0


@pytest.mark.parametrize("refresh", ["single", "refill"])
def test_other_policies_draft_nothing(tmp_path: Path, refresh: str) -> None:
    write_gguf(tmp_path / "model.gguf", make_model(n_layer=8))
    with pytest.raises(ValueError, match=f"draft_rows = 40 with refresh = '{refresh}', expected verify"):
        verify_context(tmp_path / "model.gguf", draft_rows=40, refresh=refresh)
