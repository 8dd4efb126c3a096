"""A fixed prompt, and the full model's own continuation of it: what is decoded where any text will do."""

from __future__ import annotations

from loradrop._core import Context, Model
from loradrop.prompt import text_tokens

_TEXT = (
    "The harbour lay quiet in the early light. Fishing boats rocked at their moorings, and a thin mist drifted over "
    "the water towards the lighthouse. On the quay two children counted the gulls, lost count, laughed, and began "
    "again from one. Somewhere behind them a door opened, and the smell of bread came down the street. "
)


def prompt_tokens(model: Model, n_tokens: int) -> list[int]:
    """Return a prompt of `n_tokens` tokens, the same for each model of the same tokenizer."""
    text = _TEXT
    while len(tokens := text_tokens(model, text.encode(), add_bos=True, special=False)) < n_tokens:
        text += text
    return tokens[:n_tokens]


def greedy_tokens(context: Context, prompt: list[int], n_tokens: int) -> list[int]:
    """Return the tokens that a context decodes after a prompt, each the most probable one, up to and past any end."""
    context.clear()
    context.decode(prompt)
    return greedy_continuation(context, n_tokens)


def greedy_continuation(context: Context, n_tokens: int) -> list[int]:
    """Return the tokens that a context decodes after what it has decoded, as `greedy_tokens`."""
    tokens: list[int] = []
    for _ in range(n_tokens):
        tokens.append(int(context.logits().argmax()))
        context.decode(tokens[-1:])
    return tokens
