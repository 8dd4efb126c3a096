"""Completions: their shape, their text and tokens, their limits, and what may go wrong."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from loradrop import ContextFullError, CorrectorError, Llama, ModelError, StreamLost
from loradrop._core import Context, Corrector, Model

PROMPT = "the cat is on"
K = 3
N_CTX = 256
NO_END = {tiny.EOS: -1000.0}  # keeps a random text from ending early


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a corrector, the same without, and the corrector as a sidecar."""
    folder = tmp_path_factory.mktemp("completion")
    model = tiny.make_model()
    corrector = tiny.make_corrector(model, "anchor-delta", layers=[3, 2, 4])
    corrector = dataclasses.replace(corrector, rho=0.5, k=K)
    paths = {name: folder / f"{name}.gguf" for name in ("drop", "base", "sidecar", "unpointed")}
    tiny.write_gguf(paths["drop"], model, corrector, chat_template=True)
    tiny.write_gguf(paths["base"], model)
    tiny.write_sidecar(paths["sidecar"], model, corrector)
    tiny.write_sidecar(paths["unpointed"], model, dataclasses.replace(corrector, rho=None, k=None))
    return paths


@pytest.fixture
def llm(files: dict[str, Path]) -> Iterator[Llama]:
    """A model that drops half of its layers."""
    with Llama(files["drop"], n_ctx=N_CTX, n_threads=1) as llm:
        yield llm


def text_of(completion: Any) -> str:
    return str(completion["choices"][0]["text"])


def reason_of(completion: Any) -> str | None:
    return completion["choices"][0]["finish_reason"]  # type: ignore[no-any-return]


def greedy(path: Path, n: int, rho: float, k: int, n_ctx: int = N_CTX) -> tuple[list[int], Any]:
    """Return n tokens, most probable ones, and their logits [n, n_vocab], from the bare core."""
    model = Model(str(path))
    corrector = Corrector.load(str(path), model)
    context = Context(model, n_ctx=n_ctx, n_threads=1, corrector=corrector, rho=rho, k=k)
    context.decode(model.tokenize(PROMPT.encode(), True, True))
    tokens, logits = [], []
    for _ in range(n):
        logits.append(context.logits())
        tokens.append(int(logits[-1].argmax()))
        context.decode(tokens[-1:])
    return tokens, np.array(logits)


# --- the text -----------------------------------------------------------------------------------


