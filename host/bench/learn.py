"""`bench learn`: one learning step of numpy, of its matrix products alone, and of PyTorch."""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.bench.options import BenchOptions
from host.bench.process import MIN_BLOCK_S, NETWORK_SHAPES, BenchRow, TimedCall, clock, fill_normal, map_on_pool
from host.machine import memory_mb
from kernels.learning.replay_buffer import Batch, new_batch
from kernels.market.position import NUM_POSITION_FEATURES
from models.learner import Learner
from models.loss import NUM_CHUNKS
from models.params import ModelShape, new_params

NUM_WARM_UPS = 5  # calls before a block of them is timed


LEARNER_KEYS = {  # keys of `bench learn`
    "swt": "ms_per_step",
    "matmul": "matmul_ms_per_step",
    "torch": "torch_ms_per_step",
    "torch_compile": "torch_compile_ms_per_step",
}


_steps: list[TimedCall] = []  # of a process that measures learning steps


def bench_learn(options: BenchOptions) -> BenchRow:
    """The document of `bench learn`: a step on `options.batch` windows of 5 steps, its matrix products alone, PyTorch's.

    Each in a process of its own, turn by turn.
    """
    torch = ("torch", "torch_compile") if find_spec("torch") else ()
    impls = ("swt", "matmul", *torch)
    with ExitStack() as stack:
        new = partial(ProcessPoolExecutor, 1, get_context("spawn"), init_learner_process)
        pools = [stack.enter_context(new((impl, options.batch_size, options.threads))) for impl in impls]
        turn = partial(measure_steps, threads=options.threads)
        warm = [min(pool.submit(turn, 1).result() for _ in range(NUM_WARM_UPS)) for pool in pools]
        # long turns: a step of megabytes finds its caches cold after the others' turns
        counts = [max(1, round(10 * MIN_BLOCK_S / seconds)) for seconds in warm]
        pairs = list(zip(pools, counts, strict=True))
        turns = [[pool.submit(turn, count).result() / count for pool, count in pairs] for _ in range(options.rounds)]
        peak = pools[0].submit(memory_mb, "VmHWM").result()
    seconds = dict(zip(impls, map(statistics.median, zip(*turns, strict=True)), strict=True))
    ms = {key: round(seconds[impl] * 1e3, 3) if impl in seconds else None for impl, key in LEARNER_KEYS.items()}
    return {**ms, "threads": options.threads, "rss_mb": peak}


def init_learner_process(impl: str, windows: int, threads: int) -> None:
    """Begin of a process that measures learning steps."""
    from models.learner import Learner

    shape, K, setting = NETWORK_SHAPES["64/256"], 5, (1e-4, 1e-2, 1_000_000)
    batch = random_batch(windows, K, shape)
    if impl.startswith("torch"):
        from host.bench.torch_learner import TorchLearner

        twin = TorchLearner(shape, new_params(shape, 0), *setting, threads, impl == "torch_compile")
        _steps.append(lambda: twin.learn(batch))
        return
    threadpool_limits(1, "blas")
    learner = Learner(shape, windows, K, 0, *setting, threads if impl == "swt" else 1)
    if impl == "swt":
        _steps.append(lambda: learner.learn(batch))
    else:
        pool = ThreadPoolExecutor(threads)
        _steps.append(partial(map_on_pool, pool, run_matmuls, record_matmuls(learner, batch, NUM_CHUNKS)))


def measure_steps(count: int, threads: int) -> float:
    """Seconds of `count` steps of a measuring process."""
    now = clock(threads)
    begin = now()
    for _ in range(count):
        _steps[0]()
    return now() - begin


def random_batch(windows: int, K: int, s: ModelShape) -> Batch:
    """Windows of random inputs and targets."""
    batch = new_batch(windows, K, s.features, NUM_POSITION_FEATURES, s.actions)
    rng = np.random.Generator(np.random.Philox(key=0))
    fill_normal((batch.features, batch.position, batch.afterstate_position, batch.reward, batch.value), seed=1)
    batch.action[...] = rng.integers(s.actions, size=batch.action.shape)
    batch.code[...] = rng.integers(s.codes, size=batch.code.shape)
    batch.policy[...] = rng.dirichlet(np.ones(s.actions), size=batch.policy.shape[:2])
    batch.weight[...] = 1.0
    return batch


MatmulArgs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]  # a, b, a @ b


def record_matmuls(learner: Learner, batch: Batch, chunks: int) -> list[list[MatmulArgs]]:
    """The matrix products of a learning step, chunk by chunk: what numpy is given while a learner takes one."""
    found, matmul = list[MatmulArgs](), np.matmul

    def keep(a: Any, b: Any, out: Any) -> None:
        found.append((a, b, out))
        matmul(a, b, out=out)

    with patch.object(np, "matmul", keep):
        learner.learn(batch)
    share = len(found) // chunks  # a learner on one thread takes its chunks one after the other
    return [found[i * share : (i + 1) * share] for i in range(chunks)]


def run_matmuls(products: list[MatmulArgs]) -> None:
    """All products of a chunk."""
    for a, b, out in products:
        np.matmul(a, b, out=out)
