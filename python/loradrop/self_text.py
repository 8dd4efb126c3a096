"""Text that a model writes itself: what it will decode, and so what a corrector should be fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from loradrop._core import Context, Model, Sampler
from loradrop.chat_template import ChatTemplate, has_template, model_template
from loradrop.checks import check_float, check_int
from loradrop.prompt import text_tokens
from loradrop.state_store import States, Tokens

N_PARALLEL = 16  # sequences at once; a batch of them costs little more than one
MAX_SEED = 2**31 - 1  # each text adds one to it
MARK = "\N{OBJECT REPLACEMENT CHARACTER}loradrop\N{OBJECT REPLACEMENT CHARACTER}"


def write_texts(
    model: Model,
    n_texts: int,
    n_tokens: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    min_p: float = 0.02,
    n_threads: int = 0,
    advance: Callable[[int], None] | None = None,
    capture: Sequence[int] = (),
    observe: Callable[[Tokens, dict[int, States]], None] | None = None,
) -> Tokens:
    """Let a model write texts: dialogues, both sides of them, where it has a chat template.

    The model is given the beginning of a user's turn and goes on, as in Magpie (arXiv 2406.08464); where it ends its
    turn, the template's beginning of the next one follows. Without a template each text begins with BOS.

    Parameters
    ----------
    model : Model
    n_texts, n_tokens : int
        How many texts, and the length of each, 1 or more.
    seed : int
        The same seed gives the same texts on the same machine.
    temperature, min_p : float
        Of the sampling, see `SamplingOptions`.
    n_threads : int
        0 lets the core choose.
    advance : callable, optional
        Called after each round with the number of texts done in it.
    capture : sequence of int
        Layers whose outputs `observe` is given, -1 for the first one's input to n_layer - 2.
    observe : callable, optional
        Called after each round with its texts, int32 [n, n_tokens], and with layer -> float16 [n, n_tokens, n_embd]:
        the states of every token, from the very passes that write. The texts are the same with it and without.

    Returns
    -------
    int32 array [n_texts, n_tokens]

    Raises
    ------
    ValueError
        For a number out of its range.
    """
    check_int("n_texts", n_texts, 1, 2**31 - 1)
    check_int("n_tokens", n_tokens, 1, 2**20)
    check_int("seed", seed, 0, MAX_SEED)
    check_float("temperature", temperature, 0.0, 100.0)
    turns = _turns(model)
    n_parallel = min(N_PARALLEL, n_texts)
    context = Context(
        model,
        n_ctx=n_parallel * n_tokens,
        n_batch=n_parallel,
        n_ubatch=n_parallel,
        n_seq_max=n_parallel,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        kv_unified=False,
        capture=capture,
    )
    texts: list[Tokens] = []
    while len(texts) < n_texts:
        n = min(n_parallel, n_texts - len(texts))
        samplers = [
            Sampler(model, temperature=temperature, top_k=0, top_p=1.0, min_p=min_p, seed=seed + len(texts) + i)
            for i in range(n)
        ]
        states = {layer: np.empty((n, n_tokens, model.n_embd), np.float16) for layer in capture}
        written = _write_round(context, model, samplers, n_tokens, turns, None if observe is None else states)
        texts += list(written)
        context.clear()
        if observe is not None:
            observe(written, states)
        if advance is not None:
            advance(n)
    return np.stack(texts)


def _write_round(
    context: Context,
    model: Model,
    samplers: list[Sampler],
    n_tokens: int,
    turns: list[list[int]],
    states: dict[int, States] | None,
) -> Tokens:
    """Write one text for each sampler, all in step; `turns` are what stands before each turn, over and over."""
    n = len(samplers)
    texts = np.empty((n, n_tokens), np.int32)
    given = [list(turns[0]) for _ in range(n)]
    n_turns = [1] * n
    for position in range(n_tokens):
        for i, sampler in enumerate(samplers):
            if not given[i]:
                token = sampler.sample(context, i)
                given[i] = [token]
                if model.is_eog(token):
                    turn = turns[1 + (n_turns[i] - 1) % (len(turns) - 1)]
                    given[i] = list(turn) if turn[:1] == [token] else [token, *turn]
                    n_turns[i] += 1
            texts[i, position] = given[i].pop(0)
        # nothing follows the last token, so that only its states can be asked for
        if position + 1 < n_tokens or states is not None:
            context.decode(texts[:, position].tolist(), seq_ids=range(n), positions=[position] * n, outputs=[True] * n)
        for layer, kept in (states or {}).items():
            with np.errstate(over="ignore"):  # who keeps them refuses infinity
                kept[:, position] = context.states(layer)
    return texts


def _turns(model: Model) -> list[list[int]]:
    """Return the tokens before the first turn, then those between turns, in the order in which they come."""
    start = [model.bos_token if model.bos_token >= 0 else model.eos_token]
    if not has_template(model):
        return [start, start]
    template = model_template(model)
    user = [{"role": "user", "content": MARK}]
    answered = [*user, {"role": "assistant", "content": MARK}]
    before, after_user = _split(template, user, 2)
    *_, between, _ = _split(template, [*answered, *user], 4)
    return [_tokens(model, before) or start, _tokens(model, after_user), _tokens(model, between)]


def _split(template: ChatTemplate, messages: list[dict[str, str]], n_parts: int) -> list[str]:
    parts = template.render(messages).split(MARK)
    if len(parts) != n_parts:
        raise ValueError("the model's chat template changes the messages; give a text instead of the model's own")
    return parts


def _tokens(model: Model, text: str) -> list[int]:
    return text_tokens(model, text.encode(), add_bos=False, special=True)
