"""`bench`: what the program costs on this box, measured now; every figure of the README comes out of here.

A figure on 1 thread is CPU time, which a busy machine disturbs little; on more threads it is wall time.  What is
compared is measured in turns within one run, and given as the median of the rounds.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from numba import njit
from numpy.typing import NDArray

# What weighs (pandas, onnx, the trainer) is imported where it is used: a measuring process must not carry it.
from host.bench_enhancements import bench_enhancements, print_enhancements
from host.bench_exogenous import bench_exogenous
from host.bench_rezero import bench_rezero
from host.bench_search import (
    BLOCK_S,
    NETS,
    SEARCHES,
    Work,
    bench_search,
    clock,
    fill,
    medians,
    print_search,
)
from host.bench_widening import bench_widening
from host.enhancement_run import Effort
from host.machine import cores, cpu_s, load_average, memory_mb
from host.onnx_check import layout_of
from host.progress import say
from kernels.bars import Bars
from kernels.features import HISTORY, WINDOW, features_of, fill_features, new_features, new_work, width
from kernels.ort import Net, Session, evaluate
from kernels.position import FEATURES
from kernels.replay import Batch, new_batch
from models.net import Shape, new_params

if TYPE_CHECKING:
    from models.unroll import Learner

ROOT = Path(__file__).parents[1]
SAMPLE = Path(__file__).with_name("sample.csv")
ROWS = (1, 8, 64, 512)  # of `bench ort`
WARM_UPS = 5  # calls before a block of them is timed
LEARNERS = {  # keys of `bench learn`
    "swt": "ms_per_step",
    "matmul": "matmul_ms_per_step",
    "torch": "torch_ms_per_step",
    "torch_compile": "torch_compile_ms_per_step",
}
FOLLOWED = 64  # decisions of a followed file
PAUSE_S, SETTLE_S = 0.005, 0.3  # after a decision, until what follows from it is done
SAMPLE_EVERY_S = 0.2  # of another process's memory
QUICK = ["train.block=2", "train.blocks=1", "train.steps=2", "train.batch=32", "train.replay=8"]
Row = dict[str, Any]


class BenchError(ValueError):
    """There is nothing of this name to measure."""

    exit_code = 2


@dataclass(frozen=True)
class Size:
    """How much to measure; the defaults are those of a published figure."""

    threads: int = 1
    rounds: int = 7
    searches: tuple[str, ...] = SEARCHES
    nets: tuple[str, ...] = tuple(NETS)
    roots: tuple[int, ...] = (1, 8, 64, 256)
    simulations: tuple[int, ...] = (16, 32, 50)
    threads_tried: tuple[int, ...] = (1, 2)  # of `search`
    forests: tuple[tuple[int, int], ...] = ((1, 1), (1, 64), (8, 64))  # threads and roots of `widening`
    sessions: int = 32
    chains: int = 100  # of `exogenous`
    windows: int = 2048
    length: int = 60_000  # bars of the market of `selfplay`
    sweeps: tuple[int, ...] = (4, 8, 16)  # simulations of `rezero`
    cycles: int = 8  # that the agent of `rezero` has learnt
    batch: int = 256
    decisions: int = 10_000  # of `act`
    bars: int = 1_300_000
    minutes: float = 1.0
    idle_s: float = 10.0
    settings: tuple[str, ...] = ()  # of the training in `memory`
    seeds: int = 5  # of `enhancements`
    only: str | None = None  # one of them
    out: Path = Path("runs/enhancements")
    effort: Effort = field(default_factory=Effort)


# Not cached: numba's own cache would not see an edit of `evaluate`, and kernels of the program live in kernels/.
@njit(nogil=True)
def run_often(net: Net, rows: int, calls: int) -> int:
    """The same call again and again."""
    status = 0
    for _ in range(calls):
        status |= evaluate(net, rows)
    return status


_works: list[Work] = []  # of a process that measures learning steps


def bench_ort(size: Size) -> list[Row]:
    """Microseconds of a call of the dynamics network (64/256) by threads, memory arena, sharing and rows."""
    from models.export import export

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


def run_on_all(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """work(item) of every item, on the threads of the pool."""
    return list(pool.map(work, items))


def sample_bars() -> Bars:
    """The bundled bars."""
    from host.bars import read_bars
    from host.formats import ReadOptions

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
    from threadpoolctl import threadpool_limits

    from host.config import load_config
    from host.dataset import FeatureStore, new_dataset
    from host.synthetic import INTERVAL_NS, MADE, Options, make_market
    from host.trainer import Trainer

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


def bench_learn(size: Size) -> Row:
    """The document of `bench learn`: a step on `size.batch` windows of 5 steps, its matrix products alone, PyTorch's.

    Each in a process of its own, turn by turn.
    """
    torch = ("torch", "torch_compile") if find_spec("torch") else ()
    impls = ("swt", "matmul", *torch)
    with ExitStack() as stack:
        new = partial(ProcessPoolExecutor, 1, get_context("spawn"), start_learning)
        pools = [stack.enter_context(new((impl, size.batch, size.threads))) for impl in impls]
        turn = partial(learning_seconds, threads=size.threads)
        warm = [min(pool.submit(turn, 1).result() for _ in range(WARM_UPS)) for pool in pools]
        # long turns: a step of megabytes finds its caches cold after the others' turns
        counts = [max(1, round(10 * BLOCK_S / seconds)) for seconds in warm]
        pairs = list(zip(pools, counts, strict=True))
        turns = [
            [pool.submit(turn, count).result() / count for pool, count in pairs] for _ in range(size.rounds)
        ]
        peak = pools[0].submit(memory_mb, "VmHWM").result()
    seconds = dict(zip(impls, map(statistics.median, zip(*turns, strict=True)), strict=True))
    ms = {key: round(seconds[impl] * 1e3, 3) if impl in seconds else None for impl, key in LEARNERS.items()}
    return {**ms, "threads": size.threads, "rss_mb": peak}


def start_learning(impl: str, windows: int, threads: int) -> None:
    """Begin of a process that measures learning steps."""
    from threadpoolctl import threadpool_limits

    from models.unroll import CHUNKS, Learner

    shape, K, setting = NETS["64/256"], 5, (1e-4, 1e-2, 1_000_000)
    batch = random_batch(windows, K, shape)
    if impl.startswith("torch"):
        from host.bench_torch import TorchLearner

        twin = TorchLearner(shape, new_params(shape, 0), *setting, threads, impl == "torch_compile")
        _works.append(lambda: twin.learn(batch))
        return
    threadpool_limits(1, "blas")
    learner = Learner(shape, windows, K, 0, *setting, threads if impl == "swt" else 1)
    if impl == "swt":
        _works.append(lambda: learner.learn(batch))
    else:
        pool = ThreadPoolExecutor(threads)
        _works.append(partial(run_on_all, pool, multiply, products_of(learner, batch, CHUNKS)))


def learning_seconds(count: int, threads: int) -> float:
    """Seconds of `count` steps of a measuring process."""
    now = clock(threads)
    begin = now()
    for _ in range(count):
        _works[0]()
    return now() - begin


def random_batch(windows: int, K: int, s: Shape) -> Batch:
    """Windows of random inputs and targets."""
    batch = new_batch(windows, K, s.features, FEATURES, s.actions)
    rng = np.random.Generator(np.random.Philox(key=0))
    fill((batch.x, batch.position, batch.after, batch.reward, batch.value), seed=1)
    batch.action[...] = rng.integers(s.actions, size=batch.action.shape)
    batch.code[...] = rng.integers(s.codes, size=batch.code.shape)
    batch.policy[...] = rng.dirichlet(np.ones(s.actions), size=batch.policy.shape[:2])
    batch.weight[...] = 1.0
    return batch


Product = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]  # a, b, a @ b


def products_of(learner: Learner, batch: Batch, chunks: int) -> list[list[Product]]:
    """The matrix products of a learning step, chunk by chunk: what numpy is given while a learner takes one."""
    found, matmul = list[Product](), np.matmul

    def keep(a: Any, b: Any, out: Any) -> None:
        found.append((a, b, out))
        matmul(a, b, out=out)

    with patch.object(np, "matmul", keep):
        learner.learn(batch)
    share = len(found) // chunks  # a learner on one thread takes its chunks one after the other
    return [found[i * share : (i + 1) * share] for i in range(chunks)]


def multiply(products: list[Product]) -> None:
    """All products of a chunk."""
    for a, b, out in products:
        np.matmul(a, b, out=out)


def command(*arguments: str | Path, settings: Iterable[str] = ()) -> list[str]:
    """The command line of a process of its own."""
    options = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "swt.py"), *map(str, arguments), *options]


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A child with its stdout on a pipe, ended at the end."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def bench_act(size: Size) -> Row:
    """The document of `bench act`: `act --out` with 32 simulations, fed bar by bar, alone and beside a busy process."""
    with tempfile.TemporaryDirectory() as folder:
        feed, run, out = (Path(folder) / name for name in ("feed.csv", "run", "out"))
        settings = (*QUICK, "search.simulations=32")
        subprocess.run(command("train", "--out", run, "--sessions", "1", settings=settings), check=True)
        lines = noise_lines(run / "model.swt", HISTORY + max(FOLLOWED, size.decisions))
        feed.write_text("".join(lines[: HISTORY + FOLLOWED]), encoding="ascii")
        acting = "--model", run / "model.swt", "--out", out
        following = command("act", feed, *acting, "--follow")
        runs = list[tuple[float, float, float]]()
        for _ in range(1 + min(size.rounds, 3)):
            shutil.rmtree(out, ignore_errors=True)
            runs.append(follow(following, size.idle_s))
        first_s, rss_mb, idle = zip(*runs[1:], strict=True)  # the first one warmed the cache up
        lines = lines[: HISTORY + size.decisions]
        quiet = round_trips(command("act", "-", *acting[:3], Path(folder) / "quiet"), lines)
        with running([sys.executable, "-c", "while True: pass"]):
            loaded = round_trips(command("act", "-", *acting[:3], Path(folder) / "loaded"), lines)
    return {
        **quiet,
        "loaded": loaded,
        "first_decision_s": round(statistics.median(first_s), 3),
        "rss_mb": max(rss_mb),
        "cpu_percent_idle": round(statistics.median(idle), 2),
    }


def noise_lines(model: Path, bars: int) -> list[str]:
    """A feed of a random walk that the model can trade, header and lines."""
    from host.actor import random_walk
    from host.agent import load_agent
    from host.parsing import iso

    market = load_agent(model).setting.market
    lines = ["time,open,high,low,close,volume\n"]
    for bar in random_walk(market, bars):
        prices = ",".join(f"{price:.5f}" for price in bar[1:5])
        lines.append(f"{iso(bar.time - market.interval_ns)},{prices},1\n")
    return lines


def round_trips(arguments: list[str], lines: list[str]) -> Row:
    """Microseconds from writing a line to the stdin of `act` until its decision is read; the first one left out."""
    found = list[float]()
    pipe = subprocess.PIPE
    # bare pipes: what buffers and decoding on this side take is not the child's latency
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, bufsize=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("".join(lines[:HISTORY]).encode())
        read_answer(child.stdout)
        for line in [line.encode() for line in lines[HISTORY:]]:
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            child.stdin.write(line)
            read_answer(child.stdout)
            found.append((time.perf_counter() - begin) * 1e6)
        child.stdin.close()
    p50, p99, most = np.quantile(found[1:], (0.5, 0.99, 1.0)).round(1).tolist()
    return {"p50_us": p50, "p99_us": p99, "max_us": most}


def read_answer(pipe: IO[bytes]) -> None:
    """Wait for a line."""
    answer = b""
    while not answer.endswith(b"\n"):
        part = pipe.read(4096)
        if not part:
            raise RuntimeError("act ended before its last decision")
        answer += part


def follow(arguments: list[str], idle_s: float) -> tuple[float, float, float]:
    """Start `act --follow`, take its decisions, leave it waiting: (first decision s, peak RSS MB, idle CPU %)."""
    begin = time.perf_counter()
    with running(arguments) as child:
        assert child.stdout is not None
        rows = [child.stdout.readline() for _ in range(2)]  # header, first decision
        first_s = time.perf_counter() - begin
        rows += [child.stdout.readline() for _ in range(FOLLOWED - 1)]
        if not rows[-1]:
            raise RuntimeError("act ended before its last decision")
        time.sleep(SETTLE_S)
        before = cpu_s(child.pid)
        time.sleep(idle_s)
        idle = 100 * (cpu_s(child.pid) - before) / idle_s
        return first_s, memory_mb("VmHWM", child.pid), idle


def bench_memory(size: Size) -> Row:
    """The document of `bench memory`: the peak of `train` on a long file of one-minute bars."""
    say(f"{size.bars} M1 bars drawn from the bundled hours, their moves over sqrt(60): not a real market")
    with tempfile.TemporaryDirectory() as folder:
        csv, run = Path(folder) / "EURUSD_M1.csv", Path(folder) / "run"
        write_minutes(csv, sample_bars(), size.bars)
        budget = "--minutes", str(size.minutes), "--threads", str(size.threads)
        with running(command("train", csv, "--out", run, *budget, settings=size.settings)) as child:
            anonymous, resident = 0.0, 0.0
            while child.poll() is None:
                anonymous = max(anonymous, memory_mb("RssAnon", child.pid))
                resident = max(resident, memory_mb("VmHWM", child.pid))
                time.sleep(SAMPLE_EVERY_S)
        if child.returncode != 0:
            raise RuntimeError(f"train ended with {child.returncode}")
    return {"rss_anon_mb": anonymous, "rss_mb": resident, "bars": size.bars}


def write_minutes(path: Path, hours: Bars, count: int) -> None:
    """`count` one-minute bars around the clock: hours drawn with replacement, their log moves over sqrt(60)."""
    import pandas as pd

    pick = np.random.Generator(np.random.Philox(key=0)).integers(len(hours.time), size=count)
    columns = hours.high, hours.low, hours.close
    high, low, move = (np.log(column / hours.open)[pick] / np.sqrt(60) for column in columns)
    close = np.cumsum(move - move.mean())
    start = np.concatenate([[0.0], close[:-1]])
    levels = {"open": start, "high": np.maximum(start + high, close), "low": np.minimum(start + low, close)}
    prices = {k: np.round(hours.close[0] * np.exp(v), 5) for k, v in {**levels, "close": close}.items()}
    time = pd.date_range("2020-01-01", periods=count, freq="min").strftime("%Y-%m-%dT%H:%M:%SZ")
    pd.DataFrame({"time": time, **prices, "volume": 1}).to_csv(path, index=False)


BENCHES = {
    work.__name__.removeprefix("bench_"): work
    for work in (bench_search, bench_features, bench_selfplay, bench_learn, bench_act, bench_memory, bench_ort,
                 bench_widening, bench_rezero, bench_exogenous, bench_enhancements)
}  # fmt: skip


def bench(what: str, size: Size) -> Any:
    """The document of `bench WHAT --json`; raises BenchError on an unknown name."""
    if what not in BENCHES:
        raise BenchError(f"bench {what}: there is {', '.join(BENCHES)}")
    load, count = load_average(), cores()
    busy = ": too busy to trust, more than half of the cores" if load > count / 2 else ""
    say(f"load average {load:.2f} on {count} cores{busy}")
    return BENCHES[what](size)


PRINTERS = {"search": print_search, "enhancements": print_enhancements}


def print_bench(what: str, document: Any, out: IO[str]) -> None:
    """A table for people; some benches have their own."""
    rows = document if isinstance(document, list) else [document]
    if what in PRINTERS:
        PRINTERS[what](document, out)
        return
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.rjust(w) for key, w in widths.items()), file=out)
    for row in rows:
        print("  ".join(str(row[key]).rjust(w) for key, w in widths.items()), file=out)
