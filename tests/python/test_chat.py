"""Chat completions: their messages, their shape, and what may go wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from loradrop import Llama
from loradrop.messages import check_messages

MESSAGES = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "the cat"},
]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "tiny.gguf"
    tiny.write_gguf(path, tiny.make_model(), chat_template=True)
    return path


@pytest.fixture
def llm(model_path: Path) -> Iterator[Llama]:
    with Llama(model_path, n_ctx=256, n_threads=1) as llm:
        yield llm


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    assert check_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "the cat"}]


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


def test_an_assistants_message_with_tool_calls_needs_no_content(llm: Llama) -> None:
    answers = []
    for content in ({}, {"content": None}, {"content": ""}):
        calls = {"role": "assistant", "tool_calls": [call('{"a": 1}')], "refusal": None, **content}
        [checked] = check_messages([calls])
        assert checked["content"] == "" and "refusal" not in checked
        messages = [*MESSAGES, calls, {"role": "tool", "tool_call_id": "1", "content": "2"}]
        answers.append(llm.create_chat_completion(messages, max_tokens=4, temperature=0)["choices"])
    assert answers[0] == answers[1] == answers[2]


def test_arguments_that_a_model_wrote_badly_stay_text() -> None:
    for arguments in ("", "{", "[1]", "5", '{"a": 1}, '):
        [checked] = check_messages([{"role": "assistant", "tool_calls": [call(arguments)]}])
        assert checked["tool_calls"] == [call(arguments)]


def test_messages_are_copied() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": [call('{"a": [1]}')]}
    [checked] = check_messages([message])
    checked["tool_calls"][0]["function"]["arguments"]["a"].append(2)
    assert message == {"role": "assistant", "content": "x", "tool_calls": [call('{"a": [1]}')]}


def endless() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("messages", "error", "says"),
    [
        ([], ValueError, "at least one"),
        ("hello", TypeError, "messages='hello'"),
        ({"role": "user", "content": "x"}, TypeError, "give a list"),
        (None, TypeError, "messages=None"),
        (["hello"], TypeError, r"messages\[0\]"),
        ([{"content": "x"}], TypeError, "'role'"),
        ([{"role": "user"}], TypeError, "content=None"),
        ([{"role": "user", "content": b"x"}], TypeError, "content=b'x'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], ValueError, "'text'"),
        ([{"role": "assistant"}], TypeError, "content=None: .*tool_calls"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], TypeError, "content=None"),
        ([{"role": "assistant", "content": None, "tool_calls": None}], TypeError, "content=None"),
        ([{"role": "assistant", "tool_calls": "f"}], TypeError, r"messages\[0\]\.tool_calls='f'"),
        ([{"role": "assistant", "tool_calls": ["f"]}], TypeError, r"messages\[0\]\.tool_calls=\['f'\]"),
        ([{"role": "user", "tool_calls": [call({})]}], TypeError, "content=None"),
        ([{"role": "tool", "tool_call_id": "1"}], TypeError, "content=None"),
        ([USER, {**USER, "x": object()}], TypeError, r"messages\[1\]\.x=<object"),
        ([{**USER, "x": {1: 2}}], TypeError, r"messages\[0\]\.x has the key 1"),
        ([{**USER, "x": endless()}], ValueError, "messages: .*nested"),
        ([{**USER, "content": "a\ud800"}], ValueError, r"messages\[0\]\.content: not valid Unicode"),
        ([{**USER, "content": [{"type": "text", "text": "\udfff"}]}], ValueError, r"\.content: not valid Unicode"),
        ([{**USER, "role": "a\ud800"}], ValueError, r"messages\[0\]\.role: not valid Unicode"),
        ([{**USER, "content": "a\0"}], ValueError, r"messages\[0\]\.content: character 1 is NUL"),
        ([{**USER, "role": "\0"}], ValueError, r"messages\[0\]\.role: character 0 is NUL"),
        ([{**USER, "name": "\0"}], ValueError, r"messages\[0\]\.name: character 0 is NUL"),
        ([{**USER, "\ud800": 1}], ValueError, r"a key of messages\[0\]: not valid Unicode"),
        ([{**USER, "tool_calls": [call({"a": "\ud800"})]}], ValueError, r"arguments\.a: not valid Unicode"),
        ([{**USER, "tool_calls": [call('{"a": "\\ud800"}')]}], ValueError, r"arguments\.a: not valid Unicode"),
    ],
)
def test_bad_messages(llm: Llama, messages: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        llm.create_chat_completion(messages)
    assert llm.create_chat_completion(MESSAGES, max_tokens=1)


def test_answer_is_the_completion_of_the_formatted_prompt(llm: Llama) -> None:
    answer: Any = llm.create_chat_completion(MESSAGES, max_tokens=12, seed=4)
    prompt = "system: be short\nuser: the cat\nassistant:"
    tokens = llm.tokenize(prompt.encode(), add_bos=False)
    text: Any = llm.create_completion(tokens, max_tokens=12, seed=4, temperature=0.2)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": text["choices"][0]["text"]},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == text["usage"]
    assert llm.input_ids[: len(tokens)] == tokens  # a template that writes no BOS token wants none


def test_stream_has_role_text_and_reason(llm: Llama) -> None:
    whole: Any = llm.create_chat_completion(MESSAGES, max_tokens=12, seed=4)
    chunks: list[Any] = list(llm.create_chat_completion(MESSAGES, max_tokens=12, seed=4, stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant"}
    text = "".join(choice["delta"]["content"] for choice in choices[1:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "length"]
    json.dumps(chunks)


def test_logprobs(llm: Llama) -> None:
    answer: Any = llm.create_chat_completion(MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert len(logprobs["content"]) == 6
    for token in logprobs["content"]:
        top = token.pop("top_logprobs")
        assert token == top[0]  # greedy takes the most probable one
        assert top[0]["logprob"] >= top[1]["logprob"]
        assert bytes(token["bytes"]).decode("utf-8", "replace") == token["token"]
    with pytest.raises(ValueError, match="top_logprobs=2: give logprobs=True"):
        llm.create_chat_completion(MESSAGES, top_logprobs=2)
