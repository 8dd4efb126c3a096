"""A context of 32k tokens, against a reference that takes the prompt in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pair import Pair
from reference import Decoder, Entry, FloatArray, SequenceState, silu
from tiny import TinyModel, make_corrector, make_model

N_CTX = 32_768
N_GENERATED = 12
BLOCK = 512
WINDOW = 64
ROPE_TOLERANCE = 1e-3  # a float32 holds the last positions' angles to 1e-3


def rotated(x: FloatArray, model: TinyModel) -> FloatArray:
    """Return x [n_tokens, head_dim] after RoPE, each row at its position, in pairs (i, i + head_dim/2)."""
    half = x.shape[1] // 2
    angle = np.arange(len(x))[:, None] * model.rope_base ** (-np.arange(half) / half)
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=1).astype(np.float32)


def attended(q: FloatArray, k: FloatArray, v: FloatArray, window: int | None) -> FloatArray:
    """Return what causal attention gives [n_tokens, head_dim], in one head."""
    out = np.empty_like(v)
    for start in range(0, len(q), BLOCK):
        end = min(start + BLOCK, len(q))
        first = 0 if window is None else max(0, start - window)
        scores = q[start:end] @ k[first:end].T / np.float32(q.shape[1] ** 0.5)
        distance = np.arange(start, end)[:, None] - np.arange(first, end)
        scores[(distance < 0) | (distance >= (window or len(q)))] = -np.inf
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[start:end] = scores @ v[first:end] / scores.sum(axis=1, keepdims=True)
    return out


def after_prompt(model: TinyModel, tokens: list[int]) -> SequenceState:
    """Return the state of an olmo2 of one head that has seen the tokens."""

    def norm(name: str, x: FloatArray) -> FloatArray:
        y: FloatArray = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(model.rms_eps))
        return y * model.tensors[f"{name}_norm.weight"]

    seq = SequenceState([], n_past=len(tokens), previous_logits_wanted=True)
    x = model.tensors["token_embd.weight"][tokens]
    for i in range(model.n_layer):
        blk = f"blk.{i}"
        weights = {
            name: model.tensors[f"{blk}.{name}.weight"].T
            for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        }
        q = rotated(norm(f"{blk}.attn_q", x @ weights["attn_q"]), model)
        k = rotated(norm(f"{blk}.attn_k", x @ weights["attn_k"]), model)
        v = x @ weights["attn_v"]
        seq.kv.append({pos: (k[pos, None], v[pos, None]) for pos in range(len(tokens))})
        y = x + norm(f"{blk}.post_attention", attended(q, k, v, model.window(i)) @ weights["attn_output"])
        y = y + norm(f"{blk}.post_ffw", (silu(y @ weights["ffn_gate"]) * (y @ weights["ffn_up"])) @ weights["ffn_down"])
        seq.anchor[i], seq.previous[i] = (x[-1], y[-1]), y[-1]
        x = y
    return seq


def test_generating_after_a_long_prompt(tmp_path: Path) -> None:
    # the layer in the middle sees all tokens and drops; those around it have windows, which saves time
    model = make_model("olmo2", n_layer=3, n_embd=16, n_head=1, n_head_kv=1, n_ff=16, n_ctx_train=N_CTX, n_swa=WINDOW)
    corrector = make_corrector(model, "anchor-delta", layers=[1])
    options = {"n_ctx": N_CTX, "n_batch": BLOCK, "n_ubatch": BLOCK, "swa_full": False}
    pair = Pair(tmp_path, model, corrector, rho=1 / 3, k=3, refresh="refill", kv_window=6, **options)
    pair.tolerance = ROPE_TOLERANCE
    tokens = np.random.default_rng(0).integers(3, 319, N_CTX).tolist()
    n_prompt = N_CTX - N_GENERATED
    for start in range(0, n_prompt, BLOCK):
        pair.engine.decode(tokens[start : min(start + BLOCK, n_prompt)])
    assert isinstance(pair.reference, Decoder)
    pair.reference.sequences[0] = after_prompt(model, tokens[:n_prompt])
    for token in tokens[n_prompt:]:
        pair.decode(Entry(0, [token]))
    assert pair.engine.stats["lora_steps"] == 9
