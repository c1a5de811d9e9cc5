"""Parsed bars on the disk, so that a long file is parsed once: the same bars and the same `Source`, bit for bit.

An entry is keyed by the bytes of the file, its path, the reading options and the code that reads.  It is mapped into
memory, not read: the operating system may drop its pages, so that five pairs of ten years fit where one did.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.atomic import add_path_to_errors, atomic_write
from host.data.formats import Problem, Source
from host.data.instruments import Instrument
from kernels.jit import cache_root, program_digest
from kernels.market.bars import Bars

MIN_FILE_BYTES = 1 << 16  # a smaller file is parsed sooner than it is looked up
MIN_ROWS = 1 << 14
MAX_CACHE_BYTES = 4 << 30  # of all entries; beyond it, those go that were not used for longest
STALE_S = 86_400  # age of a temporary file that a killed process left
DIGEST_BYTES, PAGE_BYTES = 64, 4096
LIBRARIES = ("numpy", "pandas", "pyarrow", "tzdata")  # on which a parse may depend


@cache
def reader_digest() -> str:
    """Hash of the code that reads bars, and of the versions of what it uses; "" inside a packed program."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    versions = [sys.version, program_digest()]
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions.append(f"{library} {version(library)}")
    return hashlib.sha256(b"\0".join([*texts, *map(str.encode, versions)])).hexdigest() if texts else ""


def entry_path(*key: object) -> Path | None:
    """The file of the entry of a key; None where the cache cannot be written."""
    try:
        folder = cache_root().parent / "bars"
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    name = hashlib.sha256(repr((*key, reader_digest())).encode(errors="replace")).hexdigest()
    return folder / f"{name[:32]}.bars" if reader_digest() else None


def load_or_make(
    path: Path | None, make: Callable[[], tuple[Bars, Source]], is_of_key: Callable[[Source], bool]
) -> tuple[Bars, Source]:
    """The entry at `path`; where there is none, or a damaged one, what `make` makes, kept if `is_of_key` says so."""
    found = load_entry(path) if path else None
    if found is not None:
        return found
    bars, source = make()
    if path is None or len(bars.time) < MIN_ROWS or not is_of_key(source):
        return bars, source
    with suppress(OSError):  # a full disk, or a folder that is not ours: the next run parses again
        store_entry(path, bars, source)
        remove_old_entries(path.parent)
    return load_entry(path) or (bars, source)


def store_entry(path: Path, bars: Bars, source: Source) -> None:
    """Write an entry: the hash of what follows it, the Source as JSON to the end of a page, the columns of the bars."""
    head = json.dumps({"rows": len(bars.time), "source": asdict(source)}).encode()
    head += b" " * (-(DIGEST_BYTES + len(head) + 1) % PAGE_BYTES) + b"\n"
    parts: list[Any] = [head, *(np.ascontiguousarray(column) for column in bars)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with atomic_write(path) as file:
        file.write(digest.hexdigest().encode())
        for part in parts:
            file.write(part)


def load_entry(path: Path) -> tuple[Bars, Source] | None:
    """The bars of an entry, mapped, and their Source; None unless every byte of it is as it was written.

    The mapping is private: an array may be written into, and the file does not change.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hashlib.sha256(memoryview(mapped)[DIGEST_BYTES:]).hexdigest().encode() != mapped[:DIGEST_BYTES]:
            return None
        os.utime(path)
    except (OSError, ValueError):  # there is none, or an empty one
        return None
    begin = mapped.find(b"\n") + 1
    document = json.loads(mapped[DIGEST_BYTES:begin])
    columns = np.frombuffer(mapped, np.float64, offset=begin).reshape(len(Bars._fields), document["rows"])
    return Bars(columns[0].view(np.int64), *columns[1:]), source_of(document["source"])


def source_of(table: dict[str, object]) -> Source:
    """The Source that `asdict` and JSON made a table of."""
    source = Source(**table)  # type: ignore[arg-type]
    lists = {name: [Problem(*problem) for problem in getattr(source, name)] for name in ("problems", "gaps")}
    return Source(**{**table, **lists, "instrument": Instrument(*source.instrument)})  # type: ignore[arg-type]


def remove_old_entries(folder: Path) -> None:
    """Remove the entries that were not used for longest, beyond MAX_CACHE_BYTES, and what killed processes left."""
    entries = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process has removed it, or on Windows maps it
            status = path.stat()
            if path.suffix == ".bars":
                entries.append((status.st_mtime, status.st_size, path))
            elif path.suffix == ".tmp" and time.time() - status.st_mtime > STALE_S:
                path.unlink()
    room = MAX_CACHE_BYTES
    for _, size, path in sorted(entries, reverse=True):
        room -= size
        if room < 0:
            with suppress(OSError):
                path.unlink()


def bars_matrix(bars: Bars) -> NDArray[np.int64]:
    """The columns of bars [T], bit for bit, in one array."""
    return np.stack([column.view(np.int64) for column in bars])


def save_bars(path: Path, bars: Bars) -> None:
    """Write bars [T] to a file that processes map instead of reading."""
    with add_path_to_errors(path), atomic_write(path) as file:
        np.save(file, bars_matrix(bars))


def load_bars(path: Path) -> Bars:
    """The bars of `save_bars`; their memory is the file's, and changes stay in this process."""
    time_ns, *columns = np.asarray(np.load(path, mmap_mode="c"))
    return Bars(time_ns, *(column.view(np.float64) for column in columns))


def shared_file(key: str, fetch: Callable[[], NDArray[np.int64]]) -> Path:
    """A file of this machine with the bars that `fetch` gives as `bars_matrix`, for `load_bars`.

    They are fetched where there is none yet; `key` is their `bars_key`.
    """
    path = cache_root().parent / "bars" / f"{key}.bars"
    if path.exists() and bars_key(load_bars(path)) == key:
        os.utime(path)
        return path
    path.parent.mkdir(exist_ok=True)
    time_ns, *columns = fetch()
    save_bars(path, Bars(time_ns, *(column.view(np.float64) for column in columns)))
    remove_old_entries(path.parent)
    return path


def bars_key(bars: Bars) -> str:
    """Hash of the columns of bars."""
    digest = hashlib.sha256()
    for column in bars:
        digest.update(column.tobytes())
    return digest.hexdigest()[:32]
