"""Proofs that nothing at bar t depends on a later bar, nor on a bar before the warm-up.

What is observed at bar t is observed again after the later bars were changed, after they were cut off, and with the
promised number of earlier bars alone.  The numbers must be equal bit for bit.  freqtrade's lookahead-analysis and
recursive-analysis do the same with a strategy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.manifest import LoadedModel, market_spec_arrays
from host.config import Config
from host.data.feed import Bar
from host.data.instruments import Instrument
from host.evaluation.backtest import run_backtest
from host.live.live_agent import DECISION_COLUMNS, LiveAgent, format_decision, new_policy_state
from host.training.dataset import Dataset, new_dataset
from kernels.market.bars import Bars, slice_bars
from kernels.market.calendar import WEEK_NS
from kernels.market.features import HISTORY, FeatureSpec, compute_features, feature_names
from kernels.market.ledger import new_accounts

SPAN = 16  # bars that are observed at a time: the drawn one and those beside it
Values = NDArray[Any]
Observe = Callable[[Bars, int, int], Values]  # (bars, first, stop) -> [stop - first, columns] of bars [first, stop)


class Observed(NamedTuple):
    """Numbers that follow from bars."""

    columns: list[str]
    history: int  # bars that they depend on, as promised
    observe: Observe  # may look at bars from `stop` on: it must not depend on them
    observe_past: Observe  # the same numbers from bars that end at `stop`


class Difference(NamedTuple):
    """A number that depends on bars that it must not depend on."""

    bar: int
    column: str
    before: str
    change: str  # what was done to the other bars
    after: str


def observe_features(spec: FeatureSpec) -> Observed:
    """The raw features of bars, as training computes them."""

    def observe(bars: Bars, first: int, stop: int) -> Values:
        return compute_features(spec, bars, np.arange(first, stop), 1)

    return Observed(feature_names(spec), HISTORY, observe, observe)


def observe_decisions(loaded: LoadedModel) -> Observed:
    """The decisions of a backtest from a flat position, and those of `act` on past bars, as `act` prints them."""
    agent = LiveAgent(loaded.networks, loaded.market_spec, loaded.search)
    flat = {"account": new_accounts(1)[0].tolist(), "pending_target": None}

    def observe(bars: Bars, first: int, stop: int) -> Values:
        policy = new_policy_state(loaded.networks, loaded.market_spec, loaded.search)
        log = run_backtest(policy, bars, np.zeros((len(bars.time), 0), np.float32), first, stop + 1).log
        rows = zip(bars.time[first:stop], log.action, log.target, log.value, log.policy, strict=True)
        return np.array([format_decision(*row, 0)[1:-1] for row in rows])

    def observe_past(bars: Bars, first: int, stop: int) -> Values:
        agent.restore(flat, [])
        columns = slice_bars(bars, first - agent.history + 1, stop)
        feed = [Bar(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        return np.array([agent.decision_row(bar, 0)[1:-1] for bar in feed if agent.on_bar(bar)])

    return Observed(list(DECISION_COLUMNS[1:-1]), agent.history, observe, observe_past)


def draw_bars(num_bars: int, history: int, checks: int, seed: int) -> list[int]:
    """At most `checks` bars, ascending, each with `history` - 1 bars before it and one after it."""
    candidates = np.arange(history - 1, num_bars - 1)
    draw = np.random.Generator(np.random.Philox(key=seed))
    return sorted(draw.choice(candidates, min(checks, len(candidates)), replace=False).tolist())


def change_future(bars: Bars, t: int) -> Bars:
    """A copy of `bars` with another future after bar t: a week later, each move inverted and twice as large.

    No later move keeps its sign or its size; spreads and volumes are twice as large too.
    """
    changed = Bars._make(column.copy() for column in bars)
    level, later = bars.close[t], slice(t + 1, None)

    changed.time[later] += WEEK_NS
    changed.volume[later] = 2.0 * bars.volume[later] + 1.0
    for name, source in (("open", "open"), ("high", "low"), ("low", "high"), ("close", "close")):
        getattr(changed, name)[later] = level * (level / getattr(bars, source)[later]) ** 2
    for bid, ask, before, ask_before in (
        (changed.open, changed.ask_open, bars.open, bars.ask_open),
        (changed.close, changed.ask_close, bars.close, bars.ask_close),
    ):
        ask[later] = bid[later] * (ask_before[later] / before[later]) ** 2
    return changed


def find_lookahead(observed: Observed, bars: Bars, t: int) -> list[Difference]:
    """Every number at bar t, or at the SPAN - 1 bars before it, that depends on a bar after t."""
    first, stop = max(observed.history - 1, t - SPAN + 1), t + 1
    values = observed.observe(bars, first, stop)
    changed = observed.observe(change_future(bars, t), first, stop)
    past = observed.observe_past(slice_bars(bars, 0, stop), first, stop)
    found = list_differences(observed, first, values, "later bars changed", changed)
    return found + list_differences(observed, first, values, "later bars cut off", past)


def find_short_warmup(observed: Observed, bars: Bars, t: int) -> list[Difference]:
    """Every number at bar t, or at the SPAN - 1 bars after it, that depends on a bar before the promised history."""
    lead, span = t - observed.history + 1, min(SPAN, len(bars.time) - 1 - t)
    values = observed.observe(bars, t, t + span)
    alone = observed.observe(slice_bars(bars, lead, len(bars.time)), t - lead, t - lead + span)
    return list_differences(observed, t, values, f"without bars before {observed.history} of them", alone)


def list_differences(observed: Observed, first: int, before: Values, change: str, after: Values) -> list[Difference]:
    """The unequal numbers of `before` and `after` [n, columns], of bars from `first` on; NaN equals NaN."""
    unequal = (before != after) & ((before == before) | (after == after))
    return [
        Difference(first + i, observed.columns[c], str(before[i, c]), change, str(after[i, c]))
        for i, c in np.argwhere(unequal).tolist()
    ]


def find_fit_lookahead(bars: Bars, config: Config, instrument: Instrument, interval_ns: int) -> list[Difference]:
    """Everything that training fits that depends on a bar after the training part.  Raises DatasetError."""
    extra = np.zeros((len(bars.time), 0), np.float32)
    data = new_dataset(bars, extra, config, instrument, interval_ns, 1)
    t = data.train_stop - 1
    other = new_dataset(change_future(bars, t), extra, config, instrument, interval_ns, 1)
    before, after = fitted_values(data), fitted_values(other)
    return [
        Difference(t, name, str(before[name]), "later bars changed", str(after[name]))
        for name in before
        if not np.array_equal(before[name], after[name])
    ]


def fitted_values(data: Dataset) -> dict[str, Any]:
    """What a dataset has fitted to its training part, by name."""
    spec = data.market_spec
    own = {"hours": spec.hours, "starts": data.starts}
    return {**market_spec_arrays(spec), **spec.market._asdict(), **spec.profile._asdict(), **own}
