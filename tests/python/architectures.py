"""The architectures that the tests decode, and the table of them in the documents.

``python tests/python/architectures.py`` writes the table anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from tiny import Arch, Reuse, vocabulary

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
ALL_RULES: tuple[Reuse, ...] = get_args(Reuse)
POLICIES = ("single", "refill")
WINDOW = 7  # tokens that a layer with a sliding window sees, its own among them
SIZES: dict[str, Any] = {
    "vocab_size": len(vocabulary()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Checkpoint:
    """A tiny model as transformers makes it.

    Attributes
    ----------
    name : str
        What people call the architecture.
    arch : str
        What llama.cpp calls it.
    model_class : str
        The class in transformers.
    options : dict
        Fields of its configuration beside `SIZES`.
    config_class : str, optional
        The class of its configuration, where it has not the name that follows from the model's.
    """

    name: str
    arch: str
    model_class: str
    options: dict[str, Any] = field(default_factory=dict)
    config_class: str | None = None


@dataclass(frozen=True)
class Supported(Checkpoint):
    """A model that decodes with LoRA-Drop.

    Attributes
    ----------
    cache : str
        Which layers keep K/V of which tokens.
    rules : tuple of str
        Reuse rules of which each step is compared with the rule on the layers of transformers.
    gelu : bool
        Whether it computes GELU, which ggml looks up in a table of f16.
    """

    cache: str = "plain"
    rules: tuple[Reuse, ...] = ("anchor-delta", "segment")
    gelu: bool = False


@dataclass(frozen=True)
class Refused(Checkpoint):
    """A model that LoRA-Drop refuses.

    Attributes
    ----------
    kind : str
        What it is.
    reason : str
        Regular expression of the error with rho > 0, after the architecture's name.
    decodes : bool
        Whether llama_decode takes it alone, without LoRA-Drop.
    """

    kind: str = ""
    reason: str = ""
    decodes: bool = True


def alternating(n_sliding: int) -> dict[str, Any]:
    """Return the options of a model in which one full layer follows each `n_sliding` layers with a window."""
    kinds = ([*["sliding_attention"] * n_sliding, "full_attention"] * 8)[:8]
    return {"sliding_window": WINDOW, "layer_types": kinds}


# llama.cpp always lets the chosen experts' weights sum to one
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
SOFT_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 6.0}
# llama.cpp and transformers differ in where YaRN begins when a head is as small as here
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

SUPPORTED = [
    Supported("llama", "llama", "LlamaForCausalLM", rules=ALL_RULES),
    # llama.cpp knows no window of it, later versions of the model have none
    Supported("mistral", "llama", "MistralForCausalLM", {"sliding_window": None}),
    Supported("qwen2", "qwen2", "Qwen2ForCausalLM"),
    Supported("qwen3", "qwen3", "Qwen3ForCausalLM", {"head_dim": 16}),
    # llama.cpp gives its window up
    Supported("phi3", "phi3", "Phi3ForCausalLM", {"sliding_window": None}),
    Supported("gemma", "gemma", "GemmaForCausalLM", {"head_dim": 8}, gelu=True),
    Supported(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        {"head_dim": 8, "query_pre_attn_scalar": 8, **SOFT_CAPS, **alternating(1)},
        cache="every second layer has a window",
        rules=ALL_RULES,
        gelu=True,
    ),
    Supported(
        "gemma3",
        "gemma3",
        "Gemma3ForCausalLM",
        {"head_dim": 8, "query_pre_attn_scalar": 8, **alternating(5)},
        "Gemma3TextConfig",
        cache="five of six layers have a window",
        gelu=True,
    ),
    Supported("olmo2", "olmo2", "Olmo2ForCausalLM"),
    Supported(
        "olmo3", "olmo2", "Olmo3ForCausalLM", alternating(3), cache="three of four layers have a window", rules=ALL_RULES
    ),
    Supported("granite", "granite", "GraniteForCausalLM", GRANITE),
    Supported("smollm3", "smollm3", "SmolLM3ForCausalLM"),
    Supported("starcoder2", "starcoder2", "Starcoder2ForCausalLM", gelu=True),
    Supported("mixtral", "llama", "MixtralForCausalLM", LOCAL_EXPERTS),
    Supported("qwen3moe", "qwen3moe", "Qwen3MoeForCausalLM", {"head_dim": 8, **EXPERTS}, rules=ALL_RULES),
    Supported(
        "gpt-oss",
        "gpt-oss",
        "GptOssForCausalLM",
        {"head_dim": 8, **LOCAL_EXPERTS, **PLAIN_ROPE, **alternating(1)},
        cache="every second layer has a window",
    ),
]

NO_KV_CACHE_ALONE = "does not keep its context in a KV cache alone"
REFUSED = [
    Refused(
        "mamba",
        "mamba",
        "MambaForCausalLM",
        {"state_size": 8, "intermediate_size": 64},
        kind="recurrent",
        reason=NO_KV_CACHE_ALONE,
    ),
    Refused(
        "falcon-h1",
        "falcon-h1",
        "FalconH1ForCausalLM",
        {"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
        | {"mamba_n_groups": 1},
        kind="hybrid",
        reason=NO_KV_CACHE_ALONE,
    ),
    Refused(
        "lfm2",
        "lfm2",
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention"] * 4},
        kind="hybrid",
        reason=NO_KV_CACHE_ALONE,
    ),
    Refused(
        "bert", "bert", "BertForMaskedLM", {"num_key_value_heads": 4}, kind="encoder", reason=NO_KV_CACHE_ALONE
    ),
    Refused(
        "t5",
        "t5",
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 8, "num_heads": 4, "decoder_start_token_id": 0},
        kind="encoder and decoder",
        reason="has an encoder",
        decodes=False,
    ),
]
