"""Tiny random models and LoRA-Drop correctors for tests, and their GGUF files.

The weights mean nothing, but they are large enough that a wrong step shows in the logits. Only
writing a file needs the package ``gguf``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

FloatArray = npt.NDArray[np.float32]
TensorType = Literal["f32", "f16", "q8_0"]
Arch = Literal["llama", "qwen2", "olmo2"]
Reuse = Literal["previous-state", "anchor-state", "anchor-delta", "segment"]

Q8_0_BLOCK = 32  # values that share a scale
SWA_PERIOD = 2  # in a model with sliding windows every second layer sees all tokens
UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE_TOKEN = 3

# Merging builds a piece from two shorter ones, so each one's halves come before it.
PIECES = [
    *"▁abcdefghijklmnopqrstuvwxyz.,!?",
    *("▁t", "he", "▁the", "▁a", "in", "er", "an", "re", "on", "▁s", "▁w", "en", "▁o", "▁of"),
    *("nd", "▁and", "▁i", "▁in", "ing", "▁to", "at", "▁that", "is", "▁is", "or", "es", "it"),
    *("▁it", "▁c", "▁b"),
]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


class ModelShape(Protocol):
    """What a corrector has to know of its model."""

    @property
    def arch(self) -> str: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_embd(self) -> int: ...


@dataclass
class TinyModel:
    """A random model: hyper-parameters and weights.

    Attributes
    ----------
    tensors : dict of str to float32 array
        GGUF tensor name -> weights, a matrix as [n_out, n_in] in GGUF layout.
    n_swa : int
        Tokens that a sliding-window layer sees, its own among them; 0: no layer has a window.
    """

    arch: Arch
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_ctx_train: int
    n_vocab: int
    tied: bool
    seed: int
    tensors: dict[str, FloatArray]
    rms_eps: float = 1e-5
    rope_base: float = 10000.0
    n_swa: int = 0

    def window(self, layer: int) -> int | None:
        """Return how many tokens the layer sees, None for all of them."""
        return self.n_swa if self.n_swa and layer % SWA_PERIOD < SWA_PERIOD - 1 else None


@dataclass
class TinyCorrector:
    """A random corrector as one GGUF file can hold it.

    Attributes
    ----------
    layers : list of int
        Droppable layers in the order in which they drop; empty for ``segment``.
    segments : list of (int, int), optional
        First and last layer of each run, for ``segment`` only.
    tensors : dict of str to float32 array
        GGUF tensor name -> weights, a matrix as [n_out, n_in].
    rho, k, refresh, quality : optional
        The recommended point and what was measured there; left out of the file where None.
    """

    reuse: Reuse
    layers: list[int]
    rank: int
    alpha: float
    tensors: dict[str, FloatArray]
    segments: list[tuple[int, int]] | None = None
    rho: float | None = None
    k: int | None = None
    refresh: str | None = None
    quality: str | None = None


def vocabulary() -> list[str]:
    """Return the pieces of the tokenizer: three special ones, 256 bytes, words and letters."""
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]


def make_model(
    arch: Arch = "llama",
    n_layer: int = 6,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 96,
    n_ctx_train: int = 2048,
    tied: bool = False,
    seed: int = 0,
    n_swa: int = 0,
) -> TinyModel:
    """Return a model with random weights.

    ``qwen2`` gets biases on q, k and v. ``olmo2`` norms q, k and what attention and MLP give, not what
    they take; it alone can have sliding windows, see `TinyModel.n_swa`, and it cannot be tied.
    """
    if n_swa and arch != "olmo2":
        raise ValueError("only olmo2 can have sliding windows")
    rng = np.random.default_rng(seed)
    n_vocab = len(vocabulary())
    n_kv = n_embd // n_head * n_head_kv
    tensors: dict[str, FloatArray] = {}

    def add(name: str, *shape: int, mean: float = 0.0, std: float | None = None) -> None:
        # The default keeps the scale of what passes through a matrix.
        std = shape[-1] ** -0.5 if std is None else std
        tensors[name] = rng.normal(mean, std, shape).astype(np.float32)

    add("token_embd.weight", n_vocab, n_embd, std=0.3 if tied else 1.0)
    for i in range(n_layer):
        if arch == "olmo2":
            for name, n in (("attn_q", n_embd), ("attn_k", n_kv), ("post_attention", n_embd), ("post_ffw", n_embd)):
                add(f"blk.{i}.{name}_norm.weight", n, mean=1.0, std=0.1)
        else:
            add(f"blk.{i}.attn_norm.weight", n_embd, mean=1.0, std=0.1)
        for name, n_out in (("q", n_embd), ("k", n_kv), ("v", n_kv)):
            add(f"blk.{i}.attn_{name}.weight", n_out, n_embd)
            if arch == "qwen2":
                add(f"blk.{i}.attn_{name}.bias", n_out, std=0.3)
        add(f"blk.{i}.attn_output.weight", n_embd, n_embd)
        if arch != "olmo2":
            add(f"blk.{i}.ffn_norm.weight", n_embd, mean=1.0, std=0.1)
        add(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
        add(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
        add(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    add("output_norm.weight", n_embd, mean=1.0, std=0.1)
    if not tied:
        add("output.weight", n_vocab, n_embd, std=0.3)
    return TinyModel(
        arch, n_layer, n_embd, n_head, n_head_kv, n_ff, n_ctx_train, n_vocab, tied, seed, tensors, n_swa=n_swa
    )


def make_corrector(
    model: ModelShape,
    reuse: Reuse,
    layers: Sequence[int] = (),
    segments: Sequence[tuple[int, int]] | None = None,
    rank: int = 4,
    alpha: float = 8.0,
    gate: bool = True,
    hidden: int = 24,
    seed: int = 1,
) -> TinyCorrector:
    """Return a random corrector whose corrections are some 10 to 50 % of the state.

    Parameters
    ----------
    model : TinyModel or loradrop._core.Model
        The model that it belongs to.
    reuse : str
        The rule; ``segment`` takes `segments`, all others take `layers`.
    layers : sequence of int
        Droppable layers in the order in which they drop.
    segments : sequence of (int, int), optional
        First and last layer of each run; runs may nest.
    gate : bool
        Whether anchor-delta has g (``gate``) and segment has g (``carry``).
    hidden : int
        Width of a segment's hidden part, 0 for none.
    """
    if (reuse == "segment") != bool(segments) or (reuse == "segment") == bool(layers):
        raise ValueError("segment takes segments, every other rule takes layers")
    rng = np.random.default_rng(seed)
    n_embd = model.n_embd
    tensors: dict[str, FloatArray] = {}

    def add(name: str, n_out: int, n_in: int, scale: float) -> None:
        # Entries of unit size come out with size `scale`.
        tensors[name] = rng.normal(0.0, scale * n_in**-0.5, (n_out, n_in)).astype(np.float32)

    def add_low_rank(prefix: str, n_in: int) -> None:
        add(f"{prefix}a.weight", rank, n_in, scale=1.0)
        add(f"{prefix}b.weight", n_embd, rank, scale=0.4 * rank / alpha)

    def add_gate(name: str) -> None:
        tensors[name] = rng.uniform(0.2, 0.8, n_embd).astype(np.float32)

    for i in layers:
        add_low_rank(f"blk.{i}.lora_drop_", n_embd)
        if reuse == "anchor-delta" and gate:
            add_gate(f"blk.{i}.lora_drop_gate.weight")
    for j in range(len(segments or ())):
        prefix = f"lora_drop.seg.{j}."
        add_low_rank(prefix, 3 * n_embd)
        if hidden:
            add(f"{prefix}gate.weight", hidden, 3 * n_embd, scale=1.0)
            add(f"{prefix}up.weight", hidden, 3 * n_embd, scale=1.0)
            add(f"{prefix}down.weight", n_embd, hidden, scale=1.0)
        if gate:
            add_gate(f"{prefix}carry.weight")
    return TinyCorrector(reuse, list(layers), rank, alpha, tensors, None if segments is None else list(segments))


def as_stored(tensors: dict[str, FloatArray], tensor_type: TensorType) -> dict[str, FloatArray]:
    """Return the float32 values that a file written with `tensor_type` holds.

    What an engine computes from such a file compares with a reference that runs on these.
    """
    from gguf.quants import dequantize

    stored = {}
    for name, tensor in tensors.items():
        data, type_ = _encode(name, tensor, tensor_type)
        stored[name] = np.asarray(dequantize(data, type_), np.float32).reshape(tensor.shape)
    return stored


def model_as_stored(model: TinyModel, weight_type: Literal["f32", "f16"]) -> TinyModel:
    """Return the model with the weights that its file holds; see `as_stored`."""
    return dataclasses.replace(model, tensors=as_stored(model.tensors, weight_type))


def corrector_as_stored(corrector: TinyCorrector, corrector_type: TensorType) -> TinyCorrector:
    """Return the corrector with the weights that its file holds; see `as_stored`."""
    return dataclasses.replace(corrector, tensors=as_stored(corrector.tensors, corrector_type))


def write_gguf(
    path: str | os.PathLike[str],
    model: TinyModel,
    corrector: TinyCorrector | None = None,
    weight_type: Literal["f32", "f16"] = "f32",
    corrector_type: TensorType = "f32",
    chat_template: bool | str = False,
    add_bos: bool = True,
    add_eos: bool = False,
    tokenizer: bool = True,
    pre: str | None = None,
) -> None:
    """Write the model as GGUF, with the corrector inside if there is one.

    Parameters
    ----------
    weight_type : {"f32", "f16"}
        Type of the model's matrices; vectors are always F32.
    corrector_type : {"f32", "f16", "q8_0"}
        Type of the corrector's matrices, as in `write_sidecar`.
    chat_template : bool or str
        Whether the tokenizer gets `CHAT_TEMPLATE`, or the one it gets.
    add_bos : bool
        Whether the tokenizer puts BOS before a text.
    add_eos : bool
        Whether it puts EOS after one.
    tokenizer : bool
        Whether there is one at all.
    pre : str, optional
        The name of a pre-tokenizer: the tokenizer is then one of byte pairs, and merges none. Empty: none is named.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, model.arch)
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_file_type(0 if weight_type == "f32" else 1)
    writer.add_vocab_size(model.n_vocab)
    writer.add_context_length(model.n_ctx_train)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_layer)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.n_head_kv)
    writer.add_layer_norm_rms_eps(model.rms_eps)
    writer.add_rope_dimension_count(model.n_embd // model.n_head)
    writer.add_rope_freq_base(model.rope_base)
    if model.n_swa:
        writer.add_sliding_window(model.n_swa)
        writer.add_sliding_window_pattern(SWA_PERIOD)
    if tokenizer and pre is not None:
        _add_byte_pairs(writer, pre)
    elif tokenizer:
        _add_tokenizer(writer, CHAT_TEMPLATE if chat_template is True else chat_template or None, add_bos, add_eos)
    else:
        writer.add_tokenizer_model("no_vocab")
    _add_tensors(writer, model.tensors, weight_type)
    if corrector is not None:
        _add_corrector(writer, corrector, corrector_type)
    _finish(writer)


def write_sidecar(
    path: str | os.PathLike[str],
    model: TinyModel,
    corrector: TinyCorrector,
    corrector_type: TensorType = "f32",
    weight_type: Literal["f32", "f16"] = "f32",
) -> None:
    """Write the corrector as a GGUF of its own, beside the model's.

    Parameters
    ----------
    corrector_type : {"f32", "f16", "q8_0"}
        Type of the corrector's matrices; vectors are always F32. Q8_0 holds for matrices of
        ``segment`` whose rows are whole blocks of 32, other matrices become F16.
    weight_type : {"f32", "f16"}
        What the model's own file was written with, for `base_fingerprint`.
    """
    tensors = {name: _encode(name, tensor, weight_type)[0].tobytes() for name, tensor in model.tensors.items()}
    fingerprint = base_fingerprint(model, weight_type)
    write_sidecar_of(path, model, fingerprint, corrector, corrector_type, weights=weights_fingerprint(tensors))


def write_sidecar_of(
    path: str | os.PathLike[str],
    model: ModelShape,
    fingerprint: str,
    corrector: TinyCorrector,
    corrector_type: TensorType = "f32",
    weights: str | None = None,
) -> None:
    """Write the corrector of a model of any architecture; see `write_sidecar` and `base_fingerprint`."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, model.arch)
    writer.add_type("adapter")
    if weights is not None:
        writer.add_string("lora_drop.base.weights", weights)
    writer.add_string("adapter.type", "lora_drop")
    writer.add_uint32("lora_drop.base.block_count", model.n_layer)
    writer.add_uint32("lora_drop.base.embedding_length", model.n_embd)
    writer.add_string("lora_drop.base.tensors", fingerprint)
    _add_corrector(writer, corrector, corrector_type)
    _finish(writer)


def weights_fingerprint(tensors: Mapping[str, bytes]) -> str:
    """Return the hash by which a sidecar knows its base's weights: of each tensor's first 256 bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name][:256])
    return digest.hexdigest()[:16]


