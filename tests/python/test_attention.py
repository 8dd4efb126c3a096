"""Attention of several queries at once: each gets the bits that llama.cpp's own code gives it alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from loradrop import _core

Floats = NDArray[np.float32]
OURS = _core.cpu_kernels()[-1]
pytestmark = pytest.mark.skipif(OURS == "llama.cpp", reason="no kernels for this processor or in this build")


@dataclass(frozen=True)
class Case:
    """One attention; shapes as those of `_core.attend`."""

    q: Floats
    k: Floats
    v: Floats
    mask: Floats | None = None
    sinks: Floats | None = None
    max_bias: float = 0.0
    softcap: float = 0.0

    @property
    def n_query(self) -> int:
        return self.q.shape[2]

    @property
    def scale(self) -> float:
        return float(np.float32(self.q.shape[3] ** -0.5))

    def attend(self, first: int = 0, end: int | None = None, *, kernels: str = OURS, n_threads: int = 1) -> Floats:
        """Return the result of some of the queries, asked for at once: [stream, query, head, element]."""
        before = _core.current_cpu_kernels()
        _core.use_cpu_kernels(kernels)
        try:
            return _core.attend(
                self.q[:, :, first:end],
                self.k,
                self.v,
                mask=None if self.mask is None else self.mask[:, :, first:end],
                sinks=self.sinks,
                scale=self.scale,
                max_bias=self.max_bias,
                softcap=self.softcap,
                n_threads=n_threads,
            )
        finally:
            _core.use_cpu_kernels(before)

    def one_by_one(self, kernels: str) -> Floats:
        return np.concatenate([self.attend(i, i + 1, kernels=kernels) for i in range(self.n_query)], axis=1)

    def exact(self) -> NDArray[np.float64]:
        """Return the softmax attention in double of what 16 bits hold of q, k and v."""
        q, k, v = (x.astype(np.float16).astype(np.float64) for x in (self.q, self.k, self.v))
        n_head = q.shape[1]
        k, v = (np.repeat(x, n_head // x.shape[1], axis=1) for x in (k, v))
        scores = q @ k.swapaxes(2, 3) * self.scale
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if self.mask is not None:
            scores = scores + slopes(n_head, self.max_bias)[:, None, None] * self.mask.astype(np.float16)
        if self.sinks is not None:
            column = np.broadcast_to(self.sinks[:, None, None], (*scores.shape[:3], 1))
            scores = np.concatenate([scores, column], axis=3)
        highest = scores.max(axis=3, keepdims=True)
        weights = np.exp(scores - np.where(np.isfinite(highest), highest, 0.0))
        total = weights.sum(axis=3, keepdims=True)
        weights = weights[..., : k.shape[2]] / np.where(total == 0, 1.0, total)
        return (weights @ v).swapaxes(1, 2)


def slopes(n_head: int, max_bias: float) -> NDArray[np.float64]:
    """Return ALiBi's factor of each head."""
    if max_bias == 0:
        return np.ones(n_head)
    base = 2 ** int(np.log2(n_head))
    first = 2.0 ** (-max_bias / base * np.arange(1, base + 1))
    return np.concatenate([first, 2.0 ** (-max_bias / 2 / base * np.arange(1, 2 * (n_head - base), 2))])


