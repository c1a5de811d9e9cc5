"""Live decisions beside the backtest of the same stretch of a file of bars: every difference has its cause.

The journal is replayed first, so a decision that another program or runtime made is an error before anything else.
What is left has two sources.  The bars that arrived were others than those of the file, at the decision or in its
history; or a risk limit has published another target than the agent's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from host.analysis.record import trade_targets
from host.artifact.manifest import LoadedModel
from host.config import RiskConfig
from host.data.feed import Bar
from host.data.formats import DataError
from host.data.parsing import format_utc
from host.live.event_log import record_bars, replay_events
from host.live.journal import JournalError, JournalRecord
from host.live.limits import resolve_limits
from host.live.live_agent import DECISION_COLUMNS, LiveAgent
from host.live.risk_engine import Decision, RiskEngine
from kernels.market.bars import Bars, slice_bars
from kernels.market.features import HISTORY
from kernels.market.ledger import ACC_ENTRY_PX, ACC_SIDE, Market
from kernels.market.position import FULL_SIZE_ONLY

MISSING, SURPLUS, REVISED, SPREAD = "bar missing live", "bar missing in the file", "revised bar", "spread of the file"
POSITION, UNEXPLAINED = "position after an earlier difference", "unexplained"
LIMIT, WAITS = "limit", "waits-for-entry"  # the latter is a reason that follows from an earlier one
ASK_FIELDS = {"ask_open", "ask_close"}
TARGET = DECISION_COLUMNS.index("target")


class AgentDecision(NamedTuple):
    """What the agent decided at a bar, in which position."""

    row: list[str]  # of DECISION_COLUMNS without the latency
    position: list[float]  # fields of its account


class LiveRun(NamedTuple):
    """What a journal records, by the close of the bar in nanoseconds."""

    start: dict[str, Any]  # state of the agent after the first record
    start_ns: int  # close of the last bar of the first record; 0: it has none
    bars: dict[int, Bar]
    decisions: dict[int, AgentDecision]
    published: dict[int, Decision]  # the last one before the next bar: a stop replaces that of its bar


class Difference(NamedTuple):
    """A live decision that is not that of the backtest, or that was not published."""

    time: str  # close of its bar
    cause: str
    backtest: float | None  # target; None: no decision
    live: float | None  # target of the agent
    published: float | None


def read_live_run(loaded: LoadedModel, records: Iterable[tuple[int, JournalRecord]]) -> LiveRun:
    """Replay the numbered records of a journal; ReplayError where this program decides otherwise."""
    engine, numbered = RiskEngine(loaded, resolve_limits(RiskConfig(), loaded)), list(records)
    run = LiveRun({}, 0, {}, {}, {})
    for (_, record), (decision, is_recorded) in zip(numbered, replay_events(engine, numbered), strict=True):
        run.bars.update({bar.time: bar for bar in record_bars(record)})
        if not run.start:
            run = run._replace(start=engine.agent.state(), start_ns=max(run.bars, default=0))
        if decision is not None:
            run.published[decision.close_ns] = decision
            if decision.row and not is_recorded:
                run.decisions[decision.close_ns] = agent_decision(engine.agent, decision.row)
    if not run.decisions:
        raise JournalError("the journal has no decision yet: compare it after the warm-up")
    return run


def agent_decision(agent: LiveAgent, row: list[str]) -> AgentDecision:
    """The decision `row` that `agent` has just made."""
    account = agent.state()["account"]
    return AgentDecision(row[:-1], [account[ACC_SIDE], *account[ACC_ENTRY_PX:]])


def decide_again(loaded: LoadedModel, run: LiveRun, file: list[Bar]) -> dict[int, AgentDecision]:
    """The decisions on the bars of the file, those of a backtest, from the position in which the journal begins."""
    agent = LiveAgent(loaded.networks, loaded.market_spec, loaded.search)
    agent.restore(run.start, [bar for bar in file if bar.time <= run.start_ns])
    later = (bar for bar in file if bar.time > run.start_ns)
    return {bar.time: agent_decision(agent, agent.decision_row(bar, 0)) for bar in later if agent.on_bar(bar)}


def find_changes(live: dict[int, Bar], file: dict[int, Bar]) -> dict[int, str]:
    """Why a bar was another live than in the file, by its close; no decision depends on the volume."""
    changes = dict.fromkeys(file.keys() - live.keys(), MISSING) | dict.fromkeys(live.keys() - file.keys(), SURPLUS)
    for time in live.keys() & file.keys():
        unequal = {n for n, a, b in zip(Bar._fields[:-1], live[time], file[time], strict=False) if a != b}
        if unequal:
            changes[time] = SPREAD if unequal <= ASK_FIELDS else REVISED
    return changes


def data_cause(
    live: AgentDecision | None, backtest: AgentDecision | None, changes: dict[int, str], window: list[int]
) -> str:
    """Why the agent decided otherwise at the last of the bars `window` [history].

    A spread is read at the bars of the networks' context only; an older one shows in the position.
    """
    kinds = {changes[time] for time in window if changes.get(time, SPREAD) != SPREAD}
    kinds |= {changes[time] for time in window[HISTORY - 1 :] if time in changes}
    for kind in (MISSING, SURPLUS, REVISED, SPREAD):
        if kind in kinds:
            return kind
    return POSITION if live is None or backtest is None or live.position != backtest.position else UNEXPLAINED


def find_differences(
    run: LiveRun, again: dict[int, AgentDecision], changes: dict[int, str], times: list[int], history: int
) -> Iterator[Difference]:
    """Every decision at the bars that close at `times` that differs from the backtest's or was not published."""
    limit = ""
    for i, time in enumerate(times):
        live, backtest, published = run.decisions.get(time), again.get(time), run.published.get(time)
        targets = target_of(backtest), target_of(live), published.target if published else None
        if (live and live.row) != (backtest and backtest.row):
            cause = data_cause(live, backtest, changes, times[max(0, i + 1 - history) : i + 1])
            yield Difference(format_utc(time), cause, *targets)
        if published:
            limit = limit if published.reason in (WAITS, "agent") else published.reason
            if live and published.target != targets[1]:
                reason = f"{WAITS} after {limit}" if published.reason == WAITS else published.reason
                yield Difference(format_utc(time), f"{LIMIT} {reason}", *targets)


