"""Files that are either the old or the new one, whatever happens in between."""

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
    """Another process is at work here."""

    exit_code = 8


class WriteError(OSError):
    """A file could not be written; the message names it and the reason."""

    exit_code = 1


class OutputPathError(OSError):
    """Nothing can be written where it was asked for."""

    exit_code = 2


RETRY_S, RETRY_TIMEOUT_S = 0.01, 5.0  # while a reader holds a file that is to be replaced


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Name the file in what the system says of it in the block; what has an exit code says enough already."""
    try:
        yield
    except OSError as error:
        if hasattr(error, "exit_code"):
            raise
        raise WriteError(f"{path}: {error.strerror or error}") from error


def write_all(file: FileIO, data: bytes) -> None:
    """Write `data` to an unbuffered file: a single write may take less, on a disk that is nearly full say."""
    left = memoryview(data)
    while left:
        taken = file.write(left)
        if not taken:
            raise OSError(errno.EIO, "a write took nothing")
        left = left[taken:]


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` outlast a power cut; Windows has no way to ask for it."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def numbered_files(folder: Path, name: re.Pattern[str]) -> dict[int, Path]:
    """What a folder holds by the number in its `name`, the least first; any other name is not ours to touch."""
    found = ((name.fullmatch(path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    return dict(sorted((int(match[1]), path) for match, path in found if match))


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
            raise OutputPathError(f"{path} cannot be written: {path if path.is_dir() else place} {kind}")
    except OSError as error:
        raise (error if isinstance(error, OutputPathError) else OutputPathError(f"{path}: {error.strerror}")) from None


def check_not_input(path: Path, *read: Path) -> None:
    """Raise Unwritable if what is to be written at `path` would take the place of what is read."""
    if any(path.exists() and each.exists() and path.samefile(each) for each in read):
        raise OutputPathError(f"{path} is read by this command and would be lost: name another file to write")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write (and read back) under a temporary name; becomes `path` once its bytes are on the disk."""
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
    """Rename over `path`, as often as it takes: on Windows a reader that has it open is in the way."""
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
    """Replace `path` for readers at any moment; not fsynced, so what a power cut leaves must be checked by them."""
    temporary = path.with_name(f".{path.name}.tmp")
    with add_path_to_errors(path):
        with temporary.open("wb", 0) as file:
            write_all(file, text.encode())
        replace_file(temporary, path)


def overwrite(path: Path, text: str) -> None:
    """Write over what a file holds, which takes no room; a reader may meet half of it."""
    with add_path_to_errors(path), path.open("r+b", 0) as file:
        write_all(file, text.encode())
        file.truncate()


@contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Hold `path` against other processes until the end of the block; the system lets go when the process dies.

    Its folder is held too, where that can be: who deletes the lock lets nobody in.  Yields a check to be made before
    something is written: it raises Locked once the folder was moved and another has its name.
    """
    with ExitStack() as stack:
        with add_path_to_errors(path):
            file = stack.enter_context(path.open("a+b"))
        try:
            _lock(file.fileno())
        except OSError:
            raise LockedError(f"{path.parent} is in use by process {_lock_holder(file)}") from None
        held, name = file.fileno(), path
        if sys.platform != "win32":  # there, nobody can delete an open file, and a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, folder)
            try:
                _lock(folder)
                held, name = folder, path.parent
            except BlockingIOError:
                raise LockedError(f"{path.parent} is in use by a process whose {path.name} was deleted") from None
            except OSError:
                pass  # a drive whose folders have no locks
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield lambda: check_lock_held(held, name)


def _lock(handle: int) -> None:
    """Lock what is open until it is closed; OSError if another process has, or if that cannot be."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_lock_held(held: int, name: Path) -> None:
    """Raise Locked unless `name` is what is held open."""
    try:
        is_held = os.path.samestat(os.fstat(held), name.stat())
    except FileNotFoundError:
        is_held = False
    if not is_held:
        raise LockedError(f"{name} was moved or deleted while this process had it: it writes no more there")


def _lock_holder(file: BinaryIO) -> str:
    """Who wrote its number into a lock; Windows does not let others read it."""
    file.seek(0)
    try:
        return file.read(32).decode().strip() or "unknown"
    except OSError:
        return "unknown"
