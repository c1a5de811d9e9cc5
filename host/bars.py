"""Files of bars read in bulk: every row of a file, what was assumed of it and which rows are bad.

`formats.py` says what a line means; the whole of a file is parsed by pandas where all of it is in form.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.formats import KINDS, MAX_LINE, DataError, Layout, Problem, ReadOptions, Source, head_of, recognise
from host.parsing import (
    DAY,
    FLAGS,
    HOUR,
    NUMBERS,
    SATURDAY,
    WEEK,
    Ints,
    Rules,
    check_spread,
    explain_line,
    interval_of,
    is_damaged,
    iso,
    order_fault,
    parse_clock,
    parse_line,
    parse_stamp,
    quotes,
    row_faults,
    rules_for,
    spread_text,
    to_utc,
)
from host.resample import merge_bars
from kernels.bars import NS, Bars

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 50_000  # parsed at a time
MAX_LISTED = 1000  # problems of a kind
MAX_HOLES = 10  # notes
# Without pandas, as on a machine that only acts, every file is read line by line: to the same bits, four times slower.
HAS_PANDAS = importlib.util.find_spec("pandas") is not None
HOLE = 12 * HOUR  # a gap this long gets a note of its own
HOLE_BARS = 10  # a longer gap is a hole: no session spans it
MAX_BYTES = 1 << 30  # of a file: 15 years of minutes
MAX_JSON = 1 << 26  # 5000 candles, the most that OANDA sends at a time, take 1 MB
MINUTE = 60 * NS


class Rows(NamedTuple):
    """The parsable rows of a file as they stand."""

    line: Ints  # [T] of the file, from 1
    utc: Ints  # [T] stamp, nanoseconds
    local: bool  # whether a stamp has no offset of its own
    columns: dict[str, NDArray[np.float64]]  # [T] by role


class Lines(NamedTuple):
    """The bytes of a file without byte order mark and carriage returns, and where its lines lie."""

    data: bytes
    start: Ints
    stop: Ints

    def text(self, line: int) -> str:
        """Line `line`, counted from 1."""
        return self.data[self.start[line - 1] : self.stop[line - 1]].decode("latin-1")


def split_lines(data: bytes, name: str) -> Lines:
    """Index the lines of a file; refuses what cannot be text."""
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").rstrip(b"\r\n")
    if not data.strip():
        raise DataError(f"{name}: empty")
    if b"\0" in data:
        raise DataError(f"{name}: not a text file, or one in UTF-16: save it as UTF-8")
    newline = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")).astype(np.int64)
    start, stop = np.append(0, newline + 1), np.append(newline, len(data))
    longest = int(np.argmax(stop - start))
    if stop[longest] - start[longest] > MAX_LINE:
        raise DataError(f"{name}: line {longest + 1}: longer than {MAX_LINE} bytes, this is no file of bars")
    return Lines(data, start, stop)


def read_whole(lines: Lines, layout: Layout, clock: str) -> Rows | None:
    """The rows of a file without a fault in its form; None if there is one."""
    body, columns = lines.data[lines.start[layout.header] :], layout.columns
    if not HAS_PANDAS or b'"' in body or not same_width(lines, layout):
        return None
    import pandas as pd  # heavy: not before it is needed

    types = {i: "float64" if role in NUMBERS else "str" for i, role in enumerate(columns) if role}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frames = pd.read_csv(
                io.BytesIO(body),
                chunksize=CHUNK_ROWS,
                sep=layout.separator,
                header=None,
                names=range(len(columns)),
                usecols=list(types),
                dtype=types,
                index_col=False,
                na_filter=False,
                quoting=csv.QUOTE_NONE,
                skip_blank_lines=False,
                encoding="latin-1",
            )
            pieces = [read_piece(frame, layout) for frame in frames]
    except (ValueError, OverflowError, Warning):
        return None
    stamp_ns, is_utc = (np.concatenate([piece[k] for piece in pieces]) for k in (0, 1))
    numbers = {role: np.concatenate([piece[2][role] for piece in pieces]) for role in pieces[0][2]}
    if len(stamp_ns) != len(lines.start) - layout.header:
        return None
    if not all(np.isfinite(column).all() for column in numbers.values()):
        return None
    line = np.arange(layout.header + 1, len(lines.start) + 1, dtype=np.int64)
    return Rows(line, to_utc(stamp_ns, is_utc, clock), not is_utc.all(), numbers)


def same_width(lines: Lines, layout: Layout) -> bool:
    """Whether every line has the separators that the columns of the layout need."""
    separator = np.flatnonzero(np.frombuffer(lines.data, np.uint8) == ord(layout.separator))
    per_line = np.searchsorted(separator, lines.stop) - np.searchsorted(separator, lines.start)
    return bool((per_line[layout.header :] == len(layout.columns) - 1).all())


def read_piece(
    frame: pd.DataFrame, layout: Layout
) -> tuple[Ints, NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
    """Stamps, whether they are UTC, and the numbers by role: texts take memory, so a few rows at a time."""
    columns = layout.columns
    texts = [frame[i].tolist() for i, role in enumerate(columns) if role == "time"]
    stamps = [parse_stamp(layout.format.stamp, " ".join(t), layout.day) for t in zip(*texts, strict=True)]
    stamp_ns = np.array([stamp for stamp, _ in stamps], np.int64)
    is_utc = np.array([utc for _, utc in stamps], np.bool_)
    numbers = {role: frame[i].to_numpy(np.float64) for i, role in enumerate(columns) if role in NUMBERS}
    if "symbol" in columns and (frame[columns.index("symbol")] != layout.symbol).any():
        raise ValueError("more than one symbol")
    if "complete" in columns:
        flags = frame[columns.index("complete")].tolist()
        numbers["complete"] = np.array([FLAGS.get(flag.lower(), np.nan) for flag in flags])
    return stamp_ns, is_utc, numbers


def read_each(lines: Lines, layout: Layout, clock: str) -> tuple[Rows, Ints]:
    """The rows that can be parsed, line by line, and the lines that cannot; blank lines are neither."""
    good, bad, stamps = [], [], []
    numbers: dict[str, list[float]] = {role: [] for role in layout.columns if role in (*NUMBERS, "complete")}
    for line in range(layout.header + 1, len(lines.start) + 1):
        text = lines.text(line)
        parsed = parse_line(text, layout)
        if parsed is not None:
            good.append(line)
            stamps.append(parsed[:2])
            for role, value in parsed[2].items():
                numbers[role].append(value)
        elif text.strip():
            bad.append(line)
    columns = {role: np.array(values, np.float64) for role, values in numbers.items()}
    stamp_ns = np.array([stamp for stamp, _ in stamps], np.int64)
    is_utc = np.array([utc for _, utc in stamps], np.bool_)
    rows = Rows(np.array(good, np.int64), to_utc(stamp_ns, is_utc, clock), not is_utc.all(), columns)
    return rows, np.array(bad, np.int64)


def find_faults(
    rows: Rows, quote: dict[str, NDArray[np.float64]], interval_ns: int, ticks: bool
) -> dict[int, str]:
    """Kind of the fault of every bad row, by index; neighbours and order count among the rows good by themselves."""
    bad: dict[int, str] = {}
    has_volume = np.logical_or.accumulate(quote["volume"] > 0) | ticks
    with np.errstate(invalid="ignore"):  # infinite prices are among the faults
        for kind, mask in row_faults(quote, rows.utc, has_volume).items():
            for row in np.flatnonzero(mask).tolist():
                bad.setdefault(row, kind)
    good = np.delete(np.arange(len(rows.utc)), list(bad))
    damaged = is_damaged(
        {name: column[good] for name, column in quote.items()}, neighbours(quote["close"][good])
    )
    bad.update(dict.fromkeys(good[damaged].tolist(), "damaged"))
    good = good[~damaged]
    if (np.diff(rows.utc[good]) < interval_ns).any():
        bad.update(order_faults(rows.utc, good, interval_ns))
    return bad


def neighbours(close: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each close and the two on either side [T]."""
    if len(close) < 3:
        return close
    return np.median(np.lib.stride_tricks.sliding_window_view(np.pad(close, 2, "reflect"), 5), axis=1)


