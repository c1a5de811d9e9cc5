"""`data-check`: what a file of bars is, what is wrong with it, and the flags that settle what it leaves open."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from host.config import Config
from host.data.csv_reader import read_bars
from host.data.file_checks import MAX_LISTED
from host.data.formats import PROBLEM_KINDS, DataError, Problem, ReadOptions, Source
from host.training.dataset import split_bars
from kernels.market.bars import SECOND_NS

MAX_PROBLEMS_SHOWN = 10  # problems of a kind
SOURCE_FIELDS = (  # fields of `Source` in the document
    *("path", "format", "rows", "first", "last", "interval_s", "timezone", "label", "side", "spread"),
    *("spread_px", "range_px", "hours", "sha256"),
)
INSTRUMENT_FIELDS = ("symbol", "pip", "point")  # and of its instrument


def check_data(path: Path | str, options: ReadOptions) -> dict[str, Any]:
    """The document of `data-check --json`; "refused" says why the file would not be read, or is null; so "training"."""
    try:
        bars, source = read_bars(path, options)
    except DataError as error:
        if error.source is None:
            return unreadable_document(str(error))
        return source_document(error.source, str(error))
    config, interval_ns = Config(), source.interval_s * SECOND_NS
    lack = split_bars(bars.time, config, source.instrument, interval_ns).shortage
    said = f"not enough to train with the default session of {config.market.episode_length} decisions: {lack}"
    return {**source_document(source, None), "training": said if lack else None}


def source_document(source: Source, refused: str | None) -> dict[str, Any]:
    """What was recognised; among the problems are holes, which are no reason to refuse a file."""
    problems = sorted([*source.problems, *source.gaps], key=lambda problem: problem.line)
    return {
        **{name: getattr(source, name) for name in SOURCE_FIELDS},
        **{name: getattr(source.instrument, name) for name in INSTRUMENT_FIELDS},
        "problems": [problem._asdict() for problem in problems],
        "assumed": source.assumed,
        "notes": source.notes,
        "refused": refused,
        "training": None,
    }


def unreadable_document(reason: str) -> dict[str, Any]:
    """The document of a file that is in no known format, or leaves open what would change its prices."""
    return {
        **dict.fromkeys((*SOURCE_FIELDS, *INSTRUMENT_FIELDS, "training")),
        "rows": 0,
        "problems": [Problem("unreadable", 1, reason)._asdict()],
        "assumed": [],
        "notes": [],
        "refused": reason,
    }


def print_check(document: dict[str, Any], out: IO[str]) -> None:
    """The document for people, with the verdict."""
    if document["format"]:
        print_source(document, out)
    if document["training"]:
        print(document["training"], file=out)
    print(f"refused: {document['refused']}" if document["refused"] else "nothing to refuse", file=out)


def print_source(document: dict[str, Any], out: IO[str]) -> None:
    """What a file was read as, what was assumed and what is wrong with it."""
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
    print(f"  assumed; say so, or say otherwise: {' '.join(document['assumed']) or 'nothing'}", file=out)


def print_problems(problems: list[dict[str, Any]], out: IO[str]) -> None:
    """The first lines of each kind of problem."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for problem in problems:
        by_kind.setdefault(problem["kind"], []).append(problem)
    for kind, found in by_kind.items():
        print(f"{len(found)} x {kind}: {PROBLEM_KINDS[kind]}", file=out)
        for problem in found[:MAX_PROBLEMS_SHOWN]:
            print(f"  line {problem['line']}: {problem['text']}", file=out)
        if len(found) > MAX_PROBLEMS_SHOWN:
            print(f"  and {len(found) - MAX_PROBLEMS_SHOWN} more: --json lists up to {MAX_LISTED} of a kind", file=out)
