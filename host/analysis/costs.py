"""What each cost took of a record, and what is left of it where costs and fills are worse than assumed.

The trades of a record are replayed through the ledger.  Without a spread they are filled halfway between bid and ask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.analysis.record import Floats, TradingRecord, net_pips, trade_targets
from kernels.market.ledger import BARS_HELD, ENTRY_BAR, FINANCING_PX, TRADE_SIDE

SPREAD_FACTORS = 0.0, 0.5, 1.0, 1.5, 2.0, 3.0
MORE_SLIPPAGE_PIPS = 0.1, 0.5  # of a fill
SKIPPED = 0.1  # of the entries


def costs_taken(record: TradingRecord) -> dict[str, float]:
    """Pips: "gross" less what "spread", "slippage", "commission" and "swap" took is "net"; received swap is negative.

    A fill pays half the spread of its moment.
    """
    market, (size, spread_px) = record.market, fills(record)
    taken_px = {
        "spread": float(size @ spread_px) / 2,
        "slippage": market.slippage_px * float(size.sum()),
        "commission": market.commission_px * float(size.sum()),
        "swap": 0.0 - float(record.trades[:, FINANCING_PX].sum()),
    }
    net, taken = net_pips(record), {name: px / market.pip_px for name, px in taken_px.items()}
    return {"gross": net + sum(taken.values()), **taken, "net": net}


def fills(record: TradingRecord) -> tuple[Floats, Floats]:
    """Sizes [n + 1] of the fills of each decision and of the close-out, and their spreads [n + 1], px."""
    bars = record.bars
    spread_px = np.append((bars.ask_open - bars.open)[1:], bars.ask_close[-1] - bars.close[-1])
    return np.abs(np.diff(held_targets(record), prepend=0.0, append=0.0)), spread_px


def break_even_spread(record: TradingRecord) -> float | None:
    """The spread in pips, the same at all fills, at which net is 0; negative: it loses without one; None: no trade."""
    size = float(fills(record)[0].sum()) / 2
    taken = costs_taken(record)
    return (taken["net"] + taken["spread"]) / size if size > 0 else None


def cost_sensitivity(record: TradingRecord, seed: int = 0) -> list[dict[str, Any]]:
    """{"name", "net_pips"} of the same decisions at other costs and with worse fills; `seed` draws skipped entries."""
    trades, n = record.trades, len(record.target)
    held = held_targets(record)
    kept = np.random.Generator(np.random.Philox(seed)).random(len(trades)) >= SKIPPED
    later, fewer = np.append(0.0, held[:-1]), held * (targets_of(trades[kept], n) != 0)
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
    return trade_targets(bars, held_targets(record), market)


def held_targets(record: TradingRecord) -> Floats:
    """[n] the signed sizes that the ledger books."""
    return record.target if record.market.position_adjustment else targets_of(record.trades, len(record.target))


def targets_of(trades: NDArray[np.float64], n: int) -> Floats:
    """[n] the signed sizes that the ledger books as these trades of n decisions."""
    target = np.zeros(n)
    for entry, held, side in trades[:, [ENTRY_BAR, BARS_HELD, TRADE_SIDE]].tolist():
        target[int(entry) - 1 : int(entry + held) - 1] = side
    return target
