"""Exact decoding where people meet it: `Llama`, its samplers, and the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from loradrop import Llama
from loradrop._core import Context, Corrector, Model, Sampler
from loradrop.cli import main
from verify_walk import needs_exact_rows

PROMPT = "the cat is on"
N_TOKENS = 60
NO_END = {tiny.EOS: -1000.0}  # keeps a random text from ending early
GRAMMAR = 'root ::= ("a" | "b" | "the " | "cat ")*'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a corrector, and the same without."""
    folder = tmp_path_factory.mktemp("verify")
    model = tiny.make_model()
    corrector = tiny.make_corrector(model, "anchor-delta", layers=[3, 2, 4])
    paths = {name: folder / f"{name}.gguf" for name in ("drop", "base")}
    tiny.write_gguf(paths["drop"], model, corrector, chat_template=True)
    tiny.write_gguf(paths["base"], model)
    return paths


def completion(path: Path, sampling: dict[str, Any], **options: Any) -> tuple[list[int], Any]:
    """Return the tokens of a text and the request's stats."""
    with Llama(path, n_ctx=256, n_threads=1, **options) as llm:
        llm.create_completion(PROMPT, max_tokens=N_TOKENS, **sampling)
        return llm.input_ids, llm.stats


SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0, "logit_bias": NO_END},
    {"temperature": 0, "repeat_penalty": 1.3, "logit_bias": NO_END},
    {"temperature": 0.8, "seed": 7, "logit_bias": NO_END},
    {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3, "presence_penalty": 0.5},
    {"temperature": 0.7, "seed": 5, "grammar": GRAMMAR},
]


@needs_exact_rows
@pytest.mark.parametrize("k", [1, 3, "auto"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["drop", "base"])
def test_the_text_is_that_of_the_full_model(
    files: dict[str, Path], name: str, sampling: dict[str, Any], k: int | str
) -> None:
    rho = 0.5 if name == "drop" else None
    exact, stats = completion(files[name], sampling, rho=rho, k=k, refresh="verify")
    full, _ = completion(files[name], sampling, rho=0)
    assert exact == full
    assert k == "auto" or (stats.rounds > 0 and stats.drafted >= stats.accepted)
    assert stats.refresh_steps + stats.accepted == N_TOKENS - 1 or "grammar" in sampling


@needs_exact_rows
def test_drafts_with_the_samplers_own_random_numbers_are_right_more_often(files: dict[str, Path]) -> None:
    model = Model(str(files["base"]))
    right = {}
    for shared in (False, True):
        context = Context(
            model, n_ctx=512, n_threads=1, corrector=Corrector.none(model), rho=0.17, k=3, refresh="verify"
        )
        sampler = Sampler(model, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, logit_bias=NO_END)
        if shared:
            sampler.drafts_for(context)
        context.decode(model.tokenize(PROMPT.encode(), True, False))
        tokens = []
        for _ in range(200):
            tokens.append(sampler.sample(context))
            context.decode(tokens[-1:])
        right[shared] = sum(context.stats["drafts_accepted"]) / context.stats["drafted"], tokens
    assert right[True][1] == right[False][1]
    assert right[True][0] > 1.5 * right[False][0]


@needs_exact_rows
@pytest.mark.parametrize("tolerance", [0.02, 0.2, 0.7])
@pytest.mark.parametrize("sampling", SAMPLINGS[:2])
def test_tolerance_keeps_its_promise(files: dict[str, Path], sampling: dict[str, Any], tolerance: float) -> None:
    tokens, stats = completion(files["drop"], sampling, rho=0.5, k=3, refresh="verify", tolerance=tolerance)
    exact, exactly = completion(files["drop"], sampling, rho=0.5, k=3, refresh="verify")
    model = Model(str(files["drop"]))
    n_prompt = len(model.tokenize(PROMPT.encode(), True, True))
    context = Context(model, n_ctx=256, n_threads=1)
    context.decode(tokens, outputs=[True] * len(tokens))
    n_other = 0
    for i in range(n_prompt, len(tokens)):
        logits = context.logits(i - 1).copy()
        logits[tiny.EOS] = -1000
        past = tokens[max(n_prompt, i - 64) : i]
        for token in set(past) if "repeat_penalty" in sampling else ():
            logits[token] = logits[token] / 1.3 if logits[token] > 0 else logits[token] * 1.3
        share = float(np.exp(logits[tokens[i]] - logits.max()))
        assert share >= tolerance * (1 - 1e-3)
        n_other += share < 1
    if tolerance < 0.1:
        assert n_other > 0 and stats.accepted > exactly.accepted and tokens != exact


BAD: list[tuple[dict[str, Any], str]] = [
    ({"refresh": "verify", "kv_window": 8}, "kv_window=8 with refresh='verify'"),
    ({"refresh": "refill", "k": "auto", "rho": 0.5}, "k='auto' with refresh='refill'"),
    ({"refresh": "verify", "k": "many"}, "k='many'"),
    ({"refresh": "verify", "k": 600, "rho": 0.5}, "k = 600: .* n_ubatch"),
    ({"refresh": "verify", "tolerance": 0}, "tolerance=0"),
    ({"refresh": "verify", "tolerance": 1.5}, "tolerance=1.5"),
    ({"refresh": "refill", "rho": 0.5, "tolerance": 0.5}, "tolerance=0.5: there are no drafts"),
    ({"refresh": "verify", "rho": 0, "tolerance": 0.5}, "tolerance=0.5: there are no drafts"),
    ({"refresh": "verify", "k": 0, "tolerance": 0.5}, "tolerance=0.5: there are no drafts"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(files: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Llama(files["drop"], n_threads=1, **options)


@needs_exact_rows
def test_generate(files: dict[str, Path]) -> None:
    arguments = ["generate", files["base"], PROMPT, "--refresh", "verify", "--k", 2, "--temperature", 0]
    arguments += ["--ctx", 256, "--threads", 1, "-n", 20, "--compare", "--json"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["rho"], shown["k"], shown["refresh"]) == (0.25, 2, "verify")
    assert "poor" not in result.stderr
    with Llama(files["base"], n_ctx=256, n_threads=1, rho=0) as llm:
        answer: Any = llm.create_completion(PROMPT, max_tokens=20, temperature=0)
    assert shown["text"] == answer["choices"][0]["text"]
    assert shown["stats"]["rounds"] > 0


def test_bench(files: dict[str, Path]) -> None:
    points = ["--point", "0.5:2:verify", "--point", "0.5:auto:verify", "--point", "0.5:2:refill"]
    arguments = ["bench", files["drop"], *points, "--prompt", 8, "--tokens", 24, "--rounds", 2, "--threads", 1]
    shown = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert shown.exit_code == 0, shown.output
    assert "a round" in shown.stdout and "0.5:auto:verify" in shown.stdout
    fixed, auto, refill = json.loads(
        CliRunner().invoke(main, [*(str(argument) for argument in arguments), "--json"]).stdout
    )["points"]
    assert fixed["draft_rounds"] + fixed["accepted"] <= 24
    assert fixed["refresh_steps"] == 24 - fixed["accepted"]
    assert fixed["lora_steps"] == fixed["drafted"]
    assert fixed["ceiling"] > 0 and auto["ceiling"] is None and refill["draft_rounds"] == 0
