"""Chat templates: what they render is what transformers renders, and they cannot leave their sandbox."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from chat_templates import TEMPLATES, WITH_TOOLS
from loradrop import Llama, ModelError
from loradrop._core import Model
from loradrop.chat_template import ChatTemplate, has_template, model_template
from loradrop.messages import check_messages

MESSAGES = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "the cat"},
]
TALK = [
    {"role": "user", "content": ' Was ist <b>groß</b> & "rund"? {{ 1 }} 🙂\n'},
    {"role": "assistant", "content": "Ein </think> Ball\n\n"},
    {"role": "user", "content": "  Danke  "},
]
ARGUMENTS = {"city": "Zürich <&>", "days": [1, 2], "exact": True, "unit": None}
CALL_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "the weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"rain": "<no>"}'},
    {"role": "assistant", "content": "No rain."},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says <how> it’s",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def transformers_text(source: str, messages: Any, *, tools: Any = None, add_generation_prompt: bool = True) -> str:
    """Return what transformers renders of messages that are as its own documentation wants them."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = utils._compile_jinja_template(source)
    text: str = template.render(
        messages=messages, tools=tools, documents=None, add_generation_prompt=add_generation_prompt, **SPECIAL
    )
    return text


def our_text(source: str, messages: Any, **options: Any) -> str:
    return ChatTemplate(source, **SPECIAL).render(check_messages(messages), **options)


# --- what transformers renders ------------------------------------------------------------------


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("with_system", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_talk(name: str, with_system: bool, add_generation_prompt: bool) -> None:
    if name == "Gemma 2" and with_system:
        pytest.skip("it refuses system messages")
    messages = MESSAGES[:1] * with_system + TALK
    expected = transformers_text(TEMPLATES[name], messages, add_generation_prompt=add_generation_prompt)
    assert "Danke" in expected
    assert our_text(TEMPLATES[name], messages, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tool_calls(name: str, as_text: bool, missing: bool) -> None:
    theirs = copy.deepcopy(CALL_TALK)
    if name != "DeepSeek":  # which asks whether there is none, and joins the arguments to other text
        theirs[1]["content"] = ""
        theirs[1]["tool_calls"][0]["function"]["arguments"] = ARGUMENTS
    expected = transformers_text(TEMPLATES[name], theirs, tools=TOOLS)
    assert "weather" in expected and "<no>" in expected

    ours = copy.deepcopy(CALL_TALK)
    if missing:
        del ours[1]["content"]
    if not as_text:
        if name == "DeepSeek":
            pytest.skip("it takes JSON text alone")
        ours[1]["tool_calls"][0]["function"]["arguments"] = ARGUMENTS
    assert our_text(TEMPLATES[name], ours, tools=TOOLS) == expected


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tool_calls_with_text(name: str) -> None:
    messages = copy.deepcopy(CALL_TALK)
    messages[1]["content"] = "I look."
    messages[1]["tool_calls"][0]["function"]["arguments"] = ARGUMENTS
    assert our_text(TEMPLATES[name], messages) == transformers_text(TEMPLATES[name], messages)


@pytest.mark.parametrize("text", [json.dumps(ARGUMENTS), '{ "a" :1}', "{}"])
@pytest.mark.parametrize(
    ("use", "wants_text"),
    [
        ("a", True),
        ("'x' + a", True),
        ("a + 'x'", True),
        ("'x' + a + 'y'", True),
        ("a ~ 'x'", True),
        ("a | trim", True),
        ("a | string", True),
        ("['x', a] | join", True),
        ("a | tojson", False),
        ("a | items | list", False),
        ("a.keys() | list", False),
        ("a.city", False),
        ("a | length", False),
        ("'city' in a", False),
        ("a is mapping", False),
        ("a == {}", False),
    ],
)
def test_arguments_in_json_text_are_text_or_dict(use: str, wants_text: bool, text: str) -> None:
    source = "{% set a = messages[0].tool_calls[0].function.arguments %}{{ " + use + " }}"
    messages = copy.deepcopy(CALL_TALK[1:2])
    function = messages[0]["tool_calls"][0]["function"]
    function["arguments"] = text if wants_text else json.loads(text)
    expected = transformers_text(source, messages)
    function["arguments"] = text
    assert our_text(source, messages) == expected


@pytest.mark.parametrize("name", ["Llama 2", "Mistral", "Gemma 2", "Gemma 3"])
def test_messages_that_a_template_refuses(name: str) -> None:
    messages = TALK[:1] * 2
    with pytest.raises(Exception, match="must alternate"):
        transformers_text(TEMPLATES[name], messages)
    with pytest.raises(ValueError, match=r"messages: .*refuses them: .*must alternate"):
        our_text(TEMPLATES[name], messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n    {% if loop.first %}\n  {% continue %}\n    {% endif %}\n {{ m.role }}\n"
        "{% endfor %}\n",
        "{% for m in messages %}{{ m.role }}{% if m.role == 'user' %}{% break %}{% endif %}{% endfor %}",
        "  {% generation %}\n  {{ messages[0].content }}\n  {% endgeneration %}\n\n",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% set y = 1 %}{% endgeneration %}"
        "{{ y is defined }}{% endfor %}",
        "{% set ns = namespace(a=1) %}{% generation %}{% set ns.a = 2 %}{% endgeneration %}{{ ns.a }}",
        "{% macro f(m) %}{% generation %}{{ m.role }}{% endgeneration %}{% endmacro %}{{ f(messages[0]) }}",
        "{{ strftime_now('%Y') }}{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}",
        "{{ none is none }}{{ undefined is none }}{{ messages[0].content is none }}{{ undefined is defined }}",
        "{{ dict(a=1) | tojson }}{{ messages | map(attribute='role') | join(',') }}{{ range(3) | list }}",
        "{% for k, v in messages[0] | items %}{{ k }}={{ v }};{% endfor %}{{ '<&>' }}{{ '<&>' | e }}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2) }}",
        "{{ messages | tojson(true) }}{{ messages | tojson(false, 1) }}",
        "{{ messages | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}",
    ],
)
def test_constructs(source: str) -> None:
    messages = [*MESSAGES, *TALK]
    assert our_text(source, messages) == transformers_text(source, messages)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aé<", max_size=3), inner, max_size=3),
    max_leaves=8,
)
TOJSON_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "ensure_ascii": st.booleans(),
        "indent": st.none() | st.integers(0, 4),
        "separators": st.none() | st.tuples(st.sampled_from([",", ", "]), st.sampled_from([":", ": "])),
        "sort_keys": st.booleans(),
    },
)


