"""ONNX Runtime through its C API: numbers, errors, row buckets, threads."""

import threading
import time

import numpy as np
import pytest

from kernels.ort import Layout, OrtError, Session, check, evaluate
from tests.graphs import graph

WEIGHT = np.arange(6.0).reshape(3, 2)


def linear() -> bytes:
    return graph(3, 2, [("MatMul", ["x64", "w"], "y64")], {"w": WEIGHT})


def test_a_kernel_evaluates_the_next_larger_bucket() -> None:
    net = Session(linear()).bind(Layout(3, 2), [1, 4, 8])
    net.x[:] = np.random.default_rng(0).normal(size=net.x.shape)
    for rows in (1, 3, 8):
        net.y[:] = np.nan
        check(evaluate(net, rows))
        np.testing.assert_allclose(net.y[:rows], net.x[:rows] @ WEIGHT, rtol=1e-6)
    check(evaluate(net, 1))


@pytest.mark.parametrize("arena", [True, False])
def test_a_failing_call_is_an_exception_with_the_message_of_onnx_runtime(arena: bool) -> None:
    session = Session(linear(), arena)
    net = session.bind(Layout(5, 2), [1])  # five columns where the graph wants three
    with pytest.raises(OrtError, match="dimension"):
        check(evaluate(net, 1))
    good = session.bind(Layout(3, 2), [1])
    check(evaluate(good, 1))  # and the session lives on


def test_garbage_is_refused() -> None:
    with pytest.raises(OrtError):
        Session(b"not a model")


def test_threads_share_a_session_without_the_gil() -> None:
    """While one thread is inside ONNX Runtime, Python goes on in another."""
    size = 1500
    big = graph(size, size, [("MatMul", ["x64", "w"], "y64")], {"w": np.zeros((size, size))})
    net = Session(big).bind(Layout(size, size), [1024])
    thread = threading.Thread(target=lambda: check(evaluate(net, 1024)))
    small = Session(linear()).bind(Layout(3, 2), [1])
    check(evaluate(small, 1))  # compiled before the race
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 5


def test_a_net_keeps_its_session_alive() -> None:
    nets = [Session(linear()).bind(Layout(3, 2), [1, 2]) for _ in range(50)]
    for net in nets:
        net.x[:] = 1
        check(evaluate(net, 2))
        np.testing.assert_allclose(net.y[1], WEIGHT.sum(axis=0))


def test_a_message_that_quotes_bytes_that_are_no_text_is_a_message() -> None:
    broken = graph(3, 2, [("MatMul", ["x64", "weights"], "y64")], {"weights": WEIGHT}).replace(
        b"weights", b"w\xfc\xff\x80hts", 1
    )
    with pytest.raises(OrtError, match="\N{REPLACEMENT CHARACTER}"):
        Session(broken)
