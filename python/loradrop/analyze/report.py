"""What was measured of each layer, put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loradrop.analyze.options import AnalyzeOptions
from loradrop.analyze.order import Step
from loradrop.analyze.redundancy import Cosines
from loradrop.evaluate import Estimate
from loradrop.evaluate.interval import CONFIDENCE


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes
    ----------
    layer : int
        Its number, from 0.
    cosines : Cosines or None
        None for the last layer, whose output the engine does not compute for all tokens.
    damage : Estimate or None
        Rise of the mean NLL over the full model's, in nats, when this layer alone drops; None if it may not drop.
    rank : int or None
        Its place in the proposed order, from 1; None if it is not in it.
    together : Estimate or None
        Rise of the mean NLL when it drops with all layers before it in the order; None where not measured.
    """

    layer: int
    cosines: Cosines | None
    damage: Estimate | None
    rank: int | None
    together: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name."""
        return {
            "layer": self.layer,
            **(self.cosines or Cosines(None, None, None))._asdict(),
            "damage": _estimate(self.damage),
            "rank": self.rank,
            "together": _estimate(self.together),
        }


@dataclass(frozen=True)
class Analysis:
    """All layers, and the order that is proposed for ``lora_drop.layers``.

    Attributes
    ----------
    model : str
        The model's file.
    n_windows, window : int
        How many windows were decoded, and tokens of each.
    n_fit : int
        Windows that the stand-ins of dropped layers were fitted to; 0 where a dropped layer handed its input on.
    n_points : int
        Points that were decoded.
    options : AnalyzeOptions
    full : Estimate
        The full model's mean NLL of a token, in nats.
    layers : tuple of LayerReport
        One for each layer, in the model's order.
    order : tuple of int
        Layers in the order in which they are to drop.
    """

    model: str
    n_windows: int
    window: int
    n_fit: int
    n_points: int
    options: AnalyzeOptions
    full: Estimate
    layers: tuple[LayerReport, ...]
    order: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all figures by name, as JSON can hold them."""
        return {
            "model": self.model,
            "n_windows": self.n_windows,
            "window": self.window,
            "prompt": self.options.prompt,
            "n_fit": self.n_fit,
            "n_points": self.n_points,
            "k": self.options.k,
            "refresh": self.options.refresh,
            "kv_window": self.options.kv_window,
            "rank_of_correctors": self.options.rank if self.n_fit else 0,
            "greedy": self.options.greedy,
            "width": self.options.width,
            "confidence": CONFIDENCE,
            "full_nll": _estimate(self.full),
            "order": list(self.order),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def layer_reports(
    n_layer: int, cosines: list[Cosines], damage: dict[int, Estimate], order: list[Step]
) -> tuple[LayerReport, ...]:
    """Return the reports of all layers."""
    ranks = {step.layer: (rank, step.together) for rank, step in enumerate(order, start=1)}
    return tuple(
        LayerReport(
            layer, cosines[layer] if layer < len(cosines) else None, damage.get(layer), *ranks.get(layer, (None, None))
        )
        for layer in range(n_layer)
    )


def _estimate(value: Estimate | None) -> dict[str, float | None] | None:
    return None if value is None else {"mean": value.mean, "margin": value.margin}
