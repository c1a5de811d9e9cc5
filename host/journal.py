"""`journal.jsonl`: what happened, one record a line, from which everything else can be had again.

A file begins with the state it was begun in, so each is complete by itself.  One that has grown to ROTATE bytes becomes
`journal-000001.jsonl` and so on; the last KEEP of them are kept.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from host.durable import publish, swap

ROTATE, KEEP = 1 << 23, 64
Record = dict[str, Any]
to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class JournalError(ValueError):
    """The journal cannot be read; the message names the line."""

    exit_code = 4


def read_journal(path: Path) -> Iterator[tuple[int, Record]]:
    """Number and record of each whole line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    yield from parse_lines(data[: data.rfind(b"\n") + 1], path)  # the last line may be half written


def parse_lines(data: bytes, path: Path) -> Iterator[tuple[int, Record]]:
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
    """The journal of a folder, open for more; `found` are the bytes of its whole lines."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self._next = folder / "journal.next.jsonl"
        if self._next.exists() and not self.path.exists():  # killed between the two renames of `rotate`
            swap(self._next, self.path)
        self._next.unlink(missing_ok=True)
        data = self.path.read_bytes() if self.path.exists() else b""
        self.found = data[: data.rfind(b"\n") + 1]
        self._file = self.path.open("ab", buffering=0)
        self._file.truncate(len(self.found))  # the line that a kill or a power cut tore
        self.size, self.crc = len(self.found), zlib.crc32(self.found)

    def append(self, record: Record) -> None:
        """Add a record, in one write."""
        line = to_json(record).encode() + b"\n"
        self._file.write(line)
        self.size += len(line)
        self.crc = zlib.crc32(line, self.crc)

    def retract(self, size: int, crc: int) -> None:
        """Take back what was appended since the journal had this size and CRC."""
        self._file.truncate(size)
        self.size, self.crc = size, crc

    def sync(self) -> None:
        """Make the records outlast a power cut."""
        os.fsync(self._file.fileno())

    def rotate(self, first: Record) -> None:
        """Go on in a new file that begins with `first`."""
        numbers = [int(path.stem.rpartition("-")[2]) for path in self.path.parent.glob("journal-*.jsonl")]
        with self._next.open("wb") as file:
            file.write(to_json(first).encode() + b"\n")
            os.fsync(file.fileno())
        self._file.close()
        swap(self.path, self.path.with_name(f"journal-{max(numbers, default=0) + 1:06}.jsonl"))
        swap(self._next, self.path)
        data = self.path.read_bytes()
        self._file = self.path.open("ab", buffering=0)
        self.size, self.crc = len(data), zlib.crc32(data)
        for number in sorted(numbers)[: -KEEP + 1]:
            self.path.with_name(f"journal-{number:06}.jsonl").unlink()

    def close(self) -> None:
        """No more records."""
        self._file.close()


def write_cache(path: Path, journal: Journal, state: Record) -> None:
    """Keep the state as it is after the journal's last record."""
    text = to_json({"size": journal.size, "crc": journal.crc, "state": state})
    publish(path, f"{zlib.crc32(text.encode()):08x} {text}\n")


def read_cache(path: Path, found: bytes) -> tuple[int, Record] | None:
    """(bytes of the journal that it knows, state); None unless it fits the journal's bytes."""
    try:
        crc, _, text = path.read_text(encoding="utf-8").rstrip("\n").partition(" ")
        if int(crc, 16) != zlib.crc32(text.encode()):
            return None
        cache: Record = json.loads(text)
    except (OSError, ValueError):
        return None
    size: int = cache["size"]
    fits = 0 < size <= len(found) and zlib.crc32(found[:size]) == cache["crc"]
    return (size, cache["state"]) if fits else None
