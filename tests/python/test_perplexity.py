"""Perplexity on the schedule, against the NumPy reference and against logits of one forward pass."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

import tiny
from loradrop._core import Context, CorrectorError, Model
from loradrop.cli import main
from loradrop.distribution import Distribution
from loradrop.evaluate import Estimate, Point, Report, Scores, perplexity, windows
from loradrop.evaluate.interval import t_quantile
from loradrop.evaluate.windows import text_windows
from reference import Decoder, Entry, layers_for

REUSES: list[tiny.Reuse] = ["previous-state", "anchor-state", "anchor-delta", "segment"]
EXACT: dict[str, Any] = {"flash_attn": "off", "type_k": "f32", "type_v": "f32"}
T_95 = {2: 4.302653}  # Student's t, 0.975 quantile by degrees of freedom, from tables
TEXT = "the cat sat on the mat, and it was in the other end of that thing. " * 40


def corrector_for(model: tiny.TinyModel, reuse: tiny.Reuse) -> tiny.TinyCorrector:
    if reuse == "segment":
        return tiny.make_corrector(model, reuse, segments=[(3, 3), (2, 4)])
    return tiny.make_corrector(model, reuse, layers=[3, 2, 4])


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perplexity") / "drop.gguf"
    model = tiny.make_model(n_ctx_train=512)
    corrector = dataclasses.replace(corrector_for(model, "anchor-delta"), rho=0.5, k=2)
    tiny.write_gguf(path, model, corrector)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perplexity") / "base.gguf"
    tiny.write_gguf(path, tiny.make_model(n_ctx_train=512))
    return path


def random_windows(n: int, window: int, seed: int = 0) -> npt.NDArray[np.int32]:
    n_vocab = len(tiny.vocabulary())
    return np.random.default_rng(seed).integers(3, n_vocab, (n, window)).astype(np.int32)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    peak = wide.max(axis=-1, keepdims=True)
    logs: npt.NDArray[np.float64] = wide - peak - np.log(np.exp(wide - peak).sum(axis=-1, keepdims=True))
    return logs


def reference_logits(decoder: Decoder, windows: npt.NDArray[np.int32], prompt: int) -> npt.NDArray[np.float32]:
    """Return the logits [n, window - prompt, n_vocab] that score each token after the prompt."""
    rows = []
    for i, tokens in enumerate(windows.tolist()):
        inputs = [tokens[:prompt], *([token] for token in tokens[prompt:-1])]
        rows.append([decoder.decode([Entry(i, part)])[0] for part in inputs])
    return np.array(rows, np.float32)


def assert_estimate(actual: Estimate, per_window: npt.NDArray[np.float64]) -> None:
    n = len(per_window)
    margin = T_95[n - 1] * np.std(per_window, ddof=1) / math.sqrt(n)
    assert actual.mean == pytest.approx(per_window.mean(), rel=1e-3, abs=1e-4)
    assert actual.margin == pytest.approx(margin, rel=1e-3, abs=1e-4)


def assert_scores(
    actual: Scores,
    targets: npt.NDArray[np.int32],
    full: npt.NDArray[np.float32],
    own: npt.NDArray[np.float32],
) -> None:
    """Compare with what comes of logits [n, n_scored, n_vocab] and the tokens [n, n_scored] that they score."""
    p, q = log_softmax(full), log_softmax(own)
    nll_full, nll = (-np.take_along_axis(logs, targets[..., None], -1)[..., 0] for logs in (p, q))
    assert actual.n_tokens == targets.size
    assert_estimate(actual.nll, nll.mean(axis=1))
    assert_estimate(actual.delta_nll, (nll - nll_full).mean(axis=1))
    assert_estimate(actual.kl, (np.exp(p) * (p - q)).sum(axis=-1).mean(axis=1))
    assert_estimate(actual.agreement, (p.argmax(-1) == q.argmax(-1)).mean(axis=1))
    assert actual.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-3)


@pytest.mark.parametrize("refresh", ["single", "refill"])
@pytest.mark.parametrize("reuse", REUSES)
def test_equals_the_reference(tmp_path: Path, reuse: tiny.Reuse, refresh: Any) -> None:
    model = tiny.make_model()
    corrector = corrector_for(model, reuse)
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, model, corrector)
    prompt, windows = 6, random_windows(3, 25)
    targets = windows[:, prompt:]
    other = "single" if refresh == "refill" else "refill"
    points = [Point(0.5, 3, refresh, 8), Point(0.2, 5, refresh, 4), Point(0.5, 2, other, 6)]

    report = perplexity(path, windows, points, prompt=prompt, **EXACT)
    full = reference_logits(Decoder(model), windows, prompt)
    assert_scores(report.full, targets, full, full)
    for point, result in zip(points, report.points, strict=True):
        assert (result.point, result.reuse) == (point, reuse)
        assert point.rho is not None and point.k is not None
        dropped = layers_for(point.rho, model.n_layer, corrector)
        assert result.dropped_layers == tuple(sorted(dropped))
        decoder = Decoder(model, corrector, dropped, point.k, point.refresh or "", point.kv_window)
        own = reference_logits(decoder, windows, prompt)
        assert_scores(result.total, targets, full, own)
        distance = np.arange(targets.shape[1]) % (point.k + 1)
        assert len(result.by_distance) == point.k + 1
        if point.refresh == "single":
            assert result.tokens_per_round is None
        else:
            right = (full.argmax(-1) == own.argmax(-1)).astype(float)
            rates = [right[:, distance == d].mean() for d in range(1, point.k + 1)]
            products = [math.prod(rates[:n]) for n in range(1, len(rates) + 1)]
            assert result.tokens_per_round == pytest.approx(1 + sum(products))
        for d, scores in enumerate(result.by_distance):
            at = distance == d
            assert_scores(scores, targets[:, at], full[:, at], own[:, at])


def test_full_model_equals_one_forward_pass(base: Path) -> None:
    windows, prompt = random_windows(3, 40), 5
    report = perplexity(base, windows, prompt=prompt, n_threads=1, **EXACT)
    assert report.points == ()
    logits = []
    for tokens in windows.tolist():
        context = Context(Model(str(base)), n_ctx=64, **EXACT)
        context.decode(tokens, outputs=[True] * len(tokens))
        logits.append([context.logits(i) for i in range(prompt - 1, len(tokens) - 1)])
    full = np.array(logits, np.float32)
    assert_scores(report.full, windows[:, prompt:], full, full)


def assert_same(a: Report, b: Report) -> None:
    def flat(value: Any) -> list[float]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            return [x for item in value for x in flat(item)]
        return [value] if isinstance(value, (int, float)) else []

    assert flat(a.to_dict()) == pytest.approx(flat(b.to_dict()), rel=1e-4, abs=1e-5)


def test_points_of_one_run_equal_each_alone(drop: Path) -> None:
    windows = random_windows(4, 30)
    points = [
        Point(0.5, 3, "refill", 8),
        Point(0.34, 1, "single"),
        Point(0.5, 7, "refill"),
        Point(0.5, 3, "single"),
    ]
    together = perplexity(drop, windows, points, prompt=7, **EXACT)
    assert [p.point for p in together.points] == points
    for point, one in zip(points, together.points, strict=True):
        alone = perplexity(drop, windows, [point], prompt=7, **EXACT)
        assert_same(alone, dataclasses.replace(together, points=(one,)))


def test_groups_and_prompt_batches_equal_one_by_one(drop: Path) -> None:
    windows = random_windows(5, 212)  # two prompts fill a batch of 512 tokens
    points = [Point(0.5, 3, "refill", 8), Point(0.5, 2)]
    reports = [perplexity(drop, windows, points, prompt=200, n_parallel=n, **EXACT) for n in (1, 2, 5)]
    for report in reports[1:]:
        assert_same(report, reports[0])


def test_the_full_model_itself_is_no_point(drop: Path) -> None:
    windows = random_windows(2, 20)
    report = perplexity(drop, windows, [Point(0.0, 3), Point(0.5, 0), Point(0.5, 1)], prompt=4)
    assert [p.point for p in report.points] == [Point(0.5, 1, "single")]
    assert perplexity(drop, windows, [Point(0.0)], prompt=4, n_threads=1).points == ()


def test_the_recommended_point_is_the_default(drop: Path, base: Path, tmp_path: Path) -> None:
    windows = random_windows(2, 20)
    (point,) = perplexity(drop, windows, prompt=4).points
    assert (point.point.rho, point.point.k) == (0.5, 2)
    assert perplexity(base, windows, prompt=4, n_threads=1).points == ()

    model = tiny.make_model(n_ctx_train=512)
    sidecar = tmp_path / "sidecar.gguf"
    tiny.write_sidecar(
        sidecar, model, dataclasses.replace(corrector_for(model, "segment"), rho=0.2, k=1, refresh="refill")
    )
    (point,) = perplexity(base, windows, corrector=sidecar, prompt=4).points
    assert (point.point, point.reuse) == (Point(pytest.approx(0.2), 1, "refill", corrector=sidecar), "segment")
    own = [Point(0.5, 3), Point(0.5, 3, corrector=sidecar)]
    report = perplexity(drop, windows, own, prompt=4)
    assert [p.reuse for p in report.points] == ["anchor-delta", "segment"]


def test_without_a_corrector(base: Path) -> None:
    windows = random_windows(2, 20)
    with pytest.raises(CorrectorError, match="allow_uncorrected"):
        perplexity(base, windows, [Point(0.34, 3)], prompt=4)
    (point,) = perplexity(base, windows, [Point(0.34, 3)], prompt=4, allow_uncorrected=True).points
    assert point.reuse == "none"


def test_one_window_has_no_interval(drop: Path) -> None:
    report = perplexity(drop, random_windows(1, 20), prompt=4)
    assert report.full.nll.margin is None
    assert report.full.perplexity_interval is None
    assert json.loads(json.dumps(report.to_dict()))["full"]["nll"]["margin"] is None


def test_progress_ends_at_the_total(drop: Path) -> None:
    calls: list[tuple[int, int]] = []
    perplexity(drop, random_windows(5, 20), prompt=4, n_parallel=2, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (5 * 19, 5 * 19)


def test_an_error_in_between_ends_the_run(drop: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perplexity(drop, random_windows(2, 20), prompt=4, progress=stop)


# --- parts --------------------------------------------------------------------------------------


def test_windows_are_cut_as_llama_cpp_does(base: Path) -> None:
    model = Model(str(base))
    assert model.add_bos
    tokens = [tiny.BOS, *model.tokenize(TEXT.encode(), False, False)]
    n = len(tokens) // 32
    expected = np.array(tokens[: n * 32]).reshape(n, 32)
    expected[:, 0] = tiny.BOS
    assert np.array_equal(text_windows(model, TEXT, 32, None), expected)
    assert np.array_equal(text_windows(model, TEXT, 32, 10**6), expected)
    assert np.array_equal(text_windows(model, TEXT, 32, 3), expected[[0, n // 3, 2 * n // 3]])
    other = "then the rain was over and the others ran in. " * 9
    both = np.concatenate([expected, text_windows(model, other, 32, None)])
    assert np.array_equal(text_windows(model, [TEXT, other], 32, None), both)


def test_pieces_change_no_token(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(str(base))  # SentencePiece
    text = "the cat sat\nthe mat was in the end\nof that thing " * 9
    whole = text_windows(model, text, 8, None)
    monkeypatch.setattr(windows, "PIECE", 5)
    assert np.array_equal(text_windows(model, text, 8, None), whole)


def test_long_texts_are_tokenised_in_pieces(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(str(smollm2))
    text = "The sea was calm.\n\n  It rained, then\nthe wind fell \n\n\nat 10:45.\t\nNo one saw it.\r\n" * 9
    whole = text_windows(model, text, 16, None)
    sizes: list[int] = []
    tokenize = Model.tokenize
    monkeypatch.setattr(Model, "tokenize", lambda *args: (sizes.append(len(args[1])), tokenize(*args))[1])
    for piece in (1, 7, 50):
        monkeypatch.setattr(windows, "PIECE", piece)
        sizes.clear()
        assert np.array_equal(text_windows(model, text, 16, None), whole)
        assert len(sizes) > 5 and max(sizes) < piece + 90


def test_distributions() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 4, 50_000).astype(np.float32)
    near = a + rng.normal(0, 1e-3, a.shape).astype(np.float32)
    far = rng.normal(5, 4, a.shape).astype(np.float32)
    p = log_softmax(a)
    assert Distribution(a).nll(7) == pytest.approx(-p[7], abs=1e-5)
    for b in (near, far):
        expected = float((np.exp(p) * (p - log_softmax(b))).sum())
        assert Distribution(a).divergence(Distribution(b)) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert Distribution(a).divergence(Distribution(a)) == 0
    a[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        Distribution(a)


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (30, 2.04227), (1000, 1.96234)])
def test_student_quantiles(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, rel=1e-5)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": 0}, "prompt=0"),
        ({"prompt": 32}, "prompt=32: it leaves nothing to score of window=32"),
        ({"window": 1}, "window=1"),
        ({"window": 0}, "window=0"),
        ({"window": 513, "data": TEXT}, "window=513: .*n_ctx_train=512"),
        ({"n_windows": 0}, "n_windows=0"),
        ({"n_parallel": 257}, "n_parallel=257"),
        ({"n_threads": 0}, "n_threads=0"),
        ({"type_k": "f8"}, "type_k='f8'"),
        ({"points": [Point(1.5)]}, "rho=1.5"),
        ({"points": [Point(0.9)]}, "rho"),
        ({"points": [Point(0.5, -1)]}, "k=-1"),
        ({"points": [Point(0.5, 1, "never")]}, "refresh='never'"),
        ({"data": "the cat"}, "text: its 4 tokens are too few for one window of 32"),
        ({"data": [TEXT, "the cat"]}, r"texts\[1\]: its 4 tokens"),
        ({"data": {"story": "the cat"}}, "story: its 4 tokens"),
        ({"data": []}, "texts: there are none"),
        ({"data": {"story": TEXT + "\ud800"}}, "story: not valid Unicode"),
        ({"data": np.ones((2, 32))}, "float64"),
        ({"data": np.ones(32, int)}, r"int64 \[32\]"),
        ({"data": np.full((2, 32), 10**6)}, "tokens: 1000000"),
        ({"data": np.full((2, 32), -1)}, "tokens: -1"),
    ],
)
def test_bad_arguments(drop: Path, arguments: dict[str, Any], says: str) -> None:
    defaults: dict[str, Any] = {"data": TEXT, "points": [Point(0.5, 3)], "prompt": 8, "window": 32}
    with pytest.raises(ValueError, match=says):
        perplexity(drop, **(defaults | arguments))


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perplexity") / "text.txt"
    path.write_text(TEXT)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["perplexity", *(str(argument) for argument in arguments)])


SMALL = ("--window", 32, "--prompt", 8, "--windows", 3)


def test_json(drop: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    result = run(drop, "--text", text, *SMALL, "--point", "0.5:3:refill:8", "--json", "-o", output)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert json.loads(output.read_text()) == answer
    assert list(tmp_path.iterdir()) == [output]
    report = perplexity(drop, TEXT, [Point(0.5, 3, "refill", 8)], window=32, prompt=8, n_windows=3)
    assert answer == report.to_dict()
    (point,) = answer["points"]
    assert (answer["n_windows"], answer["window"], answer["prompt"]) == (3, 32, 8)
    assert (point["rho"], point["k"], point["refresh"], point["kv_window"]) == (0.5, 3, "refill", 8)
    assert [d["distance"] for d in point["by_distance"]] == [0, 1, 2, 3]
    assert sum(d["n_tokens"] for d in point["by_distance"]) == point["n_tokens"] == 3 * 24


def test_verify_loses_nothing_to_measure(drop: Path) -> None:
    with pytest.raises(ValueError, match="refresh='verify' loses nothing; measure refresh='refill'"):
        perplexity(drop, TEXT, [Point(0.5, 3, "verify")], window=32, prompt=8, n_windows=3)


def test_tables(drop: Path, text: Path) -> None:
    result = run(drop, "--text", text, *SMALL, "--rho", 0.5, "--k", 1)
    assert result.exit_code == 0, result.stderr
    report = perplexity(drop, TEXT, [Point(0.5, 1)], window=32, prompt=8, n_windows=3)
    total, by_distance = result.stdout.split("By LoRA steps")
    (full,) = [line for line in total.splitlines() if line.startswith("full ")]
    assert f" {report.full.perplexity:.2f} " in full
    (point,) = [line for line in total.splitlines() if line.startswith("0.5:1:single ")]
    assert f" {report.points[0].total.kl.mean:.4f} ±" in point
    assert f" {report.points[0].by_distance[1].nll.mean:.4f} ±" in by_distance


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ((), ["0.5:2:single"]),
        (("--rho", 0, "--threads", 1), []),
        (("--rho", 0.34, "--rho", 0.5, "--k", 1, "--k", 2),
         ["0.34:1:single", "0.34:2:single", "0.5:1:single", "0.5:2:single"]),
        (("--k", 1, "--refresh", "single", "--refresh", "refill", "--kv-window", 4, "--kv-window", 8),
         ["0.5:1:single", "0.5:1:refill:4", "0.5:1:refill:8"]),
        (("--point", "0.5:2", "--rho", 0.34), ["0.5:2:single", "0.34:2:single"]),
    ],
)  # fmt: skip
def test_points_of_options(drop: Path, text: Path, options: tuple[object, ...], points: list[str]) -> None:
    from loradrop.cli.points import point_name

    result = run(drop, "--text", text, *SMALL, *options, "--json")
    assert result.exit_code == 0, result.stderr
    names = [
        point_name(Point(p["rho"], p["k"], p["refresh"], p["kv_window"])) for p in json.loads(result.stdout)["points"]
    ]
    assert names == points


def test_several_texts_and_all_windows(drop: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT)
    result = run(drop, "--text", text, "--text", other, "--window", 32, "--prompt", 8, "--windows", 0, "--json")
    n = len(text_windows(Model(str(drop)), TEXT, 32, None))
    assert json.loads(result.stdout)["n_windows"] == 2 * n


def test_bad_files_are_one_line(drop: Path, text: Path, tmp_path: Path) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("the cat")
    binary.write_bytes(b"caf\xe9")
    for arguments, says in [
        (("--text", short), f"{short}: its 4 tokens"),
        (("--text", binary), f"{binary}: not UTF-8"),
        (("--text", tmp_path / "none.txt"), "none.txt"),
        (("--text", tmp_path), str(tmp_path)),
        (("--text", text, "-o", tmp_path / "none" / "x.json"), "none"),
        (("--text", text, "-o", tmp_path), "folder"),
        (("--text", text, "-o", binary), f"{binary} exists"),
        (("--text", text, "-o", text, "--force"), f"{text} is an input"),
        (("--text", text, "-o", drop, "--force"), f"{drop} is an input"),
        (("--text", text, "--corrector", "none.gguf"), "corrector='none.gguf'"),
        (("--text", text, "--prompt", 64, "--window", 64), "prompt=64"),
    ]:
        result = run(drop, *arguments)
        assert result.exit_code == 1, arguments
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ") and says in line


def test_files_are_looked_at_before_the_model(text: Path, tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder" in run("none.gguf", "--text", text, "-o", tmp_path).stderr
    assert "none.txt" in run("none.gguf", "--text", tmp_path / "none.txt").stderr


@pytest.mark.parametrize("point", ["0.5", "x:3", "0.5:3:never", "0.5:3:refill:8:9", "0.5:1.5"])
def test_wrong_points_are_wrong_usage(drop: Path, text: Path, point: str) -> None:
    result = run(drop, "--text", text, "--point", point)
    assert result.exit_code == 2
    assert "RHO:K[:REFRESH[:WINDOW]]" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
def test_ctrl_c_leaves_nothing(drop: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    code = (
        "import faulthandler; faulthandler.dump_traceback_later(50, exit=True)\n"  # where it hangs, if it does
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import loradrop.cli.perplexity as command, loradrop.cli as cli, contextlib, sys\n"
        "@contextlib.contextmanager\n"
        "def say(what):\n"
        "    yield lambda done, total: print('decoding', file=sys.stderr, flush=True)\n"
        "command.token_progress = say\n"
        f"cli.main(['perplexity', {str(drop)!r}, '--text', {str(text)!r}, '-o', {str(output)!r}, "
        "'--window', '512', '--rho', '0.5', '--rho', '0.34'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert b"decoding" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors.decode()
    assert out == b""
    assert b"Aborted!" in errors and b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
