"""The bulk reader of files of bars: it returns the bars, every assumption and every bad row.

pandas parses a file without a malformed line.  Any other file is parsed line by line, with the functions of
`parsing.py`, to the same bits.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.data.bar_cache import MIN_FILE_BYTES, entry_path, load_or_make
from host.data.containers import FileText, file_sha256, member_sha256, read_text
from host.data.file_checks import (
    MAX_LISTED,
    bad_cells_text,
    find_faults,
    infer_interval,
    list_gaps,
    sequence_breaks,
    swap_date_order,
    why_not_dropped,
)
from host.data.formats import MAX_LINE, PROBLEM_KINDS, DataError, Problem, ReadOptions, Source
from host.data.layout import OTHER_DATE_ORDER, FileLayout, detect_layout, first_lines
from host.data.parsing import (
    BOOLEANS,
    NUMERIC_ROLES,
    BoolArray,
    Columns,
    IntArray,
    ParseRules,
    check_spread,
    explain_line,
    format_utc,
    parse_clock,
    parse_line,
    resolve_instrument,
    resolve_rules,
    spread_text,
    to_quotes,
    to_utc,
)
from host.data.resample import resample_bars
from host.data.stamps import parse_stamps
from host.data.weekly_open import AUTO_TIMEZONE, clock_warning, find_weekends, infer_clock
from kernels.market.bars import SECOND_NS, Bars

CHUNK_ROWS = 50_000  # parsed at a time
BLOCK_BYTES = 1 << 24  # searched for the ends of lines at a time
UTF8_BOM, NO_SPACE = b"\xef\xbb\xbf", re.compile(rb"\S")
# A machine that only trades has no pandas: it reads every file line by line, which is four times slower.
HAS_PANDAS = importlib.util.find_spec("pandas") is not None
MISREAD_RATIO = 4  # so many times as many faults as in the other order prove the other order of dates
MAX_SHOWN_ROWS = 3  # bad rows in an error message
PANDAS_OPTIONS: dict[str, Any] = {  # a field is taken as it stands, and a blank line is a row
    **{"index_col": False, "na_filter": False, "quoting": csv.QUOTE_NONE, "skip_blank_lines": False},
    "encoding": "latin-1",
}


class ParsedRows(NamedTuple):
    """The rows of a file that can be parsed."""

    line: IntArray  # [T] of the file, from 1
    utc: IntArray  # [T] stamp, nanoseconds
    is_local_time: bool  # some stamps have no offset of their own
    columns: Columns  # [T] by role


class RowFindings(NamedTuple):
    """The faults of the rows of a file."""

    kinds: dict[int, str]  # kind of fault by bad line
    changes: list[Problem]  # lasting changes, which no dropped row would mend
    bad_cells: dict[int, str]  # the bad numbers by line, for the first few bad lines
    keep_reason: str | None  # why the bad rows may not be dropped; None if they may
    good_rows: IntArray | slice  # indices; all in one slice if no row is bad, which copies nothing


class IndexedLines(NamedTuple):
    """The bytes of a file and the bounds of its lines, without byte order mark and without blank lines at the end."""

    data: bytes
    start: NDArray[np.int32]  # offset of the first byte of each line
    stop: NDArray[np.int32]  # and of the byte after the last, without the end of the line

    def text(self, line: int) -> str:
        """Line `line`, counted from 1."""
        return self.data[self.start[line - 1] : self.stop[line - 1]].decode("latin-1")


def split_lines(data: bytes, name: str) -> IndexedLines:
    """Index the lines of a file without a copy of it; DataError if it cannot be text."""
    begin, end = len(UTF8_BOM) * data.startswith(UTF8_BOM), len(data)
    if not NO_SPACE.search(data, begin):
        raise DataError(f"{name}: empty")
    if b"\0" in data:
        raise DataError(f"{name}: not a text file: byte {data.index(0) + 1} is 0")
    while not (tail := data[max(end - MAX_LINE, 0) : end].rstrip(b"\r\n")):
        end -= MAX_LINE
    end = max(end - MAX_LINE, 0) + len(tail)
    text = np.frombuffer(data, np.uint8)
    blocks = [text[first : min(first + BLOCK_BYTES, end)] for first in range(0, end, BLOCK_BYTES)]
    newlines = [
        (np.flatnonzero(block == ord("\n")) + k * BLOCK_BYTES).astype(np.int32) for k, block in enumerate(blocks)
    ]
    newline = np.concatenate(newlines)
    start, stop = np.append(np.int32(begin), newline + 1), np.append(newline, np.int32(end))
    stop[:-1] -= (text[newline - 1] == ord("\r")) & (newline > start[:-1])
    longest = int(np.argmax(stop - start))
    if stop[longest] - start[longest] > MAX_LINE:
        raise DataError(f"{name}: line {longest + 1}: longer than {MAX_LINE} bytes, this is no file of bars")
    return IndexedLines(data, start, stop)


def read_with_pandas(lines: IndexedLines, layout: FileLayout, clock: str) -> ParsedRows | None:
    """The rows of a file, parsed by pandas in chunks; None if a line is malformed or pandas is missing."""
    first, count = layout.header_lines, len(lines.start) - layout.header_lines
    if not HAS_PANDAS or lines.data.find(b'"', lines.start[first]) >= 0:
        return None
    stamp_ns, is_utc = np.empty(count, np.int64), np.empty(count, np.bool_)
    numbers = {role: np.empty(count) for role in layout.columns if role in (*NUMERIC_ROLES, "complete")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for row in range(0, count, CHUNK_ROWS):
                rows = slice(row, min(row + CHUNK_ROWS, count))
                chunk = parse_chunk(lines, slice(first + rows.start, first + rows.stop), layout)
                stamp_ns[rows], is_utc[rows] = chunk[:2]
                for role, column in chunk[2].items():
                    numbers[role][rows] = column
    except (ValueError, OverflowError, Warning):
        return None
    line = np.arange(first + 1, len(lines.start) + 1, dtype=np.int64)
    return ParsedRows(line, to_utc(stamp_ns, is_utc, clock), not is_utc.all(), numbers)


def parse_chunk(lines: IndexedLines, rows: slice, layout: FileLayout) -> tuple[IntArray, BoolArray, Columns]:
    """The stamps of the lines `rows`, whether each is UTC, and the numbers by role; ValueError on a malformed row."""
    import pandas as pd  # here, as it takes long to import

    columns, start, stop = layout.columns, lines.start[rows].astype(np.int64), lines.stop[rows].astype(np.int64)
    bounds = separator_bounds(lines, start, stop, layout)
    stamp_ns, is_utc = parse_stamps(layout.format.stamp_style, time_texts(lines, bounds, layout), layout.file_date)
    types = {
        i: "float64" if role in NUMERIC_ROLES else "str" for i, role in enumerate(columns) if role not in ("", "time")
    }
    shape: dict[str, Any] = {"names": range(len(columns)), "usecols": list(types), "dtype": types, "header": None}
    body = io.BytesIO(lines.data[start[0] : stop[-1]])
    frame = pd.read_csv(body, sep=layout.separator, **shape, **PANDAS_OPTIONS)
    numbers = {role: frame[i].to_numpy(np.float64) for i, role in enumerate(columns) if role in NUMERIC_ROLES}
    if "symbol" in columns and (frame[columns.index("symbol")] != layout.symbol).any():
        raise ValueError("more than one symbol")
    if "complete" in columns:
        flags = frame[columns.index("complete")].tolist()
        numbers["complete"] = np.array([BOOLEANS.get(flag.lower(), np.nan) for flag in flags])
    if len(frame) != len(start) or not all(np.isfinite(column).all() for column in numbers.values()):
        raise ValueError("a line that is more or less than a row, or a number that is none")
    return stamp_ns, is_utc, numbers


def separator_bounds(lines: IndexedLines, start: IntArray, stop: IntArray, layout: FileLayout) -> IntArray:
    """The bounds [T, fields + 1] of the fields of lines: each ends a byte before the next; ValueError if uneven."""
    text = np.frombuffer(lines.data, np.uint8)[start[0] : stop[-1]]
    separator = np.flatnonzero(text == ord(layout.separator)) + start[0]
    if len(separator) != len(start) * (len(layout.columns) - 1):
        raise ValueError("a line with more or fewer fields")
    bounds = np.column_stack([start - 1, separator.reshape(len(start), -1), stop])
    if (bounds[:, 1] < start).any() or (bounds[:, -2] >= stop).any():
        raise ValueError("a line with more or fewer fields")
    return bounds


def time_texts(lines: IndexedLines, bounds: IntArray, layout: FileLayout) -> NDArray[np.uint8] | list[str]:
    """The stamps of lines whose fields have these `bounds`: characters [T, width], or texts where widths differ."""
    time_at = [i for i, role in enumerate(layout.columns) if role == "time"]
    fields = [(bounds[:, i] + 1, bounds[:, i + 1]) for i in time_at]
    widths = [np.unique(stop - start) for start, stop in fields]
    if any(len(width) > 1 for width in widths):
        pairs = [zip(start.tolist(), stop.tolist(), strict=True) for start, stop in fields]
        texts = [[lines.data[a:b].decode("latin-1") for a, b in column] for column in pairs]
        return [" ".join(text) for text in zip(*texts, strict=True)]
    text, blank = np.frombuffer(lines.data, np.uint8), np.full((len(bounds), 1), ord(" "), np.uint8)
    parts = [text[start[:, None] + np.arange(width[0])] for (start, _), width in zip(fields, widths, strict=True)]
    return np.hstack([piece for part in parts for piece in (blank, part)][1:])


def read_line_by_line(lines: IndexedLines, layout: FileLayout, clock: str) -> tuple[ParsedRows, IntArray]:
    """The rows that can be parsed, line by line, and the lines that cannot be parsed and are not blank."""
    good, bad, stamps = [], [], []
    numbers: dict[str, list[float]] = {role: [] for role in layout.columns if role in (*NUMERIC_ROLES, "complete")}
    for line in range(layout.header_lines + 1, len(lines.start) + 1):
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
    rows = ParsedRows(np.array(good, np.int64), to_utc(stamp_ns, is_utc, clock), not is_utc.all(), columns)
    return rows, np.array(bad, np.int64)


def list_problems(lines: IndexedLines, kinds: dict[int, str]) -> list[Problem]:
    """The problems in the order of their lines, at most MAX_LISTED of a kind; `kinds` has the kind of each line."""
    listed: dict[str, int] = {}
    problems = []
    for line in sorted(kinds):
        kind = kinds[line]
        listed[kind] = listed.get(kind, 0) + 1
        if listed[kind] <= MAX_LISTED:
            problems.append(Problem(kind, line, lines.text(line)[:160]))
    return problems


def raise_on_findings(source: Source, findings: RowFindings, drop_bad: bool) -> None:
    """DataError if a lasting change begins in a file, or if it has bad rows and the user or a reason keeps them."""
    for change in findings.changes:
        raise DataError(f"{source.path}: line {change.line}: {change.text}", source)
    if not findings.kinds or (drop_bad and findings.keep_reason is None):
        return
    examples = "; ".join(
        f"line {p.line}: {PROBLEM_KINDS[p.kind]}{findings.bad_cells.get(p.line, '')}: {p.text!r}"
        for p in source.problems[:MAX_SHOWN_ROWS]
    )
    remedy = findings.keep_reason or "--drop-bad drops them"
    raise DataError(f"{source.path}: {problem_counts_text(findings.kinds)}; {examples}; {remedy}", source)


def problem_counts_text(kinds: dict[int, str]) -> str:
    """The number of bad rows, in all and by kind: `3 bad rows (2 flat, 1 range)`."""
    values = list(kinds.values())
    counts = ", ".join(f"{values.count(kind)} {kind}" for kind in PROBLEM_KINDS if kind in values)
    return f"{len(values)} bad row{'s' * (len(values) > 1)} ({counts})"


def read_bars(path: Path | str, options: ReadOptions | None = None, member: str = "") -> tuple[Bars, Source]:
    """The closed bars of a file and the record of how it was read; DataError for a bad row without --drop-bad.

    `member` is of `list_members`.  What was read once comes from the cache, mapped into memory.
    """
    path, options = Path(path), options or ReadOptions()
    entry, sha256 = cache_entry(path, options, member)
    return load_or_make(entry, lambda: parse_bars(path, options, member)[:2], lambda source: source.sha256 == sha256)


def cache_entry(path: Path, options: ReadOptions, member: str) -> tuple[Path | None, str]:
    """The entry of a file in the cache, None for a short file, and the hash of the file."""
    try:
        if path.stat().st_size >= MIN_FILE_BYTES and path.is_file():
            sha256 = member_sha256(file_sha256(path), member)
            return entry_path(sha256, str(path), member, options), sha256
    except (OSError, ValueError):  # reading it says what is wrong
        pass
    return None, ""


def parse_bars(path: Path, options: ReadOptions, member: str = "") -> tuple[Bars, Source, IntArray]:
    """What `read_bars` reads, and the line [T] of each bar, of the first one where several are put together."""
    file = read_text(path, member)
    name, lines = file.name, split_lines(file.data, file.name)
    layout = find_layout(lines, options, name)
    clock_notes = []
    if options.timezone == AUTO_TIMEZONE:
        clock_notes = [f"clock proven by the weekly opens (--timezone {AUTO_TIMEZONE})"]
        options = replace(options, timezone=infer_file_clock(lines, layout, options))
        layout = find_layout(lines, options, name)
    check_date_order(lines, layout, options)
    rows, unparsable, notes = read_rows(lines, layout)
    step_ns = infer_interval(rows.utc, options, name)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite prices are among the faults
        rules, rule_notes = resolve_rules(layout, options, float(np.median(rows.columns["open"])), step_ns)
        quote = to_quotes(rows.columns, rules)
    rows = rows._replace(columns={})  # not needed beside the quotes
    opening = rows.utc - step_ns if rules.label == "close" else rows.utc
    findings = check_rows(rows, unparsable, quote, opening, rules, layout.format.volume_required)
    for n in unparsable[:MAX_SHOWN_ROWS].tolist():
        findings.bad_cells[n] = f": {explain_line(lines.text(n), layout)}"
    good, line = findings.good_rows, rows.line[findings.good_rows]
    bars = Bars(opening[good] + step_ns, **{column: values[good] for column, values in quote.items()})
    warning = clock_warning(find_weekends(opening[good], step_ns), rules, options, rows.is_local_time)
    interval_ns = step_ns if options.interval_s is None else options.interval_s * SECOND_NS
    if interval_ns > step_ns:
        bars, first = resample_bars(bars, step_ns, interval_ns, rules.timezone)
        line = line[first]
        notes.append(f"bars of {step_ns // SECOND_NS} s are put together into bars of {interval_ns // SECOND_NS} s")
    holes, gaps, closed = list_gaps(bars.time, interval_ns, line, rules.instrument)
    source = describe_source(file, layout, rules, options, rows, bars, closed)
    source.notes.extend([*clock_notes, *rule_notes, *([warning] if warning else []), *notes])
    source.problems.extend(findings.changes + list_problems(lines, findings.kinds))
    source.gaps.extend(holes)
    check_spread(*(mean_spread_and_range(bars) if len(bars.time) else mean_spread_and_range(quote)), rules, name)
    raise_on_findings(source, findings, options.drop_bad)
    source.notes.extend([f"dropped {problem_counts_text(findings.kinds)}"] * bool(findings.kinds))
    source.gap_notes.extend(gaps)
    return bars, source, line


def check_rows(
    rows: ParsedRows, unparsable: IntArray, quote: Columns, opening: IntArray, rules: ParseRules, volume_required: bool
) -> RowFindings:
    """The faults of the rows of a file; `quote` and `opening` [T] are of the rows, `unparsable` are line numbers."""
    faults, changes = find_faults(quote, opening, rules, volume_required)
    line = {row: int(rows.line[row]) for row in (*faults, *changes)}
    kinds = dict.fromkeys(unparsable.tolist(), "unparsable") | {line[row]: k for row, k in faults.items()}
    return RowFindings(
        kinds=kinds,
        changes=[Problem(kind, line[row], text) for row, (kind, text) in sorted(changes.items())],
        bad_cells={
            line[row]: bad_cells_text(
                faults[row],
                {name: float(column[row]) for name, column in quote.items()},
                float(np.median(quote["close"][max(0, row - 2) : row + 3])),
            )
            for row in sorted(faults)[:MAX_SHOWN_ROWS]
        },
        keep_reason=why_not_dropped(kinds, rows.line, rows.utc, rules.interval_ns),
        good_rows=np.delete(np.arange(len(opening)), list(faults)) if faults else slice(None),
    )


def find_layout(lines: IndexedLines, options: ReadOptions, name: str) -> FileLayout:
    """The layout of a file; DataError if it is unclear, with the order of dates that fits, if one does."""
    head = first_lines(map(lines.text, range(1, len(lines.start) + 1)))
    try:
        return detect_layout(head, options, name)
    except DataError as error:
        if options.dates is not None:
            raise
        layouts = {order: detect_layout(head, replace(options, dates=order), name) for order in OTHER_DATE_ORDER}
        misread = {order: count_misread_lines(lines, layout) for order, layout in layouts.items()}
        likely = min(OTHER_DATE_ORDER, key=lambda order: misread[order][0])
        other = OTHER_DATE_ORDER[likely]
        if MISREAD_RATIO * misread[likely][0] >= misread[other][0]:
            raise
        raise DataError(f"{error}; {wrong_order_text(other, misread[other], misread[likely][0])}") from None


def check_date_order(lines: IndexedLines, layout: FileLayout, options: ReadOptions) -> None:
    """DataError if the order of --dates leaves far more lines out of sequence than the other order."""
    if options.dates is None or layout.format.stamp_style != options.dates:
        return
    given_order = count_misread_lines(lines, layout)
    other_order = count_misread_lines(lines, swap_date_order(layout)) if given_order[0] else given_order
    if MISREAD_RATIO * other_order[0] < given_order[0]:
        raise DataError(f"{layout.path}: {wrong_order_text(options.dates, given_order, other_order[0])}")


def count_misread_lines(lines: IndexedLines, layout: FileLayout) -> tuple[int, int]:
    """The number of lines that are no bars or do not follow the line before, and the first such line or 0."""
    try:
        rows, unparsable = read_wall_clock_rows(lines, layout)
    except DataError:  # no line is a bar
        return len(lines.start), layout.header_lines + 1
    wrong = sorted([*unparsable.tolist(), *rows.line[sequence_breaks(rows.utc)].tolist()])
    return len(wrong), wrong[0] if wrong else 0


def read_wall_clock_rows(lines: IndexedLines, layout: FileLayout) -> tuple[ParsedRows, IntArray]:
    """The rows of a file with stamps as its clock shows them, and the lines that cannot be parsed."""
    return read_rows(lines, layout._replace(format=layout.format._replace(timezone="UTC")))[:2]


def wrong_order_text(order: str, misread: tuple[int, int], misread_other: int) -> str:
    """The message that dates are not in this `order`; `misread` is of `count_misread_lines`."""
    other = OTHER_DATE_ORDER[order]
    return (
        f"read with --dates {order}, {misread[0]} lines from line {misread[1]} on are no dates or do not follow the "
        f"line before; with --dates {other} it is {misread_other}: --dates {other} is right"
    )


def infer_file_clock(lines: IndexedLines, layout: FileLayout, options: ReadOptions) -> str:
    """The clock that the weekly opens of a file prove; DataError if they prove none."""
    rows, _ = read_wall_clock_rows(lines, layout)
    if not rows.is_local_time:
        return "UTC"  # every stamp has its own offset
    step_ns = infer_interval(rows.utc, options, layout.path)
    instrument, _ = resolve_instrument(layout, options, float(np.median(rows.columns["open"])))
    return infer_clock(rows.utc - (step_ns if options.label == "close" else 0), step_ns, instrument, layout.path)


def read_rows(lines: IndexedLines, layout: FileLayout) -> tuple[ParsedRows, IntArray, list[str]]:
    """The rows of a file that can be parsed, oldest first; the lines that cannot be; notes on rows left out."""
    clock, notes = layout.format.timezone, []
    parse_clock(clock)
    from_pandas = read_with_pandas(lines, layout, clock)
    rows, unparsable = (from_pandas, np.zeros(0, np.int64)) if from_pandas else read_line_by_line(lines, layout, clock)
    if len(rows.utc) == 0:
        text = lines.text(layout.header_lines + 1)
        why = explain_line(text, layout)
        raise DataError(f"{layout.path}: no bars: line {layout.header_lines + 1}: {why}: {text[:80]!r}")
    if np.sign(np.diff(rows.utc)).sum() < 0:
        rows = take_rows(rows, np.arange(len(rows.utc))[::-1])
        notes.append("the newest bar stands first: read from the end")
    if "complete" in rows.columns:
        complete = rows.columns["complete"] == 1
        if not complete.any():
            raise DataError(f"{layout.path}: no bar is complete")
        if not complete.all():
            rows = take_rows(rows, np.flatnonzero(complete))
            notes.append(f"{(~complete).sum()} rows of bars that are not complete are left out")
    return rows, unparsable, notes


def take_rows(rows: ParsedRows, index: IntArray) -> ParsedRows:
    """The rows at `index`."""
    columns = {role: column[index] for role, column in rows.columns.items()}
    return ParsedRows(rows.line[index], rows.utc[index], rows.is_local_time, columns)


def describe_source(
    file: FileText,
    layout: FileLayout,
    rules: ParseRules,
    options: ReadOptions,
    rows: ParsedRows,
    bars: Bars,
    closed: str,
) -> Source:
    """The record of how `bars` were read."""
    in_file = bool(rules.spread_unit_px) or rules.side == "both"
    usual, typed = rules.instrument.spread_pips, options.spread_pips is not None
    origin = f"column of the file, in {layout.spread_unit}" if rules.spread_unit_px else "bid and ask of the file"
    if not in_file:
        origin = "given" if typed else "as in training" if "spread_pips" in options.model_defaults else "assumed"
    spread_px, range_px = mean_spread_and_range(bars)
    choices = {
        f"--side {rules.side}": options.side is None and rules.side != "both" and "side" not in rules.fixed_options,
        f"--timezone {rules.timezone}": options.timezone is None
        and rows.is_local_time
        and "timezone" not in rules.fixed_options,
        f"--label {rules.label}": options.label is None and "label" not in rules.fixed_options,
        f"--spread {usual:g}": not typed and not in_file,
        f"--pip {rules.instrument.pip:g}": options.pip is None,
    }
    understates = "the spread column of MetaTrader understates the cost of a fill"
    return Source(
        path=file.name,
        format=layout.format.name,
        rows=len(bars.time),
        first=format_utc(bars.time[0]) if len(bars.time) else "",
        last=format_utc(bars.time[-1]) if len(bars.time) else "",
        interval_s=rules.interval_ns // SECOND_NS if options.interval_s is None else options.interval_s,
        timezone=rules.timezone,
        label=rules.label,
        side=rules.side,
        spread=spread_text(spread_px, range_px, rules.instrument.pip, origin),
        spread_origin=origin,
        spread_pips=None if in_file else usual,
        spread_px=spread_px,
        range_px=range_px,
        hours=f"closed (UTC): {closed}",
        instrument=rules.instrument,
        sha256=file.sha256,
        assumed=[flag for flag, open_question in choices.items() if open_question],
        notes=[understates] if rules.spread_unit_px and layout.format.spread == "points" else [],
    )


def mean_spread_and_range(bars: Any) -> tuple[float, float]:
    """Mean of ask - bid at the closes, and of high - low, of `Bars` or of their columns by name; zero without bars."""
    column = bars._asdict() if isinstance(bars, Bars) else bars
    with np.errstate(invalid="ignore", over="ignore"):  # infinite prices are among the faults
        sizes = column["ask_close"] - column["close"], column["high"] - column["low"]
        spread_px, range_px = (float(np.mean(size)) if len(size) else 0.0 for size in sizes)
    return spread_px, range_px