def order_faults(utc: Ints, good: Ints, interval_ns: int) -> dict[int, str]:
    """Kind by index of the rows among `good` that do not follow the last row that is left."""
    bad: dict[int, str] = {}
    last: int | None = None
    for row, stamp in zip(good.tolist(), utc[good].tolist(), strict=True):
        kind = None if last is None else order_fault(stamp - last, interval_ns)
        if kind:
            bad[row] = kind
        else:
            last = stamp
    return bad


def find_holes(close_ns: Ints, interval_ns: int, line: Ints) -> tuple[list[Problem], list[str]]:
    """Gaps of more than HOLE_BARS bars that are no weekend, and sentences on all gaps; `line` [T] of the bars."""
    missing = np.diff(close_ns) - interval_ns
    after = np.flatnonzero(missing > 0) + 1
    begin, end = close_ns[after - 1], close_ns[after] - interval_ns
    saturday = (begin - SATURDAY - DAY // 2) // WEEK != (end - SATURDAY - DAY // 2) // WEEK
    weekend = saturday & (end - begin < 4 * DAY)
    notes = [f"{weekend.sum()} weekends and {(~weekend).sum()} other gaps between bars"] if len(after) else []
    holes = after[~weekend & (end - begin > HOLE_BARS * interval_ns)]
    long = [t for t in holes.tolist() if missing[t - 1] >= HOLE]
    notes += [f"line {line[t]}: {hole_text(missing[t - 1], close_ns[t - 1])}" for t in long[:MAX_HOLES]]
    if len(long) > MAX_HOLES:
        notes.append(f"and {len(long) - MAX_HOLES} more gaps of {HOLE // HOUR} h or longer")
    listed = holes[:MAX_LISTED].tolist()
    return [Problem("hole", int(line[t]), hole_text(missing[t - 1], close_ns[t - 1])) for t in listed], notes


def hole_text(missing_ns: int, begin_ns: int) -> str:
    """A hole in words."""
    length = f"{missing_ns / HOUR:.0f} h" if missing_ns >= 2 * HOUR else f"{missing_ns / MINUTE:.0f} min"
    return f"no bars for {length}, from {iso(begin_ns)}"


def read_bytes(path: Path) -> bytes:
    """The bytes of the file, of no more of it than a file of bars can have."""
    try:
        with path.open("rb") as file:
            begin = file.read(MAX_LINE + 3)
            if begin[:2] in (b"PK", b"\x1f\x8b"):
                raise DataError(f"{path}: compressed: unpack it first")
            limit = MAX_JSON if is_json(begin) else MAX_BYTES
            if limit == MAX_BYTES and len(begin) > MAX_LINE + 2 and b"\n" not in begin:
                raise DataError(f"{path}: line 1: longer than {MAX_LINE} bytes, this is no file of bars")
            data = begin + file.read(limit)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > limit:
        raise DataError(f"{path}: more than {limit >> 20} MB: bring it in parts")
    return data


def is_json(data: bytes) -> bool:
    """Whether a file that begins like this is no table."""
    return data.lstrip()[:1] == b"{"


def oanda_lines(raw: bytes, name: str) -> bytes:
    """The answer of OANDA's candle service as a file with a line for each candle."""
    try:
        return "\n".join(map(oanda_line, json.loads(raw)["candles"])).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f"{name}: JSON, but no candles of OANDA with mid, or bid and ask, prices (price=M or price=BA)"
        ) from None


