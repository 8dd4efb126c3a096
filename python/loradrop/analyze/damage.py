"""What a model loses when some of its layers drop on the schedule, as decoded by the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from loradrop._core import Context, Corrector, Model
from loradrop.analyze.options import AnalyzeOptions
from loradrop.calibrate.candidate import layer_data
from loradrop.calibrate.layers import Parts
from loradrop.evaluate import Estimate, Point, Report, perplexity
from loradrop.state_store import Tokens
from loradrop_convert.base import BaseInfo
from loradrop_convert.corrector import ANCHOR_DELTA
from loradrop_convert.gguf_file import write_sidecar

POINTS_AT_ONCE = 8  # each has its own context: K/V, compute buffers, logits
Choice = tuple[int, ...]


def no_correction(layers: Sequence[int], n_embd: int) -> dict[int, Parts]:
    """Return correctors that add nothing: a dropped layer hands its input on."""
    nothing = {"a": np.zeros((1, n_embd), np.float32), "b": np.zeros((n_embd, 1), np.float32)}
    return {layer: nothing for layer in layers}


class DamageMeter:
    """Decodes windows while some layers drop, for several choices of layers beside each other.

    Parameters
    ----------
    model : Model
    base : BaseInfo
        Of the same model.
    parts : mapping of int to dict of str to array
        What stands in for each layer, by the rule ``anchor-delta``, as `fit_layers` gives it.
    folder : path
        For the sidecars.
    options : AnalyzeOptions
    """

    def __init__(
        self, model: Model, base: BaseInfo, parts: Mapping[int, Parts], folder: Path, options: AnalyzeOptions
    ) -> None:
        self._model, self._base, self._parts, self._folder, self._options = model, base, parts, folder, options

    def probe(self, layer: int) -> None:
        """Make a small context in which a layer drops and all states are captured.

        Raises
        ------
        UnsupportedError
            If the engine cannot do that with the model.
        """
        point = self._point(0, (layer,))
        Context(
            self._model,
            n_ctx=256,
            n_batch=1,
            n_ubatch=1,
            n_threads=1,
            corrector=Corrector.load(str(point.corrector), self._model),
            rho=point.rho or 0.0,
            k=self._options.k,
            refresh=self._options.refresh,
            capture=range(-1, self._model.n_layer - 1),
        ).close()

    def measure(
        self, windows: Tokens, choices: Sequence[Choice], advance: Callable[[int], None]
    ) -> tuple[Estimate, list[Estimate]]:
        """Return the full model's NLL, and for each choice of layers by how much it rises when they drop.

        Parameters
        ----------
        windows : int32 array [n_windows, n_tokens]
        choices : sequence of tuple of int
        advance : callable
            Called with the tokens that are done, a token counting once for each choice.
        """
        reports = [
            self._decode(windows, choices[first : first + POINTS_AT_ONCE], advance)
            for first in range(0, len(choices), POINTS_AT_ONCE)
        ]
        return reports[0].full.nll, [point.total.delta_nll for report in reports for point in report.points]

    def _decode(self, windows: Tokens, choices: Sequence[Choice], advance: Callable[[int], None]) -> Report:
        done = 0

        def progress(n_done: int, _: int) -> None:
            nonlocal done
            advance((n_done - done) * len(choices))
            done = n_done

        return perplexity(
            self._model,
            windows,
            [self._point(index, choice) for index, choice in enumerate(choices)],
            prompt=self._options.prompt,
            n_threads=self._options.n_threads or None,
            progress=progress,
        )

    def _point(self, index: int, choice: Choice) -> Point:
        path = self._folder / f"choice-{index}.gguf"
        corrector = layer_data(ANCHOR_DELTA, {layer: self._parts[layer] for layer in choice})
        write_sidecar(path, corrector, self._base, force=True)
        return Point(
            rho=len(choice) / self._model.n_layer,
            k=self._options.k,
            refresh=self._options.refresh,
            kv_window=self._options.kv_window,
            corrector=path,
        )
