"""The order in which layers drop, by measured damage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from loradrop.evaluate import Estimate


class Step(NamedTuple):
    """One layer of the order.

    Attributes
    ----------
    layer : int
        The layer.
    together : Estimate or None
        Rise of NLL in nats when it drops with all layers before it; None where that was not measured.
    """

    layer: int
    together: Estimate | None


def single_order(single: Mapping[int, Estimate], most: int) -> list[Step]:
    """Return the `most` layers with the least single damage, least first."""
    layers = _by_damage(single)[:most]
    return [Step(layer, None if i else single[layer]) for i, layer in enumerate(layers)]


def greedy_order(
    single: Mapping[int, Estimate],
    most: int,
    width: int,
    measure: Callable[[list[tuple[int, ...]]], list[Estimate]],
) -> list[Step]:
    """Return `most` layers, each the one that hurts least together with those before it.

    Parameters
    ----------
    single : mapping of int to Estimate
        Layer -> its damage when it drops alone.
    most : int
        Layers in the order.
    width : int
        Layers that are tried at each step: of those left, the ones with the least single damage.
    measure : callable
        Returns the damage of each choice of layers.
    """
    left = _by_damage(single)
    first = left.pop(0)
    order = [Step(first, single[first])]
    while len(order) < most:
        before = tuple(step.layer for step in order)
        tried = left[:width]
        damage = measure([(*before, layer) for layer in tried])
        layer, together = min(zip(tried, damage, strict=True), key=lambda pair: pair[1].mean)
        order.append(Step(layer, together))
        left.remove(layer)
    return order


def _by_damage(single: Mapping[int, Estimate]) -> list[int]:
    return sorted(single, key=lambda layer: single[layer].mean)
