"""Run `swt.py` as another system would: `python -m tests.foreign win32 act FEED`.

What only Linux has is taken away, after the libraries are loaded that know how to do without it.  Windows refuses to
open a folder, to rename over a file that somebody reads (here: every third time), and locks in its own way.
"""

import importlib
import os
import runpy
import signal
import sys
import warnings
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

NO_MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix")
LIBRARIES = """
    numpy numba onnx onnxruntime pandas threadpoolctl typer typer.rich_utils rich.progress concurrent.futures.thread csv
    asyncio tempfile zoneinfo importlib.metadata urllib.request concurrent.futures.process
    multiprocessing.popen_spawn_posix
""".split()
NOT_ON_MAC = "sched_getaffinity sched_setaffinity posix_fallocate posix_fadvise pipe2 getrandom".split()
NOT_ON_WINDOWS = f"""
    {" ".join(NOT_ON_MAC)} getloadavg getuid geteuid fork forkpty pread pwrite sysconf uname mkfifo killpg
    setsid statvfs nice fchmod chown sync fdatasync O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_SYNC O_DSYNC
""".split()
SIGNALS = ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN")


def imitate(system: str) -> None:
    """Become that system."""
    for library in LIBRARIES:
        importlib.import_module(library)
    fcntl = importlib.import_module("fcntl")
    for name in NOT_ON_WINDOWS if system == "win32" else NOT_ON_MAC:
        if hasattr(os, name):
            delattr(os, name)
    if system == "win32":
        for name in NO_MODULES:
            sys.modules[name] = None  # type: ignore[assignment]
        for name in [name for name in vars(signal) if name.startswith("SIG") and name not in SIGNALS]:
            delattr(signal, name)
        sys.modules["msvcrt"] = locks(fcntl)
        os.open, os.replace, Path.replace = of_files(os.open), busy(os.replace), busy(Path.replace)  # type: ignore[assignment]
    sys.platform = system
    warnings.filterwarnings("error", category=EncodingWarning, module=r"(host|kernels|models)\b|swt|__main__")
    warnings.filterwarnings(
        "ignore", category=EncodingWarning, module=r"(?!host|kernels|models|swt|__main__)"
    )


def locks(fcntl: Any) -> ModuleType:
    """What Windows locks with."""
    module: Any = ModuleType("msvcrt")
    module.LK_NBLCK, module.LK_UNLCK = 2, 0
    kinds = {2: fcntl.LOCK_EX | fcntl.LOCK_NB, 0: fcntl.LOCK_UN}
    module.locking = lambda handle, kind, size: fcntl.lockf(handle, kinds[kind], size)
    return module


def of_files(real: Any) -> Any:
    """`os.open` that opens no folder."""

    def opened(path: Any, *rest: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return int(real(path, *rest, **named))

    return opened


def busy(real: Any) -> Any:
    """A rename that finds the target open every third time that the program asks; libraries know what to do then."""
    calls = count()

    def replaced(source: Any, target: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("host.") and next(calls) % 3 == 2:
            raise PermissionError(13, "Access is denied", str(source))
        return real(source, target)

    return replaced


if __name__ == "__main__":
    imitate(sys.argv.pop(1))
    sys.argv[0] = str(Path(__file__).parents[1] / "swt.py")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    runpy.run_path(sys.argv[0], run_name="__main__")
