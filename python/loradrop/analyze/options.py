"""What an analysis is to measure, and how many points that takes."""

from __future__ import annotations

from dataclasses import dataclass

from loradrop.checks import check_choice, check_int
from loradrop.options import DEFAULT_REFRESH, MAX_INT32, MAX_THREADS
from loradrop_convert.corrector import CORRECTED_POLICIES

N_KEPT = 3  # first layers that always run, as in the paper
MAX_K = 64


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """What to measure.

    Attributes
    ----------
    layers : (int, int), optional
        First and last layer that may drop; None keeps the first three and the last.
    k : int
        LoRA steps between two refresh steps.
    refresh : {"single", "refill"}
        The refresh policy.
    kv_window : int
        With refill: newest tokens whose K/V droppable layers keep.
    prompt : int
        Tokens of each window's prompt, which are one full step.
    rank : int
        Of the correctors that stand in for dropped layers; at most n_embd is used.
    greedy : bool
        Whether the order is built greedily by joint damage, rather than by the layers' single damage.
    width : int
        Layers that are tried at each step of the greedy order, those with the least single damage.
    most : int, optional
        Layers in the order; None takes half of the model's, if as many may drop.
    n_threads : int
        0 lets the core choose.
    """

    layers: tuple[int, int] | None = None
    k: int = 3
    refresh: str = DEFAULT_REFRESH
    kv_window: int = 64
    prompt: int = 64
    rank: int = 32
    greedy: bool = True
    width: int = 4
    most: int | None = None
    n_threads: int = 0

    def __post_init__(self) -> None:
        check_int("k", self.k, 1, MAX_K)
        check_choice("refresh", self.refresh, CORRECTED_POLICIES)
        check_int("kv_window", self.kv_window, 0, MAX_INT32)
        check_int("prompt", self.prompt, 1)
        check_int("rank", self.rank, 1)
        check_int("width", self.width, 1)
        if self.most is not None:
            check_int("most", self.most, 1)
        check_int("n_threads", self.n_threads, 0, MAX_THREADS)

    def candidates(self, n_layer: int) -> range:
        """Return the layers that may drop.

        Raises
        ------
        ValueError
            If the model has no such layers.
        """
        last = n_layer - 2
        if self.layers is None:
            if last < N_KEPT:
                raise ValueError(
                    f"the model has {n_layer} layers: none is left without the first {N_KEPT} and the last; "
                    f"give the range of layers, within 1 to {last}"
                )
            return range(N_KEPT, last + 1)
        first, end = self.layers
        if not 1 <= first <= end <= last:
            raise ValueError(f"layers={first}-{end}: of the model's {n_layer} layers 1 to {last} can drop")
        return range(first, end + 1)

    def n_order(self, n_layer: int) -> int:
        """Return how many layers the order gets.

        Raises
        ------
        ValueError
            If more are asked for than may drop.
        """
        n = len(self.candidates(n_layer))
        if self.most is None:
            return min(n, max(1, n_layer // 2))
        if self.most > n:
            raise ValueError(f"most={self.most}: only {n} layers may drop; give at most {n}")
        return self.most

    def n_points(self, n_layer: int) -> int:
        """Return how many points are decoded: each layer alone, and at each further step those that are tried."""
        n = len(self.candidates(n_layer))
        further = range(1, self.n_order(n_layer)) if self.greedy else ()
        return n + sum(min(self.width, n - chosen) for chosen in further)
