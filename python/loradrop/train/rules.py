"""Correctors as torch modules: the four reuse rules, on LoRA tokens in parallel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

NORM_EPS = 1e-5  # of the engine's reuse rules


def norm(x: Tensor) -> Tensor:
    """Return the RMS norm without weight, over the last axis."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPS)


def _random(n_out: int, n_in: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n_out, n_in) / math.sqrt(n_in))


class LayerCorrector(nn.Module):
    """The correction of one droppable layer: ``previous-state``, ``anchor-state`` or ``anchor-delta``.

    Parameters
    ----------
    reuse : str
        The rule; formulas in csrc/loradrop/reuse_rule.h and in `forward`.
    n_embd, rank : int
        Width of the model, and of the correction.
    scale : float
        s = alpha / rank.
    """

    def __init__(self, reuse: str, n_embd: int, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.reuse, self.scale = reuse, scale
        self.a = _random(rank, n_embd)
        self.b = nn.Parameter(torch.zeros(n_embd, rank))
        self.gate = nn.Parameter(torch.zeros(n_embd)) if reuse == "anchor-delta" else None

    def forward(self, x: Tensor, x_r: Tensor, y_r: Tensor, same_run: Tensor) -> Tensor:
        """Return what stands for the layer's output [batch, n, n_embd].

        Parameters
        ----------
        x, x_r, y_r : Tensor [batch, n, n_embd]
            Inputs of n LoRA tokens, and input and output of the layer at the anchor of each.
        same_run : bool Tensor [n, n]
            Which tokens' corrections add up, for ``previous-state``: y_t = y_{t-1} + s B A x_t is
            y_r plus the corrections since r.
        """
        if self.gate is not None:
            return x + self.gate * (y_r - x_r) + self._low_rank(norm(x))
        correction = self._low_rank(x)
        if self.reuse == "previous-state":
            correction = same_run.to(correction.dtype) @ correction
        return y_r + correction

    def _low_rank(self, x: Tensor) -> Tensor:
        return self.scale * linear(linear(x, self.a), self.b)


class SegmentCorrector(nn.Module):
    """The correction of a whole run of layers (rule ``segment``).

    Parameters
    ----------
    n_embd, rank, hidden : int
        Width of the model, of the linear part (at least 1) and of the hidden layer (0 for none).
    scale : float
        s = alpha / rank.
    """

    def __init__(self, n_embd: int, rank: int, hidden: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.carry = nn.Parameter(torch.zeros(n_embd))
        self.a = _random(rank, 3 * n_embd)
        self.b = nn.Parameter(torch.zeros(n_embd, rank))
        self.gate = _random(hidden, 3 * n_embd) if hidden else None
        self.up = _random(hidden, 3 * n_embd) if hidden else None
        self.down = nn.Parameter(torch.zeros(n_embd, hidden)) if hidden else None

    def forward(self, x: Tensor, x_r: Tensor, y_r: Tensor, same_run: Tensor | None = None) -> Tensor:
        """Return what stands for the run's output [batch, n, n_embd]; arguments as in `LayerCorrector`."""
        f = torch.cat([norm(x), norm(y_r), norm(x_r)], -1)
        y = x + self.carry * (y_r - x_r) + self.scale * linear(linear(f, self.a), self.b)
        if self.gate is None or self.up is None or self.down is None:
            return y
        return y + linear(silu(linear(f, self.gate)) * linear(f, self.up), self.down)
