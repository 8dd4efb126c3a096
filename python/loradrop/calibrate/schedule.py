"""What layers see under the schedule where that is not what the full model sees."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from loradrop._core import Context, Corrector
from loradrop.calibrate.candidate import prompt_length, segment_data
from loradrop.calibrate.job import Job
from loradrop.calibrate.pairs import LoraSteps
from loradrop.progress import stage_counter
from loradrop.state_store import StateStore, StateWriter, Tokens, inputs_name
from loradrop_convert.corrector import CorrectorData
from loradrop_convert.gguf_file import write_sidecar

N_PARALLEL = 16  # sequences at once


def anchor_positions(n_tokens: int, k: int) -> NDArray[np.intp]:
    """Return where anchors are after a window's prompt, as far as k LoRA steps follow in the window."""
    return np.arange(prompt_length(n_tokens) - 1, n_tokens - k, k + 1)


def single_steps(job: Job, store: StateStore, block: tuple[int, int], layers: Collection[int]) -> LoraSteps:
    """Return the LoRA steps of decoding with ``refresh="single"`` while a block drops.

    The block's input is exact at every token, as all layers below run in full. What it gives at an anchor is not the
    full model's, as its layers never see LoRA tokens; no corrector has a part in it, so that one run of the texts
    through the engine gives it once and for all.

    Parameters
    ----------
    job : Job
    store : StateStore
        The full model's states.
    block : (int, int)
        First and last layer.
    layers : collection of int
        Whose inputs are kept, from the block's first layer to the one above its last.
    """
    folder = job.folder / f"anchors-{block[0]}-{block[1]}"
    anchors = anchor_positions(store.tokens.shape[1], job.options.k)
    widths = {inputs_name(layer): job.model.n_embd for layer in layers}
    writer = StateWriter(folder, store.tokens[:, anchors], widths)
    context = _context(job, block[0], layers, store.tokens.shape[1])
    advance = stage_counter(job.show, f"anchors of layers {block[0]} to {block[1]}", len(store))
    for first in range(0, len(store), N_PARALLEL):
        texts = store.tokens[first : first + N_PARALLEL]
        writer.append(_decode(context, texts, anchors, sorted(layers)))
        advance(len(texts))
    return LoraSteps(store, anchors, job.options.k, range(len(store)), StateStore(folder))


def _context(job: Job, first: int, layers: Collection[int], n_tokens: int) -> Context:
    # what is above the block has no part in it either, so it drops as well: that is quicker
    last = job.model.n_layer - 2
    path = job.folder / "nothing.gguf"
    write_sidecar(path, no_correction((first, last), job.model.n_embd), job.base, force=True)
    return Context(
        job.model,
        n_ctx=N_PARALLEL * n_tokens,
        n_batch=max(N_PARALLEL, prompt_length(n_tokens)),
        n_seq_max=N_PARALLEL,
        n_threads=job.options.n_threads,
        n_threads_batch=job.options.n_threads,
        kv_unified=False,
        corrector=Corrector.load(str(path), job.model),
        rho=(last - first + 1) / job.model.n_layer,
        k=job.options.k,
        refresh="single",
        capture=[layer - 1 for layer in layers],
    )


def _decode(
    context: Context, texts: Tokens, anchors: NDArray[np.intp], layers: list[int]
) -> dict[str, NDArray[np.float32]]:
    """Decode texts in step, and return the layers' inputs at the anchors, [n_texts, n_anchors, n_embd]."""
    context.clear()
    n_prompt, rows = int(anchors[0]) + 1, range(len(texts))
    at_prompt: list[dict[int, NDArray[np.float32]]] = []
    for row in rows:
        outputs = [False] * (n_prompt - 1) + [True]  # else the next token would count as prompt
        context.decode(texts[row, :n_prompt].tolist(), seq_ids=[row] * n_prompt, outputs=outputs)
        at_prompt.append({layer: context.states(layer - 1)[-1] for layer in layers})
    states = {layer: [np.stack([x[layer] for x in at_prompt])] for layer in layers}
    for position in range(n_prompt, int(anchors[-1]) + 1):
        context.decode(texts[:, position].tolist(), seq_ids=rows, outputs=[True] * len(texts))
        if position in anchors:
            for layer in layers:
                states[layer].append(context.states(layer - 1))
    return {inputs_name(layer): np.stack(steps, 1) for layer, steps in states.items()}


def no_correction(run: tuple[int, int], n_embd: int) -> CorrectorData:
    """Return a corrector with which a run gives its input."""
    parts = {
        "carry": np.zeros(n_embd, np.float32),
        "a": np.zeros((1, 3 * n_embd), np.float32),
        "b": np.zeros((n_embd, 1), np.float32),
    }
    return segment_data([run], [parts])
