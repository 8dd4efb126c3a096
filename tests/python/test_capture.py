"""Captured layer states against those of the NumPy reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from loradrop._core import Context, ContextFullError, Corrector, Model, UnsupportedError
from pair import Pair
from reference import Decoder, Entry, FloatArray, SequenceState
from test_engine import REUSES, SCHEDULED, TEXT, corrector_for
from test_unsupported import write_mamba
from tiny import Arch, Reuse, TinyModel, _add_tokenizer, _finish, make_model, vocabulary, write_gguf

N_LAYER = 8
ALL_LAYERS = list(range(-1, N_LAYER - 1))
TOLERANCE = 1e-4  # of the largest entry
SMALL: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1}


class RecordingDecoder(Decoder):
    """The reference, which notes what it computes: by layer, sequence and position."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.states: dict[tuple[int, int, int], FloatArray] = {}

    def _note(self, seq: SequenceState, layer: int, y: FloatArray) -> FloatArray:
        seq_id = next(i for i, s in self.sequences.items() if s is seq)
        self.states[layer, seq_id, seq.n_past] = y
        return y

    def _run_token(self, seq: SequenceState, token: int, lora: bool) -> FloatArray:
        self._note(seq, -1, self.model.tensors["token_embd.weight"][token])
        return super()._run_token(seq, token, lora)

    def _layer(self, seq: SequenceState, i: int, x: FloatArray) -> FloatArray:
        return self._note(seq, i, super()._layer(seq, i, x))

    def _replace(self, seq: SequenceState, first: int, x: FloatArray) -> FloatArray:
        return self._note(seq, self.runs[first][0], super()._replace(seq, first, x))


def capturing(folder: Path, model: TinyModel, reuse: Reuse, layers: Sequence[int] = ALL_LAYERS, **options: Any) -> Pair:
    defaults: dict[str, Any] = {"rho": 0.5, "k": 3, "kv_window": 6, "n_threads": 1, "n_threads_batch": 1}
    pair = Pair(folder, model, corrector_for(model, reuse), capture=layers, **(defaults | options))
    old = pair.reference
    pair.reference = RecordingDecoder(old.model, old.corrector, old.dropped, old.k, old.policy, old.kv_window)
    return pair


def assert_close(actual: FloatArray, expected: FloatArray, what: str) -> None:
    assert actual.shape == expected.shape and actual.dtype == np.float32
    error = float(np.abs(actual - expected).max() / np.abs(expected).max())
    assert error <= TOLERANCE, f"{what} differs by {error:.2e}"


def decode(pair: Pair, *entries: Entry, order: Sequence[int] | None = None) -> None:
    """Decode the entries' tokens, one entry's after the other's or in the given order, and compare all states."""
    reference = pair.reference
    assert isinstance(reference, RecordingDecoder)
    tokens: list[int] = []
    rows: list[tuple[int, int]] = []  # sequence and position of each token
    outputs: list[bool] = []
    for entry in entries:
        state = reference.sequences.get(entry.seq_id)
        first = state.n_past if state else 0
        tokens += entry.tokens
        rows += [(entry.seq_id, first + i) for i in range(len(entry.tokens))]
        outputs += [i + 1 == len(entry.tokens) and entry.want_logits for i in range(len(entry.tokens))]
    order = range(len(tokens)) if order is None else order
    reference.decode(entries)
    pair.engine.decode(
        [tokens[i] for i in order],
        seq_ids=[rows[i][0] for i in order],
        outputs=[outputs[i] for i in order],
    )
    assert pair.engine.stats["last_step"] == reference.last_step
    for layer in ALL_LAYERS:
        if reference.last_step == "lora" and is_inside_segment(pair, layer):
            with pytest.raises(ValueError, match=rf"layer {layer} has no states: the last step was a LoRA step"):
                pair.engine.states(layer)
            continue
        expected = np.stack([reference.states[(layer, *rows[i])] for i in order])
        assert_close(pair.engine.states(layer), expected, f"layer {layer} in a {reference.last_step} step")


