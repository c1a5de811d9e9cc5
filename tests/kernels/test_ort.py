"""ONNX Runtime through its C API: numbers, errors, row buckets, threads."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ort import (
    GraphLayout,
    InputSlice,
    OrtError,
    OutputHead,
    Session,
    check_status,
    evaluate,
    evaluate_prefilled,
    write_preactivation,
)
from kernels.simd import LANES
from models.onnx_builder import GraphBuilder
from tests.fixtures.graphs import graph

WEIGHT = np.arange(6.0).reshape(3, 2)


def linear() -> bytes:
    return graph(3, 2, [("MatMul", ["x64", "w"], "y64")], {"w": WEIGHT})


def test_a_kernel_evaluates_the_next_larger_bucket() -> None:
    net = Session(linear()).bind(GraphLayout(3, 2), [1, 4, 8])
    net.x[:] = np.random.default_rng(0).normal(size=net.x.shape)
    for rows in (1, 3, 8):
        net.y[:] = np.nan
        check_status(evaluate(net, rows))
        np.testing.assert_allclose(net.y[:rows], net.x[:rows] @ WEIGHT, rtol=1e-6)
    check_status(evaluate(net, 1))


@pytest.mark.parametrize("arena", [True, False])
def test_a_failing_call_is_an_exception_with_the_message_of_onnx_runtime(arena: bool) -> None:
    session = Session(linear(), arena)
    net = session.bind(GraphLayout(5, 2), [1])  # five columns where the graph wants three
    with pytest.raises(OrtError, match="dimension"):
        check_status(evaluate(net, 1))
    good = session.bind(GraphLayout(3, 2), [1])
    check_status(evaluate(good, 1))  # and the session lives on


def naive_y(x: Any, layout: GraphLayout, z: list[Any]) -> Any:
    """The columns of y, from float64."""
    columns = [x[:, : layout.passthrough]]
    for (_, plain, means, bins, limit), part in zip(layout.heads, z, strict=True):
        columns.append(part[:, :plain])
        for i in range(means):
            logits = part[:, plain + i * bins : plain + (i + 1) * bins].astype(np.float64)
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            columns.append((p @ np.linspace(-limit, limit, bins) / p.sum(axis=1))[:, None])
    return np.concatenate(columns, axis=1)


def cut_of(x: Any, cut: InputSlice) -> Any:
    """What a cut is of rows x."""
    columns = x[:, cut.first_column : cut.first_column + cut.width]
    return np.maximum(columns, 0) if cut.relu else columns


def laid_out(layout: GraphLayout, scale: float = 1.0, whole: bool = True) -> tuple[Session, list[Any]]:
    """A graph of this layout: each output is a product of `x`, if that is read whole, and all cuts; their weights."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    names = [*(["x"] if whole else []), *(g.input_slice(*cut) for cut in layout.input_slices)]
    width = (layout.width_in if whole else 0) + sum(cut.width for cut in layout.input_slices)
    weights = [rng.normal(0, scale, (width, o.raw + o.categorical * o.bins)) for o in layout.heads]
    read = g.concat(names, "read")
    for o, w in zip(layout.heads, weights, strict=True):
        flat = g.node("MatMul", [read, g.weight(f"{o.name}_w", w)], o.name if o.raw else f"{o.name}_flat")
        if not o.raw:
            g.reshape(flat, o.name, -1, o.bins)
    return Session(g.serialise(layout.width_in, list(layout.heads), layout.passthrough)), weights


parts = st.builds(
    OutputHead, st.just(""), st.integers(0, 40), st.integers(1, 3), st.integers(1, 50), st.sampled_from([0.5, 20.0])
)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 10), st.integers(1, 10), st.booleans()), max_size=3),
    st.lists(parts, min_size=1, max_size=4),
    st.integers(1, 7),
    st.sampled_from([0.1, 1.0, 40.0]),
)
def test_rows_are_what_the_layout_says(carried: int, cuts: Any, outputs: Any, rows: int, scale: float) -> None:
    named = tuple(output._replace(name=f"o{i}") for i, output in enumerate(outputs))
    width_out = carried + sum(output.raw + output.categorical for output in named)
    layout = GraphLayout(20, width_out, carried, tuple(InputSlice(f"c{i}", *cut) for i, cut in enumerate(cuts)), named)
    session, weights = laid_out(layout, scale)
    net = session.bind(layout, [1, 4, 8])
    net.x[:] = np.random.default_rng(rows).normal(size=net.x.shape)
    net.y[:] = np.nan
    check_status(evaluate(net, rows))
    x = net.x[:rows].astype(np.float64)
    parts = [x, *(cut_of(x, cut) for cut in layout.input_slices)]
    read = np.concatenate(parts, axis=1)
    expected = naive_y(x, layout, [read @ w.astype(np.float32) for w in weights])
    np.testing.assert_allclose(net.y[:rows], expected, rtol=1e-4, atol=1e-3 * scale)
    alone = session.bind(layout, [1, 4, 8])
    for row in range(rows):  # whatever stands beside it
        alone.x[0] = net.x[row]
        check_status(evaluate(alone, 1))
        np.testing.assert_allclose(alone.y[0], net.y[row], rtol=1e-5, atol=1e-4 * scale)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=3), st.integers(1, 7))
