"""Cores, load, memory and CPU time, which operating systems count differently or not at all."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Number of cores that this process may use; every core where the system has no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_cores(count: int) -> None:
    """Restrict this process to `count` of its cores, where the system has affinity."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def load_average() -> float:
    """Mean number of runnable processes over the last minute; 0 where the system does not count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def memory_mb(field: str, pid: int | str = "self") -> float:
    """RssAnon or VmRSS (anonymous or all memory now) or VmHWM (peak) of a process, MB; 0 where /proc lacks it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(f"{field}:")), 0.0)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used; 0 where /proc lacks it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def trim_heap() -> None:
    """Give memory that was freed back to the system, where the C library can; glibc keeps tens of MB otherwise."""
    with suppress(OSError, AttributeError, TypeError):  # as Windows and macOS answer
        ctypes.CDLL(None).malloc_trim(0)
