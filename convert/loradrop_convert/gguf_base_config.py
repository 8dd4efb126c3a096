"""As much of a transformers configuration as llama.cpp's converter of adapters needs, from a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where one class of llama.cpp's converter makes all files of an architecture, or all do the same to its matrices.
_CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_FIELDS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
}


def gguf_base_config(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the configuration, or None where the metadata do not tell it for certain."""
    arch = metadata.get("general.architecture", "")
    values = {name: metadata.get(f"{arch}.{key}") for name, key in _FIELDS.items()}
    given = {name: value for name, value in values.items() if value is not None}
    if arch not in _CLASSES or not all(value.isdigit() for value in given.values()):
        return None
    config: dict[str, Any] = {"architectures": [_CLASSES[arch]]}
    return config | {name: int(value) for name, value in given.items()}
