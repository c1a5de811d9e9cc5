"""`bench ort`, `bench features` and `bench selfplay`: the kernels on the bundled bars."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from itertools import product

import numpy as np
from numba import njit
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.onnx_check import layout_of
from host.bench.options import BenchOptions
from host.bench.process import (
    NETWORK_SHAPES,
    SAMPLE_CSV,
    BenchRow,
    TimedCall,
    clock,
    fill_normal,
    map_on_pool,
    median_seconds,
)
from host.config import load_config
from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticOptions, make_market
from host.machine import memory_mb
from host.training.dataset import new_dataset
from host.training.feature_store import FeatureStore
from host.training.trainer import Trainer
from kernels.market.bars import Bars
from kernels.market.features import (
    HISTORY,
    WINDOW,
    compute_features,
    fill_features,
    new_feature_spec,
    new_feature_work,
    num_features,
)
from kernels.ort import BoundGraph, Session, evaluate
from models.export import export
from models.params import new_params

BATCH_ROWS = (1, 8, 64, 512)  # of `bench ort`


# Not cached: numba's own cache would not see an edit of `evaluate`, and kernels of the program live in kernels/.
@njit(nogil=True)
def evaluate_repeatedly(graph: BoundGraph, rows: int, calls: int) -> int:
    """The same call again and again."""
    status = 0
    for _ in range(calls):
        status |= evaluate(graph, rows)
    return status


def bench_ort(options: BenchOptions) -> list[BenchRow]:
    """Microseconds of a call of the dynamics network (64/256) by threads, memory arena, sharing and rows."""
    graph = export(new_params(NETWORK_SHAPES["64/256"], seed=0), NETWORK_SHAPES["64/256"], 1)["dynamics"]
    cases = product((1, 2), (True, False), (True, False))
    return [row for case in cases for row in time_sessions(graph, options, *case)]


def time_sessions(graph: bytes, options: BenchOptions, threads: int, arena: bool, shared: bool) -> list[BenchRow]:
    """One arrangement of sessions at every number of rows."""
    sessions = [Session(graph, arena) for _ in range(1 if shared else threads)]
    nets = [sessions[i % len(sessions)].bind(layout_of(graph), BATCH_ROWS) for i in range(threads)]
    fill_normal((net.x for net in nets), seed=0)
    case = {"threads": threads, "arena": arena, "session": "shared" if shared else "own"}
    found: list[BenchRow] = []
    with ThreadPoolExecutor(threads) as pool:
        for rows in BATCH_ROWS:
            calls = max(8, 8192 // (rows + 16))
            each = partial(evaluate_repeatedly, rows=rows, calls=calls)
            (seconds,) = median_seconds([partial(map_on_pool, pool, each, nets)], options.rounds, clock(threads))
            found.append({**case, "rows": rows, "us_per_call": round(seconds / calls * 1e6, 2)})
    return found


def read_sample_bars() -> Bars:
    """The bundled bars."""
    return read_bars(SAMPLE_CSV, ReadOptions(side="ask"))[0]


def bench_features(options: BenchOptions) -> BenchRow:
    """The document of `bench features`: all features of a window here, kymatio its scattering alone."""
    spec, bars = new_feature_spec(), read_sample_bars()
    ts = np.arange(HISTORY - 1, min(HISTORY - 1 + options.windows, len(bars.time)))
    one, work = np.zeros((1, num_features(spec)), np.float32), new_feature_work(spec)
    works: list[TimedCall] = [
        lambda: compute_features(spec, bars, ts, options.threads),
        lambda: fill_features(one, spec, bars, ts[:1], work),
        *kymatio_calls(bars, ts),
    ]
    many, single, *other = median_seconds(works, options.rounds, clock(options.threads))
    return {
        "windows_per_s": round(len(ts) / many),
        "single_window_us": round(single * 1e6, 1),
        "kymatio_windows_per_s": round(len(ts) / other[0]) if other else None,
    }


def kymatio_calls(bars: Bars, ts: NDArray[np.int64]) -> list[TimedCall]:
    """The scattering of the same windows by kymatio, where it is installed."""
    try:  # by its module: the package as a whole does not import beside every SciPy
        frontend = import_module("kymatio.scattering1d.frontend.numpy_frontend")
    except ImportError:
        return []
    returns = np.diff(np.log(bars.close)).astype(np.float32)
    windows = np.stack([returns[t - WINDOW : t] for t in ts])
    with warnings.catch_warnings(action="ignore"):  # it has a word to say about the border
        return [partial(frontend.ScatteringNumPy1D(J=6, Q=4, shape=WINDOW), windows)]


def bench_selfplay(options: BenchOptions) -> BenchRow:
    """The document of `bench selfplay`: 360 decisions of 16 simulations a session, features included, on `noise`."""
    # a replay of one cycle and no room for more: a collection computes most of the features that it reads
    block = max(1, options.episodes // 2)
    sessions = [
        f"train.num_envs={block}",
        "train.batches_per_iteration=2",
        f"train.replay_capacity={2 * block}",
        "train.num_simulations=16",
    ]
    config = load_config(None, sessions)
    market = make_market("noise", SyntheticOptions(length=options.length))
    data = new_dataset(market.bars, market.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, options.threads)
    trainer = Trainer(data, config, options.threads)
    trainer.feature_store = FeatureStore(
        data, 2 * block * (config.market.episode_length + 1), options.threads, cache_mb=0
    )
    with threadpool_limits(1, "blas"):
        agent = trainer.export_networks()
        (seconds,) = median_seconds([lambda: trainer.collect(agent)], options.rounds, clock(options.threads))
    return {
        "sessions_per_minute": round(2 * block * 60 / seconds),
        "decisions_per_s": round(2 * block * config.market.episode_length / seconds),
        "threads": options.threads,
        "rss_mb": memory_mb("VmHWM"),
    }
