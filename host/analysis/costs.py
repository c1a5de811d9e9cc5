"""What each cost took of a record, and what is left of it where costs and fills are worse than assumed.

The trades of a record are replayed through the ledger.  Without a spread they are filled halfway between bid and ask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.analysis.record import Floats, TradingRecord, net_pips, trade_targets
from kernels.market.ledger import BARS_HELD, ENTRY_BAR, EXIT_BAR, FINANCING_PX, TRADE_SIDE

SPREAD_FACTORS = 0.0, 0.5, 1.0, 1.5, 2.0, 3.0
MORE_SLIPPAGE_PIPS = 0.1, 0.5  # of a fill
SKIPPED = 0.1  # of the entries


def costs_taken(record: TradingRecord) -> dict[str, float]:
    """Pips: "gross" less what "spread", "slippage", "commission" and "swap" took is "net"; received swap is negative.

    A fill pays half the spread of its moment.
    """
    trades, market = record.trades, record.market
    size = np.abs(trades[:, TRADE_SIDE])
    taken_px = {
        "spread": float(size @ fill_spreads(record).sum(axis=1)) / 2,
        "slippage": 2 * market.slippage_px * float(size.sum()),
        "commission": 2 * market.commission_px * float(size.sum()),
        "swap": 0.0 - float(trades[:, FINANCING_PX].sum()),
    }
    net, taken = net_pips(record), {name: px / market.pip_px for name, px in taken_px.items()}
    return {"gross": net + sum(taken.values()), **taken, "net": net}


def fill_spreads(record: TradingRecord) -> Floats:
    """[m, 2] spread of entry and exit of each trade, px."""
    bars, trades = record.bars, record.trades
    entry, leave = trades[:, ENTRY_BAR].astype(np.int64), trades[:, EXIT_BAR].astype(np.int64)
    at_open, at_close = bars.ask_open - bars.open, bars.ask_close - bars.close
    # a position that is closed out has seen one close more than one that is closed at an open
    closed_out = trades[:, BARS_HELD] > leave - entry
    return np.stack([at_open[entry], np.where(closed_out, at_close[leave], at_open[leave])], axis=1)


def break_even_spread(record: TradingRecord) -> float | None:
    """The spread in pips, the same at all fills, at which net is 0; negative: it loses without one; None: no trade."""
    size = float(np.abs(record.trades[:, TRADE_SIDE]).sum())
    taken = costs_taken(record)
    return (taken["net"] + taken["spread"]) / size if size > 0 else None


def cost_sensitivity(record: TradingRecord, seed: int = 0) -> list[dict[str, Any]]:
    """{"name", "net_pips"} of the same decisions at other costs and with worse fills; `seed` draws skipped entries."""
    trades, n = record.trades, len(record.target)
    held = targets_of(trades, n)
    kept = np.random.Generator(np.random.Philox(seed)).random(len(trades)) >= SKIPPED
    later, fewer = np.append(0.0, held[:-1]), targets_of(trades[kept], n)
    found = {f"spread x {factor:g}": net_pips(with_costs(record, spread=factor)) for factor in SPREAD_FACTORS}
    found |= {f"slippage + {x:g} pips": net_pips(with_costs(record, slippage_pips=x)) for x in MORE_SLIPPAGE_PIPS}
    found["filled one bar later"] = net_pips(trade_targets(record.bars, later, record.market))
    found[f"{SKIPPED:.0%} of entries skipped"] = net_pips(trade_targets(record.bars, fewer, record.market))
    return [{"name": name, "net_pips": pips} for name, pips in found.items()]


def with_costs(record: TradingRecord, spread: float = 1.0, slippage_pips: float = 0.0) -> TradingRecord:
    """The record with every spread times `spread` about the same middle, and `slippage_pips` more slippage a fill."""
    bars, market = record.bars, record.market
    at_open = (spread - 1) / 2 * (bars.ask_open - bars.open)
    at_close = (spread - 1) / 2 * (bars.ask_close - bars.close)
    bars = bars._replace(
        open=bars.open - at_open,
        close=bars.close - at_close,
        ask_open=bars.ask_open + at_open,
        ask_close=bars.ask_close + at_close,
    )
    market = market._replace(slippage_px=market.slippage_px + slippage_pips * market.pip_px)
    return trade_targets(bars, targets_of(record.trades, len(record.target)), market)


def targets_of(trades: NDArray[np.float64], n: int) -> Floats:
    """[n] the signed sizes that the ledger books as these trades of n decisions."""
    target = np.zeros(n)
    for entry, held, side in trades[:, [ENTRY_BAR, BARS_HELD, TRADE_SIDE]].tolist():
        target[int(entry) - 1 : int(entry + held) - 1] = side
    return target
