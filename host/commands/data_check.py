"""`data-check`: how files of bars are read, their faults, and the flags that settle what they leave open."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from host.config import Config
from host.data.file_checks import MAX_LISTED
from host.data.formats import PROBLEM_KINDS, DataError, Problem, ReadOptions, Source
from host.data.history import read_histories
from host.training.dataset import split_bars
from kernels.market.bars import SECOND_NS, Bars

MAX_PROBLEMS_SHOWN = 10  # of each kind
SOURCE_FIELDS = (  # of `Source`, in the document
    *("path", "format", "rows", "first", "last", "interval_s", "timezone", "label", "side", "spread"),
    *("spread_px", "range_px", "hours", "sha256"),
)
INSTRUMENT_FIELDS = ("symbol", "pip", "point")  # of its instrument, in the document


def check_data(path: Path | str, options: ReadOptions) -> dict[str, Any]:
    """The document of one file, see `check_histories`."""
    return check_histories([Path(path)], options)[0]


def check_histories(paths: list[Path], options: ReadOptions) -> list[dict[str, Any]]:
    """The documents of `data-check --json`, one for each instrument.

    "refused" is the reason why the files are not read, and "training" why they do not suffice to train; else null.
    """
    try:
        return [history_document(*history) for history in read_histories(paths, options)]
    except DataError as error:
        return [source_document(error.source, str(error)) if error.source else unreadable_document(str(error))]


def history_document(bars: Bars, source: Source) -> dict[str, Any]:
    """The document of an instrument whose bars can be read."""
    config, interval_ns = Config(), source.interval_s * SECOND_NS
    shortage = split_bars(bars.time, config, source.instrument, interval_ns).shortage
    reason = f"not enough to train with the default episode of {config.market.episode_length} decisions: {shortage}"
    return {**source_document(source, None), "training": reason if shortage else None}


def source_document(source: Source, refused: str | None) -> dict[str, Any]:
    """The document of a file whose format is known; its problems include gaps, for which no file is refused."""
    problems = sorted([*source.problems, *source.gaps], key=lambda problem: problem.line)
    return {
        **{name: getattr(source, name) for name in SOURCE_FIELDS},
        **{name: getattr(source.instrument, name) for name in INSTRUMENT_FIELDS},
        "problems": [problem._asdict() for problem in problems],
        "assumed": source.assumed,
        "notes": [*source.notes, *source.gap_notes],
        "refused": refused,
        "training": None,
    }


def unreadable_document(reason: str) -> dict[str, Any]:
    """The document of a file in no known format, or of one whose prices can be read in two ways."""
    return {
        **dict.fromkeys((*SOURCE_FIELDS, *INSTRUMENT_FIELDS, "training")),
        "rows": 0,
        "problems": [Problem("unreadable", 1, reason)._asdict()],
        "assumed": [],
        "notes": [],
        "refused": reason,
    }


def print_check(document: dict[str, Any], out: IO[str]) -> None:
    """Print the document, with the verdict at the end."""
    if document["format"]:
        print_source(document, out)
    if document["training"]:
        print(document["training"], file=out)
    print(f"refused: {document['refused']}" if document["refused"] else "nothing to refuse", file=out)


def print_source(document: dict[str, Any], out: IO[str]) -> None:
    """Print how a file was read, its problems, and the assumptions."""
    symbol = "an unknown symbol" if document["symbol"] == "-" else document["symbol"]
    print(
        f"{document['path']}: {document['format']}, {document['rows']} bars of {document['interval_s']} s, "
        f"{document['first']} .. {document['last']} UTC\n"
        f"  {symbol}, pip {document['pip']:g}, point {document['point']:g}; side {document['side']}, "
        f"clock {document['timezone']}, stamps mark the {document['label']}, spread {document['spread']}",
        file=out,
    )
    for note in document["notes"]:
        print(f"  {note}", file=out)
    print_problems(document["problems"], out)
    print(f"  assumed; confirm or change: {' '.join(document['assumed']) or 'nothing'}", file=out)


def print_problems(problems: list[dict[str, Any]], out: IO[str]) -> None:
    """Print the first problems of each kind."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for problem in problems:
        by_kind.setdefault(problem["kind"], []).append(problem)
    for kind, group in by_kind.items():
        print(f"{len(group)} x {kind}: {PROBLEM_KINDS[kind]}", file=out)
        for problem in group[:MAX_PROBLEMS_SHOWN]:
            where = f"line {problem['line']}: " if problem["line"] else ""
            print(f"  {where}{problem['text']}", file=out)
        if len(group) > MAX_PROBLEMS_SHOWN:
            print(f"  and {len(group) - MAX_PROBLEMS_SHOWN} more: --json lists up to {MAX_LISTED} of a kind", file=out)
