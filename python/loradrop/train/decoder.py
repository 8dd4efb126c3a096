"""A transformers model taken apart into the layers that LoRA-Drop drops or keeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class KeysAndValues:
    """Stands in for transformers' cache of one layer call: adds K/V in front, and keeps the new ones.

    Parameters
    ----------
    before : pair of Tensor, optional
        K and V [batch, n_head_kv, n_before, head_dim] that the tokens of the call also attend to.
    """

    def __init__(self, before: tuple[Tensor, Tensor] | None = None) -> None:
        self._before = before
        self.new: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return all K and V; called by the attention of transformers."""
        self.new = (keys, values)
        if self._before is None:
            return keys, values
        return torch.cat([self._before[0], keys], 2), torch.cat([self._before[1], values], 2)


class LayeredDecoder(nn.Module):
    """A frozen decoder-only model whose layers can be run one at a time, with any mask.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model of the usual shape: ``model.layers``, ``model.norm``, ``lm_head``.
    checkpointing : bool
        Whether a layer's inner results are computed anew for the gradient instead of kept: less memory, a third more
        work.

    Raises
    ------
    ValueError
        If the model is built otherwise, or its layers one by one do not give what it gives.
    """

    def __init__(self, model: nn.Module, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        body = getattr(model, "model", None)
        missing = [n for n in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(body, n)]
        if missing or not hasattr(model, "lm_head"):
            kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            raise ValueError(
                f"model_type={kind!r} has no model.{', model.'.join(missing) or 'lm_head'}: the trainer knows models "
                "built like llama; `loradrop calibrate` works with any that the engine runs"
            )
        self.model = model.eval().requires_grad_(False)
        self.body = cast(Any, body)
        self.n_layer = len(self.body.layers)
        self.n_embd = int(cast(Any, model).config.hidden_size)
        self.n_vocab = int(cast(Any, model).config.vocab_size)
        self._check()
        keys = self._keys_of_one_token()
        self.n_head_kv, self.n_embd_kv = keys.shape[1], keys.shape[1] * keys.shape[3]

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(self.model.parameters()).device

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input of layer 0 [batch, n, n_embd] for tokens [batch, n]."""
        return cast(Tensor, self.body.embed_tokens(tokens))

    def layer(
        self, index: int, x: Tensor, positions: Tensor, mask: Tensor | None = None, kv: KeysAndValues | None = None
    ) -> Tensor:
        """Return a layer's output [batch, n, n_embd].

        Parameters
        ----------
        x : Tensor [batch, n, n_embd]
        positions : Tensor [n]
            The tokens' places in the text.
        mask : bool Tensor [n, n_keys], optional
            Which key each token attends to; None is causal among the n tokens.
        kv : KeysAndValues, optional
            Keys before the n, and where the new ones are wanted.
        """
        if self.checkpointing and x.requires_grad:
            return cast(Tensor, checkpoint(self._layer, index, x, positions, mask, kv, use_reentrant=False))
        return self._layer(index, x, positions, mask, kv)

    def _layer(self, index: int, x: Tensor, positions: Tensor, mask: Tensor | None, kv: KeysAndValues | None) -> Tensor:
        rotary = self.body.rotary_emb(x, position_ids=positions[None])
        out = self.body.layers[index](
            x,
            attention_mask=None if mask is None else mask[None, None],
            position_ids=positions[None],
            past_key_values=kv,
            position_embeddings=rotary,
        )
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., n_vocab] of the last layer's output [..., n_embd]."""
        return cast(Tensor, cast(Any, self.model).lm_head(self.body.norm(hidden)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last layer's output [batch, n, n_embd], every layer in full."""
        x = self.embed(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        for index in range(self.n_layer):
            x = self.layer(index, x, positions)
        return x

    @torch.no_grad()
    def _keys_of_one_token(self) -> Tensor:
        kv = KeysAndValues()
        zero = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.layer(0, self.embed(zero), zero[0], kv=kv)
        if kv.new is None:
            raise ValueError("the attention of layer 0 does not hand its keys to a cache; the trainer cannot use it")
        return kv.new[0]

    @torch.no_grad()
    def _check(self) -> None:
        tokens = torch.arange(8, device=self.device)[None] % self.n_vocab
        expected = self.model(tokens).logits
        error = (self.logits(self(tokens)) - expected).abs().max() / expected.abs().max()
        if not error < 1e-2:
            raise ValueError(
                f"model_type={cast(Any, self.model).config.model_type!r}: its layers one by one differ from the whole "
                f"model by {error:.1e} of the largest logit; the trainer cannot take it apart"
            )


def load_decoder(
    path: str | os.PathLike[str], dtype: torch.dtype = torch.float32, *, checkpointing: bool = False
) -> LayeredDecoder:
    """Load a model from a GGUF file, whose weights are dequantised, or from a Hugging Face folder.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If the model cannot be taken apart into layers.
    """
    from transformers import AutoModelForCausalLM

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model; give a GGUF file or a Hugging Face folder")
    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.is_file():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, attn_implementation="sdpa")
    return LayeredDecoder(model, checkpointing)