def base_fingerprint(model: TinyModel, weight_type: Literal["f32", "f16"] = "f32") -> str:
    """Return the hash by which a sidecar knows its base, as 16 lower-case hex digits.

    FNV-1a, 64 bit, over one line "name type_id ne0xne1..." per tensor, sorted by name; trailing
    dimensions of 1 are left out, but never the first.
    """
    lines = []
    for name in sorted(model.tensors, key=str.encode):
        tensor = model.tensors[name]
        ne = list(tensor.shape[::-1])
        while len(ne) > 1 and ne[-1] == 1:
            ne.pop()
        type_id = int(_encode(name, tensor, weight_type)[1])
        lines.append(f"{name} {type_id} {'x'.join(map(str, ne))}\n")
    digest = 0xCBF29CE484222325
    for byte in "".join(lines).encode():
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    return f"{digest:016x}"


def _encode(name: str, tensor: FloatArray, tensor_type: TensorType) -> tuple[npt.NDArray[Any], GGMLQuantizationType]:
    """Return the tensor's bytes, as an array, and the type that the file gives for them."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if tensor.ndim == 1 or tensor_type == "f32":
        type_ = GGMLQuantizationType.F32
    elif tensor_type == "f16":
        type_ = GGMLQuantizationType.F16
    elif name.startswith("lora_drop.seg.") and tensor.shape[-1] % Q8_0_BLOCK == 0:
        type_ = GGMLQuantizationType.Q8_0
    else:
        type_ = GGMLQuantizationType.F16
    return quantize(tensor, type_), type_


def _add_tensors(writer: GGUFWriter, tensors: dict[str, FloatArray], tensor_type: TensorType) -> None:
    for name, tensor in tensors.items():
        data, type_ = _encode(name, tensor, tensor_type)
        writer.add_tensor(name, data, raw_dtype=type_)


def _add_corrector(writer: GGUFWriter, corrector: TinyCorrector, tensor_type: TensorType) -> None:
    writer.add_uint32("lora_drop.version", 1)
    if corrector.segments is None:
        writer.add_array("lora_drop.layers", corrector.layers)
    else:
        writer.add_array("lora_drop.segments", [i for run in corrector.segments for i in run])
    writer.add_string("lora_drop.reuse", corrector.reuse)
    writer.add_uint32("lora_drop.rank", corrector.rank)
    writer.add_float32("lora_drop.alpha", corrector.alpha)
    if corrector.rho is not None:
        writer.add_float32("lora_drop.rho", corrector.rho)
    if corrector.k is not None:
        writer.add_uint32("lora_drop.k", corrector.k)
    if corrector.refresh is not None:
        writer.add_string("lora_drop.refresh", corrector.refresh)
    if corrector.quality is not None:
        writer.add_string("lora_drop.quality", corrector.quality)
    _add_tensors(writer, corrector.tensors, tensor_type)


def _add_tokenizer(writer: GGUFWriter, chat_template: str | None, add_bos: bool, add_eos: bool = False) -> None:
    from gguf import TokenType

    pieces = vocabulary()
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(PIECES)
    first_piece = FIRST_BYTE_TOKEN + 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(max(0, i - first_piece)) for i in range(len(pieces))])
    writer.add_token_types([int(type_) for type_ in types])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(add_bos)
    if add_eos:
        writer.add_add_eos_token(add_eos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _add_byte_pairs(writer: GGUFWriter, pre: str) -> None:
    from gguf import TokenType
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    pieces = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), *(f"<piece {i}>" for i in range(len(PIECES)))]
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    writer.add_token_types([int(TokenType.CONTROL)] * 3 + [int(TokenType.NORMAL)] * (len(pieces) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
