"""From a model's file and texts to a corrector, without gradients through the model."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from loradrop._core import Model
from loradrop.calibrate.blocks import Block, block_length, edges, nested_blocks, places
from loradrop.calibrate.candidate import layer_data, segment_data
from loradrop.calibrate.choice import best_place, best_rule
from loradrop.calibrate.collect import check_room, collect, n_to_judge
from loradrop.calibrate.job import Job
from loradrop.calibrate.layers import fit_block
from loradrop.calibrate.options import CalibrateOptions
from loradrop.calibrate.pairs import LoraSteps, every_token
from loradrop.calibrate.schedule import single_steps
from loradrop.calibrate.segment import Parts, fit_hidden, fit_linear
from loradrop.evaluate import PointReport
from loradrop.progress import StageProgress
from loradrop.recommended import draft_quality, recommended_count
from loradrop.state_store import StateStore, Tokens
from loradrop_convert.base import read_base
from loradrop_convert.corrector import SEGMENT, CorrectorData

MIN_TEXTS = 16


def calibrate(
    model_path: str | os.PathLike[str],
    texts: Tokens,
    options: CalibrateOptions,
    *,
    n_written: int = 0,
    progress: StageProgress | None = None,
) -> tuple[CorrectorData, list[PointReport]]:
    """Fit a corrector to the states that the engine gives for some texts.

    A few places of the largest block are tried with a linear fit each, then the rules, each time by decoding windows
    with them in the engine; the winner is fitted to all texts. One text in eight only judges. The full model runs over
    each text once; with ``refresh="single"`` the schedule does so too, once for each block.

    Parameters
    ----------
    model_path : path
        A GGUF file.
    texts : int32 array [n_texts, n_tokens]
        Tokens; none of them [0, n_tokens] where the model writes all.
    options : CalibrateOptions
    n_written : int
        How many more texts of n_tokens the model writes itself; 25,000 tokens or more in all are good.
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
        If there are too few texts, or they are too short, or there is no block of the asked length, or no room for
        the states in the folder of temporary files.
    """
    n_texts, n_tokens = len(texts) + n_written, texts.shape[1]
    if n_texts < MIN_TEXTS:
        raise ValueError(f"{n_texts} windows of text: give at least {MIN_TEXTS}, better 100")
    if n_tokens < 2 * (options.k + 4):
        raise ValueError(f"window={n_tokens}: too short for k={options.k}; give {2 * (options.k + 4)} or more")
    path, show = Path(model_path), progress or (lambda *_: None)
    model = Model(os.fspath(path))
    if 0 < model.n_ctx_train < n_tokens:
        raise ValueError(f"window={n_tokens}: the model was trained with texts of {model.n_ctx_train} tokens")
    with tempfile.TemporaryDirectory(prefix="loradrop-") as folder:
        job = Job(model, read_base(path), options, Path(folder), show)
        return _Calibration(job).run(texts, n_written)


class _Calibration:
    """One run from stage to stage.

    Attributes
    ----------
    lengths : list of int
        Of the blocks, ascending.
    starts : list of int
        First layers of the largest block that are tried.
    """

    def __init__(self, job: Job) -> None:
        self.job, n_layer = job, job.model.n_layer
        self.lengths = sorted({block_length(rho, n_layer) for rho in job.options.rhos})
        first = job.options.first
        self.starts = places(self.lengths[-1], n_layer) if first is None else [first]

    def run(self, texts: Tokens, n_written: int) -> tuple[CorrectorData, list[PointReport]]:
        job, layers = self.job, self._layers()
        check_room(job.folder, self._bytes(len(texts) + n_written, texts.shape[1], len(layers)))
        store, judged = collect(job, texts, n_written, layers)
        first = self.starts[0]
        if len(self.starts) > 1:
            first = best_place(job, store, self.starts, self.lengths[-1], judged)
        corrector = self._fit(store, self._blocks(first), judged)
        reports = job.measure("decoding with the corrector", judged, [(corrector, n) for n in self.lengths])
        return with_quality(corrector, reports, job.model.n_layer), reports

    def _blocks(self, first: int) -> list[Block]:
        return nested_blocks(first, self.lengths, self.job.model.n_layer)

    def _layers(self) -> set[int]:
        """Return the layers whose inputs any stage may need."""
        return {layer for first in self.starts for block in self._blocks(first) for layer in self._needed(block)}

    def _needed(self, block: Block) -> set[int]:
        return edges(block) if self.job.options.reuse == SEGMENT else set(range(block[0], block[1] + 2))

    def _bytes(self, n_texts: int, n_tokens: int, n_layers: int) -> int:
        of_layer = (n_texts - n_to_judge(n_texts)) * n_tokens * self.job.model.n_embd
        # single layers are fitted with a layer's LoRA steps in float32
        steps = 0 if self.job.options.reuse == SEGMENT else 4 * self.job.options.k * of_layer
        return 2 * n_layers * of_layer + steps

    def _fit(self, store: StateStore, blocks: list[Block], judged: Tokens) -> CorrectorData:
        job, largest = self.job, blocks[-1]
        samples = self._steps(store, largest, self._needed(largest))
        reuse = job.options.reuse or best_rule(job, samples, largest, judged)
        if reuse != SEGMENT:
            advance = _shown(job, "layers", largest[1] - largest[0] + 1)
            return layer_data(reuse, fit_block(samples, reuse, largest, job.rank, advance))
        smaller = [self._segment(self._steps(store, block, edges(block)), block) for block in blocks[:-1]]
        return segment_data(blocks, [*smaller, self._segment(samples, largest)])

    def _steps(self, store: StateStore, block: Block, layers: Collection[int]) -> LoraSteps:
        if self.job.options.refresh == "single":
            return single_steps(self.job, store, block, layers)
        return every_token(store, self.job.options.k)

    def _segment(self, samples: LoraSteps, block: Block) -> Parts:
        fit = self.job.segment_fit(self.job.options.hidden)
        fitted = fit_linear(samples, block, fit)
        if not fit.hidden:
            return fitted
        what = f"layers {block[0]} to {block[1]}"
        return fit_hidden(
            samples,
            block,
            fitted,
            fit,
            lambda step, loss: self.job.show(f"{what}, loss {loss:.4f}", step, fit.steps),
        )


def _shown(job: Job, what: str, total: int) -> Callable[[int], None]:
    return lambda done: job.show(what, done, total)


def with_quality(corrector: CorrectorData, reports: Sequence[PointReport], n_layer: int) -> CorrectorData:
    """Return the corrector with what was measured, and the largest rho that stays within 0.05 nats, or the smallest."""
    by_count = {len(report.dropped_layers): report for report in reports}
    best = by_count[recommended_count({n: report.total.delta_nll.mean for n, report in by_count.items()})]
    assert not isinstance(best.point.k, str), "correctors are measured at numbers of steps"
    return dataclasses.replace(
        corrector,
        rho=len(best.dropped_layers) / n_layer,
        k=best.point.k,
        refresh=best.point.refresh,
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
                    **draft_quality(None if report.point.refresh == "single" else report.draft_agreements),
                }
                for report in reports
            ],
        },
    )
