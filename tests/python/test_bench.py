"""Bench: the ceiling by hand and against bytes summed by gguf's reader; rounds and figures with a clock of our own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader, GGUFWriter

import tiny
from loradrop._core import Context, CorrectorError, Model
from loradrop.bench import Point, StepBytes, bench, profile, step_bytes, timing
from loradrop.bench.ceiling import refill_ceiling, single_ceiling
from loradrop.bench.profile import _by_kind
from loradrop.bench.report import ceiling_of, decode_of, speed_up_of
from loradrop.bench.step_bytes import _model_bytes
from loradrop.bench.timing import Job, run_rounds
from loradrop.cli import main
from loradrop.options import FULL, Drop, DropOptions, resolve_drop
from loradrop.random_model import SHAPES, write_random_model
from loradrop_convert.gguf_header import read_header

QUICK: dict[str, Any] = {"prompt": 5, "tokens": 8, "n_rounds": 2, "n_threads": 1}


def corrector_for(model: tiny.TinyModel, reuse: tiny.Reuse) -> tiny.TinyCorrector:
    if reuse == "segment":
        return tiny.make_corrector(model, reuse, segments=[(3, 3), (2, 4)])
    return tiny.make_corrector(model, reuse, layers=[3, 2, 4])


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "drop.gguf"
    model = tiny.make_model()
    corrector = dataclasses.replace(corrector_for(model, "segment"), rho=0.5, k=3)
    tiny.write_gguf(path, model, corrector)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "base.gguf"
    tiny.write_gguf(path, tiny.make_model())
    return path


#
# the ceiling
#


@pytest.mark.parametrize(("rho", "expected"), [(0.5, 1.60), (0.75, 2.2857)])
def test_ceiling_of_32_equal_layers(rho: float, expected: float) -> None:
    layer = 1000
    n_bytes = StepBytes(full=32 * layer, refresh=32 * layer, lora=round((1 - rho) * 32) * layer, head=0)
    assert single_ceiling(n_bytes, 3) == pytest.approx(expected, rel=1e-4)
    # a batch that took as long as one step would make no difference
    assert refill_ceiling(n_bytes, 3, 0.1, 0.1) == pytest.approx(expected, rel=1e-4)


def test_ceilings_by_hand() -> None:
    n_bytes = StepBytes(full=100, refresh=120, lora=40, head=10)
    assert single_ceiling(n_bytes, 2) == pytest.approx(300 / (120 + 80))
    # t_full = 2 s, a batch of 3 tokens takes 5 s, the LoRA steps 0.8 s each, the anchor's part 0.4 s
    assert refill_ceiling(n_bytes, 2, 2.0, 5.0) == pytest.approx(6 / (5 + 1.6 + 0.4))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("place", ["inside", "sidecar"])
@pytest.mark.parametrize("reuse", ["previous-state", "anchor-state", "anchor-delta", "segment"])
def test_step_bytes(tmp_path: Path, reuse: tiny.Reuse, place: str, tied: bool) -> None:
    model = tiny.make_model(tied=tied)
    corrector = corrector_for(model, reuse)
    for part in ("gate", "up", "down"):
        corrector.tensors.pop(f"lora_drop.seg.0.{part}.weight", None)  # so that the runs differ in size
    path = holder = tmp_path / "model.gguf"
    tiny.write_gguf(path, model, corrector if place == "inside" else None, "f16", "q8_0")
    if place == "sidecar":
        holder = tmp_path / "corrector.gguf"
        tiny.write_sidecar(holder, model, corrector, "q8_0", "f16")
    base_sizes = {t.name: int(t.n_bytes) for t in GGUFReader(path).tensors if "lora_drop" not in t.name}
    sizes = {t.name: int(t.n_bytes) for t in GGUFReader(holder).tensors}

    opened = Model(str(path))
    full = sum(base_sizes.values())
    head = base_sizes["token_embd.weight" if tied else "output.weight"]
    if not tied:
        full -= base_sizes["token_embd.weight"] - 2 * model.n_embd  # one row, F16
    assert step_bytes(opened, FULL) == StepBytes(full, full, full, head)

    for rho, layers, run in ((0.5, (2, 3, 4), 1), (0.2, (3,), 0)):
        drop = resolve_drop(DropOptions(rho=rho, k=3, corrector=None if place == "inside" else holder), opened)
        kept = full - sum(n for name, n in base_sizes.items() if name.startswith(tuple(f"blk.{i}." for i in layers)))
        if reuse == "segment":
            parts = ("a", "b", "gate", "up", "down", "carry")
            part = {p: sizes.get(f"lora_drop.seg.{run}.{p}.weight", 0) for p in parts}
            third = (part["a"] + part["gate"] + part["up"]) // 3
            lora, anchor = third + part["b"] + part["down"], 2 * third + part["carry"]
        else:
            lora = sum(sizes[f"blk.{i}.lora_drop_{p}.weight"] for i in layers for p in "ab")
            anchor = sum(sizes.get(f"blk.{i}.lora_drop_gate.weight", 0) for i in layers)
            assert bool(anchor) == (reuse == "anchor-delta")
        assert step_bytes(opened, drop) == StepBytes(full, full + anchor, kept + lora, head)


def test_a_smaller_head_of_drafts(tmp_path: Path) -> None:
    n_bytes = StepBytes(full=100, refresh=120, lora=40, head=10)
    assert n_bytes.with_draft_head(3) == StepBytes(full=100, refresh=120, lora=33, head=10)
    assert n_bytes.with_draft_head(0) == n_bytes
    path = tmp_path / "model.gguf"
    write_random_model(path, dataclasses.replace(SHAPES["tiny"], layers=8, vocab=20_000))
    report = bench(path, [Point(0.25, 2, "verify"), Point(0.25, 2, "single")], allow_uncorrected=True, **QUICK)
    drafts, plain = (point.step_bytes for point in report.points)
    assert plain.head == drafts.head == 20_000 * 210  # rows of 256 weights in q6_k
    assert drafts.lora == pytest.approx(plain.lora - 17_500 * 210, abs=4096)
    assert (drafts.full, drafts.refresh) == (plain.full, plain.refresh)


def test_step_bytes_without_a_corrector(base: Path) -> None:
    model = Model(str(base))
    drop = resolve_drop(DropOptions(rho=0.3, k=3, allow_uncorrected=True), model)
    n_bytes = step_bytes(model, drop)
    sizes = {t.name: int(t.n_bytes) for t in GGUFReader(base).tensors}
    assert drop.corrector is not None
    dropped = tuple(f"blk.{i}." for i in drop.corrector.dropped_layers(0.3, 6))
    assert len(dropped) == 2
    assert n_bytes.full - n_bytes.lora == sum(n for name, n in sizes.items() if name.startswith(dropped))
    assert n_bytes.refresh == n_bytes.full


def test_experts_and_layers_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "experts.gguf"
    writer = GGUFWriter(path, "moe")
    writer.add_block_count(3)
    writer.add_embedding_length(8)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_uint32("moe.nextn_predict_layers", 1)
    shapes = {"blk.0.ffn_up_exps.weight": (8, 4, 8), "blk.1.attn_q.weight": (8, 8), "blk.2.attn_q.weight": (8, 8)}
    for name, shape in {**shapes, "token_embd.weight": (50, 8), "output.weight": (50, 8)}.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    tiny._finish(writer)
    layers, rest = _model_bytes(read_header(path))
    assert layers == [4 * 2 * 4 * 8, 4 * 64]
    assert rest == 4 * (8 + 50 * 8)


#
# rounds, with contexts and a clock of our own
#


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, _: float) -> None:
        self.now += 64.0  # not to be counted, and exact


class FakeContext:
    """Takes as long for a decode as it is told to, and notes what it decodes."""

    def __init__(self, clock: Clock, seconds: Sequence[float], log: list[Any]) -> None:
        self._clock, self._seconds, self._log = clock, seconds, log
        self._n = self._n_lora = 0

    @property
    def stats(self) -> dict[str, Any]:
        steps = {"lora_steps": self._n_lora, "lora_tokens": self._n_lora}
        drafts = {"rounds": 0, "drafted": 0, "drafts_accepted": []}
        return {**steps, **drafts, "kv_used_bytes": 10, "kv_used_bytes_full": 20}

    def clear(self) -> None:
        self._n = 0

    def decode(self, tokens: Sequence[int]) -> None:
        self._log += [self, list(tokens)]
        if self._n:
            self._clock.now += self._seconds[(self._n - 1) % len(self._seconds)]
            self._n_lora += self._n % 4 > 0
        self._n += 1


def fake_jobs(monkeypatch: pytest.MonkeyPatch, *rounds: tuple[int, Sequence[float]]) -> tuple[list[Job], list[Any]]:
    clock, log = Clock(), []  # type: ignore[var-annotated]
    monkeypatch.setattr(timing, "time", clock)
    return [Job(FakeContext(clock, seconds, log), width) for width, seconds in rounds], log  # type: ignore[arg-type]


def test_all_jobs_decode_the_same_tokens_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, log = fake_jobs(monkeypatch, (1, [2.0]), (1, [1.0, 1.0, 1.0, 3.0]), (4, [5.0]))
    advanced: list[int] = []
    run_rounds(jobs, [7, 8], list(range(22)), 2, advanced.append)
    assert sum(advanced) == 9
    contexts = [job.context for job in jobs]
    calls = [(contexts.index(context), tokens) for context, tokens in zip(log[::2], log[1::2], strict=True)]
    each = len(calls) // 3
    for i in range(3):
        prompts, decodes = calls[i * each : i * each + 3], calls[i * each + 3 : (i + 1) * each]
        assert prompts == [(0, [7, 8]), (1, [7, 8]), (2, [7, 8])]
        for job in (0, 1):
            assert [tokens for who, tokens in decodes if who == job] == [[at] for at in range(22)]
        assert [tokens for who, tokens in decodes if who == 2] == [[*range(at, at + 4)] for at in range(0, 20, 4)]
        # eight tokens each, and every turn begins with another job
        turns = [who for who, tokens in decodes if tokens[0] in (0, 8, 16)]
        assert turns == [(i + turn + step) % 3 for turn in range(3) for step in range(3)]
    assert jobs[0].rounds == [[2.0] * 22] * 2
    assert jobs[1].rounds == [[1.0, 1.0, 1.0, 3.0] * 5 + [1.0] * 2] * 2
    assert jobs[2].rounds == [[5.0] * 5] * 2
    assert (jobs[1].lora_steps, jobs[1].refresh_steps, jobs[1].kv_bytes, jobs[1].kv_bytes_full) == (17, 5, 10, 20)


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    full, point, batch = fake_jobs(monkeypatch, (1, [2.0]), (1, [1.0]), (4, [1.0]))[0]
    # three rounds; the last step belongs to no whole period
    full.rounds = [[2.0] * 4 + [99.0], [4.0] * 4 + [99.0], [3.0] * 4 + [99.0]]
    point.rounds = [[1.0, 1.0, 1.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0]]
    batch.rounds = [[4.0, 8.0], [5.0, 5.0], [9.0, 9.0]]
    decode = decode_of(point, 4)
    assert dataclasses.astuple(decode.tokens_per_second) == (0.5, 0.5, 1.0)
    assert (decode.counted_steps, decode.ms_per_token_p50) == (4, 1000.0)
    ordered = [1.0] * 7 + [2.0] * 4 + [5.0]
    assert decode.ms_per_token_p95 == pytest.approx(1e3 * float(np.percentile(ordered, 95)))
    assert decode.round_seconds == point.rounds
    # 8 / 8, 16 / 8, 12 / 4
    assert dataclasses.astuple(speed_up_of(full, point, 4)) == (2.0, 1.0, 3.0)
    n_bytes = StepBytes(100, 100, 50, 0)
    full.rounds = [[2.0] * 4, [4.0] * 4, [3.0] * 4]
    drop = Drop(None, 0.5, 3)
    assert ceiling_of(n_bytes, drop, full, point, None) == pytest.approx(400 / 250)
    refill = dataclasses.replace(drop, refresh="refill")
    assert ceiling_of(n_bytes, refill, full, point, batch) == pytest.approx(4 * 3 / (6 + 3 * 3 * 0.5))
    verify = dataclasses.replace(drop, refresh="verify")
    point.draft_rounds, point.refresh_steps, point.lora_steps, point.accepted = 4, 6, 12, 5
    # 11 tokens: 2 plain ones, 4 checks of 6 s, 12 drafts of 1.5 s
    assert ceiling_of(n_bytes, verify, full, point, batch) == pytest.approx(11 * 3 / (2 * 3 + 4 * 6 + 12 * 1.5))


#
# the whole
#


def test_points(drop: Path) -> None:
    points = [Point(0.5, 3), Point(0.5, 1, "refill", 4), Point(0.2, 2), Point(0.0, 3), Point(0.5, 0)]
    calls: list[tuple[int, int]] = []
    report = bench(drop, points, progress=lambda done, total: calls.append((done, total)), **QUICK)
    assert [(p.point.rho, p.point.k, p.point.refresh, p.point.kv_window) for p in report.points] == [
        (0.5, 3, "single", 64),
        (0.5, 1, "refill", 4),
        (0.2, 2, "single", 64),
    ]
    assert [p.dropped_layers for p in report.points] == [(2, 3, 4), (2, 3, 4), (3,)]
    assert [p.decode.counted_steps for p in report.points] == [8, 8, 6]
    assert [(p.decode.lora_steps, p.decode.refresh_steps) for p in report.points] == [(6, 2), (4, 4), (6, 2)]
    assert (report.full.lora_steps, report.full.refresh_steps) == (0, 8)
    assert {p.reuse for p in report.points} == {"segment"}
    assert (report.prompt, report.tokens, report.n_rounds, report.n_threads) == (5, 8, 2, 1)
    assert calls[-1] == (15, 15) and len(calls) == 15  # three rounds of four contexts and one batch
    for decode in (report.full, *(p.decode for p in report.points)):
        assert np.shape(decode.round_seconds) == (2, 8)
    single, refill, _ = report.points
    assert single.batch_round_seconds is None
    assert np.shape(refill.batch_round_seconds) == (2, 4)  # eight tokens in batches of k + 1 = 2
    n_bytes = step_bytes(Model(str(drop)), resolve_drop(DropOptions(rho=0.5, k=3), Model(str(drop))))
    assert single.step_bytes == n_bytes
    assert single.ceiling == 4 * n_bytes.full / (n_bytes.refresh + 3 * n_bytes.lora)
    t_full = np.median(np.mean(report.full.round_seconds, axis=1))
    t_batch = np.median(np.mean(refill.batch_round_seconds, axis=1))
    assert refill.ceiling == pytest.approx(refill_ceiling(n_bytes, 1, float(t_full), float(t_batch)))
    pairs = np.sum(report.full.round_seconds, axis=1) / np.sum(single.decode.round_seconds, axis=1)
    assert single.speed_up.median == pytest.approx(np.median(pairs))
    assert single.share_of_ceiling == pytest.approx(np.median(pairs) / single.ceiling)


def test_the_recommended_point_and_the_cache(drop: Path) -> None:
    report = bench(drop, prompt=8, tokens=400, n_rounds=1, n_threads=1)
    (point,) = report.points
    assert (point.point.rho, point.point.k) == (0.5, 3)
    assert point.decode.kv_bytes < point.decode.kv_bytes_full == report.full.kv_bytes


def test_a_model_that_only_decodes_in_full(base: Path) -> None:
    report = bench(base, **QUICK)
    assert report.points == ()
    assert report.full.tokens_per_second.median > 0


def test_what_is_decoded_is_the_full_models_own(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    def note(jobs: Sequence[Job], prompt: list[int], tokens: list[int], *rest: Any) -> None:
        seen.append((prompt, tokens))
        run_rounds(jobs, prompt, tokens, *rest)

    monkeypatch.setattr("loradrop.bench.run.run_rounds", note)
    model = Model(str(drop))
    bench(model, **{**QUICK, "prompt": 600})
    ((prompt, tokens),) = seen
    assert (len(prompt), len(tokens)) == (600, 8)
    context = Context(model, n_ctx=1024, n_batch=1024, n_threads=1, n_threads_batch=1)
    context.decode(prompt)
    for token in tokens:
        assert token == int(context.logits().argmax())
        context.decode([token])


def test_errors_come_before_any_work(base: Path, drop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*args: Any, **options: Any) -> None:
        raise AssertionError("decodes")

    monkeypatch.setattr("loradrop.bench.run.make_contexts", no_work)
    with pytest.raises(CorrectorError, match="allow_uncorrected=True"):
        bench(base, [Point(0.5, 3)], **QUICK)
    with pytest.raises(ValueError, match="the longest run of this corrector has 3"):
        bench(drop, [Point(0.9, 3)], **QUICK)
    with pytest.raises(FileNotFoundError, match="no such file"):
        bench(drop, [Point(0.5, 3)], corrector=tmp_path / "gone.gguf", **QUICK)
    with pytest.raises(FileNotFoundError):
        bench(tmp_path / "gone.gguf", **QUICK)
    with pytest.raises(ValueError, match="tokens=8: a period at k=8 has 9"):
        bench(drop, [Point(0.5, 8)], **QUICK)
    for name in ("prompt", "tokens", "n_rounds"):
        with pytest.raises(ValueError, match=f"{name}=0: give an integer"):
            bench(drop, **{**QUICK, name: 0})
    with pytest.raises(ValueError, match="n_threads=0"):
        bench(drop, **{**QUICK, "n_threads": 0})


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["bench", *arguments, "--prompt", "5", "--tokens", "8", "--threads", "1"])


def test_the_command_prints_every_point(drop: Path) -> None:
    asked = ["--rho", "0.5", "--rho", "0.2", "--k", "3", "--k", "1", "--refresh", "single", "--refresh", "refill"]
    done = run_command(str(drop), *asked, "--kv-window", "7", "--rounds", "1", "--point", "0.5:2")
    assert done.exit_code == 0, done.output
    names = [line.split()[0] for line in done.output.splitlines()[2:-1]]
    expected = [f"{rho}:{k}:{how}" for rho in (0.5, 0.2) for k in (3, 1) for how in ("single", "refill:7")]
    assert names == ["full", "0.5:2:single", *expected]
    assert "8 tokens decoded after a prompt of 5, 1 rounds, 1 threads" in done.output


def test_the_command_prints_json(drop: Path, base: Path) -> None:
    done = run_command(str(drop), "--point", "0.5:3", "--point", "0.5:1:refill:9", "--rounds", "3", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["model"], report["prompt"], report["tokens"], report["n_rounds"]) == (str(drop), 5, 8, 3)
    single, refill = report["points"]
    assert (single["rho"], single["k"], single["refresh"], single["corrector"]) == (0.5, 3, "single", None)
    assert (refill["k"], refill["refresh"], refill["kv_window"]) == (1, "refill", 9)
    for decode in (report["full"], single, refill):
        assert np.shape(decode["round_seconds"]) == (3, 8)
        assert decode["tokens_per_second"].keys() == {"median", "least", "greatest"}
    assert np.shape(refill["batch_round_seconds"]) == (3, 4)
    assert single["speed_up"]["least"] <= single["speed_up"]["median"] <= single["speed_up"]["greatest"]
    assert single["share_of_ceiling"] == pytest.approx(single["speed_up"]["median"] / single["ceiling"])

    done = run_command(str(base), "--rho", "0.5", "--json")
    assert done.exit_code == 1 and "allow_uncorrected" in done.output
    assert run_command(str(base), "--rho", "0.3", "--allow-uncorrected", "--rounds", "1", "--json").exit_code == 0
    done = run_command(str(drop), "--point", "half")
    assert done.exit_code == 2 and "RHO:K" in done.output


#
# the profile
#


def matrices(path: Path) -> dict[str, int]:
    """Return the bytes of all matrices of a file."""
    return {t.name: int(t.n_bytes) for t in GGUFReader(path).tensors if len(t.shape) > 1 and t.shape[1] > 1}


def without_layer(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("blk.") else name


def test_profile_of_each_kind_of_step(drop: Path) -> None:
    calls: list[tuple[int, int]] = []
    options = {name: value for name, value in QUICK.items() if name != "n_rounds"}
    points = [Point(0.5, 3), Point(0.5, 1, "refill")]
    steps = profile(drop, points, progress=lambda *done: calls.append(done), **options)
    assert [(step.point and step.point.k, step.kind, step.n_steps) for step in steps] == [
        (None, "full", 8),
        (3, "refresh", 2),
        (3, "lora", 6),
        (1, "refresh", 4),
        (1, "lora", 4),
    ]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    sizes = matrices(drop)
    dropped = tuple(f"blk.{i}." for i in (2, 3, 4))
    for step in steps:
        expected: dict[str, list[int]] = {}
        for name, n_bytes in sizes.items():
            if name != "token_embd.weight" and "lora_drop" not in name:
                if not (step.kind == "lora" and name.startswith(dropped)):
                    expected.setdefault(without_layer(name), []).append(n_bytes)
        of_model = {one.name: one for one in step.operations if one.n_bytes and "lora_drop" not in one.name}
        assert {name: (one.count, one.n_bytes) for name, one in of_model.items()} == {
            name: (len(each), sum(each)) for name, each in expected.items()
        }
        of_corrector = {one.name for one in step.operations if "lora_drop" in one.name}
        parts = {"a", "gate", "up"}
        assert (
            of_corrector
            == {
                "full": set(),
                "refresh": {f"lora_drop.seg.{part}.weight (anchor)" for part in parts},
                "lora": {f"lora_drop.seg.{part}.weight" for part in (*parts, "b", "down")},
            }[step.kind]
        )
        assert all(one.seconds > 0 for one in step.operations)
        assert step.seconds == pytest.approx(sum(one.seconds for one in step.operations))
        assert [one.seconds for one in step.operations] == sorted((o.seconds for o in step.operations), reverse=True)


def test_a_median_step_by_hand() -> None:
    decodes = [
        [
            ("MUL_MAT", "blk.0.ffn_up.weight", "q4_0", 10, seconds),
            ("MUL_MAT", "blk.1.ffn_up.weight", "q4_1", 12, 1.0),
            ("MUL", "blk.0.attn_norm.weight", "f32", 4, 0.5),
            ("MUL_MAT", "kq-0", "", 0, 0.25),
        ]
        for seconds in (2.0, 3.0, 30.0)
    ]
    products, norm, scores = _by_kind(decodes)
    assert dataclasses.astuple(products) == ("ffn_up.weight", "", 2, 22, 4.0)  # of several types
    assert dataclasses.astuple(norm) == ("MUL", "", 1, 0, 0.5)
    assert dataclasses.astuple(scores) == ("MUL_MAT", "", 1, 0, 0.25)


def test_operations_are_those_of_the_last_decode(base: Path) -> None:
    model = Model(str(base))
    context = Context(model, n_ctx=64, n_threads=1, profile=True)
    context.decode([1, 2, 3])
    first = context.operations()
    context.decode([4])
    assert [entry[:4] for entry in context.operations()] == [entry[:4] for entry in first]
    with pytest.raises(ValueError, match="without profile"):
        Context(model, n_ctx=64).operations()
    with pytest.raises(ValueError, match="profile and capture"):
        Context(model, n_ctx=64, profile=True, capture=[0])


def test_the_command_prints_profiles(drop: Path) -> None:
    done = run_command(str(drop), "--point", "0.5:3:refill", "--profile")
    assert done.exit_code == 0, done.output
    titles = [line.split(" ms in")[0].rsplit(":", 1)[0] for line in done.output.splitlines() if " ms in " in line]
    assert titles == ["full model", "0.5:3:refill:64, refresh step", "0.5:3:refill:64, lora step"]
    assert "lora_drop.seg.down.weight" in done.output
    done = run_command(str(drop), "--point", "0.5:3", "--profile", "--json")
    steps = json.loads(done.output)
    assert [step["kind"] for step in steps] == ["full", "refresh", "lora"]
    assert steps[0]["point"] is None and steps[1]["point"]["k"] == 3
    assert steps[2]["seconds"] == pytest.approx(sum(one["seconds"] for one in steps[2]["operations"]))
