"""NumPy float32 reference of LoRA-Drop decoding, the oracle for the C++ engine.

It favours plainness over speed: tokens run one at a time through all layers, which under causal
attention gives what one batch of them gives. It knows the architectures ``llama``, ``qwen2`` and
``olmo2``, the last with and without sliding windows, in GGUF weight layout.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tiny import TinyCorrector, TinyModel

FloatArray = npt.NDArray[np.float32]
Policy = Literal["refill", "single", "verify"]

N_SINK = 4  # positions at the start of a sequence whose K/V are never thinned
NORM_EPS = 1e-5  # of the weightless norm inside correctors, whatever the model's own is


class Entry(NamedTuple):
    """What one sequence brings to a call of `Decoder.decode`."""

    seq_id: int
    tokens: Sequence[int]
    want_logits: bool = True


@dataclass
class SequenceState:
    """State of one sequence; a segment's run counts as its first layer in the two dicts."""

    kv: list[dict[int, tuple[FloatArray, FloatArray]]]  # per layer, position -> (K after RoPE, V)
    n_past: int = 0
    previous_logits_wanted: bool = False
    # Layer -> (x_r, y_r), input and output at the anchor, the last token of the last full step.
    anchor: dict[int, tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    # Layer -> y_{t-1}, the output at the previous token, be it full or replaced.
    previous: dict[int, FloatArray] = field(default_factory=dict)
    lora_tokens: list[int] = field(default_factory=list)  # since the last full step
    thinnable: set[int] = field(default_factory=set)  # positions to thin once out of the window

    def forget_unreachable_lora_tokens(self) -> None:
        """Leave LoRA tokens as they are where the position before them has been removed: they cannot run again."""
        first = self.n_past - len(self.lora_tokens)
        if first > 0 and first - 1 not in self.kv[0]:
            self.lora_tokens = []


def layers_for(rho: float, n_layer: int, corrector: TinyCorrector) -> list[int]:
    """Return the layers that drop at `rho`, at most n = floor(rho * n_layer + 0.5).

    They are the first n of ``layers``, or for ``segment`` the longest run of at most n layers.
    n = 0 drops none; ValueError if n is more than the corrector has or every run is longer.
    """
    n = math.floor(rho * n_layer + 0.5)
    runs = [list(range(first, last + 1)) for first, last in corrector.segments or []]
    most = max(map(len, runs)) if runs else len(corrector.layers)
    if n > most:
        raise ValueError(f"rho {rho} asks for {n} droppable layers, the corrector has {most}")
    if not runs or n == 0:
        return corrector.layers[:n]
    fitting = [run for run in runs if len(run) <= n]
    if not fitting:
        raise ValueError(f"rho {rho} asks for {n} droppable layers, every run is longer")
    return max(fitting, key=len)


def rms_norm(x: FloatArray, eps: float) -> FloatArray:
    """Return x / sqrt(mean(x^2) + eps) for x of shape [n]."""
    return x / math.sqrt(np.mean(x * x) + eps)


def silu(x: FloatArray) -> FloatArray:
    """Return x * sigmoid(x)."""
    y: FloatArray = x / (1 + np.exp(-x))
    return y


def rope(x: FloatArray, pos: int, base: float, neox: bool) -> FloatArray:
    """Rotate x [n_head, head_dim] by `pos` in pairs (2i, 2i+1), or `neox` (i, i + head_dim/2)."""
    dim = x.shape[1]
    first = np.arange(dim // 2) if neox else np.arange(0, dim, 2)
    second = first + (dim // 2 if neox else 1)
    angle = pos * base ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    out = np.empty_like(x)
    out[:, first] = x[:, first] * cos - x[:, second] * sin
    out[:, second] = x[:, first] * sin + x[:, second] * cos
    return out


def replacement(
    reuse: str,
    parts: Mapping[str, FloatArray],
    scale: float,
    x: FloatArray,
    anchor: tuple[FloatArray, FloatArray],
    previous: FloatArray,
) -> FloatArray:
    """Return what stands for a droppable layer's (or run's) output [n_embd] in a LoRA step.

    With n the RMS norm without weight and f = [n(x_t); n(y_r); n(x_r)]::

        previous-state  y_t = y_{t-1} + s B A x_t                  (arXiv 2601.02569)
        anchor-state    y_t = y_r + s B A x_t                      (the paper's reference code)
        anchor-delta    y_t = x_t + g (y_r - x_r) + s B A n(x_t)
        segment         y_t = x_t + g (y_r - x_r) + s B A f + D (silu(G f) * (U f))

    Parameters
    ----------
    reuse : str
        The rule, one of the four names above.
    parts : mapping of str to float32 array
        A, B are ``a`` [rank, n_in], ``b`` [n_embd, rank] with n_in = n_embd, or 3 * n_embd for
        segment. g [n_embd] is ``gate`` of anchor-delta, ``carry`` of segment. G, U, D are
        ``gate``, ``up`` [hidden, n_in], ``down`` [n_embd, hidden]. What is absent counts as zero.
    scale : float
        s = alpha / rank.
    x, anchor, previous : float32 array [n_embd], pair of such arrays, float32 array [n_embd]
        x_t, (x_r, y_r), y_{t-1}.
    """
    x_r, y_r = anchor

    def low_rank(features: FloatArray) -> FloatArray:
        if "a" not in parts:
            return np.zeros_like(x)
        y: FloatArray = parts["b"] @ (parts["a"] @ features)
        return np.float32(scale) * y

    def carried(gate: str) -> FloatArray:
        return x + parts[gate] * (y_r - x_r) if gate in parts else x

    if reuse == "previous-state":
        return previous + low_rank(x)
    if reuse == "anchor-state":
        return y_r + low_rank(x)
    if reuse == "anchor-delta":
        return carried("gate") + low_rank(rms_norm(x, NORM_EPS))
    if reuse == "segment":
        f = np.concatenate([rms_norm(v, NORM_EPS) for v in (x, y_r, x_r)])
        y = carried("carry") + low_rank(f)
        if "up" in parts:
            y = y + parts["down"] @ (silu(parts["gate"] @ f) * (parts["up"] @ f))
        return y
    raise ValueError(f"unknown reuse rule {reuse!r}")


class RuleDecoder:
    """The rule: which tokens run which layers, and what stands for a layer that does not run.

    What a layer computes is left to the class that inherits.

    Parameters
    ----------
    n_layer : int
        Layers of the model.
    corrector : TinyCorrector or None
        Float32 weights; without a corrector nothing may drop.
    dropped : sequence of int
        The layers that drop, as `layers_for` gives them; none means that every step is full.
    k : int
        Most LoRA steps between two full steps.
    policy : {"refill", "single", "verify"}
        Whether a refresh step runs the tokens of the LoRA steps before it again, or leaves their
        K/V missing in droppable layers; or whether every step is full, and LoRA steps only `draft`.
    kv_window : int
        With refill, droppable layers lose the K/V of replayed tokens that are this far back.
    """

    def __init__(
        self,
        n_layer: int,
        corrector: TinyCorrector | None = None,
        dropped: Sequence[int] = (),
        k: int = 0,
        policy: Policy = "refill",
        kv_window: int = 64,
    ) -> None:
        if not set(dropped) <= set(range(1, n_layer - 1)):
            raise ValueError("the first and the last layer never drop")
        self.n_layer, self.corrector, self.dropped = n_layer, corrector, set(dropped)
        self.k = k if dropped else 0
        self.policy, self.kv_window = policy, kv_window
        self.last_step: Literal["full", "lora"] = "full"
        self.sequences: dict[int, SequenceState] = {}
        # What is replaced as one: first layer -> (last layer, name prefix of its tensors).
        self.runs = {i: (i, f"blk.{i}.lora_drop_") for i in dropped}
        if dropped and corrector is not None and corrector.segments is not None:
            first, last = min(dropped), max(dropped)
            index = corrector.segments.index((first, last))
            self.runs = {first: (last, f"lora_drop.seg.{index}.")}

    def positions(self, seq_id: int, layer: int) -> list[int]:
        """Return the positions whose K/V `layer` holds for the sequence, ascending."""
        return sorted(self.sequences[seq_id].kv[layer])

    def decode(self, batch: Sequence[Entry]) -> list[FloatArray | None]:
        """Run one step; return per entry its last token's logits [n_vocab], None if not wanted."""
        ids = [entry.seq_id for entry in batch]
        if len(set(ids)) != len(ids) or not all(entry.tokens for entry in batch):
            raise ValueError("every sequence appears once and brings at least one token")
        for seq_id in set(ids) - set(self.sequences):
            self.sequences[seq_id] = SequenceState([{} for _ in range(self.n_layer)])

        lora = all(self._is_due_lora_step(entry) for entry in batch)
        self.last_step = "lora" if lora else "full"
        logits: list[FloatArray | None] = []
        for entry in batch:
            seq = self.sequences[entry.seq_id]
            hidden = (self._lora_step if lora else self._full_step)(seq, entry.tokens)
            seq.previous_logits_wanted = entry.want_logits
            logits.append(self._logits(hidden) if entry.want_logits else None)
        return logits

    def draft(
        self, seq_id: int, token: int, n_steps: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> list[FloatArray]:
        """Return the logits of LoRA steps from a token on, each on the most probable token of the one before.

        The logits of tokens that are not allowed are -inf. The sequence stays as it is.
        """
        seq = copy.deepcopy(self.sequences[seq_id])
        logits = []
        for _ in range(n_steps):
            step = self._logits(self._lora_step(seq, [token]))
            logits.append(step if allowed is None else np.where(allowed, step, np.float32(-np.inf)))
            token = int(logits[-1].argmax())
        return logits

    def _is_due_lora_step(self, entry: Entry) -> bool:
        if self.policy == "verify":
            return False
        seq = self.sequences[entry.seq_id]
        # A token whose predecessor's logits nobody asked for cannot be sampled: it is prompt.
        sampled = seq.n_past > 0 and seq.previous_logits_wanted
        return len(entry.tokens) == 1 and sampled and len(seq.lora_tokens) < self.k

    def _lora_step(self, seq: SequenceState, tokens: Sequence[int]) -> FloatArray:
        seq.lora_tokens.extend(tokens)
        return self._run_token(seq, tokens[0], lora=True)

    def _full_step(self, seq: SequenceState, tokens: Sequence[int]) -> FloatArray:
        seq.forget_unreachable_lora_tokens()
        if self.policy == "refill":
            replayed = range(seq.n_past - len(seq.lora_tokens), seq.n_past)
            for store in seq.kv:
                for pos in replayed:
                    store.pop(pos, None)
            seq.n_past = replayed.start
            seq.thinnable.update(pos for pos in replayed if pos >= N_SINK)
            tokens = [*seq.lora_tokens, *tokens]
        seq.lora_tokens = []
        for token in tokens:
            hidden = self._run_token(seq, token, lora=False)
        thinned = {pos for pos in seq.thinnable if pos <= seq.n_past - 1 - self.kv_window}
        for layer in self.dropped:
            for pos in thinned:
                del seq.kv[layer][pos]
        seq.thinnable -= thinned
        return hidden

    def _run_token(self, seq: SequenceState, token: int, lora: bool) -> FloatArray:
        """Run the sequence's next token and return what `_logits` takes."""
        raise NotImplementedError

    def _logits(self, hidden: FloatArray) -> FloatArray:
        raise NotImplementedError

    def _replace(self, seq: SequenceState, first: int, x: FloatArray) -> FloatArray:
        c, prefix = self.corrector, self.runs[first][1]
        assert c is not None, "layers drop only with a corrector"
        parts = {
            name.removeprefix(prefix).removesuffix(".weight"): tensor
            for name, tensor in c.tensors.items()
            if name.startswith(prefix)
        }
        anchor, previous = seq.anchor[first], seq.previous[first]
        return replacement(c.reuse, parts, c.alpha / c.rank, x, anchor, previous)


class Decoder(RuleDecoder):
    """A tiny model, its corrector and the sequences that it decodes; see `RuleDecoder`."""

    def __init__(self, model: TinyModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(model.n_layer, *args, **kwargs)
        self.model = model

    def _run_token(self, seq: SequenceState, token: int, lora: bool) -> FloatArray:
        """Run the sequence's next token and return the last layer's output [n_embd]."""
        x: FloatArray = self.model.tensors["token_embd.weight"][token]
        layer = 0
        while layer < self.n_layer:
            last = self.runs[layer][0] if layer in self.runs else layer
            if lora and layer in self.runs:
                y = self._replace(seq, layer, x)
            else:
                y = x
                for i in range(layer, last + 1):
                    y = self._layer(seq, i, y)
                # In a full step of many tokens the last one stays: it is the anchor.
                seq.anchor[layer] = (x, y)
            seq.previous[layer] = x = y
            layer = last + 1
        seq.n_past += 1
        return x

    def stored(self, k: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return what the cache keeps of K and V [n_head_kv, head_dim]."""
        return k, v

    def in_attention(self, q: FloatArray) -> FloatArray:
        """Return what the products with the keys take of Q [n_head, head_dim]."""
        return q

    def _linear(self, name: str, x: FloatArray) -> FloatArray:
        y: FloatArray = self.model.tensors[f"{name}.weight"] @ x
        bias = self.model.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: FloatArray) -> FloatArray:
        """Return the norm of x, or x itself where the architecture has no such norm."""
        weight = self.model.tensors.get(f"{name}.weight")
        return x if weight is None else rms_norm(x, self.model.rms_eps) * weight

    def _layer(self, seq: SequenceState, i: int, x: FloatArray) -> FloatArray:
        """Run layer i in full on x [n_embd] and store the token's K/V."""
        m, blk = self.model, f"blk.{i}"
        h = self._norm(f"{blk}.attn_norm", x)
        q = self._norm(f"{blk}.attn_q_norm", self._linear(f"{blk}.attn_q", h)).reshape(m.n_head, -1)
        k = self._norm(f"{blk}.attn_k_norm", self._linear(f"{blk}.attn_k", h)).reshape(m.n_head_kv, -1)
        v = self._linear(f"{blk}.attn_v", h).reshape(m.n_head_kv, -1)
        q, k = (rope(z, seq.n_past, m.rope_base, neox=m.arch != "llama") for z in (q, k))
        # Tokens run in order, so all that is stored lies at this position or before it.
        q, seq.kv[i][seq.n_past] = self.in_attention(q), self.stored(k, v)
        window = m.window(i) or seq.n_past + 1
        seen = [kv for pos, kv in seq.kv[i].items() if seq.n_past - pos < window]
        keys = np.stack([k for k, _ in seen])  # [n_kv, n_head_kv, head_dim]
        values = np.stack([v for _, v in seen])
        heads = []
        for head in range(m.n_head):
            shared = head // (m.n_head // m.n_head_kv)
            scores = keys[:, shared] @ q[head] / math.sqrt(q.shape[1])
            weights = np.exp(scores - scores.max())
            heads.append(weights / weights.sum() @ values[:, shared])
        x = x + self._norm(f"{blk}.post_attention_norm", self._linear(f"{blk}.attn_output", np.concatenate(heads)))
        h = self._norm(f"{blk}.ffn_norm", x)
        gated = silu(self._linear(f"{blk}.ffn_gate", h)) * self._linear(f"{blk}.ffn_up", h)
        return x + self._norm(f"{blk}.post_ffw_norm", self._linear(f"{blk}.ffn_down", gated))

    def _logits(self, hidden: FloatArray) -> FloatArray:
        output = "output" if "output.weight" in self.model.tensors else "token_embd"
        return self._linear(output, self._norm("output_norm", hidden))
