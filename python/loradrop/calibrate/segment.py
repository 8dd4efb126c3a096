"""A segment's corrector: carry and linear part in closed form, then the hidden layer by regression."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loradrop.calibrate.adam import Adam, learning_rate
from loradrop.calibrate.pairs import LoraSteps, Pairs, norm
from loradrop.calibrate.ridge import Moments, fit_gate, reduced_rank

Array = NDArray[np.floating[Any]]
Parts = dict[str, Array]  # carry [n_embd], a, b, gate, up, down as in the file
BATCH = 2000  # LoRA steps


@dataclass(frozen=True)
class SegmentFit:
    """How a segment's corrector is fitted.

    Attributes
    ----------
    rank, hidden : int
        Width of the linear part, and of the hidden layer (0 for none).
    steps : int
        Steps of the regression.
    seconds : float
        The regression stops after this time even if steps are left.
    seed : int
    """

    rank: int = 64
    hidden: int = 768
    steps: int = 600
    seconds: float = 240.0
    seed: int = 0


def features(p: Pairs) -> Array:
    """Return f = [n(x_t); n(y_r); n(x_r)], float32 [n, 3 n_embd]."""
    return np.concatenate([norm(p.x), norm(p.y_r), norm(p.x_r)], -1)


def fit_linear(samples: LoraSteps, run: tuple[int, int], fit: SegmentFit) -> Parts:
    """Return carry, a and b: first the gate of each channel by itself, then the best B A for what is left."""
    distances = range(1, samples.k + 1)
    carry = fit_gate((p.y - p.x, p.y_r - p.x_r) for p in samples.pairs(run, distances))
    moments = Moments(3 * len(carry), len(carry))
    for p in samples.pairs(run, distances):
        moments.add(features(p), p.y - p.x - carry * (p.y_r - p.x_r))
    a, b = reduced_rank(moments, fit.rank)
    return {"carry": carry, "a": a, "b": b}


def fit_hidden(
    samples: LoraSteps,
    run: tuple[int, int],
    linear: Parts,
    fit: SegmentFit,
    advance: Callable[[int, float], None] | None = None,
) -> Parts:
    """Return all parts after regression of the run's output, from the linear part and a random hidden layer.

    The error of each channel is measured in units of its own spread.

    Parameters
    ----------
    advance : callable, optional
        Called after each step with its number and loss.
    """
    rng = np.random.default_rng(fit.seed)
    n_embd, n_in = len(linear["carry"]), 3 * len(linear["carry"])
    parts = dict(linear) | {
        "gate": _random(rng, fit.hidden, n_in),
        "up": _random(rng, fit.hidden, n_in),
        "down": np.zeros((n_embd, fit.hidden), np.float32),
    }
    weight = 1 / _spread(samples, run)
    n_texts = min(len(samples.texts), -(-BATCH // len(samples.anchors)))
    adam, start = Adam(parts), time.monotonic()
    for step in range(fit.steps):
        texts = np.sort(rng.choice(samples.texts, n_texts, replace=False)).tolist()
        distance = [int(rng.integers(1, samples.k + 1))]
        batch = Pairs(*map(np.concatenate, zip(*samples.pairs(run, distance, texts), strict=True)))
        loss, gradients = _loss(parts, batch, weight)
        adam.step(parts, gradients, learning_rate(step, fit.steps, time.monotonic() - start, fit.seconds))
        if advance is not None:
            advance(step + 1, loss)
        if time.monotonic() - start > fit.seconds:
            break
    return parts


def _forward(parts: Parts, p: Pairs, f: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Return the rule's output float32 [n, n_embd] with s = 1, and what its gradients need."""
    low = f @ parts["a"].T
    y = p.x + parts["carry"] * (p.y_r - p.x_r) + low @ parts["b"].T
    if "down" not in parts:
        return y, low, low, low, low
    gate, up = f @ parts["gate"].T, f @ parts["up"].T
    sigmoid = 1 / (1 + np.exp(-gate))
    return y + (gate * sigmoid * up) @ parts["down"].T, low, gate, up, sigmoid


def _loss(parts: Parts, p: Pairs, weight: Array) -> tuple[float, Parts]:
    """Return the mean squared error in units of spread, and its gradients by each part."""
    f = features(p)
    y, low, gate, up, sigmoid = _forward(parts, p, f)
    error = (y - p.y) * weight
    d_y = error * weight * np.float32(2 / error.size)
    d_low = d_y @ parts["b"]
    d_hidden = d_y @ parts["down"]
    d_up = d_hidden * gate * sigmoid
    d_gate = d_hidden * up * sigmoid * (1 + gate * (1 - sigmoid))
    return float(np.mean(error * error)), {
        "carry": (d_y * (p.y_r - p.x_r)).sum(0),
        "a": d_low.T @ f,
        "b": d_y.T @ low,
        "gate": d_gate.T @ f,
        "up": d_up.T @ f,
        "down": d_y.T @ (gate * sigmoid * up),
    }


def _random(rng: np.random.Generator, n_out: int, n_in: int) -> Array:
    weights: Array = (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(np.float32)
    return weights


def _spread(samples: LoraSteps, run: tuple[int, int]) -> Array:
    sample = np.concatenate([p.y - p.x for p in samples.of_texts(16).pairs(run, [1])])
    spread: Array = np.maximum(sample.std(0), 1e-3)
    return spread
