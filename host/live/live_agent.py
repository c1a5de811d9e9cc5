"""An agent at work: the bars it has seen, its ledger, and the decision that waits for its fill."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from host.artifact.manifest import LoadedModel, load_model
from host.artifact.model_file import ModelError
from host.artifact.networks import MarketSpec, OnnxNetworks
from host.data.feed import Bar
from host.data.parsing import format_utc
from kernels.jit import specialize
from kernels.live.policy_step import PolicyState, decide
from kernels.market.bars import Bars, slice_bars
from kernels.market.features import HISTORY, new_feature_work
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, new_accounts, step_to_target
from kernels.market.position import ACTIONS, NUM_POSITION_FIELDS, action_kind
from kernels.ort import OrtError, check_status
from kernels.search.config import SearchConfig

RANGES_PER_PRICE = 1000.0  # bar ranges in a price of a random walk
DECISION_COLUMNS = ("time", "action", "target", "value", "p_hold", "p_buy", "p_sell", "p_close", "latency_us")


def new_policy_state(agent: OnnxNetworks, spec: MarketSpec, search: SearchConfig) -> PolicyState:
    """An agent at one root without noise."""
    return PolicyState(
        planner=agent.planner(1, search),
        feature_spec=spec.features,
        normaliser=spec.normaliser,
        codes=spec.codes,
        market=spec.market,
        context_features=np.zeros((agent.shape.context, agent.shape.features), np.float32),
        feature_work=new_feature_work(spec.features),
        position=np.zeros(NUM_POSITION_FIELDS, np.float32),
        target=np.zeros(1),
    )


def format_decision(time_ns: int, action: int, target: float, value: float, policy: Any, latency_us: int) -> list[str]:
    """One row in the columns of `act`: `policy` [A] summed over sizes; the floats survive a round trip."""
    shares = policy.tolist()
    k = len(shares) // 2 - 1
    kinds = shares[:1], shares[1 : 1 + k], shares[1 + k : -1], shares[-1:]
    return [
        format_utc(int(time_ns)),
        ACTIONS[action_kind(int(action), len(shares))],
        np.format_float_positional(target + 0.0, trim="-"),  # no -0
        repr(float(value)),
        *(repr(float(sum(kind))) for kind in kinds),
        str(latency_us),
    ]


class DecisionError(ArithmeticError):
    """There is no decision: numbers came out that are none."""

    exit_code = 1


class BarRing:
    """The last bars of a feed, at least `keep` of them once so many have come, in arrays that never move for long."""

    def __init__(self, capacity: int = 8 * HISTORY, keep: int = HISTORY) -> None:
        kinds = (np.int64 if name == "time" else np.float64 for name in Bars._fields)
        self._all = Bars._make(np.zeros(capacity, kind) for kind in kinds)
        self._count, self._keep = 0, keep
        self.bars = slice_bars(self._all, 0, 0)  # views of the bars at hand; the newest is the last

    def append(self, bar: Bar) -> None:
        """Take in the next closed bar; the oldest are forgotten when the room is full."""
        if self._count == len(self._all.time):
            for column in self._all:
                column[: self._keep] = column[-self._keep :]
            self._count = self._keep
        columns: tuple[NDArray[Any], ...] = self._all
        for column, value in zip(columns, bar, strict=True):
            column[self._count] = value
        self._count += 1
        self.bars = slice_bars(self._all, 0, self._count)


class LiveAgent:
    """The state of acting: bars, ledger and the decision that waits for its fill."""

    def __init__(self, agent: OnnxNetworks, spec: MarketSpec, search: SearchConfig) -> None:
        self._policy = new_policy_state(agent, spec, search)
        self.history = agent.history  # bars that a decision depends on
        self._ring = BarRing(keep=self.history)
        self._account = new_accounts(1)[0]
        self._last_trade = np.zeros(NUM_TRADE_FIELDS)
        self._extra = np.zeros((0, 0), np.float32)  # features of a self-test, none here
        bars = self._ring.bars
        self._decide = specialize(decide, self._policy, self._account, bars, self._extra, 0)
        self._step_to = specialize(step_to_target, self._account, self._last_trade, bars, 0, 0.0, self._policy.market)
        self._pending_target: float | None = None  # target decided at the last bar, filled by the next one

    @property
    def bars(self) -> Bars:
        """The bars at hand; the newest is the last."""
        return self._ring.bars

    @property
    def target(self) -> float:
        """The side that the last decision wants."""
        return float(self._policy.target[0]) + 0.0  # no -0

    @property
    def feature_drift(self) -> float:
        """Root mean square of the last decision's normalised features: 1 in training, NaN if one is not finite."""
        x = self._policy.context_features[-1]
        return math.sqrt(float(x @ x) / len(x))

    def on_bar(self, bar: Bar) -> bool:
        """Book the fill of the last decision and decide again; False during the warm-up."""
        self._ring.append(bar)
        bars = self._ring.bars
        t, trader = len(bars.time) - 1, self._policy
        if self._pending_target is not None:
            self._step_to(self._account, self._last_trade, bars, t - 1, self._pending_target, trader.market)
        if t < self.history - 1:
            return False
        check_status(self._decide(trader, self._account, bars, self._extra, t))
        if not math.isfinite(trader.planner.value[0] + sum(trader.planner.policy[0].tolist())):
            raise DecisionError(f"the bar that closes at {bar.time} ns: value or policy is not a finite number")
        self._pending_target = self.target
        return True

    def decision_row(self, bar: Bar, latency_us: int) -> list[str]:
        """The row to print after `on_bar`."""
        planner = self._policy.planner
        action = int(planner.action[0])
        return format_decision(bar.time, action, self.target, planner.value[0], planner.policy[0], latency_us)

    def state(self) -> dict[str, Any]:
        """All that the next decision depends on besides the last `history` bars."""
        return {"account": self._account.tolist(), "pending": self._pending_target}

    def restore(self, state: dict[str, Any], bars: list[Bar]) -> None:
        """Go on from `state`, as it was after the last of `bars`."""
        self._ring = BarRing(keep=self.history)
        for bar in bars[-self.history :]:
            self._ring.append(bar)
        self._account[:] = state["account"]
        self._pending_target = state["pending"]


