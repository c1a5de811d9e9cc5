"""Figures by hand, and baselines that trade exactly as often as they are told, through the ledger."""

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
    agent = np.random.default_rng(seed).integers(0, 4, n).astype(np.int8)
    count = mk.run_actions(equity, trades, mk.new_accounts(1)[0], bars, 0, agent, rules)
    held = trades[:count, mk.BARS_HELD].astype(np.int64)
    actions, given_held = np.full(n, 77, np.int8), held.copy()
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
    actions, held = np.zeros(6, np.int8), np.array([1, 2])
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
    actions = np.zeros(4, np.int8)
    seen = set()
    for stream in range(50):
        schedule(actions, np.array([2, 2]), True, 0, stream)
        seen.add(tuple(actions.tolist()))
    assert seen == {(BUY, HOLD, SELL, HOLD), (SELL, HOLD, BUY, HOLD)}


def test_trades_apart_are_free_to_repeat_a_side_under_reverse() -> None:
    actions = np.zeros(3, np.int8)
    seen = set()
    for stream in range(200):
        schedule(actions, np.array([1, 1]), True, 0, stream)
        seen.add(tuple(actions.tolist()))
    apart = {(a, CLOSE, b) for a in (BUY, SELL) for b in (BUY, SELL)}
    assert seen == apart | {(BUY, SELL, CLOSE), (SELL, BUY, CLOSE), (HOLD, BUY, SELL), (HOLD, SELL, BUY)}


@pytest.mark.parametrize(("held", "n"), [([3, 3], 6), ([0], 5), ([6], 5)])
def test_what_does_not_fit_is_refused(held: list[int], n: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        schedule(np.zeros(n, np.int8), np.array(held), False, 0, 0)


def test_baselines_are_the_brokers() -> None:
    bars, rules = wandering_bars(9, 120, 60), market(swap_long_px=-1e-5, commission_px=1e-5)
    found = stats.baselines(bars, 20, 100, rules, np.zeros((0, mk.NUM_TRADE_FIELDS)), 0)
    assert found["flat"] == found["random"] == 0
    for name, order in (("long", "BUY"), ("short", "SELL")):
        broker = Broker(bars, rules)
        for t in range(20, 99):
            broker.trade(order if t == 20 else "HOLD", t)
        broker.finish(99)
        assert found[name] == pytest.approx(broker.equity() / PIP)
        assert broker.closed[0].exit_bar == 99


def test_long_and_short_are_mirror_images_up_to_costs() -> None:
    bars = wandering_bars(2, 120, 60)
    nothing = np.zeros((0, mk.NUM_TRADE_FIELDS))
    found = stats.baselines(bars, 20, 100, market(commission_px=3e-5), nothing, 0)
    spreads = (bars.ask_open - bars.open)[21] + (bars.ask_close - bars.close)[99]
    assert -(found["long"] + found["short"]) == pytest.approx((spreads + 4 * 1e-5 + 4 * 3e-5) / PIP)
    free = bars._replace(ask_open=bars.open, ask_close=bars.close)
    found = stats.baselines(free, 20, 100, market()._replace(slippage_px=0.0), nothing, 0)
    assert found["long"] == pytest.approx(-found["short"], rel=1e-9)
    assert found["long"] == pytest.approx((bars.close[99] - bars.open[21]) / PIP)


def test_random_is_the_cost_of_the_turnover_and_a_function_of_the_seed() -> None:
    """With a price that stands still every schedule pays the same: the spread and two slippages a trade."""
    bars = wandering_bars(1, 200, 60)
    still = np.full(200, 1.1)
    bars = bars._replace(open=still, close=still, ask_open=still + PIP, ask_close=still + PIP)
    turnover = trades_of([0.0] * 5, [3, 1, 7, 2, 30])
    assert stats.baselines(bars, 0, 200, market(), turnover, 1)["random"] == pytest.approx(-5 * 1.2)
    moving = wandering_bars(1, 200, 60)
    one, same, other = (stats.baselines(moving, 0, 200, market(), turnover, s)["random"] for s in (1, 1, 2))
    assert one == same != other


def test_random_is_a_mean_of_different_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    bars, turnover = wandering_bars(1, 200, 60), trades_of([0.0] * 5, [3, 1, 7, 2, 30])
    found = []
    for schedules in (1, 2, 64):
        monkeypatch.setattr(stats, "NUM_SCHEDULES", schedules)
        found.append(stats.baselines(bars, 0, 200, market(), turnover, 1)["random"])
    assert len({round(pips, 6) for pips in found}) == 3


def test_an_empty_stretch_is_refused() -> None:
    with pytest.raises(ValueError, match="no decision"):
        stats.baselines(wandering_bars(1, 20, 60), 5, 6, market(), np.zeros((0, mk.NUM_TRADE_FIELDS)), 0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**30), st.booleans())
def test_schedules_deal_the_sizes_of_the_turnover(seed: int, reverse: bool) -> None:
    """The ledger books as many trades of each size and length as the agent had, on either side."""
    n, sizes = 60, (0.1, 0.25, 0.5, 0.75, 1.0)
    bars, rules = wandering_bars(seed, n + 1, 60), market(reverse=reverse, sizes=sizes)
    equity, trades = np.zeros(n), np.zeros((n, mk.NUM_TRADE_FIELDS))
    agent = np.random.default_rng(seed).integers(0, 12, n).astype(np.int8)
    count = mk.run_actions(equity, trades, mk.new_accounts(1)[0], bars, 0, agent, rules)
    dealt: list[Any] = []

    def keep(equity: Any, trades: Any, *rest: Any) -> None:
        dealt.append(trades[: mk.run_actions(equity, trades, *rest)].copy())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "run_actions", keep)
        patch.setattr(stats, "NUM_SCHEDULES", 2)
        stats.baselines(bars, 0, n + 1, rules, trades[:count], seed)
    held = [mk.BARS_HELD, mk.TRADE_SIDE]
    assert dealt[1][0, mk.TRADE_SIDE] == -dealt[2][0, mk.TRADE_SIDE] == 1, "one full position"
    for found in dealt[3:]:
        assert sorted(np.abs(found[:, held]).tolist()) == sorted(np.abs(trades[:count, held]).tolist())


def test_a_schedule_holds_and_closes() -> None:
    actions = np.zeros(3, np.int8)
    schedule(actions, np.array([2]), False, 0, 0)
    entry = next(a for a in actions if a in (BUY, SELL))
    assert actions.tolist() in ([entry, HOLD, CLOSE], [HOLD, entry, HOLD])
