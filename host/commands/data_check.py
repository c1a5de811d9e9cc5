"""`data-check`: what a file of bars is, what is wrong with it, and the flags that settle what it leaves open."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from host.config import Config
from host.data.csv_reader import read_bars
from host.data.file_checks import MAX_LISTED
from host.data.formats import KINDS, DataError, Problem, ReadOptions, Source
from host.training.dataset import split_bars
from kernels.market.bars import NS

SHOWN = 10  # problems of a kind
READ = (  # fields of `Source` in the document
    *("path", "format", "rows", "first", "last", "interval_s", "timezone", "label", "side", "spread"),
    *("spread_px", "range_px", "hours", "sha256"),
)
TRADED = ("symbol", "pip", "point")  # and of its instrument


def check_data(path: Path | str, options: ReadOptions) -> dict[str, Any]:
    """The document of `data-check --json`; "refused" says why the file would not be read, or is null; so "training"."""
    try:
        bars, source = read_bars(path, options)
    except DataError as error:
        if error.source is None:
            return unread(str(error))
        return document_of(error.source, str(error))
    config, interval_ns = Config(), source.interval_s * NS
    lack = split_bars(bars.time, config, source.instrument, interval_ns).lack
    said = f"not enough to train with the default session of {config.market.session} decisions: {lack}"
    return {**document_of(source, None), "training": said if lack else None}


def document_of(source: Source, refused: str | None) -> dict[str, Any]:
    """What was recognised; among the problems are holes, which are no reason to refuse a file."""
    problems = sorted([*source.problems, *source.holes], key=lambda problem: problem.line)
    return {
        **{name: getattr(source, name) for name in READ},
        **{name: getattr(source.instrument, name) for name in TRADED},
        "problems": [problem._asdict() for problem in problems],
        "assumed": source.assumed,
        "notes": source.notes,
        "refused": refused,
        "training": None,
    }


def unread(reason: str) -> dict[str, Any]:
    """The document of a file that is in no known format, or leaves open what would change its prices."""
    return {
        **dict.fromkeys((*READ, *TRADED, "training")),
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
        print(
            f"{len(found)} x {kind}: {KINDS.get(kind, 'bars are missing, more than ten in a row')}", file=out
        )
        for problem in found[:SHOWN]:
            print(f"  line {problem['line']}: {problem['text']}", file=out)
        if len(found) > SHOWN:
            print(f"  and {len(found) - SHOWN} more: --json lists up to {MAX_LISTED} of a kind", file=out)
