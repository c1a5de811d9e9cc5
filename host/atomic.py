"""Files that are replaced whole, lines that are appended whole, checks of where a command writes, and locks."""

import errno
import json
import os
import re
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from host.console import shell_join


class LockedError(OSError):
    """Another process holds the lock, or the lock was lost."""

    exit_code = 8


class WriteError(OSError):
    """A file could not be written; the message names the file and the reason."""

    exit_code = 1


class OutputPathError(OSError):
    """An output path at which nothing can be written."""

    exit_code = 2


LOCK_BYTE = 0x40000000  # beyond the text, as SQLite's: on Windows nobody else reads a byte that is locked
MAX_COMMAND_LENGTH, MAX_OWNER_BYTES = 200, 2048
HELD_ERRNOS = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # of a lock that another process has
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


def create_file(path: Path, data: bytes) -> None:
    """Make `path`, whole; FileExistsError where another process, maybe of another machine, made it first.

    On a drive without hard links the last of two that make it at once wins.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):
            replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
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


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append `row` as a line of JSON, durable on return; what a kill or a power cut tore of the last line goes."""
    with add_path_to_errors(path), path.open("a+b", 0) as file:
        file.seek(0)
        text = file.read()
        if (end := text.rfind(b"\n") + 1) < len(text):  # else what another process wrote meanwhile would go
            file.truncate(end)
        write_all(file, json.dumps(row, allow_nan=False).encode() + b"\n")
        os.fsync(file.fileno())
    sync_folder(path.parent)


def read_lines(path: Path) -> list[bytes]:
    """The whole lines of a file to which lines are appended; none where there is no file."""
    if not path.exists():
        return []
    with add_path_to_errors(path):
        text = path.read_bytes()
    return text[: text.rfind(b"\n") + 1].splitlines()


def overwrite(path: Path, text: str) -> None:
    """Write `text` into an existing file, which needs no free space; a reader may see a part of it."""
    with add_path_to_errors(path), path.open("r+b", 0) as file:
        write_all(file, text.encode())
        file.truncate()


@contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock file `path` in the block; LockedError if another process does.  A process that dies releases it.

    The folder of `path` is locked too, where folders can be: deleting the lock file lets no second process in.
    The file names its owner, and is empty once that released it.  A shared drive may pass no locks between machines:
    then the second machine takes the lock over, and the first learns of it.
    Yields a function to call before each write: it raises LockedError once the folder was moved, deleted or taken over.
    """
    with ExitStack() as stack:
        with add_path_to_errors(path):
            file = stack.enter_context(path.open("a+b", 0))
            _lock_or_refuse(file.fileno(), f"{path.parent} is in use by", file)
        held, name = file.fileno(), path
        if sys.platform != "win32":  # Windows neither deletes an open file nor opens a folder
            folder = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, folder)
            try:
                _lock_or_refuse(folder, f"{path.parent} is in use by a process whose {path.name} was deleted", None)
                held, name = folder, path.parent
            except LockedError:
                raise
            except OSError:
                pass  # this drive has no locks of folders
        owner = lock_owner()
        with add_path_to_errors(path):
            warn_of_owner_elsewhere(path, _read_owner(file))
            file.truncate(0)
            write_all(file, owner)
        stack.callback(_release_lock, file, owner)
        yield lambda: check_lock_held(held, name, path, owner)


def lock_owner() -> bytes:
    """What a lock file says of this process: its number, machine, time and command in one line."""
    command = shell_join(Path(sys.argv[0]).name, *sys.argv[1:])[:MAX_COMMAND_LENGTH]
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f"process {os.getpid()} on {socket.gethostname()} since {since}: {' '.join(command.split())}\n"
    return line.encode(errors="replace")


def warn_of_owner_elsewhere(path: Path, owner: bytes) -> None:
    """Say which process of another machine did not release a lock that this one has got; it may still run."""
    found = re.match(rb"process \d+ on (\S*) since", owner)
    if found and found[1].decode(errors="replace") != socket.gethostname():
        print(
            f"swt: {path} was not released by {_text(owner)}\n  This process goes on in its place; the other one stops "
            "at its next write if it still runs.",
            file=sys.stderr,
        )


def _lock_or_refuse(handle: int, says: str, file: FileIO | None) -> None:
    """Lock an open file or folder; LockedError, with the owner in `file`, if another process has it."""
    try:
        _lock(handle)
    except OSError as error:
        if error.errno not in HELD_ERRNOS:
            raise  # nothing is held: this drive has no locks, or is broken
        raise LockedError(f"{says} {_text(_read_owner(file))}" if file else says) from None


def _lock(handle: int) -> None:
    """Lock an open file or folder until it is closed; OSError if another process has the lock, or without locks."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_lock_held(held: int, name: Path, lock: Path, owner: bytes) -> None:
    """Raise LockedError unless the path `name` still leads to the open descriptor `held`, and `lock` to its owner."""
    try:
        is_held = os.path.samestat(os.fstat(held), name.stat())
    except FileNotFoundError:
        is_held = False
    if not is_held:
        raise LockedError(f"{name} was moved or deleted while this process had it: it writes no more there")
    with add_path_to_errors(lock), suppress(FileNotFoundError), lock.open("rb", 0) as file:
        now = _read_owner(file)
        if now not in (owner, b""):  # empty: made anew by a process that was refused
            raise LockedError(f"{lock.parent} was taken over by {_text(now)}: this process writes no more there")


def _read_owner(file: FileIO) -> bytes:
    file.seek(0)
    return file.read(MAX_OWNER_BYTES)


def _text(owner: bytes) -> str:
    return owner.decode(errors="replace").strip() or "a process that has not said its name yet"


def _release_lock(file: FileIO, owner: bytes) -> None:
    """Empty the lock file, so that nobody believes that its owner was killed; not another owner's."""
    with suppress(OSError):
        if _read_owner(file) == owner:
            file.truncate(0)
