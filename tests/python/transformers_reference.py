"""LoRA-Drop decoding on the layers of transformers, for architectures that the NumPy reference does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reference import FloatArray, RuleDecoder, SequenceState


class KeysAndValues:
    """Stands in for transformers' cache in one layer: keeps a token's K/V, and returns those that it sees."""

    def __init__(self, store: dict[int, Any], pos: int, window: int | None) -> None:
        self.store, self.pos, self.window = store, pos, window or pos + 1

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.store[self.pos] = (keys, values)
        seen = [kv for pos, kv in self.store.items() if self.pos - pos < self.window]
        return torch.cat([k for k, _ in seen], 2), torch.cat([v for _, v in seen], 2)


class TransformersDecoder(RuleDecoder):
    """A model of transformers, its corrector and the sequences that it decodes; see `RuleDecoder`.

    The model runs one token at a time, with its own embeddings, positions, scales and head, but each of its layers asks
    here what to do.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model with ``model.layers`` and eager attention, of its own for this decoder.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        layers = model.model.layers
        super().__init__(len(layers), *args, **kwargs)
        self.model = model
        kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * len(layers)
        self.windows = [model.config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
        self.last_of = {first: last for first, (last, _) in self.runs.items()}
        self.first_of = {i: first for first, last in self.last_of.items() for i in range(first, last + 1)}
        for i, layer in enumerate(layers):
            layer.forward = self._asking(i, layer.forward)

    @torch.no_grad()
    def _run_token(self, seq: SequenceState, token: int, lora: bool) -> FloatArray:
        self.seq, self.lora = seq, lora
        out = self.model(input_ids=torch.tensor([[token]]), position_ids=torch.tensor([[seq.n_past]]), use_cache=False)
        seq.n_past += 1
        logits: FloatArray = out.logits[0, 0].numpy()
        return logits

    def _logits(self, hidden: FloatArray) -> FloatArray:
        return hidden

    def _asking(self, i: int, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return what layer `i` runs instead of its own `forward`."""

        def ask(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            first = self.first_of.get(i)
            if self.lora and first is not None:
                return self._replaced(first, hidden_states) if i == first else hidden_states
            if first == i:
                self.run_input = hidden_states
            kv = KeysAndValues(self.seq.kv[i], self.seq.n_past, self.windows[i])
            # one token that sees all that its layer's cache returns needs no mask
            name = "cache" if "cache" in kwargs else "past_key_values"  # as layers call it from transformers 5.24 on
            out = forward(hidden_states, *args, **(kwargs | {name: kv, "attention_mask": None}))
            if first is not None and self.last_of[first] == i:
                self.seq.anchor[first] = (self.run_input[0, 0].numpy(), out[0, 0].numpy())
                self.seq.previous[first] = out[0, 0].numpy()
            return out

        return ask

    def _replaced(self, first: int, x: torch.Tensor) -> torch.Tensor:
        y = self._replace(self.seq, first, x[0, 0].numpy())
        self.seq.previous[first] = y
        return torch.from_numpy(y)[None, None]
