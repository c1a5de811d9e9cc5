"""The office around the desk: clock, journal, HALT file, the bridge's position, and the files that are published.

Before a position is published, a flat row is written in reserve: a rename is all that it takes to be flat on a full
disk.  An outcome is journaled, then printed, then noted as told: a start prints again what was not noted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from host.artifact.manifest import Loaded
from host.atomic import Locked, overwrite, publish, swap
from host.config import ConfigError, GuardConfig
from host.console import say
from host.data.feed import Bar
from host.data.follow import Taken
from host.data.parsing import iso
from host.live.event_log import (
    bar_record,
    bars_of,
    play,
    snapshot_record,
    start_record,
    stop_record,
    told_record,
)
from host.live.journal import ROTATE, Journal, Record, parse_lines, read_cache, write_cache
from host.live.limits import limits_for, limits_text
from host.live.live_agent import Printer, microseconds_since
from host.live.risk_engine import Desk, Outcome, World
from host.live.target_file import (
    DRY_RUN,
    UNWRITTEN,
    Row,
    RowRefused,
    format_target,
    in_reserve,
    parse_position,
    parse_target,
    read_small,
)
from kernels.live.risk import ACTIVE, HALT_FILE, HALTED, Limits
from kernels.market.bars import NS
from kernels.market.calendar import open_ns

VALID_BARS = 2  # intervals from a bar's close to the end of its target
LATE_FEED = "late-feed"
AT_END_S = 1.0  # without another bar: the feed has been read to its end
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

    def __init__(
        self,
        loaded: Loaded,
        publishing: Publishing,
        printer: Printer,
        check_held: Callable[[], None] = lambda: None,  # raises Locked if the folder is another's
    ) -> None:
        self._publishing, self._printer, self._model = publishing, printer, loaded.sha256[:16]
        self._folder, self._live, self._check_held = publishing.folder, publishing.live, check_held
        self._halt, self._position = self._folder / "HALT", self._folder / "position.csv"
        self._target, self._reserve = self._folder / "target.csv", self._folder / ".target.reserve"
        self._interval_ns = loaded.setting.market.interval_ns
        self._hours = loaded.setting.hours
        limits = limits_for(publishing.guard, loaded)
        for line in limits_text(limits, loaded):
            say(line)
        self._desk = Desk(loaded, limits)
        self._said = "active agent"  # reason of the last target, for people
        self._arrived_ns, self._beat_ns = time.time_ns(), 0
        self._is_late = self._is_late_said = False  # the last bar, when it came
        self._is_unwritten = False  # something could not be written: nothing more is
        self._unsettled: Outcome | None = None  # made, but not journaled yet
        self._row = self._published()
        try:
            self._journal = Journal(self._folder)
            try:
                self._begin(limits)
            except BaseException:
                self._journal.close()
                raise
        except Locked:
            raise
        except OSError:
            self._be_flat()
            raise

    def _begin(self, limits: Limits) -> None:
        """Begin the journal, or go on where it ends."""
        if self._journal.size == 0:
            self._append(snapshot_record(self._desk, self._live))
            self._row = None  # what there is belongs to another journal
        else:
            self._resume()
        self._desk.limits = limits
        if self._publishing.lift:
            self._desk.lift()
        self._append(start_record(self._desk, self._live, self._publishing.lift))
        self._taken = Taken(self._publishing.symbol, self._interval_ns)
        for time_ns, *prices in zip(*(column.tolist() for column in self._desk.actor.bars[:5]), strict=True):
            self._taken.take(time_ns, tuple(prices))
        self._taken.start_over()

    def on_bar(self, bar: Bar) -> None:
        """Journal the bar, decide, journal the decision, print and publish it."""
        last = self._desk.last
        if last is None or bar.time >= last.time:
            self._arrived_ns = time.time_ns()
            valid_ns = bar.time + VALID_BARS * self._interval_ns
            self._is_late = self._live and self._arrived_ns >= valid_ns
            self._is_late_said &= self._is_late
        if last and bar.time <= last.time:  # a feed that is read again from its beginning
            self._taken.compare(bar.time, bar[1:5])
            return
        begin = time.perf_counter()
        world = self._world(bar.time)
        before = self._journal.size, self._journal.crc
        self._append(bar_record(bar, world))
        try:
            outcome = self._desk.on_bar(bar, world)
        except Exception:  # a restart may succeed with this bar: for the journal it has not come yet
            self._journal.retract(*before)
            raise
        self._taken.take(bar.time, bar[1:5])
        if outcome is not None:
            self._settle(outcome, begin)
            self._obey(outcome.state, outcome.reason)

    def look(self) -> None:
        """Between two bars: stop if a guard says so, else show that all is well."""
        self._check_held()
        now, stale_s = time.time_ns(), self._publishing.guard.stale_s
        if 0 < stale_s * NS < open_ns(self._arrived_ns, now, self._hours) - self._interval_ns:
            self.stop("stale-feed")
            raise FeedStale(f"no bar for {(now - self._arrived_ns) / NS:.0f} s; {self._flat()}")
        if now - self._arrived_ns > AT_END_S * NS:
            self._mind_lateness()
        verdict = self._desk.check(self._world_now())
        self._obey(verdict.state, verdict.reason)
        if now - self._beat_ns > BEAT_S * NS:
            self._beat()

    def stop(self, reason: str) -> None:
        """Flat from now on, and journaled; flat even if it cannot be journaled, which raises Unwritten."""
        world = self._world_now()
        try:
            if self._unsettled:  # the record of a decision could not be written
                self._append(self._unsettled._asdict())
                self._print(self._unsettled)
            self._append(stop_record(reason, world))
            self._settle(self._desk.stop(reason, world), time.perf_counter())
        except Locked:
            raise
        except OSError:
            self._is_unwritten = True
            self._be_flat()
            raise

    def fail(self, error: Exception) -> None:
        """Flat because of an error that ends the process."""
        if isinstance(error, Locked):
            return  # another process publishes here
        try:
            self.stop(type(error).__name__)
        except OSError as other:
            if str(other) != str(error):
                say(f"swt: {other}")
        self._is_unwritten |= isinstance(error, OSError)

    def close(self) -> None:
        """The end of the process: the last target stays until it expires."""
        try:
            if not self._is_unwritten:
                self._mind_lateness()
                self._beat()
                self._journal.sync()
        finally:
            self._journal.close()

    def _mind_lateness(self) -> None:
        """Say once that the feed ends with a bar whose target had expired; flat, but for what a weekend interrupts."""
        outcome, last = self._desk.outcome, self._desk.last
        if not self._is_late or last is None:
            return
        now = time.time_ns()
        is_weekend = open_ns(last.time, now, self._hours) < VALID_BARS * self._interval_ns
        if not self._is_late_said:
            self._is_late_said = True
            hint = "the market is closed" if is_weekend else "flat; is its clock another (--timezone)?"
            hours = (now - last.time) / NS / 3600
            say(f"the feed is late: its last bar closed at {iso(last.time)}, {hours:.1f} h ago: {hint}")
        if (not is_weekend or self._row is None) and (outcome is None or outcome.row):
            self.stop(LATE_FEED)

    def _resume(self) -> None:
        """Bring the desk to where the journal ends; prints the last decision if its line may have been lost."""
        begin, found = time.perf_counter(), self._journal.found
        records = list(parse_lines(found, self._journal.path))
        first, last = records[0][1], records[-1][1]
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
            self._tell(self._desk.outcome, is_printed="seq" not in last)
        while self._is_behind(self._seq()):
            self.stop("unwritten")  # what a bridge has read is journaled after all, with its number

    def _settle(self, outcome: Outcome, begin: float) -> None:
        """Journal what came of a bar or a stop, then tell it."""
        if outcome.row:
            timed = [*outcome.row[:-1], str(microseconds_since(begin))]
            outcome = self._desk.outcome = outcome._replace(row=timed)
        self._unsettled = outcome
        self._append(outcome._asdict())
        self._unsettled = None
        self._tell(outcome)
        if self._journal.size > ROTATE:
            self._journal.rotate(snapshot_record(self._desk, self._live))

    def _tell(self, outcome: Outcome, is_printed: bool = False) -> None:
        """Print a decision and publish its target, unless that has expired already."""
        if not is_printed:
            self._print(outcome)
        valid_ns = (outcome.close_ns if outcome.row else outcome.decided_ns) + VALID_BARS * self._interval_ns
        if self._is_behind(outcome.seq) or (self._live and time.time_ns() >= valid_ns):
            return
        reason = f"{outcome.state.lower()} {outcome.reason}"
        if reason != self._said:
            self._said = reason
            say(f"{iso(outcome.decided_ns)} target {outcome.target:g}: {reason}")
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
        if row.target:  # a tenth of the time of a rename
            keep = overwrite if self._reserve.exists() else publish
            self._publish(self._reserve, format_target(in_reserve(row)), keep)
        self._publish(self._target, format_target(row))
        self._row = row
        if outcome.seq % CACHE_EVERY == 0:
            write_cache(self._folder / "state.json", self._journal, self._desk.state())
        if self._live or not outcome.row or time.time_ns() - self._beat_ns > BEAT_LEAST_S * NS:
            self._beat()
        if self._live:
            self._journal.sync()

    def _print(self, outcome: Outcome) -> None:
        """Print a decision and note that."""
        if outcome.row:
            self._printer.print(outcome.row)
            self._append(told_record(outcome))

    def _append(self, record: Record) -> None:
        """Journal a record."""
        self._check_held()
        self._journal.append(record)

    def _publish(self, path: Path, text: str, way: Callable[[Path, str], None] = publish) -> None:
        """Replace a file of the folder."""
        self._check_held()
        way(path, text)

    def _published(self) -> Row | None:
        """The row that a bridge can have read."""
        with suppress(OSError, RowRefused):
            return parse_target(read_small(self._target))
        return None

    def _is_behind(self, seq: int) -> bool:
        """Whether a bridge can have read a later flat row, which was not journaled."""
        row = self._row
        return row is not None and row.reason.endswith(UNWRITTEN) and seq < row.seq

    def _be_flat(self) -> None:
        """Publish a flat row though something cannot be written: anew, by what is in reserve, or over the position."""
        if self._row is None or not self._row.target:
            return
        row = in_reserve(self._row)
        for way in (publish, self._take_reserve, overwrite):
            try:
                self._publish(self._target, format_target(row), way)
            except (OSError, RowRefused) as error:
                fault = error
            else:
                self._row = self._published() or row
                say(f"{self._target}: target 0: {row.reason}")
                return
        say(
            f"swt: {fault}; {self._target} IS NOT FLAT: {self._row.target:g} until {iso(self._row.valid_until_ns)}"
        )

    def _take_reserve(self, path: Path, _: str) -> None:
        parse_target(read_small(self._reserve))  # a power cut may have emptied it
        swap(self._reserve, path)

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
            "utc": iso(self._beat_ns),
            "state": outcome.state if outcome else ACTIVE,
            "reason": outcome.reason if outcome else "warm-up",
            "seq": self._seq(),
            "target": self._desk.guard.target,
            "bar_close_utc": iso(last.time) if last else None,
            "live": self._live,
            "pid": os.getpid(),
            "model": self._model,
        }
        self._publish(self._folder / "heartbeat.json", json.dumps(document) + "\n")

    def _seq(self) -> int:
        return self._desk.outcome.seq if self._desk.outcome else 0

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
        seq, target = (self._row.seq, self._row.target) if self._row else (0, 0.0)
        if position.symbol != self._publishing.symbol:
            return "position-of-another-symbol"
        if position.seq != seq:
            return "position-behind"
        return "" if abs(position.position - target) <= SAME_POSITION else "position-mismatch"

    def _flat(self) -> str:
        return f"the target in {self._target} is flat"
