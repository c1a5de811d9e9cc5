"""Sixteen lanes compiled against the same functions interpreted, where numpy computes them: equal to the bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels import simd
from kernels.jit import kernel
from kernels.simd import (
    LANES,
    LANES_4,
    exponential,
    first_set,
    fma,
    load,
    load_4,
    prefetch,
    reduce_add,
    reduce_max,
    reduce_min,
    select,
    sqrt,
    store,
)

SHIFTS = (0, 3, LANES)  # not only at the edge of a cache line


@kernel
def everything(out: Any, x: Any, i: int, number: Any) -> None:
    """All operations of the module on the vectors of x at i and i + 1."""
    prefetch(x, i)  # changes nothing
    a, b = load(x, i), load(x, i + 1)
    store(out, 0, a + b)
    store(out, LANES, a - b)
    store(out, 2 * LANES, a * b)
    store(out, 3 * LANES, a * number + b)
    store(out, 4 * LANES, sqrt(a * a + b * b))


@given(
    hnp.arrays(np.float32, 2 * LANES + 1, elements=st.floats(-(2**20), 2**20, width=32)),
    st.sampled_from(SHIFTS),
    st.floats(-8, 8, width=32),
)
@settings(deadline=None, max_examples=50)
def test_compiled_is_interpreted(x: Any, i: int, number: float) -> None:
    out, expected = np.full((2, 6 * LANES), 7, np.float32)
    everything(out, x, i, np.float32(number))
    getattr(everything, "py_func", everything)(expected, x, i, np.float32(number))
    assert out.tobytes() == expected.tobytes()
    assert (out[5 * LANES :] == 7).all()


@kernel
def once(out: Any, x: Any, y: Any, z: Any, number: Any) -> None:
    """`fma` of vectors and of numbers."""
    store(out, 0, fma(load(x, 0), load(y, 0), load(z, 0)))
    store(out, LANES, fma(load(x, 0), number, load(z, 0)))
    store(out, 2 * LANES, fma(load(x, 0), load(y, 0), number))
    store(out, 3 * LANES, fma(load(x, 0), number, number))


def test_a_fused_product_is_rounded_once() -> None:
    x, y, z = np.full((3, LANES), np.float32(1))
    x += np.float32(2**-12) * np.arange(LANES, dtype=np.float32)
    y -= np.float32(2**-12) * np.arange(LANES, dtype=np.float32)
    out, expected = np.zeros((2, 4 * LANES), np.float32)
    once(out, x, y, -z, np.float32(-1))
    getattr(once, "py_func", once)(expected, x, y, -z, np.float32(-1))
    assert out.tobytes() == expected.tobytes()
    assert out[1] == -(2.0**-24)  # in two steps it would be 0


@pytest.mark.parametrize("lane", range(LANES))
def test_lanes_do_not_mix(lane: int) -> None:
    x = np.ones(2 * LANES, np.float32)
    before, after = np.zeros((2, 5 * LANES), np.float32)
    everything(before, x, 0, np.float32(3))
    x[lane] = np.nan
    everything(after, x, 0, np.float32(3))
    assert set(np.flatnonzero(before != after) % LANES) <= {lane, lane - 1 if lane else lane}


@kernel
def together(out: Any, x: Any, number: Any) -> int:
    """What the first four lanes of x and the next four come to."""
    a, b = load_4(x, 0), load_4(x, LANES_4)
    store(out, 0, select(a > b, a / b, number))
    store(out, LANES_4, select(a > number, a, b))
    out[2 * LANES_4], out[2 * LANES_4 + 1], out[2 * LANES_4 + 2] = reduce_add(a), reduce_max(a), reduce_min(a)
    return int(first_set(a == reduce_max(a)) * 10 + first_set(a > number))


@given(
    hnp.arrays(np.float32, 2 * LANES_4, elements=st.floats(0.125, 2**10, width=32)), st.floats(0.125, 2**10, width=32)
)
@settings(deadline=None, max_examples=50)
def test_few_lanes_compiled_are_interpreted(x: Any, number: float) -> None:
    out, expected = np.zeros((2, 3 * LANES_4), np.float32)
    found = together(out, x, np.float32(number))
    assert found == getattr(together, "py_func", together)(expected, x, np.float32(number))
    assert out.tobytes() == expected.tobytes()
    a = x[:LANES_4]
    assert out[8:11].tolist() == [pytest.approx(a.sum(), rel=1e-6), a.max(), a.min()]
    assert found == 10 * a.argmax() + ((a > number).argmax() if (a > number).any() else LANES_4)


@kernel
def powers(out: Any, x: Any) -> None:
    """out = e^x, four at a time."""
    for i in range(0, x.shape[0], LANES_4):
        store(out, i, exponential(load_4(x, i)))


def test_the_exponential_is_right_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-87, 0, 40_000), [0.0, -1e-30, -87.0, -1e30]]).astype(np.float32)
    out = np.zeros_like(x)
    powers(out, x)
    right = np.exp(np.maximum(x.astype(np.float64), simd.MIN_EXPONENT))
    assert (np.abs(out - right) <= 2 * np.spacing(right.astype(np.float32))).all()
    assert (out[np.abs(x) < 1e-20] == 1).all()
