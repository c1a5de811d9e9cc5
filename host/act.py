"""`act`: follow a feed of closed bars and print one decision for each, the same one a backtest makes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from host.agent import Agent, Setting, load_agent, reading_of
from host.backtest import COLUMNS, format_decision, new_trader
from host.feed import Bar, feed_bars
from host.formats import ReadOptions
from host.progress import say
from kernels._jit import program_digest
from kernels.bars import Bars, take
from kernels.features import HISTORY
from kernels.gumbel import SearchConfig
from kernels.market import ACC_SIDE, TRADE, new_accounts, step
from kernels.ort import check
from kernels.position import target_side
from kernels.trader import decide


class History:
    """The last bars of a feed, at least HISTORY of them once so many have come, in arrays that never move for long."""

    def __init__(self, capacity: int = 8 * HISTORY) -> None:
        kinds = (np.int64 if name == "time" else np.float64 for name in Bars._fields)
        self._all = Bars._make(np.zeros(capacity, kind) for kind in kinds)
        self._count = 0

    def append(self, bar: Bar) -> None:
        """Take in the next closed bar; the oldest are forgotten when the room is full."""
        if self._count == len(self._all.time):
            for column in self._all:
                column[:HISTORY] = column[-HISTORY:]
            self._count = HISTORY
        columns: tuple[NDArray[Any], ...] = self._all
        for column, value in zip(columns, bar, strict=True):
            column[self._count] = value
        self._count += 1

    @property
    def bars(self) -> Bars:
        """Views of the bars at hand; the newest is the last."""
        return take(self._all, 0, self._count)


class Actor:
    """The state of acting: bars, ledger and the decision that waits for its fill."""

    def __init__(self, agent: Agent, setting: Setting, search: SearchConfig) -> None:
        self._trader = new_trader(agent, setting, search)
        self._history = History()
        self._account = new_accounts(1)[0]
        self._trade = np.zeros(TRADE)
        self._pending: int | None = None  # action decided at the last bar, filled by the next one

    def on_bar(self, bar: Bar) -> bool:
        """Book the fill of the last decision and decide again; False during the warm-up."""
        self._history.append(bar)
        bars = self._history.bars
        t, trader = len(bars.time) - 1, self._trader
        if self._pending is not None:
            step(self._account, self._trade, bars, t - 1, self._pending, trader.market)
        if t < HISTORY - 1:
            return False
        extra = np.zeros((len(bars.time), 0), np.float32)
        check(decide(trader, self._account, bars, extra, t))
        self._pending = int(trader.planner.action[0])
        return True

    def decision(self, bar: Bar, latency_us: int) -> list[str]:
        """The row to print after `on_bar`."""
        planner = self._trader.planner
        action = int(planner.action[0])
        target = target_side(self._account[ACC_SIDE], action, self._trader.market.sizes)
        return format_decision(bar.time, action, target, planner.value[0], planner.policy[0], latency_us)


def act(actor: Actor, feed: Iterable[Bar], out: IO[str], as_json: bool) -> int:
    """Print a header and one line per closed bar after the warm-up, flushed; the number of decisions."""
    decisions = 0
    if not as_json:
        print(",".join(COLUMNS), file=out, flush=True)
    for bar in feed:
        begin = time.perf_counter()
        if not actor.on_bar(bar):
            continue
        row = actor.decision(bar, round((time.perf_counter() - begin) * 1e6))
        print(as_json_line(row) if as_json else ",".join(row), file=out, flush=True)
        decisions += 1
    return decisions


def as_json_line(row: list[str]) -> str:
    """The same decision as a JSON object."""
    record = dict(zip(COLUMNS, row, strict=True))
    return json.dumps({k: v if k in ("time", "action") else json.loads(v) for k, v in record.items()})


def act_on_feed(
    feed: str, model: Path, reading: ReadOptions, follow: bool, out: IO[str], as_json: bool
) -> int:
    """`act`: load and check the model, then decide for every bar of the feed; the number of decisions."""
    loaded = load_agent(model)
    say(f"swt {program_digest()}, model {loaded.sha256[:16]}, waiting for {HISTORY} closed bars")
    actor = Actor(loaded.agent, loaded.setting, loaded.search)
    return act(actor, feed_bars(feed, reading_of(loaded, reading), follow), out, as_json)
