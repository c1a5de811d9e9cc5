"""Changes of the size of a position, against cash and lots; the risk term of the reward, against its formula."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.market import ledger as mk
from kernels.market.bars import SECOND_NS
from kernels.market.ledger import Market, new_accounts, new_market
from kernels.market.position import action_names, action_target, fill_size, is_legal
from tests.oracles.naive import moment, rolls, wandering_bars

N, HOUR = 60, 3600 * SECOND_NS
COSTS: dict[str, Any] = {"slippage_px": 2e-5, "commission_px": 3e-5, "swap_long_px": -5e-5, "swap_short_px": 1e-5}
SIZES = (0.1, 0.25, 0.5, 0.75, 1.0)
few = settings(deadline=None, max_examples=30)


def market_of(reverse: bool, risk_aversion: float = 0.0, **others: Any) -> Market:
    rules: dict[str, Any] = {"reverse": reverse, "sizes": SIZES, "position_adjustment": True, **COSTS, **others}
    return new_market(range_px=5e-4, pip_px=1e-4, interval_ns=HOUR, risk_aversion=risk_aversion, **rules)


class Cash:
    """An account as a purse: every fill pays or receives its price and its commission, whatever was held before."""

    def __init__(self, bars: Any, market: Market) -> None:
        self.bars, self.market, self.purse, self.side = bars, market, 0.0, 0.0
        self.lots: list[tuple[float, float]] = []  # (size, price) of what is held; a sale takes the same part of each

    def carry(self, after: int, until: int) -> None:
        rate = self.market.swap_long_px if self.side > 0 else self.market.swap_short_px
        self.purse += rolls(moment(after), moment(until)) * rate * abs(self.side)

    def fill(self, change: float, t: int) -> None:
        slippage = self.market.slippage_px
        price = float(self.bars.ask_open[t] + slippage if change > 0 else self.bars.open[t] - slippage)
        self.purse -= change * price + abs(change) * self.market.commission_px
        if self.side * change >= 0:
            self.lots.append((abs(change), price))
        else:
            kept = 1 - abs(change / self.side)
            self.lots = [(size * kept, paid) for size, paid in self.lots if kept > 1e-12]
        self.side += change

    def trade(self, target: float, t: int) -> None:
        """Decided at the close of bar t; a turn is a close and an entry."""
        seen, closing = int(self.bars.time[t]), int(self.bars.time[t + 1])
        opening = max(seen, closing - HOUR)
        self.carry(seen, opening)
        if self.side * target < 0:
            self.fill(-self.side, t + 1)
            self.side = 0.0
        if target != self.side:
            self.fill(target - self.side, t + 1)
        self.side = target
        self.carry(opening, closing)

    def equity(self, t: int) -> float:
        price = float(self.bars.close[t] if self.side > 0 else self.bars.ask_close[t])
        return self.purse + self.side * price


@few
@given(st.integers(0, 2**20), st.booleans(), st.sampled_from([0.0, 0.7]))
def test_any_change_of_size_is_booked_as_cash(seed: int, reverse: bool, risk_aversion: float) -> None:
    """Equity, mean entry, rewards and trades, after additions, reductions and turns."""
    bars, market, draw = wandering_bars(seed, N, 60), market_of(reverse, risk_aversion), np.random.default_rng(seed)
    account, trade, cash = new_accounts(1)[0], np.zeros(mk.NUM_TRADE_FIELDS), Cash(bars, market)
    before, profits = 0.0, 0.0
    for t in range(N - 1):
        side = float(account[mk.ACC_SIDE])
        target = float(draw.choice([side, 0.0, draw.uniform(-1, 1), np.sign(side) * draw.uniform(0.01, 1)]))
        target = 0.0 if side * target < 0 and not reverse else target
        reward = mk.step_to_target(account, trade, bars, t, target, market)
        cash.trade(target, t)
        equity = float(account[mk.ACC_EQUITY])
        assert (account[mk.ACC_SIDE], equity) == (target, pytest.approx(cash.equity(t + 1), abs=1e-12))
        if target:
            held = sum(size for size, _ in cash.lots)
            mean_px = sum(size * price for size, price in cash.lots) / held
            assert (held, mean_px) == pytest.approx((abs(target), account[mk.ACC_ENTRY_PX]), rel=1e-9)
        move = (bars.close[t + 1] - bars.close[t]) / market.range_px
        utility = (equity - before) / market.range_px - risk_aversion / 2 * target**2 * move**2
        assert reward == pytest.approx(utility, abs=1e-9)
        if trade[mk.EXIT_BAR] >= 0:
            profits += trade[mk.PROFIT_PX]
            assert abs(trade[mk.TRADE_SIDE]) == pytest.approx(fill_size(side, target)[1])
        before = equity
    mk.close_out(account, trade, bars, N - 1, market)
    assert account[mk.ACC_EQUITY] == pytest.approx(profits + trade[mk.PROFIT_PX] * (trade[mk.EXIT_BAR] >= 0), abs=1e-12)
    assert not account[mk.ACC_SIDE :].any()


def test_a_fill_costs_by_the_change_of_the_size() -> None:
    changes = {(0.25, 1.0): (0.75, 0.0), (1.0, 0.25): (0.0, 0.75), (0.5, -1.0): (1.0, 0.5), (-0.5, -0.5): (0.0, 0.0)}
    for (side, target), (opened, closed) in changes.items():
        assert fill_size(side, target) == (opened, closed)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("side", [0.0, 0.1, 0.5, 1.0, -0.25])
def test_a_position_may_become_any_other_size_of_its_side(side: float, reverse: bool) -> None:
    """A search knows sizes in single precision: the held one is illegal in both."""
    names = action_names(SIZES)
    for held in (side, np.float32(side)):
        legal = {
            names[a]
            for a in range(len(names))
            if is_legal(held, a, len(names), reverse, True, action_target(held, a, SIZES))
        }
        own, other = ("BUY", "SELL") if side >= 0 else ("SELL", "BUY")
        sides = (own, other) if reverse or side == 0 else (own,)
        entries = {name for name in names if name.startswith(sides)} - {f"{own} {abs(side):g}".removesuffix(" 1")}
        assert legal == entries | {"HOLD"} | ({"CLOSE"} if side else set())


def test_an_adjusted_market_forgets_the_entry() -> None:
    with pytest.raises(ValueError, match="must not adjust"):
        market_of(False, mae_penalty=0.05)
    with pytest.raises(ValueError, match="must be finite"):
        market_of(False, risk_aversion=-1.0)
