"""The statistics of a record against a naive computation, and against empyrical where it is installed."""

import json
import math
from typing import Any

import numpy as np
import pytest

from host.analysis.record import TradingRecord, daily_returns, trade_targets
from host.analysis.statistics import days_per_year, find_drawdowns, format_duration, sharpe, sortino, summarise
from host.evaluation.synthetic import PIP
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS, HOUR_NS
from kernels.market.ledger import Market, new_market
from tests.fixtures.trainings import BARS

FRIDAY_NS = 1_577_836_800 * SECOND_NS + 2 * DAY_NS  # 2020-01-03
HOURLY = BARS._replace(time=FRIDAY_NS + np.arange(1, len(BARS.time) + 1) * HOUR_NS)
MARKET: Market = new_market(range_px=1e-3, pip_px=PIP, interval_ns=HOUR_NS, slippage_px=0.2 * PIP)
TINY = 1e-6  # of a return: so small, compounded returns add up


def random_record(seed: int = 0) -> TradingRecord:
    rng, n = np.random.default_rng(seed), len(BARS.time) - 1
    changes = np.where(rng.random(n) < 0.1, rng.integers(-1, 2, n), -2)
    held = np.maximum.accumulate(np.where(changes > -2, np.arange(n), 0))
    return trade_targets(HOURLY, np.where(changes[held] > -2, changes[held], 0).astype(float), MARKET)


def flat_record() -> TradingRecord:
    return trade_targets(HOURLY, np.zeros(len(BARS.time) - 1), MARKET)


def naive_drawdowns(curve: list[float]) -> tuple[list[float], list[int]]:
    """Depths and durations in bars."""
    depths, lengths, peak, peak_at, deepest = [], [], curve[0], 0, 0.0
    for i, value in enumerate(curve):
        if value < peak:
            deepest = max(deepest, peak - value)
            if i < len(curve) - 1:
                continue
        if deepest > 0:
            depths.append(deepest)
            lengths.append(i - peak_at)
        peak, peak_at, deepest = value, i, 0.0
    return depths, lengths


