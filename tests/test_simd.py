"""Sixteen lanes compiled against the same functions interpreted, where numpy computes them: equal to the bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels._jit import kernel
from kernels.simd import LANES, load, root, store

SHIFTS = (0, 3, LANES)  # not only at the edge of a cache line


@kernel
def everything(out: Any, x: Any, i: int, number: Any) -> None:
    """All operations of the module on the vectors of x at i and i + 1."""
    a, b = load(x, i), load(x, i + 1)
    store(out, 0, a + b)
    store(out, LANES, a - b)
    store(out, 2 * LANES, a * b)
    store(out, 3 * LANES, a * number + b)
    store(out, 4 * LANES, root(a * a + b * b))


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


@pytest.mark.parametrize("lane", range(LANES))
def test_lanes_do_not_mix(lane: int) -> None:
    x = np.ones(2 * LANES, np.float32)
    before, after = np.zeros((2, 5 * LANES), np.float32)
    everything(before, x, 0, np.float32(3))
    x[lane] = np.nan
    everything(after, x, 0, np.float32(3))
    assert set(np.flatnonzero(before != after) % LANES) <= {lane, lane - 1 if lane else lane}
