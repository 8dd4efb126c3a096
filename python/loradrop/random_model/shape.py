"""A model's shape: its architecture and sizes, and those of known models."""

from __future__ import annotations

from dataclasses import dataclass

from loradrop.checks import check_choice, check_int
from loradrop.random_model.architecture import ARCHITECTURES
from loradrop.random_model.vocabulary import LEAST_VOCAB

MAX_SIZE = 2**24  # of any dimension; keeps a typing error from asking for petabytes
MAX_EXPERTS = 1024  # llama.cpp's LLAMA_MAX_EXPERTS


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides which tensors a model has, and their sizes.

    Attributes
    ----------
    arch : str
        llama.cpp's name of the architecture, one of `ARCHITECTURES`.
    layers, embd, heads, kv_heads, ff, vocab : int
        Layers, width of their states, attention heads, K/V heads, width of the feed-forward part, tokens. A head has
        embd / heads channels.
    experts, experts_used : int
        Of a mixture: experts of a layer, each with a feed-forward part of that width, and how many of them a token
        runs through. 0, the default: no mixture.
    tied : bool
        Whether the token embedding serves as the output head too.
    context : int
        Tokens of the longest text that it claims to have been trained with.
    rope_base, rms_eps : float
        Of the rotary positions and of the norms.
    """

    arch: str = "llama"
    layers: int
    embd: int
    heads: int
    kv_heads: int
    ff: int
    vocab: int
    experts: int = 0
    experts_used: int = 0
    tied: bool
    context: int = 8192
    rope_base: float = 10000.0
    rms_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_choice("arch", self.arch, ARCHITECTURES)
        for name in ("layers", "embd", "heads", "kv_heads", "ff", "context"):
            check_int(name, getattr(self, name), 1, MAX_SIZE)
        check_int("vocab", self.vocab, LEAST_VOCAB, MAX_SIZE)
        check_int("experts", self.experts, 0, MAX_EXPERTS)
        check_int("experts_used", self.experts_used, min(self.experts, 1), self.experts)
        if self.experts and not ARCHITECTURES[self.arch].experts:
            raise ValueError(f"experts={self.experts}: a mixture can be written for arch='llama', not {self.arch!r}")
        if self.embd % self.heads:
            raise ValueError(f"embd={self.embd}: not divisible by heads={self.heads}")
        if self.head_size % 2:
            raise ValueError(
                f"heads={self.heads}: a head would have embd / heads = {self.head_size} channels; rotary positions "
                "need an even number"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: heads={self.heads} is not divisible by it")

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.embd // self.heads


def _llama3(layers: int, embd: int, heads: int, ff: int, *, tied: bool) -> Shape:
    return Shape(
        layers=layers,
        embd=embd,
        heads=heads,
        kv_heads=8,
        ff=ff,
        vocab=128256,
        tied=tied,
        context=131072,
        rope_base=5e5,
    )


def _smollm2(layers: int, embd: int, heads: int, kv_heads: int, ff: int, rope_base: float) -> Shape:
    return Shape(
        layers=layers,
        embd=embd,
        heads=heads,
        kv_heads=kv_heads,
        ff=ff,
        vocab=49152,
        tied=True,
        rope_base=rope_base,
    )


def _qwen(
    arch: str, layers: int, embd: int, heads: int, kv_heads: int, ff: int, *, vocab: int = 151936, tied: bool = True
) -> Shape:
    return Shape(
        arch=arch,
        layers=layers,
        embd=embd,
        heads=heads,
        kv_heads=kv_heads,
        ff=ff,
        vocab=vocab,
        tied=tied,
        context=32768,
        rope_base=1e6,
        rms_eps=1e-6,
    )


# The sizes are those of config.json in the models' repositories on the Hugging Face Hub.
SHAPES = {
    "tiny": Shape(layers=6, embd=256, heads=4, kv_heads=2, ff=512, vocab=512, tied=False, context=2048),
    "smollm2-135m": _smollm2(30, 576, 9, 3, 1536, 1e5),
    "smollm2-360m": _smollm2(32, 960, 15, 5, 2560, 1e5),
    "smollm2-1.7b": _smollm2(24, 2048, 32, 32, 8192, 1.3e5),
    "qwen2.5-0.5b": _qwen("qwen2", 24, 896, 14, 2, 4864),
    "qwen2.5-1.5b": _qwen("qwen2", 28, 1536, 12, 2, 8960),
    "qwen2.5-7b": _qwen("qwen2", 28, 3584, 28, 4, 18944, vocab=152064, tied=False),
    "qwen3-1.7b": _qwen("qwen3", 28, 2048, 16, 8, 6144),
    "qwen3-8b": _qwen("qwen3", 36, 4096, 32, 8, 12288, tied=False),
    "tinyllama-1.1b": Shape(layers=22, embd=2048, heads=32, kv_heads=4, ff=5632, vocab=32000, tied=False, context=2048),
    "llama-3.2-1b": _llama3(16, 2048, 32, 8192, tied=True),
    "llama-3.2-3b": _llama3(28, 3072, 24, 8192, tied=True),
    "llama-3.1-8b": _llama3(32, 4096, 32, 14336, tied=False),
    "mixtral-8x7b": Shape(
        layers=32,
        embd=4096,
        heads=32,
        kv_heads=8,
        ff=14336,
        vocab=32000,
        experts=8,
        experts_used=2,
        tied=False,
        context=32768,
        rope_base=1e6,
    ),
}
