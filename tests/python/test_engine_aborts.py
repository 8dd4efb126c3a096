"""Failed checks of ggml: an exception, after which the context can be closed and the process goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from test_engine import corrector_for
from tiny import make_model, write_gguf

# in a process of its own: where the other threads are joined, it never ends
PROGRAM = """
import sys
from loradrop import Llama
from loradrop._core import Context, Corrector, DecodeAborted, DecodeError, LoradropError, Model

path, end = sys.argv[1:]
model = Model(path)
context = Context(model, n_ctx=256, n_threads=2, n_threads_batch=2, corrector=Corrector.load(path, model), rho=0.5, k=3)
for token in range(3, 12):
    context.decode([token])
context.abort_after(20, failing=True)
try:
    context.decode([12])
except LoradropError as error:
    assert "a check inside the engine failed" in str(error), error
for call in (lambda: context.decode([12]), context.clear, context.save_state):
    try:
        call()
    except DecodeError as error:
        assert "make a new one" in str(error), error
    else:
        raise AssertionError("a broken context was used")
if end == "close":
    context.close()
    context.close()
elif end == "with":
    with Llama(path, rho=0, n_ctx=256, n_threads=2) as llm:
        llm._session.context.abort_after(20, failing=True)
        try:
            llm("a")
        except LoradropError:
            pass
        else:
            raise AssertionError("the check did not fail")
del context, model
model = Model(path)
context = Context(model, n_ctx=256, n_threads=1, n_threads_batch=1)
context.decode([3, 4, 5])
print(float(context.logits().sum()))
"""


@pytest.mark.parametrize("end", ["close", "with", "neither"])
def test_a_failed_check_leaves_the_process_usable(tmp_path: Path, end: str) -> None:
    model = make_model(n_layer=8)
    path = tmp_path / "model.gguf"
    write_gguf(path, model, corrector_for(model, "segment"))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), end], check=False, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    float(run.stdout)
