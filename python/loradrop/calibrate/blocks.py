"""Which blocks of layers can drop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST_DROPPABLE = 3  # the first three layers and the last one always run, as in the paper
N_PLACES = 5
Block = tuple[int, int]  # first and last layer


def block_length(rho: float, n_layer: int) -> int:
    """Return how many layers drop at `rho`, as the engine rounds it, and at least one.

    Raises
    ------
    ValueError
        If that is none.
    """
    n = int(np.floor(rho * n_layer + 0.5))
    if n < 1:
        raise ValueError(f"rho={rho:g} drops none of {n_layer} layers; give {1 / n_layer:g} or more")
    return n


def nested_blocks(first: int, lengths: Sequence[int], n_layer: int) -> list[Block]:
    """Return blocks of the given lengths, ascending, that all end where the longest ends.

    Later layers lose less when they drop, and a shared end lets blocks share the states above it.

    Raises
    ------
    ValueError
        If the longest does not fit.
    """
    last = first + lengths[-1] - 1
    if first < 1 or last > n_layer - 2:
        raise ValueError(
            f"first={first}: a block of {lengths[-1]} layers would end at {last}; layers 1 to {n_layer - 2} can drop"
        )
    return [(last - length + 1, last) for length in lengths]


def places(length: int, n_layer: int) -> list[int]:
    """Return the first layers to try for a block, ascending and evenly spread.

    Raises
    ------
    ValueError
        If no block of that length fits.
    """
    highest = n_layer - 1 - length
    if highest < 1:
        raise ValueError(f"a block of {length} of {n_layer} layers: at most {n_layer - 2} can drop; lower rho")
    lowest = min(FIRST_DROPPABLE, highest)
    return sorted(set(np.linspace(lowest, highest, N_PLACES).astype(int).tolist()))


def edges(block: Block) -> set[int]:
    """Return the layers whose inputs are the block's input and output."""
    return {block[0], block[1] + 1}