def target_of(decision: AgentDecision | None) -> float | None:
    """The target of a decision."""
    return float(decision.row[TARGET]) if decision else None


def net_pips(bars: Bars, target: dict[int, float], market: Market) -> float:
    """Profit on `bars` of a position of 1 on the side of `target`, by the close of its bar."""
    side, held = np.zeros(len(bars.time) - 1), 0.0
    for i, time in enumerate(bars.time[:-1].tolist()):
        held = side[i] = np.sign(target.get(time, held))
    record = trade_targets(bars, side, market._replace(sizes=FULL_SIZE_ONLY))
    return float(record.equity[-1] / market.pip_px)


def compare_run(loaded: LoadedModel, run: LiveRun, bars: Bars) -> dict[str, Any]:
    """The document of `compare --json`; DataError for a file that does not have the stretch of the journal."""
    first, stop = np.searchsorted(bars.time, [min(run.bars), max(run.bars) + 1]).tolist()
    span = slice_bars(bars, first, stop)
    if stop - first < 2 or bars.time[0] > min(run.bars) or span.time[0] > max(min(run.bars), run.start_ns):
        raise DataError(
            f"the journal has bars from {format_utc(min(run.bars))} to {format_utc(max(run.bars))}, the file from "
            f"{format_utc(int(bars.time[0]))} to {format_utc(int(bars.time[-1]))}: bring a file that has them"
        )
    file = [Bar(*row) for row in zip(*(column.tolist() for column in span), strict=True)]
    live = {time: bar for time, bar in run.bars.items() if time <= file[-1].time}
    changes, again = find_changes(live, {bar.time: bar for bar in file}), decide_again(loaded, run, file)
    times = sorted(live.keys() | {bar.time for bar in file})
    each = list(find_differences(run, again, changes, times, loaded.networks.history))
    causes = dict[str, dict[str, Any]]()
    for d in each:
        cause = causes.setdefault(d.cause, {"decisions": 0, "other_targets": 0, "first": d.time})
        is_other = d.live != (d.published if d.cause.startswith(LIMIT) else d.backtest)
        cause.update(decisions=cause["decisions"] + 1, other_targets=cause["other_targets"] + is_other, last=d.time)
    targets = {
        "backtest": {time: float(d.row[TARGET]) for time, d in again.items()},
        "agent live": {time: float(d.row[TARGET]) for time, d in run.decisions.items()},
        "published": {time: d.target for time, d in run.published.items()},
    }
    return {
        "bars": len(times),
        "decisions": len(run.decisions.keys() & set(times)),
        "not_compared": len(run.decisions.keys() - set(times)),  # after the end of the file
        "changed_bars": dict(Counter(changes.values())),
        "causes": causes,
        "differences": [d._asdict() for d in each],
        "net_pips": {name: net_pips(span, target, loaded.market_spec.market) for name, target in targets.items()},
        "passed": not each,
    }