def test_shape(llm: Llama) -> None:
    completion: Any = llm(PROMPT, logit_bias=NO_END)
    assert completion.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert completion["id"].startswith("cmpl-")
    assert completion["object"] == "text_completion"
    assert completion["model"] == llm.model_path
    [choice] = completion["choices"]
    assert choice.keys() == {"text", "index", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    n_prompt = len(llm.tokenize(PROMPT.encode()))
    assert completion["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 16,
        "total_tokens": n_prompt + 16,
    }
    json.dumps(completion)


@pytest.mark.parametrize(("rho", "k"), [(0.0, 0), (0.5, 3), (0.34, 1)])
@pytest.mark.parametrize("n_batch", [512, 7, 3, 2, 1])
def test_tokens_are_those_of_the_bare_core(files: dict[str, Path], rho: float, k: int, n_batch: int) -> None:
    expected, _ = greedy(files["drop"], 20, rho, k)
    with Llama(files["drop"], rho=rho, k=k, n_batch=n_batch, n_ctx=N_CTX, n_threads=1) as llm:
        tokens = llm.tokenize(PROMPT.encode(), special=True)
        assert list(islice(llm.generate(tokens, temp=0), 20)) == expected
        completion = llm(PROMPT, max_tokens=20, temperature=0)
        text = b"".join(llm._model.token_to_piece(token, False) for token in expected)
        assert text_of(completion) == text.decode("utf-8", "replace")
        assert llm.input_ids == tokens + expected[:-1]


def test_prompt_as_text_bytes_and_tokens(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT.encode())
    texts = {
        text_of(llm(prompt, temperature=0))
        for prompt in (PROMPT, PROMPT.encode(), tokens, tuple(tokens), np.array(tokens))
    }
    assert len(texts) == 1


def test_stream_is_the_completion_in_chunks(llm: Llama) -> None:
    whole = llm(PROMPT, max_tokens=40, seed=3, logit_bias=NO_END)
    chunks: list[Any] = list(llm(PROMPT, max_tokens=40, seed=3, logit_bias=NO_END, stream=True))
    assert "".join(map(text_of, chunks)) == text_of(whole)
    assert len(chunks) > 10
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert [reason_of(chunk) for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


@pytest.mark.parametrize("start", [0, 3, 11, 20])
def test_text_ends_before_a_stop_string(llm: Llama, start: int) -> None:
    text = text_of(llm(PROMPT, max_tokens=40, temperature=0))
    stop = text[start : start + 5]
    for stops in (stop, [stop], ["never there", stop]):
        completion: Any = llm(PROMPT, max_tokens=40, temperature=0, stop=stops, logprobs=0)
        assert text_of(completion) == text[: text.find(stop)]
        assert reason_of(completion) == "stop"
        offsets = completion["choices"][0]["logprobs"]["text_offset"]
        assert all(offset < len(PROMPT) + text.find(stop) for offset in offsets)
        chunks = llm(PROMPT, max_tokens=40, temperature=0, stop=stops, stream=True)
        assert "".join(map(text_of, chunks)) == text[: text.find(stop)]


@pytest.mark.parametrize("stop", ["<s>", "<unk>", "s>"])
def test_text_ends_before_a_special_token_that_is_a_stop_string(llm: Llama, stop: str) -> None:
    bias = {**NO_END, tiny.BOS: 2.5, tiny.UNK: 2.5}
    options: Any = {"max_tokens": 60, "seed": 5, "logit_bias": bias, "logprobs": 0}
    whole = text_of(llm(PROMPT, **options))
    tokens = llm.input_ids[len(llm.tokenize(PROMPT.encode())) :]
    special = {tiny.BOS: "<s>", tiny.UNK: "<unk>"}
    n = next(i for i, token in enumerate(tokens) if stop in special.get(token, ""))
    before = b"".join(llm._model.token_to_piece(token, False) for token in tokens[:n]).decode("utf-8", "replace")
    assert 0 < len(before) < len(whole)
    completion: Any = llm(PROMPT, stop=["never there", stop], **options)
    assert (text_of(completion), reason_of(completion)) == (before, "stop")
    assert completion["usage"]["completion_tokens"] == n + 1
    assert len(completion["choices"][0]["logprobs"]["tokens"]) == n
    chunks = list(llm(PROMPT, stop=stop, stream=True, **options))
    assert "".join(map(text_of, chunks)) == before
    assert reason_of(chunks[-1]) == "stop"


def test_text_held_back_for_a_stop_string_shows_at_the_end(llm: Llama) -> None:
    text = text_of(llm(PROMPT, max_tokens=20, temperature=0))
    stop = text[-2:] + "never"
    completion: Any = llm(PROMPT, max_tokens=20, temperature=0, stop=stop, logprobs=0)
    assert (text_of(completion), reason_of(completion)) == (text, "length")
    assert len(completion["choices"][0]["logprobs"]["tokens"]) == 20
    chunks = llm(PROMPT, max_tokens=20, temperature=0, stop=stop, stream=True)
    assert "".join(map(text_of, chunks)) == text


def test_the_models_own_end(llm: Llama) -> None:
    completion: Any = llm(PROMPT, logit_bias={llm.token_eos(): 1000.0})
    assert (text_of(completion), reason_of(completion)) == ("", "stop")
    assert completion["usage"]["completion_tokens"] == 0
    assert llm.stats is not None and llm.stats.tokens == 0
    chunks = list(llm(PROMPT, logit_bias={str(llm.token_eos()): 1000.0}, stream=True))
    assert [(text_of(chunk), reason_of(chunk)) for chunk in chunks] == [("", "stop")]


@pytest.mark.parametrize("max_tokens", [None, 0, -1, 10_000])
def test_text_up_to_the_end_of_the_context(files: dict[str, Path], max_tokens: int | None) -> None:
    with Llama(files["drop"], n_ctx=50, n_threads=1) as llm:
        completion: Any = llm(PROMPT, max_tokens=max_tokens, logit_bias=NO_END)
        assert reason_of(completion) == "length"
        assert completion["usage"]["total_tokens"] == 50 == llm.n_ctx()


def test_seeds(files: dict[str, Path], llm: Llama) -> None:
    assert text_of(llm(PROMPT, seed=1)) == text_of(llm(PROMPT, seed=1))
    assert text_of(llm(PROMPT, seed=1)) != text_of(llm(PROMPT, seed=2))
    assert text_of(llm(PROMPT, seed=-1)) != text_of(llm(PROMPT))
    assert text_of(llm(PROMPT, seed=2**32 - 2)) == text_of(llm(PROMPT, seed=2**32 - 2))
    with pytest.raises(ValueError, match="seed=4294967295"):  # llama.cpp's own sign of a random one
        llm(PROMPT, seed=2**32 - 1)
    runs = []
    for _ in range(2):
        with Llama(files["drop"], n_ctx=N_CTX, n_threads=1, seed=7) as seeded:
            runs.append([text_of(seeded(PROMPT)) for _ in range(2)])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]


def test_echo(llm: Llama) -> None:
    text = text_of(llm(PROMPT, temperature=0))
    assert text_of(llm(PROMPT, temperature=0, echo=True)) == PROMPT + text
    chunks = llm(PROMPT, temperature=0, echo=True, stream=True)
    assert "".join(map(text_of, chunks)) == PROMPT + text
    with pytest.raises(ValueError, match="logprobs=1 with echo=True"):
        llm(PROMPT, echo=True, logprobs=1)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(files: dict[str, Path], llm: Llama, stream: bool) -> None:
    n = 24
    tokens, logits = greedy(files["drop"], n, 0.5, K)
    logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    answer: Any = llm(PROMPT, max_tokens=n, temperature=0, logprobs=3, stream=stream)
    parts = [part["choices"][0]["logprobs"] for part in (answer if stream else [answer])]
    shape: Any = {key: [x for part in parts for x in part[key]] for key in parts[0]}
    assert shape.keys() == {"tokens", "text_offset", "token_logprobs", "top_logprobs"}
    assert {len(entries) for entries in shape.values()} == {n}
    rows = np.arange(n)
    np.testing.assert_allclose(shape["token_logprobs"], logprobs[rows, tokens], atol=1e-4)
    assert list(map(piece_of, shape["tokens"])) == [llm._model.token_to_piece(token, True) for token in tokens]
    for i, top in enumerate(shape["top_logprobs"]):
        np.testing.assert_allclose(list(top.values()), np.sort(logprobs[i])[::-1][:3], atol=1e-4)
        assert next(iter(top)) == shape["tokens"][i]  # greedy takes the most probable one
    assert shape["text_offset"][0] == len(PROMPT)
    assert sorted(shape["text_offset"]) == shape["text_offset"]


def piece_of(key: str) -> bytes:
    """Return the bytes of a token that goes by its text or, in OpenAI's form, by its bytes."""
    return bytes.fromhex(key.removeprefix("bytes:").replace("\\x", "")) if key.startswith("bytes:") else key.encode()


def test_every_candidate_has_a_key_of_its_own(files: dict[str, Path], llm: Llama) -> None:
    n_vocab = llm.n_vocab()
    [_], [logits] = greedy(files["drop"], 1, 0.5, K)
    logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    # twice the same text: a byte and a letter
    byte, letter = tiny.vocabulary().index("<0x61>"), tiny.vocabulary().index("a")
    for chosen in (int(logits.argmax()), 3 + 0xE2, byte, letter):
        answer: Any = llm(PROMPT, max_tokens=1, temperature=0, logprobs=n_vocab, logit_bias={chosen: 1000.0})
        shape = answer["choices"][0]["logprobs"]
        [top] = shape["top_logprobs"]
        assert len(top) == n_vocab
        pieces: Any = [llm._model.token_to_piece(token, True) for token in np.argsort(-logprobs, kind="stable")]
        assert list(map(piece_of, top)) == pieces
        np.testing.assert_allclose(list(top.values()), np.sort(logprobs)[::-1], atol=1e-4)
        assert top[shape["tokens"][0]] == shape["token_logprobs"][0] == pytest.approx(logprobs[chosen], abs=1e-4)
        assert piece_of(shape["tokens"][0]) == llm._model.token_to_piece(chosen, True)
        assert chosen not in (byte, letter) or shape["tokens"] == ["a"]
        json.dumps(top).encode()
    assert "bytes:\\xe2" in top and "bytes:\\x61" in top and "a" in top


def test_grammar(llm: Llama) -> None:
    for seed in range(5):
        completion = llm(PROMPT, grammar='root ::= "yes" | "no"', seed=seed)
        assert text_of(completion) in ("yes", "no")
        assert reason_of(completion) == "stop"


# --- tokens -------------------------------------------------------------------------------------


def test_tokenize_and_detokenize(llm: Llama) -> None:
    tokens = llm.tokenize(b"the cat")
    assert tokens[0] == llm.token_bos()
    assert llm.tokenize(b"the cat", add_bos=False) == tokens[1:]
    assert llm.tokenize(b"</s>", special=True)[-1] == llm.token_eos()
    assert llm.tokenize(b"</s>")[-1] != llm.token_eos()
    assert llm.detokenize(tokens).strip() == b"the cat"
    assert b"<s>" in llm.detokenize(tokens, special=True)
    assert llm.detokenize([]) == b""
    assert llm.n_vocab() == len(tiny.vocabulary())


def test_eval_appends_and_reset_clears(llm: Llama) -> None:
    tokens = llm.tokenize(PROMPT.encode())
    llm.eval(tokens)
    llm.eval([])
    assert (llm.n_tokens, llm.input_ids) == (len(tokens), tokens)
    llm.eval([5])
    assert llm.input_ids == [*tokens, 5]
    llm.reset()
    assert (llm.n_tokens, llm.input_ids) == (0, [])


def test_generate_goes_on_from_what_is_there(files: dict[str, Path], llm: Llama) -> None:
    expected, _ = greedy(files["drop"], 10, 0.5, K)
    tokens = llm.tokenize(PROMPT.encode())
    first = list(islice(llm.generate(tokens, temp=0), 4))
    # The last token has not been decoded: it is what the next generation starts with.
    rest = list(islice(llm.generate(first[-1:], temp=0, reset=False), 6))
    assert first + rest == expected


def test_generate_ends_when_the_context_is_full(files: dict[str, Path]) -> None:
    with Llama(files["drop"], n_ctx=40, n_threads=1) as llm:
        tokens = llm.tokenize(PROMPT.encode())
        assert len(list(llm.generate(tokens, seed=1))) == 40 - len(tokens) + 1
        assert llm.n_tokens == 40
        with pytest.raises(ContextFullError, match="n_ctx=40"):
            llm.eval([5])
        assert llm.n_tokens == 40


def test_requests_start_with_an_empty_context(llm: Llama) -> None:
    text = text_of(llm(PROMPT, temperature=0))
    llm.eval([5, 6, 7])
    assert text_of(llm(PROMPT, temperature=0)) == text


# --- LoRA-Drop ----------------------------------------------------------------------------------


def test_point_comes_from_the_file(files: dict[str, Path]) -> None:
    def point(path: str, **options: Any) -> tuple[float, int, list[int]]:
        with Llama(files[path], n_ctx=64, n_threads=1, **options) as llm:
            return llm.rho, llm.k, sorted(llm.dropped_layers)

    full = (0.0, 0, [])
    assert point("drop") == (0.5, K, [2, 3, 4])
    assert point("drop", rho=0.34) == (0.34, K, [2, 3])
    assert point("drop", k=1) == (0.5, 1, [2, 3, 4])
    assert point("drop", rho=0) == point("drop", k=0) == full
    assert point("base") == point("base", k=0) == point("base", allow_uncorrected=True) == full
    assert point("base", corrector=files["sidecar"]) == (0.5, K, [2, 3, 4])
    assert point("base", corrector=files["unpointed"], rho=0.5) == (0.5, 3, [2, 3, 4])
    rho, k, layers = point("base", rho=0.34, allow_uncorrected=True)
    assert (rho, k, len(layers)) == (0.34, 3, 2)


def test_refresh_comes_from_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    model = tiny.make_model()
    corrector = tiny.make_corrector(model, "anchor-delta", layers=[3, 2, 4])
    tiny.write_sidecar(tmp_path / "refill.gguf", model, dataclasses.replace(corrector, rho=0.5, k=K, refresh="refill"))

    def policy(sidecar: Path, **options: Any) -> str:
        with Llama(files["base"], corrector=sidecar, n_ctx=64, n_threads=1, **options) as llm:
            return llm.refresh

    assert policy(files["sidecar"]) == "single"
    assert policy(tmp_path / "refill.gguf", refresh="single") == "single"
    assert policy(tmp_path / "refill.gguf") == "refill"
    with (
        Llama(files["base"], corrector=tmp_path / "refill.gguf", n_ctx=N_CTX, n_threads=1) as llm,
        Llama(files["base"], corrector=files["sidecar"], refresh="refill", n_ctx=N_CTX, n_threads=1) as same,
        Llama(files["base"], corrector=files["sidecar"], n_ctx=N_CTX, n_threads=1) as other,
    ):
        texts = [text_of(one(PROMPT, max_tokens=40, temperature=0)) for one in (llm, same, other)]
    assert texts[0] == texts[1] != texts[2]


def test_sidecar_and_own_corrector_decode_alike(files: dict[str, Path], llm: Llama) -> None:
    with Llama(files["base"], corrector=files["sidecar"], n_ctx=N_CTX, n_threads=1) as other:
        assert text_of(other(PROMPT, temperature=0)) == text_of(llm(PROMPT, temperature=0))


def test_dropping_without_a_corrector_names_the_ways_to_one(files: dict[str, Path]) -> None:
    with pytest.raises(CorrectorError) as caught:
        Llama(files["base"], rho=0.5)
    message = str(caught.value)
    assert all(part in message for part in ("rho=0.5", "base.gguf", "corrector=", "allow_uncorrected=True"))
    for asked in ({"k": 5}, {"refresh": "refill"}, {"k": 5, "allow_uncorrected": True}):
        with pytest.raises(CorrectorError, match=f"{next(iter(asked))}=.*holds no corrector.*set rho"):
            Llama(files["base"], **asked)


def test_corrector_that_cannot_be_used(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CorrectorError, match="holds no corrector"):
        Llama(files["base"], corrector=files["base"])
    with pytest.raises(CorrectorError, match="recommended rho"):
        Llama(files["base"], corrector=files["unpointed"])
    with pytest.raises(FileNotFoundError, match="corrector="):
        Llama(files["base"], corrector=tmp_path / "none.gguf")
    other = tiny.make_model(n_layer=8)
    path = tmp_path / "other.gguf"
    tiny.write_sidecar(path, other, tiny.make_corrector(other, "anchor-delta", layers=[3]))
    with pytest.raises(CorrectorError):
        Llama(files["base"], corrector=path)


def test_rho_above_what_can_drop(files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="rho"):
        Llama(files["drop"], rho=0.9)
    with pytest.raises(ValueError, match="rho"):
        Llama(files["drop"], rho=0.01)


# --- stats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", ["single", "refill"])
def test_stats(files: dict[str, Path], refresh: str) -> None:
    with Llama(files["drop"], refresh=refresh, kv_window=16, n_ctx=2048, n_threads=1) as llm:
        assert llm.stats is None
        llm(PROMPT, max_tokens=1001, logit_bias=NO_END)
        stats = llm.stats
    assert stats is not None
    assert stats.tokens == 1001
    assert (stats.lora_steps, stats.refresh_steps) == (750, 250)
    assert stats.kv_bytes < stats.kv_bytes_full
    assert 0 < stats.ms_per_token_p50 <= stats.ms_per_token_p95
    assert stats.decode_tokens_per_second == pytest.approx(1000 / stats.decode_seconds)
    assert stats.prompt_tokens_per_second == stats.prompt_tokens / stats.prompt_seconds
    assert json.loads(json.dumps(stats.to_dict())) == stats.to_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.tokens = 0  # type: ignore[misc]


def test_stats_of_full_decoding(files: dict[str, Path]) -> None:
    with Llama(files["base"], n_ctx=N_CTX, n_threads=1) as llm:
        llm(PROMPT, max_tokens=9, logit_bias=NO_END)
        stats = llm.stats
        assert stats is not None
        assert (stats.lora_steps, stats.refresh_steps) == (0, 8)
        assert stats.kv_bytes == stats.kv_bytes_full > 0
        llm(PROMPT, max_tokens=1)
        assert llm.stats is not None
        assert llm.stats.decode_tokens_per_second == llm.stats.ms_per_token_p95 == 0


def test_stats_are_there_when_a_stream_is_dropped(llm: Llama) -> None:
    stream = llm(PROMPT, max_tokens=50, stream=True, logit_bias=NO_END)
    next(iter(stream))
    assert llm.stats is None
    del stream
    assert llm.stats is not None
    assert llm.stats.tokens >= 1


def test_replay_decodes_the_same_tokens(llm: Llama) -> None:
    llm(PROMPT, max_tokens=20, temperature=0)
    tokens, stats = llm.input_ids, llm.stats
    assert stats is not None
    n = stats.prompt_tokens
    again = llm.replay(tokens[:n], tokens[n:])
    assert llm.input_ids == tokens
    assert (again.lora_steps, again.refresh_steps) == (stats.lora_steps, stats.refresh_steps)
    with pytest.raises(ValueError, match="room for"):
        llm.replay(tokens[:n], [5] * N_CTX)


# --- what may go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rho": 1.0}, "rho=1"),
        ({"rho": -0.1}, "rho=-0.1"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"rho": "half"}, "rho='half'"),
        ({"k": -1}, "k=-1"),
        ({"k": 1.5}, "k=1.5"),
        ({"k": 2**40}, "k="),
        ({"n_ctx": 0}, "n_ctx=0: give an integer"),
        ({"n_ctx": -5}, "n_ctx=-5"),
        ({"n_ctx": 2**40}, "n_ctx="),
        ({"n_batch": 0}, "n_batch=0"),
        ({"n_threads": 0}, "n_threads=0"),
        ({"n_gpu_layers": -2}, "n_gpu_layers=-2"),
        ({"kv_window": -1}, "kv_window=-1"),
        ({"refresh": "never"}, "refresh='never'.*'single', 'refill'"),
        ({"flash_attn": "maybe"}, "flash_attn='maybe'.*'auto'"),
        ({"type_k": "q1"}, "type_k='q1'.*'f16'"),
        ({"type_v": 8}, "type_v=8"),
        ({"seed": -7}, "seed=-7"),
        ({"seed": 2**32}, "seed=4294967296"),
    ],
)
def test_bad_options(files: dict[str, Path], options: dict[str, Any], says: str) -> None:
    # Before any work: the model's file is not even looked at.
    with pytest.raises((ValueError, TypeError), match=says):
        Llama(files["drop"].with_name("none.gguf"), **options)


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        (b"\xff\xfe", {}, "prompt: not UTF-8"),
        ("\ud800", {}, "prompt: not valid Unicode"),
        ("a\0b", {}, "prompt: character 1 is NUL"),
        (b"a\0b", {}, "prompt: character 1 is NUL"),
        (b"\xed\xa0\x80", {}, "prompt: not UTF-8"),
        ([], {}, "prompt: it has no tokens"),
        (None, {}, "prompt is NoneType"),
        (5, {}, "prompt is int"),
        ([1, 10**6], {}, r"prompt\[1\]=1000000"),
        ([1, -1], {}, r"prompt\[1\]=-1"),
        ([1, "x"], {}, r"prompt\[1\]='x'"),
        ([5] * N_CTX, {}, f"{N_CTX} tokens leave no room .*n_ctx={N_CTX}"),
        ("a", {"max_tokens": 1.5}, "max_tokens=1.5"),
        ("a", {"temperature": -1}, "temperature=-1"),
        ("a", {"temperature": float("inf")}, "temperature=inf"),
        ("a", {"temperature": None}, "temperature=None"),
        ("a", {"top_p": 1.5}, "top_p=1.5"),
        ("a", {"min_p": -0.5}, "min_p=-0.5"),
        ("a", {"top_k": 0.5}, "top_k=0.5"),
        ("a", {"repeat_penalty": 0}, "repeat_penalty=0"),
        ("a", {"presence_penalty": float("nan")}, "presence_penalty=nan"),
        ("a", {"stop": 5}, "stop=5"),
        ("a", {"stop": [b"x"]}, "stop="),
        ("a", {"stop": ["x", ""]}, "stop=.*empty"),
        ("a", {"stop": ""}, "stop="),
        ("a", {"stop": ["x", "\ud800"]}, r"stop\[1\]: not valid Unicode"),
        ("a", {"stop": "x\0"}, "stop: character 1 is NUL"),
        ("a", {"seed": "x"}, "seed='x'"),
        ("a", {"logprobs": -1}, "logprobs=-1"),
        ("a", {"logprobs": 10**6}, "logprobs=1000000"),
        ("a", {"logit_bias": {"x": 1}}, "logit_bias="),
        ("a", {"logit_bias": [1]}, "logit_bias="),
        ("a", {"logit_bias": {10**6: 1}}, "logit_bias"),
        ("a", {"grammar": 5}, "grammar=5"),
        ("a", {"grammar": "root ::= ("}, "grammar"),
        ("a", {"grammar": 'root ::= "\ud800"'}, "grammar: not valid Unicode"),
        ("a", {"grammar": 'root ::= "a"\0'}, "grammar: character 12 is NUL"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_request(llm: Llama, prompt: Any, options: dict[str, Any], says: str, stream: bool) -> None:
    # A stream, too, fails when it is asked for and not when it is read.
    with pytest.raises((ValueError, TypeError), match=says):
        llm(prompt, stream=stream, **options)
    assert reason_of(llm(PROMPT, logit_bias=NO_END)) == "length"


def test_bad_tokens(llm: Llama) -> None:
    for call in (llm.eval, llm.detokenize, llm.generate):
        with pytest.raises(ValueError, match=r"tokens\[0\]=1000000"):
            call([10**6])
    with pytest.raises(TypeError, match="tokens is str"):
        llm.eval("the")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="text: not UTF-8"):
        llm.tokenize(b"\xff")
    with pytest.raises(TypeError, match="text is str"):
        llm.tokenize("the")  # type: ignore[arg-type]