def oanda_line(candle: dict[str, Any]) -> str:
    """Time, complete, open, high, low, close, volume, and the four of the ask where they are."""
    time = candle["time"] if "T" in candle["time"] else candle["time"].partition(".")[0]  # RFC 3339 or UNIX
    first, *ask = [
        [candle[side][k] for k in "ohlc"] for side in (("bid", "ask") if "bid" in candle else ("mid",))
    ]
    return ",".join(map(str, (time, candle["complete"], *first, candle["volume"], *chain(*ask))))


def list_problems(lines: Lines, kinds: dict[int, str]) -> list[Problem]:
    """Problems by line, at most MAX_LISTED of a kind, from the kinds by line."""
    listed: dict[str, int] = {}
    problems = []
    for line in sorted(kinds):
        kind = kinds[line]
        listed[kind] = listed.get(kind, 0) + 1
        if listed[kind] <= MAX_LISTED:
            problems.append(Problem(kind, line, lines.text(line)[:160]))
    return problems


def refuse_bad(
    source: Source, kinds: dict[int, str], good: int, drop_bad: bool, why: Callable[[Problem], str]
) -> None:
    """Raise DataError if there are bad rows beside the `good` and they may not, or cannot sensibly, be dropped."""
    most = len(kinds) >= good
    if not kinds or (drop_bad and not most):
        return
    shown = "; ".join(f"line {p.line}: {why(p)}: {p.text!r}" for p in source.problems[:3])
    if most:
        filler = set(kinds.values()) == {"flat"}
        remedy = (
            "nothing but filler" if filler else "most of the file: is it newest first, or of another kind?"
        )
    else:
        remedy = "--drop-bad drops them"
    raise DataError(f"{source.path}: {count_kinds(kinds)}; {shown}; {remedy}", source)


