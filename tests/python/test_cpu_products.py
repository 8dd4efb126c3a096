"""Products of weights with few columns on the CPU: right, and column by column llama.cpp's bits for a single one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loradrop._core import cpu_kernels, cpu_product, current_cpu_kernels, use_cpu_kernels
from quantized_weights import SCALES, Weights, block_size, whole_activations

KERNELS = [name for name in cpu_kernels() if name != "llama.cpp"]
PLAIN = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_K", "q5_K", "q6_K")
INTERLEAVED = ("q4_0", "iq4_nl", "mxfp4", "q4_K")
LAYOUTS = [(t, False) for t in PLAIN] + [(t, True) for t in INTERLEAVED]
# without kernels of ours: ggml's code, held to the same bits for few columns
OTHERS = [("q2_K", False), ("q2_K", True), ("q3_K", False), ("iq4_xs", False), ("iq4_nl", False), ("mxfp4", False)]

FloatArray = npt.NDArray[np.float32]

pytestmark = pytest.mark.skipif(not KERNELS, reason="no kernels of ours for this processor")


@pytest.fixture(autouse=True)
def kernels_as_before() -> Iterator[None]:
    """Leave the process as it was."""
    before = current_cpu_kernels()
    yield
    use_cpu_kernels(before)


def by_llama_cpp(weights: Weights, x: FloatArray, **options: Any) -> FloatArray:
    """Multiply each column alone, with llama.cpp's kernels."""
    use_cpu_kernels("llama.cpp")
    try:
        return np.concatenate([cpu_product(weights.type, weights.data(), column[None], **options) for column in x])
    except ValueError as e:
        if "does not interleave" in str(e) or "interleaves no weights" in str(e):
            pytest.skip(str(e))
        raise


