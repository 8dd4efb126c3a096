"""What is said of layers, against NumPy, against single points of perplexity, and against trying every choice."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from loradrop._core import Model, UnsupportedError
from loradrop.analyze import Analysis, AnalyzeOptions, LayerReport, analyze
from loradrop.analyze.damage import POINTS_AT_ONCE
from loradrop.analyze.redundancy import layer_cosines, token_cosines
from loradrop.analyze.texts import split_windows
from loradrop.calibrate.candidate import layer_data
from loradrop.calibrate.engine_states import engine_states
from loradrop.calibrate.layers import fit_layers
from loradrop.cli import main
from loradrop.evaluate import Estimate, Point, perplexity
from loradrop.self_text import write_texts
from loradrop.state_store import Tokens
from loradrop_convert.base import read_base
from loradrop_convert.gguf_file import write_sidecar
from reference import Decoder, Entry, FloatArray, SequenceState
from test_unsupported import write_mamba
from tiny import TinyModel, make_corrector, make_model, write_gguf
from tiny import write_sidecar as write_tiny_sidecar

N_LAYER = 8
IDENTITY = 4
PROMPT = 8


def tiny_model() -> TinyModel:
    """Return a model whose layer `IDENTITY` gives what it gets."""
    model = make_model(n_layer=N_LAYER, n_embd=32, n_head=2, n_head_kv=1, n_ff=48, n_ctx_train=512)
    for name in ("attn_output", "ffn_down"):
        model.tensors[f"blk.{IDENTITY}.{name}.weight"][:] = 0
    return model


def random_windows(n: int, n_tokens: int, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(3, 320, (n, n_tokens)).astype(np.int32)


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_model()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Path:
    path = tmp_path_factory.mktemp("analyze") / "tiny.gguf"
    write_gguf(path, model)
    return path


WINDOWS = random_windows(4, 40)
FIT = random_windows(6, 40, seed=1)


def options(**more: Any) -> AnalyzeOptions:
    return AnalyzeOptions(**({"prompt": PROMPT, "rank": 4, "k": 2, "n_threads": 1} | more))


@pytest.fixture(scope="module")
def analysis(path: Path) -> Analysis:
    return analyze(path, WINDOWS, FIT, options())


class RecordingDecoder(Decoder):
    """The reference, which notes each layer's input and output."""

    def __init__(self, model: TinyModel) -> None:
        super().__init__(model)
        self.seen: dict[int, list[tuple[FloatArray, FloatArray]]] = {i: [] for i in range(model.n_layer)}

    def _layer(self, seq: SequenceState, i: int, x: FloatArray) -> FloatArray:
        y = super()._layer(seq, i, x)
        self.seen[i].append((x, y))
        return y


def mean_cosine(pairs: list[tuple[FloatArray, FloatArray]]) -> float | None:
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs if np.any(a) and np.any(b)]
    return float(np.mean(cosines)) if cosines else None


def test_cosines_are_the_references(path: Path, model: TinyModel) -> None:
    windows = random_windows(2, 12, seed=3)
    actual = layer_cosines(Model(str(path)), windows, n_threads=1)
    assert len(actual) == N_LAYER - 1
    decoders = [RecordingDecoder(model) for _ in windows]
    for decoder, window in zip(decoders, windows.tolist(), strict=True):
        decoder.decode([Entry(0, window)])
    for layer, cosines in enumerate(actual):
        redundancy, deltas, input_output = [], [], []
        for decoder in decoders:
            seen = decoder.seen[layer]
            input_output += seen
            for (x_0, y_0), (x_1, y_1) in pairwise(seen):
                redundancy.append((y_1, y_0))
                deltas.append((y_1 - x_1, y_0 - x_0))
        assert cosines.redundancy == pytest.approx(mean_cosine(redundancy), abs=1e-4)
        assert cosines.input_output == pytest.approx(mean_cosine(input_output), abs=1e-4)
        if layer == IDENTITY:
            assert cosines.deltas is None
        else:
            assert cosines.deltas == pytest.approx(mean_cosine(deltas), abs=1e-3)


