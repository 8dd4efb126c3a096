"""Points and the full model decode the same tokens in turn, and are timed."""

from __future__ import annotations

import os
from collections.abc import Sequence

from loradrop._core import Model
from loradrop.bench.report import BenchReport, PointBench, ceiling_of, decode_of, speed_up_of
from loradrop.bench.step_bytes import step_bytes
from loradrop.bench.timing import Job, run_rounds
from loradrop.checks import check_int
from loradrop.evaluate.contexts import make_contexts
from loradrop.evaluate.point import Point, resolve_points
from loradrop.fixed_text import greedy_tokens, prompt_tokens
from loradrop.loading import load_model
from loradrop.models import resolve_model
from loradrop.options import FULL, ContextOptions, Drop
from loradrop.progress import Progress, counter

ROUNDS = 5


def bench(
    model: str | os.PathLike[str] | Model,
    points: Sequence[Point] = (Point(),),
    *,
    corrector: str | os.PathLike[str] | None = None,
    allow_uncorrected: bool = False,
    prompt: int = 128,
    tokens: int = 64,
    n_rounds: int = ROUNDS,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    flash_attn: str | bool = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    use_hugepages: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure how quickly a model decodes with LoRA-Drop, beside the full model.

    The full model continues a fixed prompt, always with the most probable token. Then all points and the full model
    decode these tokens, in one process and in rounds, taking turns every few tokens. A point's speed-up is taken within
    each round. For ``refill`` the full model's batches of k + 1 tokens are timed in the rounds too.

    Parameters
    ----------
    model : str, path or Model
        As in `loradrop.Llama`, or an open model, for which `n_gpu_layers` and `use_hugepages` have no meaning.
    points : sequence of Point
        Where to measure. The full model is always measured; points at which nothing drops are left out.
    corrector : path, optional
        A sidecar for the points that name none.
    allow_uncorrected : bool
        Whether layers may drop without a trained corrector.
    prompt : int
        Tokens of the prompt.
    tokens : int
        Tokens decoded after it in every round, at least one period of each point.
    n_rounds : int
        Rounds that count; one more is run before them.
    n_threads : int, optional
        None leaves it to the core.
    n_gpu_layers, flash_attn, type_k, type_v, use_hugepages
        As in `loradrop.Llama`.
    progress : callable, optional
        Called after each decode with how many are done, and with how many there are.

    Returns
    -------
    BenchReport

    Raises
    ------
    FileNotFoundError, ModelError, CorrectorError, UnsupportedError
        As `loradrop.Llama`.
    ValueError, TypeError
        For an argument out of its range or of the wrong type.
    """
    check_int("prompt", prompt, 1)
    check_int("tokens", tokens, 1)
    check_int("n_rounds", n_rounds, 1)
    options = ContextOptions(
        n_ctx=prompt + tokens,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        flash_attn=flash_attn,
        type_k=type_k,
        type_v=type_v,
        use_hugepages=use_hugepages,
    )
    opened = model if isinstance(model, Model) else load_model(resolve_model(model), options)
    resolved = resolve_points(points, opened, corrector, allow_uncorrected)
    for point, drop in resolved:
        if point.refresh != "verify" and tokens < drop.k + 1:
            raise ValueError(f"tokens={tokens}: a period at k={point.k} has {drop.k + 1}; give at least as many")
    all_bytes = [step_bytes(opened, drop) for _, drop in resolved]

    widths = sorted({drop.k + 1 for _, drop in resolved if _has_batches(drop)})
    in_full = [(Point(), FULL) for _ in widths]
    contexts = make_contexts(
        opened, [*resolved, *in_full], options, prompt=prompt, n_parallel=1, threads=n_threads or 0
    )
    try:
        jobs = [Job(context) for context in contexts[: 1 + len(resolved)]]
        batches = {width: Job(context, width) for width, context in zip(widths, contexts[len(jobs) :], strict=True)}
        begin = prompt_tokens(opened, prompt)
        rest = greedy_tokens(contexts[0], begin, tokens)
        everything = [*jobs, *batches.values()]
        run_rounds(everything, begin, rest, n_rounds, counter(progress, len(everything) * (n_rounds + 1)))
        threads_used = contexts[0].n_threads
        head_bytes = [job.context.stats["draft_head_bytes"] for job in jobs[1:]]
    finally:
        for context in contexts:
            context.close()

    full = jobs[0]
    reports = []
    for (point, drop), job, n_model, n_head in zip(resolved, jobs[1:], all_bytes, head_bytes, strict=True):
        n_bytes = n_model.with_draft_head(n_head)
        counted = tokens if point.refresh == "verify" else tokens // (drop.k + 1) * (drop.k + 1)
        batch = batches[drop.k + 1] if _has_batches(drop) else None
        reports.append(
            PointBench(
                point=point,
                reuse=drop.reuse,
                dropped_layers=drop.dropped_layers(opened.n_layer),
                decode=decode_of(job, counted),
                speed_up=speed_up_of(full, job, counted),
                step_bytes=n_bytes,
                batch_round_seconds=None if batch is None else batch.rounds,
                ceiling=None if drop.adapt_k else ceiling_of(n_bytes, drop, full, job, batch),
            )
        )
    return BenchReport(
        model=opened.path if isinstance(model, Model) else os.fspath(model),
        description=opened.description,
        prompt=prompt,
        tokens=tokens,
        n_rounds=n_rounds,
        n_threads=threads_used,
        huge_page_bytes=opened.huge_page_bytes,
        full=decode_of(full, tokens),
        points=tuple(reports),
    )


def _has_batches(drop: Drop) -> bool:
    """Whether full steps run k + 1 tokens, whose time the ceiling needs."""
    return drop.refresh == "refill" or (drop.refresh == "verify" and not drop.adapt_k)
