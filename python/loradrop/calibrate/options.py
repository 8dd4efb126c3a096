"""What a calibration is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loradrop.checks import check_choice, check_float, check_int
from loradrop.options import MAX_INT32, MAX_THREADS
from loradrop.self_text import MAX_SEED
from loradrop_convert.corrector import CORRECTED_POLICIES, REUSE_RULES

LEAST_SECONDS = 0.01


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
        Most time for the regression of each segment's hidden layer; hidden=0 leaves it out.
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
    seconds: float = 60.0
    n_threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for rho in self.rhos:
            check_float("rho", rho, 1e-6, 1.0, below=True)
        check_int("k", self.k, 1, 64)
        check_int("rank", self.rank, 1)
        check_int("hidden", self.hidden, 0)
        if self.first is not None:
            check_int("first", self.first, 1)
        check_int("kv_window", self.kv_window, 0, MAX_INT32)
        check_float("seconds", self.seconds, LEAST_SECONDS)
        check_int("n_threads", self.n_threads, 0, MAX_THREADS)
        check_int("seed", self.seed, 0, MAX_SEED)
        check_choice("refresh", self.refresh, CORRECTED_POLICIES)
        if self.reuse is not None:
            check_choice("reuse", self.reuse, REUSE_RULES)
