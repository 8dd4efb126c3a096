"""Means with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, and how sure it is.

    Attributes
    ----------
    mean : float
        The mean.
    margin : float or None
        Half the width of its 95 % interval, `mean` plus or minus this; None where there is only one window.
    """

    mean: float
    margin: float | None


def estimate(values: FloatArray) -> Estimate:
    """Return the mean and Student's t interval of independent values.

    Parameters
    ----------
    values : float64 array [n]
        One for each window: windows are (nearly) independent of each other, tokens of one window are not.
    """
    n = len(values)
    mean = float(values.mean())
    if n < 2:
        return Estimate(mean, None)
    return Estimate(mean, t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n))


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the t with P(|T| < t) = `confidence` for Student's T, to some five digits.

    With t = sqrt(freedom) tan(a) the density is proportional to cos(a)^(freedom - 1) on [0, pi/2], so that a sum
    over a fine grid of angles will do.

    Parameters
    ----------
    freedom : int
        Degrees of freedom, 1 or more.
    """
    angles = np.linspace(0.0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    angle = np.interp(confidence, share / share[-1], angles)
    return math.sqrt(freedom) * math.tan(angle)
