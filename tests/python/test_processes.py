"""What becomes of a process that forks, that ends while a thread decodes, or that may use few processors."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loradrop import Llama
from loradrop._core import Context, Model, ModelError, usable_processors
from tiny import make_corrector, make_model, write_gguf

SECONDS = 60  # a process that hangs is killed then
MODEL = make_model(n_layer=8)

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="affinities of Linux")

BEGINNING = """
import os, sys, threading, time
from loradrop import Llama, DecodeError
path, how = sys.argv[1:]
llm = Llama(path, rho=0.5, k=3, n_ctx=2048, n_threads=2)
text = llm("a", temperature=0)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("processes") / "model.gguf"
    corrector = make_corrector(MODEL, "segment", segments=[(2, 5)])
    write_gguf(path, MODEL, dataclasses.replace(corrector, rho=0.5, k=3))
    yield path


def run(program: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program; its children are killed with it where it hangs."""
    command = [*before, sys.executable, "-c", BEGINNING + program, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"it hangs; so far: {out} {err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


FORK = """
if how == "decoding":
    threading.Thread(target=lambda: llm("b", max_tokens=1500), daemon=True).start()
    time.sleep(0.05)
child = os.fork()
if child == 0:
    if how == "close":
        llm.close()
    elif how == "del":
        del llm
    elif how == "with":
        with llm:
            pass
    elif how in ("use", "decoding"):
        for use in (lambda: llm("a"), lambda: llm.eval([5]), llm.reset, lambda: llm.n_tokens):
            try:
                use()
            except RuntimeError as error:
                assert "make a new one in this process" in str(error), error
            else:
                raise AssertionError("it could be used")
        try:
            llm._session.context.decode([3])
        except DecodeError as error:
            assert "make a new one in this process" in str(error), error
    elif how == "new":
        with Llama(path, rho=0.5, k=3, n_ctx=256, n_threads=2) as other:
            assert other("a", temperature=0)["choices"] == text["choices"]
    sys.exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if how != "decoding":
    assert llm("a", temperature=0)["choices"] == text["choices"]
sys.exit(status)
"""


@FORKS
@pytest.mark.parametrize("how", ["exit", "close", "del", "with", "use", "decoding", "new"])
def test_a_forked_child_ends(path: Path, how: str) -> None:
    done = run(FORK, path, how)
    assert (done.returncode, done.stdout) == (7, ""), done.stderr
    assert "Traceback" not in done.stderr


POOL = """
import multiprocessing
def work(_):
    with Llama(path, n_ctx=64, n_threads=1) as other:
        return other("a", temperature=0)["choices"][0]["text"]
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(len(set(pool.map(work, range(4)))))
"""


@FORKS
def test_workers_of_a_pool_make_their_own(path: Path) -> None:
    done = run(POOL, path, "")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


END = """
def decode():
    while True:
        if how == "load":
            Llama(path, rho=0.5, k=3, n_ctx=64).close()
        else:
            llm([5] * 1500, max_tokens=500)
for _ in range(2):
    threading.Thread(target=decode, daemon=True).start()
time.sleep(0.3)
if how == "error":
    raise SystemExit("the program's own")
sys.exit(5)
"""


@pytest.mark.parametrize(("how", "status"), [("decode", 5), ("load", 5), ("error", 1)])
def test_the_end_of_a_program_whose_threads_decode(path: Path, how: str, status: int) -> None:
    for _ in range(3):
        done = run(END, path, how)
        assert done.returncode == status, done.stderr
        assert done.stderr == ("the program's own\n" if how == "error" else "")


AT_EXIT = """
import atexit
atexit.register(lambda: print(llm("a", temperature=0)["choices"] == text["choices"]))
"""
EARLY = "import atexit, sys\natexit.register(lambda: print(sys.modules['__main__'].llm('a')['object']))\n"


def test_the_main_thread_may_decode_at_the_very_end(path: Path) -> None:
    done = run(AT_EXIT, path, "")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    command = [sys.executable, "-c", EARLY + BEGINNING, str(path), ""]  # its turn comes after the package's own
    early = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (early.returncode, early.stdout) == (0, "text_completion\n"), early.stderr


def test_a_failed_check_of_another_thread_says_what_it_was(path: Path) -> None:
    done = run("from loradrop import _core\n_core._fail_check('so it was')", path, "")
    assert done.returncode == -signal.SIGABRT and "so it was" in done.stderr


# --- processors -----------------------------------------------------------------------------------


@LINUX
def test_threads_follow_the_affinity(path: Path) -> None:
    show = "from loradrop import _core\nprint(_core.usable_processors(), llm._session.context.n_threads)"
    done = run(show, path, "", before=("taskset", "-c", str(min(os.sched_getaffinity(0)))))
    assert done.stdout == "1 1\n", done.stderr
    assert usable_processors() <= len(os.sched_getaffinity(0))


# --- one object -----------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_an_object_cannot_be_copied(path: Path, act: object) -> None:
    with Llama(path, rho=0, n_ctx=64) as llm:
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            act(llm)  # type: ignore[operator]
        assert llm("a", max_tokens=1)


def test_closing_frees_the_weights(path: Path) -> None:
    with Llama(path, rho=0, n_ctx=64) as llm:
        stream = llm("a", stream=True, max_tokens=20, temperature=0)
        next(iter(stream))
        model = llm._model
    for use in (lambda: model.n_vocab, lambda: model.tokenize(b"a", True, True), lambda: Context(model, n_ctx=8)):
        with pytest.raises(ModelError, match="closed"):
            use()
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(stream))
    llm.close()


def test_a_model_in_use_is_not_closed(path: Path) -> None:
    model = Model(str(path))
    context = Context(model, n_ctx=64)
    with pytest.raises(RuntimeError, match="close its contexts"):
        model.close()
    context.decode([3, 4])
    context.close()
    model.close()
    model.close()
