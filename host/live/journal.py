"""`journal.jsonl`: one record a line, appended before its effect; a restart rebuilds the state from the journal.

Each file begins with a snapshot of the state, so that each can be replayed alone.  A file of ROTATE_BYTES is renamed to
`journal-000001.jsonl` and so on; the newest MAX_ROTATED_FILES of the renamed files are kept.
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
    """The journal cannot be read; the message names the file or the line, and what to do."""

    exit_code = 4


def read_journal(path: Path) -> Iterator[tuple[int, JournalRecord]]:
    """(line number from 1, record) of each whole line.  Raises JournalError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    yield from parse_records(data[: data.rfind(b"\n") + 1], path)  # the last line may be half written


def parse_records(data: bytes, path: Path) -> Iterator[tuple[int, JournalRecord]]:
    """(line number from 1, record) of each line of `data`; errors name `path`.  Raises JournalError."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise JournalError(f"{path}: line {number}: damaged: {line[:80]!r}; restore it or move it away")
        yield number, record


class Journal:
    """The journal of a folder, open to append; `existing` are the bytes of the whole lines it had when opened.

    A failed write raises WriteError.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self._next_path = folder / "journal.next.jsonl"
        self.size, self.crc, self._is_torn = 0, 0, False
        with add_path_to_errors(self.path):
            self.existing = self._open()

    def append(self, record: JournalRecord) -> None:
        """Add a record.  A record that was written in part is cut off before the next one, or by the next start."""
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
        """Remove the records appended since the journal had `size` bytes and this CRC-32."""
        self.size, self.crc, self._is_torn = size, crc, True
        with add_path_to_errors(self.path):
            self._file.truncate(size)

    def sync(self) -> None:
        """Flush the records to the disk, so that they survive a power cut."""
        with add_path_to_errors(self.path):
            os.fsync(self._file.fileno())

    def rotate(self, first: JournalRecord) -> None:
        """Start a new file with the record `first`; rename the full one and delete the oldest."""
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
        """Open the file to append, and cut off a last line that a kill or a power cut left torn; the bytes kept."""
        if self._next_path.exists() and not self.path.exists():  # killed between the two renames of `rotate`
            replace_file(self._next_path, self.path)
        self._next_path.unlink(missing_ok=True)
        data = self.path.read_bytes() if self.path.exists() else b""
        whole_lines = data[: data.rfind(b"\n") + 1]
        self._file = self.path.open("ab", 0)
        self._file.truncate(len(whole_lines))
        self.size, self.crc, self._is_torn = len(whole_lines), zlib.crc32(whole_lines), False
        return whole_lines

    def close(self) -> None:
        """Close the file; nothing may be appended afterwards."""
        self._file.close()


def write_cache(path: Path, journal: Journal, state: JournalRecord) -> None:
    """Write the state after the journal's last record, with the size and CRC-32 of the journal it belongs to."""
    text = to_json({"size": journal.size, "crc": journal.crc, "state": state})
    write_atomic(path, f"{zlib.crc32(text.encode()):08x} {text}\n")


def read_cache(path: Path, journal_bytes: bytes) -> tuple[int, JournalRecord] | None:
    """(bytes of the journal that the state includes, state); None if the file is damaged or of another journal."""
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
