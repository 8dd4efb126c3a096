"""Chat templates and chat completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from loradrop import Llama, ModelError
from loradrop._core import Model
from loradrop.chat import ChatTemplate, check_messages, model_template

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


def test_template_gets_messages_and_the_start_of_the_answer() -> None:
    template = ChatTemplate(tiny.CHAT_TEMPLATE)
    assert template.render(MESSAGES) == "system: be short\nuser: the cat\nassistant:"
    assert template.render(MESSAGES, add_generation_prompt=False).endswith("the cat\n")


def test_template_behaves_as_hugging_faces() -> None:
    source = (
        "{%- for message in messages -%}\n"
        "    {% if loop.index0 == 1 %}\n"
        "        {% continue %}\n"
        "    {% endif %}\n"
        "    {%- generation -%}\n"
        "        {{- message | tojson -}}\n"
        "    {%- endgeneration -%}\n"
        "{%- endfor -%}\n"
        "{{ strftime_now('%Y') | length }}{{ eos_token }}"
    )
    messages = [{"role": "user", "content": "<é>"}, {"role": "x", "content": "left out"}]
    text = ChatTemplate(source, eos_token="</s>").render(messages)
    assert text == '{"role": "user", "content": "<é>"}4</s>'


@pytest.mark.parametrize(("adds_bos", "expected"), [(True, "be short"), (False, "<s>be short")])
def test_there_is_one_bos(adds_bos: bool, expected: str) -> None:
    source = "{{ bos_token }}{{ messages[0].content }}"
    template = ChatTemplate(source, bos_token="<s>", tokenizer_adds_bos=adds_bos)
    assert template.render(MESSAGES) == expected


@pytest.mark.parametrize("adds_bos", [True, False])
def test_model_decides_who_adds_bos(tmp_path: Path, adds_bos: bool) -> None:
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.make_model(), chat_template="{{ bos_token }}{{ messages[0].content }}", add_bos=adds_bos)
    model = Model(str(path))
    text = model_template(model).render(MESSAGES)
    assert model.tokenize(text.encode(), True, True)[:2].count(tiny.BOS) == 1


def test_template_refuses_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"messages: .*roles must alternate"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ (messages | attr('__class__')).__base__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) + undefined.x }}",
        "{{ messages[9].content.x }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 // 0 }}",
        "{% include 'other' %}",
    ],
)
def test_template_cannot_leave_the_sandbox(source: str) -> None:
    messages = [dict(message) for message in MESSAGES]
    with pytest.raises(ModelError, match="chat template fails"):
        ChatTemplate(source).render(messages)
    assert messages == MESSAGES


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% unknown %}", "{{ x | nofilter }}"])
def test_template_that_does_not_parse(source: str) -> None:
    with pytest.raises(ModelError, match="does not parse"):
        ChatTemplate(source)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    assert check_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "the cat"}]


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
    ],
)
def test_bad_messages(llm: Llama, messages: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        llm.create_chat_completion(messages)
    assert llm.create_chat_completion(MESSAGES, max_tokens=1)


def test_answer_is_the_completion_of_the_formatted_prompt(llm: Llama) -> None:
    answer: Any = llm.create_chat_completion(MESSAGES, max_tokens=12, seed=4)
    prompt = "system: be short\nuser: the cat\nassistant:"
    text: Any = llm.create_completion(prompt, max_tokens=12, seed=4, temperature=0.2)
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
    assert llm.input_ids.count(llm.token_bos()) == 1


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


def test_model_without_template(tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    tiny.write_gguf(path, tiny.make_model())
    with Llama(path, n_ctx=64, n_threads=1) as llm:
        assert not llm.has_chat_template
        with pytest.raises(ModelError, match=r"no chat template: .*create_completion"):
            llm.create_chat_completion(MESSAGES)
        assert llm.create_completion("the", max_tokens=1)
