"""`journal.jsonl`: what happened, one record a line, from which everything else can be had again.

A file begins with the state it was begun in, so each is complete by itself.  One that has grown to ROTATE bytes becomes
`journal-000001.jsonl` and so on; the last KEEP of them are kept.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from host.atomic import add_path_to_errors, numbered_files, replace_file, write_all, write_atomic
from host.console import log

ROTATE_BYTES, MAX_ROTATED_FILES = 1 << 23, 64
ROTATED = re.compile(r"journal-(\d{6,})\.jsonl")
JournalRecord = dict[str, Any]
to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class JournalError(ValueError):
    """The journal cannot be read; the message names the line."""

    exit_code = 4


def read_journal(path: Path) -> Iterator[tuple[int, JournalRecord]]:
    """Number and record of each whole line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    yield from parse_records(data[: data.rfind(b"\n") + 1], path)  # the last line may be half written


def parse_records(data: bytes, path: Path) -> Iterator[tuple[int, JournalRecord]]:
    """Number and record of each line of `data`."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise JournalError(f"{path}: line {number}: damaged: {line[:80]!r}; restore it or move it away")
        yield number, record


class Journal:
    """The journal of a folder, open for more; `existing` are the bytes of its whole lines.

    What cannot be written raises Unwritten.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self._next_path = folder / "journal.next.jsonl"
        self.size, self.crc, self._is_torn = 0, 0, False
        with add_path_to_errors(self.path):
            self.existing = self._open()

    def append(self, record: JournalRecord) -> None:
        """Add a record.  One that could not be written whole is cut off before the next, or by the next start."""
        line = to_json(record).encode() + b"\n"
        with add_path_to_errors(self.path):
            if self._file.closed:  # a rotation failed
                self._open()
            if self._is_torn:
                self._file.truncate(self.size)
            self._is_torn = True
            write_all(self._file, line)
        self._is_torn = False
        self.size += len(line)
        self.crc = zlib.crc32(line, self.crc)

    def roll_back(self, size: int, crc: int) -> None:
        """Take back what was appended since the journal had this size and CRC."""
        self.size, self.crc, self._is_torn = size, crc, True
        with add_path_to_errors(self.path):
            self._file.truncate(size)

    def sync(self) -> None:
        """Make the records outlast a power cut."""
        with add_path_to_errors(self.path):
            os.fsync(self._file.fileno())

    def rotate(self, first: JournalRecord) -> None:
        """Go on in a new file that begins with `first`."""
        parts = numbered_files(self.path.parent, ROTATED)
        with add_path_to_errors(self._next_path), self._next_path.open("wb", 0) as file:
            write_all(file, to_json(first).encode() + b"\n")
            os.fsync(file.fileno())
        with add_path_to_errors(self.path):
            self._file.close()
            try:
                replace_file(self.path, self.path.with_name(f"journal-{max(parts, default=0) + 1:06}.jsonl"))
                replace_file(self._next_path, self.path)
            finally:
                self._open()
        for path in [*parts.values()][: -MAX_ROTATED_FILES + 1]:
            try:
                path.unlink()
            except OSError as error:
                log(f"{path}: {error.strerror}; the next rotation tries again")

    def _open(self) -> bytes:
        """Open the file behind its last whole line, which is all that a kill or a power cut leaves; its bytes."""
        if self._next_path.exists() and not self.path.exists():  # the end came between the two renames of `rotate`
            replace_file(self._next_path, self.path)
        self._next_path.unlink(missing_ok=True)
        data = self.path.read_bytes() if self.path.exists() else b""
        found = data[: data.rfind(b"\n") + 1]
        self._file = self.path.open("ab", 0)
        self._file.truncate(len(found))
        self.size, self.crc, self._is_torn = len(found), zlib.crc32(found), False
        return found

    def close(self) -> None:
        """No more records."""
        self._file.close()


def write_cache(path: Path, journal: Journal, state: JournalRecord) -> None:
    """Keep the state as it is after the journal's last record."""
    text = to_json({"size": journal.size, "crc": journal.crc, "state": state})
    write_atomic(path, f"{zlib.crc32(text.encode()):08x} {text}\n")


def read_cache(path: Path, journal_bytes: bytes) -> tuple[int, JournalRecord] | None:
    """(bytes of the journal that it knows, state); None unless it fits the journal's bytes."""
    try:
        crc, _, text = path.read_text(encoding="utf-8").rstrip("\n").partition(" ")
        if int(crc, 16) != zlib.crc32(text.encode()):
            return None
        cache: JournalRecord = json.loads(text)
    except (OSError, ValueError):
        return None
    size: int = cache["size"]
    fits = 0 < size <= len(journal_bytes) and zlib.crc32(journal_bytes[:size]) == cache["crc"]
    return (size, cache["state"]) if fits else None
