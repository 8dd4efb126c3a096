"""The full model's states for a set of texts, by transformers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from loradrop.state_store import StateStore, StateWriter, Tokens, inputs_name
from loradrop.train.decoder import KeysAndValues, LayeredDecoder

SAMPLED = 256  # weights of each tensor that tell models apart
KV = tuple[torch.Tensor, torch.Tensor]


def key_name(layer: int) -> str:
    """Return the name of a layer's keys in a store."""
    return f"keys-{layer:03d}"


def value_name(layer: int) -> str:
    """Return the name of a layer's values in a store."""
    return f"values-{layer:03d}"


@torch.no_grad()
def collect(
    decoder: LayeredDecoder,
    tokens: Tokens,
    layers: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    kv_layers: Sequence[int] = (),
    batch: int = 8,
    advance: Callable[[int], None] | None = None,
) -> StateStore:
    """Run texts through the full model and keep the inputs of some layers; goes on where it was stopped.

    Parameters
    ----------
    decoder : LayeredDecoder
    tokens : int32 array [n_texts, n_tokens]
    layers : sequence of int
        0 to n_layer; n_layer stands for the last layer's output.
    folder : path
        See `StateWriter`.
    kv_layers : sequence of int
        Layers whose K and V are kept too.
    batch : int
        Texts at once.
    advance : callable, optional
        Called with the number of texts done since the last call.
    """
    widths = {inputs_name(layer): decoder.n_embd for layer in layers}
    for layer in kv_layers:
        widths |= {key_name(layer): decoder.n_embd_kv, value_name(layer): decoder.n_embd_kv}
    writer = StateWriter(folder, tokens, widths, model=fingerprint(decoder))
    if writer.done and advance is not None:
        advance(writer.done)
    while writer.done < len(tokens):
        ids = torch.from_numpy(tokens[writer.done : writer.done + batch].astype(np.int64)).to(decoder.device)
        writer.append(_states_of(decoder, ids, set(layers), set(kv_layers)))
        if advance is not None:
            advance(len(ids))
    return StateStore(folder)


def fingerprint(decoder: LayeredDecoder) -> str:
    """Return what tells a model from others, other quantisations and other states of training: a hash of a sample."""
    digest = hashlib.sha256()
    for name, weights in decoder.named_parameters():
        flat = weights.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED)].to("cpu", torch.bfloat16)  # the same for either precision
        digest.update(f"{name} {tuple(weights.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def stored_kv(
    store: StateStore, layers: Sequence[int], texts: NDArray[np.int64], n_head_kv: int, device: torch.device
) -> dict[int, KV]:
    """Return K and V [n_texts, n_head_kv, n_tokens, head_dim] of layers, or nothing if one of them was not kept."""
    if not all(key_name(layer) in store for layer in layers):
        return {}

    def read(name: str) -> torch.Tensor:
        flat = torch.from_numpy(store[name][texts].astype(np.float32)).to(device)
        return flat.view(*flat.shape[:2], n_head_kv, -1).transpose(1, 2)

    return {layer: (read(key_name(layer)), read(value_name(layer))) for layer in layers}


def _states_of(
    decoder: LayeredDecoder, ids: torch.Tensor, layers: set[int], kv_layers: set[int]
) -> dict[str, NDArray[np.float32]]:
    positions = torch.arange(ids.shape[1], device=decoder.device)
    x, states = decoder.embed(ids), {}
    for layer in range(max(layers) + 1):
        if layer in layers:
            states[inputs_name(layer)] = x.float().cpu().numpy()
        if layer == decoder.n_layer:
            break
        kv = KeysAndValues()
        x = decoder.layer(layer, x, positions, kv=kv)
        if layer in kv_layers and kv.new is not None:
            for name, part in zip((key_name(layer), value_name(layer)), kv.new, strict=True):
                states[name] = part.transpose(1, 2).flatten(2).float().cpu().numpy()
    return states
