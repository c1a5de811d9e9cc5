"""`bench ort`, `bench features` and `bench selfplay`: the kernels on the bundled bars."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from itertools import product

import numpy as np
from numba import njit
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from host.artifact.networks import OnnxNetworks
from host.artifact.onnx_check import layout_of
from host.bench.options import BenchOptions
from host.bench.process import NETWORK_SHAPES, ROOT, BenchRow, TimedCall, clock, fill_normal, median_seconds
from host.config import Config, load_config
from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticMarket, SyntheticOptions, make_market
from host.machine import memory_mb
from host.training.dataset import new_dataset
from host.training.feature_store import FeatureStore
from host.training.trainer import Trainer
from kernels.market import features
from kernels.market.bars import Bars
from kernels.market.calendar import HOUR_NS
from kernels.ort import BoundGraph, Session, evaluate
from models.export import export
from models.params import new_params

BATCH_ROWS = (1, 8, 64, 512)  # of `bench ort`


# Not cached: numba's own cache would not see an edit of `evaluate`, and kernels of the program live in kernels/.
@njit(nogil=True)
def evaluate_repeatedly(graph: BoundGraph, rows: int, calls: int) -> int:
    """`calls` times the same call; the status of all."""
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
    """One arrangement of ONNX Runtime sessions at every number of rows."""
    sessions = [Session(graph, arena) for _ in range(1 if shared else threads)]
    graphs = [sessions[i % len(sessions)].bind(layout_of(graph), BATCH_ROWS) for i in range(threads)]
    fill_normal((bound.x for bound in graphs), seed=0)
    case = {"threads": threads, "arena": arena, "session": "shared" if shared else "own"}
    document: list[BenchRow] = []
    with ThreadPoolExecutor(threads) as pool:
        for rows in BATCH_ROWS:
            calls = max(8, 8192 // (rows + 16))
            work = partial(pool.map, partial(evaluate_repeatedly, rows=rows, calls=calls), graphs)
            (seconds,) = median_seconds([lambda work=work: list(work())], options.rounds, clock(threads))  # type: ignore[misc]
            document.append({**case, "rows": rows, "us_per_call": round(seconds / calls * 1e6, 2)})
    return document


def read_sample_bars() -> Bars:
    """The bundled bars."""
    return read_bars(ROOT / "host" / "data" / "sample.csv", ReadOptions(side="ask"))[0]


def bench_features(options: BenchOptions) -> BenchRow:
    """The document of `bench features`: all features of a window here, kymatio its scattering alone."""
    spec, bars = features.new_feature_spec(), read_sample_bars()
    ts = np.arange(features.HISTORY - 1, min(features.HISTORY - 1 + options.windows, len(bars.time)))
    one, work = np.zeros((1, features.num_features(spec)), np.float32), features.new_feature_work(spec)
    calls: list[TimedCall] = [
        lambda: features.compute_features(spec, bars, ts, options.threads),
        lambda: features.fill_features(one, spec, bars, ts[:1], work),
        *kymatio_calls(bars, ts),
    ]
    many, single, *kymatio = median_seconds(calls, options.rounds, clock(options.threads))
    theirs = round(len(ts) / kymatio[0]) if kymatio else None
    ours = {"windows_per_s": round(len(ts) / many), "single_window_us": round(single * 1e6, 1)}
    return {**ours, "kymatio_windows_per_s": theirs}


def kymatio_calls(bars: Bars, ts: NDArray[np.int64]) -> list[TimedCall]:
    """The scattering of the same windows by kymatio, where it is installed."""
    try:  # by its module: the package as a whole does not import beside every SciPy
        frontend = import_module("kymatio.scattering1d.frontend.numpy_frontend")
    except ImportError:
        return []
    returns = np.diff(np.log(bars.close)).astype(np.float32)
    windows = np.stack([returns[t - features.WINDOW : t] for t in ts])
    with warnings.catch_warnings(action="ignore"):  # kymatio warns about the border
        return [partial(frontend.ScatteringNumPy1D(J=6, Q=4, shape=features.WINDOW), windows)]


def new_synthetic_trainer(
    name: str, options: SyntheticOptions, config: Config, threads: int
) -> tuple[Trainer, SyntheticMarket]:
    """A trainer at its beginning on a synthetic market, and the market."""
    market = make_market(name, options)
    data = new_dataset(market.bars, market.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, threads)
    return Trainer([data], config, threads), market


def bench_selfplay(options: BenchOptions) -> list[BenchRow]:
    """The document of `bench selfplay`: episodes of 360 decisions, features included; a row a market and search."""
    cases = product(("sample", "noise"), (4, 16))
    return [selfplay_row(market, simulations, options) for market, simulations in cases]


def selfplay_row(market: str, simulations: int, options: BenchOptions) -> BenchRow:
    """How fast episodes on the bundled bars, or on a long synthetic market, are collected."""
    # a replay buffer of one iteration and no room for more: a collection computes most of the features that it reads
    num_envs = max(1, options.episodes // 2)
    episodes = 2 * num_envs
    settings = {"num_envs": num_envs, "batches_per_iteration": 2, "replay_capacity": episodes}
    settings["num_simulations"] = simulations
    config = load_config(None, [f"train.{name}={value}" for name, value in settings.items()])
    if market == "sample":
        bars = read_sample_bars()
        extra = np.empty((len(bars.time), 0), np.float32)
        data = new_dataset(bars, extra, config, SYNTHETIC_INSTRUMENT, HOUR_NS, options.threads)
        trainer = Trainer([data], config, options.threads)
    else:
        trainer, _ = new_synthetic_trainer(market, SyntheticOptions(length=options.length), config, options.threads)
    num_rows = episodes * (config.market.episode_length + 1)
    replay = trainer.markets[0]
    replay.feature_store = FeatureStore(replay.data, num_rows, options.threads, cache_mb=0)
    with threadpool_limits(1, "blas"):
        networks = trainer.export_networks()
        (seconds,) = median_seconds([lambda: play(trainer, networks)], options.rounds, clock(options.threads))
    decisions = episodes * config.market.episode_length
    rates = {"episodes_per_minute": round(episodes * 60 / seconds), "decisions_per_s": round(decisions / seconds)}
    return {"market": market, "n": simulations, **rates, "threads": options.threads, "rss_mb": memory_mb("VmHWM")}


def play(trainer: Trainer, networks: OnnxNetworks) -> None:
    """Collect the episodes of one iteration."""
    market, pool = trainer.markets[0], trainer.pool
    slots = market.start_episodes(trainer.iteration)
    search = trainer.search_config(trainer.config.train.num_simulations)
    market.collect(
        pool, networks, slots, market.search_bars(pool, networks, slots, search)[0], search, trainer.td_lambda
    )
