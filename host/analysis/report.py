"""`build_report`: all that is said of records of trading, as one document; its files.

The document follows from the records and from `ReportContext`.  `report.html` follows from the files beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.analysis.baselines import baseline_records
from host.analysis.costs import break_even_spread, cost_sensitivity, costs_taken
from host.analysis.opportunity import opportunity
from host.analysis.record import Floats, TradingRecord, daily_returns, record_of
from host.analysis.significance import bootstrap_intervals, deflated_sharpe, judge, min_track_record
from host.analysis.statistics import days_per_year, format_time, summarise, trade_durations
from host.analysis.summary import SCHEMA, ReportError, bokeh_needed
from host.atomic import add_path_to_errors, atomic_write, write_atomic
from host.console import log, program_command
from host.evaluation.backtest import BacktestResult
from host.machine import trim_heap
from kernels.live.policy_step import PolicyState
from kernels.market.bars import SECOND_NS, Bars
from kernels.market.calendar import DAY_NS, HOUR_NS
from kernels.market.ledger import ENTRY_BAR, ENTRY_PX, EXIT_BAR, EXIT_PX, FINANCING_PX, PROFIT_PX, TRADE_SIDE
from kernels.market.statistics import compute_statistics

MAX_LEARNING_ROWS = 200
CSV_PIECE = 4096  # rows
LEARNING = ("episodes", "reward_per_bar", "exposure", "policy", "value", "chance", "chance_nll", "direction_z")
ANALYSIS_FILES = ("report.json", "trades.csv", "equity.csv", "daily.csv", "report.html")
TRADE_COLUMNS = (  # as `_trades` of backtesting.py
    *("EntryTime", "ExitTime", "Size", "EntryPrice", "ExitPrice", "PnL [pips]", "Financing [pips]", "Duration [s]"),
)
EQUITY_COLUMNS = ("Time", "Close", "Size", "Equity [pips]")
DAILY_COLUMNS = ("Day", "Return", "Net [pips]")


class ReportContext(NamedTuple):
    """What records of trading do not tell."""

    source: dict[str, Any]  # "title", and what was traded by whom
    seed: int = 0  # of the bootstrap, of the random baseline and of skipped entries
    trials: int = 1  # agents of which this one is the best
    trial_sharpe_variance: float | None = None  # of their daily Sharpe ratios
    overfitting: float | None = None  # `backtest_overfitting` of their returns
    caveat: str | None = None  # why the verdict may not hold
    opportunity: dict[str, Any] | None = None
    rivals: Mapping[str, Sequence[TradingRecord]] = MappingProxyType({})  # other agents on the same stretches
    metrics: Sequence[dict[str, Any]] = ()  # a row an iteration of training


def report_backtest(
    result: BacktestResult,
    policy: PolicyState,
    bars: Bars,
    first: int,
    context: ReportContext,
    direction_z: float | None,
) -> tuple[dict[str, Any], TradingRecord]:
    """The document of a backtest that began at bar `first`, with its speed; and its record.

    `policy` is the agent as `act` has it, to ask what it sees; `direction_z` is that of `opportunity`.
    """
    record, n = record_of(result, bars, first, policy.market), len(result.log.action)
    seen = opportunity(policy, bars, np.zeros((len(bars.time), 0), np.float32), first, first + n + 1, direction_z)
    speed = {"bars": n, "decisions_per_s": round(n / max(result.seconds, 1e-9))}
    brief = compute_statistics(record.equity, record.trades, policy.market.pip_px)
    return {**brief, **speed, **build_report([record], context._replace(opportunity=seen))}, record


def build_report(records: Sequence[TradingRecord], context: ReportContext) -> dict[str, Any]:
    """The document of `records`, the stretches of one test in order; several stretches are folds."""
    joined, seed = join_records(records), context.seed
    first, last = span(joined)
    day, returns = daily_returns(joined)
    luck = max(context.trial_sharpe_variance or 0.0, 1.0 / max(len(day) - 1, 1))  # as `judge` takes it
    verdict = judge(returns, context.trials, luck, context.overfitting, days_per_year(day), seed)
    rivals = {name: figures(join_records(found)) for name, found in joint_baselines(records, seed)}
    rivals |= {name: figures(join_records(found)) for name, found in context.rivals.items()}
    rows = zip(*(cost_sensitivity(record, seed) for record in records), strict=True)
    return {
        "schema": SCHEMA,
        "source": context.source,
        "span": {"first": first, "last": last, "bars": len(joined.target), "days": len(day)},
        "verdict": {"verdict": verdict.verdict, "reasons": [*verdict.reasons, *filter(None, [context.caveat])]},
        "statistics": summarise(joined),
        "intervals": intervals(joined, seed),
        "significance": {
            "trials": context.trials,
            "deflated_sharpe": deflated_sharpe(returns, context.trials, luck),
            "min_track_record_days": min_track_record(returns),
            "backtest_overfitting": context.overfitting,
        },
        "baselines": rivals,
        "costs": {
            "taken": costs_taken(joined),
            "break_even_spread_pips": break_even_spread(joined),
            "sensitivity": [
                {"name": row[0]["name"], "net_pips": sum(part["net_pips"] for part in row)} for row in rows
            ],
        },
        "opportunity": context.opportunity,
        "actions": action_shares(joined.target),
        "months": months(joined),
        "hours": hours(joined).tolist(),
        "folds": [fold(record, seed) for record in records] if len(records) > 1 else [],
        "learning": learning_curves(context.metrics),
    }


def joint_baselines(records: Sequence[TradingRecord], seed: int) -> Iterator[tuple[str, Sequence[TradingRecord]]]:
    """Each baseline on the stretches `records`; no more than one is in memory."""
    for found in zip(*(baseline_records(record, seed) for record in records), strict=True):
        names, baselines = zip(*found, strict=True)
        yield names[0], baselines
        trim_heap()


def span(record: TradingRecord) -> tuple[str, str]:
    """The first and the last close."""
    return format_time(int(record.bars.time[0])), format_time(int(record.bars.time[-1]))


def join_records(records: Sequence[TradingRecord]) -> TradingRecord:
    """The stretches as one: equity and trades run on.  Its targets cannot be replayed: each stretch is closed out."""
    if len(records) == 1:
        return records[0]
    first, trades, equity, bars, pips = records[0], list[Floats](), list[Floats](), 0, 0.0
    for record in records:
        trades.append(record.trades + np.isin(np.arange(record.trades.shape[1]), (ENTRY_BAR, EXIT_BAR)) * bars)
        equity.append(record.equity + pips)
        bars, pips = bars + len(record.target), float(equity[-1][-1])
    columns = (
        np.concatenate([column[0][:1], *(part[1:] for part in column)])
        for column in zip(*(record.bars for record in records), strict=True)
    )
    target = np.concatenate([record.target for record in records])
    return TradingRecord(Bars._make(columns), target, np.concatenate(equity), np.concatenate(trades), first.market)


def intervals(record: TradingRecord, seed: int) -> dict[str, tuple[float, float]]:
    """95 % intervals by the names of `summarise`; the profit factor is that of days."""
    day, returns = daily_returns(record)
    if len(returns) < 2:
        return {}
    pips = float(record.bars.close[0]) / record.market.pip_px
    scale = {
        "mean": ("Net Profit [pips]", pips * len(returns)),
        "sharpe": ("Sharpe Ratio", math.sqrt(days_per_year(day))),
        "max_drawdown": ("Max. Drawdown [pips]", pips),
        "profit_factor": ("Profit Factor (Days)", 1.0),
    }
    found = bootstrap_intervals(returns, seed).items()
    return {scale[key][0]: (low * scale[key][1], high * scale[key][1]) for key, (low, high) in found if low < high}


def figures(record: TradingRecord) -> dict[str, Any]:
    """What a table of policies shows of one."""
    found = summarise(record)
    return {
        "net_pips": found["Net Profit [pips]"],
        "trades": found["# Trades"],
        "max_drawdown_pips": found["Max. Drawdown [pips]"],
        "sharpe": found["Sharpe Ratio"],
    }


def fold(record: TradingRecord, seed: int) -> dict[str, Any]:
    """`figures` of a fold, its span and the interval of its net pips."""
    first, last = span(record)
    interval = intervals(record, seed).get("Net Profit [pips]")
    return {"first": first, "last": last, **figures(record), "interval": interval}


def bar_pips(record: TradingRecord) -> tuple[NDArray[np.int64], Floats]:
    """[n] a moment within each bar after a decision, and the pips [n] that it earned."""
    return record.bars.time[1:] - 1, np.diff(record.equity, prepend=0.0) / record.market.pip_px


def months(record: TradingRecord) -> list[dict[str, Any]]:
    """Net pips of each month (UTC) with a bar."""
    time, pips = bar_pips(record)
    month, where = np.unique(time.astype("datetime64[ns]").astype("datetime64[M]"), return_inverse=True)
    return [
        {"month": str(name), "net_pips": float(total)}
        for name, total in zip(month, np.bincount(where, pips), strict=True)
    ]


def hours(record: TradingRecord) -> Floats:
    """[24, 7] net pips by hour (UTC) and weekday, from Monday; a bar counts where it ends."""
    time, pips = bar_pips(record)
    table = np.zeros((24, 7))
    np.add.at(table, (time // HOUR_NS % 24, (time // DAY_NS + 3) % 7), pips)
    return table


def action_shares(target: Floats) -> dict[str, float]:
    """Fractions of the decisions [n] by their action, as `act` names them, and of the bars by the position held."""
    changed = target != np.append(0.0, target[:-1])
    share = {
        "HOLD": ~changed,
        "BUY": changed & (target > 0),
        "SELL": changed & (target < 0),
        "CLOSE": changed & (target == 0),
        "long": target > 0,
        "flat": target == 0,
        "short": target < 0,
    }
    return {name: float(mask.mean()) for name, mask in share.items()}


def learning_curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """At most MAX_LEARNING_ROWS evenly spaced values of each metric in LEARNING that all iterations have."""
    at = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_LEARNING_ROWS)).astype(np.int64)).tolist()
    names = [name for name in LEARNING if rows and all(rows[i].get(name) is not None for i in at)]
    return {name: [float(rows[i][name]) for i in at] for name in names}


def write_report(folder: Path, document: dict[str, Any], records: Sequence[TradingRecord]) -> None:
    """Write ANALYSIS_FILES into `folder`; without Bokeh all but the last."""
    with add_path_to_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    trim_heap()
    joined = join_records(records)
    bars, pip, trades, lengths_ns = joined.bars, joined.market.pip_px, joined.trades, trade_durations(joined)
    write_atomic(folder / "report.json", json.dumps(document, indent=1) + "\n")
    entry = trades[:, ENTRY_BAR].astype(np.int64)
    opened = np.maximum(bars.time[entry - 1], bars.time[entry] - joined.market.interval_ns)
    columns = (trades[:, field] for field in (TRADE_SIDE, ENTRY_PX, EXIT_PX))
    pips = (np.round(trades[:, field] / pip, 4) for field in (PROFIT_PX, FINANCING_PX))
    times = opened.astype("M8[ns]"), (opened + lengths_ns).astype("M8[ns]")
    write_csv(folder / "trades.csv", TRADE_COLUMNS, *times, *columns, *pips, lengths_ns // SECOND_NS)
    equity, closes = np.round(joined.equity / pip, 4), bars.time[1:].astype("M8[ns]")
    write_csv(folder / "equity.csv", EQUITY_COLUMNS, closes, bars.close[1:], joined.target, equity)
    day, returns = daily_returns(joined)
    net = np.round(returns * bars.close[0] / pip, 4)
    write_csv(folder / "daily.csv", DAILY_COLUMNS, day.astype("datetime64[D]").astype(str), returns, net)
    try:
        write_html(folder)
        log(f"report: {folder / 'report.html'}")
    except ReportError as error:
        log(str(error))


def write_html(folder: Path) -> None:
    """Write report.html from the files beside it; ReportError where they do not allow it, or without Bokeh."""
    with bokeh_needed(folder / "report.html", program_command("report", folder)):
        from host.analysis.html_report import render_html
    write_atomic(folder / "report.html", render_html(folder))


def iso_times(times: NDArray[Any]) -> NDArray[np.str_]:
    """datetime64 [n] in UTC as 2017-10-02T08:00:00Z."""
    return np.char.add(np.datetime_as_string(times, unit="s"), "Z")


def write_csv(path: Path, names: Iterable[str], *columns: NDArray[Any]) -> None:
    """Write `columns`, each of one value a row, under their names; piece by piece, for a row takes a kB in memory."""
    with add_path_to_errors(path), atomic_write(path) as file:
        file.write(f"{','.join(names)}\n".encode())
        for first in range(0, len(columns[0]), CSV_PIECE):
            pieces = (column[first : first + CSV_PIECE] for column in columns)
            cells = (iso_times(piece) if piece.dtype.kind == "M" else piece for piece in pieces)
            rows = zip(*(map(str, piece.tolist()) for piece in cells), strict=True)
            file.write("".join(f"{','.join(row)}\n" for row in rows).encode())
