"""Baselines trade by their rules and through the ledger, and know no bar that is yet to come."""

import math
from typing import Any

import numpy as np
import pytest

from host.analysis import baselines
from host.analysis.baselines import agent_record, baseline_records, random_record, without_search
from host.analysis.record import TradingRecord, net_pips, trade_targets
from host.live.live_agent import new_policy_state
from kernels.live.policy_step import decide
from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.ledger import (
    ACC_SIDE,
    BARS_HELD,
    NUM_TRADE_FIELDS,
    TRADE_SIDE,
    Market,
    new_accounts,
    new_market,
    step_to_target,
)
from kernels.market.position import action_target, is_legal
from tests.fixtures.trainings import trained
from tests.oracles.naive import Broker, wandering_bars

HOUR, PIP = 3600 * SECOND_NS, 1e-4


def market(**options: Any) -> Market:
    return new_market(range_px=5e-4, pip_px=PIP, interval_ns=HOUR, **({"slippage_px": 1e-5} | options))


def flat(bars: Bars, rules: Market) -> TradingRecord:
    return trade_targets(bars, np.zeros(len(bars.time) - 1), rules)


def baseline_pips(record: TradingRecord) -> dict[str, float]:
    return {name: net_pips(found) for name, found in baseline_records(record, 0)}


def holding(bars: Bars, rules: Market, lengths: list[int], sizes: list[float] | None = None) -> TradingRecord:
    """Trades of these lengths with a bar between them."""
    target, i = np.zeros(len(bars.time) - 1), 0
    for length, size in zip(lengths, sizes or [1.0] * len(lengths), strict=True):
        target[i : i + length] = size
        i += length + 1
    return trade_targets(bars, target, rules)


def test_holding_is_the_brokers() -> None:
    bars = slice_bars(wandering_bars(9, 120, 60), 20, 100)
    rules = market(swap_long_px=-1e-5, commission_px=1e-5)
    found = baseline_pips(flat(bars, rules))
    assert found["flat"] == found["random"] == 0
    for name, order in (("long", "BUY"), ("short", "SELL")):
        broker = Broker(bars, rules)
        for t in range(79):
            broker.trade(order if t == 0 else "HOLD", t)
        broker.finish(79)
        assert found[name] == pytest.approx(broker.equity() / PIP)


def test_long_and_short_are_mirror_images_up_to_costs() -> None:
    bars = slice_bars(wandering_bars(2, 120, 60), 20, 100)
    found = baseline_pips(flat(bars, market(commission_px=3e-5)))
    spreads = (bars.ask_open - bars.open)[1] + (bars.ask_close - bars.close)[79]
    assert -(found["long"] + found["short"]) == pytest.approx((spreads + 4 * 1e-5 + 4 * 3e-5) / PIP)
    free = bars._replace(ask_open=bars.open, ask_close=bars.close)
    found = baseline_pips(flat(free, market(slippage_px=0.0)))
    assert found["long"] == pytest.approx(-found["short"], rel=1e-9)
    assert found["long"] == pytest.approx((bars.close[79] - bars.open[1]) / PIP)


def naive_sides(close: list[float], name: str) -> float:
    """The side that a rule wants after these closes."""
    if name == "momentum":
        move = close[-1] - close[-21] if len(close) > 20 else 0.0
    elif name == "reversal":
        move = close[-2] - close[-1] if len(close) > 1 else 0.0
    else:
        move = math.fsum(close[-10:]) / 10 - math.fsum(close[-20:]) / 20 if len(close) >= 20 else 0.0
    return float(np.sign(move))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["momentum", "reversal", "ma_cross"])
def test_rules_by_hand(name: str, reverse: bool) -> None:
    bars = wandering_bars(4, 300, 60)
    found = dict(baseline_records(flat(bars, market(reverse=reverse, sizes=(0.25, 0.5))), 0))[name]
    side = 0.0
    for i in range(299):
        want = naive_sides(bars.close[: i + 1].tolist(), name)
        side = 0.0 if want * side < 0 and not reverse else want
        assert found.target[i] == 0.5 * side
    assert len(found.trades) > 5
    assert found.trades[:, BARS_HELD].sum() == np.count_nonzero(found.target), "the ledger takes every target"