def test_what_is_told_stands_for_the_first_cuts(widths: Any, rows: int) -> None:
    """As if x held the sums; the other cuts are still of x."""
    first = np.cumsum([0, *(width for width, _ in widths)])
    T = int(first[-1])
    cuts = [InputSlice(f"c{i}", int(first[i]), *widths[i]) for i in range(len(widths))]
    layout = GraphLayout(T + 3, 2, 0, (*cuts, InputSlice("rest", T, 3)), (OutputHead("o", 2),))
    session, _ = laid_out(layout, whole=False)
    draw, room = np.random.default_rng(rows), np.zeros((2, rows * T + LANES), np.float32)
    a, b = (row[: rows * T].reshape(rows, T) for row in room)
    room[:] = draw.normal(size=room.shape)
    told, plain = (session.bind(layout, [1, 8]) for _ in range(2))
    plain.x[:rows, :T], plain.x[:rows, T:] = a + b, draw.normal(size=(rows, 3))
    told.x[:rows, :T], told.x[:rows, T:] = np.nan, plain.x[:rows, T:]
    for row in range(rows):
        write_preactivation(told, row, a[row], b[row])
    check_status(evaluate(plain, rows))
    check_status(evaluate_prefilled(told, rows, T))
    np.testing.assert_array_equal(told.y[:rows], plain.y[:rows])


@pytest.mark.parametrize("bins", [1, 16, 41])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_distribution_of_no_numbers_has_no_mean(bins: int, wrong: float) -> None:
    layout = GraphLayout(bins, 1, heads=(OutputHead("o", 0, 1, bins, 2.0),))
    g = GraphBuilder()
    g.node("Identity", ["x"], "o")
    net = Session(g.serialise(bins, list(layout.heads))).bind(layout, [3])
    for lane in range(bins):
        net.x[:], net.x[1, lane] = 1.0, wrong
        check_status(evaluate(net, 3))
        assert np.isnan(net.y[1, 0])
        assert abs(net.y[[0, 2], 0]).max() <= (2.0 if bins == 1 else 1e-6)


def test_garbage_is_refused() -> None:
    with pytest.raises(OrtError):
        Session(b"not a model")


def test_threads_share_a_session_without_the_gil() -> None:
    """While one thread is inside ONNX Runtime, Python goes on in another."""
    size = 1500
    big = graph(size, size, [("MatMul", ["x64", "w"], "y64")], {"w": np.zeros((size, size))})
    net = Session(big).bind(GraphLayout(size, size), [1024])
    thread = threading.Thread(target=lambda: check_status(evaluate(net, 1024)))
    small = Session(linear()).bind(GraphLayout(3, 2), [1])
    check_status(evaluate(small, 1))  # compiled before the race
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 5


def test_a_net_keeps_its_session_alive() -> None:
    nets = [Session(linear()).bind(GraphLayout(3, 2), [1, 2]) for _ in range(50)]
    for net in nets:
        net.x[:] = 1
        check_status(evaluate(net, 2))
        np.testing.assert_allclose(net.y[1], WEIGHT.sum(axis=0))


def test_a_message_that_quotes_bytes_that_are_no_text_is_a_message() -> None:
    broken = graph(3, 2, [("MatMul", ["x64", "weights"], "y64")], {"weights": WEIGHT}).replace(
        b"weights", b"w\xfc\xff\x80hts", 1
    )
    with pytest.raises(OrtError, match="\N{REPLACEMENT CHARACTER}"):
        Session(broken)
