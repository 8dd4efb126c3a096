"""Batches of a few tokens beside one token, with one set of CPU kernels beside another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

from loradrop._core import Context, Model, UnsupportedError, cpu_kernels, current_cpu_kernels, use_cpu_kernels
from loradrop.bench.batch_report import BatchReport, ContextBatches, batch_times
from loradrop.bench.machine_floor import MachineFloor, measure_floor
from loradrop.checks import check_choice, check_int
from loradrop.evaluate.contexts import UBATCH, make_contexts
from loradrop.fixed_text import prompt_tokens
from loradrop.loading import load_model
from loradrop.models import resolve_model
from loradrop.options import ContextOptions
from loradrop.processor import processor_name
from loradrop.progress import Progress, counter

T = TypeVar("T")

SIZES = (1, 2, 3, 4, 6, 8)  # a refill at k = 1, 2, 3, 5 and 7
CONTEXTS = (32, 2000)  # where attention takes next to nothing, and where it takes its share
ROUNDS = 15


def batches(
    model: str | os.PathLike[str] | Model,
    sizes: Sequence[int] = SIZES,
    contexts: Sequence[int] = CONTEXTS,
    kernels: Sequence[str] | None = None,
    *,
    n_rounds: int = ROUNDS,
    n_threads: int | None = None,
    flash_attn: str | bool = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    use_hugepages: bool = False,
    progress: Progress | None = None,
) -> BatchReport:
    """Measure how long batches of a few tokens take beside one token, with several sets of CPU kernels.

    The full model decodes a fixed prompt of each length. Then, in rounds, it decodes the next tokens in batches of each
    size and takes them back, so that every batch meets the same context. All logits of a batch are computed, as where
    drafted tokens are checked. Of a size all sets of kernels decode one right after the other; each round begins with
    another size and another set, and ratios are taken within a round. Before each size one batch is decoded that is not
    timed, for llama.cpp builds a graph whenever the size of the batch changes, which it does not where a size has a
    graph of its own, as a refill and a LoRA step do.

    What the machine can do at best is measured before the rounds of each prompt; the best counts.

    Parameters
    ----------
    model : str, path or Model
        As in `loradrop.Llama`, or an open model.
    sizes : sequence of int
        Tokens of the batches, 1 to 256. One token is always measured.
    contexts : sequence of int
        Lengths of the prompt, in tokens.
    kernels : sequence of str, optional
        Names that ``loradrop._core.cpu_kernels()`` gives, the first of which the others are compared with. None takes
        llama.cpp's own and those in use. No other thread may decode meanwhile.
    n_rounds : int
        Rounds that count; one more is run before them.
    n_threads : int, optional
        None leaves it to the core.
    flash_attn, type_k, type_v, use_hugepages
        As in `loradrop.Llama`; for an open model `use_hugepages` has no meaning.
    progress : callable, optional
        Called after each round with how many are done, and with how many there are.

    Returns
    -------
    BatchReport

    Raises
    ------
    FileNotFoundError, ModelError
        As `loradrop.Llama`.
    UnsupportedError
        For a model from whose memory tokens cannot be taken back.
    ValueError, TypeError
        For an argument out of its range or of the wrong type.
    """
    check_int("n_rounds", n_rounds, 1)
    # in ascending order, so that the table reads so
    all_sizes = tuple(sorted({1, *(check_int("sizes", size, 1, UBATCH) for size in sizes)}))
    lengths = tuple(dict.fromkeys(check_int("contexts", length, 1) for length in contexts))
    if not lengths:
        raise ValueError("contexts is empty: give at least one length")
    names = _check_kernels(kernels)
    options = [
        ContextOptions(
            n_ctx=length + all_sizes[-1],
            n_threads=n_threads,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            use_hugepages=use_hugepages,
        )
        for length in lengths
    ]
    opened = model if isinstance(model, Model) else load_model(resolve_model(model), options[0])
    advance = counter(progress, len(lengths) * (n_rounds + 1))

    measured: list[ContextBatches] = []
    floors: list[MachineFloor] = []
    threads_used = 0
    kernels_before = current_cpu_kernels()
    try:
        for length, option in zip(lengths, options, strict=True):
            (context,) = make_contexts(opened, [], option, prompt=length, n_parallel=1, threads=n_threads or 0)
            try:
                threads_used = context.n_threads
                use_cpu_kernels(names[-1])
                floors.append(measure_floor(opened, threads_used))
                tokens = _begin(context, opened, length, all_sizes[-1])
                seconds = _run_rounds(context, length, tokens, all_sizes, names, n_rounds, advance)
                kv_bytes = context.stats["kv_bytes"] * length // context.n_ctx
            finally:
                context.close()
            measured.append(ContextBatches(length, kv_bytes, batch_times(seconds, all_sizes, names)))
    finally:
        use_cpu_kernels(kernels_before)
    return BatchReport(
        model=opened.path if isinstance(model, Model) else os.fspath(model),
        description=opened.description,
        processor=processor_name(),
        n_rounds=n_rounds,
        n_threads=threads_used,
        sizes=all_sizes,
        kernels=names,
        floor=reduce(MachineFloor.better, floors),
        contexts=tuple(measured),
    )


def _check_kernels(kernels: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the sets of kernels, each once."""
    there = cpu_kernels()
    if kernels is None:
        kernels = (there[0], current_cpu_kernels())
    if not kernels:
        raise ValueError(f"kernels is empty: give some of {', '.join(map(repr, there))}, or None")
    return tuple(dict.fromkeys(check_choice("kernels", name, there) for name in kernels))


def _begin(context: Context, model: Model, length: int, most: int) -> list[int]:
    """Decode a prompt of `length` tokens, and return the next `most`."""
    if context.n_ctx < length + most:
        raise ValueError(
            f"contexts={length}: with batches of {most} tokens too long for this model, which has positions for "
            f"{context.n_ctx}; give a shorter one"
        )
    tokens = prompt_tokens(model, length + most)
    context.decode(tokens[:length])
    return tokens[length:]


def _run_rounds(
    context: Context,
    length: int,
    tokens: Sequence[int],
    sizes: Sequence[int],
    kernels: Sequence[str],
    n_rounds: int,
    advance: Callable[[int], None],
) -> dict[tuple[int, str], list[float]]:
    """Return the seconds of every round, by the batch's size and the kernels.

    A first round is not kept: weights are read from disk in it.
    """
    rounds: dict[tuple[int, str], list[float]] = {(size, name): [] for size in sizes for name in kernels}
    for i in range(n_rounds + 1):
        in_turn = _rotated(kernels, i)
        for size in _rotated(sizes, i):
            use_cpu_kernels(in_turn[0])
            _batch_seconds(context, tokens[:size], length)
            for name in in_turn:
                use_cpu_kernels(name)
                seconds = _batch_seconds(context, tokens[:size], length)
                if i:
                    rounds[size, name].append(seconds)
        advance(1)
    return rounds


def _rotated(items: Sequence[T], first: int) -> Sequence[T]:
    at = first % len(items)
    return [*items[at:], *items[:at]]


def _batch_seconds(context: Context, tokens: Sequence[int], length: int) -> float:
    """Return the seconds in which a batch is decoded with all its logits; the context is as before after it."""
    started = time.perf_counter()
    context.decode(tokens, outputs=[True] * len(tokens))
    seconds = time.perf_counter() - started
    if not context.seq_rm(0, length):
        raise UnsupportedError(
            "the memory of this model does not let tokens be taken back, so a batch has no repetition"
        )
    return seconds
