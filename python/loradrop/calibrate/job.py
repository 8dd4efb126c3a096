"""What the stages of a calibration share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loradrop._core import Model
from loradrop.calibrate.candidate import measure
from loradrop.calibrate.options import CalibrateOptions
from loradrop.calibrate.segment import SegmentFit
from loradrop.evaluate import PointReport
from loradrop.progress import StageProgress
from loradrop.state_store import Tokens
from loradrop_convert.base import BaseInfo
from loradrop_convert.corrector import CorrectorData


@dataclass(frozen=True)
class Job:
    """A model, what is to be done with it, and where.

    Attributes
    ----------
    model : Model
    base : BaseInfo
        Of the model's file.
    options : CalibrateOptions
    folder : path
        For files that are gone afterwards.
    show : callable
        Called with what is being done, how much of it is done, and of how much.
    """

    model: Model
    base: BaseInfo
    options: CalibrateOptions
    folder: Path
    show: StageProgress

    @property
    def rank(self) -> int:
        """Width of the linear parts."""
        return min(self.options.rank, self.model.n_embd)

    def segment_fit(self, hidden: int) -> SegmentFit:
        """Return how a segment is fitted, with a hidden layer of that width (0 for none)."""
        return SegmentFit(rank=self.rank, hidden=hidden, seconds=self.options.seconds, seed=self.options.seed)

    def measure(self, what: str, windows: Tokens, candidates: Sequence[tuple[CorrectorData, int]]) -> list[PointReport]:
        """Decode windows beside the full model with each corrector and its number of dropped layers."""
        return measure(
            self.model,
            self.base,
            windows,
            [(corrector, n / self.model.n_layer) for corrector, n in candidates],
            self.folder,
            k=self.options.k,
            refresh=self.options.refresh,
            kv_window=self.options.kv_window,
            n_threads=self.options.n_threads,
            progress=partial(self.show, what),
        )