def test_empty_text_is_an_empty_prompt(tmp_path: Path) -> None:
    model = tiny.make_model()
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, model)
    data = path.read_bytes()
    key = b"tokenizer.ggml.add_bos_token"
    at = data.index(key) + len(key) + 4  # the value follows its type
    path.write_bytes(data[:at] + b"\0" + data[at + 1 :])
    with Llama(path, n_ctx=64, n_threads=1) as llm, pytest.raises(ValueError, match="no tokens"):
        llm("")


def test_files_that_are_no_model(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        Llama(tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError):
        Llama(tmp_path)
    data = files["drop"].read_bytes()
    path = tmp_path / "broken.gguf"
    for content in (b"", b"GGUF", b"no model at all" * 9, data[: len(data) // 2], data[:100]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"broken\.gguf"):
            Llama(path)
    with pytest.raises(ModelError, match="sidecar"):
        Llama(files["sidecar"])


def test_closed(files: dict[str, Path]) -> None:
    llm = Llama(files["drop"], n_ctx=64, n_threads=1)
    llm.close()
    llm.close()
    for call in (lambda: llm(PROMPT), lambda: llm.eval([5]), llm.reset, lambda: llm.n_tokens):
        with pytest.raises(RuntimeError, match="closed"):
            call()


# --- several requests ---------------------------------------------------------------------------


def test_dropped_stream_leaves_the_object_usable(llm: Llama) -> None:
    text = text_of(llm(PROMPT, temperature=0))
    for n in (1, 2, 5):
        list(islice(llm(PROMPT, seed=n, stream=True, max_tokens=50), n))
        assert text_of(llm(PROMPT, temperature=0)) == text


def test_open_stream_gives_way_to_a_newer_request(llm: Llama) -> None:
    text = text_of(llm(PROMPT, temperature=0))
    old = llm(PROMPT, stream=True, max_tokens=100, seed=1)
    first = next(iter(old))
    assert text_of(llm(PROMPT, temperature=0)) == text
    stats, tokens = llm.stats, llm.input_ids
    assert reason_of(first) is None
    with pytest.raises(StreamLost):
        next(iter(old))
    assert (llm.stats, llm.input_ids) == (stats, tokens)

    streams = [llm(PROMPT, stream=True, temperature=0) for _ in range(2)]
    assert "".join(map(text_of, streams[1])) == text  # the first one has not begun
    assert "".join(map(text_of, streams[0])) == text


@pytest.mark.parametrize("act", ["reset", "eval", "close"])
def test_open_stream_gives_way_to(llm: Llama, act: str) -> None:
    stream = llm(PROMPT, stream=True, max_tokens=100, seed=1)
    next(iter(stream))
    {"reset": llm.reset, "eval": lambda: llm.eval([5]), "close": llm.close}[act]()
    with pytest.raises(RuntimeError if act == "close" else StreamLost):
        next(iter(stream))


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_leaves_the_object_usable(files: dict[str, Path]) -> None:
    with Llama(files["drop"], n_ctx=100_000, n_threads=1) as llm:
        text = text_of(llm(PROMPT, temperature=0))
        for work in (
            lambda: llm(PROMPT, max_tokens=None, logit_bias=NO_END),  # in the decode
            lambda: llm([5] * 60_000, max_tokens=1),  # in the prefill
            lambda: llm.eval([5] * 60_000),
        ):
            timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                work()
            timer.join()
            tokens = llm.input_ids
            assert len(tokens) == llm.n_tokens < 60_000
            llm.eval([7])
            assert llm.input_ids == [*tokens, 7]
            assert text_of(llm(PROMPT, temperature=0)) == text


def test_requests_of_several_threads_wait_for_each_other(llm: Llama) -> None:
    text = text_of(llm(PROMPT, max_tokens=60, temperature=0))
    texts: list[str] = []

    def request() -> None:
        for _ in range(3):
            texts.append(text_of(llm(PROMPT, max_tokens=60, temperature=0)))

    threads = [threading.Thread(target=request) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [text] * 12


def test_a_corrector_inside_the_models_file_says_so(files: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match=r"holds a corrector, and layers drop: rho=0\.\d+, k=\d"):
        Llama(files["drop"], n_ctx=64).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"rho": 0}, {"rho": 0.5}, {"k": 0}, {"refresh": "refill"}):
            Llama(files["drop"], n_ctx=64, **options).close()
