"""From a model's file and texts to a corrector, without gradients through the model."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loradrop._core import Model
from loradrop.calibrate.candidate import layer_data, measure, segment_data
from loradrop.calibrate.engine_states import engine_states
from loradrop.calibrate.layers import fit_layers
from loradrop.calibrate.segment import Parts, SegmentFit, fit_hidden, fit_linear
from loradrop.checks import check_choice, check_float, check_int
from loradrop.evaluate import PointReport
from loradrop.options import REFRESH_POLICIES
from loradrop.state_store import StateStore, Tokens
from loradrop_convert.base import read_base
from loradrop_convert.corrector import REUSE_RULES, SEGMENT, CorrectorData

FIRST_DROPPABLE = 3  # the first three layers and the last one always run, as in the paper
N_STARTS = 5  # places of a block that are tried
SMALL_TEXTS = 48  # enough to rank places and rules
JUDGE_TEXTS = 12  # windows that decide between candidates
WITHIN = 0.05  # nats of NLL that a recommended point may lose
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What to fit.

    Attributes
    ----------
    rhos : sequence of float
        Shares of the layers that drop; a segment is fitted for each.
    k : int
        LoRA steps between two refresh steps.
    rank, hidden : int
        Width of the linear part, and of a segment's hidden layer (0 for none).
    reuse : str, optional
        The rule; None takes the one that measures best.
    first : int, optional
        First layer of the largest block; None takes the place that measures best.
    refresh : {"refill", "single"}
        The refresh policy that decides between candidates.
    kv_window : int
        With refill: newest tokens whose K/V droppable layers keep.
    seconds : float
        Most time for the regression of each segment.
    n_threads : int
        0 lets the core choose.
    seed : int
    """

    rhos: Sequence[float] = (0.25, 0.5)
    k: int = 3
    rank: int = 64
    hidden: int = 768
    reuse: str | None = None
    first: int | None = None
    refresh: str = "refill"
    kv_window: int = 64
    seconds: float = 120.0
    n_threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for rho in self.rhos:
            check_float("rho", rho, 1e-6, 1.0, below=True)
        check_int("k", self.k, 1, 64)
        check_int("rank", self.rank, 1)
        check_int("hidden", self.hidden, 0)
        check_float("seconds", self.seconds, 0.0)
        check_choice("refresh", self.refresh, REFRESH_POLICIES)
        if self.reuse is not None:
            check_choice("reuse", self.reuse, REUSE_RULES)


def calibrate(
    model_path: str | os.PathLike[str],
    texts: Tokens,
    options: CalibrateOptions,
    *,
    progress: Progress | None = None,
) -> tuple[CorrectorData, list[PointReport]]:
    """Fit a corrector to the states that the engine gives for some texts.

    A few places of the largest block are tried with a linear fit each, then the rules, each time by decoding windows
    with them in the engine; the winner is fitted to all texts. One text in eight only judges.

    Parameters
    ----------
    model_path : path
        A GGUF file.
    texts : int32 array [n_texts, n_tokens]
        Tokens; 50,000 of them or more are good.
    options : CalibrateOptions
    progress : callable, optional
        Called with what is being done, how much of it is done, and of how much.

    Returns
    -------
    corrector : CorrectorData
        With its recommended point and what was measured.
    reports : list of PointReport
        One for each rho, on the texts that only judge.

    Raises
    ------
    ValueError
        If there are too few texts, or no block of the asked length.
    """
    with tempfile.TemporaryDirectory(prefix="loradrop-") as folder:
        return _Calibration(Path(model_path), texts, options, Path(folder), progress or (lambda *_: None)).run()


