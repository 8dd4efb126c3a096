"""The same tiny model in transformers, the reference of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from reference import FloatArray
from tiny import TinyModel

RENAMED = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def half_split(weight: FloatArray, n_head: int) -> FloatArray:
    """Turn rows in RoPE pairs (2i, 2i+1), as in GGUF, into the halves of transformers."""
    pairs = weight.reshape(n_head, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def transformers_model(model: TinyModel) -> Any:
    """Return the model as a transformers one; skips the test where transformers is not installed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name = {"llama": "Llama", "qwen2": "Qwen2", "olmo2": "Olmo3"}[model.arch]
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"this transformers has no {name}")
    config_class, model_class = getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForCausalLM")
    # transformers 4 reads rope_theta, later versions read rope_parameters
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_base}
    windows: dict[str, Any] = {}
    if model.arch == "olmo2":
        rope = {"sliding_attention": rope, "full_attention": rope}
        kinds = ["sliding_attention" if model.window(i) else "full_attention" for i in range(model.n_layer)]
        windows = {"layer_types": kinds, "sliding_window": max(model.n_swa, 1)}  # read even where no layer has one
    config = config_class(
        vocab_size=model.n_vocab,
        hidden_size=model.n_embd,
        intermediate_size=model.n_ff,
        num_hidden_layers=model.n_layer,
        num_attention_heads=model.n_head,
        num_key_value_heads=model.n_head_kv,
        rms_norm_eps=model.rms_eps,
        rope_theta=model.rope_base,
        rope_parameters=rope,
        tie_word_embeddings=model.tied,
        **windows,
    )
    state = {}
    for name, tensor in model.tensors.items():
        *layer, part, kind = name.split(".")
        if model.arch == "llama" and part in ("attn_q", "attn_k"):
            tensor = half_split(tensor, model.n_head if part == "attn_q" else model.n_head_kv)
        prefix = f"model.layers.{layer[1]}." if layer else ""
        state[f"{prefix}{RENAMED[part]}.{kind}"] = torch.from_numpy(tensor.copy())
    if model.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    other = model_class(config).to(torch.float32).eval()
    other.load_state_dict(state)
    return other


def transformers_logits(model: TinyModel, tokens: Sequence[int]) -> FloatArray:
    """Return logits [n_tokens, n_vocab] of a text."""
    other = transformers_model(model)
    import torch

    with torch.no_grad():
        logits: FloatArray = other(torch.tensor([list(tokens)])).logits[0].numpy()
    return logits
