"""Where a training begins: the corrector that it is given has to be of the shape that is asked for."""

from __future__ import annotations

from dataclasses import replace

from loradrop.train.student import Shape
from loradrop_convert.corrector import CorrectorData


def shape_of_start(shape: Shape, start: CorrectorData) -> Shape:
    """Return the shape with the alpha of the corrector to begin with.

    Raises
    ------
    ValueError
        If rule, layers, segments or sizes are not those of the shape; the message names both.
    """
    for name, asked, given in (
        ("reuse", shape.reuse, start.reuse),
        ("layers", list(shape.layers), list(start.layers)),
        ("segments", [tuple(run) for run in shape.segments], [tuple(run) for run in start.segments]),
        ("rank", shape.rank, start.rank),
    ):
        if asked != given:
            raise ValueError(f"start: its {name} is {given}, {asked} is asked for; ask for what it has")
    hidden = next((t.shape[1] for name, t in start.tensors.items() if name.endswith(".down.weight")), 0)
    if hidden and hidden != shape.hidden:
        raise ValueError(f"start: its hidden is {hidden}, {shape.hidden} is asked for; ask for what it has")
    return replace(shape, alpha=start.alpha)
