"""Grammars: what follows them, and those that would never end."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loradrop import Llama
from loradrop._core import Context, Model, Sampler
from tiny import make_model, write_gguf

SOON = 5.0  # seconds, for what takes milliseconds
DEEP = 100_000
BAD = {
    "the range's end": ('root ::= "a"{5,2}', "at least 5 and at most 2"),
    "parentheses": ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, "parentheses"),
    "a chain": (
        "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1}" for i in range(DEEP)) + f'\na{DEEP} ::= "x"',
        "begin with each other",
    ),
    "left recursion": ('root ::= root "x" | "y"', "left recursion"),
    "left recursion of others": ('root ::= a "x" | "y"\na ::= b\nb ::= root "z" | "w"', "left recursion"),
    "left recursion behind what is empty": (
        'root ::= b root "x" | "y"\nb ::= c\nc ::= d d\nd ::= ""',
        "left recursion",
    ),
    "left recursion behind a repetition": ('root ::= "b"* root "x" | "y"', "left recursion"),
    "a long repetition": ('root ::= "' + "a" * 10_000 + '"{1500}', "too long"),
    "repetitions of repetitions": ('root ::= (("a"{1000} "b"){1000}){1000}', "repe"),
    "empty": ("", "empty"),
    "NUL": ('root ::= "a\0"', "NUL"),
    "no root": ('start ::= "a"', "root"),
    "no grammar": ("no grammar", "expecting ::="),
    "not closed": ('root ::= "a', "unexpected end"),
    "undefined": ("root ::= other", "other"),
}
GOOD = {
    "signs in literals": ('root ::= "("{3} [()] "\\"(" # ((((\n' + '# "\n', '((()"('),
    "nested": ("root ::= " + "(" * 400 + '"a"' + ")" * 400, "a"),
    "many ways to one rule": (
        "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1} | a{i + 1}" for i in range(60)) + '\na60 ::= "x"',
        "x",
    ),
    "right recursion": ('root ::= "a" rest\nrest ::= "b" rest | "c"', "ab*c"),
    "a chain": ("root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1}" for i in range(900)) + '\na900 ::= "x"', "x"),
    "exactly": ('root ::= "ab"{3}', "ababab"),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path = tmp_path_factory.mktemp("grammars") / "model.gguf"
    write_gguf(path, make_model())
    with Llama(path, n_ctx=256, n_threads=1) as llm:
        yield llm


def text(llm: Llama, grammar: str, **options: float) -> str:
    answer = llm("a", grammar=grammar, max_tokens=100, **options)  # type: ignore[arg-type]
    return answer["choices"][0]["text"]  # type: ignore[index,no-any-return]


@pytest.mark.parametrize("case", BAD)
def test_grammars_that_cannot_be_used(llm: Llama, case: str) -> None:
    grammar, says = BAD[case]
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"grammar") as error:
        text(llm, grammar)
    assert says in str(error.value) and len(str(error.value)) < 1000
    assert time.monotonic() - began < SOON  # they ran for ever, or ended the process
    assert text(llm, 'root ::= "b"') == "b"


@pytest.mark.parametrize("case", GOOD)
def test_grammars_that_look_like_those(llm: Llama, case: str) -> None:
    grammar, expected = GOOD[case]
    written = text(llm, grammar, temperature=0, frequency_penalty=2.0)
    assert written == expected or re.fullmatch(expected, written)


WORDS = st.lists(
    st.text(st.characters(min_codepoint=1, exclude_characters='"\\\n\r', exclude_categories=["Cs"]), min_size=1),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 3.0]))
def test_only_the_grammars_text_comes(llm: Llama, words: list[str], seed: int, temperature: float) -> None:
    grammar = "root ::= " + " | ".join(f'"{word}"' for word in words)
    written = text(llm, grammar, seed=seed, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)
    assert written in words or any(len(word.encode()) > 90 for word in words)


def test_the_most_probable_token_that_is_allowed(llm: Llama) -> None:
    model = Model(llm.model_path)
    context = Context(model, n_ctx=128, n_threads=1)
    sampler = Sampler(model, temperature=0.0, grammar="root ::= [a-f ]+")
    pieces = [model.token_to_piece(i, True) for i in range(model.n_vocab)]
    allowed = np.array([bool(re.fullmatch(rb"[a-f ]+", piece)) for piece in pieces])
    allowed[[model.bos_token, model.eos_token, 0]] = False
    token = 5
    for step in range(40):
        context.decode([token])
        logits = context.logits()
        token = sampler.sample(context)
        if token == model.eos_token:
            assert step
            break
        assert token == np.where(allowed, logits, -np.inf).argmax()


def test_real_characters(smollm2: Path) -> None:
    grammar = 'root ::= "Ünï" | "नमस्ते"'
    with Llama(smollm2, n_ctx=128) as llm:
        for seed in range(5):
            answer = llm("Emoji: ", grammar=grammar, temperature=1.5 if seed else 0, seed=seed, max_tokens=40)
            assert answer["choices"][0]["text"] in ("Ünï", "नमस्ते")  # type: ignore[index]


# --- long runs of one kind of character -----------------------------------------------------------

RUNS = """
import sys
from loradrop._core import Model
model = Model(sys.argv[1])
for character in "A =\\u4e2d1\\n":
    for n in (26_648, 200_000):
        tokens = model.tokenize((character * n).encode(), False, False)
        assert model.detokenize(tokens, False).decode() == character * n
"""


@pytest.mark.parametrize("pre", ["gpt-4o", "tekken", "gpt-2", "llama-bpe", "qwen2", "deepseek-v3", "command-r"])
def test_a_long_run_of_one_character(tmp_path: Path, pre: str) -> None:
    pytest.importorskip("transformers")  # for its table of bytes
    write_gguf(tmp_path / "model.gguf", make_model(), pre=pre)
    done = subprocess.run([sys.executable, "-c", RUNS, tmp_path / "model.gguf"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