def test_cosines_of_zero_are_left_out() -> None:
    x = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], np.float32)
    y = np.array([[1.0, 0.0], [0.0, 0.0], [3.0, 3.0]], np.float32)
    redundancy, deltas, input_output = token_cosines(x, y)
    assert redundancy.size == 0
    np.testing.assert_allclose(deltas, [-1.0])
    np.testing.assert_allclose(input_output, [1.0, 0.5**0.5])


def test_damage_is_that_of_the_single_point(tmp_path: Path, path: Path, analysis: Analysis) -> None:
    model, layer = Model(str(path)), 5
    store = engine_states(model, FIT, [layer, layer + 1], tmp_path / "states", n_threads=1)
    corrector = layer_data("anchor-delta", fit_layers(store, "anchor-delta", (layer, layer), 4, 2))
    write_sidecar(tmp_path / "alone.gguf", corrector, read_base(path))
    point = Point(1 / N_LAYER, 2, corrector=tmp_path / "alone.gguf")
    report = perplexity(path, WINDOWS, [point], prompt=PROMPT, n_threads=1)
    expected = report.points[0]
    assert expected.dropped_layers == (layer,) and expected.total.delta_nll.mean > 1e-3
    damage = analysis.layers[layer].damage
    assert damage is not None and damage.margin is not None
    assert damage.mean == pytest.approx(expected.total.delta_nll.mean, abs=1e-5)
    assert damage.margin == pytest.approx(expected.total.delta_nll.margin, abs=1e-5)
    assert analysis.full.mean == pytest.approx(report.full.nll.mean, abs=1e-5)


@pytest.mark.parametrize("fitted", [True, False])
def test_an_identity_is_dropped_first(path: Path, fitted: bool) -> None:
    # of its own text a model is the best judge: whatever is wrong with it costs
    texts = write_texts(Model(str(path)), 10, 40, n_threads=1)
    found = analyze(path, texts[:4], texts[4:] if fitted else None, options(most=1))
    assert found.order == (IDENTITY,)
    damage = {layer.layer: layer.damage for layer in found.layers if layer.damage is not None}
    assert damage.pop(IDENTITY).mean == pytest.approx(0, abs=1e-5)
    assert min(abs(other.mean) for other in damage.values()) > 1e-3


def test_which_layers_are_told_what(analysis: Analysis) -> None:
    assert [layer.layer for layer in analysis.layers if layer.damage] == [3, 4, 5, 6]
    assert [layer.layer for layer in analysis.layers if not layer.cosines] == [N_LAYER - 1]
    ranks = {layer.rank: layer for layer in analysis.layers if layer.rank}
    assert tuple(ranks[i].layer for i in range(1, 5)) == analysis.order
    assert ranks[1].together == ranks[1].damage
    assert isinstance(ranks[2], LayerReport) and ranks[2].together is not None


def brute_force(folder: Path, path: Path, model: TinyModel, candidates: range, most: int) -> list[tuple[int, float]]:
    """Return the greedy order with joint damage, of uncorrected layers, by trying all that are left at each step."""

    def damage(layers: list[int]) -> float:
        nothing = make_corrector(model, "anchor-delta", layers=layers, gate=False)
        for tensor in nothing.tensors.values():
            tensor[:] = 0
        sidecar = folder / "brute.gguf"
        write_tiny_sidecar(sidecar, model, nothing)
        point = Point(len(layers) / model.n_layer, 2, corrector=sidecar)
        return perplexity(path, WINDOWS, [point], prompt=PROMPT, n_threads=1).points[0].total.delta_nll.mean

    order: list[tuple[int, float]] = []
    while len(order) < most:
        before = [layer for layer, _ in order]
        tried = {layer: damage([*before, layer]) for layer in candidates if layer not in before}
        best = min(tried, key=lambda layer: tried[layer])
        order.append((best, tried[best]))
    return order


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_order_is_that_of_brute_force(tmp_path: Path, seed: int) -> None:
    model = make_model(n_layer=N_LAYER, n_embd=32, n_head=2, n_head_kv=1, n_ff=48, seed=seed)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model)
    expected = brute_force(tmp_path, path, model, range(1, 7), 4)
    found = analyze(path, WINDOWS, None, options(layers=(1, 6), width=6, most=4))
    assert found.order == tuple(layer for layer, _ in expected)
    for layer, damage in expected:
        together = found.layers[layer].together
        assert together is not None and together.mean == pytest.approx(damage, abs=1e-5)
    single = sorted(range(1, 7), key=lambda layer: _mean(found.layers[layer].damage))
    assert found.order != tuple(single[:4])  # else it would show nothing
    assert analyze(path, WINDOWS, None, options(layers=(1, 6), greedy=False, most=4)).order == tuple(single[:4])


