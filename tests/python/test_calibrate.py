"""Calibration: the closed forms are the optimum, the gradients are right, and the engine gains from the result."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from loradrop._core import Corrector, Model
from loradrop.calibrate import layers, segment
from loradrop.calibrate.blocks import block_length, nested_blocks, places
from loradrop.calibrate.calibrate import calibrate
from loradrop.calibrate.candidate import measure
from loradrop.calibrate.collect import collect
from loradrop.calibrate.engine_states import engine_states
from loradrop.calibrate.job import Job
from loradrop.calibrate.layers import Steps, corrected, fit_layers
from loradrop.calibrate.options import CalibrateOptions
from loradrop.calibrate.pairs import LoraSteps, Pairs, every_token
from loradrop.calibrate.ridge import Moments, fit_gate, reduced_rank, ridge
from loradrop.calibrate.schedule import single_steps
from loradrop.calibrate.segment import SegmentFit, fit_hidden, fit_linear
from loradrop.cli import main
from loradrop.recommended import measured_agreements
from loradrop.self_text import write_texts
from loradrop.state_store import StateStore, StateWriter, Tokens, inputs_name
from loradrop_convert.base import read_base
from reference import Entry, replacement
from test_capture import RecordingDecoder
from tiny import make_corrector, make_model, write_gguf

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


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def options(**more: object) -> CalibrateOptions:
    chosen = {"rhos": (0.25, 0.375), "k": 2, "rank": 8, "hidden": 16, "seconds": 1.5, "n_threads": 1} | more
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
    anchors = slice(4, 34)
    for distance, p in zip((1, 6), every_token(store, 6).pairs((2, 4), (1, 6), [3]), strict=True):
        now = slice(4 + distance, 34 + distance)
        np.testing.assert_array_equal(p.x, x[now])
        np.testing.assert_array_equal(p.y, y[now])
        np.testing.assert_array_equal(p.x_r, x[anchors])
        np.testing.assert_array_equal(p.y_r, y[anchors])


def test_anchors_may_have_states_of_their_own(tmp_path: Path, store: StateStore) -> None:
    anchors = np.array([9, 12, 15])
    own = np.random.default_rng(5).standard_normal((6, 3, N_EMBD)).astype(np.float16)
    writer = StateWriter(tmp_path, store.tokens[:, anchors], {inputs_name(i): N_EMBD for i in (2, 5)})
    writer.append({inputs_name(2): own, inputs_name(5): own + 1})
    steps = LoraSteps(store, anchors, 2, range(6), StateStore(tmp_path))
    for distance, p in zip((1, 2), steps.pairs((2, 4), (1, 2), [3]), strict=True):
        np.testing.assert_array_equal(p.x, store.inputs(2)[3][anchors + distance])
        np.testing.assert_array_equal(p.y, store.inputs(5)[3][anchors + distance])
        np.testing.assert_array_equal(p.x_r, own[3])
        np.testing.assert_array_equal(p.y_r, own[3] + 1)
    assert steps.of_texts(3).texts == [0, 2, 4]


def predict(parts: segment.Parts, p: Pairs) -> np.ndarray:
    return segment._forward(parts, p, segment.features(p))[0]


def test_prediction_is_the_rule(store: StateStore) -> None:
    fit, steps = SegmentFit(rank=4, hidden=8, steps=3), every_token(store, 3)
    parts = fit_hidden(steps, (2, 4), fit_linear(steps, (2, 4), fit), fit)
    (p,) = steps.pairs((2, 4), [2], [0])
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
    fit, steps = SegmentFit(rank=8, hidden=64, steps=300), every_token(store, 1)
    linear = fit_linear(steps, (2, 4), fit)

    def error(parts: segment.Parts) -> float:
        return float(np.mean([((predict(parts, p) - p.y) ** 2).mean() for p in steps.pairs((2, 4), (1,))]))

    before = error(linear)
    assert error(fit_hidden(steps, (2, 4), linear, fit)) < 0.8 * before


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
    y = None
    for layer in range(2, 5):
        y = corrected(reuse, fitted[layer], Steps(every_token(store, k), layer, text, y))
    assert y is not None
    for d in range(1, k + 1):
        np.testing.assert_allclose(y[d - 1, anchor - 4], x[d], atol=1e-3)


@pytest.mark.parametrize("reuse", ["previous-state", "anchor-state", "anchor-delta"])
def test_layers_are_fitted_to_what_those_below_leave(store: StateStore, reuse: str) -> None:
    fitted, samples = fit_layers(store, reuse, (2, 4), 4, 3), every_token(store, 3)
    at_top = []
    for text in range(6):
        x = None
        for layer in (2, 3):
            x = corrected(reuse, fitted[layer], Steps(samples, layer, text, x))
        at_top.append(Steps(samples, 4, text, x))
    expected = layers._fit(reuse, lambda: at_top, 4)
    for name, part in fitted[4].items():
        np.testing.assert_allclose(part, expected[name], atol=1e-5)


@pytest.mark.parametrize("refresh", ["refill", "single"])
@pytest.mark.parametrize("reuse", ["segment", "anchor-delta", "anchor-state", "previous-state"])
def test_correction_helps(tmp_path: Path, model_path: Path, texts: Tokens, reuse: str, refresh: str) -> None:
    corrector, reports = calibrate(model_path, texts, options(reuse=reuse, first=3, refresh=refresh))
    assert corrector.reuse == reuse and {report.point.refresh for report in reports} == {refresh}
    nothing = {name: np.zeros_like(tensor) for name, tensor in corrector.tensors.items()}
    bare = measure(
        Model(str(model_path)),
        read_base(model_path),
        texts[::8],
        [(dataclasses.replace(corrector, tensors=nothing), 0.375)],
        tmp_path,
        k=2,
        refresh=refresh,
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


def job(model_path: Path, folder: Path, **more: object) -> Job:
    return Job(Model(str(model_path)), read_base(model_path), options(**more), folder, lambda *_: None)


def test_states_of_read_and_written_texts_come_from_one_pass(tmp_path: Path, model_path: Path, texts: Tokens) -> None:
    model, layers = Model(str(model_path)), [3, 5, 6]
    store, judged = collect(job(model_path, tmp_path), texts[:20], 22, layers)
    written = write_texts(model, 22, 48, n_threads=1)
    np.testing.assert_array_equal(judged, [*texts[:20:8], *written[:3]])
    read = [text for i, text in enumerate(texts[:20]) if i % 8]
    np.testing.assert_array_equal(store.tokens, [*read, *written[3:]])
    alone = engine_states(model, store.tokens, layers, tmp_path / "alone", n_threads=1)
    for layer in layers:
        expected = alone.inputs(layer).astype(np.float32)
        assert np.abs(store.inputs(layer) - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("refresh", ["refill", "single"])
def test_each_text_runs_once(model_path: Path, texts: Tokens, refresh: str) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def note(what: str, done: int, total: int) -> None:
        seen.setdefault(what.split(", loss")[0], []).append((done, total))

    chosen = options(hidden=8, seconds=0.2, refresh=refresh)
    calibrate(model_path, texts[:20], chosen, n_written=20, progress=note)
    expected = {
        "states of the full model": 17,
        "texts written by the model": 20,
        "places": 2,
        "rules": 4,
    }
    for what, total in expected.items():
        assert [n for n, _ in seen[what]] == sorted({n for n, _ in seen[what]}), f"{what} begins anew"
        assert {t for _, t in seen[what]} == {total} and seen[what][-1][0] == total
    anchors = [calls for name, calls in seen.items() if name.startswith("anchors")]
    if refresh == "single":
        assert anchors and all(calls == [(0, 35), (16, 35), (32, 35), (35, 35)] for calls in anchors)
    else:
        assert not anchors
    decoding = {"decoding with places", "decoding with rules", "decoding with the corrector"}
    assert {name for name in seen if not name.startswith(("anchors", "layers"))} == {*expected, *decoding}


def test_candidates_are_judged_on_little(model_path: Path) -> None:
    totals: dict[str, int] = {}
    texts = np.random.default_rng(6).integers(3, 320, (72, 130), np.int32)
    chosen = options(rhos=(0.25,), hidden=0, reuse="segment")
    calibrate(model_path, texts, chosen, progress=lambda what, _, total: totals.update({what: total}))
    assert totals["decoding with places"] == 8 * 127
    assert totals["decoding with the corrector"] == 9 * 129


def test_anchors_of_single_are_those_of_the_schedule(tmp_path: Path, texts: Tokens) -> None:
    """The reference decodes with a corrector that changes a lot, which the anchors must not depend on."""
    tiny, block, k, n_prompt = make_model(n_layer=N_LAYER, n_embd=N_EMBD, n_head=2, n_head_kv=1, n_ff=48), (2, 4), 2, 12
    write_gguf(tmp_path / "model.gguf", tiny)
    task, texts = job(tmp_path / "model.gguf", tmp_path, k=k), texts[:18]
    layers = range(block[0], block[1] + 2)
    store = engine_states(task.model, texts, layers, tmp_path / "states", n_threads=1)
    steps = single_steps(task, store, block, layers)
    np.testing.assert_array_equal(steps.anchors, range(n_prompt - 1, 48 - k, k + 1))
    for text in (0, 15, 17):
        reference = RecordingDecoder(tiny, make_corrector(tiny, "segment", segments=[block]), [2, 3, 4], k, "single")
        reference.decode([Entry(0, texts[text, :n_prompt].tolist())])
        kinds = []
        for token in texts[text, n_prompt:]:
            reference.decode([Entry(0, [int(token)])])
            kinds.append(reference.last_step)
        assert [i for i, kind in enumerate(kinds, n_prompt) if kind == "full" and i < 48 - k] == steps.anchors[
            1:
        ].tolist()
        for layer in layers:
            expected = np.stack([reference.states[layer - 1, 0, r] for r in steps.anchors])
            error = np.abs(steps.anchor_inputs(layer, text) - expected).max(-1) / np.abs(expected).max()
            assert error.max() < 3e-3, layer
            if layer > block[0]:  # a test that the full model would pass too would show nothing
                full = np.abs(steps.inputs(layer, text, 0) - expected).max(-1) / np.abs(expected).max()
                assert full[0] < 3e-3 and np.median(full[1:]) > 0.03
    (p,) = steps.pairs(block, [2], [15])
    np.testing.assert_array_equal(p.y_r, steps.anchor_inputs(5, 15))
    np.testing.assert_array_equal(p.y, store.inputs(5)[15][steps.anchors + 2])


def test_states_that_do_not_fit_on_the_disk(model_path: Path, temporary: Path) -> None:
    shown: list[object] = []
    message = (
        rf"^{temporary}/loradrop-\w+: the states take \d+ bytes .* of the \d+ that are free.*fewer windows.*TMPDIR"
    )
    with pytest.raises(ValueError, match=message):
        calibrate(
            model_path,
            np.empty((0, 512), np.int32),
            options(),
            n_written=10**9,
            progress=lambda *what: shown.append(what),
        )
    assert not shown and not list(temporary.iterdir())


@pytest.mark.parametrize(
    "stage", ["texts written", "decoding with places", "rules", "anchors", "decoding with the corrector"]
)
def test_an_interrupt_leaves_nothing(tmp_path: Path, model_path: Path, temporary: Path, stage: str) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what.startswith(stage):
            assert list(temporary.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(
            model_path,
            np.empty((0, 40), np.int32),
            options(hidden=0, refresh="single"),
            n_written=24,
            progress=interrupt,
        )
    assert not list(temporary.iterdir())


def test_nested_blocks_share_their_end() -> None:
    assert nested_blocks(3, [2, 4], 8) == [(5, 6), (3, 6)]
    with pytest.raises(ValueError, match="layers 1 to 6 can drop"):
        nested_blocks(4, [4], 8)
    assert places(3, 8) == [3, 4] and places(6, 8) == [1] and places(15, 30) == [3, 5, 8, 11, 14]
    with pytest.raises(ValueError, match="a block of 7 of 8 layers: at most 6 can drop"):
        places(7, 8)
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
    assert corrector is not None and corrector.k == 2
    (agreements,) = measured_agreements(corrector, Model(str(model_path)).n_layer).values()
    assert len(agreements) == 2
    assert "tokens a round" in result.output and "verify: recommended rho" in result.output
    assert "exists" in CliRunner().invoke(main, arguments).output
    onto_itself = ["calibrate", str(model_path), "-o", str(model_path), "--force"]
    assert "is an input" in CliRunner().invoke(main, onto_itself).output
    for option, value in (("window", "0"), ("seed", "-1"), ("hidden", "-1")):
        result = CliRunner().invoke(main, [*arguments, "--force", f"--{option}", value])
        assert result.exit_code == 1 and f"{option}={value}" in result.output
    assert "seconds=0" in CliRunner().invoke(main, [*arguments, "--force", "--minutes", "0"]).output


def test_too_little_text_is_refused(model_path: Path, texts: Tokens) -> None:
    with pytest.raises(ValueError, match="7 windows of text: give at least 16"):
        calibrate(model_path, texts[:7], options())
    with pytest.raises(ValueError, match="window=11: too short for k=2; give 12 or more"):
        calibrate(model_path, texts[:, :11], options())
    longest = Model(str(model_path)).n_ctx_train
    with pytest.raises(ValueError, match=rf"window={longest + 1}: .* trained with texts of {longest} tokens"):
        calibrate(model_path, np.zeros((16, longest + 1), np.int32), options())
