"""What a request keeps of the context: never anything that a fresh object would not compute, to the last digits."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loradrop import Llama
from tiny import TinyModel, make_corrector, make_model, write_gguf
from verify_walk import needs_exact_rows

N_CTX = 256
TOLERANCE = 1e-4  # of a logit
WINDOW = 8  # of refill
WAYS: dict[str, dict[str, Any]] = {
    "full": {"rho": 0},
    "single": {"rho": 0.5, "k": 3, "refresh": "single"},
    "refill": {"rho": 0.5, "k": 3, "refresh": "refill", "kv_window": WINDOW},
    "refill, all kept": {"rho": 0.5, "k": 3, "refresh": "refill", "kv_window": N_CTX},
    "verify": {"rho": 0.5, "k": 3, "refresh": "verify"},
}
MODELS = {"plain": make_model(n_layer=8), "windows": make_model("olmo2", n_layer=8, n_swa=16)}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cached")
    found = {}
    for name, model in MODELS.items():
        found[name] = folder / f"{name}.gguf"
        write_gguf(found[name], model, corrector_of(model))
    return found


def corrector_of(model: TinyModel) -> Any:
    corrector = make_corrector(model, "anchor-delta", layers=[2, 3, 4, 5])
    return dataclasses.replace(corrector, rho=0.5, k=3)


def make(path: Path, way: str, **others: Any) -> Llama:
    # what is rounded to 16 bits may be rounded the other way in a batch
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    return Llama(path, n_ctx=N_CTX, n_batch=32, n_threads=1, **exact, **WAYS[way], **others)


@pytest.fixture(scope="module", params=[(m, w) for m in MODELS for w in WAYS], ids=" ".join)
def pair(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Iterator[tuple[Llama, Llama]]:
    model, way = request.param
    with make(paths[model], way) as kept, make(paths[model], way, cache_prompt=False) as fresh:
        yield kept, fresh


def logits_after(llm: Llama, prompt: list[int]) -> Any:
    next(llm.generate(prompt, temp=0.0))
    assert llm._session is not None
    return llm._session.context.logits()


# a talk: each turn adds tokens, answers so many, and now and then changes something that was said before
TURNS = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 20), st.none() | st.floats(0, 1), st.booleans()),
    min_size=2,
    max_size=6,
)


@settings(max_examples=12, deadline=None)
@given(TURNS, st.integers(0, 2**31))
def test_each_turn_is_a_fresh_objects(
    pair: tuple[Llama, Llama], turns: list[tuple[int, int, float | None, bool]], seed: int
) -> None:
    kept, fresh = pair
    rng = np.random.default_rng(seed)
    talk: list[int] = []
    for n_new, n_answer, changed, again in turns:
        if changed is not None and talk:
            del talk[int(changed * len(talk)) :]
        talk += rng.integers(3, 250, n_new).tolist()
        if len(talk) + n_answer + 2 > N_CTX:
            break
        for _ in range(1 + again):
            np.testing.assert_allclose(logits_after(kept, talk), logits_after(fresh, talk), atol=TOLERANCE)
        answer = [token for _, token in zip(range(n_answer), kept.generate(talk, temp=0.0), strict=False)]
        theirs = [token for _, token in zip(range(n_answer), fresh.generate(talk, temp=0.0), strict=False)]
        assert answer == theirs or "near a tie" == near_a_tie(fresh, talk, answer, theirs)
        talk += answer


def near_a_tie(llm: Llama, talk: list[int], ours: list[int], theirs: list[int]) -> str:
    same = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    logits = logits_after(llm, talk + ours[:same])
    return "near a tie" if abs(logits[ours[same]] - logits[theirs[same]]) < 10 * TOLERANCE else "apart"


@pytest.mark.parametrize(
    ("way", "reused"),
    [("full", 49), ("verify", 49), ("single", 20), ("refill", 20), ("refill, all kept", 48)],
)
def test_how_much_is_kept(paths: dict[str, Path], way: str, reused: int) -> None:
    prompt = list(range(3, 23))
    with make(paths["plain"], way) as llm:
        answer = [token for _, token in zip(range(31), llm.generate(prompt, temp=0.0), strict=False)]
        assert len(answer) == 31 and llm.n_tokens == 50  # the last one is not decoded
        next(llm.generate([*prompt, *answer, 5, 6, 7], temp=0.0))
        assert llm.stats is not None
        # of the tokens that are decoded in full one is read again
        assert llm.stats.reused_tokens == reused
        next(llm.generate([9, 9, 9], temp=0.0))
        assert llm.stats.reused_tokens == 0


def test_a_switch(paths: dict[str, Path]) -> None:
    with make(paths["plain"], "full", cache_prompt=False) as llm:
        for _ in range(2):
            llm([3] * 40, max_tokens=2)
            assert llm.stats is not None and llm.stats.reused_tokens == 0
    with make(paths["plain"], "full") as llm:
        for reused in (0, 39):
            llm([3] * 40, max_tokens=2)
            assert llm.stats is not None and llm.stats.reused_tokens == reused
        llm.replay([3] * 40, [5, 6])
        assert llm.stats.reused_tokens == 0
    with pytest.raises(TypeError, match="cache_prompt"):
        make(paths["plain"], "full", cache_prompt=1)


def test_after_failures_and_other_uses(paths: dict[str, Path]) -> None:
    prompt = list(range(3, 43))
    with make(paths["plain"], "verify") as llm, make(paths["plain"], "verify", cache_prompt=False) as fresh:
        expected = logits_after(fresh, prompt)
        assert llm._session is not None
        for spoil in (
            lambda: llm._session.context.abort_after(30),
            lambda: llm.eval([7, 7, 7]),
            llm.reset,
            lambda: next(llm.generate([8, 8], reset=False)),
            lambda: next(iter(llm(prompt, stream=True))),  # type: ignore[call-overload]
        ):
            np.testing.assert_allclose(logits_after(llm, prompt), expected, atol=TOLERANCE)
            spoil()
            try:
                llm([*prompt, 9, 9], max_tokens=3)
            except RuntimeError:
                continue
        np.testing.assert_allclose(logits_after(llm, prompt), expected, atol=TOLERANCE)


@pytest.mark.parametrize("way", ["full", "single", "refill", "verify"])
def test_a_saved_state_is_gone_on_from(paths: dict[str, Path], way: str) -> None:
    prompt = list(range(3, 43))
    with make(paths["plain"], way) as llm:
        answer = [token for _, token in zip(range(9), llm.generate(prompt, temp=0.0), strict=False)]
        state = pickle.loads(pickle.dumps(llm.save_state()))
        assert state.n_tokens == llm.n_tokens
        expected = [token for _, token in zip(range(9), llm.generate([*prompt, *answer], temp=0.0), strict=False)]
        reused = llm.stats and llm.stats.reused_tokens
    with make(paths["plain"], way) as other:
        other.load_state(state)
        assert other.input_ids == [*prompt, *answer[:8]]
        tokens = [token for _, token in zip(range(9), other.generate([*prompt, *answer], temp=0.0), strict=False)]
        assert tokens == expected
        assert other.stats is not None and other.stats.reused_tokens == reused >= 40  # type: ignore[operator]


@needs_exact_rows
@pytest.mark.parametrize("way", [{"rho": 0}, {"refresh": "verify"}, {"refresh": "refill", "rho": 0.5, "k": 3}], ids=str)
def test_a_real_models_bits_are_a_fresh_objects(smollm2: Path, way: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    with Llama(smollm2, n_ctx=1024, **way) as kept, Llama(smollm2, n_ctx=1024, cache_prompt=False, **way) as fresh:
        talk = kept.tokenize(b"A short talk about the sea.")
        for _ in range(5):
            talk += kept.tokenize(b" And then?" * int(rng.integers(1, 30)), add_bos=False)
            assert np.array_equal(logits_after(kept, talk), logits_after(fresh, talk))
            answer = [token for _, token in zip(range(30), kept.generate(talk, temp=0.9, seed=3), strict=False)]
            assert answer == [t for _, t in zip(range(30), fresh.generate(talk, temp=0.9, seed=3), strict=False)]
            talk += answer[: int(rng.integers(1, 30))]
        assert kept.stats is not None and kept.stats.reused_tokens > len(talk) // 2


def test_states_that_do_not_fit(paths: dict[str, Path]) -> None:
    with make(paths["plain"], "full") as llm, make(paths["windows"], "full") as other:
        llm.eval(list(range(3, 43)))
        state = llm.save_state()
        with pytest.raises(ValueError, match="state"):
            other.load_state(state)
        assert other.n_tokens == 0 and other([5, 6], max_tokens=2)
        for bad in (
            dataclasses.replace(state, input_ids=state.input_ids[:-1]),
            dataclasses.replace(state, input_ids=(*state.input_ids[:-1], 10**6)),
            dataclasses.replace(state, llama_state=state.llama_state[:-9]),
        ):
            with pytest.raises(ValueError, match="state"):
                llm.load_state(bad)
            assert llm([5, 6], max_tokens=2)
        with pytest.raises(TypeError, match="save_state"):
            llm.load_state(b"")  # type: ignore[arg-type]
