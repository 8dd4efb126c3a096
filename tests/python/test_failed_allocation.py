"""Memory that is refused: an error, after which everything goes on as it was."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from loradrop._core import Context, ContextFullError, Corrector, DecodeError, LoradropError, Model
from test_engine import POLICIES, SCHEDULED, corrector_for
from tiny import TinyModel, make_model, write_gguf

if sys.platform == "linux":
    import resource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

N_CTX = 2048
TOKENS = np.random.default_rng(0).integers(3, 319, N_CTX).tolist()
CELLS = make_model(n_layer=8, n_embd=256, n_head=4, n_head_kv=4, n_ctx_train=N_CTX)  # 8 KiB for a cell
MASKS = make_model(n_layer=8, n_embd=32, n_head=2, n_head_kv=1, n_ctx_train=N_CTX)  # half of one


def make_context(path: Path, refresh: str) -> Context:
    model = Model(str(path))
    return Context(
        model,
        corrector=Corrector.load(str(path), model),
        rho=0.5,
        k=3,
        refresh=refresh,
        n_ctx=N_CTX,
        n_batch=2048,
        n_ubatch=2048,
        n_threads=1,
        n_threads_batch=1,
        flash_attn="off",
        type_k="f32",
        type_v="f32",
    )


def limit_memory(more: int | None) -> None:
    """Let this process take so many bytes more than it has now, or as many as it likes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft = resource.RLIM_INFINITY if more is None else pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))


def refusal(context: Context, tokens: list[int]) -> str:
    try:
        context.decode(tokens)
    except ContextFullError:
        return "taken for a full context"
    except DecodeError as error:
        return str(error)
    return "not refused"


def go_short_of_memory(path: Path, refresh: str, more: int, missing: str) -> None:
    tried, other = make_context(path, refresh), make_context(path, refresh)
    for context in (tried, other):
        context.decode(TOKENS[:100])
        for token in TOKENS[100:102]:
            context.decode([token])
        assert context.stats["lora_steps"] > 0
    limit_memory(more)
    for _ in range(2):
        assert missing in refusal(tried, TOKENS[102:1302])
        assert tried.seq_pos_max(0) == 101
    limit_memory(None)
    for tokens in (TOKENS[102:1302], *([token] for token in TOKENS[1302:1310])):
        for context in (tried, other):
            context.decode(tokens)
        assert tried.stats["last_step"] == other.stats["last_step"]
        assert np.abs(tried.logits() - other.logits()).max() <= 1e-5 * np.abs(other.logits()).max()


# in a process of its own, where no memory lies about that earlier tests have given back
# with verify, graphs of small batches give way first, and what they took is enough for the larger one
@pytest.mark.parametrize(
    ("refresh", "model", "more", "missing"),
    [(refresh, CELLS, 6 << 20, "cells of the droppable layers") for refresh in POLICIES]
    + [(refresh, MASKS, 6 << 20, "compute buffers") for refresh in SCHEDULED],
)
def test_the_context_goes_on(tmp_path: Path, refresh: str, model: TinyModel, more: int, missing: str) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, model, corrector_for(model, "segment"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(go_short_of_memory, path, refresh, more, missing).result()


def start_threads_without_memory(path: Path) -> None:
    model = Model(str(path))
    limit_memory(1 << 20)  # less than a thread's stack
    with pytest.raises(LoradropError, match="a check inside the engine failed"):
        Context(model, n_ctx=256, n_threads=2)
    limit_memory(None)
    Context(model, n_ctx=256, n_threads=2).decode(TOKENS[:9])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor has one thread")
def test_threads_that_do_not_start(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, MASKS)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(start_threads_without_memory, path).result()


def test_no_more_threads_than_processors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, MASKS)
    n_processors = os.cpu_count() or 1
    context = Context(Model(str(path)), n_ctx=256, n_threads=n_processors + 3, n_threads_batch=n_processors + 5)
    assert context.n_threads <= n_processors
    context.decode(TOKENS[:9])