def naive_summary(record: TradingRecord) -> dict[str, Any]:
    """The figures that need no calendar, of trades and bars one by one."""
    pips = [trade[5] / PIP for trade in record.trades]
    wins, losses = [p for p in pips if p > 0], [p for p in pips if p < 0]
    mean = sum(pips) / len(pips)
    deviation = math.sqrt(sum((p - mean) ** 2 for p in pips) / (len(pips) - 1))
    depths, lengths = naive_drawdowns([0.0, *record.equity.tolist()])
    return {
        "Exposure Time [%]": 100 * sum(1 for size in record.target if size) / len(record.target),
        "Net Profit [pips]": sum(pips),
        "Max. Drawdown [pips]": max(depths) / PIP,
        "Avg. Drawdown [pips]": sum(depths) / len(depths) / PIP,
        "Max. Drawdown Duration": format_duration(max(lengths) * HOUR_NS),
        "# Trades": len(pips),
        "Win Rate [%]": 100 * len(wins) / len(pips),
        "Best Trade [pips]": max(pips),
        "Worst Trade [pips]": min(pips),
        "Avg. Trade [pips]": mean,
        "Profit Factor": sum(wins) / -sum(losses),
        "Expectancy [pips]": mean,
        "SQN": math.sqrt(len(pips)) * mean / deviation,
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_summary_is_that_of_a_naive_computation(seed: int) -> None:
    record = random_record(seed)
    summary, naive = summarise(record), naive_summary(record)
    for name, value in naive.items():
        assert summary[name] == (value if isinstance(value, str) else pytest.approx(value)), name
    day, returns = daily_returns(record)
    per_year = 365.25 * len(day) / (day[-1] - day[0] + 1)
    mean, deviation = np.mean(returns), np.std(returns, ddof=1)
    below = math.sqrt(sum(r * r for r in returns if r < 0) / len(returns))
    assert summary["Return (Ann.) [%]"] == pytest.approx(100 * mean * per_year)
    assert summary["Volatility (Ann.) [%]"] == pytest.approx(100 * deviation * math.sqrt(per_year))
    assert summary["Sharpe Ratio"] == pytest.approx(mean / deviation * math.sqrt(per_year))
    assert summary["Sortino Ratio"] == pytest.approx(mean / below * math.sqrt(per_year))
    fall = naive["Max. Drawdown [pips]"] * PIP / HOURLY.close[0]
    assert summary["Calmar Ratio"] == pytest.approx(mean * per_year / fall)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_summary_is_that_of_empyrical() -> None:
    empyrical = pytest.importorskip("empyrical", reason="pip install empyrical-reloaded", exc_type=ImportError)
    record = random_record()
    day, returns = daily_returns(record)
    summary, year = summarise(record), {"annualization": days_per_year(day)}
    assert summary["Sharpe Ratio"] == pytest.approx(empyrical.sharpe_ratio(returns, **year))
    assert summary["Sortino Ratio"] == pytest.approx(empyrical.sortino_ratio(returns, **year))
    assert summary["Volatility (Ann.) [%]"] == pytest.approx(100 * empyrical.annual_volatility(returns, **year))
    annual = empyrical.annual_return(returns * TINY, **year) / TINY
    assert summary["Return (Ann.) [%]"] == pytest.approx(100 * annual, rel=1e-4)
    bar_returns = np.diff(record.equity, prepend=0.0) / HOURLY.close[0]
    fall = -empyrical.max_drawdown(bar_returns * TINY) / TINY
    assert summary["Max. Drawdown [pips]"] == pytest.approx(fall * HOURLY.close[0] / PIP, rel=1e-4)
    assert summary["Calmar Ratio"] == pytest.approx(annual / fall, rel=1e-4)
    assert sharpe(returns) == pytest.approx(empyrical.sharpe_ratio(returns, annualization=1))
    assert sortino(returns) == pytest.approx(empyrical.sortino_ratio(returns, annualization=1))


def test_buy_and_hold_is_what_the_ledger_books() -> None:
    summary = summarise(flat_record())
    spread_and_slippage = HOURLY.close[-1] - HOURLY.ask_open[1] - 2 * MARKET.slippage_px
    assert summary["Buy & Hold [pips]"] == pytest.approx(spread_and_slippage / PIP)
    half = summarise(trade_targets(HOURLY, np.zeros(len(BARS.time) - 1), MARKET._replace(sizes=(0.5, 0, 0, 0))))
    assert half["Buy & Hold [pips]"] == pytest.approx(summary["Buy & Hold [pips]"] / 2)


def test_what_is_undefined_is_none() -> None:
    summary = summarise(flat_record())
    nothing = {name for name, value in summary.items() if value is None}
    assert nothing == {
        *("Sharpe Ratio", "Sortino Ratio", "Calmar Ratio", "Max. Drawdown Duration", "Win Rate [%]"),
        *("Best Trade [pips]", "Worst Trade [pips]", "Avg. Trade [pips]", "Max. Trade Duration"),
        *("Avg. Trade Duration", "Profit Factor", "Expectancy [pips]", "SQN"),
    }
    assert summary["# Trades"] == summary["Net Profit [pips]"] == summary["Max. Drawdown [pips]"] == 0
    assert summary["Start"] == "2020-01-03T01:00:00Z"
    assert summary["End"] == "2020-02-09T12:00:00Z"
    assert summary["Duration"] == "37 days 11:00:00"
    one_day = trade_targets(
        HOURLY._replace(time=FRIDAY_NS + np.arange(1, 901) * SECOND_NS), flat_record().target, MARKET
    )
    assert summarise(one_day)["Volatility (Ann.) [%]"] is None


def test_a_trade_lasts_from_fill_to_fill_over_a_weekend() -> None:
    hour = np.array([20, 21, 22, 70, 71, 72]) * HOUR_NS  # the market is closed for two days after the third bar
    bars = type(BARS)(*(array[:6] for array in HOURLY))._replace(time=FRIDAY_NS + hour)
    # filled at 21:00, closed at the open of Sunday's first bar; filled an hour later, closed out at the last close
    summary = summarise(trade_targets(bars, np.array([0.0, 1.0, 0.0, -1.0, -1.0]), MARKET))
    assert summary["# Trades"] == 2
    assert summary["Max. Trade Duration"] == "2 days 00:00:00"
    assert summary["Avg. Trade Duration"] == "1 days 01:00:00"
    assert summary["Duration"] == "2 days 04:00:00"


def test_drawdowns_begin_at_their_peak_and_end_at_its_level() -> None:
    curve = np.array([0.0, 2.0, 1.0, -1.0, 2.0, 3.0, 2.5, 2.9])
    depth, duration = find_drawdowns(curve, np.arange(8) * 10)
    assert depth == pytest.approx([3.0, 0.5])
    assert duration.tolist() == [30, 20]
    assert not len(find_drawdowns(np.arange(4.0), np.arange(4))[0])


def test_a_year_of_fx_has_fewer_days() -> None:
    assert days_per_year(np.arange(10)) == 365.25
    week = np.array([0, 1, 2, 3, 4, 6])
    assert days_per_year(np.concatenate([week + 7 * i for i in range(100)])) == pytest.approx(313.1, abs=0.1)