def _mean(value: Estimate | None) -> float:
    assert value is not None
    return value.mean


def test_as_many_points_as_told(path: Path) -> None:
    shown: list[tuple[str, int, int]] = []
    chosen = options(layers=(1, 6), width=3, most=5)
    found = analyze(path, WINDOWS[:2], None, chosen, progress=lambda *now: shown.append(now))
    # 6 alone, then 3 of the 5 left, 3 of 4, 3 of 3, 2 of 2
    assert found.n_points == chosen.n_points(N_LAYER) == 6 + 3 + 3 + 3 + 2
    decoded = [now for now in shown if now[0] == "decoding 17 points"]
    assert decoded[-1][1] == decoded[-1][2] == 17 * 2 * 39
    assert AnalyzeOptions().n_points(30) == 82 and AnalyzeOptions(greedy=False).n_points(30) == 26


def test_more_points_than_fit_into_one_run(tmp_path: Path) -> None:
    model = make_model(n_layer=POINTS_AT_ONCE + 4, n_embd=32, n_head=2, n_head_kv=1, n_ff=48)
    path = tmp_path / "deep.gguf"
    write_gguf(path, model)
    last = POINTS_AT_ONCE + 2
    found = analyze(path, WINDOWS[:2, :20], None, options(layers=(1, last), greedy=False))
    alone = analyze(path, WINDOWS[:2, :20], None, options(layers=(last, last)))
    assert _mean(found.layers[last].damage) == pytest.approx(_mean(alone.layers[last].damage), abs=1e-5)


def test_windows_are_shared_out() -> None:
    texts = random_windows(10, 3)
    measured, fitted = split_windows(texts, 4, 6)
    np.testing.assert_array_equal(measured, texts[:4])
    np.testing.assert_array_equal(fitted, texts[4:])
    assert [len(part) for part in split_windows(texts, 16, 32) if part is not None] == [3, 7]
    assert split_windows(texts, 4, 0)[1] is None
    with pytest.raises(ValueError, match="1 window of text"):
        split_windows(texts[:1], 4, 6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"layers": (0, 3)}, r"layers=0-3: of the model's 8 layers 1 to 6 can drop"),
        ({"layers": (3, 7)}, r"1 to 6 can drop"),
        ({"most": 5}, r"most=5: only 4 layers may drop"),
        ({"prompt": 40}, r"prompt=40: it leaves nothing to score of window=40"),
        ({"k": 36}, r"window=40: too short for k=36"),
    ],
)
def test_options_that_do_not_suit(path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyze(path, WINDOWS, FIT, options(**more), progress=lambda *_: pytest.fail("work has begun"))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"refresh": "x"}, {"width": 0}, {"most": 0}, {"rank": 0}, {"prompt": 0}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        AnalyzeOptions(**wrong)


