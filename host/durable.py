"""Files that are either the old or the new one, whatever happens in between."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class Locked(OSError):  # noqa: N818
    """Another process is at work here."""

    exit_code = 8


class Unwritable(OSError):  # noqa: N818
    """Nothing can be written where it was asked for."""

    exit_code = 2


RETRY_S, PATIENCE_S = 0.01, 5.0  # while a reader holds a file that is to be replaced


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` outlast a power cut; Windows has no way to ask for it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path, folder: bool = False) -> None:
    """Raise Unwritable unless a file, or a folder with all above it, can be made at `path`; nothing is left behind."""
    above = [path, *path.absolute().parents] if folder else [path.absolute().parent]
    place = next((each for each in above if os.path.lexists(each)), above[-1])
    try:
        if not folder and path.exists() and not path.is_dir():
            path.open("ab").close()  # a device or a pipe too, whose folder may belong to others
        elif place.is_dir() and not (path.is_dir() and not folder):
            tempfile.TemporaryFile(dir=place).close()
        else:
            kind = "is a folder" if path.is_dir() else "is no folder" if place.exists() else "does not exist"
            raise Unwritable(f"{path} cannot be written: {path if path.is_dir() else place} {kind}")
    except OSError as error:
        raise error if isinstance(error, Unwritable) else Unwritable(f"{path}: {error.strerror}") from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write (and read back) under a temporary name; becomes `path` once its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        swap(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def swap(temporary: Path, path: Path) -> None:
    """Rename over `path`, as often as it takes: on Windows a reader that has it open is in the way."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            temporary.replace(path)
        except PermissionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
        else:
            return


def publish(path: Path, text: str) -> None:
    """Replace `path` for readers at any moment; not fsynced, so what a power cut leaves must be checked by them."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    swap(temporary, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` against other processes until the end of the block; the system lets go when the process dies."""
    with path.open("a+b") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Locked(f"{path.parent} is in use by process {_holder(file)}") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield


def _holder(file: BinaryIO) -> str:
    """Who wrote its number into a lock; Windows does not let others read it."""
    file.seek(0)
    try:
        return file.read(32).decode().strip() or "unknown"
    except OSError:
        return "unknown"
