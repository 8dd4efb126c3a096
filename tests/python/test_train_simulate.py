"""What the trainer simulates is what the engine decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf import transformers_model
from loradrop._core import Context, Corrector, Model
from tiny import Arch, Reuse, TinyCorrector, make_corrector, make_model, write_gguf

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from loradrop.train.decoder import KeysAndValues, LayeredDecoder  # noqa: E402
from loradrop.train.simulate import Frozen, Run, simulate  # noqa: E402
from loradrop.train.student import Shape, Student  # noqa: E402
from loradrop.train.timeline import Timeline  # noqa: E402

N_PROMPT = 9
N_TOKENS = 70
LAYERS = {"block": [2, 3, 4], "spread": [4, 1, 6]}
SEGMENT = (2, 5)
N_LAYER = 8
TOLERANCE = 1e-4  # of the largest logit


def engine_logits(
    path: Path, tokens: list[int], rho: float, k: int, refresh: str, window: int
) -> dict[int, np.ndarray]:
    """Return logits by position, for the tokens after the prompt."""
    model = Model(str(path))
    corrector = Corrector.load(str(path), model)
    context = Context(
        model,
        n_ctx=256,
        flash_attn="off",
        type_k="f32",
        type_v="f32",
        corrector=corrector,
        rho=rho,
        k=k,
        refresh=refresh,
        kv_window=window,
    )
    context.decode(tokens[:N_PROMPT])
    out = {}
    for position in range(N_PROMPT, len(tokens)):
        context.decode([tokens[position]])
        out[position] = context.logits().copy()
    return out


def runs_of(corrector: TinyCorrector, decoder: LayeredDecoder) -> list[Run]:
    down = corrector.tensors.get("lora_drop.seg.0.down.weight")
    shape = Shape(
        corrector.reuse,
        corrector.rank,
        corrector.alpha,
        corrector.layers or (),
        corrector.segments or (),
        0 if down is None else down.shape[1],
    )
    return Student(decoder, shape, corrector.tensors).runs(0 if corrector.segments else len(corrector.layers))


@pytest.mark.parametrize("refresh", ["single", "refill"])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("window", [4, 1000])
@pytest.mark.parametrize(
    ("reuse", "where"),
    [
        ("previous-state", "block"),
        ("previous-state", "spread"),
        ("anchor-state", "spread"),
        ("anchor-delta", "block"),
        ("anchor-delta", "spread"),
        ("segment", "block"),
    ],
)
def test_simulation_equals_engine(
    tmp_path: Path, reuse: Reuse, where: str, k: int, refresh: str, window: int, arch: Arch = "llama"
) -> None:
    model = make_model(arch, n_layer=N_LAYER)
    if reuse == "segment":
        corrector = make_corrector(model, reuse, segments=[SEGMENT])
        n_drop = SEGMENT[1] - SEGMENT[0] + 1
    else:
        corrector = make_corrector(model, reuse, LAYERS[where])
        n_drop = len(LAYERS[where])
    write_gguf(tmp_path / "model.gguf", model, corrector)
    tokens = np.random.default_rng(3).integers(3, model.n_vocab, N_TOKENS).tolist()

    decoder = LayeredDecoder(transformers_model(model))
    timeline = Timeline(N_TOKENS, N_PROMPT, k, refresh, window)
    with torch.no_grad():
        hidden = simulate(decoder, runs_of(corrector, decoder), torch.tensor([tokens]), timeline)
        logits = decoder.logits(hidden)[0].numpy()
    positions = timeline.lora if refresh == "refill" else timeline.position

    engine = engine_logits(tmp_path / "model.gguf", tokens, n_drop / N_LAYER, k, refresh, window)
    for row, position in zip(logits, positions.tolist(), strict=True):
        if position >= N_PROMPT:
            expected = engine[position]
            assert np.abs(row - expected).max() < TOLERANCE * np.abs(expected).max(), position


@pytest.mark.parametrize("with_kv", [False, True])
@pytest.mark.parametrize("refresh", ["single", "refill"])
def test_frozen_states_change_nothing(refresh: str, with_kv: bool) -> None:
    model = make_model(n_layer=N_LAYER)
    decoder = LayeredDecoder(transformers_model(model))
    runs = runs_of(make_corrector(model, "segment", segments=[SEGMENT]), decoder)
    tokens = torch.tensor(np.random.default_rng(4).integers(3, model.n_vocab, (2, N_TOKENS)))
    timeline = Timeline(N_TOKENS, N_PROMPT, 3, refresh)
    kv = {}
    with torch.no_grad():
        expected = simulate(decoder, runs, tokens, timeline)
        states = [decoder.embed(tokens)]
        for i in range(N_LAYER):
            kept = KeysAndValues()
            states.append(decoder.layer(i, states[-1], timeline.position, kv=kept))
            kv[i] = kept.new
        frozen = Frozen(states[SEGMENT[0]], states[SEGMENT[1] + 1], kv if with_kv else {})
        actual = simulate(decoder, runs, tokens, timeline, frozen)
    torch.testing.assert_close(actual, expected)
