"""The records of the journal, and the replay that turns them into decisions again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from host.data.feed import Bar
from host.live.journal import JournalError
from host.live.risk_engine import Desk, Outcome, World
from kernels.live.risk import Limits

FORMAT = 2  # of the journal's records


class ReplayError(RuntimeError):
    """The journal's decisions are not those that this program makes of its bars."""

    exit_code = 9


def start_record(desk: Desk, live: bool, lifted: bool) -> dict[str, Any]:
    """What a process notes in the journal when it begins."""
    return {"start": {"format": FORMAT, "live": live, "lift": lifted, "limits": desk.limits._asdict()}}


def snapshot_record(desk: Desk, live: bool) -> dict[str, Any]:
    """The first record of a journal: all that what follows depends on."""
    bars = desk.actor.bars
    columns = (column[max(0, len(bars.time) - desk.actor.history) :].tolist() for column in bars)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {**start_record(desk, live, False), "desk": desk.state(), "bars": rows}


def bar_record(bar: Bar, world: World) -> dict[str, Any]:
    """A bar and what the host saw, noted before the decision."""
    return {"bar": list(bar), "world": list(world)}


def stop_record(reason: str, world: World) -> dict[str, Any]:
    """An end that the feed did not bring about."""
    return {"stop": reason, "world": list(world)}


def told_record(outcome: Outcome) -> dict[str, Any]:
    """That the row of an outcome is printed; one without it is printed by the next start."""
    return {"told": outcome.seq}


def bars_of(record: dict[str, Any]) -> list[Bar]:
    """The bars that a record holds."""
    rows = [record["bar"]] if "bar" in record else record.get("bars", [])
    return [Bar(*row) for row in rows]


def play(desk: Desk, records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[Outcome | None, bool]]:
    """Do again what the numbered records tell; yields what came of each, and whether that is recorded.

    An outcome that is recorded otherwise raises ReplayError.
    """
    for line, record in records:
        try:
            if "seq" in record:
                made, told = desk.outcome, Outcome(**record)
                if made is None or untimed(made) != untimed(told):
                    raise ReplayError(
                        f"journal line {line}: it has {told}, this program and runtime decide {made}; "
                        "when flat, begin in another --out"
                    )
                desk.outcome = told
                yield told, True
            else:
                yield apply(desk, record), False
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise JournalError(
                f"journal line {line}: not a record of this program ({error!r}); restore it or move it away"
            ) from None


def apply(desk: Desk, record: dict[str, Any]) -> Outcome | None:
    """Do what one record tells."""
    if "start" in record:
        start = record["start"]
        if start["format"] != FORMAT:
            raise ValueError(f"format {start['format']}, not {FORMAT}")
        if "desk" in record:
            desk.restore(record["desk"], bars_of(record))
        desk.limits = Limits(**start["limits"])
        if start["lift"]:
            desk.lift()
        return None
    if "told" in record:
        return None
    world = World(*record["world"])
    if "stop" in record:
        return desk.stop(record["stop"], world)
    return desk.on_bar(Bar(*record["bar"]), world)


def untimed(outcome: Outcome) -> Outcome:
    """An outcome without the time that it took."""
    return outcome._replace(row=outcome.row[:-1])
