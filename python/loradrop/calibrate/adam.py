"""Adam for NumPy arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
PEAK = 2e-3
WARM_UP = 30  # steps
FLOOR = 0.02  # of the peak, at the end
LARGEST_NORM = 1.0
BETAS = (0.9, 0.98)
EPS = 1e-8


class Adam:
    """Adam (arXiv 1412.6980) over named arrays, which it changes in place.

    Parameters
    ----------
    parts : dict of str to float32 array
        What is to be fitted.
    """

    def __init__(self, parts: dict[str, Array]) -> None:
        self._mean = {name: np.zeros_like(part) for name, part in parts.items()}
        self._square = {name: np.zeros_like(part) for name, part in parts.items()}
        self._n = 0

    def step(self, parts: dict[str, Array], gradients: dict[str, Array], rate: float) -> None:
        """Move the parts against their gradients, whose norm is cut to `LARGEST_NORM`."""
        self._n += 1
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
        cut = min(1.0, LARGEST_NORM / (norm + 1e-12))
        first, second = (1 - beta**self._n for beta in BETAS)
        for name, gradient in gradients.items():
            mean, square, g = self._mean[name], self._square[name], gradient * np.float32(cut)
            mean += (1 - BETAS[0]) * (g - mean)
            square += (1 - BETAS[1]) * (g * g - square)
            parts[name] -= np.float32(rate / first) * mean / (np.sqrt(square / np.float32(second)) + EPS)


def learning_rate(step: int, steps: int, seconds: float, most_seconds: float) -> float:
    """Return the rate of a step: a warm-up, then half a cosine to the end of the steps or of the time."""
    done = min(1.0, max(step / steps, seconds / most_seconds))
    return PEAK * min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
