"""Ridge regression from sums over tokens, and its best approximation of a given rank."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
RIDGE = 1e-3  # of the features' mean square: next to nothing for those that carry something


class Moments:
    """Sums over tokens that a linear fit needs; tokens themselves are not kept.

    Parameters
    ----------
    n_in, n_out : int
        Width of features and of targets.

    Attributes
    ----------
    count : int
        Tokens seen.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        self.xx = np.zeros((n_in, n_in))
        self.xy = np.zeros((n_in, n_out))
        self.count = 0

    def add(self, features: Array, targets: Array) -> None:
        """Take in tokens: float32 [n, n_in] and [n, n_out]."""
        self.xx += features.T @ features
        self.xy += features.T @ targets
        self.count += len(features)


def fit_gate(samples: Iterable[tuple[Array, Array]]) -> Array:
    """Return g [n_embd] with the least sum of (d - g e)^2 in each channel, over pairs (d, e) of [n, n_embd]."""
    products, squares = 0.0, 0.0
    for d, e in samples:
        products, squares = products + (d * e).sum(0), squares + (e * e).sum(0)
    return np.asarray(products / np.maximum(squares, 1e-6), np.float32)


def ridge(moments: Moments) -> Array:
    """Return W [n_out, n_in] with the least mean of |W f - y|^2, and a little of |W|^2.

    Raises
    ------
    ValueError
        If there are no tokens, or they are not finite.
    """
    if not moments.count or not np.isfinite(moments.xx).all() or not np.isfinite(moments.xy).all():
        raise ValueError("the states hold nothing, or NaN or infinity; calibrate on other text")
    w: Array = np.linalg.solve(_regular(moments), moments.xy).T
    return w


def reduced_rank(moments: Moments, rank: int) -> tuple[Array, Array]:
    """Return A [rank, n_in] and B [n_out, rank], the best W = B A of that rank.

    Reduced-rank regression (Izenman, 1975): the full solution, cut to the leading right singular directions of its
    predictions.
    """
    w = ridge(moments)
    predictions = w @ _regular(moments) @ w.T  # covariance of W f
    values, vectors = np.linalg.eigh(predictions)
    kept = vectors[:, np.argsort(values)[::-1][:rank]]
    return (kept.T @ w).astype(np.float32), kept.astype(np.float32)


def _regular(moments: Moments) -> Array:
    mean_square = max(float(np.trace(moments.xx)) / len(moments.xx), 1e-30)
    regular: Array = moments.xx + RIDGE * mean_square * np.eye(len(moments.xx))
    return regular
