"""The records of the journal, and the replay that turns them into decisions again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from host.data.feed import Bar
from host.live.journal import JournalError
from host.live.risk_engine import Decision, HostInputs, RiskEngine
from kernels.live.risk import RiskLimits

JOURNAL_FORMAT = 2  # of the journal's records


class ReplayError(RuntimeError):
    """The journal's decisions are not those that this program makes of its bars."""

    exit_code = 9


def start_record(engine: RiskEngine, live: bool, halt_lifted: bool) -> dict[str, Any]:
    """What a process notes in the journal when it begins."""
    return {"start": {"format": JOURNAL_FORMAT, "live": live, "lift": halt_lifted, "limits": engine.limits._asdict()}}


def snapshot_record(engine: RiskEngine, live: bool) -> dict[str, Any]:
    """The first record of a journal: all that what follows depends on."""
    bars = engine.agent.bars
    columns = (column[max(0, len(bars.time) - engine.agent.history) :].tolist() for column in bars)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {**start_record(engine, live, False), "desk": engine.state(), "bars": rows}


def bar_record(bar: Bar, inputs: HostInputs) -> dict[str, Any]:
    """A bar and what the host saw, noted before the decision."""
    return {"bar": list(bar), "world": list(inputs)}


def stop_record(reason: str, inputs: HostInputs) -> dict[str, Any]:
    """An end that the feed did not bring about."""
    return {"stop": reason, "world": list(inputs)}


def printed_record(decision: Decision) -> dict[str, Any]:
    """That the row of an outcome is printed; one without it is printed by the next start."""
    return {"told": decision.seq}


def record_bars(record: dict[str, Any]) -> list[Bar]:
    """The bars that a record holds."""
    rows = [record["bar"]] if "bar" in record else record.get("bars", [])
    return [Bar(*row) for row in rows]


def replay_events(
    engine: RiskEngine, records: Iterable[tuple[int, dict[str, Any]]]
) -> Iterator[tuple[Decision | None, bool]]:
    """Do again what the numbered records tell; yields what came of each, and whether that is recorded.

    An outcome that is recorded otherwise raises ReplayError.
    """
    for line, record in records:
        try:
            if "seq" in record:
                made, told = engine.last_decision, Decision(**record)
                if made is None or without_latency(made) != without_latency(told):
                    raise ReplayError(
                        f"journal line {line}: it has {told}, this program and runtime decide {made}; "
                        "when flat, begin in another --out"
                    )
                engine.last_decision = told
                yield told, True
            else:
                yield apply_event(engine, record), False
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise JournalError(
                f"journal line {line}: not a record of this program ({error!r}); restore it or move it away"
            ) from None


def apply_event(engine: RiskEngine, record: dict[str, Any]) -> Decision | None:
    """Do what one record tells."""
    if "start" in record:
        start = record["start"]
        if start["format"] != JOURNAL_FORMAT:
            raise ValueError(f"format {start['format']}, not {JOURNAL_FORMAT}")
        if "desk" in record:
            engine.restore(record["desk"], record_bars(record))
        engine.limits = RiskLimits(**start["limits"])
        if start["lift"]:
            engine.resume()
        return None
    if "told" in record:
        return None
    world = HostInputs(*record["world"])
    if "stop" in record:
        return engine.stop(record["stop"], world)
    return engine.on_bar(Bar(*record["bar"]), world)


def without_latency(decision: Decision) -> Decision:
    """An outcome without the time that it took."""
    return decision._replace(row=decision.row[:-1])