def load_live_model(path: Path) -> LoadedModel:
    """`load_model`, with two decisions made: ModelRefused if it cannot, and kernels are at hand when a bar comes."""
    loaded = load_model(path)
    measure_latencies(loaded.networks, loaded.market_spec, loaded.search, 2)
    return loaded


def measure_latencies(agent: OnnxNetworks, spec: MarketSpec, search: SearchConfig, decisions: int) -> list[int]:
    """Microseconds of decisions on a random walk at the scale of the market; the first two compile or load kernels."""
    actor, found = LiveAgent(agent, spec, search), list[int]()
    for bar in random_walk(spec.market, actor.history - 1 + decisions):
        begin = time.perf_counter()
        try:
            decided = actor.on_bar(bar)
        except (DecisionError, OrtError) as error:
            raise ModelError(f"it cannot even decide on noise: {error}") from None
        if decided:
            found.append(elapsed_us(begin))
    return found


def random_walk(market: Market, bars: int) -> Iterator[Bar]:
    """Bars without meaning."""
    pip, price = market.pip_px, market.range_px * RANGES_PER_PRICE
    moves = np.random.Generator(np.random.Philox(key=0)).standard_normal(bars) * market.range_px / 2
    for i, move in enumerate(moves.tolist()):
        close = max(price + move, price / 2)
        high, low = max(price, close) + pip, min(price, close) - pip
        yield Bar((i + 1) * market.interval_ns, price, high, low, close, price + pip, close + pip, 1.0)
        price = close


class DecisionPrinter:
    """Decisions on stdout: CSV with a header or JSON lines, flushed."""

    def __init__(self, out: IO[str], as_json: bool) -> None:
        self._out, self._as_json = out, as_json
        if not as_json:
            print(",".join(DECISION_COLUMNS), file=out, flush=True)

    def print(self, row: list[str]) -> None:
        """One decision."""
        print(decision_json(row) if self._as_json else ",".join(row), file=self._out, flush=True)


def decision_json(row: list[str]) -> str:
    """The same decision as a JSON object."""
    record = dict(zip(DECISION_COLUMNS, row, strict=True))
    return json.dumps({k: v if k in ("time", "action") else json.loads(v) for k, v in record.items()})


def elapsed_us(begin: float) -> int:
    """Whole microseconds since a `perf_counter`."""
    return round((time.perf_counter() - begin) * 1e6)
