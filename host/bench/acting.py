"""`bench act` and `bench memory`: the program as a process of its own."""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from host.artifact.manifest import load_model
from host.bench.kernels import read_sample_bars
from host.bench.options import BenchOptions
from host.bench.process import ROOT, BenchRow, user_environment
from host.console import log
from host.data.parsing import format_utc
from host.live.live_agent import random_walk
from host.machine import cpu_s, memory_mb
from host.processes import SAMPLE_INTERVAL_S
from kernels.market.bars import Bars
from kernels.market.features import HISTORY

NUM_FOLLOWED = 64  # decisions of a followed file
PAUSE_S, SETTLE_S = 0.005, 0.3  # after a decision, until its journal and files are written
SMALL_TRAINING = (
    "train.num_envs=2 train.batches_per_iteration=1 train.updates_per_iteration=2 train.batch_size=32 "
    "train.replay_capacity=8"
).split()


def swt_command(*arguments: str | Path, settings: Iterable[str] = ()) -> list[str]:
    """The command line of a process of its own."""
    options = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, str(ROOT / "swt.py"), *map(str, arguments), *options]


@contextmanager
def child_process(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A child with its stdout on a pipe, killed on leaving."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=user_environment()) as child:
        try:
            yield child
        finally:
            child.kill()


def bench_act(options: BenchOptions) -> BenchRow:
    """The document of `bench act`: `act --out` with 32 simulations, fed bar by bar, alone and beside a busy process."""
    with tempfile.TemporaryDirectory() as folder:
        feed, run, out = (Path(folder) / name for name in ("feed.csv", "run", "out"))
        settings = (*SMALL_TRAINING, "search.num_simulations=32")
        subprocess.run(swt_command("train", "--out", run, "--episodes", "1", settings=settings), check=True)
        lines = random_walk_lines(run / "model.swt", HISTORY + max(NUM_FOLLOWED, options.decisions))
        feed.write_text("".join(lines[: HISTORY + NUM_FOLLOWED]), encoding="ascii")
        acting = "--model", run / "model.swt", "--out", out
        following = swt_command("act", feed, *acting, "--follow")
        runs = list[tuple[float, float, float]]()
        for _ in range(1 + min(options.rounds, 3)):
            shutil.rmtree(out, ignore_errors=True)
            runs.append(measure_follow(following, options.idle_s))
        first_s, rss_mb, idle = zip(*runs[1:], strict=True)  # the first run warms the caches, of bytecode too
        lines = lines[: HISTORY + options.decisions]
        quiet = measure_round_trips(swt_command("act", "-", *acting[:3], Path(folder) / "quiet"), lines)
        with child_process([sys.executable, "-c", "while True: pass"]):
            loaded = measure_round_trips(swt_command("act", "-", *acting[:3], Path(folder) / "loaded"), lines)
    first, idle_percent = round(statistics.median(first_s), 3), round(statistics.median(idle), 2)
    start = {"first_decision_s": first, "rss_mb": max(rss_mb), "cpu_percent_idle": idle_percent}
    return {**quiet, "loaded": loaded, **start}


def random_walk_lines(model: Path, bars: int) -> list[str]:
    """A feed of a random walk that the model can trade, header and lines."""
    market = load_model(model).market_spec.market
    lines = ["time,open,high,low,close,volume\n"]
    for bar in random_walk(market, bars):
        prices = ",".join(f"{price:.5f}" for price in bar[1:5])
        lines.append(f"{format_utc(bar.time - market.interval_ns)},{prices},1\n")
    return lines


def measure_round_trips(arguments: list[str], lines: list[str]) -> BenchRow:
    """Microseconds from writing a line to the stdin of `act` until its decision is read, without the first decision."""
    latency_us = list[float]()
    pipe = subprocess.PIPE
    # bare pipes: what buffers and decoding on this side take is not the child's latency
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, bufsize=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("".join(lines[:HISTORY]).encode())
        await_decision(child.stdout)
        for line in [line.encode() for line in lines[HISTORY:]]:
            time.sleep(PAUSE_S)
            begin = time.perf_counter()
            child.stdin.write(line)
            await_decision(child.stdout)
            latency_us.append((time.perf_counter() - begin) * 1e6)
        child.stdin.close()
    p50, p99, longest = np.quantile(latency_us[1:], (0.5, 0.99, 1.0)).round(1).tolist()
    return {"p50_us": p50, "p99_us": p99, "max_us": longest}


def await_decision(pipe: IO[bytes]) -> None:
    """Read one line; raises RuntimeError if the pipe ends before it."""
    answer = b""
    while not answer.endswith(b"\n"):
        part = pipe.read(4096)
        if not part:
            raise RuntimeError("act ended before its last decision")
        answer += part


def measure_follow(arguments: list[str], idle_s: float) -> tuple[float, float, float]:
    """Start `act --follow`, take its decisions, leave it waiting: (first decision s, peak RSS MB, idle CPU %)."""
    begin = time.perf_counter()
    with child_process(arguments) as child:
        assert child.stdout is not None
        rows = [child.stdout.readline() for _ in range(2)]  # header, first decision
        first_s = time.perf_counter() - begin
        rows += [child.stdout.readline() for _ in range(NUM_FOLLOWED - 1)]
        if not rows[-1]:
            raise RuntimeError("act ended before its last decision")
        time.sleep(SETTLE_S)
        before = cpu_s(child.pid)
        time.sleep(idle_s)
        idle = 100 * (cpu_s(child.pid) - before) / idle_s
        return first_s, memory_mb("VmHWM", child.pid), idle


def bench_memory(options: BenchOptions) -> BenchRow:
    """The document of `bench memory`: the peak of `train` on a long file of one-minute bars."""
    log(f"{options.bars} M1 bars drawn from the bundled hours, their moves over sqrt(60): not a real market")
    with tempfile.TemporaryDirectory() as folder:
        csv, run = Path(folder) / "EURUSD_M1.csv", Path(folder) / "run"
        write_m1_csv(csv, read_sample_bars(), options.bars)
        budget = "--minutes", str(options.minutes), "--threads", str(options.threads)
        with child_process(swt_command("train", csv, "--out", run, *budget, settings=options.settings)) as child:
            anonymous, resident = 0.0, 0.0
            while child.poll() is None:
                anonymous = max(anonymous, memory_mb("RssAnon", child.pid))
                resident = max(resident, memory_mb("VmHWM", child.pid))
                time.sleep(SAMPLE_INTERVAL_S)
        if child.returncode != 0:
            raise RuntimeError(f"train ended with {child.returncode}")
    return {"rss_anon_mb": anonymous, "rss_mb": resident, "bars": options.bars}


def write_m1_csv(path: Path, hours: Bars, count: int) -> None:
    """`count` one-minute bars around the clock: hours drawn with replacement, their log moves over sqrt(60)."""
    pick = np.random.Generator(np.random.Philox(key=0)).integers(len(hours.time), size=count)
    columns = hours.high, hours.low, hours.close
    high, low, move = (np.log(column / hours.open)[pick] / np.sqrt(60) for column in columns)
    close = np.cumsum(move - move.mean())
    start = np.concatenate([[0.0], close[:-1]])
    levels = {"open": start, "high": np.maximum(start + high, close), "low": np.minimum(start + low, close)}
    prices = {k: np.round(hours.close[0] * np.exp(v), 5) for k, v in {**levels, "close": close}.items()}
    time = pd.date_range("2020-01-01", periods=count, freq="min").strftime("%Y-%m-%dT%H:%M:%SZ")
    pd.DataFrame({"time": time, **prices, "volume": 1}).to_csv(path, index=False)
