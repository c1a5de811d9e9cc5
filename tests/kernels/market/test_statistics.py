"""Figures by hand, and random schedules that trade exactly as often as they are told."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.market import ledger as mk
from kernels.market import statistics as stats
from kernels.market.bars import SECOND_NS
from kernels.market.ledger import Market, new_market
from kernels.market.position import BUY, CLOSE, HOLD, SELL
from tests.oracles.naive import Broker, wandering_bars

HOUR = 3600 * SECOND_NS
PIP = 1e-4
FIGURES = {
    "net_pips",
    "trades",
    "exposure",
    "max_drawdown_pips",
    "win_rate",
    "expectancy_pips",
    "profit_factor",
    "sortino",
}


def market(**options: Any) -> Market:
    return new_market(range_px=5e-4, pip_px=PIP, interval_ns=HOUR, slippage_px=1e-5, **options)


def trades_of(profits: list[float], held: list[int]) -> NDArray[np.float64]:
    trades = np.zeros((len(profits), mk.NUM_TRADE_FIELDS))
    trades[:, mk.PROFIT_PX], trades[:, mk.BARS_HELD] = profits, held
    return trades


def schedule(actions: Any, held: Any, *rest: Any) -> None:
    """A schedule of full positions."""
    stats.draw_schedule(actions, held, np.zeros_like(held), 1, *rest)


def test_figures_by_hand() -> None:
    equity = np.array([-1.0, 2.0, 2.0, -2.0, 0.0]) * PIP
    found = stats.compute_statistics(equity, trades_of([2 * PIP, -3 * PIP, 1 * PIP, 0.0], [1, 1, 1, 1]), PIP)
    assert found == pytest.approx(
        {
            "net_pips": 0.0,
            "trades": 4,
            "exposure": 4 / 5,
            "max_drawdown_pips": 4.0,
            "win_rate": 2 / 4,
            "expectancy_pips": 0.0,
            "profit_factor": 1.0,
            "sortino": 0.0,
        },
        abs=1e-9,
    )
    rising = stats.compute_statistics(np.array([-1.0, 3.0]) * PIP, trades_of([3 * PIP], [2]), PIP)
    assert rising["sortino"] == pytest.approx(1.5 / math.sqrt(0.5))
    assert rising["max_drawdown_pips"] == pytest.approx(1.0), "below the start counts"
    assert rising["profit_factor"] is None


def test_nothing_traded_is_said_plainly() -> None:
    found = stats.compute_statistics(np.zeros(7), np.zeros((0, mk.NUM_TRADE_FIELDS)), PIP)
    assert found.keys() == FIGURES
    assert [found[k] for k in ("net_pips", "trades", "exposure", "max_drawdown_pips")] == [0, 0, 0, 0]
    assert [found[k] for k in ("win_rate", "expectancy_pips", "profit_factor", "sortino")] == [None] * 4


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**30), st.booleans(), st.integers(1, 80))
def test_schedules_trade_as_told(seed: int, reverse: bool, n: int) -> None:
    """The turnover of whatever can be traded can be dealt again, and every dealt action is legal."""
    bars, rules = wandering_bars(seed, n + 1, 60), market(reverse=reverse)
    equity, trades = np.zeros(n), np.zeros((n, mk.NUM_TRADE_FIELDS))
    agent = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], n)
    count = mk.run_targets(equity, trades, mk.new_accounts(1)[0], bars, 0, agent, rules)
    held = trades[:count, mk.BARS_HELD].astype(np.int64)
    actions, given_held = np.full(n, 77, np.int32), held.copy()
    schedule(actions, held, reverse, seed, 5)
    np.testing.assert_array_equal(held, given_held)
    broker = Broker(bars, rules)
    for t, action in enumerate(actions):
        order = ("HOLD", "BUY", "SELL", "CLOSE")[action]
        assert order in broker.allowed()
        broker.trade(order, t)
    broker.finish(n)
    assert sorted(len(deal.excursions) for deal in broker.closed) == sorted(held)


def test_every_arrangement_is_as_likely() -> None:
    """Trades of 1 and 2 bars in 6 decisions: two orders, two idle bars among them, four pairs of sides."""
    seen: dict[tuple[int, ...], int] = {}
    actions, held = np.zeros(6, np.int32), np.array([1, 2])
    draws = 16_000
    for stream in range(draws):
        schedule(actions, held, False, 3, stream)
        seen[tuple(actions)] = seen.get(tuple(actions), 0) + 1
    ways = 2 * math.comb(4, 2) * 4
    assert len(seen) == ways
    counts = np.array(list(seen.values()))
    chi_sq = ((counts - draws / ways) ** 2).sum() / (draws / ways)
    assert chi_sq < ways + 5 * math.sqrt(2 * ways)


def test_touching_trades_are_opposite_under_reverse() -> None:
    actions = np.zeros(4, np.int32)
    seen = set()
    for stream in range(50):
        schedule(actions, np.array([2, 2]), True, 0, stream)
        seen.add(tuple(actions.tolist()))
    assert seen == {(BUY, HOLD, SELL, HOLD), (SELL, HOLD, BUY, HOLD)}


def test_trades_apart_are_free_to_repeat_a_side_under_reverse() -> None:
    actions = np.zeros(3, np.int32)
    seen = set()
    for stream in range(200):
        schedule(actions, np.array([1, 1]), True, 0, stream)
        seen.add(tuple(actions.tolist()))
    apart = {(a, CLOSE, b) for a in (BUY, SELL) for b in (BUY, SELL)}
    assert seen == apart | {(BUY, SELL, CLOSE), (SELL, BUY, CLOSE), (HOLD, BUY, SELL), (HOLD, SELL, BUY)}


@pytest.mark.parametrize(("held", "n"), [([3, 3], 6), ([0], 5), ([6], 5)])
def test_what_does_not_fit_is_refused(held: list[int], n: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        schedule(np.zeros(n, np.int32), np.array(held), False, 0, 0)


def test_a_schedule_holds_and_closes() -> None:
    actions = np.zeros(3, np.int32)
    schedule(actions, np.array([2]), False, 0, 0)
    entry = next(a for a in actions if a in (BUY, SELL))
    assert actions.tolist() in ([entry, HOLD, CLOSE], [HOLD, entry, HOLD])
