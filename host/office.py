"""The office around the desk: clock, journal, HALT file, the bridge's position, and the files that are published."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from host.actor import Printer, microseconds_since
from host.agent import Loaded
from host.config import ConfigError, GuardConfig
from host.desk import (
    Desk,
    Outcome,
    World,
    bar_record,
    bars_of,
    play,
    snapshot_record,
    start_record,
    stop_record,
)
from host.durable import publish
from host.feed import Bar
from host.journal import ROTATE, Journal, parse_lines, read_cache, write_cache
from host.limits import limits_for, limits_text
from host.progress import say
from host.target import DRY_RUN, Row, RowRefused, format_target, parse_position, read_small, utc
from kernels.bars import NS
from kernels.guard import ACTIVE, HALT_FILE, HALTED, open_ns

VALID_BARS = 2  # intervals from a bar's close to the end of its target
BEAT_LEAST_S, BEAT_S = 1.0, 10.0  # between two heartbeats of a dry run at least, and when no bar comes
CACHE_EVERY = 64  # decisions: what a restart has to make again at most
SAME_POSITION = 1e-3  # of a target: less is rounding


class Halted(RuntimeError):  # noqa: N818
    """A guard has stopped trading; the target is flat."""

    exit_code = 7


class FeedStale(RuntimeError):  # noqa: N818
    """The bar that was due has not come; the target is flat."""

    exit_code = 6


class Publishing(NamedTuple):
    """How `act` meets the world besides printing."""

    folder: Path
    live: bool
    lift: bool  # the operator's order to forget a halt
    symbol: str
    guard: GuardConfig


class Office:
    """One process acting into one folder."""

    def __init__(self, loaded: Loaded, publishing: Publishing, printer: Printer) -> None:
        self._publishing, self._printer, self._model = publishing, printer, loaded.sha256[:16]
        self._folder, self._live = publishing.folder, publishing.live
        self._halt, self._position = self._folder / "HALT", self._folder / "position.csv"
        self._interval_ns = loaded.setting.market.interval_ns
        self._hours = loaded.setting.hours
        limits = limits_for(publishing.guard, loaded)
        for line in limits_text(limits, loaded):
            say(line)
        self._desk = Desk(loaded, limits)
        self._journal = Journal(self._folder)
        self._known = 0, 0.0  # seq and target that a bridge can have read
        self._said = "active agent"  # reason of the last target, for people
        self._arrived_ns, self._beat_ns = time.time_ns(), 0
        if self._journal.size == 0:
            self._journal.append(snapshot_record(self._desk, self._live))
        else:
            try:
                self._resume()
            except BaseException:
                self._journal.close()
                raise
        self._desk.limits = limits
        if publishing.lift:
            self._desk.lift()
        self._journal.append(start_record(self._desk, self._live, publishing.lift))

    def on_bar(self, bar: Bar) -> None:
        """Journal the bar, decide, journal the decision, print and publish it."""
        if self._desk.last and bar.time <= self._desk.last.time:
            return  # a feed that is read again from its beginning
        begin = time.perf_counter()
        world = self._world(bar.time)
        before = self._journal.size, self._journal.crc
        self._journal.append(bar_record(bar, world))
        self._arrived_ns = time.time_ns()
        try:
            outcome = self._desk.on_bar(bar, world)
        except Exception:  # a restart may succeed with this bar: for the journal it has not come yet
            self._journal.retract(*before)
            raise
        if outcome is not None:
            self._settle(outcome, begin)
            self._obey(outcome.state, outcome.reason)

    def look(self) -> None:
        """Between two bars: stop if a guard says so, else show that all is well."""
        now, stale_s = time.time_ns(), self._publishing.guard.stale_s
        if 0 < stale_s * NS < open_ns(self._arrived_ns, now, self._hours) - self._interval_ns:
            self.stop("stale-feed")
            raise FeedStale(f"no bar for {(now - self._arrived_ns) / NS:.0f} s; {self._flat()}")
        verdict = self._desk.check(self._world_now())
        self._obey(verdict.state, verdict.reason)
        if now - self._beat_ns > BEAT_S * NS:
            self._beat()

    def stop(self, reason: str) -> None:
        """Flat from now on."""
        world = self._world_now()
        self._journal.append(stop_record(reason, world))
        self._settle(self._desk.stop(reason, world), time.perf_counter())

    def close(self) -> None:
        """The end of the process: the last target stays until it expires."""
        self._beat()
        self._journal.sync()
        self._journal.close()

    def _resume(self) -> None:
        """Bring the desk to where the journal ends; prints the last decision again, whose line may have been lost."""
        begin, found = time.perf_counter(), self._journal.found
        records = list(parse_lines(found, self._journal.path))
        first = records[0][1]
        cache = read_cache(self._folder / "state.json", found)
        if cache is not None:
            size, state = cache
            known = found[:size].count(b"\n")
            self._desk.restore(state, [bar for _, record in records[:known] for bar in bars_of(record)])
            records = records[known:]
        played = list(play(self._desk, records))
        if first["start"]["live"] != self._live:
            raise ConfigError(f"{self._folder}: a dry run and a live one each need a folder of their own")
        outcome, recorded = played[-1] if played else (None, True)
        if outcome is not None and not recorded:  # killed between the bar and its decision
            self._settle(outcome, begin)
        elif self._desk.outcome is not None:
            self._tell(self._desk.outcome)

    def _settle(self, outcome: Outcome, begin: float) -> None:
        """Journal what came of a bar or a stop, then tell it."""
        if outcome.row:
            row = [*outcome.row[:-1], str(microseconds_since(begin))]
            outcome = self._desk.outcome = outcome._replace(row=row)
        self._journal.append(outcome._asdict())
        self._tell(outcome)
        if self._journal.size > ROTATE:
            self._journal.rotate(snapshot_record(self._desk, self._live))

    def _tell(self, outcome: Outcome) -> None:
        """Print a decision and publish its target, unless that has expired already."""
        if outcome.row:
            self._printer.print(outcome.row)
        valid_ns = (outcome.close_ns if outcome.row else outcome.decided_ns) + VALID_BARS * self._interval_ns
        if self._live and time.time_ns() >= valid_ns:
            return
        reason = f"{outcome.state.lower()} {outcome.reason}"
        if reason != self._said:
            self._said = reason
            say(f"{utc(outcome.decided_ns)} target {outcome.target:g}: {reason}")
        row = Row(
            seq=outcome.seq,
            decided_ns=outcome.decided_ns,
            bar_close_ns=outcome.close_ns,
            valid_until_ns=valid_ns,
            symbol=self._publishing.symbol,
            target=outcome.target,
            reason=reason if self._live else f"{DRY_RUN} {reason}",
            model=self._model,
        )
        publish(self._folder / "target.csv", format_target(row))
        self._known = outcome.seq, outcome.target
        if outcome.seq % CACHE_EVERY == 0:
            write_cache(self._folder / "state.json", self._journal, self._desk.state())
        if self._live or not outcome.row or time.time_ns() - self._beat_ns > BEAT_LEAST_S * NS:
            self._beat()
        if self._live:
            self._journal.sync()

    def _obey(self, state: str, reason: str) -> None:
        """End where a guard halts.  A dry run goes on, flat, unless it is ordered to stop."""
        if state != HALTED or not (self._live or reason == HALT_FILE):
            return
        if self._desk.outcome is None or self._desk.outcome.row:
            self.stop(reason)  # with a validity that begins now, should the bar be an old one
        raise Halted(f"halted: {reason}; {self._flat()}")

    def _beat(self) -> None:
        """Show that cycles are being completed."""
        outcome, last, self._beat_ns = self._desk.outcome, self._desk.last, time.time_ns()
        document = {
            "utc": utc(self._beat_ns),
            "state": outcome.state if outcome else ACTIVE,
            "reason": outcome.reason if outcome else "warm-up",
            "seq": outcome.seq if outcome else 0,
            "target": self._desk.guard.target,
            "bar_close_utc": utc(last.time) if last else None,
            "live": self._live,
            "pid": os.getpid(),
            "model": self._model,
        }
        publish(self._folder / "heartbeat.json", json.dumps(document) + "\n")

    def _world_now(self) -> World:
        return self._world(self._desk.last.time if self._desk.last else time.time_ns())

    def _world(self, feed_ns: int) -> World:
        """What there is to know.  A dry run lives in the feed's time."""
        now = time.time_ns() if self._live else feed_ns
        return World(now, self._halt.exists(), self._position_fault())

    def _position_fault(self) -> str:
        """Why the bridge does not hold what it was told, or ""; without `position.csv` nobody asks."""
        try:
            position = parse_position(read_small(self._position))
        except FileNotFoundError:
            return ""
        except (OSError, RowRefused):
            return "position-unreadable"
        seq, target = self._known
        if position.symbol != self._publishing.symbol:
            return "position-of-another-symbol"
        if position.seq != seq:
            return "position-behind"
        return "" if abs(position.position - target) <= SAME_POSITION else "position-mismatch"

    def _flat(self) -> str:
        return f"the target in {self._folder / 'target.csv'} is flat"
