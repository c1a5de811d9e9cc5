"""Costs add up to what the ledger booked, and worse costs move a result by what they take."""

from typing import Any

import numpy as np
import pytest

from host.analysis.baselines import random_record
from host.analysis.costs import break_even_spread, cost_sensitivity, costs_taken, targets_of, with_costs
from host.analysis.record import TradingRecord, net_pips, trade_targets
from kernels.market.bars import SECOND_NS, Bars
from kernels.market.ledger import BARS_HELD, ENTRY_BAR, EXIT_BAR, PROFIT_PX, TRADE_SIDE, new_market
from tests.oracles.naive import wandering_bars

HOUR, PIP = 3600 * SECOND_NS, 1e-4
COSTS = {"slippage_px": 2e-5, "commission_px": 3e-5, "swap_long_px": -4e-5, "swap_short_px": 1e-5}


def record(seed: int = 0, reverse: bool = False, bars: Bars | None = None, **costs: float) -> TradingRecord:
    """Random trades of three sizes, the last of which is closed out."""
    bars = wandering_bars(seed, 400, 60) if bars is None else bars
    draw, target = np.random.default_rng(seed), np.zeros(len(bars.time) - 1)
    i = 0
    while i < len(target):
        held = int(draw.integers(1, 12))
        target[i : i + held] = draw.choice([-1.0, -0.5, 0.25, 1.0])
        i += held if reverse else held + 1
    market = new_market(range_px=5e-4, pip_px=PIP, interval_ns=HOUR, reverse=reverse, **(COSTS | costs))
    return trade_targets(bars, target, market)


@pytest.mark.parametrize("reverse", [False, True])
def test_trades_are_the_targets_that_made_them(reverse: bool) -> None:
    found = record(3, reverse)
    again = trade_targets(found.bars, targets_of(found.trades, len(found.target)), found.market)
    np.testing.assert_array_equal(again.equity, found.equity)
    assert found.trades[-1, EXIT_BAR] == len(found.target)
    if not reverse:
        np.testing.assert_array_equal(targets_of(found.trades, len(found.target)), found.target)


@pytest.mark.parametrize("adjust", [False, True])
@pytest.mark.parametrize("name", ["spread", "slippage", "commission", "swap"])
def test_doubling_a_cost_moves_the_result_by_exactly_the_cost(name: str, adjust: bool) -> None:
    found = record(1, reverse=adjust, position_adjustment=adjust)
    fields = {"swap": ("swap_long_px", "swap_short_px")}.get(name, (f"{name}_px",))
    twice: Any = {} if name == "spread" else {field: 2 * getattr(found.market, field) for field in fields}
    doubled = with_costs(found._replace(market=found.market._replace(**twice)), spread=2.0 if name == "spread" else 1.0)
    taken = costs_taken(found)
    assert abs(taken[name]) > 1
    assert net_pips(doubled) == pytest.approx(taken["net"] - taken[name], abs=1e-8)
    assert len(doubled.trades) == len(found.trades)


def test_a_position_of_many_sizes_is_one_trade() -> None:
    """From flat, or from the other side, to flat: for statistics, and for schedules of random trades."""
    found = record(6, reverse=True, position_adjustment=True)
    side = np.sign(found.target)
    assert len(found.trades) == 1 + np.count_nonzero(np.diff(side)) < np.count_nonzero(np.diff(found.target))
    assert found.trades[:, BARS_HELD].sum() == np.count_nonzero(found.target)
    assert found.trades[:, PROFIT_PX].sum() == pytest.approx(found.equity[-1], abs=1e-12)
    mean_size = [abs(found.target[first - 1 : first - 1 + held].mean()) for first, held in spans(found)]
    np.testing.assert_allclose(np.abs(found.trades[:, TRADE_SIDE]), mean_size)
    assert np.isfinite(random_record(found, 1).equity).all()
    flat = trade_targets(found.bars, 0.0 * found.target, found.market)
    assert len(flat.trades) == 0


def spans(found: TradingRecord) -> list[list[int]]:
    """First bar and length of each trade."""
    return [[int(trade[ENTRY_BAR]), int(trade[BARS_HELD])] for trade in found.trades]


def test_costs_are_what_lies_between_the_middle_and_the_booked_result() -> None:
    """Gross is the profit of the same trades at the middle prices without any other cost."""
    found = record(2)
    bars, taken = found.bars, costs_taken(found)
    mid_open, mid_close = (bars.open + bars.ask_open) / 2, (bars.close + bars.ask_close) / 2
    gross = 0.0
    for k, trade in enumerate(found.trades):
        entry, leave = int(trade[ENTRY_BAR]), int(trade[EXIT_BAR])
        last = mid_close if k == len(found.trades) - 1 else mid_open
        gross += trade[TRADE_SIDE] * (last[leave] - mid_open[entry]) / PIP
    assert taken["gross"] == pytest.approx(gross, abs=1e-8)
    costs = sum(taken[name] for name in ("spread", "slippage", "commission", "swap"))
    assert taken["gross"] - costs == pytest.approx(taken["net"], abs=1e-9)
    assert taken["net"] == net_pips(found)


def test_at_the_break_even_spread_nothing_is_left() -> None:
    bars = wandering_bars(5, 400, 60)
    rise = np.linspace(0, 0.05, 400)  # a market in which being long pays
    prices: Any = {name: getattr(bars, name) + rise for name in ("open", "high", "low", "close")}
    bars = bars._replace(**prices, ask_open=prices["open"] + PIP, ask_close=prices["close"] + PIP)
    target = np.where(np.arange(399) % 10 < 8, 0.5, 0.0)
    found = trade_targets(bars, target, record().market)
    spread = break_even_spread(found)
    assert spread is not None
    assert spread > 1
    assert net_pips(with_costs(found, spread=spread)) == pytest.approx(0, abs=1e-8)
    assert break_even_spread(trade_targets(bars, np.zeros(399), found.market)) is None


def test_the_table_of_costs() -> None:
    found = record(4)
    table = {row["name"]: row["net_pips"] for row in cost_sensitivity(found, seed=1)}
    assert list(table) == [
        *(f"spread x {factor}" for factor in ("0", "0.5", "1", "1.5", "2", "3")),
        "slippage + 0.1 pips",
        "slippage + 0.5 pips",
        "filled one bar later",
        "10% of entries skipped",
    ]
    taken, size = costs_taken(found), np.abs(found.trades[:, TRADE_SIDE]).sum()
    assert table["spread x 1"] == taken["net"]
    for factor in (0, 0.5, 1.5, 3):
        left = taken["net"] + (1 - factor) * taken["spread"]
        assert table[f"spread x {factor:g}"] == pytest.approx(left, abs=1e-8)
    assert table["slippage + 0.5 pips"] == pytest.approx(taken["net"] - size, abs=1e-8)
    late = trade_targets(found.bars, np.concatenate([[0.0], found.target[:-1]]), found.market)
    assert table["filled one bar later"] == net_pips(late)


def test_skipped_entries_leave_the_other_trades_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    found, replayed = record(4, reverse=True), list[TradingRecord]()

    def keep(*arguments: Any) -> TradingRecord:
        replayed.append(trade_targets(*arguments))
        return replayed[-1]

    monkeypatch.setattr("host.analysis.costs.trade_targets", keep)
    seeds = [cost_sensitivity(found, seed)[-1]["net_pips"] for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    all_trades = set(map(tuple, found.trades.tolist()))
    kept = set(map(tuple, replayed[-1].trades.tolist()))
    assert kept < all_trades
    assert 0.02 < 1 - len(kept) / len(all_trades) < 0.25
