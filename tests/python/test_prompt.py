"""Prompts as tokens: one BOS token, no EOS token, and no special tokens that a template does not write."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from loradrop import Llama
from loradrop._core import Model
from loradrop.fixed_text import prompt_tokens
from loradrop.prompt import text_tokens
from loradrop.self_text import _turns

PROMPT = "the cat is on"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}a:"
MESSAGES = [{"role": "user", "content": "the cat"}]
FLAGS = [(bos, eos) for bos in (True, False) for eos in (True, False)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, bool], Path]:
    """The same model with each of the flags add_bos and add_eos."""
    folder = tmp_path_factory.mktemp("prompt")
    paths = {(bos, eos): folder / f"{bos}-{eos}.gguf" for bos, eos in FLAGS}
    for (bos, eos), path in paths.items():
        tiny.write_gguf(path, tiny.make_model(n_layer=2), chat_template=TEMPLATE, add_bos=bos, add_eos=eos)
    return paths


@pytest.fixture(scope="module")
def models(files: dict[tuple[bool, bool], Path]) -> dict[tuple[bool, bool], Model]:
    return {flags: Model(str(path)) for flags, path in files.items()}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("flags", FLAGS)
def test_a_text_gets_a_bos_token_and_no_eos_token(
    files: dict[tuple[bool, bool], Path], flags: tuple[bool, bool]
) -> None:
    with Llama(files[flags], n_ctx=64, n_threads=1) as llm:
        expected = [tiny.BOS] * flags[0] + llm._model.tokenize(PROMPT.encode(), False, True)
        for prompt in (PROMPT, PROMPT.encode()):
            llm.create_completion(prompt, max_tokens=1)
            assert llm.input_ids == expected
        assert llm.tokenize(PROMPT.encode()) == expected
        assert llm.tokenize(PROMPT.encode(), add_bos=False) == expected[flags[0] :]
        llm.create_completion([5, tiny.EOS], max_tokens=1)  # tokens are taken as they are
        assert llm.input_ids == [5, tiny.EOS]


@pytest.mark.parametrize("flags", FLAGS)
def test_a_templated_prompt_has_what_the_template_writes(
    files: dict[tuple[bool, bool], Path], flags: tuple[bool, bool]
) -> None:
    with Llama(files[flags], n_ctx=64, n_threads=1) as llm, warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.create_chat_completion(MESSAGES, max_tokens=1)
        tokens = llm.input_ids
        assert [i for i, token in enumerate(tokens) if token == tiny.BOS] == [0]
        assert tokens.count(tiny.EOS) == 1
        assert llm.detokenize(tokens, special=True) == b"<s> user: the cat</s> a:"


@pytest.mark.parametrize("flags", FLAGS)
def test_texts_of_calibration_and_measurement_follow(
    models: dict[tuple[bool, bool], Model], flags: tuple[bool, bool]
) -> None:
    model = models[flags]
    for n in range(1, 400):
        tokens = prompt_tokens(model, n)
        assert tokens.count(tiny.EOS) == 0 and tokens.count(tiny.BOS) == flags[0]
    before, after_user, between = _turns(model)
    assert before.count(tiny.BOS) == 1 and before[0] == tiny.BOS
    assert after_user[0] == between[0] == tiny.EOS and tiny.BOS not in after_user + between


def test_a_text_of_its_own_begins_with_some_token(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"  # nothing stands before a message
    tiny.write_gguf(path, tiny.make_model(n_layer=2), chat_template=template)
    assert _turns(Model(str(path))) == [[tiny.BOS], [tiny.EOS], [tiny.EOS]]


def test_a_doubled_bos_token_is_warned_of_and_left_out(files: dict[tuple[bool, bool], Path]) -> None:
    with Llama(files[True, True], n_ctx=64, n_threads=1) as llm:
        expected = llm.tokenize(PROMPT.encode())
        llm.create_completion(PROMPT, max_tokens=3, temperature=0)
        ids = llm.input_ids
        requests: list[Any] = [
            lambda: llm.create_completion("<s>" + PROMPT, max_tokens=3, temperature=0),
            lambda: llm("<s>" + PROMPT, max_tokens=3, temperature=0),
            lambda: list(llm("<s>" + PROMPT, max_tokens=3, temperature=0, stream=True)),
        ]
        for request in requests:
            with pytest.warns(UserWarning, match="prompt: it begins with '<s>'") as caught:
                request()
            assert [warning.filename for warning in caught] == [__file__]
            assert llm.input_ids == ids
        with pytest.warns(UserWarning, match="begins with '<s>'") as caught:
            assert llm.tokenize(b"<s>" + PROMPT.encode(), special=True) == expected
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("error")
def test_a_bos_token_that_is_not_doubled_is_no_fault(files: dict[tuple[bool, bool], Path]) -> None:
    with Llama(files[False, True], n_ctx=64, n_threads=1) as llm:
        llm.create_completion("<s>" + PROMPT, max_tokens=1)
        assert llm.input_ids[0] == tiny.BOS and llm.input_ids.count(tiny.BOS) == 1
    with Llama(files[True, True], n_ctx=64, n_threads=1) as llm:
        assert llm.tokenize(b"<s>a").count(tiny.BOS) == 1  # here it is text
        llm.create_completion(" <s>a", max_tokens=1)
        assert llm.input_ids[:1] == [tiny.BOS]
        assert llm.tokenize(b"<s>a", add_bos=False, special=True).count(tiny.BOS) == 1


@pytest.mark.filterwarnings("ignore:prompt")
@given(st.lists(st.sampled_from(["<s>", "</s>", "<unk>", " ", "a", "the", "€"])).map("".join), st.booleans())
def test_what_a_text_becomes(models: dict[tuple[bool, bool], Model], text: str, special: bool) -> None:
    for (add_bos, _), model in models.items():
        bare = model.tokenize(text.encode(), False, special)
        assert text_tokens(model, text.encode(), add_bos=False, special=special) == bare
        with_bos = bare if bare[:1] == [tiny.BOS] or not add_bos else [tiny.BOS, *bare]
        assert text_tokens(model, text.encode(), add_bos=True, special=special) == with_bos


def test_chat_prompts_are_those_of_transformers(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    talks: list[Any] = [
        [{"role": "user", "content": "Hi <|im_end|> there, <b>é</b> 🙂!"}],
        [{"role": "system", "content": "Be short."}, *MESSAGES, {"role": "assistant", "content": "no\n"}, *MESSAGES],
    ]
    with Llama(smollm2, n_ctx=256, n_threads=1) as llm:
        for talk in talks:
            encoded = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)
            llm.create_chat_completion(talk, max_tokens=1)
            assert llm.input_ids == list(encoded["input_ids"])
