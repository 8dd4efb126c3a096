"""Where the time of a decode goes, operation by operation."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loradrop._core import Context, Model
from loradrop.checks import check_int
from loradrop.evaluate.contexts import make_contexts
from loradrop.evaluate.point import Point, resolve_points
from loradrop.fixed_text import greedy_tokens, prompt_tokens
from loradrop.loading import load_model
from loradrop.models import resolve_model
from loradrop.options import ContextOptions
from loradrop.progress import Progress, counter

_LAYER = re.compile(r"^(?:corrector/)?(?:blk\.\d+\.)?(lora_drop\.seg\.)?(?:\d+\.)?")
Operation = tuple[str, str, str, int, float]  # of `Context.operations`
_PRODUCTS = ("MUL_MAT", "MUL_MAT_ID")  # of which each kind of weights has a line of its own


@dataclass(frozen=True)
class OperationTime:
    """What one kind of operation takes in a step, all layers together.

    Attributes
    ----------
    name : str
        Of matrix products the weights' name without the layer's number, of the others ggml's name of the operation.
    type : str
        The weights' type; empty where there are none, or several types.
    count : int
        Operations of this kind in a step.
    n_bytes : int
        Bytes of their weights in a step; 0 but for matrix products.
    seconds : float
        Of the median step.
    """

    name: str
    type: str
    count: int
    n_bytes: int
    seconds: float


@dataclass(frozen=True)
class StepProfile:
    """The median step of one kind.

    Attributes
    ----------
    point : Point, optional
        None for the full model.
    kind : {"full", "refresh", "lora"}
        Which steps; ``full`` for the full model's.
    n_steps : int
        Over how many.
    operations : tuple of OperationTime
        The longest first.
    """

    point: Point | None
    kind: str
    n_steps: int
    operations: tuple[OperationTime, ...]

    @property
    def seconds(self) -> float:
        """Of all operations together."""
        return sum(operation.seconds for operation in self.operations)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        point = None if self.point is None else self.point.to_dict()
        return {**dataclasses.asdict(self), "point": point, "seconds": self.seconds}


def profile(
    model: str | os.PathLike[str] | Model,
    points: Sequence[Point] = (Point(),),
    *,
    corrector: str | os.PathLike[str] | None = None,
    allow_uncorrected: bool = False,
    prompt: int = 128,
    tokens: int = 64,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    flash_attn: str | bool = "auto",
    type_k: str = "f16",
    type_v: str = "f16",
    use_hugepages: bool = False,
    progress: Progress | None = None,
) -> list[StepProfile]:
    """Time each operation of the steps that a model decodes with, in full and at each point.

    Operations run one by one meanwhile, so the sum is more than a step takes otherwise: a few microseconds for each
    operation.

    Parameters
    ----------
    tokens : int
        Tokens decoded after the prompt, over whose steps the medians are.
    model, points, corrector, allow_uncorrected, prompt, n_threads, n_gpu_layers, flash_attn, type_k, type_v,
    use_hugepages
        As in `loradrop.bench.bench`.
    progress : callable, optional
        Called after each decode of all tokens with how many are done, and with how many there are.

    Returns
    -------
    list of StepProfile
        The full model's steps, then each point's refresh and LoRA steps.

    Raises
    ------
    FileNotFoundError, ModelError, CorrectorError, UnsupportedError, ValueError, TypeError
        As `loradrop.bench.bench`.
    """
    check_int("prompt", prompt, 1)
    check_int("tokens", tokens, 1)
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
    contexts = make_contexts(
        opened, resolved, options, prompt=prompt, n_parallel=1, threads=n_threads or 0, profile=True
    )
    try:
        begin = prompt_tokens(opened, prompt)
        rest = greedy_tokens(contexts[0], begin, tokens)
        advance = counter(progress, len(contexts))
        profiles: list[StepProfile] = []
        for context, point in zip(contexts, [None, *(point for point, _ in resolved)], strict=True):
            profiles += _profiles(context, point, begin, rest)
            advance(1)
    finally:
        for context in contexts:
            context.close()
    return profiles


def _profiles(context: Context, point: Point | None, prompt: list[int], tokens: list[int]) -> Iterator[StepProfile]:
    """Decode the tokens twice, and yield the second time's profile of each kind of step."""
    for _ in range(2):  # graphs are built and weights read from disk in the first
        steps: dict[str, list[list[Operation]]] = {}
        context.clear()
        context.decode(prompt)
        for token in tokens:
            context.decode([token])
            is_refresh = point is not None and context.stats["last_step"] == "full"
            kind = "refresh" if is_refresh else context.stats["last_step"]
            steps.setdefault(kind, []).append(context.operations())
    for kind, decodes in sorted(steps.items(), reverse=True):
        yield StepProfile(point, kind, len(decodes), _by_kind(decodes))


def _by_kind(decodes: list[list[Operation]]) -> tuple[OperationTime, ...]:
    """Return each kind of operation in the median decode, the longest first."""
    steps = [_sums(decode) for decode in decodes]
    kinds = {name: one for step in steps for name, one in step.items()}
    found = []
    for name, one in kinds.items():
        seconds = np.median([step[name].seconds for step in steps if name in step])
        found.append(dataclasses.replace(one, seconds=float(seconds)))
    return tuple(sorted(found, key=lambda one: -one.seconds))


def _sums(decode: list[Operation]) -> dict[str, OperationTime]:
    """Return the sums of a decode's operations over the layers."""
    sums: dict[str, OperationTime] = {}
    for operation, name, weights_type, n_bytes, seconds in decode:
        is_product = operation in _PRODUCTS and bool(weights_type)
        key = _LAYER.sub(r"\1", name) if is_product else operation
        before = sums.get(key, OperationTime(key, weights_type if is_product else "", 0, 0, 0.0))
        sums[key] = OperationTime(
            key,
            before.type if before.type == weights_type else "",
            before.count + 1,
            before.n_bytes + (n_bytes if is_product else 0),
            before.seconds + seconds,
        )
    return sums
