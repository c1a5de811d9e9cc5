"""The market as a small trader meets it: fills, costs, swap, the ledger, rewards and chance codes.

One ledger: equity, rewards and the trade list come from `step` and `close_out`, and no other code books a fill.
Prices and profits are in price units (`_px`, of a full position of one unit of the base currency); rewards and
positions are in R, the mean bar range of the training part.  A position of half the size costs and earns half of
everything.  Read `Market`, then `step`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.market import position
from kernels.market.bars import Bars
from kernels.market.calendar import rollovers
from kernels.market.position import FULL_SIZE_ONLY, MAX_SIZES, action_target, count_actions, is_legal

# An account is a row of ACCOUNT float64 numbers.  Zeros are an account that is flat and has traded nothing.
ACC_BALANCE = 0  # sum of the profits of closed trades, px
ACC_EQUITY = 1  # balance + unrealised + swap of the open position, px
ACC_SIDE = 2  # signed size: -1 short, 0 flat, +1 long, fractions between; from here on all is 0 when flat
ACC_ENTRY_BAR = 3  # bar at whose open the position was filled
ACC_ENTRY_PX = 4  # the fill, slippage included
ACC_MARK_PX = 5  # price at the fill on the side that marks the position: bid for a long, ask for a short
ACC_HELD = 6  # closes since the fill
ACC_UNREALISED = 7  # at the last close, net of the commission of entry, without swap, px
ACC_ADVERSE_EXCURSION = 8  # how far the last close is beyond ACC_LEVEL_PX on the losing side, px, >= 0
ACC_ADVERSE_EXCURSION_SUM = 9  # sum of them since entry, px
ACC_MAE = 10  # largest of them since entry, px
ACC_MFE = 11  # largest ACC_UNREALISED since entry, px, >= 0
ACC_FINANCING = 12  # received since entry, px
NUM_ACCOUNT_FIELDS = 13

# A trade is a row of TRADE float64 numbers.
ENTRY_BAR = 0  # bar at whose open it was entered
EXIT_BAR = 1  # bar at whose open (`step`) or close (`close_out`) it was left; -1: no trade was closed
TRADE_SIDE = 2  # signed size
ENTRY_PX = 3  # fills, slippage included
EXIT_PX = 4
PROFIT_PX = 5  # net of every cost
ADVERSE_EXCURSION_SUM_PX = 6  # sum of the excursions at its closes
BARS_HELD = 7  # closes it lived through
FINANCING_PX = 8  # part of PROFIT_PX
NUM_TRADE_FIELDS = 9


class Market(NamedTuple):
    """Instrument, costs and rules; `new_market` makes one."""

    range_px: float  # R, the mean bar range of the training part
    pip_px: float
    slippage_px: float  # of a fill
    commission_px: float  # of a side
    swap_long_px: float  # of a night, positive = received
    swap_short_px: float
    mae_penalty: float  # k: what a bar's excursion takes from its reward; 0 = reward is profit
    interval_ns: int  # from close to close
    reverse: bool  # an open position may be turned in one action
    closes_weekends: bool  # it closes over them, see `rollovers`
    sizes: tuple[float, ...]  # [MOST_SIZES] of an entry: fractions of a full position, ascending, then 0


def new_market(
    *,
    range_px: float,
    pip_px: float,
    interval_ns: int,
    slippage_px: float = 0.0,
    commission_px: float = 0.0,
    swap_long_px: float = 0.0,
    swap_short_px: float = 0.0,
    mae_penalty: float = 0.0,
    reverse: bool = False,
    closes_weekends: bool = True,
    sizes: Sequence[float] = FULL_SIZE_ONLY,
) -> Market:
    """A market whose fields have one type each, so that kernels compile once; no cost but the spread by default."""
    if not all(0 < value < math.inf for value in (range_px, pip_px, interval_ns)):
        raise ValueError(f"range {range_px}, pip {pip_px} and interval {interval_ns} must be positive and finite")
    if not all(0 <= value < math.inf for value in (slippage_px, commission_px, mae_penalty)):
        raise ValueError("slippage, commission and weight of the excursion must be finite and not negative")
    return Market(
        float(range_px),
        float(pip_px),
        float(slippage_px),
        float(commission_px),
        float(swap_long_px),
        float(swap_short_px),
        float(mae_penalty),
        int(interval_ns),
        bool(reverse),
        bool(closes_weekends),
        _pad_sizes(sizes),
    )


def _pad_sizes(sizes: Sequence[float]) -> tuple[float, ...]:
    """`sizes` as MOST_SIZES numbers: a fixed length, so that kernels are the same for every number of sizes."""
    given = [float(size) for size in sizes]
    while given and given[-1] == 0:
        given.pop()
    if given != sorted(set(given)) or not all(0 < size <= 1 for size in given) or not given:
        raise ValueError(f"sizes {list(sizes)} are not ascending fractions of a position, within (0, 1]")
    if len(given) > MAX_SIZES:
        raise ValueError(f"{len(given)} sizes are more than {MAX_SIZES}")
    return (*given, *[0.0] * (MAX_SIZES - len(given)))


def new_accounts(n: int) -> NDArray[np.float64]:
    """[n, ACCOUNT] flat accounts."""
    return np.zeros((n, NUM_ACCOUNT_FIELDS))


@kernel
def step(
    account: NDArray[np.float64], trade: NDArray[np.float64], bars: Bars, t: int, action: int, market: Market
) -> float:
    """`step_to_target` where `action` leads; an illegal one is a HOLD and returns NaN."""
    side = account[ACC_SIDE]
    legal = is_legal(side, action, count_actions(market.sizes), market.reverse)
    target = action_target(side, action, market.sizes) if legal else math.nan
    return step_to_target(account, trade, bars, t, target, market)


@kernel
def step_to_target(
    account: NDArray[np.float64], trade: NDArray[np.float64], bars: Bars, t: int, target: float, market: Market
) -> float:
    """Reward in R of a signed size `target` decided at the close of bar t and filled at the open of bar t + 1.

    The old position earns from close to open, the new one from open to close.  trade[EXIT_BAR] >= 0 tells that a trade
    was closed.  A target that the rules forbid is a HOLD and returns NaN: callers mask, and a fault must show.
    """
    # all bars are read here, in one block: in a branch or a callee each of the arrays is reference-counted, atomically,
    # and a step takes six times as long
    seen_ns, close_ns = bars.time[t], bars.time[t + 1]
    open_bid, open_ask = bars.open[t + 1], bars.ask_open[t + 1]
    close_bid, close_ask = bars.close[t + 1], bars.ask_close[t + 1]
    trade[EXIT_BAR] = -1
    before, side = account[ACC_EQUITY], account[ACC_SIDE]
    free = target == side or target * side == 0 or (market.reverse and target * side < 0)  # no resizing
    legal = free and abs(target) <= 1
    open_ns = max(seen_ns, close_ns - market.interval_ns)
    book_financing(account, seen_ns, open_ns, market)
    if legal and target != side:
        if side != 0:
            close_position(account, trade, fill_px(open_bid, open_ask, -side, market), t + 1, market)
        if target != 0:
            open_position(account, target, open_bid, open_ask, t + 1, market)
    book_financing(account, open_ns, close_ns, market)
    mark_to_market(account, close_bid, close_ask, market)
    if not legal:
        return math.nan
    gain = account[ACC_EQUITY] - before
    return float(gain - market.mae_penalty * account[ACC_ADVERSE_EXCURSION]) / market.range_px


@kernel
def close_out(account: NDArray[np.float64], trade: NDArray[np.float64], bars: Bars, t: int, market: Market) -> float:
    """Reward in R of closing whatever is open at the close of bar t; `trade` as in `step`."""
    trade[EXIT_BAR] = -1
    before, side = account[ACC_EQUITY], account[ACC_SIDE]
    if side == 0:
        return 0.0
    close_position(account, trade, fill_px(bars.close[t], bars.ask_close[t], -side, market), t, market)
    account[ACC_EQUITY] = account[ACC_BALANCE]
    return float(account[ACC_EQUITY] - before) / market.range_px


@kernel
def fill_px(bid: float, ask: float, side: float, market: Market) -> float:
    """Price of a fill: a purchase (side > 0) at ask + slippage, a sale at bid - slippage."""
    return ask + market.slippage_px if side > 0 else bid - market.slippage_px


@kernel
def open_position(account: NDArray[np.float64], side: float, bid: float, ask: float, t: int, market: Market) -> None:
    """Open a position of `side` in bar t, which opens at `bid` and `ask`."""
    account[ACC_SIDE] = side
    account[ACC_ENTRY_BAR] = t
    account[ACC_ENTRY_PX] = fill_px(bid, ask, side, market)
    account[ACC_MARK_PX] = bid if side > 0 else ask


@kernel
def close_position(
    account: NDArray[np.float64], trade: NDArray[np.float64], exit_px: float, t: int, market: Market
) -> None:
    """Close the position with a fill in bar t at `exit_px` and write the trade."""
    side, entry_px, swap_px = account[ACC_SIDE], account[ACC_ENTRY_PX], account[ACC_FINANCING]
    profit_px = side * (exit_px - entry_px) - 2.0 * market.commission_px * abs(side) + swap_px
    trade[ENTRY_BAR] = account[ACC_ENTRY_BAR]
    trade[EXIT_BAR] = t
    trade[TRADE_SIDE] = side
    trade[ENTRY_PX] = entry_px
    trade[EXIT_PX] = exit_px
    trade[PROFIT_PX] = profit_px
    trade[ADVERSE_EXCURSION_SUM_PX] = account[ACC_ADVERSE_EXCURSION_SUM]
    trade[BARS_HELD] = account[ACC_HELD]
    trade[FINANCING_PX] = swap_px
    account[ACC_BALANCE] += profit_px
    account[ACC_SIDE:] = 0.0


@kernel
def mark_to_market(account: NDArray[np.float64], bid: float, ask: float, market: Market) -> None:
    """Value the account at the close of a bar: a long at `bid`, a short at `ask`; `side` brings in the size."""
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
    """out [RAW]: the account's position as the search and the features know it, distances in R."""
    side, R = account[ACC_SIDE], market.range_px
    out[position.SIDE] = side
    out[position.PREVIOUS_SIDE] = side
    out[position.HELD] = account[ACC_HELD]
    out[position.UNREALISED] = account[ACC_UNREALISED] / R
    out[position.ADVERSE_EXCURSION] = account[ACC_ADVERSE_EXCURSION] / R
    out[position.MAE] = account[ACC_MAE] / R
    out[position.MFE] = account[ACC_MFE] / R
    fill_cost = side * (account[ACC_ENTRY_PX] - account[ACC_MARK_PX])
    out[position.ENTRY_COST] = (fill_cost + market.commission_px * abs(side)) / R if side != 0 else 0.0