def test_no_baseline_looks_ahead() -> None:
    bars, t = wandering_bars(6, 200, 60), 120
    other = wandering_bars(7, 200, 60)
    mixed = Bars(*(np.append(a[: t + 1], b[t + 1 :]) for a, b in zip(bars, other, strict=True)))
    one, two = (dict(baseline_records(flat(x, market()), 0)) for x in (bars, mixed))
    assert any((one[name].target[t + 1 :] != two[name].target[t + 1 :]).any() for name in one)
    for name in one:
        np.testing.assert_array_equal(one[name].target[: t + 1], two[name].target[: t + 1])


def test_a_price_that_stands_still_gives_no_signal() -> None:
    bars = wandering_bars(1, 200, 60)
    still = np.full(200, 1.1)
    bars = bars._replace(open=still, close=still, ask_open=still + PIP, ask_close=still + PIP)
    records = dict(baseline_records(holding(bars, market(), [3, 1, 7, 2, 30]), 1))
    for name in ("momentum", "reversal", "ma_cross"):
        assert not records[name].target.any(), name
    assert net_pips(records["random"]) == pytest.approx(-5 * 1.2), "spread and two slippages a trade"


def test_random_is_the_median_schedule_and_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    record = holding(wandering_bars(1, 200, 60), market(), [3, 1, 7, 2, 30])
    dealt = list[float]()

    def keep(*arguments: Any) -> TradingRecord:
        found = trade_targets(*arguments)
        dealt.append(net_pips(found))
        return found

    monkeypatch.setattr(baselines, "trade_targets", keep)
    one, same, other = (net_pips(random_record(record, seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(dealt) == 3 * 64
    assert len(set(dealt[:63])) > 50
    assert one == np.median(dealt[:63])


@pytest.mark.parametrize("reverse", [False, True])
def test_random_deals_the_sizes_and_lengths_of_the_turnover(reverse: bool) -> None:
    """Sizes that no market lists are dealt too: an agent of any size has them."""
    lengths, sizes = [3, 1, 7, 2, 30, 1], [1.0, -0.5, 0.123, -1.0, 0.5, 0.123]
    record = holding(wandering_bars(3, 60, 60), market(reverse=reverse), lengths, sizes)
    found = random_record(record, 5)
    columns = [BARS_HELD, TRADE_SIDE]
    assert len(found.trades) == 6
    assert sorted(np.abs(found.trades[:, columns]).tolist()) == sorted(np.abs(record.trades[:, columns]).tolist())


def test_an_empty_stretch_is_refused() -> None:
    with pytest.raises(ValueError, match="no decision"):
        trade_targets(wandering_bars(1, 1, 60), np.zeros(0), market())


def test_the_policy_head_decides_alone() -> None:
    """Its action is the likeliest legal one by the root network, whose row the agent's own search leaves behind."""
    trainer = trained()
    data, networks, search = trainer.markets[0].data, trainer.export_networks(), trainer.acting_search_config()
    first, n = data.test_first, 40
    stretch = data.bars, data.extra_features, first, first + n + 1
    record = agent_record(networks, data.market_spec, without_search(search), *stretch)
    policy, account, trade = new_policy_state(networks, data.market_spec, search), new_accounts(1)[0], np.zeros(9)
    assert len(trade) == NUM_TRADE_FIELDS
    differs = False
    for i in range(n):
        decide(policy, account, data.bars, data.extra_features, first + i)
        side, S, A = float(account[ACC_SIDE]), networks.shape.state, networks.shape.actions
        logits = policy.planner.networks.root.y[0, S : S + A]
        legal = [a for a in range(A) if is_legal(side, a, A, policy.market.reverse)]
        best = max(legal, key=lambda a: logits[a])
        differs |= best != policy.planner.action[0]
        step_to_target(
            account, trade, data.bars, first + i, action_target(side, best, policy.market.sizes), policy.market
        )
        assert record.target[i] == account[ACC_SIDE]
    assert differs
