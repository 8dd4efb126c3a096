"""The full model's states for a set of texts, by the engine itself: any file and architecture that it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from loradrop._core import Context, Model
from loradrop.state_store import StateStore, StateWriter, Tokens, inputs_name


def engine_states(
    model: Model,
    tokens: Tokens,
    layers: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    n_threads: int = 0,
    advance: Callable[[int], None] | None = None,
) -> StateStore:
    """Run texts through the full model and keep the inputs of some layers.

    Parameters
    ----------
    model : Model
    tokens : int32 array [n_texts, n_tokens]
    layers : sequence of int
        0 to n_layer - 1.
    folder : path
        See `StateWriter`.
    n_threads : int
        0 lets the core choose.
    advance : callable, optional
        Called after each text with 1.

    Raises
    ------
    ValueError
        If the folder holds other states, or a state does not fit into float16.
    """
    writer = StateWriter(folder, tokens, {inputs_name(layer): model.n_embd for layer in layers})
    prefill(model, tokens[writer.done :], layers, writer, n_threads=n_threads, advance=advance)
    return StateStore(folder)


def prefill(
    model: Model,
    tokens: Tokens,
    layers: Sequence[int],
    writer: StateWriter,
    *,
    n_threads: int = 0,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Run texts through the full model and append the inputs of some layers to a store.

    Parameters
    ----------
    writer : StateWriter
        Of the inputs of these layers.
    model, tokens, layers, n_threads, advance
        See `engine_states`.
    """
    n_tokens = tokens.shape[1]
    context = Context(
        model,
        n_ctx=n_tokens,
        n_batch=n_tokens,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        capture=[layer - 1 for layer in layers],
    )
    for text in tokens:
        context.clear()
        context.decode(text.tolist())
        writer.append({inputs_name(layer): context.states(layer - 1)[None] for layer in layers})
        if advance is not None:
            advance(1)
