"""Run an agent over bars it may not have seen, decision by decision, as `act` would."""

from __future__ import annotations

import csv
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.actor import COLUMNS, format_decision, load_acting, new_trader
from host.agent import Setting, reading_of
from host.bars import read_bars
from host.config import GuardConfig
from host.data_check import document_of, print_source
from host.durable import check_apart, check_writable, naming
from host.formats import DataError, ReadOptions, Source
from host.limits import limits_for, limits_text
from host.market_check import check_named, check_scale, check_symbol
from host.parsing import EPOCH_UTC, MICROSECOND
from host.progress import Report, progress, say, silent
from host.rehearsal import print_rehearsal, rehearse
from kernels.bars import Bars
from kernels.market import TRADE, new_accounts
from kernels.ort import check
from kernels.stats import baselines, statistics
from kernels.trader import Log, Trader, trade_through

STRETCH = 1024  # decisions between two reports
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


def trade_bars(
    trader: Trader, bars: Bars, extra: NDArray[np.float32], first: int, stop: int, report: Report = silent
) -> Result:
    """Decide at the closes of bars [first, stop - 1), from flat; the position is closed out at bar stop - 1."""
    n = stop - 1 - first
    log, account, trades = new_log(n, trader.planner.policy.shape[1]), new_accounts(1)[0], 0
    begin = time.perf_counter()
    for i in range(0, n, STRETCH):
        report(i / n, f"{i} of {n} decisions")
        stretch = first, i, min(i + STRETCH, n)
        trades, status = trade_through(log, trader, account, bars, extra, *stretch, trades)
        check(status)
    report(1.0, f"{n} decisions")
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
    with path.open("w", encoding="ascii", newline="") as file:
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
    quiet: bool = False,
    as_json: bool = False,
    guard: GuardConfig | None = None,
    insist: bool = False,
) -> dict[str, Any]:
    """Trade a CSV with a model from the bar that closes at or after `start`; the report, with what `guard` cuts."""
    if decisions is not None:
        check_writable(decisions)
        check_apart(decisions, model, csv or SAMPLE)
    loaded = load_acting(model)
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
    with progress("backtest") as bar:
        result = trade_bars(trader, bars, extra, first, len(bars.time), bar)
    document = report(result, bars, first, loaded.setting, seed=0)
    if guard is not None:
        limits = limits_for(guard, loaded)
        for line in limits_text(limits, loaded):
            say(line)
        document["guards"] = rehearse(loaded, limits, result.log.target, bars, first)
    if as_json:
        print(json.dumps(document))
    elif not quiet:
        print_report(document, sys.stdout)
        if guard is not None:
            print_rehearsal(document["guards"], sys.stdout)
    if decisions is not None:
        with naming(decisions):
            write_decisions(decisions, result, bars, first)
    return document


def sample_reading(reading: ReadOptions) -> ReadOptions:
    """What the bundled file does not say of itself."""
    return replace(reading, side="ask", symbol="EURUSD")


def describe(source: Source) -> None:
    """Say what was recognised and what was assumed, as `data-check` does."""
    print_source(document_of(source, None), sys.stderr)


def first_bar(bars: Bars, start: str | None, source: Source, history: int) -> int:
    """Index of the first decision: after the warm-up and not before `start`."""
    first, span = history - 1, f"{source.path} has {source.first} .. {source.last} UTC"
    if first + 1 >= len(bars.time):
        raise DataError(
            f"{source.path}: no bar to decide at; it has {len(bars.time)} and the warm-up takes {history}"
        )
    if start is None:
        return first
    stamp = parse_start(start)
    if stamp >= bars.time[-1]:
        raise DataError(f"--from {start}: no bar to decide at, it is not before the last one; {span}")
    if stamp < bars.time[0]:
        say(f"--from {start} is before the first bar: beginning after the warm-up; {span}")
    return max(first, int(np.searchsorted(bars.time, stamp)))


def parse_start(text: str) -> int:
    """Nanoseconds since the epoch of `--from`; UTC where it names no zone."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f"--from {text}: write it as 2017-10-02T08:00:00Z") from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return (when - EPOCH_UTC) // MICROSECOND * 1000