class _Calibration:
    """One run: what its stages share."""

    def __init__(self, path: Path, texts: Tokens, options: CalibrateOptions, folder: Path, show: Progress) -> None:
        if len(texts) < 16:
            raise ValueError(f"{len(texts)} windows of text: give at least 16, better 200")
        judged = np.arange(len(texts)) % 8 == 0
        self.train, self.judge = texts[~judged], texts[judged]
        self.options, self.folder, self.show = options, folder, show
        self.model, self.base = Model(os.fspath(path)), read_base(path)
        self.lengths = [block_length(rho, self.model.n_layer) for rho in sorted(options.rhos)]

    def run(self) -> tuple[CorrectorData, list[PointReport]]:
        first = self.options.first
        if first is None:
            first = self._best_first()
        blocks = nested_blocks(first, self.lengths, self.model.n_layer)
        reuse = self.options.reuse or self._best_rule(blocks[-1])
        corrector = self._segments(blocks) if reuse == SEGMENT else self._layers(reuse, blocks[-1])
        reports = self._measure([(corrector, n) for n in self.lengths], "measuring", self.judge)
        return with_quality(corrector, reports, self.model.n_layer), reports

    def _best_first(self) -> int:
        n, last = self.lengths[-1], self.model.n_layer - 2
        starts = sorted({*np.linspace(FIRST_DROPPABLE, last - n + 1, N_STARTS).astype(int).tolist()})
        if starts[0] < 1 or starts[0] + n - 1 > last:
            raise ValueError(f"a block of {n} of {self.model.n_layer} layers: at most {last} can drop; lower rho")
        store = self._states({*starts, *(start + n for start in starts)}, "small", self.train[:SMALL_TEXTS])
        fit = self._fit(hidden=0)
        tried = [segment_data([run], [fit_linear(store, run, fit)]) for run in ((s, s + n - 1) for s in starts)]
        reports = self._measure([(corrector, n) for corrector in tried], "places")
        best: int = starts[int(np.argmin([report.total.kl.mean for report in reports]))]
        return best

    def _best_rule(self, block: tuple[int, int]) -> str:
        store = self._states(set(range(block[0], block[1] + 2)), "rules", self.train[:SMALL_TEXTS])
        n = block[1] - block[0] + 1
        tried = {SEGMENT: segment_data([block], [fit_linear(store, block, self._fit(hidden=0))])}
        for reuse in REUSE_RULES:
            if reuse != SEGMENT:
                tried[reuse] = layer_data(
                    reuse, fit_layers(store, reuse, block, min(self.options.rank, self.model.n_embd), self.options.k)
                )
        reports = self._measure([(corrector, n) for corrector in tried.values()], "rules")
        return list(tried)[int(np.argmin([report.total.kl.mean for report in reports]))]

    def _segments(self, blocks: list[tuple[int, int]]) -> CorrectorData:
        store = self._states({edge for first, last in blocks for edge in (first, last + 1)}, "all", self.train)
        parts: list[Parts] = []
        for block in blocks:
            fit = self._fit(self.options.hidden)
            fitted = fit_linear(store, block, fit)
            if fit.hidden:
                fitted = fit_hidden(store, block, fitted, fit, self._regressing(block, fit.steps))
            parts.append(fitted)
        return segment_data(blocks, parts)

    def _layers(self, reuse: str, block: tuple[int, int]) -> CorrectorData:
        store = self._states(set(range(block[0], block[1] + 2)), "all", self.train)
        n, rank = block[1] - block[0] + 1, min(self.options.rank, self.model.n_embd)
        return layer_data(
            reuse, fit_layers(store, reuse, block, rank, self.options.k, lambda done: self.show("layers", done, n))
        )

    def _regressing(self, block: tuple[int, int], steps: int) -> Callable[[int, float], None]:
        what = f"layers {block[0]} to {block[1]}"
        return lambda step, loss: self.show(f"{what}, loss {loss:.4f}", step, steps)

    def _fit(self, hidden: int) -> SegmentFit:
        return SegmentFit(
            rank=min(self.options.rank, self.model.n_embd),
            hidden=hidden,
            distances=range(1, self.options.k + 1),
            seconds=self.options.seconds,
            seed=self.options.seed,
        )

    def _states(self, layers: set[int], name: str, texts: Tokens) -> StateStore:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.show("states of the full model", done, len(texts))

        return engine_states(
            self.model,
            texts,
            sorted(layers),
            self.folder / name,
            n_threads=self.options.n_threads,
            advance=advance,
        )

    def _measure(
        self, candidates: Sequence[tuple[CorrectorData, int]], what: str, windows: Tokens | None = None
    ) -> list[PointReport]:
        self.show(f"decoding with {what}", 0, 1)
        return measure(
            self.model,
            self.base,
            self.judge[:JUDGE_TEXTS] if windows is None else windows,
            [(corrector, n / self.model.n_layer) for corrector, n in candidates],
            self.folder,
            k=self.options.k,
            refresh=self.options.refresh,
            kv_window=self.options.kv_window,
            n_threads=self.options.n_threads,
        )


def block_length(rho: float, n_layer: int) -> int:
    """Return how many layers drop at `rho`, as the engine rounds it, and at least one.

    Raises
    ------
    ValueError
        If that is none.
    """
    n = int(np.floor(rho * n_layer + 0.5))
    if n < 1:
        raise ValueError(f"rho={rho:g} drops none of {n_layer} layers; give {1 / n_layer:g} or more")
    return n


def nested_blocks(first: int, lengths: Sequence[int], n_layer: int) -> list[tuple[int, int]]:
    """Return blocks of the given lengths, ascending, that all end where the longest ends.

    Later layers lose less when they drop, and a shared end lets blocks share the states above it.

    Raises
    ------
    ValueError
        If the longest does not fit.
    """
    last = first + lengths[-1] - 1
    if first < 1 or last > n_layer - 2:
        raise ValueError(
            f"first={first}: a block of {lengths[-1]} layers would end at {last}; layers 1 to {n_layer - 2} can drop"
        )
    return [(last - length + 1, last) for length in lengths]


def with_quality(corrector: CorrectorData, reports: Sequence[PointReport], n_layer: int) -> CorrectorData:
    """Return the corrector with what was measured, and the largest rho that stays within 0.05 nats, or the smallest."""
    good = [report for report in reports if report.total.delta_nll.mean <= WITHIN]
    best = good[-1] if good else reports[0]
    return dataclasses.replace(
        corrector,
        rho=len(best.dropped_layers) / n_layer,
        k=best.point.k,
        quality={
            "measured on": "windows set apart from the calibration's texts",
            "points": [
                {
                    "rho": round(len(report.dropped_layers) / n_layer, 4),
                    "k": report.point.k,
                    "refresh": report.point.refresh,
                    "kv_window": report.point.kv_window,
                    "delta_nll": round(report.total.delta_nll.mean, 4),
                    "kl": round(report.total.kl.mean, 4),
                    "agreement": round(report.total.agreement.mean, 4),
                }
                for report in reports
            ],
        },
    )
