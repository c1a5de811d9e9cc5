"""`LiveAgent`: a loaded model that decides bar by bar, with its last bars, its ledger and its unfilled target."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from host.artifact.manifest import LoadedModel
from host.artifact.model_file import ModelError
from host.artifact.networks import MarketSpec, OnnxNetworks
from host.data.feed import Bar
from host.data.parsing import format_utc
from kernels.jit import specialize
from kernels.live.policy_step import PolicyState, decide
from kernels.market.bars import Bars, slice_bars
from kernels.market.features import HISTORY, feature_weights, new_feature_work
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, new_accounts, step_to_target
from kernels.market.position import ACTIONS, NUM_POSITION_FIELDS, action_kind
from kernels.ort import OrtError, check_status
from kernels.search.config import SearchConfig

RANGES_PER_PRICE = 1000.0  # of the random walk: its first price in mean bar ranges
DECISION_COLUMNS = ("time", "action", "target", "value", "p_hold", "p_buy", "p_sell", "p_close", "latency_us")


def new_policy_state(networks: OnnxNetworks, spec: MarketSpec, search: SearchConfig, roots: int = 1) -> PolicyState:
    """The arrays of a policy that searches without exploration noise; ValueError for the codes of other networks."""
    if len(spec.codes.centres) != networks.shape.codes:
        raise ValueError(f"networks of {networks.shape.codes} chance codes, and a market of {len(spec.codes.centres)}")
    return PolicyState(
        planner=networks.planner(roots, search),
        feature_spec=spec.features,
        normaliser=spec.normaliser,
        codes=spec.codes,
        market=spec.market,
        context_features=np.zeros((networks.shape.context, networks.shape.features), np.float32),
        feature_work=new_feature_work(spec.features),
        position=np.zeros(NUM_POSITION_FIELDS, np.float32),
        target=np.zeros(1),
    )


def format_decision(time_ns: int, action: int, target: float, value: float, policy: Any, latency_us: int) -> list[str]:
    """A row of DECISION_COLUMNS; `policy` [A] is summed over position sizes, floats survive a round trip."""
    probabilities = policy.tolist()
    k = len(probabilities) // 2 - 1  # position sizes
    kinds = probabilities[:1], probabilities[1 : 1 + k], probabilities[1 + k : -1], probabilities[-1:]
    return [
        format_utc(int(time_ns)),
        ACTIONS[action_kind(int(action), len(probabilities))],
        np.format_float_positional(target + 0.0, trim="-"),  # no -0
        repr(float(value)),
        *(repr(float(sum(kind))) for kind in kinds),
        str(latency_us),
    ]


class DecisionError(ArithmeticError):
    """No decision was made: its value or its policy is not a finite number."""

    exit_code = 1


class BarRing:
    """The newest bars of a feed in arrays of `capacity` bars, of which the newest `keep` survive a full array.

    The arrays are allocated once, so that views of them stay valid until the next append.
    """

    def __init__(self, capacity: int = 8 * HISTORY, keep: int = HISTORY) -> None:
        dtypes = (np.int64 if name == "time" else np.float64 for name in Bars._fields)
        self._all = Bars._make(np.zeros(capacity, dtype) for dtype in dtypes)
        self._count, self._keep = 0, keep
        self.bars = slice_bars(self._all, 0, 0)  # views; the newest bar is the last

    def append(self, bar: Bar) -> None:
        """Add the next closed bar; if the arrays are full, the newest `keep` bars move to their front first."""
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
    """The agent itself, before any risk limit: its bars, its own ledger and the target that the next bar fills."""

    def __init__(self, networks: OnnxNetworks, spec: MarketSpec, search: SearchConfig) -> None:
        self._policy = new_policy_state(networks, spec, search)
        self.history = networks.history  # bars that a decision depends on
        self._ring = BarRing(keep=self.history)
        self._account = new_accounts(1)[0]
        self._last_trade = np.zeros(NUM_TRADE_FIELDS)
        self._feature_weights = feature_weights(spec.features)
        self._extra = np.zeros((0, 0), np.float32)  # only a self-test has extra features
        bars = self._ring.bars
        self._decide = specialize(decide, self._policy, self._account, bars, self._extra, 0)
        self._step_to = specialize(step_to_target, self._account, self._last_trade, bars, 0, 0.0, self._policy.market)
        self._pending_target: float | None = None  # decided at the last bar, filled at the open of the next

    @property
    def bars(self) -> Bars:
        """Views of the newest bars; the newest is the last."""
        return self._ring.bars

    @property
    def target(self) -> float:
        """The signed size, -1 to 1, that the last decision asks for."""
        return float(self._policy.target[0]) + 0.0  # no -0

    @property
    def feature_drift(self) -> float:
        """Root mean square of the features of the last decision, standardised; 1 in training, NaN if one is NaN."""
        x = self._policy.context_features[-1] / self._feature_weights
        return math.sqrt(float(x @ x) / len(x))

    def on_bar(self, bar: Bar) -> bool:
        """Fill the pending target at the open of `bar` and decide at its close; False during the warm-up.

        Raises OrtError if a network fails, DecisionError if its numbers are not finite.
        """
        self._ring.append(bar)
        bars = self._ring.bars
        t, policy = len(bars.time) - 1, self._policy
        if self._pending_target is not None:
            self._step_to(self._account, self._last_trade, bars, t - 1, self._pending_target, policy.market)
        if t < self.history - 1:
            return False
        check_status(self._decide(policy, self._account, bars, self._extra, t))
        if not math.isfinite(policy.planner.value[0] + sum(policy.planner.policy[0].tolist())):
            raise DecisionError(f"the bar that closes at {bar.time} ns: value or policy is not a finite number")
        self._pending_target = self.target
        return True

    def decision_row(self, bar: Bar, latency_us: int) -> list[str]:
        """The row of DECISION_COLUMNS to print for the decision that `on_bar` made at `bar`."""
        planner = self._policy.planner
        action = int(planner.action[0])
        return format_decision(bar.time, action, self.target, planner.value[0], planner.policy[0], latency_us)

    def state(self) -> dict[str, Any]:
        """What the next decision depends on besides the last `history` bars, for the journal."""
        return {"account": self._account.tolist(), "pending_target": self._pending_target}

    def restore(self, state: dict[str, Any], bars: list[Bar]) -> None:
        """Set the state that was saved after the last of `bars`."""
        self._ring = BarRing(keep=self.history)
        for bar in bars[-self.history :]:
            self._ring.append(bar)
        self._account[:] = state["account"]
        self._pending_target = state["pending_target"]


def warm_up(loaded: LoadedModel) -> LoadedModel:
    """`loaded` after two decisions on noise, so that no kernel compiles at the first bar.  Raises ModelError."""
    measure_latencies(loaded, 2)
    return loaded


def measure_latencies(loaded: LoadedModel, decisions: int) -> list[int]:
    """Microseconds of each decision on a random walk; the first two compile or load kernels.  Raises ModelError."""
    agent, latencies = LiveAgent(loaded.networks, loaded.market_spec, loaded.search), list[int]()
    for bar in random_walk(loaded.market_spec.market, agent.history - 1 + decisions):
        begin = time.perf_counter()
        try:
            decided = agent.on_bar(bar)
        except (DecisionError, OrtError) as error:
            raise ModelError(f"it cannot even decide on noise: {error}") from None
        if decided:
            latencies.append(elapsed_us(begin))
    return latencies


def random_walk(market: Market, bars: int) -> Iterator[Bar]:
    """Yield `bars` bars of a random walk that has the mean bar range of the market."""
    pip, price = market.pip_px, market.range_px * RANGES_PER_PRICE
    moves = np.random.Generator(np.random.Philox(key=0)).standard_normal(bars) * market.range_px / 2
    for i, move in enumerate(moves.tolist()):
        close = max(price + move, price / 2)
        high, low = max(price, close) + pip, min(price, close) - pip
        yield Bar((i + 1) * market.interval_ns, price, high, low, close, price + pip, close + pip, 1.0)
        price = close


class DecisionPrinter:
    """Prints decisions to `out`, each flushed: CSV with a header, or JSON lines."""

    def __init__(self, out: IO[str], as_json: bool) -> None:
        self._out, self._as_json = out, as_json
        if not as_json:
            print(",".join(DECISION_COLUMNS), file=out, flush=True)

    def print(self, row: list[str]) -> None:
        """Print one decision, a row of DECISION_COLUMNS."""
        line = ",".join(row)
        if self._as_json:  # all but time and action are numbers
            fields = zip(DECISION_COLUMNS, row, strict=True)
            line = json.dumps({k: v if k in ("time", "action") else json.loads(v) for k, v in fields})
        print(line, file=self._out, flush=True)


def elapsed_us(begin: float) -> int:
    """Whole microseconds since `begin`, a value of `time.perf_counter`."""
    return round((time.perf_counter() - begin) * 1e6)
