"""Checks of the NumPy reference: against transformers, by hand, and by its properties."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from hf import transformers_logits
from reference import Decoder, Entry, FloatArray, Policy, layers_for, replacement
from tiny import Arch, Reuse, TinyCorrector, TinyModel, make_corrector, make_model

N_LAYER = 6
DROPPED = [2, 3]
TEXT = [1, *np.random.default_rng(7).integers(3, 320, 39).tolist()]
PROMPT, GENERATED = TEXT[:7], TEXT[7:]
REUSES: list[Reuse] = ["previous-state", "anchor-state", "anchor-delta", "segment"]
POLICIES: list[Policy] = ["refill", "single"]


def corrector_for(model: TinyModel, reuse: Reuse) -> TinyCorrector:
    if reuse == "segment":
        return make_corrector(model, reuse, segments=[(DROPPED[0], DROPPED[-1])])
    return make_corrector(model, reuse, layers=DROPPED)


def make_decoder(reuse: Reuse = "anchor-delta", k: int = 3, policy: Policy = "refill", kv_window: int = 64) -> Decoder:
    model = make_model(n_layer=N_LAYER)
    return Decoder(model, corrector_for(model, reuse), DROPPED, k, policy, kv_window)


def step(decoder: Decoder, tokens: Sequence[int], seq_id: int = 0) -> FloatArray:
    (logits,) = decoder.decode([Entry(seq_id, tokens)])
    assert logits is not None
    return logits


def assert_same(actual: FloatArray, expected: FloatArray | list[float], tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected, np.float32)
    assert actual.dtype == np.float32 and actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def full_logits(model: TinyModel) -> list[FloatArray]:
    decoder = Decoder(model)
    return [step(decoder, [token]) for token in TEXT]


def differ(a: FloatArray, b: FloatArray) -> bool:
    return bool(np.abs(a - b).max() > 0.01 * np.abs(b).max())


# The full model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_full_decode_equals_transformers(arch: Arch, tied: bool) -> None:
    model = dataclasses.replace(make_model(arch, tied=tied), rope_base=500.0, rms_eps=1e-3)
    assert_same(np.stack(full_logits(model)), transformers_logits(model, TEXT))


@pytest.mark.parametrize("n_swa", [0, 1, 5, 39])
def test_sliding_windows_equal_transformers(n_swa: int) -> None:
    model = make_model("olmo2", n_swa=n_swa)
    assert_same(np.stack(full_logits(model)), transformers_logits(model, TEXT))


def test_prompt_in_one_go_equals_token_by_token() -> None:
    model = make_model()

    assert_same(step(Decoder(model), TEXT), full_logits(model)[-1])


# The rules


def array(*values: float) -> FloatArray:
    return np.array(values, np.float32)


def test_rules_by_hand() -> None:
    x, previous = array(1, -1), array(10, 20)
    anchor = (array(1, 1), array(-1, 1))
    a, b = np.array([[2, 0]], np.float32), np.array([[1], [2]], np.float32)
    gate = array(0.5, 0.25)
    parts = {"a": a, "b": b}

    def rule(reuse: str, parts: dict[str, FloatArray]) -> FloatArray:
        return replacement(reuse, parts, 0.5, x, anchor, previous)

    # s B A x = 0.5 * [1, 2] * 2, and n(x) = x but for eps since the mean square of x is 1.
    assert_same(rule("previous-state", parts), [11, 22])
    assert_same(rule("anchor-state", parts), [0, 3])
    assert_same(rule("anchor-delta", parts), [2, 1], tolerance=1e-4)
    assert_same(rule("anchor-delta", {**parts, "gate": gate}), [1, 1], tolerance=1e-4)


def test_segment_rule_by_hand() -> None:
    x, previous = array(1, -1), array(10, 20)
    anchor = (array(1, 1), array(-1, 1))
    # f = [x; y_r; x_r] = [1, -1; -1, 1; 1, 1], as n changes none of them but for eps.
    carry = {"carry": array(0.5, 0.25)}
    low_rank = {
        "a": np.array([[0, 0, 2, 0, 0, 0]], np.float32),
        "b": np.array([[1], [2]], np.float32),
    }
    hidden = {
        "gate": np.array([[1, 0, 0, 0, 0, 0]], np.float32),
        "up": np.array([[0, 0, 0, 0, 0, 2]], np.float32),
        "down": np.array([[1], [0]], np.float32),
    }

    def check(parts: dict[str, FloatArray], expected: list[float]) -> None:
        actual = replacement("segment", parts, 0.5, x, anchor, previous)
        assert_same(actual, expected, tolerance=1e-4)

    silu_of_1 = 0.7310586
    check({}, [1, -1])
    check(carry, [0, -1])
    check(low_rank, [0, -3])
    check(hidden, [1 + 2 * silu_of_1, -1])
    check({**carry, **low_rank, **hidden}, [-1 + 2 * silu_of_1, -3])


def test_previous_state_walks_away_from_the_anchor() -> None:
    previous, anchor = make_decoder("previous-state"), make_decoder("anchor-state")
    for decoder in (previous, anchor):
        # Their random weights are the same, since both rules take tensors of the same shapes.
        step(decoder, PROMPT)

    assert_same(step(previous, GENERATED[:1]), step(anchor, GENERATED[:1]))
    assert differ(step(previous, GENERATED[1:2]), step(anchor, GENERATED[1:2]))


def test_segment_of_one_layer_with_carry_alone_is_anchor_delta_without_low_rank() -> None:
    model = make_model(n_layer=N_LAYER)
    segment = make_corrector(model, "segment", segments=[(3, 3)], hidden=0)
    del segment.tensors["lora_drop.seg.0.a.weight"], segment.tensors["lora_drop.seg.0.b.weight"]
    delta = make_corrector(model, "anchor-delta", layers=[3])
    delta.tensors["blk.3.lora_drop_gate.weight"] = segment.tensors["lora_drop.seg.0.carry.weight"]
    delta.tensors["blk.3.lora_drop_b.weight"][:] = 0
    decoders = [Decoder(model, corrector, [3], k=3) for corrector in (segment, delta)]

    for tokens in (PROMPT, *([token] for token in GENERATED)):
        first, second = (step(decoder, tokens) for decoder in decoders)
        assert_same(first, second)


def test_zero_corrector_decodes_as_the_model_without_the_layers() -> None:
    decoder = make_decoder("anchor-delta")
    assert decoder.corrector is not None
    for i in DROPPED:
        decoder.corrector.tensors[f"blk.{i}.lora_drop_b.weight"][:] = 0
        del decoder.corrector.tensors[f"blk.{i}.lora_drop_gate.weight"]
    kept = [i for i in range(N_LAYER) if i not in DROPPED]
    tensors = {n: t for n, t in decoder.model.tensors.items() if not n.startswith("blk.")}
    for new, old in enumerate(kept):
        for name, tensor in decoder.model.tensors.items():
            if name.startswith(f"blk.{old}."):
                tensors[name.replace(f".{old}.", f".{new}.")] = tensor
    short = Decoder(dataclasses.replace(decoder.model, n_layer=len(kept), tensors=tensors))

    step(decoder, PROMPT)
    step(short, PROMPT)
    # The prompt's K/V come from the whole model, only the LoRA steps leave layers out.
    short.sequences[0].kv = [dict(decoder.sequences[0].kv[i]) for i in kept]

    for token in GENERATED[:3]:
        assert_same(step(decoder, [token]), step(short, [token]))
        assert decoder.last_step == "lora"


# The schedule


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_k_0_equals_full(reuse: Reuse, policy: Policy) -> None:
    decoder = make_decoder(reuse, k=0, policy=policy, kv_window=1)

    for token, expected in zip(TEXT, full_logits(decoder.model), strict=True):
        assert_same(step(decoder, [token]), expected)
        assert decoder.last_step == "full"
    assert decoder.positions(0, DROPPED[0]) == list(range(len(TEXT)))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_k_lora_steps_follow_each_full_step(k: int, policy: Policy) -> None:
    decoder = make_decoder(k=k, policy=policy)
    kinds = []
    for tokens in (PROMPT, *([token] for token in GENERATED)):
        step(decoder, tokens)
        kinds.append(decoder.last_step)

    period = ["full", *["lora"] * k]
    assert kinds == (period * len(kinds))[: len(kinds)]


@pytest.mark.parametrize("reuse", REUSES)
def test_refill_with_a_wide_window_is_exact_at_each_refresh(reuse: Reuse) -> None:
    decoder = make_decoder(reuse)
    expected = full_logits(decoder.model)[len(PROMPT) - 1 :]

    for tokens, full in zip([PROMPT, *([t] for t in GENERATED)], expected, strict=True):
        logits = step(decoder, tokens)
        if decoder.last_step == "full":
            assert_same(logits, full)
        else:
            assert differ(logits, full)


def test_several_tokens_are_a_full_step() -> None:
    decoder = make_decoder()
    step(decoder, PROMPT)
    step(decoder, GENERATED[:1])
    logits = step(decoder, GENERATED[1:3])

    assert decoder.last_step == "full"
    assert_same(logits, full_logits(decoder.model)[len(PROMPT) + 2])


# K/V


def test_single_leaves_lora_tokens_out_of_droppable_layers() -> None:
    decoder = make_decoder(policy="single")
    for tokens in (PROMPT, *([token] for token in GENERATED)):
        step(decoder, tokens)

    # The prompt holds 0 to 6, and then come three LoRA steps before each refresh step.
    ran = [*range(7), *range(10, 40, 4)]
    for layer in range(N_LAYER):
        assert decoder.positions(0, layer) == (ran if layer in DROPPED else list(range(40)))


def test_refill_thins_replayed_tokens_outside_the_window() -> None:
    decoder = make_decoder(kv_window=6)
    step(decoder, TEXT[:2])
    for token in TEXT[2:18]:
        step(decoder, [token])

    # Refresh steps are 5, 9, 13 and 17; 2 to 4, 6 to 8, ... are replayed, 2 and 3 are sinks; the
    # window of the last one reaches back to 12.
    for layer in range(N_LAYER):
        held = [0, 1, 2, 3, 5, 9, 12, 13, 14, 15, 16, 17]
        assert decoder.positions(0, layer) == (held if layer in DROPPED else list(range(18)))


def test_lora_steps_write_nothing_to_droppable_layers() -> None:
    decoder = make_decoder()
    step(decoder, PROMPT)
    step(decoder, GENERATED[:1])

    assert decoder.positions(0, DROPPED[0]) == list(range(7))
    assert decoder.positions(0, N_LAYER - 1) == list(range(8))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_prompt_in_pieces_equals_prompt_in_one_go(reuse: Reuse, policy: Policy) -> None:
    whole, pieces = (make_decoder(reuse, policy=policy, kv_window=4) for _ in range(2))
    step(whole, PROMPT)
    for tokens in (PROMPT[:3], PROMPT[3:4], PROMPT[4:5]):
        assert pieces.decode([Entry(0, tokens, want_logits=False)]) == [None]
        assert pieces.last_step == "full"
    step(pieces, PROMPT[5:])

    for token in GENERATED:
        assert_same(step(pieces, [token]), step(whole, [token]))
        assert pieces.last_step == whole.last_step
    for layer in range(N_LAYER):
        assert pieces.positions(0, layer) == whole.positions(0, layer)


# Several sequences


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("reuse", REUSES)
def test_sequences_are_independent(reuse: Reuse, policy: Policy) -> None:
    texts = {3: TEXT[:20], 5: TEXT[19::-1]}
    together = make_decoder(reuse, policy=policy, kv_window=4)
    alone = {seq_id: make_decoder(reuse, policy=policy, kv_window=4) for seq_id in texts}
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, 20))]:
        batch = [Entry(seq_id, text[start:stop]) for seq_id, text in texts.items()]
        for entry, logits in zip(batch, together.decode(batch), strict=True):
            assert logits is not None
            assert_same(logits, step(alone[entry.seq_id], entry.tokens))


def test_one_prompt_makes_the_whole_step_full() -> None:
    decoder = make_decoder()
    step(decoder, PROMPT)
    step(decoder, GENERATED[:1])
    first, second = decoder.decode([Entry(0, GENERATED[1:2]), Entry(1, PROMPT)])
    expected = full_logits(decoder.model)
    assert first is not None and second is not None

    assert decoder.last_step == "full"
    assert_same(first, expected[len(PROMPT) + 1])
    assert_same(second, expected[len(PROMPT) - 1])
    kinds = []
    for token in GENERATED[2:6]:
        decoder.decode([Entry(0, [token]), Entry(1, [token])])
        kinds.append(decoder.last_step)
    assert kinds == ["lora", "lora", "lora", "full"]


@pytest.mark.parametrize("batch", [[Entry(0, [1]), Entry(0, [2])], [Entry(0, [])]])
def test_refuses_repeated_and_empty_entries(batch: list[Entry]) -> None:
    with pytest.raises(ValueError, match="every sequence"):
        Decoder(make_model()).decode(batch)


# The choice of layers


def test_layers_for_takes_the_first_layers() -> None:
    corrector = make_corrector(make_model(n_layer=8), "anchor-state", layers=[4, 3, 5])

    assert layers_for(0.0, 8, corrector) == []
    assert layers_for(0.0625, 8, corrector) == [4]
    assert layers_for(0.3, 8, corrector) == [4, 3]
    with pytest.raises(ValueError, match="has 3"):
        layers_for(0.5, 8, corrector)


def test_layers_for_takes_the_longest_run_that_fits() -> None:
    corrector = make_corrector(make_model(n_layer=8), "segment", segments=[(3, 4), (2, 5)])

    assert layers_for(0.0, 8, corrector) == []
    assert layers_for(0.375, 8, corrector) == [3, 4]
    assert layers_for(0.5, 8, corrector) == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="every run is longer"):
        layers_for(0.125, 8, corrector)
    with pytest.raises(ValueError, match="has 4"):
        layers_for(0.75, 8, corrector)


@pytest.mark.parametrize("layer", [0, N_LAYER - 1])
def test_first_and_last_layer_never_drop(layer: int) -> None:
    model = make_model(n_layer=N_LAYER)
    corrector = make_corrector(model, "anchor-state", layers=[layer])
    with pytest.raises(ValueError, match="never drop"):
        Decoder(model, corrector, [layer], k=3)