def count_kinds(kinds: dict[int, str]) -> str:
    """`3 bad rows (2 flat, 1 range)`."""
    values = list(kinds.values())
    counts = ", ".join(f"{values.count(kind)} {kind}" for kind in KINDS if kind in values)
    return f"{len(values)} bad row{'s' * (len(values) > 1)} ({counts})"


def read_bars(path: Path | str, options: ReadOptions | None = None) -> tuple[Bars, Source]:
    """The closed bars of a CSV and what was assumed; raises DataError, and never drops a row unasked."""
    options, path = options or ReadOptions(), Path(path)
    raw, name = read_bytes(path), str(path)
    lines = split_lines(oanda_lines(raw, name) if is_json(raw) else raw, name)
    layout = recognise(head_of(map(lines.text, range(1, len(lines.start) + 1))), options, name)
    rows, unparsable, notes = read_rows(lines, layout, options, name)
    step_ns = interval_of(rows.utc, options, name)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite prices are among the faults
        rules, said = rules_for(layout, options, name, float(np.median(rows.columns["open"])), step_ns)
        quote = quotes(rows.columns, rules)
    faults = find_faults(rows, quote, step_ns, layout.format.ticks)
    kinds = dict.fromkeys(unparsable.tolist(), "unparsable") | {
        int(rows.line[t]): k for t, k in faults.items()
    }
    good = np.delete(np.arange(len(rows.utc)), list(faults))
    time = rows.utc[good] + (step_ns if rules.label == "open" else 0)
    bars, line = Bars(time, **{column: values[good] for column, values in quote.items()}), rows.line[good]
    interval_ns = step_ns if options.interval_s is None else options.interval_s * NS
    if interval_ns > step_ns:
        bars, first = merge_bars(bars, step_ns, interval_ns, rules.timezone)
        line = line[first]
        notes.append(f"bars of {step_ns // NS} s are put together into bars of {interval_ns // NS} s")
    holes, gaps = find_holes(bars.time, interval_ns, line)
    source = describe_source(name, layout, rules, options, rows.local, bars, interval_ns, raw)
    source.notes.extend(said + notes)
    source.problems.extend(list_problems(lines, kinds))
    source.holes.extend(holes)
    check_spread(*(mean_sizes(bars) if len(bars.time) else mean_sizes(quote)), rules, name)
    refuse_bad(source, kinds, len(good), options.drop_bad, lambda p: reason(p, lines, layout))
    source.notes.extend([f"dropped {count_kinds(kinds)}"] * bool(kinds) + gaps)
    return bars, source


