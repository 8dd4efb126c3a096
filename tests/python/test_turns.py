"""Requests of several threads on one `Llama`: they come one after the other, and none is lost without a word."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from loradrop import Llama, StreamLost, turns
from loradrop.turns import Turns
from tiny import make_model, write_gguf

PROMPT = "a prompt "
SOON = 5.0  # seconds


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path = tmp_path_factory.mktemp("turns") / "model.gguf"
    write_gguf(path, make_model())
    with Llama(path, n_ctx=512, n_threads=1) as llm:
        yield llm


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 0.2)


def options(llm: Llama, n: int, **others: Any) -> dict[str, Any]:
    no_end = {llm.token_eos(): -1000.0}
    return {"max_tokens": n, "temperature": 0, "logit_bias": no_end, **others}


def text_of(chunks: Any) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def whole(llm: Llama, n: int) -> str:
    answer: Any = llm(PROMPT, **options(llm, n))
    return str(answer["choices"][0]["text"])


def in_thread(work: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(SOON)


def test_streams_of_many_threads_are_whole(llm: Llama) -> None:
    expected = whole(llm, 30)

    def stream(i: int) -> str:
        if i % 3 == 0:
            return whole(llm, 30)
        chunks = []
        for chunk in llm(PROMPT, stream=True, **options(llm, 30)):
            chunks.append(chunk)
            time.sleep(0.001 * (i % 2))
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
        return text_of(chunks)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(stream, range(12))) == [expected] * 12


def test_a_request_waits_for_the_end_of_a_stream(llm: Llama) -> None:
    stream = iter(llm(PROMPT, stream=True, **options(llm, 20)))
    chunks = list(islice(stream, 3))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(whole, llm, 5)
        time.sleep(0.3)
        assert not other.done()
        chunks += stream
        other.result(SOON)
    assert len(text_of(chunks)) >= 20 and chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("how", ["closed", "garbage"])
def test_a_stream_that_is_given_up_ends(llm: Llama, how: str) -> None:
    stream: Any = llm(PROMPT, stream=True, **options(llm, 20))
    next(stream)
    if how == "closed":
        stream.close()
    del stream
    assert in_thread(lambda: whole(llm, 3))


def test_a_stream_that_nobody_reads_gives_way(llm: Llama, impatient: None) -> None:
    stream = llm(PROMPT, stream=True, **options(llm, 20))
    next(iter(stream))
    assert in_thread(lambda: whole(llm, 3))
    with pytest.raises(StreamLost, match="newer request"):
        next(iter(stream))
    assert whole(llm, 3)


def test_a_stream_that_is_read_slowly_stays(llm: Llama, impatient: None) -> None:
    stream = iter(llm(PROMPT, stream=True, **options(llm, 6)))
    with ThreadPoolExecutor(1) as pool:
        other = None
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            other = other or pool.submit(whole, llm, 3)
            time.sleep(0.1)
        assert other is not None and other.result(SOON)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_the_main_thread_does_not_wait_for_itself(llm: Llama) -> None:
    stream = llm(PROMPT, stream=True, **options(llm, 20))
    next(iter(stream))
    began = time.monotonic()
    assert whole(llm, 3)
    assert time.monotonic() - began < turns.PATIENCE
    with pytest.raises(StreamLost):
        next(iter(stream))


@pytest.mark.parametrize("act", ["eval", "reset", "generate"])
def test_other_uses_wait_as_well(llm: Llama, impatient: None, act: str) -> None:
    stream = llm(PROMPT, stream=True, **options(llm, 20))
    next(iter(stream))
    acts: dict[str, Any] = {
        "eval": lambda: llm.eval([1, 2]),
        "reset": llm.reset,
        "generate": lambda: next(llm.generate([1, 2])),
    }
    in_thread(acts[act])
    with pytest.raises(StreamLost):
        next(iter(stream))


def test_requests_come_in_the_order_in_which_they_asked() -> None:
    turns_, order = Turns(), []
    first = turns_.take()

    def ask(i: int) -> None:
        with turns_.turn():
            order.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    turns_.end(first)
    for thread in threads:
        thread.join(SOON)
    assert order == list(range(8))


def test_closing_waits_and_tells_those_who_wait(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_model())
    llm = Llama(tmp_path / "model.gguf", n_ctx=512, n_threads=1)
    stream = llm(PROMPT, stream=True, **options(llm, 50))
    next(iter(stream))
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(whole, llm, 3)
        time.sleep(0.1)
        llm.close()  # of the main thread, as the stream
        if not waits.exception(SOON):
            assert waits.result()  # it came before
    with pytest.raises(RuntimeError, match="is closed"):
        next(iter(stream))
    with pytest.raises(RuntimeError, match="is closed"):
        llm(PROMPT)