def same_bits(a: Floats, b: Floats) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def make_case(
    seed: int = 0,
    *,
    heads: tuple[int, int] = (12, 2),
    size: tuple[int, int] = (64, 64),
    n_query: int = 8,
    n_cells: int = 300,
    n_stream: int = 1,
    masked: float | None = 0.3,
    mask_heads: int = 1,
    bias: bool = False,
    sinks: bool = False,
    peak: float = 1.0,
    max_bias: float = 0.0,
    softcap: float = 0.0,
) -> Case:
    """Random numbers; `masked` is the part of the cells that a query doesn't see."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Floats:
        return rng.normal(size=shape).astype(np.float32)

    mask = None
    if masked is not None:
        shape = (n_stream, mask_heads, n_query, n_cells)
        numbers = -rng.integers(0, 30, shape).astype(np.float32) if bias else np.zeros(shape, np.float32)
        mask = np.where(rng.random(shape) < masked, np.float32(-np.inf), numbers).astype(np.float32)
    return Case(
        q=normal(n_stream, heads[0], n_query, size[0]) * np.float32(peak),
        k=normal(n_stream, heads[1], n_cells, size[0]),
        v=normal(n_stream, heads[1], n_cells, size[1]),
        mask=mask,
        sinks=normal(heads[0]) if sinks else None,
        max_bias=max_bias,
        softcap=softcap,
    )


# head sizes on both sides of every number of elements that some build of ggml takes at once (32 or 64)
SIZES = [(32, 32), (40, 72), (64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (160, 160), (256, 256), (576, 512)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_gives_each_query_the_bits_of_llama_cpp(size: tuple[int, int]) -> None:
    case = make_case(size=size)
    alone = case.one_by_one("llama.cpp")
    for n in range(1, case.n_query + 1):
        assert same_bits(case.attend(0, n), alone[:, :n])


@pytest.mark.parametrize("n_query", [9, 63, 64, 150])
def test_so_does_a_prompt(n_query: int) -> None:
    case = make_case(n_query=n_query, n_cells=200, size=(64, 64), n_stream=2)
    assert same_bits(case.attend(n_threads=2), case.one_by_one("llama.cpp"))


@pytest.mark.parametrize(
    "options",
    [
        {"masked": None},
        {"bias": True},
        {"bias": True, "max_bias": 8.0},
        {"bias": True, "mask_heads": 12},
        {"bias": True, "n_cells": 37, "n_query": 1, "masked": 0.1},
        {"softcap": 30.0},
        {"sinks": True},
        {"sinks": True, "peak": 8.0},
        {"peak": 40.0},
        {"n_stream": 3},
        {"heads": (64, 1), "size": (32, 32)},
        {"heads": (71, 1)},
        {"heads": (9, 3), "size": (128, 128)},
        {"heads": (4, 4), "masked": 0.97},
    ],
    ids=str,
)
def test_the_same_with(options: dict[str, object]) -> None:
    case = make_case(**options)  # type: ignore[arg-type]
    assert same_bits(case.attend(), case.one_by_one("llama.cpp"))
    np.testing.assert_allclose(case.attend(), case.exact(), atol=0.02)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("heads", [(12, 2), (9, 3), (3, 1), (1, 1)], ids=str)
def test_threads_change_nothing(heads: tuple[int, int], n_threads: int) -> None:
    case = make_case(heads=heads, size=(128, 128), n_cells=700)
    assert same_bits(case.attend(n_threads=n_threads), case.one_by_one("llama.cpp"))


def test_a_causal_batch_in_a_padded_cache() -> None:
    """As decoding has it: later queries see a cell more, and nobody sees the rest of the cache."""
    n_past, n_query, n_cells = 530, 5, 768
    case = make_case(n_query=n_query, n_cells=n_cells, masked=0.0)
    assert case.mask is not None
    hidden = np.arange(n_cells) > n_past + np.arange(n_query)[:, None]
    case.mask[0, 0][hidden] = -np.inf
    np.testing.assert_array_equal(case.attend(), case.one_by_one("llama.cpp"))

    # what lies in cells that nobody sees doesn't matter, be it no number
    result = case.attend()
    case.k[:, :, n_past + n_query :] = np.nan
    case.v[:, :, n_past + n_query :] = np.inf
    assert same_bits(case.attend(), result)


@pytest.mark.parametrize("kernels", _core.cpu_kernels())
@pytest.mark.parametrize("n_query", [1, 4, 70])
def test_products_beyond_what_16_bits_hold(kernels: str, n_query: int) -> None:
    case = make_case(n_query=n_query, n_cells=70, size=(128, 128))
    far = np.zeros(128, np.float32)
    far[:2] = 300.0, -200.0  # as the bias of some models' keys has it
    case = replace(case, q=case.q + far, k=case.k + far)
    assert (case.q @ np.repeat(case.k, 6, axis=1).swapaxes(2, 3)).min() > 100_000
    np.testing.assert_allclose(case.attend(kernels=kernels), case.exact(), atol=0.03)


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    case = make_case(n_query=3)
    assert case.mask is not None
    case.mask[0, 0, 1] = -np.inf
    result = case.attend()
    assert not result[:, 1].any()
    assert same_bits(result, case.one_by_one("llama.cpp"))


def test_a_value_that_one_query_does_not_see_leaves_it_alone() -> None:
    """A weight of 0 would not do: 0 * inf is no number."""
    case = make_case(n_query=2, masked=0.0)
    assert case.mask is not None
    case.mask[0, 0, 0, 7] = -np.inf
    case.v[:, :, 7] = np.inf
    result = case.attend()
    assert np.isfinite(result[:, 0]).all() and np.isinf(result[:, 1]).all()


def test_exponentials_are_rounded_as_the_library_rounds_them() -> None:
    """One in some 10,000 lies so close to the middle of two floats that glibc's error decides; few cells show it."""
    case = make_case(n_stream=64, heads=(256, 1), size=(8, 8), n_cells=4, masked=None)
    assert same_bits(case.attend(), case.one_by_one("llama.cpp"))


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_other_types_are_left_to_llama_cpp(kind: str) -> None:
    case = make_case(size=(64, 64), masked=None)
    results = []
    for kernels in ("llama.cpp", OURS):
        _core.use_cpu_kernels(kernels)
        results.append(_core.attend(case.q, case.k, case.v, scale=case.scale, type=kind))
    assert same_bits(*results)
    np.testing.assert_allclose(results[0], case.exact(), atol=0.05)


