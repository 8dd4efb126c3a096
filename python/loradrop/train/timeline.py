"""Which token runs in full and which in a LoRA step, and what each may attend to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CPU = torch.device("cpu")
N_SINK = 4  # positions at the start whose K/V are never thinned, as in the engine's schedule


@dataclass(frozen=True)
class Timeline:
    """The schedule of a text: a prompt in full, then k LoRA steps and a refresh step in turn.

    Attributes
    ----------
    n_tokens, n_prompt : int
        Tokens of the text, and how many of them are prompt (1 or more).
    k : int
        LoRA steps between two refresh steps.
    refresh : {"single", "refill"}
        The refresh policy.
    kv_window : int
        With refill: newest tokens whose K/V droppable layers keep.
    device : torch.device
        Where all tensors are.
    """

    n_tokens: int
    n_prompt: int
    k: int
    refresh: str
    kv_window: int = 2**30
    device: torch.device = CPU

    @cached_property
    def position(self) -> Tensor:
        """Return 0 .. n_tokens - 1."""
        return torch.arange(self.n_tokens, device=self.device)

    @cached_property
    def is_full(self) -> Tensor:
        """Return bool [n_tokens]: prompt and refresh tokens."""
        t = self.position
        return (t < self.n_prompt) | ((t - self.n_prompt) % (self.k + 1) == self.k)

    @cached_property
    def anchor(self) -> Tensor:
        """Return int [n_tokens]: the last token at or before each that ran in full."""
        return torch.cummax(torch.where(self.is_full, self.position, 0), 0).values

    @cached_property
    def distance(self) -> Tensor:
        """Return int [n_tokens]: 0 for tokens that ran in full, 1 to k for LoRA steps."""
        return self.position - self.anchor

    @cached_property
    def lora(self) -> Tensor:
        """Return the positions of the LoRA steps, int [n_lora]."""
        return self.position[~self.is_full]

    @cached_property
    def full(self) -> Tensor:
        """Return the positions of prompt and refresh tokens, int [n_full]."""
        return self.position[self.is_full]

    @cached_property
    def causal(self) -> Tensor:
        """Return bool [n_tokens, n_tokens]: each token sees itself and all before it."""
        return self.position[None] <= self.position[:, None]

    @cached_property
    def thinned(self) -> Tensor:
        """Return bool [n_tokens, n_tokens], refill: what each sees in droppable layers when it is run in full.

        A refresh runs the LoRA tokens since the anchor before it again; after that anchor the tokens of LoRA steps
        that had left the window had lost their K/V.
        """
        t, k = self.position, self.k
        previous_anchor = torch.where(self.is_full & (t >= self.n_prompt), t - k - 1, self.anchor)
        gone = ~self.is_full & (t >= N_SINK)
        gone_for = gone[None] & (t[None] <= previous_anchor[:, None] - self.kv_window)
        return self.causal & ~gone_for

    @cached_property
    def same_run(self) -> Tensor:
        """Return bool [n_lora, n_lora]: each LoRA token sees those since its anchor, and itself."""
        anchor = self.anchor[self.lora]
        return (anchor[None] == anchor[:, None]) & (self.lora[None] <= self.lora[:, None])

    @cached_property
    def refilled(self) -> Tensor:
        """Return bool [n_lora, n_tokens + n_lora], refill: exact tokens to the anchor, then the run's own."""
        exact = self.position[None] <= self.anchor[self.lora][:, None]
        return torch.cat([exact, self.same_run], 1)
