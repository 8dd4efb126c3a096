"""Weights in huge pages, beside what Linux tells of the process's memory."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner

from loradrop import Llama, loading
from loradrop._core import Context, Model, quantize
from loradrop.cli import main
from tiny import make_model, write_gguf

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages as Linux has them")

PR_SET_THP_DISABLE = 41
TOKENS = list(range(100, 140))

T = TypeVar("T")


def mappings() -> list[dict[str, str]]:
    """Return what /proc/self/smaps tells of each mapping."""
    found: list[dict[str, str]] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, value = line.split(maxsplit=1)
        if name.endswith(":"):
            found[-1][name[:-1]] = value
        else:
            found.append({"range": name, "rest": value})
    return found


def advised(field: str) -> int:
    """Return the bytes of a field over all mappings for which huge pages were asked."""
    return sum(int(one[field].split()[0]) * 1024 for one in mappings() if "hg" in one["VmFlags"].split())


def need_huge_pages() -> None:
    before = advised("AnonHugePages")
    with mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pytest.skip("this kernel has no huge pages")
        memory.write(b"x" * len(memory))
        if advised("AnonHugePages") == before:
            pytest.skip("this machine gives no huge pages, see /sys/kernel/mm/transparent_hugepage/enabled")


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call it where no memory lies about that earlier tests have advised or given back."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def open_quietly(path: Path, **options: Any) -> Llama:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Llama(path, n_ctx=64, n_threads=1, **options)


def bytes_of_weights(path: Path) -> dict[str, int]:
    other = open_quietly(path, use_hugepages=True)
    before = {field: advised(field) for field in ("Size", "AnonHugePages")}
    llm = open_quietly(path, use_hugepages=True)
    change = {field: advised(field) - n for field, n in before.items()}
    assert other.huge_page_bytes == before["AnonHugePages"]
    return {**change, "reported": llm.huge_page_bytes, "weights": llm._model.n_bytes}


def test_what_is_reported_is_what_linux_tells(smollm2: Path) -> None:
    need_huge_pages()
    found = in_new_process(bytes_of_weights, smollm2)
    assert 0 < found["reported"] == found["AnonHugePages"] <= found["Size"]
    assert 0.99 * found["weights"] < found["Size"] < 1.5 * found["weights"]  # what is tied may lie there twice


@pytest.fixture
def q4_0(tmp_path: Path) -> Path:
    """A model of 9 MiB whose weights are repacked where there are kernels for it."""
    path = tmp_path / "q4_0.gguf"
    write_gguf(tmp_path / "f32.gguf", make_model(n_layer=4, n_embd=512, n_ff=2048))
    quantize(str(tmp_path / "f32.gguf"), str(path), "q4_0")
    return path


def test_repacked_weights(q4_0: Path) -> None:
    need_huge_pages()
    found = in_new_process(bytes_of_weights, q4_0)
    assert 0 < found["reported"] == found["AnonHugePages"]
    assert found["Size"] > 0.95 * found["weights"]


def bytes_after_use(path: Path) -> int:
    for _ in range(3):
        Model(str(path), use_mmap=False)  # freed, and from the second on kept by malloc
    return Model(str(path), use_mmap=False, use_hugepages=True).huge_page_bytes


def test_memory_that_was_used_before(q4_0: Path) -> None:
    need_huge_pages()
    assert in_new_process(bytes_after_use, q4_0) > 0


def advised_unasked(path: Path) -> int:
    before = advised("Size")
    with open_quietly(path, use_mmap=False):
        return advised("Size") - before


def test_nothing_is_advised_unasked(smollm2: Path) -> None:
    assert in_new_process(advised_unasked, smollm2) == 0


def logits(path: Path, **options: bool) -> list[list[float]]:
    context = Context(Model(str(path), **options), n_ctx=64, n_threads=1, n_threads_batch=1)
    context.decode(TOKENS)
    rows = [context.logits().tolist()]
    for token in TOKENS[:4]:
        context.decode([token])
        rows.append(context.logits().tolist())
    return rows


def test_the_logits_are_the_same(smollm2: Path) -> None:
    assert logits(smollm2, use_mmap=False, use_hugepages=True) == logits(smollm2)


def go_without(path: Path, enabled: Path) -> tuple[list[str], int, int]:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    messages = []
    for told in (loading.THP_ENABLED, enabled, enabled.parent / "absent"):
        loading.THP_ENABLED = told
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            llm = Llama(path, n_ctx=64, n_threads=1, use_hugepages=True)
        messages += [str(one.message) for one in caught if one.filename == __file__]
        assert all(one.category is RuntimeWarning for one in caught)
        llm("The sea", max_tokens=3)
    assert llm.stats is not None
    return messages, llm.stats.tokens, llm.huge_page_bytes


def test_a_system_that_says_no(smollm2: Path, tmp_path: Path) -> None:
    enabled = tmp_path / "enabled"
    enabled.write_text("always madvise [never]\n")
    messages, n_tokens, n_bytes = in_new_process(go_without, smollm2, enabled)
    assert len(messages) == 3
    process, system, absent = messages
    assert all(one.startswith("use_hugepages: no weights are in huge pages") and "\n" not in one for one in messages)
    assert "PR_SET_THP_DISABLE" in process or "[never]" in loading.THP_ENABLED.read_text()
    assert f"write 'madvise' to {enabled}" in system
    assert "no transparent huge pages" in absent
    assert (n_tokens, n_bytes) == (3, 0)


def warnings_of(path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Llama(path, n_ctx=64, n_threads=1, use_hugepages=True)
    return [str(one.message) for one in caught]


def test_too_few_weights_for_a_page(tmp_path: Path) -> None:
    need_huge_pages()
    path = tmp_path / "model.gguf"
    write_gguf(path, make_model())
    (message,) = in_new_process(warnings_of, path)
    assert "too few for one page" in message


def is_mapped(path: Path) -> bool:
    return any(one["rest"].endswith(str(path)) for one in mappings())


@pytest.mark.filterwarnings("ignore:use_hugepages")
def test_the_file_is_not_mapped(tmp_path: Path) -> None:
    for name, options, mapped in (
        ("default", {}, True),
        ("mmap", {"use_mmap": True}, True),
        ("read", {"use_mmap": False}, False),
        ("huge", {"use_hugepages": True}, False),
        ("both", {"use_hugepages": True, "use_mmap": False}, False),
    ):
        path = tmp_path / f"{name}.gguf"
        write_gguf(path, make_model())
        llm = Llama(path, n_ctx=64, n_threads=1, **options)  # type: ignore[arg-type]
        assert is_mapped(path) == mapped, llm.model_path


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"use_hugepages": 1}, TypeError, "use_hugepages=1: give True or False"),
        ({"use_hugepages": None}, TypeError, "use_hugepages=None"),
        ({"use_hugepages": "never"}, TypeError, "use_hugepages='never'"),
        ({"use_mmap": 0}, TypeError, "use_mmap=0: give True or False"),
        ({"use_mmap": True, "use_hugepages": True}, ValueError, "use_hugepages=True with use_mmap=True"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        Llama(tmp_path / "not-even-looked-for.gguf", **options)


def run_command(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, [*arguments, "--threads", "1", "--use-hugepages", "--json"])
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_commands(smollm2: Path) -> None:
    need_huge_pages()
    generated = run_command("generate", str(smollm2), "The sea", "--raw", "-n", "3", "--ctx", "64", "--rho", "0")
    assert generated["huge_page_bytes"] > 0
    sizes = ["--prompt", "5", "--tokens", "8", "--rounds", "1"]
    assert run_command("bench", str(smollm2), "--rho", "0", *sizes)["huge_page_bytes"] > 0
