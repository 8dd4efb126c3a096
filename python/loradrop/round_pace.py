"""How long rounds of exact decoding take on this machine, beside a full step: measured once, and kept."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from loradrop._core import Context, Corrector, Model, current_cpu_kernels
from loradrop.fingerprint import fingerprint
from loradrop.fixed_text import prompt_tokens
from loradrop.kept import keep, kept_path, read_kept
from loradrop.processor import processor_name

MOST_DRAFTS = 7  # with the token before them eight, of which the CPU computes each as it would alone
PAUSE = 0.02  # seconds between contexts, after which the threads of the one before no longer poll for work

_VERSION = 1  # of the way in which they are measured
_PROMPT = 48
_TURNS = 3
_STEPS = 3  # of a turn, for each way to decode; what slows the machine down for a while then meets all alike


def round_pace(model: Model, corrector: Corrector, n: int, k: int) -> list[float]:
    """Return the times of rounds of 1, 2, ..., k drafts over that of a full step.

    A round is its LoRA steps and the batch that checks them. Measuring takes as long as some 60 tokens, for k = 3, and
    is done once for a processor, a model and a corrector: what was found lies in the cache folder.

    Parameters
    ----------
    model : Model
    corrector : Corrector
    n : int
        Layers that LoRA steps leave out.
    k : int
        Most drafts, 1 or more.

    Raises
    ------
    ModelError
        If the model has no tokenizer.
    """
    kept = kept_path("round_pace", *_key(model, corrector, n, k))
    pace = read_kept(kept).get("pace")
    if isinstance(pace, list) and len(pace) == k and all(isinstance(one, float) and one > 0 for one in pace):
        return pace
    pace = _measure(model, corrector, n, k)
    keep(kept, {"model": model.description, "processor": processor_name(), "n": n, "pace": pace})
    return pace


def _key(model: Model, corrector: Corrector, n: int, k: int) -> list[object]:
    with_file = [corrector.reuse, corrector.rank, corrector.n_bytes, Path(corrector.path).name]
    return [_VERSION, model.layout_hash, fingerprint(model), *with_file, n, k, processor_name(), current_cpu_kernels()]


def _measure(model: Model, corrector: Corrector, n: int, k: int) -> list[float]:
    n_ctx = _PROMPT + _TURNS * _STEPS + k + 1
    rho = n / model.n_layer
    contexts = [Context(model, n_ctx=n_ctx)] + [
        Context(model, n_ctx=n_ctx, corrector=corrector, rho=rho, k=drafts, refresh="verify")
        for drafts in range(1, k + 1)
    ]
    try:
        tokens = prompt_tokens(model, _PROMPT)
        for context in contexts:
            context.decode(tokens)
            _decode_other(context)  # the first round makes its graphs
        seconds: list[list[float]] = [[] for _ in contexts]
        for _ in range(_TURNS):
            for context, ours in zip(contexts, seconds, strict=True):
                time.sleep(PAUSE)
                ours += [_decode_other(context) for _ in range(_STEPS)]
    finally:
        for context in contexts:
            context.close()
    medians = [float(np.median(ours)) for ours in seconds]
    return [one / medians[0] for one in medians[1:]]


def _decode_other(context: Context) -> float:
    """Return the seconds of decoding a token that was not drafted, which begins a round."""
    token = int(context.drafted() == 0)
    began = time.perf_counter()
    context.decode([token])
    return time.perf_counter() - began