def is_inside_segment(pair: Pair, layer: int) -> bool:
    return any(first <= layer < last for first, (last, _) in pair.reference.runs.items())


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_every_layer_in_both_steps(tmp_path: Path, reuse: Reuse, refresh: str, arch: Arch) -> None:
    pair = capturing(tmp_path, make_model(arch, n_layer=N_LAYER), reuse, refresh=refresh)
    decode(pair, Entry(0, TEXT[:11]))
    for token in TEXT[11:35]:
        decode(pair, Entry(0, [token]))
    decode(pair, Entry(0, TEXT[35:40]))  # several tokens after LoRA steps
    assert pair.engine.stats["lora_steps"] == 18


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("refresh", SCHEDULED)
@pytest.mark.parametrize("reuse", REUSES)
def test_several_sequences_in_any_order(tmp_path: Path, reuse: Reuse, refresh: str, kv_unified: bool) -> None:
    pair = capturing(
        tmp_path,
        make_model(n_layer=N_LAYER),
        reuse,
        refresh=refresh,
        n_seq_max=4,
        n_ctx=2048,
        n_ubatch=8,
        kv_unified=kv_unified,
    )
    rng = np.random.default_rng(7)
    for round_ in range(40):
        chosen = rng.permutation(4)[: rng.integers(1, 5)].tolist()
        lengths = [int(rng.integers(1, 9)) if round_ % 8 == 0 else 1 for _ in chosen]
        entries = [Entry(s, rng.integers(3, 320, n).tolist()) for s, n in zip(chosen, lengths, strict=True)]
        # tokens of the sequences in turn, by lot; each sequence's own stay in order
        owner = np.repeat(np.arange(len(chosen)), lengths)
        order = np.empty(len(owner), int)
        order[np.argsort(rng.permutation(owner), kind="stable")] = np.arange(len(owner))
        decode(pair, *entries, order=order.tolist())
    assert pair.engine.stats["lora_steps"] > 3


def test_a_batch_of_many_ubatches(tmp_path: Path) -> None:
    pair = capturing(tmp_path, make_model(n_layer=N_LAYER), "anchor-delta", n_batch=64, n_ubatch=5)
    decode(pair, Entry(0, TEXT[:33]))
    decode(pair, Entry(0, TEXT[33:34]))
    decode(pair, Entry(0, TEXT[34:60]))


def test_a_refill_that_runs_alone(tmp_path: Path) -> None:
    pair = capturing(tmp_path, make_model(n_layer=N_LAYER), "segment", k=7, refresh="refill", n_batch=4, n_ubatch=4)
    for token in TEXT[:30]:
        decode(pair, Entry(0, [token]))
    assert pair.engine.stats["replayed_tokens"] == 21


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_rho_zero(tmp_path: Path, arch: Arch) -> None:
    pair = capturing(tmp_path, make_model(arch, n_layer=N_LAYER), "segment", rho=0.0, k=0, n_seq_max=2, n_ubatch=6)
    decode(pair, Entry(0, TEXT[:4]), Entry(1, TEXT[4:20]), order=[4, 0, *range(5, 12), 1, 2, *range(12, 20), 3])
    for i in range(20, 25):
        decode(pair, Entry(1, TEXT[i : i + 1]), Entry(0, TEXT[i + 1 : i + 2]))


def test_outputs_are_those_without_capture(tmp_path: Path) -> None:
    model = make_model(n_layer=N_LAYER)
    with_capture = capturing(tmp_path, model, "anchor-delta").engine
    without = capturing(tmp_path, model, "anchor-delta", layers=[]).engine
    for tokens in (TEXT[:9], *([t] for t in TEXT[9:30])):
        with_capture.decode(tokens)
        without.decode(tokens)
        assert with_capture.logits().tobytes() == without.logits().tobytes()


def test_graphs_are_reused(tmp_path: Path) -> None:
    engine = capturing(tmp_path, make_model(n_layer=N_LAYER), "segment").engine
    engine.decode(TEXT[:4])
    for token in TEXT[4:12]:
        engine.decode([token])
    warm = engine.stats
    for token in TEXT[12:52]:
        engine.decode([token])
    after = engine.stats
    assert after["lora_steps"] - warm["lora_steps"] == 30
    assert after["graph_builds_full"] == warm["graph_builds_full"]
    assert after["graph_builds_lora"] == warm["graph_builds_lora"]


def test_a_replacement_that_adds_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_model(n_layer=N_LAYER))
    model = Model(str(tmp_path / "model.gguf"))
    context = Context(model, corrector=Corrector.none(model), rho=0.5, k=3, capture=ALL_LAYERS, **SMALL)
    context.decode(TEXT[:5])
    first, last = context.dropped_layers[0], context.dropped_layers[-1]
    assert np.abs(context.states(last) - context.states(first - 1)).max() > 0.1
    context.decode(TEXT[5:6])
    assert context.stats["last_step"] == "lora"
    assert context.states(last).tobytes() == context.states(first - 1).tobytes()
    assert np.abs(context.states(first - 1) - context.states(first - 2)).max() > 0.1


