"""`target.csv`, the row that a bridge to the broker reads, and `position.csv`, the row that it writes.

A target is a level, never an order: reading it twice changes nothing.  The row carries the end of its validity, for a
reader that comes late, and the CRC-32 of its text, for a reader that comes while the file is being written.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import NamedTuple

from host.data.parsing import format_utc, parse_finite, parse_utc
from kernels.market.bars import SECOND_NS

TARGET_HEADER = "seq,decided_utc,bar_close_utc,valid_until_utc,symbol,target,reason,model,crc32"
POSITION_HEADER = "seq,utc,symbol,position,crc32"
UNWRITTEN_REASON = "halted unwritten"  # the reason of a row ends so if the row is not in the journal
DRY_RUN_PREFIX = "dry-run"  # the reason of a row begins so if no bridge may trade it
RESERVE_VALID_NS = 7 * 86_400 * SECOND_NS  # validity of the reserve row: longer than any weekend
READ_TRIES, READ_PAUSE_S = 5, 0.005
MAX_BYTES = 4096  # of a file with one row


class RowError(ValueError):
    """The file is not a header and one whole row; the message says why."""


class TargetRow(NamedTuple):
    """The row of `target.csv`."""

    seq: int
    decided_ns: int
    bar_close_ns: int
    valid_until_ns: int
    symbol: str
    target: float  # -1 short .. +1 long
    reason: str
    model: str


class PositionRow(NamedTuple):
    """The row of `position.csv`."""

    seq: int  # of the last accepted target
    utc_ns: int
    symbol: str
    position: float  # in units of the target


def with_crc(text: str) -> str:
    """`text`, a comma and its CRC-32 in eight hexadecimal digits."""
    return f"{text},{zlib.crc32(text.encode()):08x}"


def format_target(row: TargetRow) -> str:
    """The text of `target.csv`: header and row; a target that rounds to 0 has no sign."""
    stamps = (format_utc(ns) for ns in (row.decided_ns, row.bar_close_ns, row.valid_until_ns))
    fields = (str(row.seq), *stamps, row.symbol, f"{row.target:z.4f}", row.reason, row.model)
    return f"{TARGET_HEADER}\n{with_crc(','.join(fields))}\n"


def reserve_row(row: TargetRow) -> TargetRow:
    """The flat row that replaces `row` once the disk takes no more, not even the stop in the journal.

    Its `seq` exceeds those of a decision and of a stop that could not be written.  It is valid over a weekend.
    """
    reason = f"{DRY_RUN_PREFIX} {UNWRITTEN_REASON}" if row.reason.startswith(DRY_RUN_PREFIX) else UNWRITTEN_REASON
    return row._replace(seq=row.seq + 2, target=0.0, reason=reason, valid_until_ns=row.decided_ns + RESERVE_VALID_NS)


def format_position(position: PositionRow) -> str:
    """The text of `position.csv`: header and row."""
    seq, utc_ns, symbol, size = position
    return f"{POSITION_HEADER}\n{with_crc(f'{seq},{format_utc(utc_ns)},{symbol},{size:z.4f}')}\n"


def parse_target(data: bytes) -> TargetRow:
    """The row of a `target.csv`.  Raises RowError unless every byte is in order."""
    seq, decided, closed, valid, symbol, target, reason, model = row_fields(data, TARGET_HEADER)
    try:
        stamps = parse_utc(decided), parse_utc(closed), parse_utc(valid)
        return TargetRow(int(seq), *stamps, symbol, parse_finite(target), reason, model)
    except ValueError as error:
        raise RowError(str(error)) from None


def parse_position(data: bytes) -> PositionRow:
    """The row of a `position.csv`.  Raises RowError unless every byte is in order."""
    seq, stamp, symbol, size = row_fields(data, POSITION_HEADER)
    try:
        return PositionRow(int(seq), parse_utc(stamp), symbol, parse_finite(size))
    except ValueError as error:
        raise RowError(str(error)) from None


def row_fields(data: bytes, header: str) -> list[str]:
    """The fields of the one row below `header`, after its CRC-32 was compared.  Raises RowError."""
    if len(data) > MAX_BYTES or not data.isascii():
        raise RowError("not a file of one row of ASCII")
    lines = data.decode().replace("\r\n", "\n").split("\n")
    if len(lines) != 3 or lines[2] or lines[0] != header:
        raise RowError(f"not one whole row below {header}")
    text, _, crc = lines[1].rpartition(",")
    if with_crc(text) != f"{text},{crc}":
        raise RowError(f"its CRC-32 is not {crc}")
    fields = text.split(",")
    if len(fields) != header.count(","):
        raise RowError(f"{len(fields) + 1} fields")
    return fields


def read_row_file(path: Path) -> bytes:
    """The first MAX_BYTES + 1 bytes of a file, enough to refuse one that is too long.  Raises OSError."""
    for _ in range(READ_TRIES - 1):
        try:
            with path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except PermissionError:  # on Windows while the file is being replaced
            time.sleep(READ_PAUSE_S)
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)
