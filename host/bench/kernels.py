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
from host.bench.options import Size
from host.bench.process import NETS, SAMPLE, Row, Work, clock, fill, medians, run_on_all
from host.config import load_config
from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from host.evaluation.synthetic import INTERVAL_NS, MADE, Options, make_market
from host.machine import memory_mb
from host.training.dataset import new_dataset
from host.training.feature_store import FeatureStore
from host.training.trainer import Trainer
from kernels.market.bars import Bars
from kernels.market.features import HISTORY, WINDOW, features_of, fill_features, new_features, new_work, width
from kernels.ort import Net, Session, evaluate
from models.export import export
from models.params import new_params

ROWS = (1, 8, 64, 512)  # of `bench ort`


# Not cached: numba's own cache would not see an edit of `evaluate`, and kernels of the program live in kernels/.
@njit(nogil=True)
def run_often(net: Net, rows: int, calls: int) -> int:
    """The same call again and again."""
    status = 0
    for _ in range(calls):
        status |= evaluate(net, rows)
    return status


def bench_ort(size: Size) -> list[Row]:
    """Microseconds of a call of the dynamics network (64/256) by threads, memory arena, sharing and rows."""
    graph = export(new_params(NETS["64/256"], seed=0), NETS["64/256"], 1)["dynamics"]
    cases = product((1, 2), (True, False), (True, False))
    return [row for case in cases for row in ort_rows(graph, size, *case)]


def ort_rows(graph: bytes, size: Size, threads: int, arena: bool, shared: bool) -> list[Row]:
    """One arrangement of sessions at every number of rows."""
    sessions = [Session(graph, arena) for _ in range(1 if shared else threads)]
    nets = [sessions[i % len(sessions)].bind(layout_of(graph), ROWS) for i in range(threads)]
    fill((net.x for net in nets), seed=0)
    case = {"threads": threads, "arena": arena, "session": "shared" if shared else "own"}
    found: list[Row] = []
    with ThreadPoolExecutor(threads) as pool:
        for rows in ROWS:
            calls = max(8, 8192 // (rows + 16))
            each = partial(run_often, rows=rows, calls=calls)
            (seconds,) = medians([partial(run_on_all, pool, each, nets)], size.rounds, clock(threads))
            found.append({**case, "rows": rows, "us_per_call": round(seconds / calls * 1e6, 2)})
    return found


def sample_bars() -> Bars:
    """The bundled bars."""
    return read_bars(SAMPLE, ReadOptions(side="ask"))[0]


def bench_features(size: Size) -> Row:
    """The document of `bench features`: all features of a window here, kymatio its scattering alone."""
    spec, bars = new_features(), sample_bars()
    ts = np.arange(HISTORY - 1, min(HISTORY - 1 + size.windows, len(bars.time)))
    one, work = np.zeros((1, width(spec)), np.float32), new_work(spec)
    works: list[Work] = [
        lambda: features_of(spec, bars, ts, size.threads),
        lambda: fill_features(one, spec, bars, ts[:1], work),
        *kymatio_work(bars, ts),
    ]
    many, single, *other = medians(works, size.rounds, clock(size.threads))
    return {
        "windows_per_s": round(len(ts) / many),
        "single_window_us": round(single * 1e6, 1),
        "kymatio_windows_per_s": round(len(ts) / other[0]) if other else None,
    }


def kymatio_work(bars: Bars, ts: NDArray[np.int64]) -> list[Work]:
    """The scattering of the same windows by kymatio, where it is installed."""
    try:  # by its module: the package as a whole does not import beside every SciPy
        frontend = import_module("kymatio.scattering1d.frontend.numpy_frontend")
    except ImportError:
        return []
    returns = np.diff(np.log(bars.close)).astype(np.float32)
    windows = np.stack([returns[t - WINDOW : t] for t in ts])
    with warnings.catch_warnings(action="ignore"):  # it has a word to say about the border
        return [partial(frontend.ScatteringNumPy1D(J=6, Q=4, shape=WINDOW), windows)]


def bench_selfplay(size: Size) -> Row:
    """The document of `bench selfplay`: 360 decisions of 16 simulations a session, features included, on `noise`."""
    # a replay of one cycle and no room for more: a collection computes most of the features that it reads
    block = max(1, size.sessions // 2)
    sessions = [f"train.block={block}", "train.blocks=2", f"train.replay={2 * block}", "train.simulations=16"]
    config = load_config(None, sessions)
    market = make_market("noise", Options(length=size.length))
    data = new_dataset(market.bars, market.extra, config, MADE, INTERVAL_NS, size.threads)
    trainer = Trainer(data, config, size.threads)
    trainer.store = FeatureStore(data, 2 * block * (config.market.session + 1), size.threads, room_mb=0)
    with threadpool_limits(1, "blas"):
        agent = trainer.agent()
        (seconds,) = medians([lambda: trainer.collect(agent)], size.rounds, clock(size.threads))
    return {
        "sessions_per_minute": round(2 * block * 60 / seconds),
        "decisions_per_s": round(2 * block * config.market.session / seconds),
        "threads": size.threads,
        "rss_mb": memory_mb("VmHWM"),
    }
