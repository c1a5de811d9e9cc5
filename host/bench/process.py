"""The harness of every bench: clocks, blocks of calls, medians, and rounds that several processes run in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from timeit import Timer
from typing import Any, NamedTuple

import numpy as np

from host.machine import memory_mb
from kernels.ort import check_status
from models.params import ModelShape

ROOT = Path(__file__).parents[2]
SAMPLE_CSV = ROOT / "host" / "data" / "sample.csv"


def map_on_pool(pool: ThreadPoolExecutor, fn: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """work(item) of every item, on the threads of the pool."""
    return list(pool.map(fn, items))


MIN_BLOCK_S = 0.03  # least length of a timed block


NETWORK_SHAPES = {"64/256": ModelShape(features=300, latent=64, hidden=256), "default": ModelShape(features=300)}


BenchRow = dict[str, Any]


TimedCall = Callable[[], object]


class Case(NamedTuple):
    """What one process measures."""

    impl: str  # swt, network or mctx
    search: str  # of SEARCHES
    net: str  # of NETS
    B: int
    n: int
    threads: int


def clock(threads: int) -> Callable[[], float]:
    """CPU time of the process, of which one thread works, or wall time of several."""
    return time.process_time if threads == 1 else time.perf_counter


def median_seconds(calls: list[TimedCall], rounds: int, now: Callable[[], float]) -> list[float]:
    """Median seconds of a call of each, measured in turns; the first calls only warm up."""
    timers = [Timer(work, timer=now) for work in calls]
    for timer in timers:
        timer.timeit(1)
    counts = [max(1, round(MIN_BLOCK_S / max(timer.timeit(1), 1e-6))) for timer in timers]
    pairs = list(zip(timers, counts, strict=True))
    turns = [[timer.timeit(count) / count for timer, count in pairs] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def fill_normal(arrays: Any, seed: int) -> None:
    """Overwrite arrays with standard normal numbers."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    for array in arrays:
        array[...] = rng.standard_normal(array.shape)


_calls: list[Callable[[], Any]] = []  # of a measuring process, one a thread


_case: list[Case] = []


def install_calls(case: Case, calls: list[Callable[[], Any]]) -> None:
    """Have `measure_seconds` measure these."""
    _case.append(case)
    _calls.extend(calls)


def thread_seconds(call: Callable[[], Any], count: int) -> float:
    """CPU seconds that the calling thread takes for `count` calls."""
    begin = time.thread_time()
    for _ in range(count):
        check_status(call())
    return time.thread_time() - begin


def measure_seconds(count: int) -> float:
    """Seconds of `count` searches on every thread of a measuring process."""
    case = _case[0]
    if case.impl == "mctx":
        now = time.process_time if case.threads == 1 else time.perf_counter
        begin = now()
        for _ in range(count):
            _calls[0]()
        return now() - begin
    if case.threads == 1:
        return thread_seconds(_calls[0], count)
    with ThreadPoolExecutor(case.threads) as pool:
        return max(pool.map(lambda work: thread_seconds(work, count), _calls))


def peak_rss_mb() -> float:
    """Peak resident memory of a measuring process."""
    return memory_mb("VmHWM")
