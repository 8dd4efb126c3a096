"""The contexts in which the windows are decoded, and how many sequences they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from loradrop._core import Context, Model, usable_processors
from loradrop.evaluate.point import Point
from loradrop.options import FULL, ContextOptions, Drop

KV_BUDGET = 2 * 2**30  # bytes; a constant, so that a machine's free memory does not decide the batches' shape
MAX_SEQUENCES = 256  # llama.cpp's
MOST_AT_ONCE = 64  # more do not decode quicker
MIN_BATCH = 512
UBATCH = 256  # compute buffers grow with it, and there are many contexts
CELL_BLOCK = 256  # llama.cpp rounds each sequence's cells up to whole blocks


class _CacheOptions(TypedDict):
    flash_attn: str
    type_k: str
    type_v: str


def choose_parallel(model: Model, options: ContextOptions, n_windows: int, n_contexts: int) -> int:
    """Return how many windows to decode at once, so that the K/V caches of all contexts stay below 2 GiB.

    Parameters
    ----------
    options : ContextOptions
        n_ctx is the window.
    """
    probe = Context(model, n_ctx=CELL_BLOCK, n_batch=1, n_ubatch=1, n_threads=1, **_cache_options(options))
    blocks = -(-options.n_ctx // CELL_BLOCK)
    n_bytes = probe.stats["kv_bytes"] * blocks * n_contexts
    probe.close()
    most = min(n_windows, MOST_AT_ONCE, KV_BUDGET // max(1, n_bytes))
    if most < 2:
        return 1
    n_groups = -(-n_windows // most)
    return -(-n_windows // n_groups)


def choose_threads(n_threads: int | None, n_contexts: int) -> tuple[int, int]:
    """Return how many contexts decode at the same time, and the threads of each.

    Parameters
    ----------
    n_threads : int, optional
        Threads of all together; None takes as many as there are processors.
    """
    if n_threads is None:
        n_threads = usable_processors()
    return min(n_contexts, n_threads), max(1, n_threads // n_contexts)


def choose_leaders(model: Model, points: Sequence[tuple[Point, Drop]]) -> list[int]:
    """Return for the context that decodes in full, and then for each point's, the first that drops the same layers.

    A prompt, which is a full step, leaves the same in all of them, whatever their schedules.
    """
    first: dict[object, int] = {}
    leaders = [0]
    for i, (_, drop) in enumerate(points, start=1):
        path = "" if drop.corrector is None else drop.corrector.path
        leaders.append(first.setdefault((path, drop.reuse, drop.dropped_layers(model.n_layer)), i))
    return leaders


def make_contexts(
    model: Model,
    points: Sequence[tuple[Point, Drop]],
    options: ContextOptions,
    *,
    prompt: int,
    n_parallel: int,
    threads: int,
    profile: bool = False,
) -> list[Context]:
    """Return a context that decodes in full, and then one for each point.

    Parameters
    ----------
    options : ContextOptions
        n_ctx is the window.
    prompt : int
        Tokens of the prompt.
    n_parallel : int
        Sequences of each context.
    threads : int
        Threads of each context.
    profile : bool
        Whether they time their operations.
    """
    window = options.n_ctx
    replayed = max([min(drop.k, window) for _, drop in points], default=0)
    # the refill of all sequences in one batch
    n_batch = max(MIN_BATCH, prompt, n_parallel * (1 + replayed))
    return [
        Context(
            model,
            n_ctx=n_parallel * window,
            n_batch=n_batch,
            n_ubatch=UBATCH,
            n_seq_max=n_parallel,
            n_threads=threads,
            n_threads_batch=threads,
            swa_full=False,
            kv_unified=False,  # else each token would be checked against the cells of all sequences
            corrector=drop.corrector,
            rho=drop.rho,
            k=drop.k,
            adapt_k=drop.adapt_k,
            refresh=drop.refresh,
            kv_window=point.kv_window,
            profile=profile,
            **_cache_options(options),
        )
        for point, drop in [(Point(), FULL), *points]
    ]


def _cache_options(options: ContextOptions) -> _CacheOptions:
    return {"flash_attn": options.flash_attn_name, "type_k": options.type_k, "type_v": options.type_v}
