"""The records of the journal, and the replay that makes the recorded decisions again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from host.data.feed import Bar
from host.live.journal import JournalError
from host.live.risk_engine import Decision, HostInputs, RiskEngine
from kernels.live.risk import RiskLimits

JOURNAL_FORMAT = 4  # of the records below and of `RiskEngine.state`
OLD_FORMATS = {
    1: "a version before swt 0.1.0",
    2: "swt 0.1.0 or a checkout before format 3",
    3: "a checkout before format 4",
}


class ReplayError(RuntimeError):
    """A recorded decision is not the one that this program makes of the recorded bars."""

    exit_code = 9


def start_record(engine: RiskEngine, live: bool, halt_lifted: bool) -> dict[str, Any]:
    """The record that each process appends when it starts."""
    limits = engine.limits._asdict()
    return {"start": {"format": JOURNAL_FORMAT, "live": live, "lift_halt": halt_lifted, "limits": limits}}


def snapshot_record(engine: RiskEngine, live: bool) -> dict[str, Any]:
    """The first record of a journal: the state and the bars that later decisions depend on."""
    bars = engine.agent.bars
    columns = (column[max(0, len(bars.time) - engine.agent.history) :].tolist() for column in bars)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {**start_record(engine, live, False), "engine": engine.state(), "bars": rows}


def bar_record(bar: Bar, inputs: HostInputs) -> dict[str, Any]:
    """A bar and what the host observed with it; it is appended before the decision is made."""
    return {"bar": list(bar), "inputs": list(inputs)}


def stop_record(reason: str, inputs: HostInputs) -> dict[str, Any]:
    """A stop: the target becomes flat between two bars."""
    return {"stop": reason, "inputs": list(inputs)}


def printed_record(decision: Decision) -> dict[str, Any]:
    """The row of a decision has been printed; the next start prints a row that lacks this record."""
    return {"printed": decision.seq}


def record_bars(record: dict[str, Any]) -> list[Bar]:
    """The bars that a record holds."""
    rows = [record["bar"]] if "bar" in record else record.get("bars", [])
    return [Bar(*row) for row in rows]


def replay_events(
    engine: RiskEngine, records: Iterable[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[Decision | None, bool]]:
    """Apply numbered records to `engine`; yields the decision of each, and whether it is the recorded one.

    Raises ReplayError for a decision that is recorded otherwise, JournalError for a record that cannot be applied.
    """
    for line, record in records:
        try:
            if "seq" in record:
                decision, recorded = engine.last_decision, Decision(**record)
                if decision is None or without_latency(decision) != without_latency(recorded):
                    raise ReplayError(
                        f"journal line {line}: it has {recorded}, this program and runtime decide {decision}; "
                        "when flat, begin in another --out"
                    )
                engine.last_decision = recorded
                yield recorded, True
            else:
                yield apply_event(engine, record), False
        except JournalError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise JournalError(
                f"journal line {line}: not a record of this program ({error!r}); restore it or move it away"
            ) from None


def apply_event(engine: RiskEngine, record: dict[str, Any]) -> Decision | None:
    """Apply one record; the decision that follows from a bar or a stop.  Raises JournalError for another format."""
    if "start" in record:
        start = record["start"]
        if start["format"] != JOURNAL_FORMAT:
            writer = OLD_FORMATS.get(start["format"], "a later version of swt")
            raise JournalError(
                f"the journal has format {start['format']}, written by {writer}, this program reads format "
                f"{JOURNAL_FORMAT}: let that version close its position, then begin in another --out"
            )
        if "engine" in record:
            engine.restore(record["engine"], record_bars(record))
        engine.limits = RiskLimits(**start["limits"])
        if start["lift_halt"]:
            engine.resume()
        return None
    if "printed" in record:
        return None
    inputs = HostInputs(*record["inputs"])
    if "stop" in record:
        return engine.stop(record["stop"], inputs)
    return engine.on_bar(Bar(*record["bar"]), inputs)


def without_latency(decision: Decision) -> Decision:
    """The decision without the last column of its row, the time that it took."""
    return decision._replace(row=decision.row[:-1])
