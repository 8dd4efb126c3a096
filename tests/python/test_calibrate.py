"""Calibration: the closed forms are the optimum, the gradients are right, and the engine gains from the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from loradrop._core import Corrector, Model
from loradrop.calibrate import segment
from loradrop.calibrate.calibrate import CalibrateOptions, block_length, calibrate, nested_blocks
from loradrop.calibrate.candidate import measure
from loradrop.calibrate.layers import Steps, carried, features, fit_layers
from loradrop.calibrate.pairs import Pairs, pairs
from loradrop.calibrate.ridge import Moments, fit_gate, reduced_rank, ridge
from loradrop.calibrate.segment import SegmentFit, fit_hidden, fit_linear, predict
from loradrop.cli import main
from loradrop.self_text import write_texts
from loradrop.state_store import StateStore, StateWriter, Tokens, inputs_name
from loradrop_convert.base import read_base
from reference import replacement
from tiny import make_model, write_gguf

N_LAYER = 8
N_EMBD = 32


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrate") / "tiny.gguf"
    write_gguf(path, make_model(n_layer=N_LAYER, n_embd=N_EMBD, n_head=2, n_head_kv=1, n_ff=48))
    return path


@pytest.fixture(scope="module")
def texts(model_path: Path) -> Tokens:
    return write_texts(Model(str(model_path)), 40, 48, n_threads=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StateStore:
    """States at random: enough for what does not depend on a model."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("states")
    writer = StateWriter(folder, np.zeros((6, 40), np.int32), {inputs_name(i): N_EMBD for i in range(2, 6)})
    mix = rng.standard_normal((N_EMBD, N_EMBD)).astype(np.float32) / N_EMBD**0.5
    states = [rng.standard_normal((6, 40, N_EMBD)).astype(np.float32)]
    for _ in range(3):
        states.append(states[-1] + np.tanh(states[-1] @ mix))
    writer.append({inputs_name(i + 2): x for i, x in enumerate(states)})
    return StateStore(folder)


def options(**more: object) -> CalibrateOptions:
    chosen = {"rhos": (0.25, 0.375), "k": 2, "rank": 8, "hidden": 16, "seconds": 3.0, "n_threads": 1} | more
    return CalibrateOptions(**chosen)  # type: ignore[arg-type]


def test_ridge_is_least_squares() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 4)) + 0.1 * rng.standard_normal((500, 4))).astype(np.float32)
    moments = Moments(6, 4)
    moments.add(x[:200], y[:200])
    moments.add(x[200:], y[200:])
    expected = np.linalg.lstsq(x, y, rcond=None)[0].T
    np.testing.assert_allclose(ridge(moments), expected, atol=3e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 5))
def test_reduced_rank_has_the_least_error(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((300, 8)) * rng.uniform(0.3, 3, 8)).astype(np.float32)
    y = (x @ rng.standard_normal((8, 5)) + 0.5 * rng.standard_normal((300, 5))).astype(np.float32)
    moments = Moments(8, 5)
    moments.add(x, y)
    a, b = reduced_rank(moments, rank)
    # Eckart-Young on whitened features: the residual of the full fit, and the singular values that were cut
    full = np.linalg.lstsq(x, y, rcond=None)[0]
    cut = np.linalg.svd(x @ full, compute_uv=False)[rank:]
    least = ((y - x @ full) ** 2).sum() + (cut**2).sum()
    assert ((y - x @ a.T @ b.T) ** 2).sum() == pytest.approx(least, rel=5e-3)


def test_moments_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="the states hold nothing"):
        ridge(Moments(3, 3))


def test_gate_is_the_best_of_each_channel() -> None:
    rng = np.random.default_rng(2)
    d, e = rng.standard_normal((2, 100, 3)).astype(np.float32)
    gate = fit_gate([(d[:50], e[:50]), (d[50:], e[50:])])
    for i in range(3):
        assert gate[i] == pytest.approx(np.linalg.lstsq(e[:, i : i + 1], d[:, i], rcond=None)[0][0], rel=1e-4)


def test_pairs_are_tokens_and_their_anchors(store: StateStore) -> None:
    x, y = store.inputs(2)[3].astype(np.float32), store.inputs(5)[3].astype(np.float32)
    for distance, p in zip((1, 6), pairs(store, (2, 4), (1, 6), [3]), strict=True):
        first = max(4, distance)
        np.testing.assert_array_equal(p.x, x[first:])
        np.testing.assert_array_equal(p.y, y[first:])
        np.testing.assert_array_equal(p.x_r, x[first - distance : len(x) - distance])
        np.testing.assert_array_equal(p.y_r, y[first - distance : len(x) - distance])


def test_prediction_is_the_rule(store: StateStore) -> None:
    fit = SegmentFit(rank=4, hidden=8, steps=3)
    parts = fit_hidden(store, (2, 4), fit_linear(store, (2, 4), fit), fit)
    (p,) = pairs(store, (2, 4), [2], [0])
    for t in range(len(p.x)):
        expected = replacement("segment", parts, 1.0, p.x[t], (p.x_r[t], p.y_r[t]), p.y_r[t])
        np.testing.assert_allclose(predict(parts, p)[t], expected, atol=1e-4)