@given(JSON, TOJSON_OPTIONS)
def test_tojson(value: Any, options: dict[str, Any]) -> None:
    arguments = ", ".join(f"{key}={option!r}" for key, option in options.items())
    source = "{{ messages[0].value | tojson(" + arguments + ") }}"
    messages = [{"value": value}]
    assert ChatTemplate(source).render(messages) == transformers_text(source, messages)


@pytest.mark.parametrize("options", ["default=1", "indent=1, foo=2", "true, 1, none, false, 5"])
def test_tojson_takes_no_more_than_transformers(options: str) -> None:
    with pytest.raises(ModelError, match="chat template fails"):
        ChatTemplate("{{ messages | tojson(" + options + ") }}").render(MESSAGES)


# --- errors -------------------------------------------------------------------------------------


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


def test_arguments_keep_their_secrets() -> None:
    [_, message, *_] = check_messages(CALL_TALK)
    source = "{% set a = messages[0].tool_calls[0].function.arguments %}"
    for part in ("a._text + ''", "a.__class__.__base__", "a.update(x=1)", "a.__init__.__globals__"):
        with pytest.raises(ModelError, match="chat template fails"):
            ChatTemplate(source + "{{ " + part + " }}").render([message])


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% unknown %}", "{{ x | nofilter }}", "{% generation %}"])
def test_template_that_does_not_parse(source: str) -> None:
    with pytest.raises(ModelError, match="does not parse"):
        ChatTemplate(source)


@pytest.mark.parametrize("source", [r"{{ '\ud800' }}", "\ud800", "a\0", r"{{ '\x00' }}"])
def test_template_that_writes_no_text(source: str) -> None:
    with pytest.raises(ModelError, match=r"chat template fails: its text: (not valid Unicode|.*NUL)"):
        ChatTemplate(source).render(MESSAGES)


# --- in a model's file --------------------------------------------------------------------------


def test_template_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.make_model(), chat_template="{{ messages[0].content }} MARK")
    data = path.read_bytes()
    assert data.count(b"MARK") == 1
    path.write_bytes(data.replace(b"MARK", b"\xff\xfe\xe2("))
    with Llama(path, n_ctx=64, n_threads=1) as llm:
        assert llm.has_chat_template
        with pytest.raises(ModelError, match=r"tiny\.gguf: tokenizer\.chat_template is not UTF-8: .*create_completion"):
            llm.create_chat_completion(MESSAGES)
        assert llm.create_completion("the", max_tokens=1)


@pytest.mark.parametrize("chat_template", [False, ""])
def test_model_without_template(tmp_path: Path, chat_template: str | bool) -> None:
    path = tmp_path / "base.gguf"
    tiny.write_gguf(path, tiny.make_model(), chat_template=chat_template)
    assert not has_template(Model(str(path)))
    with Llama(path, n_ctx=64, n_threads=1) as llm:
        assert not llm.has_chat_template
        with pytest.raises(ModelError, match=r"no chat template: .*create_completion"):
            llm.create_chat_completion(MESSAGES)
        assert llm.create_completion("the", max_tokens=1)


def test_a_name_that_llama_cpp_puts_in_for_a_template_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_tekken(writer: Any, *_: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("tekken")
        writer.add_token_list(tiny.vocabulary())
        writer.add_token_types([1] * len(tiny.vocabulary()))
        writer.add_token_merges(["t h"])

    monkeypatch.setattr(tiny, "_add_tokenizer", add_tekken)
    path = tmp_path / "mistral.gguf"
    tiny.write_gguf(path, tiny.make_model(n_layer=40, n_embd=32, n_head=2, n_head_kv=1, n_ff=32))
    model = Model(str(path))
    assert model.chat_template == "mistral-v7-tekken"
    with pytest.raises(ModelError, match="no chat template"):
        model_template(model)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_template_gets_the_models_special_tokens(tmp_path: Path, adds_bos: bool) -> None:
    path = tmp_path / "tiny.gguf"
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    tiny.write_gguf(path, tiny.make_model(), chat_template=source, add_bos=adds_bos)
    assert model_template(Model(str(path))).render(MESSAGES) == "<s>be short</s>"
