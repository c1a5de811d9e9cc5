"""Files of bars read in bulk: every row of a file, what was assumed of it and which rows are bad.

`formats.py` says what a line means; the whole of a file is parsed by pandas where all of it is in form.
"""

from __future__ import annotations

import csv
import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.formats import (
    DAY,
    HOUR,
    KINDS,
    MAX_LINE,
    NUMBERS,
    SATURDAY,
    WEEK,
    DataError,
    Ints,
    Layout,
    Problem,
    ReadOptions,
    Rules,
    Source,
    interval_of,
    is_damaged,
    iso,
    order_fault,
    parse_clock,
    parse_line,
    parse_stamp,
    quotes,
    recognise,
    row_faults,
    rules_for,
    to_utc,
)
from kernels.bars import NS, Bars

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 50_000  # parsed at a time
MAX_LISTED = 1000  # problems of a kind
MAX_HOLES = 10  # notes
HOLE = 12 * HOUR  # a gap this long gets a note of its own


class Rows(NamedTuple):
    """The parsable rows of a file as they stand."""

    line: Ints  # [T] of the file, from 1
    utc: Ints  # [T] stamp, nanoseconds
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
    if not same_width(lines, layout):
        return None
    import pandas as pd  # heavy, and a machine that only acts has none

    types = {i: "float64" if role in NUMBERS else "str" for i, role in enumerate(columns) if role}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frames = pd.read_csv(
                io.BytesIO(body),
                chunksize=CHUNK_ROWS,
                sep=layout.format.separator,
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
    return Rows(line, to_utc(stamp_ns, is_utc, clock), numbers)


def same_width(lines: Lines, layout: Layout) -> bool:
    """Whether every line has the separators that the columns of the layout need."""
    separator = np.flatnonzero(np.frombuffer(lines.data, np.uint8) == ord(layout.format.separator))
    per_line = np.searchsorted(separator, lines.stop) - np.searchsorted(separator, lines.start)
    return bool((per_line[layout.header :] == len(layout.columns) - 1).all())


def read_piece(
    frame: pd.DataFrame, layout: Layout
) -> tuple[Ints, NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
    """Stamps, whether they are UTC, and the numbers by role: texts take memory, so a few rows at a time."""
    columns = layout.columns
    texts = [frame[i].tolist() for i, role in enumerate(columns) if role and role not in NUMBERS]
    stamps = [parse_stamp(layout.format.stamp, " ".join(t), layout.day) for t in zip(*texts, strict=True)]
    stamp_ns = np.array([stamp for stamp, _ in stamps], np.int64)
    is_utc = np.array([utc for _, utc in stamps], np.bool_)
    numbers = {role: frame[i].to_numpy(np.float64) for i, role in enumerate(columns) if role in NUMBERS}
    return stamp_ns, is_utc, numbers


def read_each(lines: Lines, layout: Layout, clock: str) -> tuple[Rows, Ints]:
    """The rows that can be parsed, line by line, and the lines that cannot; blank lines are neither."""
    good, bad, stamps = [], [], []
    numbers: dict[str, list[float]] = {role: [] for role in layout.columns if role in NUMBERS}
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
    rows = Rows(np.array(good, np.int64), to_utc(stamp_ns, is_utc, clock), columns)
    return rows, np.array(bad, np.int64)


def find_faults(rows: Rows, quote: dict[str, NDArray[np.float64]], interval_ns: int) -> dict[int, str]:
    """Kind of the fault of every bad row, by index; neighbours and order count among the rows good by themselves."""
    bad: dict[int, str] = {}
    has_volume = bool((quote["volume"] > 0).any())
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


def hole_notes(close_ns: Ints, interval_ns: int, line: Ints) -> list[str]:
    """Sentences on the gaps between bars; those over a weekend are only counted."""
    missing = np.diff(close_ns) - interval_ns
    after = np.flatnonzero(missing > 0) + 1
    begin, end = close_ns[after - 1], close_ns[after] - interval_ns
    saturday = (begin - SATURDAY - DAY // 2) // WEEK != (end - SATURDAY - DAY // 2) // WEEK
    weekend = saturday & (end - begin < 4 * DAY)
    notes = [f"{weekend.sum()} weekends and {(~weekend).sum()} other gaps between bars"] if len(after) else []
    holes = after[~weekend & (end - begin >= HOLE)]
    for t in holes[:MAX_HOLES]:
        notes.append(
            f"line {line[t]}: no bars for {missing[t - 1] / HOUR:.0f} h, from {iso(close_ns[t - 1])}"
        )
    if len(holes) > MAX_HOLES:
        notes.append(f"and {len(holes) - MAX_HOLES} more gaps of {HOLE // HOUR} h or longer")
    return notes


def read_bytes(path: Path) -> bytes:
    """The bytes of the file."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


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


def refuse_bad(source: Source, kinds: dict[int, str], drop_bad: bool) -> None:
    """Raise DataError if there are bad rows and they may not, or cannot sensibly, be dropped."""
    most = len(kinds) >= source.rows
    if not kinds or (drop_bad and not most):
        return
    shown = "; ".join(f"line {p.line}: {KINDS[p.kind]}: {p.text!r}" for p in source.problems[:3])
    remedy = "most of the file: is it newest first, or of another kind?" if most else "--drop-bad drops them"
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
    lines = split_lines(raw, name)
    layout = recognise(lines.text(1), lines.text(2) if len(lines.start) > 1 else "", name)
    clock = options.timezone or layout.format.timezone
    parse_clock(clock)
    whole = read_whole(lines, layout, clock)
    rows, unparsable = (whole, np.zeros(0, np.int64)) if whole else read_each(lines, layout, clock)
    if len(rows.utc) == 0:
        raise DataError(f"{name}: no bars: line {layout.header + 1}: {lines.text(layout.header + 1)[:80]!r}")
    interval_ns = interval_of(rows.utc, options, name)
    rules, notes = rules_for(layout, options, name, float(np.median(rows.columns["open"])), interval_ns)
    quote = quotes(rows.columns, rules, layout.point)
    faults = find_faults(rows, quote, interval_ns)
    kinds = dict.fromkeys(unparsable.tolist(), "unparsable") | {
        int(rows.line[t]): k for t, k in faults.items()
    }
    good = np.delete(np.arange(len(rows.utc)), list(faults))
    time = rows.utc[good] + (interval_ns if rules.label == "open" else 0)
    bars = Bars(time, **{column: values[good] for column, values in quote.items()})
    source = describe_source(name, layout, rules, options, time, raw, list_problems(lines, kinds), notes)
    refuse_bad(source, kinds, options.drop_bad)
    if kinds:
        source.notes.append(f"dropped {count_kinds(kinds)}")
    source.notes.extend(hole_notes(time, interval_ns, rows.line[good]))
    return bars, source


def describe_source(
    name: str,
    layout: Layout,
    rules: Rules,
    options: ReadOptions,
    time: Ints,
    raw: bytes,
    problems: list[Problem],
    notes: list[str],
) -> Source:
    """The record of a reading that ended in bars closing at `time`."""
    columns = layout.columns
    in_file = {
        "ask_open": "bid and ask",
        "spread": "column of the file",
        "points": "column of the file, in points",
    }
    spread = next((text for role, text in in_file.items() if role in columns), None)
    spread_pips = None if spread else rules.spread_px / rules.pip
    given = "assumed" if options.spread_pips is None else "given"
    if "points" in columns:
        notes.append("the spread column of MetaTrader understates the cost of a fill")
    return Source(
        path=name,
        format=layout.format.name,
        rows=len(time),
        first=iso(time[0]) if len(time) else "",
        last=iso(time[-1]) if len(time) else "",
        interval_s=rules.interval_ns // NS,
        timezone=rules.timezone,
        label=rules.label,
        side=rules.side,
        spread=spread or f"{spread_pips:g} pips, {given}",
        spread_pips=spread_pips,
        pip=rules.pip,
        sha256=hashlib.sha256(raw).hexdigest(),
        problems=problems,
        notes=notes,
    )