def read_rows(lines: Lines, layout: Layout, options: ReadOptions, name: str) -> tuple[Rows, Ints, list[str]]:
    """The parsable rows of a file, oldest first, the lines that are none, and notes on what became of them."""
    clock, notes = layout.format.timezone, []
    parse_clock(clock)
    whole = read_whole(lines, layout, clock)
    rows, unparsable = (whole, np.zeros(0, np.int64)) if whole else read_each(lines, layout, clock)
    if len(rows.utc) == 0:
        text = lines.text(layout.header + 1)
        why = explain_line(text, layout)
        raise DataError(f"{name}: no bars: line {layout.header + 1}: {why}: {text[:80]!r}")
    if np.sign(np.diff(rows.utc)).sum() < 0:
        rows = pick_rows(rows, np.arange(len(rows.utc))[::-1])
        notes.append("the newest bar stands first: read from the end")
    if "complete" in rows.columns:
        complete = rows.columns["complete"] == 1
        if not complete.any():
            raise DataError(f"{name}: no bar is complete")
        if not complete.all():
            rows = pick_rows(rows, np.flatnonzero(complete))
            notes.append(f"{(~complete).sum()} rows of bars that are not complete are left out")
    return rows, unparsable, notes


def pick_rows(rows: Rows, index: Ints) -> Rows:
    """The rows at `index`."""
    columns = {role: column[index] for role, column in rows.columns.items()}
    return Rows(rows.line[index], rows.utc[index], rows.local, columns)


def describe_source(
    name: str,
    layout: Layout,
    rules: Rules,
    options: ReadOptions,
    local: bool,
    bars: Bars,
    interval_ns: int,
    raw: bytes,
) -> Source:
    """The record of a reading that ended in `bars`; `local`: the stamps follow a clock."""
    in_file = bool(rules.unit_px) or rules.side == "both"
    usual, typed = rules.instrument.spread_pips, options.spread_pips is not None
    origin = f"column of the file, in {layout.unit}" if rules.unit_px else "bid and ask of the file"
    if not in_file:
        origin = "given" if typed else "as in training" if "spread_pips" in options.remembered else "assumed"
    spread_px, range_px = mean_sizes(bars)
    choices = {
        f"--side {rules.side}": options.side is None and rules.side != "both" and "side" not in rules.own,
        f"--timezone {rules.timezone}": options.timezone is None and local and "timezone" not in rules.own,
        f"--label {rules.label}": options.label is None and "label" not in rules.own,
        f"--spread {usual:g}": not typed and not in_file,
        f"--pip {rules.instrument.pip:g}": options.pip is None,
    }
    understates = "the spread column of MetaTrader understates the cost of a fill"
    return Source(
        path=name,
        format=layout.format.name,
        rows=len(bars.time),
        first=iso(bars.time[0]) if len(bars.time) else "",
        last=iso(bars.time[-1]) if len(bars.time) else "",
        interval_s=interval_ns // NS,
        timezone=rules.timezone,
        label=rules.label,
        side=rules.side,
        spread=spread_text(spread_px, range_px, rules, origin),
        spread_pips=None if in_file else usual,
        spread_px=spread_px,
        range_px=range_px,
        instrument=rules.instrument,
        sha256=hashlib.sha256(raw).hexdigest(),
        assumed=[flag for flag, open_question in choices.items() if open_question],
        notes=[understates] if rules.unit_px and layout.format.spread == "points" else [],
    )


def mean_sizes(bars: Any) -> tuple[float, float]:
    """Mean of ask - bid at the closes, and of high - low, of bars or quotes; zero without any."""
    column = bars._asdict() if isinstance(bars, Bars) else bars
    if not len(column["close"]):
        return 0.0, 0.0
    with np.errstate(invalid="ignore", over="ignore"):  # infinite prices are among the faults
        return float(np.mean(column["ask_close"] - column["close"])), float(
            np.mean(column["high"] - column["low"])
        )


def reason(problem: Problem, lines: Lines, layout: Layout) -> str:
    """What is wrong with a row, in words."""
    if problem.kind == "unparsable":
        return f"{KINDS[problem.kind]}: {explain_line(lines.text(problem.line), layout)}"
    return KINDS[problem.kind]
