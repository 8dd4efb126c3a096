"""The model that is trained: the frozen decoder with correctors in place of what drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from loradrop.checks import check_choice, check_int
from loradrop.train.decoder import LayeredDecoder
from loradrop.train.loss import divergence, next_token, relative_distance
from loradrop.train.modules import Tensors, load_module, module_tensors
from loradrop.train.rules import LayerCorrector, SegmentCorrector
from loradrop.train.simulate import Frozen, Run, simulate
from loradrop.train.timeline import Timeline
from loradrop_convert.corrector import REUSE_RULES, layer_tensor, segment_tensor


@dataclass(frozen=True)
class Shape:
    """What a corrector is made of, before it is trained.

    Attributes
    ----------
    reuse : str
        The rule.
    rank, alpha : int, float
        Of the low-rank parts.
    layers : sequence of int
        Droppable layers in the order in which they drop; empty for ``segment``.
    segments : sequence of (int, int)
        First and last layer of each run; empty otherwise.
    hidden : int
        Width of a segment's hidden layer; 0 for none.
    """

    reuse: str
    rank: int
    alpha: float
    layers: Sequence[int] = ()
    segments: Sequence[tuple[int, int]] = ()
    hidden: int = 0

    def __post_init__(self) -> None:
        check_choice("reuse", self.reuse, REUSE_RULES)
        check_int("rank", self.rank, 1)
        check_int("hidden", self.hidden, 0)

    @property
    def choices(self) -> range:
        """Return what `Student.runs` takes: an index into `segments`, or a count of `layers`."""
        return range(len(self.segments)) if self.segments else range(1, len(self.layers) + 1)


class Student(nn.Module):
    """A decoder and the correctors of a shape.

    Parameters
    ----------
    decoder : LayeredDecoder
    shape : Shape
    start : mapping of str to float32 array, optional
        Tensors of a corrector file to begin with; those that are not among them begin at random, without effect.
    """

    def __init__(
        self, decoder: LayeredDecoder, shape: Shape, start: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        super().__init__()
        self.decoder, self.shape = decoder, shape
        scale, n_embd = shape.alpha / shape.rank, decoder.n_embd
        self._names = [partial(segment_tensor, i) for i in range(len(shape.segments))] or [
            partial(layer_tensor, i) for i in shape.layers
        ]
        self.correctors = nn.ModuleList(
            SegmentCorrector(n_embd, shape.rank, shape.hidden, scale)
            if shape.segments
            else LayerCorrector(shape.reuse, n_embd, shape.rank, scale)
            for _ in self._names
        )
        self.correctors.to(decoder.device)
        if start is not None:
            for name, module in zip(self._names, self.correctors, strict=True):
                load_module(module, name, start)

    def runs(self, choice: int) -> list[Run]:
        """Return what drops for one of `Shape.choices`, in the order of the layers."""
        if self.shape.segments:
            return [Run(*self.shape.segments[choice], self.correctors[choice])]
        chosen = zip(self.shape.layers[:choice], self.correctors, strict=False)
        return [Run(layer, layer, module) for layer, module in sorted(chosen, key=lambda pair: pair[0])]

    def idle(self, choice: int) -> list[nn.Parameter]:
        """Return the parameters that a choice does not use."""
        used = {id(parameter) for run in self.runs(choice) for parameter in run.corrector.parameters()}
        return [parameter for parameter in self.correctors.parameters() if id(parameter) not in used]

    def tensors(self) -> Tensors:
        """Return all parameters under their names in a corrector file."""
        out: Tensors = {}
        for name, module in zip(self._names, self.correctors, strict=True):
            out |= module_tensors(module, name)
        return out

    def forward(
        self,
        tokens: Tensor,
        teacher: Tensor,
        timeline: Timeline,
        choice: int,
        scored: Tensor,
        ce_weight: float = 0.0,
        state_weight: float = 0.0,
        frozen: Frozen | None = None,
    ) -> Tensor:
        """Return the loss of a batch of texts.

        Parameters
        ----------
        tokens : int Tensor [batch, n_tokens]
        teacher : Tensor [batch, n_tokens, n_embd]
            The last layer's output in the full model.
        timeline : Timeline
        choice : int
            One of `Shape.choices`.
        scored : int Tensor [n]
            Positions at which the loss is taken, all below n_tokens - 1.
        ce_weight : float
            Weight of the cross-entropy of the text beside KL.
        state_weight : float
            Weight of the last layer's output's distance from the full model's, see `relative_distance`.
        frozen : Frozen, optional
            See `simulate`.
        """
        hidden = simulate(self.decoder, self.runs(choice), tokens, timeline, frozen)
        rows = torch.searchsorted(timeline.lora, scored) if timeline.refresh == "refill" else scored
        student = hidden[:, rows].flatten(0, 1)
        expected = teacher[:, scored].flatten(0, 1)
        loss = divergence(self.decoder, student, expected)
        if ce_weight:
            loss = loss + ce_weight * next_token(self.decoder, student, tokens[:, scored + 1].flatten())
        if state_weight:
            loss = loss + state_weight * relative_distance(student, expected)
        return loss
