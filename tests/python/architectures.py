"""The architectures that the tests decode, and the table of them in the documents.

``python tests/python/architectures.py`` writes the table anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from tiny import Reuse, vocabulary

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
    numpy : bool
        Whether the tests of the engine hold this architecture to the NumPy reference too.
    """

    cache: str = "plain"
    rules: tuple[Reuse, ...] = ("anchor-delta", "segment")
    numpy: bool = False


@dataclass(frozen=True)
class Refused(Checkpoint):
    """A model that LoRA-Drop refuses.

    Attributes
    ----------
    kind : str
        What it is.
    reason : str
        What the error with rho > 0 says.
    logits : bool
        Whether llama.cpp decodes it to logits from its tokens alone.
    """

    kind: str = ""
    reason: str = ""
    logits: bool = True


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
GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": len(vocabulary()),
    "hidden_size_per_layer_input": 8,
    "final_logit_softcapping": 6.0,
    **alternating(1),
}

SUPPORTED = [
    Supported("llama", "llama", "LlamaForCausalLM", rules=ALL_RULES, numpy=True),
    # llama.cpp knows no window of it, and later versions of the model have none
    Supported("mistral", "llama", "MistralForCausalLM", {"sliding_window": None}),
    Supported("qwen2", "qwen2", "Qwen2ForCausalLM", numpy=True),
    Supported("qwen3", "qwen3", "Qwen3ForCausalLM", {"head_dim": 16}),
    # llama.cpp ignores its window
    Supported("phi3", "phi3", "Phi3ForCausalLM", {"sliding_window": None}),
    Supported("phi2", "phi2", "PhiForCausalLM", {"num_key_value_heads": 4, "intermediate_size": 128}),
    Supported("gemma", "gemma", "GemmaForCausalLM", {"head_dim": 8}),
    Supported(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        {"head_dim": 8, "query_pre_attn_scalar": 8, **SOFT_CAPS, **alternating(1)},
        cache="windows in every second layer",
    ),
    Supported(
        "gemma3",
        "gemma3",
        "Gemma3ForCausalLM",
        {"head_dim": 8, "query_pre_attn_scalar": 8, **alternating(5)},
        "Gemma3TextConfig",
        cache="windows in five of six layers",
        rules=ALL_RULES,
    ),
    Supported(
        "gemma4",
        "gemma4",
        "Gemma4ForCausalLM",
        {**GEMMA4, "num_kv_shared_layers": 0},
        "Gemma4TextConfig",
        cache="windows in every second layer",
    ),
    Supported("olmo2", "olmo2", "Olmo2ForCausalLM"),
    Supported(
        "olmo3",
        "olmo2",
        "Olmo3ForCausalLM",
        alternating(3),
        cache="windows in three of four layers",
        rules=ALL_RULES,
        numpy=True,
    ),
    Supported(
        "cohere2",
        "cohere2",
        "Cohere2ForCausalLM",
        {"rotary_pct": 1.0, **alternating(3)},
        cache="windows in three of four layers",
    ),
    Supported("granite", "granite", "GraniteForCausalLM", GRANITE),
    Supported("glm4", "glm4", "Glm4ForCausalLM", {"head_dim": 8}),
    Supported("smollm3", "smollm3", "SmolLM3ForCausalLM"),
    Supported("starcoder2", "starcoder2", "Starcoder2ForCausalLM"),
    Supported("mixtral", "llama", "MixtralForCausalLM", LOCAL_EXPERTS),
    Supported("qwen3moe", "qwen3moe", "Qwen3MoeForCausalLM", {"head_dim": 8, **EXPERTS}, rules=ALL_RULES),
    Supported("granitemoe", "granitemoe", "GraniteMoeForCausalLM", GRANITE | LOCAL_EXPERTS),
    Supported(
        "gpt-oss",
        "gpt-oss",
        "GptOssForCausalLM",
        {"head_dim": 8, **LOCAL_EXPERTS, **PLAIN_ROPE, **alternating(1)},
        cache="windows in every second layer",
    ),
]

NO_KV_CACHE_ALONE = "does not keep its context in a KV cache alone"
FALCON_H1 = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
DEEPSEEK2 = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 8,
    "n_routed_experts": 4,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 8, "num_heads": 4, "decoder_start_token_id": 0}

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
        {"head_dim": 8, **FALCON_H1},
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
        "deepseek2",
        "deepseek2",
        "DeepseekV2ForCausalLM",
        DEEPSEEK2,
        kind="compressed K/V (MLA)",
        reason="keeps K and V as one compressed vector",
    ),
    Refused(
        "gemma4 with shared K/V",
        "gemma4",
        "Gemma4ForCausalLM",
        {**GEMMA4, "num_kv_shared_layers": 4},
        "Gemma4TextConfig",
        kind="layers that use the K/V of others",
        reason="has no KV cells of its own",
    ),
    Refused(
        "bert",
        "bert",
        "BertForMaskedLM",
        {"num_key_value_heads": 4},
        kind="encoder",
        reason=NO_KV_CACHE_ALONE,
        logits=False,
    ),
    Refused("t5", "t5", "T5ForConditionalGeneration", T5, kind="encoder", reason="has an encoder", logits=False),
]


def table() -> str:
    """Return the two tables of the document, in Markdown."""
    lines = [
        "| architecture | in llama.cpp | checked against | rules | refresh | caches |",
        "|---|---|---|---|---|---|",
    ]
    for c in SUPPORTED:
        against = "transformers, NumPy" if c.numpy else "transformers"
        rules = "all" if c.rules == ALL_RULES else _as_code(c.rules)
        lines.append(f"| {c.name} | `{c.arch}` | {against} | {rules} | {_as_code(POLICIES)} | {c.cache} |")
    lines += ["", "| refused with rho > 0 | in llama.cpp | what it is | the error says |", "|---|---|---|---|"]
    lines += [f"| {c.name} | `{c.arch}` | {c.kind} | {c.reason} |" for c in REFUSED]
    return "\n".join(lines)


def _as_code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def with_table(text: str) -> str:
    """Return the document's text with the table as it is now."""
    begin, end = "<!-- table -->\n\n", "\n\n<!-- end of the table -->"
    head, rest = text.split(begin)
    return head + begin + table() + end + rest.split(end)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
