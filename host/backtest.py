"""Run an agent over bars it may not have seen, decision by decision, as `act` would."""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.actor import COLUMNS, format_decision, new_trader
from host.agent import Setting, load_agent, reading_of
from host.bars import read_bars
from host.config import GuardConfig
from host.formats import DataError, ReadOptions, Source
from host.limits import limits_for, limits_text
from host.market_check import check_named, check_scale, check_symbol
from host.progress import say
from host.rehearsal import print_rehearsal, rehearse
from kernels.bars import Bars
from kernels.market import TRADE, new_accounts
from kernels.ort import check
from kernels.stats import baselines, statistics
from kernels.trader import Log, Trader, trade_through

SAMPLE = Path(__file__).with_name("sample.csv")


class Result(NamedTuple):
    """What came of a stretch of decisions."""

    log: Log
    trades: NDArray[np.float64]  # [trades, TRADE]
    seconds: float


def new_log(decisions: int, actions: int) -> Log:
    """Room for `decisions` decisions."""
    n = decisions
    return Log(
        action=np.zeros(n, np.int8),
        target=np.zeros(n),
        value=np.zeros(n),
        policy=np.zeros((n, actions)),
        equity=np.zeros(n),
        trades=np.zeros((n + 1, TRADE)),
    )


def trade_bars(trader: Trader, bars: Bars, extra: NDArray[np.float32], first: int, stop: int) -> Result:
    """Decide at the closes of bars [first, stop - 1), from flat; the position is closed out at bar stop - 1."""
    log = new_log(stop - 1 - first, trader.planner.policy.shape[1])
    begin = time.perf_counter()
    trades, status = trade_through(log, trader, new_accounts(1)[0], bars, extra, first)
    check(status)
    return Result(log, log.trades[:trades], time.perf_counter() - begin)


def report(result: Result, bars: Bars, first: int, setting: Setting, seed: int) -> dict[str, Any]:
    """The document of `backtest --json`."""
    market, n = setting.market, len(result.log.action)
    stretch = first, first + n + 1
    figures = statistics(result.log.equity, result.trades, market.pip_px)
    return {
        **figures,
        "baselines": baselines(bars, *stretch, market, result.trades, seed),
        "bars": n,
        "decisions_per_s": round(n / max(result.seconds, 1e-9)),
    }


def write_decisions(path: Path, result: Result, bars: Bars, first: int) -> None:
    """The decisions in the columns of `act`; latency_us is the mean of the run."""
    n = len(result.log.action)
    latency = round(result.seconds / n * 1e6)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i in range(n):
            log = result.log
            row = (bars.time[first + i], log.action[i], log.target[i], log.value[i], log.policy[i], latency)
            writer.writerow(format_decision(*row))


def print_report(document: dict[str, Any], out: IO[str]) -> None:
    """The report as a table of net pips, the agent beside its baselines."""
    rows = {"agent": document["net_pips"], **document["baselines"]}
    widest = max(abs(v) for v in rows.values()) or 1.0
    print(f"{'':>10} {'net pips':>10}", file=out)
    for name, pips in rows.items():
        bar = ("-" if pips < 0 else "+") * round(30 * abs(pips) / widest)
        print(f"{name:>10} {pips:>10.1f} {bar}", file=out)
    share, drawdown = document["share_in_market"], document["max_drawdown_pips"]
    print(
        f"{document['trades']} trades in {document['bars']} bars, in the market {share:.1%} of the time, "
        f"largest drawdown {drawdown:.1f} pips",
        file=out,
    )


def backtest_csv(
    csv: Path | None,
    model: Path,
    reading: ReadOptions,
    start: str | None,
    decisions: Path | None,
    quiet: bool,
    guard: GuardConfig | None = None,
    insist: bool = False,
) -> dict[str, Any]:
    """Trade a CSV with a model from the bar that closes at or after `start`; the report, with what `guard` cuts."""
    loaded = load_agent(model)
    path = str(csv or SAMPLE)
    reading = sample_reading(reading) if csv is None else reading
    if not insist:
        check_named(loaded, reading, path)
    bars, source = read_bars(path, reading_of(loaded, reading, Path(path).name))
    describe(source)
    if not insist:
        check_symbol(loaded, source.instrument.symbol, path)
        check_scale(loaded, bars.close, bars.high - bars.low, path)
    first = first_bar(bars, start, source, loaded.agent.sizes.history)
    trader = new_trader(loaded.agent, loaded.setting, loaded.search)
    extra = np.zeros((len(bars.time), 0), np.float32)
    result = trade_bars(trader, bars, extra, first, len(bars.time))
    if decisions is not None:
        write_decisions(decisions, result, bars, first)
    document = report(result, bars, first, loaded.setting, seed=0)
    if not quiet:
        print_report(document, sys.stdout)
    if guard is not None:
        limits = limits_for(guard, loaded)
        for line in limits_text(limits, loaded):
            say(line)
        document["guards"] = rehearse(loaded, limits, result.log.target, bars, first)
        if not quiet:
            print_rehearsal(document["guards"], sys.stdout)
    return document


def sample_reading(reading: ReadOptions) -> ReadOptions:
    """What the bundled file does not say of itself."""
    return replace(reading, side="ask", symbol="EURUSD")


def describe(source: Source) -> None:
    """Say what was recognised and what was assumed."""
    say(
        f"{source.path}: {source.format}, {source.rows} bars of {source.interval_s} s, "
        f"{source.first} .. {source.last} UTC\n  side {source.side}, clock {source.timezone}, "
        f"stamps mark the {source.label}, spread {source.spread}"
    )
    for note in source.notes:
        say(f"  {note}")


def first_bar(bars: Bars, start: str | None, source: Source, history: int) -> int:
    """Index of the first decision: after the warm-up and not before `start`."""
    first = history - 1
    if start is not None:
        try:
            stamp = np.datetime64(start.removesuffix("Z"), "ns").astype(np.int64)
        except ValueError:
            raise DataError(f"--from {start}: write it as 2017-10-02T08:00:00Z") from None
        first = max(first, int(np.searchsorted(bars.time, stamp)))
    if first + 1 >= len(bars.time):
        raise DataError(
            f"{source.path}: no bar to decide at; it has {len(bars.time)} and the warm-up takes {history}"
        )
    return first