def test_gradients_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(3)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    shapes = {"carry": (4,), "a": (2, 12), "b": (4, 2), "gate": (3, 12), "up": (3, 12), "down": (4, 3)}
    parts = {name: draw(*shape).astype(np.float64) for name, shape in shapes.items()}
    p = Pairs(*(draw(5, 4).astype(np.float64) for _ in range(4)))  # type: ignore[arg-type]
    weight = np.abs(draw(4)) + 1
    _, gradients = segment._loss(parts, p, weight)  # type: ignore[arg-type]
    for name, part in parts.items():
        for index in [tuple(rng.integers(n) for n in part.shape) for _ in range(4)]:
            losses = []
            for step in (1e-5, -1e-5):
                moved = part.copy()
                moved[index] += step
                losses.append(segment._loss({**parts, name: moved}, p, weight)[0])  # type: ignore[dict-item]
            slope = (losses[0] - losses[1]) / 2e-5
            assert gradients[name][index] == pytest.approx(slope, rel=1e-3, abs=1e-6), name


def test_hidden_layer_beats_the_linear_part(store: StateStore) -> None:
    fit = SegmentFit(rank=8, hidden=64, steps=300, distances=(1,))
    linear = fit_linear(store, (2, 4), fit)

    def error(parts: segment.Parts) -> float:
        return float(np.mean([((predict(parts, p) - p.y) ** 2).mean() for p in pairs(store, (2, 4), (1,), range(6))]))

    before = error(linear)
    assert error(fit_hidden(store, (2, 4), linear, fit)) < 0.8 * before


@pytest.mark.parametrize("reuse", ["previous-state", "anchor-state", "anchor-delta"])
def test_layers_see_what_those_below_leave(store: StateStore, reuse: str) -> None:
    """Walks one token's LoRA steps through the fitted layers by the rules of the reference."""
    k, anchor, text = 3, 7, 2
    fitted = fit_layers(store, reuse, (2, 4), 4, k)
    x = {d: store.inputs(2)[text, anchor + d].astype(np.float32) for d in range(1, k + 1)}
    for layer in range(2, 5):
        x_r, y_r = (store.inputs(i)[text, anchor].astype(np.float32) for i in (layer, layer + 1))
        previous = y_r
        for d in range(1, k + 1):
            previous = x[d] = replacement(reuse, fitted[layer], 1.0, x[d], (x_r, y_r), previous)
    steps = Steps(store, 2, text, k)
    for layer in range(2, 5):
        y = carried(reuse, fitted[layer], steps)
        y = y + features(reuse, steps) @ fitted[layer]["a"].T @ fitted[layer]["b"].T
        if layer < 4:
            steps = Steps(store, layer + 1, text, k)
            steps.x = y
    for d in range(1, k + 1):
        np.testing.assert_allclose(y[d - 1, anchor - 4], x[d], atol=1e-3)


@pytest.mark.parametrize("reuse", ["segment", "anchor-delta", "anchor-state", "previous-state"])
def test_correction_helps(tmp_path: Path, model_path: Path, texts: Tokens, reuse: str) -> None:
    corrector, reports = calibrate(model_path, texts, options(reuse=reuse, first=3))
    assert corrector.reuse == reuse
    nothing = {name: np.zeros_like(tensor) for name, tensor in corrector.tensors.items()}
    bare = measure(
        Model(str(model_path)),
        read_base(model_path),
        texts[::8],
        [(dataclasses.replace(corrector, tensors=nothing), 0.375)],
        tmp_path,
        k=2,
        refresh="refill",
        kv_window=64,
        n_threads=1,
    )
    assert reports[-1].total.kl.mean < bare[0].total.kl.mean


def test_best_place_and_rule_are_found(model_path: Path, texts: Tokens) -> None:
    corrector, reports = calibrate(model_path, texts, options(rhos=(0.25,), hidden=0))
    tried = [
        calibrate(model_path, texts, options(rhos=(0.25,), hidden=0, first=first, reuse="segment"))[1][0]
        for first in (3, 4, 5)
    ]
    assert reports[0].total.kl.mean <= min(report.total.kl.mean for report in tried) * 1.05
    assert corrector.rho == 0.25 and corrector.k == 2


def test_nested_blocks_share_their_end() -> None:
    assert nested_blocks(3, [2, 4], 8) == [(5, 6), (3, 6)]
    with pytest.raises(ValueError, match="layers 1 to 6 can drop"):
        nested_blocks(4, [4], 8)
    assert block_length(0.5, 7) == 4
    with pytest.raises(ValueError, match="drops none of 8 layers"):
        block_length(0.05, 8)


def test_command_writes_a_sidecar(tmp_path: Path, model_path: Path) -> None:
    out = tmp_path / "corrector.gguf"
    arguments = ["calibrate", str(model_path), "-o", str(out), "--windows", "24", "--window", "40", "--rho", "0.25"]
    arguments += ["--k", "2", "--rank", "4", "--hidden", "8", "--minutes", "0.02", "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    corrector = Corrector.load(str(out), Model(str(model_path)))
    assert corrector is not None and corrector.k == 2 and corrector.quality
    assert "exists" in CliRunner().invoke(main, arguments).output


def test_too_little_text_is_refused(model_path: Path, texts: Tokens) -> None:
    with pytest.raises(ValueError, match="7 windows of text: give at least 16"):
        calibrate(model_path, texts[:7], options())
