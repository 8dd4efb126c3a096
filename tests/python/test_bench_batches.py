"""Batches: what is decoded in which order, figures by hand, and what is left as it was. No figure is held to a time."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize as quantize_array

import tiny
from loradrop._core import (
    Context,
    DecodeAborted,
    Model,
    UnsupportedError,
    cpu_kernels,
    current_cpu_kernels,
    machine_floor,
    quantize,
    use_cpu_kernels,
)
from loradrop.bench import MachineFloor, batches
from loradrop.bench.batch_report import batch_times
from loradrop.bench.step_bytes import _model_sums, _products, step_bytes, step_products
from loradrop.cli import main
from loradrop.fixed_text import prompt_tokens
from loradrop.options import FULL, ContextOptions
from loradrop.processor import processor_name
from loradrop_convert.gguf_header import read_header

Q8_0 = GGMLQuantizationType.Q8_0
module = importlib.import_module("loradrop.bench.batches")  # the package's name is the function's
QUICK: dict[str, Any] = {"sizes": (2, 3), "contexts": (5, 40), "n_rounds": 4, "n_threads": 1}
FIRST, BEST = cpu_kernels()[0], cpu_kernels()[-1]
EACH = (FIRST,) if FIRST == BEST else (FIRST, BEST)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batches") / "base.gguf"
    tiny.write_gguf(path, tiny.make_model())
    return path


@pytest.fixture
def kernels_in_use() -> Iterator[str]:
    """A set that neither is the default nor is left behind by a measurement."""
    before = current_cpu_kernels()
    use_cpu_kernels(cpu_kernels()[-2] if len(cpu_kernels()) > 2 else FIRST)
    yield current_cpu_kernels()
    use_cpu_kernels(before)


class Spy:
    """A context that notes each decode: with which kernels, after how many tokens, what, and with which logits."""

    def __init__(self, context: Context, log: list[Any], failing_at: int | None, keeps: bool) -> None:
        self._context, self._log, self._failing_at, self._keeps = context, log, failing_at, keeps
        self.n_threads, self.n_ctx = context.n_threads, context.n_ctx
        self.is_closed = False

    @property
    def stats(self) -> Any:
        return self._context.stats

    def decode(self, tokens: Sequence[int], outputs: Sequence[bool] | None = None) -> None:
        if len(self._log) == self._failing_at:
            self._context.abort_after(0)
        self._log.append((current_cpu_kernels(), self._context.seq_pos_max(0) + 1, list(tokens), outputs))
        self._context.decode(tokens, outputs=outputs)
        if outputs is not None:
            for i in range(len(tokens)):
                assert np.isfinite(self._context.logits(i)).all()

    def seq_rm(self, seq_id: int, p0: int) -> bool:
        return not self._keeps and self._context.seq_rm(seq_id, p0)

    def close(self) -> None:
        self.is_closed = True
        self._context.close()


def spy_on(
    monkeypatch: pytest.MonkeyPatch, *, failing_at: int | None = None, keeps: bool = False
) -> tuple[list[Any], list[Spy]]:
    """Let all contexts note what they decode; return the notes, and the contexts once they are made."""
    log: list[Any] = []
    spies: list[Spy] = []
    make = module.make_contexts

    def make_spies(*args: Any, **options: Any) -> list[Spy]:
        made = [Spy(context, log, failing_at, keeps) for context in make(*args, **options)]
        spies.extend(made)
        return made

    monkeypatch.setattr(module, "make_contexts", make_spies)
    return log, spies


def no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a second and is tested by itself."""
    monkeypatch.setattr(module, "measure_floor", lambda model, n_threads: MachineFloor(2e9, None, 1000, 2000))


#
# what is decoded
#