def test_models_that_cannot_be_analysed(tmp_path: Path) -> None:
    write_mamba(tmp_path / "mamba.gguf")
    with pytest.raises(UnsupportedError, match=r"'mamba'"):
        analyze(tmp_path / "mamba.gguf", WINDOWS, FIT, options(), progress=lambda *_: pytest.fail("work has begun"))
    write_gguf(tmp_path / "short.gguf", make_model(n_layer=4, n_embd=32, n_head=2, n_head_kv=1, n_ff=48))
    with pytest.raises(ValueError, match="the model has 4 layers: none is left"):
        analyze(tmp_path / "short.gguf", WINDOWS, FIT, options())
    small = dataclasses.replace(tiny_model(), n_ctx_train=32)
    write_gguf(tmp_path / "small.gguf", small)
    with pytest.raises(ValueError, match="n_ctx_train=32"):
        analyze(tmp_path / "small.gguf", WINDOWS, FIT, options())


# --- the command ---------------------------------------------------------------------------------

SMALL = ["--windows", "3", "--fit-windows", "4", "--window", "40", "--prompt", "8", "--rank", "4", "--k", "2"]
SMALL += ["--threads", "1"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["analyze", *map(str, arguments), *SMALL])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat, and it was in the other end of that thing. " * 12, encoding="utf-8")
    return path


def test_command_prints_a_table(path: Path) -> None:
    result = run(path, "--most", 2)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    order = [int(layer) for layer in lines[-1].split(",")]
    assert order[0] == IDENTITY and len(order) == 2
    rows = {line.split()[0]: line.split() for line in lines if line.split()[0].isdigit()}
    assert len(rows) == N_LAYER and rows[str(order[1])][-3] == "2"
    assert "3 windows of 40 tokens, 8 of them prompt; k 2, single; correctors of rank 4 fitted to 4 other" in lines[0]


def test_command_prints_and_writes_json(tmp_path: Path, path: Path) -> None:
    result = run(path, "--self", "--bare", "--layers", "2-4", "--json", "-o", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert sorted(report["order"]) == [2, 3, 4] and report["order"][0] == IDENTITY
    assert (report["n_windows"], report["n_fit"], report["n_points"]) == (3, 0, 3 + 2 + 1)
    assert len(report["layers"]) == N_LAYER
    assert set(report["layers"][3]) == {
        *("layer", "redundancy", "deltas", "input_output", "damage", "rank", "together"),
    }
    assert report["layers"][N_LAYER - 1]["redundancy"] is None
    assert report["layers"][3]["damage"]["margin"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_command_draws_a_picture(tmp_path: Path, path: Path, text: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"picture{suffix}"
    result = run(path, "--text", text, "--bare", "--greedy", "off", "--plot", picture)
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_command_says_what_draws_pictures(tmp_path: Path, path: Path, text: Path) -> None:
    result = run(path, "--text", text, "--plot", tmp_path / "picture.png")
    assert result.output == 'Error: plot: matplotlib is missing: pip install "loradrop[train]"\n'
    assert isinstance(result.exception, SystemExit)


def test_command_refuses_bad_input(tmp_path: Path, path: Path, text: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 99)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "one.txt").write_text("the cat sat on the mat, " * 6)
    for arguments, message in [
        ([path, "--text", tmp_path / "none.txt"], "none.txt"),
        ([path, "--text", tmp_path / "latin.txt"], "not UTF-8"),
        ([path, "--text", tmp_path / "short.txt"], "too few for one window of 40"),
        ([path, "--text", tmp_path / "one.txt"], "1 window of text"),
        ([path, "--text", text, "--layers", "3-9"], "1 to 6 can drop"),
        ([path, "--text", text, "--plot", tmp_path / "picture.bmp"], "plot="),
        ([path, "--text", text, "-o", tmp_path / "no" / "report.json"], "there is no folder"),
        ([path, "--text", text, "-o", tmp_path / "one.txt"], "one.txt exists"),
        ([path, "--text", text, "--plot", text, "--force"], "text.txt is an input"),
        ([path, "--text", text, "-o", tmp_path / "a.png", "--plot", tmp_path / "a.png"], "is another output too"),
        ([path, "--text", text, "--seed", -1], "seed=-1"),
        ([tmp_path / "none.gguf", "--text", text], "none.gguf"),
        ([text, "--text", text], "text.txt"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 1 and message in result.output, result.output
        assert isinstance(result.exception, SystemExit)
