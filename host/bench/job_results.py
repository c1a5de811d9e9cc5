"""What the jobs of a bench have measured: a line of JSON for each, in one file, by the key of its job.

A bench of days goes on where it stopped, on another machine too.  A key has the digest of the program that measured, so
a line of another program is nobody's result, and stays.
"""

import json
from pathlib import Path
from typing import Any

from host.atomic import append_line, read_lines
from host.bench.options import BenchError
from host.bench.process import BenchRow

DIGITS = 6  # of a number that is kept


def add_result(path: Path, key: str, row: BenchRow) -> None:
    """Append what a job has measured; durable on return."""
    append_line(path, {"key": key, **rounded(row)})


def read_results(path: Path) -> dict[str, BenchRow]:
    """What is measured, by key; BenchError for a line that is no result."""
    rows = dict[str, BenchRow]()
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
            rows[row.pop("key")] = row
        except (ValueError, TypeError, LookupError, AttributeError):
            raise BenchError(f"{path}: line {number} is no result of a job: delete that line") from None
    return rows


def rounded(value: Any) -> Any:
    """`value` with all its numbers rounded to DIGITS significant digits."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
