"""`bench learn`: one learning step of numpy, of its matrix products alone, and of PyTorch."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.bench.options import BenchOptions
from host.bench.process import NETWORK_SHAPES, BenchRow, Work, clock, fill_normal, measure_in_processes
from kernels.learning.replay_buffer import Batch, new_batch
from kernels.market.position import NUM_POSITION_FEATURES
from models.learner import Learner
from models.loss import NUM_CHUNKS
from models.params import ModelShape, new_params

UNROLL_STEPS = 5
OPTIMIZER = (1e-4, 1e-2, 1_000_000)  # learning rate, weight decay, steps of the schedule
IMPLS = {  # and the key of each in the document
    "swt": "ms_per_step", "matmul": "matmul_ms_per_step",
    "torch": "torch_ms_per_step", "torch_compile": "torch_compile_ms_per_step",
}  # fmt: skip
MatmulArgs = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]  # a, b, a @ b


def bench_learn(options: BenchOptions) -> BenchRow:
    """The document of `bench learn`: a step on `options.batch_size` windows, its matrix products alone, PyTorch's step.

    Each is measured in a process of its own, in rounds that take turns.
    """
    impls = [impl for impl in IMPLS if not impl.startswith("torch") or find_spec("torch")]
    setups = [partial(new_learner_work, impl, options.batch_size, options.threads) for impl in impls]
    # long blocks: a step of megabytes finds its caches cold after the others' turns
    results = dict(zip(impls, measure_in_processes(setups, options.rounds, blocks=10), strict=True))
    ms = {key: round(results[impl].seconds * 1e3, 3) if impl in results else None for impl, key in IMPLS.items()}
    return {**ms, "threads": options.threads, "rss_mb": results["swt"].peak_mb}


def new_learner_work(impl: str, windows: int, threads: int) -> Work:
    """What the process of one implementation times."""
    shape = NETWORK_SHAPES["64/256"]
    batch = random_batch(windows, UNROLL_STEPS, shape)
    if impl.startswith("torch"):
        from host.bench.torch_learner import TorchLearner

        twin = TorchLearner(shape, new_params(shape, 0), *OPTIMIZER, threads, impl == "torch_compile")
        return Work([partial(twin.learn, batch)], clock(threads), {})
    threadpool_limits(1, "blas")
    learner = Learner(shape, windows, UNROLL_STEPS, 0, *OPTIMIZER, threads if impl == "swt" else 1)
    if impl == "swt":
        return Work([partial(learner.learn, batch)], clock(threads), {})
    matmuls = record_matmuls(learner, batch, NUM_CHUNKS)
    pool = ThreadPoolExecutor(threads)
    return Work([lambda: list(pool.map(run_matmuls, matmuls))], clock(threads), {})


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


def record_matmuls(learner: Learner, batch: Batch, chunks: int) -> list[list[MatmulArgs]]:
    """The matrix products of a learning step, chunk by chunk: for one step `np.matmul` notes its arguments."""
    products, namespace, matmul = list[MatmulArgs](), vars(np), np.matmul

    def record(a: Any, b: Any, out: Any) -> None:
        products.append((a, b, out))
        matmul(a, b, out=out)

    namespace["matmul"] = record
    try:
        learner.learn(batch)
    finally:
        namespace["matmul"] = matmul
    per_chunk = len(products) // chunks  # a learner on one thread takes its chunks one after the other
    return [products[i * per_chunk : (i + 1) * per_chunk] for i in range(chunks)]


def run_matmuls(products: list[MatmulArgs]) -> None:
    """All products of a chunk."""
    for a, b, out in products:
        np.matmul(a, b, out=out)