def test_wrong_shapes_are_refused() -> None:
    case = make_case()
    with pytest.raises(ValueError, match="four dimensions"):
        _core.attend(case.q[0], case.k, case.v)
    with pytest.raises(ValueError, match=r"v must have the shape \[1, 2, 300, 64\]"):
        _core.attend(case.q, case.k, case.v[:, :, :299])
    with pytest.raises(ValueError, match="mask must have the shape"):
        _core.attend(case.q, case.k, case.v, mask=np.zeros((1, 1, 7, 300), np.float32))
    with pytest.raises(ValueError, match="a multiple of the mask's"):
        _core.attend(case.q, case.k, case.v, mask=np.zeros((1, 0, case.q.shape[2], 300), np.float32))
    for n_threads in (0, 513):
        with pytest.raises(ValueError, match="n_threads from 1 to 512"):
            _core.attend(case.q, case.k, case.v, n_threads=n_threads)
    with pytest.raises(ValueError, match='type "q9"'):
        _core.attend(case.q, case.k, case.v, type="q9")


@pytest.fixture(autouse=True)
def kernels_as_before() -> Iterator[None]:
    before = _core.current_cpu_kernels()
    yield
    _core.use_cpu_kernels(before)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kv_heads=st.integers(1, 4),
    ratio=st.integers(1, 9),
    size=st.tuples(st.integers(4, 32), st.integers(4, 32)),
    n_query=st.integers(1, 8) | st.integers(9, 80),
    n_cells=st.integers(1, 700),
    masked=st.sampled_from([None, 0.0, 0.1, 0.9, 0.995]),
    bias=st.booleans(),
    sinks=st.booleans(),
    n_threads=st.integers(1, 3),
)
def test_any_shape(
    seed: int,
    kv_heads: int,
    ratio: int,
    size: tuple[int, int],
    n_query: int,
    n_cells: int,
    masked: float | None,
    bias: bool,
    sinks: bool,
    n_threads: int,
) -> None:
    case = make_case(
        seed,
        heads=(kv_heads * ratio, kv_heads),
        size=(size[0] * 8, size[1] * 8),
        n_query=n_query,
        n_cells=n_cells,
        masked=masked,
        bias=bias,
        sinks=sinks,
    )
    together = case.attend(n_threads=n_threads)
    assert same_bits(together, case.one_by_one("llama.cpp"))
    assert same_bits(together, case.one_by_one(OURS))
    np.testing.assert_allclose(together, case.exact(), atol=0.02)
