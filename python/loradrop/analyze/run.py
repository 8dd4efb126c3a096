"""From a model and texts to a report on its layers, and to the order in which they should drop."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from loradrop._core import Model
from loradrop.analyze.damage import DamageMeter, no_correction
from loradrop.analyze.options import AnalyzeOptions
from loradrop.analyze.order import greedy_order, single_order
from loradrop.analyze.redundancy import layer_cosines
from loradrop.analyze.report import Analysis, layer_reports
from loradrop.calibrate.engine_states import engine_states
from loradrop.calibrate.layers import Parts, fit_layers
from loradrop.evaluate import Estimate
from loradrop.evaluate.windows import check_windows
from loradrop.progress import StageProgress, stage_counter
from loradrop.state_store import N_SKIPPED, Tokens
from loradrop_convert.base import read_base
from loradrop_convert.corrector import ANCHOR_DELTA


def analyze(
    model_path: str | os.PathLike[str],
    windows: Tokens,
    fit_texts: Tokens | None,
    options: AnalyzeOptions | None = None,
    *,
    progress: StageProgress | None = None,
) -> Analysis:
    """Measure how redundant each layer is and what dropping it costs, and propose an order of dropping.

    Damage is measured by decoding: the prompt in one full step, then token by token on the schedule, with a corrector
    of rule ``anchor-delta`` in closed form for each layer. `AnalyzeOptions.n_points` tells how many points that takes;
    each decodes all windows.

    Parameters
    ----------
    model_path : path
        A GGUF file.
    windows : int32 array [n_windows, n_tokens]
        What is decoded.
    fit_texts : int32 array [n_texts, n_tokens], optional
        What the correctors are fitted to, other text than the windows; None lets a dropped layer hand its input on.
        The states take n_texts x n_tokens x n_embd x 2 bytes of disk for each layer while they are fitted.
    options : AnalyzeOptions, optional
    progress : callable, optional
        Called with what is being done, how much of it is done, and of how much.

    Returns
    -------
    Analysis

    Raises
    ------
    UnsupportedError
        If LoRA-Drop cannot serve the model.
    ValueError
        If layers are asked for that cannot drop, or the windows do not suit the options or the model.
    """
    with tempfile.TemporaryDirectory(prefix="loradrop-") as folder:
        run = _Analysis(Path(model_path), options or AnalyzeOptions(), Path(folder), progress or (lambda *_: None))
        return run.run(windows, fit_texts)


def check_model(model_path: str | os.PathLike[str], options: AnalyzeOptions, window: int) -> None:
    """Raise what `analyze` would raise for this model and windows of this length, before any text is needed."""
    with tempfile.TemporaryDirectory(prefix="loradrop-") as folder:
        _Analysis(Path(model_path), options, Path(folder), lambda *_: None).check(window)


class _Analysis:
    """One run: what its stages share."""

    def __init__(self, path: Path, options: AnalyzeOptions, folder: Path, show: StageProgress) -> None:
        self.base = read_base(path)  # first: it names what is wrong with a file
        self.model = Model(os.fspath(path))
        self.options, self.folder, self.show = options, folder, show
        self.candidates = options.candidates(self.model.n_layer)

    def check(self, window: int) -> None:
        """Raise for a model or a window that cannot be analysed."""
        options, n_ctx_train = self.options, self.model.n_ctx_train
        options.n_order(self.model.n_layer)
        if options.prompt >= window:
            raise ValueError(f"prompt={options.prompt}: it leaves nothing to score of window={window}; make it smaller")
        if 0 < n_ctx_train < window:
            raise ValueError(f"window={window}: the model was trained with texts of n_ctx_train={n_ctx_train} tokens")
        if window <= N_SKIPPED + options.k:
            raise ValueError(f"window={window}: too short for k={options.k}; give more than {N_SKIPPED + options.k}")
        self._meter(no_correction(self.candidates, self.model.n_embd)).probe(self.candidates[0])

    def run(self, windows: Tokens, fit_texts: Tokens | None) -> Analysis:
        options, n_layer = self.options, self.model.n_layer
        windows = check_windows(self.model, windows)
        self.check(windows.shape[1])
        parts = no_correction(self.candidates, self.model.n_embd) if fit_texts is None else self._fit(fit_texts)
        cosines = layer_cosines(
            self.model,
            windows,
            n_threads=options.n_threads,
            advance=stage_counter(self.show, "cosines of states", len(windows)),
        )
        n_points = options.n_points(n_layer)
        meter = self._meter(parts)
        advance = stage_counter(self.show, f"decoding {n_points} points", n_points * _n_decoded(windows))

        def measure(choices: list[tuple[int, ...]]) -> list[Estimate]:
            return meter.measure(windows, choices, advance)[1]

        full, damage = meter.measure(windows, [(layer,) for layer in self.candidates], advance)
        single = dict(zip(self.candidates, damage, strict=True))
        most = options.n_order(n_layer)
        order = greedy_order(single, most, options.width, measure) if options.greedy else single_order(single, most)
        return Analysis(
            model=self.model.path,
            n_windows=len(windows),
            window=windows.shape[1],
            n_fit=0 if fit_texts is None else len(fit_texts),
            n_points=n_points,
            options=options,
            full=full,
            layers=layer_reports(n_layer, cosines, single, order),
            order=tuple(step.layer for step in order),
        )

    def _meter(self, parts: dict[int, Parts]) -> DamageMeter:
        return DamageMeter(self.model, self.base, parts, self.folder, self.options)

    def _fit(self, texts: Tokens) -> dict[int, Parts]:
        """Return a corrector for each layer by itself, fitted to exact inputs."""
        texts = check_windows(self.model, texts)
        if texts.shape[1] <= N_SKIPPED + self.options.k:
            raise ValueError(f"fit_texts: {texts.shape[1]} tokens each are too few for k={self.options.k}")
        store = engine_states(
            self.model,
            texts,
            range(self.candidates[0], self.candidates[-1] + 2),
            self.folder / "states",
            n_threads=self.options.n_threads,
            advance=stage_counter(self.show, "states of the full model", len(texts)),
        )
        rank = min(self.options.rank, self.model.n_embd)
        advance = stage_counter(self.show, "correctors", len(self.candidates))
        parts: dict[int, Parts] = {}
        for layer in self.candidates:
            parts |= fit_layers(store, ANCHOR_DELTA, (layer, layer), rank, self.options.k)
            advance(1)
        return parts


def _n_decoded(windows: Tokens) -> int:
    """Return the tokens that a point decodes; a window's last one is only scored."""
    n: int = windows.shape[0] * (windows.shape[1] - 1)
    return n
