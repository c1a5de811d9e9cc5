"""`LiveRunner`: the clock and the files around the risk engine, in one folder (README.md lists the files).

A decision is journaled, then printed, then recorded as printed; a restart prints the last one again if that record is
missing.  Before a position is published, a flat row is written in reserve, so that on a full disk a rename is enough to
become flat.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from host.artifact.manifest import LoadedModel
from host.atomic import LockedError, overwrite, replace_file, write_atomic
from host.config import ConfigError, RiskConfig
from host.console import log
from host.data.feed import Bar
from host.data.follow import RewriteDetector
from host.data.parsing import format_utc
from host.live import event_log
from host.live.journal import ROTATE_BYTES, Journal, JournalRecord, parse_records, read_cache, write_cache
from host.live.limits import describe_limits, resolve_limits
from host.live.live_agent import DecisionPrinter, elapsed_us
from host.live.risk_engine import Decision, HostInputs, RiskEngine
from host.live.target_file import (
    DRY_RUN_PREFIX,
    UNWRITTEN_REASON,
    RowError,
    TargetRow,
    format_target,
    parse_position,
    parse_target,
    read_row_file,
    reserve_row,
)
from kernels.live.risk import ACTIVE, HALT_FILE, HALTED, RiskLimits
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import open_duration_ns

TARGET_VALID_BARS = 2  # intervals from a bar's close to the end of its target's validity
FEED_END_S = 1.0  # a feed that brings no bar for so long has been read to its end
MIN_HEARTBEAT_S, HEARTBEAT_S = 1.0, 10.0  # between two heartbeats: in a dry run at least, without a bar at most
CACHE_INTERVAL = 64  # decisions between two writes of state.json, which a restart has to replay at most
POSITION_TOLERANCE = 1e-3  # of a target; a smaller difference is rounding


class HaltedError(RuntimeError):
    """A risk limit or a HALT file has stopped trading; the target is flat."""

    exit_code = 7


class StaleFeedError(RuntimeError):
    """The next bar is overdue by `risk.stale_s`; the target is flat."""

    exit_code = 6


class LiveOptions(NamedTuple):
    """What `act --out` adds to printing."""

    folder: Path
    live: bool  # False: a dry run, whose target no bridge trades
    lift_halt: bool  # the operator's order to lift a halt by losses
    symbol: str  # in target.csv
    risk: RiskConfig


class LiveRunner:
    """One process that decides, applies the risk limits and publishes the target into one folder.

    Raises LockedError if another process has the folder, WriteError if a file cannot be written, JournalError or
    ModelError if the journal is not one that this program can continue.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        options: LiveOptions,
        printer: DecisionPrinter,
        check_lock: Callable[[], None] = lambda: None,  # raises LockedError if another process has the folder
    ) -> None:
        self._options, self._printer, self._model = options, printer, loaded.sha256[:16]
        self._folder, self._live, self._check_lock = options.folder, options.live, check_lock
        self._halt_path, self._position_path = self._folder / "HALT", self._folder / "position.csv"
        self._target_path, self._reserve_path = self._folder / "target.csv", self._folder / ".target.reserve"
        self._interval_ns = loaded.market_spec.market.interval_ns
        self._hours = loaded.market_spec.hours
        limits = resolve_limits(options.risk, loaded)
        for line in describe_limits(limits, loaded):
            log(line)
        self._engine = RiskEngine(loaded, limits)
        self._logged_reason = "active agent"  # state and reason of the last target on stderr
        self._arrived_ns, self._heartbeat_ns = time.time_ns(), 0
        self._is_late = self._is_late_logged = False  # the target of the last bar had expired when the bar arrived
        self._is_unwritten = False  # a write failed: no other file is written
        self._unrecorded: Decision | None = None  # a decision that is not in the journal yet
        self._published_row = self._read_published_row()
        try:
            self._journal = Journal(self._folder)
            try:
                self._open_journal(limits)
            except BaseException:
                self._journal.close()
                raise
        except LockedError:
            raise
        except OSError:
            self._publish_flat()
            raise

    def _open_journal(self, limits: RiskLimits) -> None:
        """Start the journal with a snapshot, or continue from its end."""
        if self._journal.size == 0:
            self._append(event_log.snapshot_record(self._engine, self._live))
            self._published_row = None  # an existing target.csv belongs to another journal
        else:
            self._recover()
        self._engine.limits = limits
        if self._options.lift_halt:
            self._engine.resume()
        self._append(event_log.start_record(self._engine, self._live, self._options.lift_halt))
        self._recent_bars = RewriteDetector(self._options.symbol, self._interval_ns)
        for time_ns, *prices in zip(*(column.tolist() for column in self._engine.agent.bars[:5]), strict=True):
            self._recent_bars.remember(time_ns, tuple(prices))
        self._recent_bars.start_rereading()

    def on_bar(self, bar: Bar) -> None:
        """Journal the bar, decide, journal the decision, print and publish it.  Raises HaltedError after a halt."""
        last = self._engine.last_bar
        if last is None or bar.time >= last.time:
            self._arrived_ns = time.time_ns()
            valid_ns = bar.time + TARGET_VALID_BARS * self._interval_ns
            self._is_late = self._live and self._arrived_ns >= valid_ns
            self._is_late_logged &= self._is_late
        if last and bar.time <= last.time:  # after a restart the feed is read again from its beginning
            self._recent_bars.compare(bar.time, bar[1:5])
            return
        begin = time.perf_counter()
        inputs = self._inputs(bar.time)
        before = self._journal.size, self._journal.crc
        self._append(event_log.bar_record(bar, inputs))
        try:
            decision = self._engine.on_bar(bar, inputs)
        except Exception:  # a restart may succeed with this bar, so the journal must not have it yet
            self._journal.roll_back(*before)
            raise
        self._recent_bars.remember(bar.time, bar[1:5])
        if decision is not None:
            self._record_and_publish(decision, begin)
            self._enforce(decision.state, decision.reason)

    def check_between_bars(self) -> None:
        """Between two bars: stop if a limit demands it, else write the heartbeat when it is due.

        Raises HaltedError, or StaleFeedError if the next bar is overdue.
        """
        self._check_lock()
        now, stale_s = time.time_ns(), self._options.risk.stale_s
        if 0 < stale_s * SECOND_NS < open_duration_ns(self._arrived_ns, now, self._hours) - self._interval_ns:
            self.stop("stale-feed")
            raise StaleFeedError(f"no bar for {(now - self._arrived_ns) / SECOND_NS:.0f} s; {self._flat_message()}")
        if now - self._arrived_ns > FEED_END_S * SECOND_NS:
            self._check_late_feed()
        risk_decision = self._engine.check(self._inputs_now())
        self._enforce(risk_decision.state, risk_decision.reason)
        if now - self._heartbeat_ns > HEARTBEAT_S * SECOND_NS:
            self._write_heartbeat()

    def stop(self, reason: str) -> None:
        """Journal a stop and publish a flat target; if the journal takes no more, publish it before WriteError."""
        inputs = self._inputs_now()
        try:
            if self._unrecorded:  # an earlier write of this decision failed
                self._append(self._unrecorded._asdict())
                self._print_decision(self._unrecorded)
            self._append(event_log.stop_record(reason, inputs))
            self._record_and_publish(self._engine.stop(reason, inputs), time.perf_counter())
        except LockedError:
            raise
        except OSError:
            self._is_unwritten = True
            self._publish_flat()
            raise

    def fail(self, error: Exception) -> None:
        """Publish a flat target because of an error that ends the process; its class is the reason."""
        if isinstance(error, LockedError):
            return  # another process publishes here
        try:
            self.stop(type(error).__name__)
        except OSError as other:
            if str(other) != str(error):
                log(f"swt: {other}")
        self._is_unwritten |= isinstance(error, OSError)

    def close(self) -> None:
        """End the run; the last target stays valid until it expires, unless the feed is late."""
        try:
            if not self._is_unwritten:
                self._check_late_feed()
                self._write_heartbeat()
                self._journal.sync()
        finally:
            self._journal.close()

    def _check_late_feed(self) -> None:
        """Log once that the last bar arrived after its target had expired, and stop unless the market is closed."""
        decision, last = self._engine.last_decision, self._engine.last_bar
        if not self._is_late or last is None:
            return
        now = time.time_ns()
        is_weekend = open_duration_ns(last.time, now, self._hours) < TARGET_VALID_BARS * self._interval_ns
        if not self._is_late_logged:
            self._is_late_logged = True
            hint = "the market is closed" if is_weekend else "flat; is its clock another (--timezone)?"
            hours = (now - last.time) / SECOND_NS / 3600
            log(f"the feed is late: its last bar closed at {format_utc(last.time)}, {hours:.1f} h ago: {hint}")
        if (not is_weekend or self._published_row is None) and (decision is None or decision.row):
            self.stop("late-feed")

    def _recover(self) -> None:
        """Bring the engine to the end of the journal; print the last decision if its line may have been lost."""
        begin, existing = time.perf_counter(), self._journal.existing
        records = list(parse_records(existing, self._journal.path))
        first, last = records[0][1], records[-1][1]
        # The first record refuses a journal of another format or model, whose state.json could not be read either.
        replayed, num_known = list(event_log.replay_events(self._engine, records[:1])), 1
        cache = read_cache(self._folder / "state.json", existing)
        if cache is not None:
            size, state = cache
            num_known = existing[:size].count(b"\n")
            self._engine.restore(
                state, [bar for _, record in records[:num_known] for bar in event_log.record_bars(record)]
            )
        replayed += event_log.replay_events(self._engine, records[num_known:])
        if first["start"]["live"] != self._live:
            raise ConfigError(f"{self._folder}: a dry run and a live one each need a folder of their own")
        decision, is_recorded = replayed[-1]
        if decision is not None and not is_recorded:  # killed between the bar and its decision
            self._record_and_publish(decision, begin)
        elif self._engine.last_decision is not None:
            self._publish_decision(self._engine.last_decision, is_printed="seq" not in last)
        while self._is_behind(self._seq()):
            self.stop("unwritten")  # what a bridge has read is journaled after all, with its number

    def _record_and_publish(self, decision: Decision, begin: float) -> None:
        """Journal a decision with the time since `begin` as its latency, then print and publish it."""
        if decision.row:
            row = [*decision.row[:-1], str(elapsed_us(begin))]
            decision = self._engine.last_decision = decision._replace(row=row)
        self._unrecorded = decision
        self._append(decision._asdict())
        self._unrecorded = None
        self._publish_decision(decision)
        if self._journal.size > ROTATE_BYTES:
            self._journal.rotate(event_log.snapshot_record(self._engine, self._live))

    def _publish_decision(self, decision: Decision, is_printed: bool = False) -> None:
        """Print a decision and publish its target, unless the target has expired."""
        if not is_printed:
            self._print_decision(decision)
        valid_ns = (decision.close_ns if decision.row else decision.decided_ns) + TARGET_VALID_BARS * self._interval_ns
        if self._is_behind(decision.seq) or (self._live and time.time_ns() >= valid_ns):
            return
        reason = f"{decision.state.lower()} {decision.reason}"
        if reason != self._logged_reason:
            self._logged_reason = reason
            log(f"{format_utc(decision.decided_ns)} target {decision.target:g}: {reason}")
        row = TargetRow(
            seq=decision.seq,
            decided_ns=decision.decided_ns,
            bar_close_ns=decision.close_ns,
            valid_until_ns=valid_ns,
            symbol=self._options.symbol,
            target=decision.target,
            reason=reason if self._live else f"{DRY_RUN_PREFIX} {reason}",
            model=self._model,
        )
        if row.target:  # overwriting takes a tenth of the time of a rename
            write = overwrite if self._reserve_path.exists() else write_atomic
            self._write_file(self._reserve_path, format_target(reserve_row(row)), write)
        self._write_file(self._target_path, format_target(row))
        self._published_row = row
        if decision.seq % CACHE_INTERVAL == 0:
            write_cache(self._folder / "state.json", self._journal, self._engine.state())
        if self._live or not decision.row or time.time_ns() - self._heartbeat_ns > MIN_HEARTBEAT_S * SECOND_NS:
            self._write_heartbeat()
        if self._live:
            self._journal.sync()

    def _print_decision(self, decision: Decision) -> None:
        """Print the row of a decision and journal that it is printed; a stop has no row."""
        if decision.row:
            self._printer.print(decision.row)
            self._append(event_log.printed_record(decision))

    def _append(self, record: JournalRecord) -> None:
        """Append a record to the journal."""
        self._check_lock()
        self._journal.append(record)

    def _write_file(self, path: Path, text: str, write: Callable[[Path, str], None] = write_atomic) -> None:
        """Write a file of the folder in the way `write`."""
        self._check_lock()
        write(path, text)

    def _read_published_row(self) -> TargetRow | None:
        """The row that a bridge may have read, or None."""
        with suppress(OSError, RowError):
            return parse_target(read_row_file(self._target_path))
        return None

    def _is_behind(self, seq: int) -> bool:
        """Whether a bridge may have read a reserve row, later than `seq` and absent from the journal."""
        row = self._published_row
        return row is not None and row.reason.endswith(UNWRITTEN_REASON) and seq < row.seq

    def _publish_flat(self) -> None:
        """Publish a flat row on a disk that fails: by a new file, else by the reserve, else over the present row."""
        if self._published_row is None or not self._published_row.target:
            return
        row = reserve_row(self._published_row)
        for write in (write_atomic, self._move_reserve, overwrite):
            try:
                self._write_file(self._target_path, format_target(row), write)
            except (OSError, RowError) as error:
                last_error = error
            else:
                self._published_row = self._read_published_row() or row
                log(f"{self._target_path}: target 0: {row.reason}")
                return
        until = format_utc(self._published_row.valid_until_ns)
        log(f"swt: {last_error}; {self._target_path} IS NOT FLAT: {self._published_row.target:g} until {until}")

    def _move_reserve(self, path: Path, _: str) -> None:
        """Rename the reserve to `path`, if it is whole: a power cut may have emptied it.  Raises RowError."""
        parse_target(read_row_file(self._reserve_path))
        replace_file(self._reserve_path, path)

    def _enforce(self, state: str, reason: str) -> None:
        """Raise HaltedError in the state HALTED; a dry run continues, flat, unless there is a HALT file."""
        if state != HALTED or not (self._live or reason == HALT_FILE):
            return
        if self._engine.last_decision is None or self._engine.last_decision.row:
            self.stop(reason)  # the validity of a stop begins now, even if the last bar is old
        raise HaltedError(f"halted: {reason}; {self._flat_message()}")

    def _write_heartbeat(self) -> None:
        """Write heartbeat.json, which shows that the process is alive and what it last decided."""
        decision, last, self._heartbeat_ns = self._engine.last_decision, self._engine.last_bar, time.time_ns()
        document = {
            "utc": format_utc(self._heartbeat_ns),
            "state": decision.state if decision else ACTIVE,
            "reason": decision.reason if decision else "warm-up",
            "seq": self._seq(),
            "target": self._engine.risk_state.target,
            "bar_close_utc": format_utc(last.time) if last else None,
            "live": self._live,
            "pid": os.getpid(),
            "model": self._model,
        }
        self._write_file(self._folder / "heartbeat.json", json.dumps(document) + "\n")

    def _seq(self) -> int:
        return self._engine.last_decision.seq if self._engine.last_decision else 0

    def _inputs_now(self) -> HostInputs:
        return self._inputs(self._engine.last_bar.time if self._engine.last_bar else time.time_ns())

    def _inputs(self, feed_ns: int) -> HostInputs:
        """What the host observes; a dry run takes the feed's time `feed_ns` for the present."""
        now = time.time_ns() if self._live else feed_ns
        return HostInputs(now, self._halt_path.exists(), self._position_fault())

    def _position_fault(self) -> str:
        """Why `position.csv` is not the published target, or ""; the file is optional."""
        try:
            position = parse_position(read_row_file(self._position_path))
        except FileNotFoundError:
            return ""
        except (OSError, RowError):
            return "position-unreadable"
        seq, target = (self._published_row.seq, self._published_row.target) if self._published_row else (0, 0.0)
        if position.symbol != self._options.symbol:
            return "position-of-another-symbol"
        if position.seq != seq:
            return "position-behind"
        return "" if abs(position.position - target) <= POSITION_TOLERANCE else "position-mismatch"

    def _flat_message(self) -> str:
        return f"the target in {self._target_path} is flat"