@kernel
def entry_cost(bars: Bars, t: int, market: Market) -> float:
    """Cost in R of opening a full position, as far as the close of bar t tells: spread, slippage and commission."""
    spread_px = float(bars.ask_close[t] - bars.close[t])
    return (spread_px + market.slippage_px + market.commission_px) / market.range_px


@kernel
def run_actions(
    equity: NDArray[np.float64],
    trades: NDArray[np.float64],
    account: NDArray[np.float64],
    bars: Bars,
    first: int,
    actions: NDArray[np.int8],
    market: Market,
) -> int:
    """Number of trades of the n > 0 `actions` decided at bars first.., from flat to closed out at bar first + n.

    `account` [ACCOUNT] is new.
    equity [n] px one bar after each decision, the last one closed out; trades [n, TRADE], n rows are enough for any
    sequence.  Illegal actions hold.
    """
    n, count = actions.shape[0], 0
    for i in range(n):
        step(account, trades[count], bars, first + i, actions[i], market)
        if trades[count, EXIT_BAR] >= 0:
            count += 1
        equity[i] = account[ACC_EQUITY]
    close_out(account, trades[count], bars, first + n, market)
    equity[n - 1] = account[ACC_EQUITY]
    return count + 1 if trades[count, EXIT_BAR] >= 0 else count


@kernel
def book_financing(account: NDArray[np.float64], start_ns: int, stop_ns: int, market: Market) -> None:
    """Book the nights in (start_ns, stop_ns] to the open position, if there is one."""
    side = account[ACC_SIDE]
    if side != 0:
        rate = market.swap_long_px if side > 0 else market.swap_short_px
        account[ACC_FINANCING] += rollovers(start_ns, stop_ns, market.closes_weekends) * rate * abs(side)
