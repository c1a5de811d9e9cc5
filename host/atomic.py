"""Files that are replaced whole or not at all, checks of where a command writes, and locks between processes."""

import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO


class LockedError(OSError):
    """Another process holds the lock, or the lock was lost."""

    exit_code = 8


class WriteError(OSError):
    """A file could not be written; the message names the file and the reason."""

    exit_code = 1


class OutputPathError(OSError):
    """An output path at which nothing can be written."""

    exit_code = 2


RETRY_S, RETRY_TIMEOUT_S = 0.01, 5.0  # of replacing a file that a reader holds open (Windows)


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a WriteError that names `path`; an error with an exit code passes."""
    try:
        yield
    except OSError as error:
        if hasattr(error, "exit_code"):
            raise
        raise WriteError(f"{path}: {error.strerror or error}") from error


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file; one write may take only a part, as on a nearly full disk."""
    left = memoryview(data)
    while left:
        count = file.write(left)
        if not count:
            raise OSError(errno.EIO, "a write took nothing")
        left = left[count:]


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable against a power cut; Windows cannot."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def numbered_files(folder: Path, name: re.Pattern[str]) -> dict[int, Path]:
    """The entries of `folder` whose whole name matches the pattern `name`, by its number, ascending."""
    entries = ((name.fullmatch(path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    return dict(sorted((int(match[1]), path) for match, path in entries if match))


def check_writable(path: Path, folder: bool = False) -> None:
    """Raise OutputPathError unless a file, or a folder with its parents, can be made at `path`; leave nothing there."""
    parents = [path, *path.absolute().parents] if folder else [path.absolute().parent]
    place = next((parent for parent in parents if os.path.lexists(parent)), parents[-1])
    try:
        if not folder and path.exists() and not path.is_dir():
            path.open("ab").close()  # of a device or a pipe, the folder may belong to others
        elif place.is_dir() and not (path.is_dir() and not folder):
            tempfile.TemporaryFile(dir=place).close()
        else:
            kind = "is a folder" if path.is_dir() else "is no folder" if place.exists() else "does not exist"
            raise OutputPathError(f"{path} cannot be written: {path if path.is_dir() else place} {kind}")
    except OSError as error:
        raise (error if isinstance(error, OutputPathError) else OutputPathError(f"{path}: {error.strerror}")) from None


def check_not_input(path: Path, *inputs: Path) -> None:
    """Raise OutputPathError if the output `path` is one of the files that the command reads."""
    if any(path.exists() and source.exists() and path.samefile(source) for source in inputs):
        raise OutputPathError(f"{path} is read by this command and would be lost: name another file to write")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file with a temporary name, to write and read back; it becomes `path` once its bytes are synced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_file(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`; retry for 5 s, because on Windows a reader that holds `path` open prevents it."""
    deadline = time.monotonic() + RETRY_TIMEOUT_S
    while True:
        try:
            temporary.replace(path)
        except PermissionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
        else:
            return


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` in one step.  It is not synced: a reader must check what a power cut left."""
    temporary = path.with_name(f".{path.name}.tmp")
    with add_path_to_errors(path):
        with temporary.open("wb", 0) as file:
            write_all(file, text.encode())
        replace_file(temporary, path)


def overwrite(path: Path, text: str) -> None:
    """Write `text` into an existing file, which needs no free space; a reader may see a part of it."""
    with add_path_to_errors(path), path.open("r+b", 0) as file:
        write_all(file, text.encode())
        file.truncate()


@contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock file `path` in the block; LockedError if another process does.  A process that dies releases it.

    The folder of `path` is locked too, where folders can be: deleting the lock file lets no second process in.
    Yields a function to call before each write: it raises LockedError once the folder was moved or deleted.
    """
    with ExitStack() as stack:
        with add_path_to_errors(path):
            file = stack.enter_context(path.open("a+b"))
        try:
            _lock(file.fileno())
        except OSError:
            raise LockedError(f"{path.parent} is in use by process {_lock_holder(file)}") from None
        held, name = file.fileno(), path
        if sys.platform != "win32":  # Windows neither deletes an open file nor opens a folder
            folder = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, folder)
            try:
                _lock(folder)
                held, name = folder, path.parent
            except BlockingIOError:
                raise LockedError(f"{path.parent} is in use by a process whose {path.name} was deleted") from None
            except OSError:
                pass  # this drive has no locks of folders
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield lambda: check_lock_held(held, name)


def _lock(handle: int) -> None:
    """Lock an open file or folder until it is closed; OSError if another process has the lock, or without locks."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_lock_held(held: int, name: Path) -> None:
    """Raise LockedError unless the path `name` still leads to the open descriptor `held`."""
    try:
        is_held = os.path.samestat(os.fstat(held), name.stat())
    except FileNotFoundError:
        is_held = False
    if not is_held:
        raise LockedError(f"{name} was moved or deleted while this process had it: it writes no more there")


def _lock_holder(file: BinaryIO) -> str:
    """The process id in a lock file; Windows lets no other process read it."""
    file.seek(0)
    try:
        return file.read(32).decode().strip() or "unknown"
    except OSError:
        return "unknown"
