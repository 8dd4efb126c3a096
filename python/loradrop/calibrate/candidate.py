"""Correctors tried side by side in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loradrop._core import Model
from loradrop.calibrate.segment import Parts
from loradrop.evaluate import Point, PointReport, perplexity
from loradrop.progress import Progress
from loradrop.state_store import Tokens
from loradrop_convert.base import BaseInfo
from loradrop_convert.corrector import CorrectorData, layer_tensor, segment_tensor
from loradrop_convert.gguf_file import write_sidecar

PROMPT_SHARE = 4  # the first of so many parts of a window is its prompt


def segment_data(segments: Sequence[tuple[int, int]], parts: Sequence[Parts]) -> CorrectorData:
    """Return a corrector of the rule ``segment``, with the parts of each run."""
    tensors = {
        segment_tensor(index, name): np.ascontiguousarray(part)
        for index, run in enumerate(parts)
        for name, part in run.items()
    }
    rank = len(parts[0]["a"])
    return CorrectorData("segment", rank, float(rank), tensors, [], list(segments))


def layer_data(reuse: str, parts: dict[int, Parts]) -> CorrectorData:
    """Return a corrector of single layers; the highest drop first, as what they spoil is read by fewest layers."""
    tensors = {layer_tensor(i, name): part for i, fitted in parts.items() for name, part in fitted.items()}
    rank = len(next(iter(parts.values()))["a"])
    return CorrectorData(reuse, rank, float(rank), tensors, sorted(parts, reverse=True), [])


def measure(
    model: Model,
    base: BaseInfo,
    windows: Tokens,
    candidates: Sequence[tuple[CorrectorData, float]],
    folder: Path,
    *,
    k: int,
    refresh: str,
    kv_window: int,
    n_threads: int,
    progress: Progress | None = None,
) -> list[PointReport]:
    """Decode windows with each corrector at its rho, all beside the full model, and return what each loses.

    Parameters
    ----------
    windows : int32 array [n, n_tokens]
        The first quarter of each is prompt.
    candidates : sequence of (CorrectorData, float)
        Corrector and rho.
    folder : path
        For their files.
    k, refresh, kv_window, n_threads
        See `Point` and `CalibrateOptions`.
    progress : callable, optional
        See `perplexity`.
    """
    points = []
    for index, (corrector, rho) in enumerate(candidates):
        path = folder / f"candidate-{index}.gguf"
        write_sidecar(path, corrector, base, force=True)
        points.append(Point(rho=rho, k=k, refresh=refresh, kv_window=kv_window, corrector=path))
    report = perplexity(
        model,
        windows,
        points,
        prompt=prompt_length(windows.shape[1]),
        n_threads=n_threads or None,
        progress=progress,
    )
    return list(report.points)


def prompt_length(n_tokens: int) -> int:
    """Return how many tokens of a window are its prompt."""
    return n_tokens // PROMPT_SHARE
