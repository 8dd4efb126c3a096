"""LoRA-Drop decoding of a given text, exact and in parallel over its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from loradrop.train.decoder import KeysAndValues, LayeredDecoder
from loradrop.train.timeline import Timeline


@dataclass(frozen=True)
class Run:
    """Layers that a LoRA step replaces at once.

    Attributes
    ----------
    first, last : int
        The layers; the same for rules that replace single layers.
    corrector : nn.Module
        `LayerCorrector` or `SegmentCorrector`.
    """

    first: int
    last: int
    corrector: nn.Module


@dataclass(frozen=True)
class Frozen:
    """What no corrector changes, computed before: it spares running the layers below the first run.

    Attributes
    ----------
    x : Tensor [batch, n_tokens, n_embd]
        Input of the first run's first layer.
    y : Tensor, optional
        Output of its last layer in the full model. With refill and a window that covers the text, these are the
        exact tokens' states.
    kv : mapping of int to (Tensor, Tensor)
        With `y` and a single run: K and V of all layers above it in the full model, so that the exact tokens need not
        be run; or nothing.
    """

    x: Tensor
    y: Tensor | None = None
    kv: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


def simulate(
    decoder: LayeredDecoder, runs: list[Run], tokens: Tensor, timeline: Timeline, frozen: Frozen | None = None
) -> Tensor:
    """Return the last layer's output as decoding token by token would give it.

    Parameters
    ----------
    decoder : LayeredDecoder
    runs : list of Run
        What drops, in the order of the layers.
    tokens : int Tensor [batch, n_tokens]
    timeline : Timeline
        On the device of the tokens.
    frozen : Frozen, optional
        States below and of the first run, if they are known.

    Returns
    -------
    Tensor [batch, n, n_embd]
        With ``refill`` for the LoRA tokens (``timeline.lora``), as the rest is the full model's but for thinned K/V;
        with ``single`` for all tokens.
    """
    simulation = _refill if timeline.refresh == "refill" else _single
    return simulation(decoder, runs, tokens, timeline, frozen)


def _single(
    decoder: LayeredDecoder, runs: list[Run], tokens: Tensor, timeline: Timeline, frozen: Frozen | None
) -> Tensor:
    full, lora, anchor = timeline.full, timeline.lora, timeline.anchor[timeline.lora]
    among_full = timeline.causal[full][:, full]
    starts = {run.first: run for run in runs}
    x, layer = (decoder.embed(tokens), 0) if frozen is None else (frozen.x, runs[0].first)
    while layer < decoder.n_layer:
        run = starts.get(layer)
        if run is None:
            x = decoder.layer(layer, x, timeline.position, timeline.causal)
            layer += 1
            continue
        y_full = x[:, full]
        for i in range(run.first, run.last + 1):
            y_full = decoder.layer(i, y_full, full, among_full)
        y = torch.empty_like(x).index_copy(1, full, y_full)
        y_lora = run.corrector(x[:, lora], x[:, anchor], y[:, anchor], timeline.same_run)
        x = y.index_copy(1, lora, y_lora)
        layer = run.last + 1
    return x


def _refill(
    decoder: LayeredDecoder, runs: list[Run], tokens: Tensor, timeline: Timeline, frozen: Frozen | None
) -> Tensor:
    lora, anchor = timeline.lora, timeline.anchor[timeline.lora]
    starts = {run.first: run for run in runs}
    exact, layer = (decoder.embed(tokens), 0) if frozen is None else (frozen.x, runs[0].first)
    known = {} if frozen is None or frozen.y is None or len(runs) > 1 else frozen.kv
    x: Tensor | None = None  # the LoRA path; it leaves the exact tokens' at the first run
    while layer < decoder.n_layer:
        run = starts.get(layer)
        if run is None:
            kv = known.get(layer)
            if kv is None:
                kept = KeysAndValues()
                with torch.no_grad():
                    exact = decoder.layer(layer, exact, timeline.position, timeline.causal, kept)
                kv = kept.new
            if x is not None:
                x = decoder.layer(layer, x, lora, timeline.refilled, KeysAndValues(kv))
            layer += 1
            continue
        before = exact
        if frozen is not None and frozen.y is not None and run is runs[0]:
            exact = frozen.y
        else:
            with torch.no_grad():
                for i in range(run.first, run.last + 1):
                    exact = decoder.layer(i, exact, timeline.position, timeline.thinned)
        x = before[:, lora] if x is None else x
        x = run.corrector(x, before[:, anchor], exact[:, anchor], timeline.same_run)
        layer = run.last + 1
    assert x is not None, "a run ends before the last layer"
    return x
