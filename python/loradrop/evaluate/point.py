"""A point: how a model is to decode with LoRA-Drop."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loradrop._core import Model
from loradrop.options import AUTO, Drop, DropOptions, resolve_drop


@dataclass(frozen=True)
class Point:
    """Where to measure; the attributes are arguments of `loradrop.Llama`.

    Attributes
    ----------
    rho : float, optional
        Share of the layers that drop, [0, 1); None takes the corrector's recommendation.
    k : int or "auto", optional
        LoRA steps between two refresh steps; None takes the corrector's recommendation, else 3, and ``auto`` with
        ``verify``, which alone has it.
    refresh : {"single", "refill", "verify"}, optional
        The refresh policy; None takes the corrector's recommendation, else ``single``.
    kv_window : int
        With ``refill``: newest tokens whose K/V droppable layers keep.
    corrector : path, optional
        A sidecar; None takes the one given for all points, else what the model's own file or the package holds.
    """

    rho: float | None = None
    k: int | str | None = None
    refresh: str | None = None
    kv_window: int = 64
    corrector: str | os.PathLike[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes by name, as JSON can hold them."""
        corrector = None if self.corrector is None else os.fspath(self.corrector)
        return {**dataclasses.asdict(self), "corrector": corrector}


def resolve_points(
    points: Iterable[Point],
    model: Model,
    corrector: str | os.PathLike[str] | None,
    allow_uncorrected: bool,
) -> list[tuple[Point, Drop]]:
    """Return the points at which layers drop, with rho and k filled in, and what each comes to.

    Raises
    ------
    CorrectorError, ValueError, TypeError, FileNotFoundError
        As `loradrop.Llama` does for the same arguments.
    """
    resolved = []
    for point in points:
        options = DropOptions(
            rho=point.rho,
            k=point.k,
            corrector=corrector if point.corrector is None else point.corrector,
            refresh=point.refresh,
            kv_window=None if point.refresh == "verify" else point.kv_window,
            allow_uncorrected=allow_uncorrected,
        )
        drop = resolve_drop(options, model)
        if drop.corrector is not None:
            filled = dataclasses.replace(
                point,
                rho=drop.rho,
                k=AUTO if drop.adapt_k else drop.k,
                refresh=drop.refresh,
                corrector=options.corrector,
            )
            resolved.append((filled, drop))
    return resolved
