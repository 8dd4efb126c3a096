"""Training on tiny models: it learns, it can be stopped, and the engine takes what it writes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from loradrop._core import Context, Corrector, CorrectorError, Model
from loradrop.cli import main
from loradrop.recommended import measured_agreements
from loradrop.self_text import write_texts
from tiny import make_model, write_gguf

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from loradrop.evaluate import Point, perplexity  # noqa: E402
from loradrop.train.decoder import load_decoder  # noqa: E402
from loradrop.train.loop import LoopOptions  # noqa: E402
from loradrop.train.metric import fisher_metric  # noqa: E402
from loradrop.train.simulate import simulate  # noqa: E402
from loradrop.train.student import Shape, Student  # noqa: E402
from loradrop.train.texts import Texts, load_texts, split_texts  # noqa: E402
from loradrop.train.timeline import Timeline  # noqa: E402
from loradrop.train.train import TrainOptions, train  # noqa: E402
from loradrop_convert.base import read_base  # noqa: E402
from loradrop_convert.corrector import CorrectorData  # noqa: E402
from loradrop_convert.folder import read_folder_base, write_folder  # noqa: E402
from loradrop_convert.sources import read_corrector  # noqa: E402

N_LAYER = 6
SEGMENT = Shape("segment", 4, 4.0, segments=((2, 3),), hidden=16)
SHAPES = {
    "segment": SEGMENT,
    "anchor-delta": Shape("anchor-delta", 4, 4.0, layers=(3, 2)),
    "anchor-state": Shape("anchor-state", 4, 4.0, layers=(2, 4)),
    "previous-state": Shape("previous-state", 4, 4.0, layers=(2, 3)),
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "tiny.gguf"
    write_gguf(path, make_model(n_layer=N_LAYER, n_embd=32, n_ff=48))
    return path


@pytest.fixture(scope="module")
def texts(model_path: Path) -> Texts:
    model = Model(str(model_path))
    return split_texts(model, write_texts(model, 24, 32, seed=1, n_threads=1))


def options(shape: Shape, steps: int = 20, refresh: str = "refill", **more: object) -> TrainOptions:
    loop = LoopOptions(steps=steps, lr=3e-3, evaluate_every=10)
    settings = {"ks": (2,), "prompt": (4, 8), "state_steps": 40, "batch": 4, "held_out": 2} | more
    return TrainOptions(shape=shape, loop=loop, refresh=refresh, **settings)  # type: ignore[arg-type]


def log_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{name: float(row[name]) for name in row if name != "dropped"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("refresh", ["single", "refill"])
@pytest.mark.parametrize("reuse", list(SHAPES))
def test_training_lowers_divergence(tmp_path: Path, model_path: Path, texts: Texts, reuse: str, refresh: str) -> None:
    few = Texts(texts.train[:4], texts.train[:4])  # a random model's states can be learnt by heart alone
    train(model_path, few, tmp_path, options(SHAPES[reuse], refresh=refresh, state_steps=0))
    rows = log_of(tmp_path)
    assert rows[-1]["kl"] < rows[0]["kl"]
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_first_stage_helps(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    for name, state_steps in (("without", 0), ("with", 60)):
        train(model_path, texts, tmp_path / name, options(SEGMENT, steps=0, state_steps=state_steps))
    assert log_of(tmp_path / "with")[0]["kl"] < log_of(tmp_path / "without")[0]["kl"]


def test_engine_measures_what_training_reports(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    result = train(model_path, texts, tmp_path, options(SEGMENT, prompt=(8, 8), share=1.0))["2-3"]
    point = Point(rho=2 / N_LAYER, k=2, refresh="refill", kv_window=64)
    report = perplexity(model_path, texts.held_out, [point], corrector=tmp_path / "corrector.gguf", prompt=8, window=32)
    lora_steps = report.points[0].by_distance[1:]
    kl = np.average([scores.kl.mean for scores in lora_steps], weights=[scores.n_tokens for scores in lora_steps])
    assert kl == pytest.approx(result.kl, rel=0.05)  # the file is F16, and so are the stored states
    assert result.agreement_by_distance == pytest.approx(report.points[0].draft_agreements, abs=0.04)
    corrector = Corrector.load(str(tmp_path / "corrector.gguf"), Model(str(model_path)))
    assert corrector is not None
    told = measured_agreements(corrector, N_LAYER)
    assert told == {2: pytest.approx(list(result.agreement_by_distance), abs=1e-4)}


def test_resumed_training_is_the_same(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    whole = train(model_path, texts, tmp_path / "whole", options(SEGMENT))
    stopped = options(SEGMENT)

    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("distilling") and done == 13:
            raise Stop

    with pytest.raises(Stop):
        train(model_path, texts, tmp_path / "parts", stopped, progress=stop)
    with pytest.raises(FileExistsError, match="--resume"):
        train(model_path, texts, tmp_path / "parts", stopped)
    parts = train(model_path, texts, tmp_path / "parts", stopped, resume=True)
    assert parts["2-3"].kl == pytest.approx(whole["2-3"].kl, rel=1e-4)
    assert [row["step"] for row in log_of(tmp_path / "parts")] == [0, 10, 20]


def test_an_interrupt_leaves_a_checkpoint(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("distilling") and done == 13:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(model_path, texts, tmp_path, options(SEGMENT), progress=stop)
    train(model_path, texts, tmp_path, options(SEGMENT), resume=True, progress=lambda *what: seen.append(what[1]))
    assert seen[-7:] == list(range(14, 21))


def test_each_segment_is_regressed_once(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    shape = Shape("segment", 4, 4.0, segments=((3, 3), (2, 4)), hidden=8)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("states of layers 2 to 4") and done == 2:
            raise KeyboardInterrupt

    seen: list[str] = []
    whole = train(model_path, texts, tmp_path / "whole", options(shape))
    with pytest.raises(KeyboardInterrupt):
        train(model_path, texts, tmp_path / "parts", options(shape), progress=stop)
    arguments = {"resume": True, "progress": lambda *what: seen.append(what[0])}
    parts = train(model_path, texts, tmp_path / "parts", options(shape), **arguments)  # type: ignore[arg-type]
    assert not any(what.startswith("states of layers 3 to 3") for what in seen)
    assert any(what.startswith("states of layers 2 to 4") for what in seen)
    for dropped in ("3-3", "2-4"):
        assert parts[dropped].kl == pytest.approx(whole[dropped].kl, rel=1e-4)


@pytest.mark.parametrize("reuse", ["segment", "anchor-delta"])
def test_training_begins_where_it_is_told(tmp_path: Path, model_path: Path, texts: Texts, reuse: str) -> None:
    first = train(model_path, texts, tmp_path / "first", options(SHAPES[reuse]))
    start = read_corrector(tmp_path / "first" / "corrector")
    halved = {name: t / 2 if name.endswith(("_b.weight", ".b.weight")) else t for name, t in start.tensors.items()}
    same = replace(start, alpha=2 * start.alpha, tensors=halved)  # s B A is what it was
    again = train(model_path, texts, tmp_path / "again", options(SHAPES[reuse], steps=0, state_steps=0), start=same)
    for dropped, result in first.items():
        assert again[dropped].kl == pytest.approx(result.kl, rel=1e-4)
    if reuse == "segment":  # a hidden layer is added without effect
        parts = ("gate", "up", "down")
        without = {name: t for name, t in start.tensors.items() if name.split(".")[-2] not in parts}
        shape, linear = replace(SEGMENT, hidden=0), replace(start, tensors=without)
        two = [
            train(model_path, texts, tmp_path / str(hidden), options(chosen, steps=0, state_steps=0), start=linear)
            for hidden, chosen in ((0, shape), (16, SEGMENT))
        ]
        assert two[0]["2-3"].kl == pytest.approx(two[1]["2-3"].kl, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reuse": "anchor-delta", "layers": [2, 3], "segments": []}, "start: its reuse is anchor-delta, segment is"),
        ({"segments": [(2, 4)]}, r"start: its segments is \[\(2, 4\)\]"),
        ({"rank": 8}, "start: its rank is 8, 4 is asked for"),
        ({"tensors": {"lora_drop.seg.0.down.weight": np.zeros((32, 8), np.float32)}}, "start: its hidden is 8, 16 is"),
        ({"tensors": {"lora_drop.seg.0.a.weight": np.zeros((3, 96), np.float32)}}, r"a.weight has shape \[3, 96\]"),
    ],
)
def test_start_of_another_shape(
    tmp_path: Path, model_path: Path, texts: Texts, change: dict[str, object], says: str
) -> None:
    start = CorrectorData("segment", 4, 4.0, {}, [], [(2, 3)])
    with pytest.raises(ValueError, match=says):
        train(model_path, texts, tmp_path / "out", options(SEGMENT), start=replace(start, **change))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"segments": ((2, 5),)}, "shape: segments names layer 5; layers 1 to 4 of this model can drop"),
        ({"segments": ((2, 9),)}, "shape: segments names layer 9"),
        ({"rank": 33}, "shape: rank is 33, expected 1 to 32"),
        ({"reuse": "anchor-delta", "segments": (), "layers": (2, 3, 2)}, "names layer 2 twice"),
    ],
)
def test_shape_that_does_not_fit_the_model(
    tmp_path: Path, model_path: Path, texts: Texts, change: dict[str, object], says: str
) -> None:
    with pytest.raises(CorrectorError, match=says):
        train(model_path, texts, tmp_path / "out", options(replace(SEGMENT, **change)))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_states_of_another_model_are_refused(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    settings = options(SEGMENT, steps=0, state_steps=0)
    train(model_path, texts, tmp_path / "first", settings)
    other = tmp_path / "other.gguf"
    write_gguf(other, make_model(n_layer=N_LAYER, n_embd=32, n_ff=48, seed=1))
    with pytest.raises(ValueError, match="holds the states of another model"):
        train(other, texts, tmp_path / "second", settings, states=tmp_path / "first" / "states")


def test_learning_rate_comes_down_by_the_end_of_the_time(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    settings = options(SEGMENT, state_steps=0)
    settings = replace(settings, loop=replace(settings.loop, steps=100_000, seconds=3.0))
    train(model_path, texts, tmp_path, settings)
    rates = [row["lr"] for row in log_of(tmp_path)]
    assert 0 < rates[-1] < 0.1 * max(rates)


def test_engine_loads_what_is_written(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    train(model_path, texts, tmp_path, options(SHAPES["anchor-delta"], steps=2))
    model = Model(str(model_path))
    corrector = Corrector.load(str(tmp_path / "corrector.gguf"), model)
    assert corrector is not None and corrector.layers == [3, 2]
    assert (corrector.rho, corrector.k, corrector.refresh) == (pytest.approx(2 / N_LAYER), 2, "refill")
    assert read_folder_base(tmp_path / "corrector") == read_base(model_path)
    context = Context(model, n_ctx=64, corrector=corrector, rho=2 / N_LAYER, k=2)
    assert context.dropped_layers == [2, 3]


def test_checkpointing_changes_nothing(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    results = [
        train(model_path, texts, tmp_path / str(on), options(SEGMENT, store_kv=False, checkpointing=on))
        for on in (False, True)
    ]
    assert results[0]["2-3"].kl == pytest.approx(results[1]["2-3"].kl, rel=1e-5)


def test_checkpointing_keeps_less_for_the_gradient(model_path: Path) -> None:
    kept = {}
    for on in (False, True):
        decoder = load_decoder(model_path, checkpointing=on)
        x = torch.randn(1, 16, decoder.n_embd, requires_grad=True)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            decoder.layer(0, x, torch.arange(16))
        kept[on] = sum(sizes)
    assert kept[True] < kept[False] / 4


def test_bf16_comes_near_f32(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    results = [train(model_path, texts, tmp_path / str(on), options(SEGMENT, bf16=on))["2-3"] for on in (False, True)]
    assert results[0].kl != results[1].kl
    assert results[1].kl == pytest.approx(results[0].kl, rel=0.1)


def test_hidden_states_come_nearer_where_they_count(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    few = Texts(texts.train[:4], texts.train[:4])
    distances = []
    for weight in (0.0, 10.0):
        settings = options(SEGMENT, state_steps=0)
        settings = replace(settings, loop=replace(settings.loop, state_weight=weight))
        train(model_path, few, tmp_path / str(weight), settings)
        distances.append(last_state_distance(model_path, tmp_path / str(weight), few))
    assert distances[1] < distances[0]


def last_state_distance(model_path: Path, out: Path, texts: Texts) -> float:
    student = Student(load_decoder(model_path), SEGMENT, read_corrector(out / "corrector").tensors)
    tokens, timeline = torch.tensor(texts.train.astype(np.int64)), Timeline(32, 8, 2, "refill")
    with torch.no_grad():
        ours = simulate(student.decoder, student.runs(0), tokens, timeline)
        return float((ours - student.decoder(tokens)[:, timeline.lora]).pow(2).mean())


def test_every_segment_is_evaluated(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    shape = Shape("segment", 4, 4.0, segments=((3, 3), (2, 4)), hidden=8)
    results = train(model_path, texts, tmp_path, options(shape))
    assert list(results) == ["3-3", "2-4"] and results["3-3"] != results["2-4"]
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["dropped"] for row in csv.DictReader(file)] == ["3-3", "2-4"] * 3


def test_states_are_shared(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    seen: list[str] = []
    settings = options(SEGMENT, steps=0, state_steps=0)
    train(model_path, texts, tmp_path / "first", settings)
    states = tmp_path / "first" / "states"
    before = {path: path.stat().st_mtime_ns for path in states.glob("*/*.npy")}
    train(model_path, texts, tmp_path / "second", settings, states=states, progress=lambda *a: seen.append(a[0]))
    assert not (tmp_path / "second" / "states").exists()
    assert before == {path: path.stat().st_mtime_ns for path in states.glob("*/*.npy")}


def test_two_processes_train_one_corrector(tmp_path: Path, model_path: Path) -> None:
    # what accelerate's launcher starts for several GPUs; its own for several processes without any wants MPI
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "loradrop"]
    command += ["train", str(model_path), "-o", str(tmp_path / "out"), "--self", "20", "--window", "24", "--rank", "4"]
    command += ["--segment", "3-3", "--segment", "2-4", "--hidden", "8", "--prompt", "4,8", "--k", "1,2"]
    command += ["--batch", "4", "--state-steps", "4", "--steps", "4", "--evaluate-every", "2", "--threads", "1"]
    alone = os.environ | {"ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=alone)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("written to") == 1
    rows = log_of(tmp_path / "out")
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4]
    assert rows[-1]["tokens"] == 4 * 4 * 24 * 2  # each process has batches of its own


def test_fisher_metric_is_twice_kl(model_path: Path, texts: Texts) -> None:
    decoder = load_decoder(model_path)
    positions = torch.arange(32)
    tokens = torch.tensor(texts.train.astype(np.int64))
    with torch.no_grad():
        x = decoder.embed(tokens)
        for layer in range(4):
            x = decoder.layer(layer, x, positions)
    metric = fisher_metric(decoder, 4, x)
    with torch.no_grad():
        error = 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        error[:, :-1] = 0  # of the last token alone, so that no other's prediction moves

        def predicted(x: torch.Tensor) -> torch.Tensor:
            for layer in range(4, N_LAYER):
                x = decoder.layer(layer, x, positions)
            return torch.log_softmax(decoder.logits(x[:, -1]), -1)

        p, q = predicted(x), predicted(x + error)
        kl = (p.exp() * (p - q)).sum(-1).mean()
        estimate = 0.5 * (error[:, -1] @ metric).pow(2).sum(-1).mean()
    assert 0.4 < float(estimate / kl) < 2.5


def test_too_short_texts_are_refused(tmp_path: Path, model_path: Path, texts: Texts) -> None:
    with pytest.raises(ValueError, match="prompt=40: texts have 32 tokens"):
        train(model_path, texts, tmp_path, options(SEGMENT, prompt=(4, 40)))


def test_command_trains_and_resumes(tmp_path: Path, model_path: Path) -> None:
    arguments = ["train", str(model_path), "-o", str(tmp_path / "out"), "--self", "20", "--window", "24"]
    arguments += ["--segment", "2-3", "--rank", "4", "--hidden", "8", "--prompt", "4,8", "--k", "1,2", "--batch", "4"]
    arguments += ["--state-steps", "4", "--steps", "4", "--evaluate-every", "2", "--threads", "1"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    before = (tmp_path / "out" / "texts.npz").read_bytes()
    refused = CliRunner().invoke(main, [*arguments, "--seed", "5"])
    assert refused.exit_code == 1 and "--resume" in refused.output
    assert (tmp_path / "out" / "texts.npz").read_bytes() == before
    again = CliRunner().invoke(main, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
    assert "tokens a round" in again.output and "verify: recommended rho" in again.output
    assert Corrector.load(str(tmp_path / "out" / "corrector.gguf"), Model(str(model_path))) is not None


def test_start_is_looked_at_before_texts_are_written(tmp_path: Path, model_path: Path) -> None:
    arguments = ["train", str(model_path), "-o", str(tmp_path / "out"), "--self", "20", "--segment", "2-3"]
    write_folder(tmp_path / "start", CorrectorData("segment", 4, 4.0, {}, [], [(2, 3)]))
    for start, says in ((tmp_path / "none", "none"), (tmp_path / "start", "start: its rank is 4, 64 is asked for")):
        result = CliRunner().invoke(main, [*arguments, "--start", str(start)])
        assert result.exit_code == 1 and says in result.output
        assert not (tmp_path / "out").exists()


def test_command_asks_for_what_the_rule_needs(tmp_path: Path, model_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", str(model_path), "-o", str(tmp_path / "out"), "--layers", "2,3"])
    assert result.exit_code == 2 and "--segment FIRST-LAST" in result.output


def test_command_reads_a_dataset(tmp_path: Path, model_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [{"body": f"row {i}: " + "some text that is long enough " * 3} for i in range(50)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", str(model_path), "-o", str(tmp_path / "out"), "--dataset", str(folder), "--window", "24"]
    arguments += ["--segment", "2-3", "--rank", "4", "--hidden", "8", "--prompt", "4,8", "--k", "1,2", "--batch", "4"]
    arguments += ["--state-steps", "1", "--steps", "1", "--threads", "1"]
    assert "--texts is missing" in CliRunner().invoke(main, arguments).output
    arguments += ["--texts", "20"]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1 and "its columns are body: give --column" in refused.output
    done = CliRunner().invoke(main, [*arguments, "--column", "body"])
    assert done.exit_code == 0, done.output
    texts = load_texts(tmp_path / "out" / "texts.npz")
    assert len(texts.train) + len(texts.held_out) == 20
    text = Model(str(model_path)).detokenize(texts.train[0].tolist(), True).decode(errors="replace")
    assert any(text[3:][i : i + 8] in rows[0]["body"] for i in range(8))
