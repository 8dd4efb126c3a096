"""Perplexity of decoded tokens, beside the full model's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from loradrop._core import Model
from loradrop.checks import check_int
from loradrop.evaluate.contexts import (
    MAX_SEQUENCES,
    choose_leaders,
    choose_parallel,
    choose_threads,
    make_contexts,
)
from loradrop.evaluate.lockstep import Lockstep, Measures
from loradrop.evaluate.point import Point, resolve_points
from loradrop.evaluate.report import PointReport, Report, scores, scores_by_distance
from loradrop.evaluate.windows import Texts, check_windows, text_windows
from loradrop.models import resolve_model
from loradrop.options import ContextOptions, Drop
from loradrop.progress import Progress, counter
from loradrop.state_store import Tokens

Data = str | Sequence[str] | Mapping[str, str] | npt.NDArray[np.integer]


def perplexity(
    model: str | os.PathLike[str] | Model,
    data: Data,
    points: Sequence[Point] = (Point(),),
    *,
    corrector: str | os.PathLike[str] | None = None,
    allow_uncorrected: bool = False,
    prompt: int = 64,
    window: int = 256,
    n_windows: int | None = 64,
    n_parallel: int | None = None,
    n_threads: int | None = None,
    flash_attn: str | bool = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    progress: Progress | None = None,
) -> Report:
    """Measure how well a model predicts text while it decodes with LoRA-Drop.

    A window's first `prompt` tokens are one full step. The tokens after it are decoded one by one on the schedule, as
    if they had been sampled, and each is scored with the logits that the token before it has left. (Scoring a text in
    one forward pass would never take a LoRA step.) The full model decodes the same tokens beside it.

    Parameters
    ----------
    model : str, path or Model
        As in `loradrop.Llama`, or an open model.
    data : str, sequence of str, mapping of str to str, or int array [n_windows, window]
        Texts, which the model's tokenizer and `text_windows` make windows of, or the windows' tokens themselves.
    points : sequence of Point
        Where to measure. The full model is always measured; points at which nothing drops are left out.
    corrector : path, optional
        A sidecar for the points that name none.
    allow_uncorrected : bool
        Whether layers may drop without a trained corrector.
    prompt : int
        Tokens of a window's prompt, from 1 to window - 1.
    window : int
        Tokens of a window that is cut from text.
    n_windows : int, optional
        Windows to take of the texts, evenly spread; None takes all.
    n_parallel : int, optional
        Windows decoded at once, as parallel sequences. None takes at most 64, and so many that the K/V caches of all
        points stay below 2 GiB. The figures depend on it only by rounding.
    n_threads : int, optional
        Threads of all points together; None takes as many as there are processors.
    flash_attn, type_k, type_v : str
        As in `loradrop.Llama`.
    progress : callable, optional
        Called now and then with the tokens that are done, and with how many there are.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError, ModelError, CorrectorError, UnsupportedError
        As `loradrop.Llama`.
    ValueError, TypeError
        For an argument out of its range or of the wrong type, a text that is shorter than a window, or windows that
        are longer than the texts that the model was trained with.
    """
    options = ContextOptions(
        n_ctx=check_int("window", window, 2),
        n_threads=n_threads,
        flash_attn=flash_attn,
        type_k=type_k,
        type_v=type_v,
    )
    check_int("prompt", prompt, 1)
    if n_windows is not None:
        check_int("n_windows", n_windows, 1)
    if n_parallel is not None:
        check_int("n_parallel", n_parallel, 1, MAX_SEQUENCES)
    opened = model if isinstance(model, Model) else Model(os.fspath(resolve_model(model)))
    resolved = resolve_points(points, opened, corrector, allow_uncorrected)
    if any(point.refresh == "verify" for point, _ in resolved):
        raise ValueError(
            "refresh='verify' loses nothing; measure refresh='refill', which says how many tokens a round would give"
        )
    windows = _windows(opened, data, prompt, window, n_windows)
    options = dataclasses.replace(options, n_ctx=windows.shape[1])
    measures = _measure(opened, windows, resolved, options, prompt, n_parallel, progress)
    return Report(
        model=opened.path if isinstance(model, Model) else os.fspath(model),
        n_windows=len(windows),
        window=windows.shape[1],
        prompt=prompt,
        full=scores(measures, 0),
        points=tuple(
            PointReport(
                point=point,
                reuse=drop.reuse,
                dropped_layers=drop.dropped_layers(opened.n_layer),
                total=scores(measures, i),
                by_distance=scores_by_distance(measures, i),
            )
            for i, (point, drop) in enumerate(resolved, start=1)
        ),
    )


def _windows(model: Model, data: Data, prompt: int, window: int, n_windows: int | None) -> Tokens:
    is_text = isinstance(data, (str, Mapping)) or all(isinstance(text, str) for text in data)
    tokens = None if is_text else check_windows(model, data)
    window = window if tokens is None else tokens.shape[1]
    if prompt >= window:
        raise ValueError(f"prompt={prompt}: it leaves nothing to score of window={window}; make it smaller")
    if 0 < model.n_ctx_train < window:
        raise ValueError(f"window={window}: the model was trained with texts of n_ctx_train={model.n_ctx_train} tokens")
    return text_windows(model, cast(Texts, data), window, n_windows) if tokens is None else tokens


def _measure(
    model: Model,
    windows: Tokens,
    points: Sequence[tuple[Point, Drop]],
    options: ContextOptions,
    prompt: int,
    n_parallel: int | None,
    progress: Progress | None,
) -> Measures:
    """Return the measures of the full model and then the points."""
    n_windows, window = windows.shape
    n_contexts = 1 + len(points)
    n_workers, threads = choose_threads(options.n_threads, n_contexts)
    if n_parallel is None:
        n_parallel = choose_parallel(model, options, n_windows, n_contexts)
    n_parallel = min(n_parallel, n_windows)
    contexts = make_contexts(model, points, options, prompt=prompt, n_parallel=n_parallel, threads=threads)
    measures = Measures.empty(n_contexts, n_windows, window - prompt)
    advance = counter(progress, n_windows * (window - 1))
    with Lockstep(contexts, choose_leaders(model, points), n_workers) as lockstep:
        for first in range(0, n_windows, n_parallel):
            group = slice(first, first + n_parallel)
            lockstep.run(windows[group], prompt, measures.of_windows(group), advance)
    return measures
