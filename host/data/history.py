"""Many files, many instruments: the bars of each instrument, its files joined in time.

A path is a file, a folder (the files in it that may be bars, not those in its folders) or a pattern.  A zip with
several files gives each of them.  The files of one instrument have one interval, side, label and spread; each is read
by its own clock, and where that of one is only assumed, all have the same.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from host.data.bar_cache import entry_path, load_or_make
from host.data.containers import data_members, list_members
from host.data.csv_reader import mean_spread_and_range, parse_bars, read_bars
from host.data.file_checks import (
    MAX_FREE_DROPS,
    MAX_LISTED,
    is_price_jump,
    level_shift_text,
    list_gaps,
    order_fault,
)
from host.data.formats import DataError, Problem, ReadOptions, Source
from host.data.instruments import ROUND_THE_CLOCK, canonical_symbol
from host.data.parsing import PRICES, IntArray, format_utc, spread_text
from kernels.market.bars import SECOND_NS, Bars

BAR_SUFFIXES = frozenset(
    ".csv .txt .tsv .prn .json .jsonl .ndjson .parquet .feather .zip .gz .gzip .bz2 .xz".split()
)  # of files in a folder that may be bars
UNNAMED = "-"  # the symbol of a file that names none
AGREEMENTS = {  # fields of `Source` that the files of one instrument share, and the flag that settles each
    **{"side": "--side", "timezone": "--timezone", "label": "--label", "spread_pips": "--spread"},
    "interval_s": "",
}


class History(NamedTuple):
    """All bars of one instrument, and how they were read."""

    bars: Bars
    source: Source


class Part(NamedTuple):
    """One file of bars, or one member of a zip."""

    path: Path
    member: str
    bars: Bars
    source: Source


def read_histories(paths: list[Path], options: ReadOptions) -> list[History]:
    """The history of each instrument, in the order of their symbols; DataError where files do not agree."""
    parts = [
        Part(path, member, *read_bars(path, options, member))
        for path in expand_paths(paths)
        for member in list_members(path)
    ]
    by_symbol: dict[str, list[Part]] = {}
    for part in parts:
        by_symbol.setdefault(canonical_symbol(part.source.instrument.symbol), []).append(part)
    if UNNAMED in by_symbol and len(parts) > 1:
        name = by_symbol[UNNAMED][0].source.path
        raise DataError(
            f"{name}: one of {len(parts)} files, with no symbol in a column or in its name: rename it, as "
            "EURUSD_2020.csv, or say --symbol EURUSD if all files are of one instrument"
        )
    histories = [join_parts(by_symbol[symbol], options) for symbol in sorted(by_symbol)]
    for first, other in pairwise(histories):
        if first.source.interval_s != other.source.interval_s:
            raise DataError(
                f"{first.source.path}: bars of {first.source.interval_s} s, and {other.source.path}: of "
                f"{other.source.interval_s} s: one agent has bars of one length, train them apart"
            )
    return histories


def expand_paths(paths: Iterable[Path]) -> list[Path]:
    """The files that paths, folders and patterns name, each once; DataError for a folder or a pattern without any."""
    files: dict[Path, Path] = {}
    for path in paths:
        named = [path]
        if glob.has_magic(str(path)) and not path.exists():
            named = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        found = [file for place in named for file in (files_in(place) if place.is_dir() else [place])]
        if not found:
            raise DataError(
                f"{path}: no file of bars there: name files, a folder of them, or a pattern as 'data/*.csv'"
            )
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def files_in(folder: Path) -> list[Path]:
    """The files in a folder that may be bars by their names, sorted; no hidden file and no report of HistData."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [folder / name for name in data_members(names) if Path(name).suffix.lower() in BAR_SUFFIXES]


def join_parts(parts: list[Part], options: ReadOptions) -> History:
    """The history of files of one instrument; that of a single file is what `read_bars` gives."""
    *others, last = sorted(parts, key=lambda part: not is_clock_known(part.source))
    for other in others:
        check_agreement(other.source, last.source)
    empty = [part for part in parts if not len(part.bars.time)]
    if len(parts) == 1 or empty:
        if len(parts) > 1:
            raise DataError(f"{empty[0].source.path}: no bars: leave it out")
        return History(parts[0].bars, parts[0].source)
    parts = sorted(parts, key=lambda part: (part.bars.time[0], part.bars.time[-1]))
    sha256 = hashlib.sha256("".join(part.source.sha256 for part in parts).encode()).hexdigest()
    key = entry_path(sha256, [part.source.path for part in parts], options)
    return History(*load_or_make(key, lambda: join(parts, options, sha256), lambda source: True))


def is_clock_known(source: Source) -> bool:
    """Whether the format of a file, its stamps or the user say what its clock is."""
    return f"--timezone {source.timezone}" not in source.assumed


def check_agreement(first: Source, other: Source) -> None:
    """DataError unless two files of one instrument are read alike; clocks that are known may differ."""
    for name, flag in AGREEMENTS.items():
        mine, others = getattr(first, name), getattr(other, name)
        if mine != others and not (name == "timezone" and is_clock_known(first) and is_clock_known(other)):
            way_out = f"{flag} says which holds for both" if flag else "bring bars of one length"
            mine, others = ("of the file" if value is None else value for value in (mine, others))
            raise DataError(
                f"{first.path}: {name.removesuffix('_s')} {mine}, and {other.path}: {others}: both are "
                f"{other.instrument.symbol}, {way_out}, or read them apart"
            )


