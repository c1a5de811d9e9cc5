"""The harness of every bench: calls in rounds that take turns, medians, and processes of their own."""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from timeit import Timer
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.machine import memory_mb
from host.processes import Row
from models.params import ModelShape

ROOT = Path(__file__).parents[2]
NETWORK_SHAPES = {"64/256": ModelShape(features=300, latent=64, hidden=256), "default": ModelShape(features=300)}
MIN_BLOCK_S = 0.03  # least length of a timed block
PROCESS_WARM_UPS = 5  # calls in a process before its blocks are timed
BenchRow = Row
TimedCall = Callable[[], object]
Clock = Callable[[], float]


def user_environment() -> dict[str, str]:
    """The environment of a child that keeps the bytecode of the program, as Python does unless it is told not to."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def clock(threads: int) -> Clock:
    """CPU time of the process if one thread works, wall time if several do."""
    return time.process_time if threads == 1 else time.perf_counter


def median_in_turns(
    timed: Sequence[Callable[[int], float]], rounds: int, warm_ups: int = 2, blocks: int = 1
) -> list[float]:
    """Median seconds of a call of each, in rounds that take turns; `timed[i](count)` gives the seconds of a block.

    A block has so many calls, by the shortest warm-up call, that it takes `blocks` times MIN_BLOCK_S.
    """
    warm = [[seconds(1) for seconds in timed] for _ in range(warm_ups)]
    counts = [max(1, round(blocks * MIN_BLOCK_S / max(min(column), 1e-6))) for column in zip(*warm, strict=True)]
    pairs = list(zip(timed, counts, strict=True))
    turns = [[seconds(count) / count for seconds, count in pairs] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def median_seconds(calls: list[TimedCall], rounds: int, now: Clock) -> list[float]:
    """Median seconds of a call of each, measured in turns in this process."""
    return median_in_turns([Timer(call, timer=now).timeit for call in calls], rounds)


class Work(NamedTuple):
    """What a measuring process times."""

    calls: list[TimedCall]  # one a thread
    now: Clock
    figures: BenchRow  # that are given beside the seconds


class Measurement(NamedTuple):
    """The figures of one process."""

    seconds: float  # median of a call; of several threads, that of the slowest
    peak_mb: float  # of resident memory
    figures: BenchRow


_work: list[Work] = []  # of a measuring process


def measure_in_processes(setups: Sequence[Callable[[], Work]], rounds: int, blocks: int = 1) -> list[Measurement]:
    """Measure the work of every setup in a fresh process of its own, in rounds that take turns."""
    with ExitStack() as stack:
        context = get_context("spawn")
        pools = [stack.enter_context(ProcessPoolExecutor(1, context, _install_work, (setup,))) for setup in setups]
        seconds = median_in_turns([partial(_run_on, pool) for pool in pools], rounds, PROCESS_WARM_UPS, blocks)
        ends = [pool.submit(_end_of_work).result() for pool in pools]
    return [Measurement(median, *end) for median, end in zip(seconds, ends, strict=True)]


def _install_work(setup: Callable[[], Work]) -> None:
    _work.append(setup())


def _run_on(pool: ProcessPoolExecutor, count: int) -> float:
    return pool.submit(_run_work, count).result()


def _run_work(count: int) -> float:
    """Seconds of `count` calls on every thread at once; those of the slowest thread."""
    timers = [Timer(call, timer=_work[0].now) for call in _work[0].calls]
    if len(timers) == 1:
        return timers[0].timeit(count)
    with ThreadPoolExecutor(len(timers)) as pool:
        return max(pool.map(Timer.timeit, timers, [count] * len(timers)))


def _end_of_work() -> tuple[float, BenchRow]:
    return memory_mb("VmHWM"), _work[0].figures


def fill_normal(arrays: Iterable[NDArray[np.float32]], seed: int) -> None:
    """Overwrite arrays with standard normal numbers."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    for array in arrays:
        array[...] = rng.standard_normal(array.shape)


def training_row(
    environment: str, seed: int | None, score: float, goal: float | None, seconds: float, decisions: float, updates: int
) -> BenchRow:
    """The row of a training in an environment, or of a player who knows its rules."""
    return {
        "environment": environment,
        "seed": seed,
        "score": round(score, 3),
        "goal": goal,
        "seconds": round(seconds, 1),
        "decisions": round(decisions),
        "updates": updates,
        "steps_per_s": round(decisions / seconds) if seconds else 0,
    }