def assert_same_bits(ours: FloatArray, theirs: FloatArray) -> None:
    """Equal bit by bit; any NaN equals any other."""
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all(), f"{(~same).sum()} of {same.size} differ, by at most {np.nanmax(np.abs(ours - theirs))}"


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("weight_type", "interleaved"), LAYOUTS)
def test_right(weight_type: str, interleaved: bool, kernels: str) -> None:
    """Against NumPy, in double. Whole numbers are quantised as they are, so nothing but the sums' rounding is left."""
    weights = Weights(weight_type, 40, 512)
    x = whole_activations(np.random.default_rng(1), 9, 512)
    use_cpu_kernels(kernels)
    for columns in range(1, 10):
        ours = cpu_product(weight_type, weights.data(), x[:columns], interleaved=interleaved)
        right = x[:columns].astype(np.float64) @ weights.values().T
        magnitude = np.abs(x[:columns]).astype(np.float64) @ np.abs(weights.values()).T
        # q8_1 keeps a sum of activations in half precision
        tolerance = 1e-3 if weight_type in ("q4_1", "q5_1") else 1e-6
        assert (np.abs(ours - right) <= tolerance * magnitude).all(), columns


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("weight_type", "interleaved"), LAYOUTS)
def test_bits(weight_type: str, interleaved: bool, kernels: str) -> None:
    """Each of 1 to 9 and of 19 columns, for short rows and such as no first cache holds."""
    for k in (256, 8960):
        weights = Weights(weight_type, 48, k)
        x = np.random.default_rng(2).standard_normal((19, k), np.float32)
        alone = by_llama_cpp(weights, x, interleaved=interleaved)
        use_cpu_kernels(kernels)
        for columns in (*range(1, 10), 19):
            for n_threads in (1, 2):
                ours = cpu_product(
                    weight_type, weights.data(), x[:columns], interleaved=interleaved, n_threads=n_threads
                )
                if columns <= 8 or kernels == "avx512":
                    assert_same_bits(ours, alone[:columns])
                else:  # here ggml's own code may be quicker, and sum in another order
                    np.testing.assert_allclose(ours, alone[:columns], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bits_of_any_shape(kernels: str, data: st.DataObject) -> None:
    """Rows, columns and blocks of every number; weights without kernels too."""
    weight_type, interleaved = data.draw(st.sampled_from(LAYOUTS + OTHERS))
    rows = data.draw(st.integers(1, 70)) * (8 if interleaved else 1)
    k = data.draw(st.integers(1, 40 if block_size(weight_type) == 32 else 6)) * block_size(weight_type)
    columns = data.draw(st.integers(1, 8))
    n_threads = data.draw(st.integers(1, 4))
    weights = Weights(weight_type, rows, k, data.draw(st.integers(0, 99)))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((columns, k), np.float32)
    if data.draw(st.booleans()):
        x[:, : k // 2] = 0
    alone = by_llama_cpp(weights, x, interleaved=interleaved)
    use_cpu_kernels(kernels)
    ours = cpu_product(weight_type, weights.data(), x, interleaved=interleaved, n_threads=n_threads)
    assert_same_bits(ours, alone)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("weight_type", "interleaved"), LAYOUTS)
def test_extremes(weight_type: str, interleaved: bool, kernels: str) -> None:
    """The greatest and least weights, scales and activations; zeros, numbers below the normal, infinity and NaN."""
    k, rng = 512, np.random.default_rng(3)
    scales = (0.0, 65504.0, -65504.0, 6e-8, np.inf, np.nan)
    exponents = (0, 1, 254, 255)
    x = np.stack(
        [
            np.zeros(k),
            np.ones(k),
            -np.ones(k),
            np.tile([1.0, -1.0], k // 2),
            np.full(k, 1e-40),
            np.full(k, 3e38),
            np.where(np.arange(k) < 256, 0.0, -127.0),
            rng.standard_normal(k),
        ]
    ).astype(np.float32)
    for fill in (0x00, 0xFF, 0x80, 0x7F, None):
        for scale in exponents if weight_type == "mxfp4" else scales:
            weights = Weights(weight_type, 16, k)
            if fill is not None:
                weights.blocks[:] = fill
            if weight_type == "mxfp4":
                weights.set_exponents(scale)
            else:
                weights.set_scales(scale)
            alone = by_llama_cpp(weights, x, interleaved=interleaved)
            use_cpu_kernels(kernels)
            for columns in (1, 3, 8):
                ours = cpu_product(weight_type, weights.data(), x[-columns:], interleaved=interleaved)
                assert_same_bits(ours, alone[-columns:])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("weight_type", ["f32", "f16", "bf16"])
def test_bits_of_floats(weight_type: str, kernels: str) -> None:
    """What llamafile's code would multiply from two columns on."""
    rng = np.random.default_rng(4)
    for rows, k in ((33, 64), (48, 1536), (7, 100)):
        w = rng.standard_normal((rows, k), np.float32)
        data = {"f32": w, "f16": w.astype(np.float16), "bf16": (w.view(np.uint32) >> 16).astype(np.uint16)}[weight_type]
        x = rng.standard_normal((8, k), np.float32)
        use_cpu_kernels("llama.cpp")
        alone = np.concatenate([cpu_product(weight_type, data.tobytes(), column[None]) for column in x])
        use_cpu_kernels(kernels)
        for columns in range(1, 9):
            ours = cpu_product(weight_type, data.tobytes(), x[:columns], n_threads=2)
            assert_same_bits(ours, alone[:columns])


def experts_alone(weights: Weights, x: FloatArray, ids: npt.NDArray[np.int32], n_experts: int, **options: Any) -> Any:
    """Multiply each token with each of its experts by itself, with llama.cpp's kernels."""
    bytes_of_one = len(weights.data()) // n_experts
    one = Weights(weights.type, weights.rows // n_experts, weights.k)
    out = np.empty((*ids.shape, one.rows), np.float32)
    for token, chosen in enumerate(ids):
        for slot, expert in enumerate(chosen):
            rows = weights.data()[expert * bytes_of_one : (expert + 1) * bytes_of_one]
            one.blocks = np.frombuffer(rows, np.uint8).reshape(one.blocks.shape)
            out[token, slot] = by_llama_cpp(one, x[token, slot % x.shape[1]][None], **options)[0]
    return out


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_bits_of_experts(kernels: str, data: st.DataObject) -> None:
    """Of a mixture's products, in which several tokens share an expert, or none does."""
    weight_type, interleaved = data.draw(st.sampled_from(LAYOUTS))
    n_experts = data.draw(st.integers(1, 6))
    n_used = data.draw(st.integers(1, n_experts))
    tokens = data.draw(st.integers(1, 20))
    rows = data.draw(st.integers(1, 20)) * 8
    k = data.draw(st.integers(1, 3)) * 256
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    weights = Weights(weight_type, rows * n_experts, k)
    x = rng.standard_normal((tokens, data.draw(st.sampled_from([1, n_used])), k), np.float32)
    ids = np.stack([rng.permutation(n_experts)[:n_used] for _ in range(tokens)]).astype(np.int32)
    alone = experts_alone(weights, x, ids, n_experts, interleaved=interleaved)
    use_cpu_kernels(kernels)
    n_threads = data.draw(st.integers(1, 3))
    ours = cpu_product(
        weight_type,
        weights.data(),
        x,
        experts=ids,
        n_experts=n_experts,
        interleaved=interleaved,
        n_threads=n_threads,
    )
    assert_same_bits(ours, alone)


def test_choice_of_kernels() -> None:
    """The best that there is by default; an unknown set is refused, by the environment too."""
    assert set(SCALES) >= {t for t, _ in LAYOUTS + OTHERS}
    with pytest.raises(ValueError, match=r'CPU kernels "sse9": this processor and this build have llama\.cpp'):
        use_cpu_kernels("sse9")
    script = "from loradrop._core import current_cpu_kernels; print(current_cpu_kernels())"
    for name in ("", *cpu_kernels()):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "LORADROP_CPU_KERNELS": name},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == (name or cpu_kernels()[-1])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LORADROP_CPU_KERNELS": "sse9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert 'environment variable LORADROP_CPU_KERNELS: CPU kernels "sse9"' in done.stderr


def test_bad_input() -> None:
    """Shapes and types that fit nothing."""
    weights = Weights("q4_0", 8, 64)
    x = np.ones((2, 64), np.float32)
    for match, arguments, options in (
        ("no type of weights", ("q9_K", weights.data(), x), {}),
        ("no blocks of q4_0", ("q4_0", weights.data(), x[:, :40]), {}),
        ("are no rows of", ("q4_0", weights.data()[:-1], x), {}),
        ("has 1 dimensions", ("q4_0", weights.data(), x[0]), {}),
        ("n_threads=0", ("q4_0", weights.data(), x), {"n_threads": 0}),
        ("does not interleave|interleaves no", ("q6_K", bytes(210 * 8), np.ones((1, 256))), {"interleaved": True}),
    ):
        with pytest.raises(ValueError, match=match):
            cpu_product(*arguments, **options)