def test_batches_meet_the_same_context_in_rotating_order(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_floor(monkeypatch)
    log, spies = spy_on(monkeypatch)
    batches(base, **QUICK)
    assert [spy.is_closed for spy in spies] == [True, True]
    each = len(log) // 2
    for context, decodes in zip(QUICK["contexts"], (log[:each], log[each:]), strict=True):
        _, n_before, prompt, outputs = decodes[0]
        assert (n_before, len(prompt), outputs) == (0, context, None)
        expected = []
        for i in range(5):
            turn = [(1, 2, 3)[(i + j) % 3] for j in range(3)]
            names = [EACH[(i + j) % len(EACH)] for j in range(len(EACH))]
            expected += [(name, size) for size in turn for name in (names[0], *names)]
        assert [(name, len(tokens)) for name, _, tokens, _ in decodes[1:]] == expected
        most = prompt_tokens(Model(str(base)), context + 3)
        assert prompt == most[:context]
        for _, n_before, tokens, outputs in decodes[1:]:
            assert n_before == context
            assert tokens == most[context : context + len(tokens)]
            assert outputs == [True] * len(tokens)


def test_seconds_of_the_rounds(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_floor(monkeypatch)
    log, _ = spy_on(monkeypatch)

    class Clock:
        """Each decode takes as many seconds as there were decodes before it."""

        def __init__(self) -> None:
            self.now, self.counted = 0.0, 0

        def perf_counter(self) -> float:
            self.now += len(log) * (len(log) - self.counted)  # the call after a decode
            self.counted = len(log)
            return self.now

    monkeypatch.setattr(module, "time", Clock())
    report = batches(base, **{**QUICK, "contexts": (5,), "n_rounds": 3})
    in_round = 3 * (1 + len(EACH))
    (context,) = report.contexts
    for one in context.times:
        for i, seconds in enumerate(one.round_seconds, start=1):
            at = round(seconds) - 1  # of this decode in the log
            assert log[at][0] == one.kernels and len(log[at][2]) == one.size
            assert (at - 1) // in_round == i  # a round that did not count came before
            assert (at - 1) % (1 + len(EACH)) > 0  # the first of a size is not timed
        assert len(one.round_seconds) == 3


#
# the report
#


def test_report(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    report = batches(base, **QUICK, progress=lambda *done: calls.append(done))
    assert (report.model, report.n_rounds, report.n_threads) == (str(base), 4, 1)
    assert report.description == Model(str(base)).description and report.processor
    assert (report.sizes, report.kernels) == ((1, 2, 3), EACH)
    assert [one.context for one in report.contexts] == [5, 40]
    assert calls == [(i, 10) for i in range(1, 11)]
    for context in report.contexts:
        assert [(one.size, one.kernels) for one in context.times] == [(s, name) for s in (1, 2, 3) for name in EACH]
        by_key = {(one.size, one.kernels): one for one in context.times}
        for one in context.times:
            seconds = np.array(one.round_seconds)
            assert seconds.shape == (4,) and (seconds > 0).all()
            assert one.ms.median == pytest.approx(1e3 * np.median(seconds))
            assert (one.ms.least, one.ms.greatest) == pytest.approx((1e3 * seconds.min(), 1e3 * seconds.max()))
            for spread, other in ((one.ratio, by_key[1, one.kernels]), (one.beside_first, by_key[one.size, FIRST])):
                ratios = seconds / np.array(other.round_seconds)
                assert spread.median == pytest.approx(np.median(ratios))
                assert (spread.least, spread.greatest) == pytest.approx((ratios.min(), ratios.max()))
                if other is one:
                    assert (spread.median, spread.least, spread.greatest) == (1, 1, 1)
    # one layer's K and V of a token: two heads of eight values each, F16
    model = tiny.make_model()
    row = model.n_layer * model.n_head_kv * (model.n_embd // model.n_head) * 2 * 2
    assert [one.kv_bytes for one in report.contexts] == [5 * row, 40 * row]
    floor = report.floor
    assert 0 < floor.bytes_per_second < np.inf
    assert floor.products_per_second is None or 0 < floor.products_per_second < np.inf
    assert floor.step_bytes == step_bytes(Model(str(base)), FULL).full
    assert floor.step_products == 0  # of F32 weights


def test_figures_by_hand() -> None:
    seconds = {
        (1, "a"): [1.0, 2.0, 4.0],
        (1, "b"): [2.0, 2.0, 2.0],
        (2, "a"): [3.0, 3.0, 3.0],
        (2, "b"): [1.0, 6.0, 3.0],
    }
    one_a, one_b, two_a, two_b = batch_times(seconds, (1, 2), ("a", "b"))
    assert (two_a.ratio.least, two_a.ratio.median, two_a.ratio.greatest) == (0.75, 1.5, 3.0)
    assert (two_b.ratio.least, two_b.ratio.median, two_b.ratio.greatest) == (0.5, 1.5, 3.0)
    assert (two_b.beside_first.least, two_b.beside_first.median, two_b.beside_first.greatest) == (1 / 3, 1.0, 2.0)
    assert (one_b.beside_first.least, one_b.beside_first.median, one_b.beside_first.greatest) == (0.5, 1.0, 2.0)
    assert (one_a.ms.median, two_b.ms.greatest) == (2000.0, 6000.0)
    assert [(one.size, one.kernels) for one in (one_a, one_b, two_a, two_b)] == [*seconds]


def test_sizes_lengths_and_kernels_are_measured_once_each(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_floor(monkeypatch)
    report = batches(base, (4, 2, 4), (7, 5, 7), [BEST, FIRST, BEST], n_rounds=1, n_threads=1)
    assert report.sizes == (1, 2, 4)
    assert [one.context for one in report.contexts] == [7, 5]
    assert report.kernels == tuple(dict.fromkeys([BEST, FIRST]))
    assert batches(base, (), (5,), [FIRST], n_rounds=1, n_threads=1).sizes == (1,)


#
# the floor
#


@pytest.mark.parametrize("name", cpu_kernels())
def test_floor_of_each_set_of_kernels(name: str, kernels_in_use: str) -> None:
    use_cpu_kernels(name)
    n_bytes, products = machine_floor(1)
    assert 0 < n_bytes < np.inf
    assert (products is None) == (len(cpu_kernels()) == 1)  # sets other than llama.cpp's are those with figures
    assert products is None or 0 < products < np.inf
    assert current_cpu_kernels() == name


def test_floor_takes_the_better_figures() -> None:
    one, other = MachineFloor(1e9, 5e9, 2000, 1000), MachineFloor(4e9, 2e9, 2000, 1000)
    best = one.better(other)
    assert best == other.better(one) == MachineFloor(4e9, 5e9, 2000, 1000)
    assert MachineFloor(1e9, None, 1, 1).better(MachineFloor(2e9, None, 1, 1)) == MachineFloor(2e9, None, 1, 1)
    assert best.read_ms(2000) == pytest.approx(5e-4)
    assert best.products_ms(8) == pytest.approx(1.6e-3)
    assert MachineFloor(1e9, None, 1, 1).products_ms(8) is None


def test_floor_is_measured_before_each_prompt_with_the_kernels_in_use(
    base: Path, monkeypatch: pytest.MonkeyPatch, kernels_in_use: str
) -> None:
    found = iter([(1e9, 7.0), (3e9, 5.0)])
    used: list[tuple[str, int]] = []

    def measure(model: Model, n_threads: int) -> MachineFloor:
        used.append((current_cpu_kernels(), n_threads))
        return MachineFloor(*next(found), 1000, 2000)

    monkeypatch.setattr(module, "measure_floor", measure)
    report = batches(base, **QUICK)
    assert report.floor == MachineFloor(3e9, 7.0, 1000, 2000)
    assert used == [(kernels_in_use, 1)] * 2


def test_floor_checks_its_threads() -> None:
    for n_threads in (0, -3):
        with pytest.raises(ValueError, match=f"n_threads={n_threads}: give an integer of at least 1"):
            machine_floor(n_threads)


@pytest.mark.parametrize("tied", [True, False])
def test_products_of_quantised_weights(tmp_path: Path, tied: bool) -> None:
    source, path = tmp_path / "f32.gguf", tmp_path / "q8_0.gguf"
    tiny.write_gguf(source, tiny.make_model(tied=tied))
    quantize(str(source), str(path), "q8_0", n_threads=1)
    tensors = [t for t in GGUFReader(path).tensors if t.tensor_type == Q8_0]
    expected = sum(int(np.prod(t.shape)) for t in tensors if tied or t.name != "token_embd.weight")
    assert expected > 0
    assert step_products(Model(str(path))) == expected


def test_products_of_the_experts_that_a_token_uses(tmp_path: Path) -> None:
    path = tmp_path / "experts.gguf"
    writer = GGUFWriter(path, "moe")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    for name, shape in {"blk.0.ffn_up_exps.weight": (8, 4, 32), "blk.0.attn_q.weight": (5, 32)}.items():
        writer.add_tensor(name, quantize_array(np.ones(shape, np.float32), Q8_0), raw_dtype=Q8_0)
    writer.add_tensor("blk.0.attn_k.weight", np.zeros((5, 32), np.float16))
    writer.add_tensor("output.weight", quantize_array(np.ones((7, 32), np.float32), Q8_0), raw_dtype=Q8_0)
    tiny._finish(writer)
    layers, rest = _model_sums(read_header(path), _products)
    assert (layers, rest) == ([32 * (2 * 4 + 5)], 32 * 7)


#
# what is left as it was, and what is refused
#


def test_kernels_are_those_of_before(base: Path, monkeypatch: pytest.MonkeyPatch, kernels_in_use: str) -> None:
    no_floor(monkeypatch)
    batches(base, **QUICK)
    assert current_cpu_kernels() == kernels_in_use


@pytest.mark.parametrize("failing_at", [0, 1, 2, 9])
def test_kernels_are_those_of_before_when_a_decode_fails(
    base: Path, monkeypatch: pytest.MonkeyPatch, kernels_in_use: str, failing_at: int
) -> None:
    no_floor(monkeypatch)
    log, spies = spy_on(monkeypatch, failing_at=failing_at)
    with pytest.raises(DecodeAborted):
        batches(base, **QUICK)
    assert len(log) == failing_at + 1
    assert current_cpu_kernels() == kernels_in_use
    assert [spy.is_closed for spy in spies] == [True]


def test_kernels_are_those_of_before_when_the_floor_cannot_be_measured(
    base: Path, monkeypatch: pytest.MonkeyPatch, kernels_in_use: str
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "measure_floor", fail)
    _, spies = spy_on(monkeypatch)
    with pytest.raises(MemoryError):
        batches(base, **QUICK)
    assert current_cpu_kernels() == kernels_in_use
    assert [spy.is_closed for spy in spies] == [True]


def test_memory_that_gives_nothing_back(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_floor(monkeypatch)
    log, _ = spy_on(monkeypatch, keeps=True)
    with pytest.raises(UnsupportedError, match="does not let tokens be taken back"):
        batches(base, **QUICK)
    assert len(log) == 2  # the prompt and one batch


def test_a_context_beyond_the_models_positions(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_floor(monkeypatch)
    log, spies = spy_on(monkeypatch)
    make = module.make_contexts

    def make_short(*args: Any, **options: Any) -> list[Spy]:
        (spy,) = make(*args, **options)
        spy.n_ctx = 42  # as of a model with a table of so many positions
        return [spy]

    monkeypatch.setattr(module, "make_contexts", make_short)
    with pytest.raises(ValueError, match=r"contexts=40: with batches of 3 tokens too long .* positions for 42"):
        batches(base, **{**QUICK, "contexts": (40,)})
    assert not log and spies[0].is_closed
    batches(base, **{**QUICK, "contexts": (39,)})


def test_errors_come_before_any_work(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_work(*args: Any, **options: Any) -> None:
        raise AssertionError("decodes")

    monkeypatch.setattr(module, "make_contexts", no_work)
    for argument, value, wrong in (
        ("sizes", (1, 0), "sizes=0: give an integer from 1 to 256"),
        ("sizes", (257,), "sizes=257: give an integer from 1 to 256"),
        ("contexts", (0,), "contexts=0: give an integer of at least 1"),
        ("contexts", (), "contexts is empty"),
        ("n_rounds", 0, "n_rounds=0: give an integer"),
        ("n_threads", 0, "n_threads=0: give an integer"),
        ("kernels", ("avx3",), f"kernels='avx3': give one of '{FIRST}'"),
        ("kernels", (), f"kernels is empty: give some of '{FIRST}'"),
        ("flash_attn", "perhaps", "flash_attn='perhaps'"),
        ("type_k", "q3", "type_k='q3'"),
        ("type_v", "q3", "type_v='q3'"),
    ):
        with pytest.raises(ValueError, match=wrong):
            batches(base, **{**QUICK, argument: value})
    with pytest.raises(TypeError, match=r"sizes=1\.5: give an integer"):
        batches(base, **{**QUICK, "sizes": (1.5,)})
    with pytest.raises(FileNotFoundError):
        batches(tmp_path / "gone.gguf", **QUICK)


def test_context_options_arrive(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_floor(monkeypatch)
    seen: list[ContextOptions] = []
    make = module.make_contexts

    def note(model: Model, points: Any, options: ContextOptions, **others: Any) -> Any:
        seen.append(options)
        return make(model, points, options, **others)

    monkeypatch.setattr(module, "make_contexts", note)
    small = {**QUICK, "contexts": (5,), "n_rounds": 1}
    full, large = batches(base, **small), batches(base, **small, flash_attn=True, type_k="f32", type_v="bf16")
    assert [(o.n_ctx, o.flash_attn, o.type_k, o.type_v) for o in seen] == [
        (8, "auto", "f16", "f16"),
        (8, True, "f32", "bf16"),
    ]
    assert large.contexts[0].kv_bytes == full.contexts[0].kv_bytes * 3 // 2


#
# the command
#


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["bench", *arguments])


def test_the_command_prints_tables(base: Path) -> None:
    done = run_command(str(base), "--batches", "--context", "5", "--context", "40", "--rounds", "1", "--threads", "1")
    assert done.exit_code == 0, done.output
    first, floor, *rest = done.output.splitlines()
    assert ": 1 rounds, 1 threads, " in first and first.endswith(processor_name())
    assert all(name in first for name in EACH)
    assert floor.startswith("floor: ") and "GB/s" in floor
    assert [line.split(":")[0] for line in rest if line.startswith("after")] == ["after 5 tokens", "after 40 tokens"]
    rows = [line.split()[0] for line in rest if line[0].isdigit()]
    assert rows == ["1", "2", "3", "4", "6", "8"] * 2
    one_token = next(line for line in rest if line.startswith("1 "))
    assert one_token.count("1.00 (1.00 to 1.00)") == len(EACH)
    assert all(len(line) <= 120 for line in (floor, *rest))


def test_the_command_prints_json(base: Path) -> None:
    options = ["--context", "5", "--rounds", "2", "--threads", "1", "--type-k", "bf16", "--flash-attn", "on", "--json"]
    done = run_command(str(base), "--batches", *options)
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["model"], report["n_rounds"], report["n_threads"]) == (str(base), 2, 1)
    assert (report["sizes"], report["kernels"]) == ([1, 2, 3, 4, 6, 8], list(EACH))
    floor = report["floor"]
    assert floor["read_ms"] == pytest.approx(1e3 * floor["step_bytes"] / floor["bytes_per_second"])
    (context,) = report["contexts"]
    assert context["context"] == 5
    n_bytes = floor["step_bytes"] + context["kv_bytes"]
    assert context["floor_ms"] == pytest.approx(1e3 * n_bytes / floor["bytes_per_second"])
    assert len(context["times"]) == 6 * len(EACH)
    for one in context["times"]:
        assert np.shape(one["round_seconds"]) == (2,)
        for spread in ("ms", "ratio", "beside_first"):
            assert one[spread].keys() == {"median", "least", "greatest"}


def test_the_commands_defaults(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    asked: list[dict[str, Any]] = []

    def note(*_: Any, **options: Any) -> None:
        asked.append(options)
        raise Stop

    for name in ("batches", "bench"):
        monkeypatch.setattr(f"loradrop.cli.bench.{name}", note)
    for arguments in (["--batches"], [], ["--batches", "--rounds", "0"], ["--rounds", "0"]):
        assert isinstance(run_command(str(base), *arguments).exception, Stop)
    assert [options["n_rounds"] for options in asked] == [15, 5, 0, 0]
    assert asked[0]["contexts"] == (32, 2000)
    options = ["--threads", "3", "--flash-attn", "on", "--type-k", "q8_0", "--type-v", "f32", "--context", "7"]
    options.append("--use-hugepages")
    assert isinstance(run_command(str(base), "--batches", *options).exception, Stop)
    expected = {"n_threads": 3, "flash_attn": "on", "type_k": "q8_0", "type_v": "f32", "contexts": (7,), "n_rounds": 15}
    expected["use_hugepages"] = True
    assert {name: value for name, value in asked[-1].items() if name != "progress"} == expected


@pytest.mark.parametrize(
    "option",
    [
        ["--point", "0.5:3"],
        ["--rho", "0.5"],
        ["--k", "3"],
        ["--refresh", "single"],
        ["--kv-window", "64"],
        ["--corrector", "corrector.gguf"],
        ["--allow-uncorrected"],
        ["--prompt", "128"],
        ["--tokens", "64"],
        ["--n-gpu-layers", "0"],
        ["--profile"],
    ],
    ids=lambda option: option[0],
)
def test_options_that_do_not_go_with_batches(base: Path, option: list[str]) -> None:
    done = run_command(str(base), "--batches", *option)
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].endswith(f"leave out {option[0]}")


def test_context_goes_with_batches_alone(base: Path) -> None:
    for others in ([], ["--profile"]):
        done = run_command(str(base), "--context", "5", *others)
        assert done.exit_code == 2 and "give --batches too" in done.output
