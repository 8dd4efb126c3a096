"""First stage for segments: regression of a run's output on stored states, without running any layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loradrop.state_store import N_SKIPPED, StateStore
from loradrop.train.loss import state_distance
from loradrop.train.rules import SegmentCorrector

WARM_UP = 50  # steps
FLOOR = 0.02  # of the learning rate, at the end


def schedule_factor(step: int, steps: int) -> float:
    """Return what the learning rate is multiplied by: a warm-up, then half a cosine."""
    return min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def regress(
    corrector: SegmentCorrector,
    store: StateStore,
    run: tuple[int, int],
    metric: Tensor,
    *,
    distances: Sequence[int],
    steps: int,
    batch: int = 8,
    lr: float = 2e-3,
    seed: int = 0,
    advance: Callable[[float], None] | None = None,
) -> float:
    """Fit a segment's corrector to the full model's states, and return the last losses' mean.

    Each step takes whole texts and one distance j: token t is predicted from its own input and from the run's input
    and output at t - j. The target has unit mean square under the metric, so a loss of 1 is that of predicting y = x.

    Parameters
    ----------
    corrector : SegmentCorrector
        Changed in place.
    store : StateStore
        With the inputs of layers ``run[0]`` and ``run[1] + 1``.
    run : (int, int)
        First and last layer.
    metric : Tensor [n_embd, n_embd]
        See `fisher_metric`.
    distances : sequence of int
        Distances to the anchor, each as likely as the others.
    steps, batch : int
        Steps, and texts in each.
    lr : float
        Highest learning rate.
    seed : int
    advance : callable, optional
        Called after each step with its loss.
    """
    before, after = store.inputs(run[0]), store.inputs(run[1] + 1)
    device = corrector.carry.device
    metric = metric * _unit_scale(before, after, metric)
    optimizer = torch.optim.AdamW(corrector.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(step, steps))
    recent = 0.0
    for step in range(steps):
        rng = np.random.default_rng((seed, step))
        texts = np.sort(rng.choice(len(store), min(batch, len(store)), replace=False))
        distance = int(rng.choice(distances))
        x = torch.from_numpy(before[texts].astype(np.float32)).to(device)
        y = torch.from_numpy(after[texts].astype(np.float32)).to(device)
        now, anchor = slice(max(N_SKIPPED, distance), None), slice(max(N_SKIPPED - distance, 0), -distance)
        loss = state_distance(corrector(x[:, now], x[:, anchor], y[:, anchor]), y[:, now], metric)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(corrector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += (float(loss.detach()) - recent) * max(0.02, 1 / (step + 1))
        if advance is not None:
            advance(float(loss.detach()))
    return recent


def _unit_scale(before: NDArray[np.float16], after: NDArray[np.float16], metric: Tensor) -> float:
    texts = slice(0, min(32, len(before)))
    change = after[texts, N_SKIPPED:].astype(np.float32) - before[texts, N_SKIPPED:].astype(np.float32)
    squares = (torch.from_numpy(change).to(metric.device) @ metric).pow(2).sum(-1).mean()
    return 1 / math.sqrt(float(squares))
