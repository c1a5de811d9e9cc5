"""Policies without knowledge on the bars of a record, at its costs and by its rules: what an agent has to beat."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from host.analysis.record import Floats, TradingRecord, net_pips, record_of, trade_targets
from host.artifact.networks import MarketSpec, OnnxNetworks
from host.evaluation.backtest import new_backtest_policy, run_backtest
from kernels.market.bars import Bars
from kernels.market.ledger import BARS_HELD, TRADE_SIDE
from kernels.market.position import HOLD
from kernels.market.statistics import draw_schedule
from kernels.search.config import SearchConfig

# Fixed: a parameter that is chosen by its result is no baseline.
MOMENTUM_BARS = 20
FAST_BARS, SLOW_BARS = 10, 20  # of the moving averages; those of SmaCross in the guide of backtesting.py
NUM_SCHEDULES = 63  # of the random baseline; odd, so that one of them is the median
SCHEDULE_STREAM = 1 << 20  # schedule i has stream SCHEDULE_STREAM + i; trainers have lower ones


def baseline_records(record: TradingRecord, seed: int) -> Iterator[tuple[str, TradingRecord]]:
    """What policies of the largest size do on the same bars, one after the other; each decides by closes up to its bar.

    "random" is the median of NUM_SCHEDULES random arrangements of the record's own trades.  "momentum" goes with the
    move of MOMENTUM_BARS bars, "reversal" against that of one bar, "ma_cross" with the faster moving average.
    """
    for name, side in baseline_sides(record.bars.close[: len(record.target)]):
        target = max(record.market.sizes) * allowed_sides(side, record.market.reverse)
        yield name, trade_targets(record.bars, target, record.market)
    yield "random", random_record(record, seed)


def baseline_sides(close: Floats) -> Iterator[tuple[str, Floats]]:
    """The side [n] that each policy wants at closes [n]: one after the other, a year of minutes takes 3 MB."""
    yield "flat", np.zeros(len(close))
    yield "long", np.ones(len(close))
    yield "short", -np.ones(len(close))
    yield "momentum", move_sign(close, MOMENTUM_BARS)
    yield "reversal", -move_sign(close, 1)
    crossed = np.sign(mean_less_close(close, FAST_BARS) - mean_less_close(close, SLOW_BARS))
    crossed[: SLOW_BARS - 1] = 0.0
    yield "ma_cross", crossed


def move_sign(close: Floats, length: int) -> Floats:
    """[n] sign of the move of the last `length` bars up to each close [n]; 0 before there are as many."""
    sign = np.zeros(len(close))
    sign[length:] = np.sign(close[length:] - close[:-length])
    return sign


def mean_less_close(close: Floats, length: int) -> Floats:
    """[n] mean of the last `length` closes less the last one; exactly 0 where the price stands still."""
    total = np.zeros(len(close))
    for lag in range(1, length):
        total[lag:] += close[:-lag] - close[lag:]
    return total / length


def allowed_sides(wanted: Floats, reverse: bool) -> Floats:
    """[n] sides as near to `wanted` [n] as the rules allow: without `reverse` a bar lies between opposite sides."""
    if reverse:
        return wanted
    side, sides = 0.0, list[float]()
    for want in wanted.tolist():
        side = 0.0 if side * want < 0 else want
        sides.append(side)
    return np.array(sides)


def random_record(record: TradingRecord, seed: int) -> TradingRecord:
    """The median, by net pips, of random arrangements of the record's trades: their sizes and lengths, any side."""
    trades, n = record.trades, len(record.target)
    held = trades[:, BARS_HELD].astype(np.int64)
    sizes, size = np.unique(np.abs(trades[:, TRADE_SIDE]), return_inverse=True)
    target_of_action = np.concatenate([[0.0], sizes, -sizes, [0.0]])
    actions, bar = np.full(n, HOLD, np.int32), np.arange(n)

    def schedule(i: int) -> TradingRecord:
        draw_schedule(actions, held, size, len(sizes), record.market.reverse, seed, SCHEDULE_STREAM + i)
        last = np.maximum.accumulate(np.where(actions != HOLD, bar, 0))
        return trade_targets(record.bars, target_of_action[actions[last]], record.market)

    pips = [net_pips(schedule(i)) for i in range(NUM_SCHEDULES)]
    return schedule(int(np.argsort(pips, kind="stable")[NUM_SCHEDULES // 2]))


def agent_record(
    networks: OnnxNetworks,
    spec: MarketSpec,
    search: SearchConfig,
    bars: Bars,
    extra: NDArray[np.float32],
    first: int,
    stop: int,
) -> TradingRecord:
    """What these networks do under `search` on bars [first, stop).  Untrained ones show search without learning."""
    result = run_backtest(new_backtest_policy(networks, spec, search), bars, extra, first, stop)
    return record_of(result, bars, first, spec.market)


def without_search(search: SearchConfig) -> SearchConfig:
    """`search` without weight: it decides for the most probable action of the policy head."""
    return search._replace(c_scale=0.0, num_simulations=1)