def join(parts: list[Part], options: ReadOptions, sha256: str) -> tuple[Bars, Source]:
    """The bars of parts, which are in the order of their first bars, each time once; and their common Source.

    Of several bars of one time, that of the part whose last bar is the newest is kept, among equals of the later part:
    of two exports, the last bar of the older one was still open.
    """
    rank = np.argsort(np.argsort([part.bars.time[-1] for part in parts], kind="stable"))
    number = np.repeat(np.arange(len(parts)), [len(part.bars.time) for part in parts])
    order = np.lexsort((rank[number], joined_column(parts, "time")))
    time = joined_column(parts, "time")[order]
    again = np.flatnonzero(time[1:] == time[:-1])
    notes = check_overlaps(parts, number, order[again], order[again + 1], options)
    order = np.delete(order, again)
    bars = Bars._make(joined_column(parts, name)[order] for name in Bars._fields)
    check_seams(parts, bars, number[order])
    return bars, joined_source(parts, bars, sha256, notes)


def joined_column(parts: list[Part], name: str) -> Any:
    """A column of `Bars` of all parts, one part after another."""
    return np.concatenate([getattr(part.bars, name) for part in parts])


def check_overlaps(
    parts: list[Part], number: IntArray, left: IntArray, kept: IntArray, options: ReadOptions
) -> list[str]:
    """Notes on bars of one time in several parts; DataError where their prices differ, unless --drop-bad is given.

    Of all bars of the parts, `number` has the part of each; those at `left` [N] give way to those at `kept` [N].
    """
    if not len(left):
        return []
    prices = {name: joined_column(parts, name) for name in PRICES}
    differs = {name: price[left] != price[kept] for name, price in prices.items()}
    is_other = np.any([*differs.values()], axis=0)
    count, notes = int(is_other.sum()), []
    if count < len(left):
        notes.append(f"{len(left) - count} bars are in two files, equal")
    if count:
        k = int(np.argmax(is_other))
        both, name = (int(left[k]), int(kept[k])), next(name for name in PRICES if differs[name][k])
        time_ns, (one, other) = joined_column(parts, "time")[both[0]], (prices[name][row] for row in both)
        places = " and ".join(place_of(parts[number[row]], time_ns, options) for row in both)
        text = f"{places}: bars that close at {format_utc(time_ns)} differ, {name} {one:.9g} and {other:.9g}"
        if count > max(MAX_FREE_DROPS, len(left) // 2):
            raise DataError(f"{text}, as do {count} of {len(left)} bars that are in both: of one clock and one side?")
        if not options.drop_bad:
            raise DataError(f"{text}; {count} bars do; --drop-bad keeps those of the file that ends later")
        notes.append(f"{count} bars differ, those of the file that ends later are kept; the first: {text}")
    return notes


def place_of(part: Part, time_ns: int, options: ReadOptions) -> str:
    """The file and the line of the bar of a part that closes at a time; the file is parsed again for it."""
    bars, _, line = parse_bars(part.path, options, part.member)
    return f"{part.source.path} line {line[np.searchsorted(bars.time, time_ns)]}"


def check_seams(parts: list[Part], bars: Bars, number: IntArray) -> None:
    """DataError where one bar of two files begins before the other ends, or their prices have another level."""
    source = parts[0].source
    interval_ns, always = source.interval_s * SECOND_NS, source.instrument.hours == ROUND_THE_CLOCK
    for t in (np.flatnonzero(np.diff(number)) + 1).tolist():
        before, after = (parts[number[k]].source.path for k in (t - 1, t))
        where = f"{before} and {after}, at {format_utc(bars.time[t])}"
        step_ns = int(bars.time[t] - bars.time[t - 1])
        if order_fault(step_ns, interval_ns):
            raise DataError(
                f"{where}: a bar of one file opens before that of the other has closed: are they of one clock?"
            )
        quote = {name: getattr(bars, name)[t] for name in PRICES}
        if is_price_jump(quote, bars.close[t - 1], step_ns, interval_ns, always):
            raise DataError(f"{where}: {level_shift_text(float(bars.close[t - 1]), float(bars.open[t]))}")


def joined_source(parts: list[Part], bars: Bars, sha256: str, notes: list[str]) -> Source:
    """The record of a joined history: what its files share, what each says beside that, and the gaps of all."""
    first, sources = parts[0].source, [part.source for part in parts]
    common = [note for note in first.notes if all(note in source.notes for source in sources)]
    own = [f"{s.path}: {note}" for s in sources for note in s.notes if note not in common]
    newest = max(parts, key=lambda part: part.bars.time[-1]).source
    clocks = [f", clock {s.timezone}" * any(s.timezone != other.timezone for other in sources) for s in sources]
    files = [f"{s.path}: {s.rows} bars, {s.first} .. {s.last}{c}" for s, c in zip(sources, clocks, strict=True)]
    no_line = np.zeros(len(bars.time), np.int64)
    gaps, gap_notes, closed = list_gaps(bars.time, first.interval_s * SECOND_NS, no_line, first.instrument)
    spread_px, range_px = mean_spread_and_range(bars)
    return replace(
        first,
        path=f"{first.path} and {len(parts) - 1} more",
        format=", ".join(dict.fromkeys(source.format for source in sources)),
        rows=len(bars.time),
        first=format_utc(bars.time[0]),
        last=format_utc(bars.time[-1]),
        timezone=newest.timezone,  # a feed goes on with it
        spread=spread_text(spread_px, range_px, first.instrument.pip, first.spread_origin),
        spread_px=spread_px,
        range_px=range_px,
        hours=f"closed (UTC): {closed}",
        sha256=sha256,
        problems=[Problem(p.kind, p.line, f"{s.path}: {p.text}") for s in sources for p in s.problems][:MAX_LISTED],
        gaps=gaps,
        assumed=list(dict.fromkeys(flag for source in sources for flag in source.assumed)),
        notes=[*files, *common, *own, *notes],
        gap_notes=gap_notes,
    )
