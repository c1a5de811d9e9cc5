"""The ledger of a trader too small to move a price: fills, costs, financing, equity and rewards.

`step`, `step_to_target` and `close_out` make every fill; equity, rewards and trades come from nowhere else.  Prices
and profits are in price units (`_px`) of a full position of one unit of the base currency.  Rewards and positions are
in ranges: multiples of `Market.range_px`, the mean bar range of the training part.  A position of half the size has
half the costs and half the profits.  Read `Market`, then `step_to_target`.

With `position_adjustment` the size may change on the same side.  A fill that adds makes the entry the mean price of
all fills, weighted by their sizes; one that reduces closes a part as a trade of its own, and the rest keeps its entry
(as backtesting.py's `Trade.close(portion)`).  Spread, slippage and commission are paid on the change of the size.

The reward may charge for risk: profit - risk_aversion / 2 (size move)^2, in ranges, the mean-variance utility of one
bar (Ritter 2017, "Machine learning for trading", eq. 13; Garleanu and Pedersen 2013, eq. 4).  Trades, balance and
equity never contain it.
  * Kelly: log(1 + k x) = k (x - k x^2 / 2) + ..., where k is what a range of a full position is of the capital.  So
    risk_aversion = k is full Kelly, and k / f a fraction f of it (MacLean, Thorp and Ziemba 2010).
  * Without costs the best size is E[m] / (risk_aversion E[m^2]).  With s = E[m] / sd[m] steady that is volatility
    targeting: size times sd[m] is about s / risk_aversion (Moreira and Muir 2017).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import constructor, inlined, kernel
from kernels.market import position
from kernels.market.bars import Bars
from kernels.market.calendar import rollovers
from kernels.market.position import FULL_SIZE_ONLY, MAX_SIZES, action_target, count_actions, fill_size, is_legal

# An account is a row of NUM_ACCOUNT_FIELDS float64 numbers.  A row of zeros is flat and has not traded yet.
ACC_BALANCE = 0  # sum of the profits of closed trades, px
ACC_EQUITY = 1  # balance + unrealised profit + financing of the open position, px
# A flat account has 0 here and in all fields below.
ACC_SIDE = 2  # signed size: -1 short, 0 flat, +1 long, or a fraction
ACC_ENTRY_BAR = 3  # bar at whose open the position was filled first
ACC_ENTRY_PX = 4  # price of the fill, slippage included; of several fills: the mean
ACC_MARK_PX = 5  # bid (long) or ask (short) at the open of the fill; of several: the mean
ACC_HELD = 6  # closes since the first fill
ACC_UNREALISED = 7  # profit at the last close, net of the commission of entry, no financing, px
ACC_ADVERSE_EXCURSION = 8  # loss from ACC_MARK_PX to the last close, px, >= 0
ACC_ADVERSE_EXCURSION_SUM = 9  # sum of the adverse excursions at the closes since entry, px
ACC_MAE = 10  # largest adverse excursion since entry, px
ACC_MFE = 11  # largest ACC_UNREALISED since entry, px, >= 0
ACC_FINANCING = 12  # received since entry, px; negative: paid
NUM_ACCOUNT_FIELDS = 13

# A trade is a row of NUM_TRADE_FIELDS float64 numbers.
ENTRY_BAR = 0  # bar at whose open the trade was entered
EXIT_BAR = 1  # bar at whose open (`step`) or close (`close_out`) it was closed; -1: no trade
TRADE_SIDE = 2  # signed size
ENTRY_PX = 3  # price of the fill, slippage included
EXIT_PX = 4  # price of the fill, slippage included
PROFIT_PX = 5  # net of every cost
ADVERSE_EXCURSION_SUM_PX = 6  # sum of the adverse excursions at the closes of the trade
BARS_HELD = 7  # closes from entry to exit
FINANCING_PX = 8  # part of PROFIT_PX
NUM_TRADE_FIELDS = 9


class Market(NamedTuple):
    """Instrument, costs and rules.  `new_market` checks them; by default there is no cost but the spread."""

    range_px: float  # the unit of rewards and distances: mean bar range of the training part
    pip_px: float
    interval_ns: int  # from close to close
    slippage_px: float = 0.0  # of a fill
    commission_px: float = 0.0  # of a fill
    swap_long_px: float = 0.0  # the broker's overnight rate, per night; positive: received
    swap_short_px: float = 0.0
    # fraction of the adverse excursion at a close that the reward loses; 0: the reward is the profit
    mae_penalty: float = 0.0
    reverse: bool = False  # one action may turn an open position into the opposite one
    position_adjustment: bool = False  # an entry may change the size of an open position on its side
    risk_aversion: float = 0.0  # per range, of the reward; 0: the reward is the profit
    closes_weekends: bool = True  # see `rollovers`
    # [MAX_SIZES] of an entry: fractions of a full position, ascending, then zeros
    sizes: tuple[float, ...] = FULL_SIZE_ONLY


@constructor(Market)
def new_market(market: Market) -> Market:
    """A market with the fields given.  Raises ValueError for fields that no market can have."""
    range_px, pip_px, interval_ns = market.range_px, market.pip_px, market.interval_ns
    if not all(0 < value < math.inf for value in (range_px, pip_px, interval_ns)):
        raise ValueError(f"range {range_px}, pip {pip_px} and interval {interval_ns} must be positive and finite")
    weights = market.slippage_px, market.commission_px, market.mae_penalty, market.risk_aversion
    if not all(0 <= value < math.inf for value in weights):
        raise ValueError("slippage, commission and weights of excursion and risk must be finite and not negative")
    if market.position_adjustment and market.mae_penalty > 0:
        raise ValueError("a market whose reward remembers the entry of a position must not adjust its size")
    return market._replace(sizes=_pad_sizes(market.sizes))


def _pad_sizes(sizes: Sequence[float]) -> tuple[float, ...]:
    """`sizes` padded with zeros to MAX_SIZES numbers, so that kernels compile once for every number of sizes."""
    entries = [float(size) for size in sizes]
    while entries and entries[-1] == 0:
        entries.pop()
    if entries != sorted(set(entries)) or not all(0 < size <= 1 for size in entries) or not entries:
        raise ValueError(f"sizes {list(sizes)} are not ascending fractions of a position, within (0, 1]")
    if len(entries) > MAX_SIZES:
        raise ValueError(f"{len(entries)} sizes are more than {MAX_SIZES}")
    return (*entries, *[0.0] * (MAX_SIZES - len(entries)))


def new_accounts(n: int) -> NDArray[np.float64]:
    """[n, NUM_ACCOUNT_FIELDS] flat accounts."""
    return np.zeros((n, NUM_ACCOUNT_FIELDS))


@inlined
def permits(market: Market, side: float, action: int, num_actions: int) -> bool:
    """Whether the rules of a market permit `action` to a position of signed size `side`."""
    target = action_target(side, action, market.sizes)
    return is_legal(side, action, num_actions, market.reverse, market.position_adjustment, target)


@kernel
def step(
    account: NDArray[np.float64], trade: NDArray[np.float64], bars: Bars, t: int, action: int, market: Market
) -> float:
    """`step_to_target` to the target of `action`.  An illegal action holds and returns NaN."""
    side = account[ACC_SIDE]
    legal = permits(market, side, action, count_actions(market.sizes))
    target = action_target(side, action, market.sizes) if legal else math.nan
    return step_to_target(account, trade, bars, t, target, market)


@kernel
def step_to_target(
    account: NDArray[np.float64], trade: NDArray[np.float64], bars: Bars, t: int, target: float, market: Market
) -> float:
    """Trade to the signed size `target`, decided at the close of bar t; the reward of bar t + 1, in ranges.

    The fill is at the open of bar t + 1: the old position earns from close to open, the new one from open to close.
    Writes account [NUM_ACCOUNT_FIELDS].  Writes trade [NUM_TRADE_FIELDS] where a trade was closed, else
    trade[EXIT_BAR] = -1.  A target that the rules forbid holds and returns NaN: callers mask illegal actions, and a
    fault of theirs must show.
    """
    # All bars are read in one block.  In a branch or a callee each of the arrays is reference-counted, atomically, and
    # a step takes six times as long.
    decision_ns, close_ns, decision_bid = bars.time[t], bars.time[t + 1], bars.close[t]
    open_bid, open_ask = bars.open[t + 1], bars.ask_open[t + 1]
    close_bid, close_ask = bars.close[t + 1], bars.ask_close[t + 1]
    trade[EXIT_BAR] = -1
    before, side = account[ACC_EQUITY], account[ACC_SIDE]
    permitted = market.position_adjustment if target * side > 0 else market.reverse
    legal = abs(target) <= 1 and (target == side or target * side == 0 or permitted)
    open_ns = max(decision_ns, close_ns - market.interval_ns)
    book_financing(account, decision_ns, open_ns, market)
    if legal and target != side:
        opened, closed = fill_size(side, target)
        if closed > 0:
            exit_px, left = fill_px(open_bid, open_ask, -side, market), target if side * target > 0 else 0.0
            close_position(account, trade, exit_px, t + 1, market, left)
        if opened > 0:
            open_position(account, target, opened, open_bid, open_ask, t + 1, market)
    book_financing(account, open_ns, close_ns, market)
    mark_to_market(account, close_bid, close_ask, market)
    if not legal:
        return math.nan
    gain = account[ACC_EQUITY] - before
    reward = float(gain - market.mae_penalty * account[ACC_ADVERSE_EXCURSION]) / market.range_px
    return reward - risk_penalty(market, account[ACC_SIDE] * (close_bid - decision_bid) / market.range_px)


@inlined
def risk_penalty(market: Market, change: float) -> float:
    """What the reward loses for a change of the price times the size of the position, both in ranges."""
    return 0.5 * market.risk_aversion * change * change


@kernel
def close_out(account: NDArray[np.float64], trade: NDArray[np.float64], bars: Bars, t: int, market: Market) -> float:
    """Close the open position, if any, at the close of bar t; the reward in ranges.  `trade` as in `step_to_target`."""
    trade[EXIT_BAR] = -1
    before, side = account[ACC_EQUITY], account[ACC_SIDE]
    if side == 0:
        return 0.0
    close_position(account, trade, fill_px(bars.close[t], bars.ask_close[t], -side, market), t, market, 0.0)
    account[ACC_EQUITY] = account[ACC_BALANCE]
    return float(account[ACC_EQUITY] - before) / market.range_px


@kernel
def fill_px(bid: float, ask: float, side: float, market: Market) -> float:
    """Price of a fill: ask + slippage of a purchase (side > 0), bid - slippage of a sale."""
    return ask + market.slippage_px if side > 0 else bid - market.slippage_px


@kernel
def open_position(
    account: NDArray[np.float64], side: float, opened: float, bid: float, ask: float, t: int, market: Market
) -> None:
    """Make the position one of signed size `side` by a fill of size `opened` at the open of bar t, at `bid` and `ask`.

    Where a position is open, its prices become the means of both fills.
    """
    entry_px, mark_px = fill_px(bid, ask, side, market), bid if side > 0 else ask
    if account[ACC_SIDE] == 0:
        account[ACC_ENTRY_BAR] = t
    else:
        added = opened / abs(side)
        entry_px = account[ACC_ENTRY_PX] + added * (entry_px - account[ACC_ENTRY_PX])
        mark_px = account[ACC_MARK_PX] + added * (mark_px - account[ACC_MARK_PX])
    account[ACC_SIDE] = side
    account[ACC_ENTRY_PX] = entry_px
    account[ACC_MARK_PX] = mark_px


@kernel
def close_position(
    account: NDArray[np.float64], trade: NDArray[np.float64], exit_px: float, t: int, market: Market, left: float
) -> None:
    """Reduce the position to the signed size `left` in bar t by a fill at `exit_px`, and write the trade."""
    part = 1.0 - left / account[ACC_SIDE]
    side, entry_px, financing_px = account[ACC_SIDE] - left, account[ACC_ENTRY_PX], part * account[ACC_FINANCING]
    profit_px = side * (exit_px - entry_px) - 2.0 * market.commission_px * abs(side) + financing_px
    trade[ENTRY_BAR] = account[ACC_ENTRY_BAR]
    trade[EXIT_BAR] = t
    trade[TRADE_SIDE] = side
    trade[ENTRY_PX] = entry_px
    trade[EXIT_PX] = exit_px
    trade[PROFIT_PX] = profit_px
    trade[ADVERSE_EXCURSION_SUM_PX] = part * account[ACC_ADVERSE_EXCURSION_SUM]
    trade[BARS_HELD] = account[ACC_HELD]
    trade[FINANCING_PX] = financing_px
    account[ACC_BALANCE] += profit_px
    if left == 0:
        account[ACC_SIDE:] = 0.0
        return
    account[ACC_SIDE] = left
    for field in range(ACC_UNREALISED, NUM_ACCOUNT_FIELDS):  # all of them are proportional to the size
        account[field] *= 1.0 - part


@kernel
def mark_to_market(account: NDArray[np.float64], bid: float, ask: float, market: Market) -> None:
    """Mark the account at the close of a bar: a long position at `bid`, a short one at `ask`."""
    side = account[ACC_SIDE]
    if side != 0:
        price = bid if side > 0 else ask
        unrealised = side * (price - account[ACC_ENTRY_PX]) - market.commission_px * abs(side)
        excursion = max(0.0, side * (account[ACC_MARK_PX] - price))
        account[ACC_HELD] += 1
        account[ACC_UNREALISED] = unrealised
        account[ACC_ADVERSE_EXCURSION] = excursion
        account[ACC_ADVERSE_EXCURSION_SUM] += excursion
        account[ACC_MAE] = max(account[ACC_MAE], excursion)
        account[ACC_MFE] = max(account[ACC_MFE], unrealised)
    account[ACC_EQUITY] = account[ACC_BALANCE] + account[ACC_UNREALISED] + account[ACC_FINANCING]


@kernel
def write_position(out: NDArray[np.float32], account: NDArray[np.float64], market: Market) -> None:
    """Write into out [NUM_POSITION_FIELDS] the position of the account, distances in ranges."""
    side, range_px = account[ACC_SIDE], market.range_px
    out[position.SIDE] = side
    out[position.PREVIOUS_SIDE] = side
    out[position.HELD] = account[ACC_HELD]
    out[position.UNREALISED] = account[ACC_UNREALISED] / range_px
    out[position.ADVERSE_EXCURSION] = account[ACC_ADVERSE_EXCURSION] / range_px
    out[position.MAE] = account[ACC_MAE] / range_px
    out[position.MFE] = account[ACC_MFE] / range_px
    fill_cost = side * (account[ACC_ENTRY_PX] - account[ACC_MARK_PX])
    out[position.ENTRY_COST] = (fill_cost + market.commission_px * abs(side)) / range_px if side != 0 else 0.0


@kernel
def entry_cost(bars: Bars, t: int, market: Market) -> float:
    """Spread at the close of bar t, slippage and commission: the expected cost of opening a full position, ranges."""
    spread_px = float(bars.ask_close[t] - bars.close[t])
    return (spread_px + market.slippage_px + market.commission_px) / market.range_px


@kernel
def run_targets(
    equity: NDArray[np.float64],
    trades: NDArray[np.float64],
    account: NDArray[np.float64],
    bars: Bars,
    first: int,
    target: NDArray[np.float64],
    market: Market,
) -> int:
    """Trade to target [n], n > 0, at the closes of bars first .. first + n - 1 and close out; the number of trades.

    Writes equity [n], px: the equity one bar after each decision, the last one closed out.  Writes one row of trades
    [n, NUM_TRADE_FIELDS] for each trade.  `account` [NUM_ACCOUNT_FIELDS] is a new one.  A target that the rules forbid
    holds.
    """
    n, count = target.shape[0], 0
    for i in range(n):
        step_to_target(account, trades[count], bars, first + i, target[i], market)
        if trades[count, EXIT_BAR] >= 0:
            count += 1
        equity[i] = account[ACC_EQUITY]
    close_out(account, trades[count], bars, first + n, market)
    equity[n - 1] = account[ACC_EQUITY]
    return count + 1 if trades[count, EXIT_BAR] >= 0 else count


@kernel
def book_financing(account: NDArray[np.float64], start_ns: int, stop_ns: int, market: Market) -> None:
    """Book the financing of the nights in (start_ns, stop_ns] to the open position, if any."""
    side = account[ACC_SIDE]
    if side != 0:
        rate = market.swap_long_px if side > 0 else market.swap_short_px
        account[ACC_FINANCING] += rollovers(start_ns, stop_ns, market.closes_weekends) * rate * abs(side)