def write_gemma(path: Path, embedding: FloatArray) -> None:
    """Write a tiny random Gemma, which scales its embedding before the first layer."""
    n_embd, n_ff, n_head, rng = embedding.shape[1], 64, 2, np.random.default_rng(0)
    writer = GGUFWriter(path, "gemma")
    writer.add_context_length(512)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(n_embd // n_head)
    writer.add_value_length(n_embd // n_head)
    _add_tokenizer(writer, None, True)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32))

    writer.add_tensor("token_embd.weight", embedding)
    add("output_norm.weight", n_embd)
    for i in range(N_LAYER):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}.weight", n_embd)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", n_embd, n_embd)
        add(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
        add(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
        add(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    _finish(writer)


def test_the_first_layers_input_is_not_always_the_embedding(tmp_path: Path) -> None:
    embedding = np.random.default_rng(1).standard_normal((len(vocabulary()), 32)).astype(np.float32)
    write_gemma(tmp_path / "gemma.gguf", embedding)
    context = Context(Model(str(tmp_path / "gemma.gguf")), capture=[-1], **SMALL)
    context.decode(TEXT[:7])
    assert_close(context.states(-1), embedding[TEXT[:7]] * np.float32(32**0.5), "layer -1")


def test_a_recurrent_model(tmp_path: Path) -> None:
    write_mamba(tmp_path / "mamba.gguf")
    model = Model(str(tmp_path / "mamba.gguf"))
    layers = list(range(-1, model.n_layer - 1))
    alone = Context(model, capture=layers, **SMALL)
    expected = []
    for token in (5, 6, 7, 8, 9):
        alone.decode([token])
        expected.append([alone.states(layer)[0] for layer in layers])
    # llama.cpp takes equally many tokens of each sequence into a ubatch, so it decodes these in another order
    together = Context(model, n_seq_max=2, capture=layers, **SMALL)
    together.decode([5, 6, 5, 7, 6, 8, 9], seq_ids=[1, 1, 0, 1, 0, 1, 1])
    for layer in layers:
        rows = np.stack([expected[i][layer + 1] for i in (0, 1, 0, 2, 1, 3, 4)])
        assert_close(together.states(layer), rows, f"layer {layer}")


def test_an_architecture_that_does_not_name_its_layers(tmp_path: Path) -> None:
    model = dataclasses.replace(make_model(n_layer=N_LAYER, tied=True), arch="eurobert")  # type: ignore[arg-type]
    write_gguf(tmp_path / "model.gguf", model)
    native = Model(str(tmp_path / "model.gguf"))
    with pytest.raises(UnsupportedError, match="does not name the output of layer 2"):
        Context(native, capture=[2], **SMALL)
    Context(native, **SMALL)


@pytest.mark.parametrize("layer", [-2, N_LAYER - 1, N_LAYER, 10**6])
def test_a_layer_out_of_range(tmp_path: Path, layer: int) -> None:
    write_gguf(tmp_path / "model.gguf", make_model(n_layer=N_LAYER))
    with pytest.raises(ValueError, match=rf"capture names layer {layer}, expected -1 to {N_LAYER - 2}\b"):
        Context(Model(str(tmp_path / "model.gguf")), capture=[2, layer], **SMALL)


def test_states_that_are_not_there(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", make_model(n_layer=N_LAYER))
    model = Model(str(tmp_path / "model.gguf"))
    context = Context(model, capture=[5, 2, 5], **SMALL)
    with pytest.raises(ValueError, match="layer 2 has no states: nothing has been decoded"):
        context.states(2)
    context.decode([4, 5, 6])
    assert context.states(5).shape == (3, 64)
    with pytest.raises(ValueError, match=r"layer 3 is not captured.*capture = \[2, 5\]"):
        context.states(3)
    with pytest.raises(ContextFullError):
        context.decode(TEXT[:255])
    with pytest.raises(ValueError, match=r"layer 2 has no states: .*the last decode has failed"):
        context.states(2)
    context.decode([7])
    assert context.states(2).shape == (1, 64)
    context.close()
    with pytest.raises(RuntimeError, match="closed"):
        context.states(2)
    with pytest.raises(ValueError, match="made without capture"):
        Context(model, **SMALL).states(2)


def test_an_abort_leaves_no_states(tmp_path: Path) -> None:
    pair = capturing(tmp_path, make_model(n_layer=N_LAYER), "anchor-delta")
    decode(pair, Entry(0, TEXT[:9]))
    pair.engine.abort_after(40)
    with pytest.raises(RuntimeError, match="asked to stop"):
        pair.engine.decode(TEXT[9:10])
    with pytest.raises(ValueError, match="the last decode has failed"):
        pair.engine.states(0)
    pair.reference.sequences[0].previous_logits_wanted = False
    decode(pair, Entry(0, TEXT[9:10]))
