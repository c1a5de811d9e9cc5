"""Jobs in processes of their own: one that is watched, or many at once."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from host.machine import memory_mb
from host.stop import STOP_SIGNALS

SAMPLE_INTERVAL_S = 0.1  # of the memory of a watched process
MEMORY_FIELDS = {"rss_anon_mb": "RssAnon", "rss_mb": "VmRSS"}  # whose peaks a row has
Row = dict[str, Any]
ReportProgress = Callable[[float], object]  # called with the share of a job that is done
T = TypeVar("T")


class StoppedError(RuntimeError):
    """A job that ends because another one failed, or because a signal came."""


def watch_process(fn: Callable[[T, ReportProgress], Row], job: T, report_progress: ReportProgress) -> Row:
    """The result of `fn(job, report)` in a fresh process, and the process's peak memory until it reports the share 1.

    Raises RuntimeError if the process ends without a result.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, fn, job), daemon=True)
    process.start()
    sender.close()
    message: Any = None
    peaks = dict.fromkeys(MEMORY_FIELDS, 0.0)
    try:
        while not isinstance(message, dict):
            if receiver.poll(SAMPLE_INTERVAL_S):
                message = receiver.recv()
            if not isinstance(message, dict):
                report_progress(message or 0.0)
            if isinstance(message, float) and message < 1:
                for name, field in MEMORY_FIELDS.items():
                    peaks[name] = max(peaks[name], memory_mb(field, process.pid or 0))
    except EOFError:
        process.join()
        raise RuntimeError(f"{job}: its process ended with {process.exitcode}") from None
    except BaseException:
        process.kill()
        raise
    process.join()
    return {**message, **peaks}


def _send_result(sender: Connection, fn: Callable[[T, ReportProgress], Row], job: T) -> None:
    """Send shares of progress, then the result; a broken pipe ends this process, signals are left to the parent."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with suppress(BrokenPipeError):  # the parent was killed: nobody waits for a traceback
        sender.send(fn(job, sender.send))


def run_at_once(
    jobs: dict[str, T],
    room: Callable[[], int],
    run: Callable[[T, ReportProgress], Row],
    keep: Callable[[str, Row, float], None],
    show: Callable[[dict[str, float]], object],
    limit_s: float = math.inf,
) -> None:
    """Call `run` for every job in turn, and keep(name, row, seconds) when it ends; begin none after the limit.

    `room` says how many run at once from now on: one at least.  `show` gets the share of every job by name.  A fault or
    a signal ends all jobs; the first fault is raised.
    """
    shares, end, stopped = dict.fromkeys(jobs, 0.0), time.monotonic() + limit_s, threading.Event()

    def work(name: str) -> None:
        def report_share(share: float) -> None:
            shares[name] = share
            if stopped.is_set():
                raise StoppedError("stopped")

        begin = time.monotonic()
        if begin < end and not stopped.is_set():
            try:
                row = run(jobs[name], report_share)
            except BaseException:
                if stopped.is_set():
                    return  # the fault of another job is raised
                stopped.set()
                raise
            keep(name, row, time.monotonic() - begin)
        shares[name] = 1.0

    names, running = deque(jobs), set[Future[None]]()
    with ThreadPoolExecutor(max(len(jobs), 1)) as pool:  # which starts a thread where none is idle
        try:
            while names or running:
                free = room() - len(running)
                running |= {pool.submit(work, names.popleft()) for _ in range(min(free, len(names)))}
                show(shares)
                done, running = wait(running, SAMPLE_INTERVAL_S, FIRST_COMPLETED)
                for job in done:
                    job.result()
        finally:
            stopped.set()
