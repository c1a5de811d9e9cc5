"""Progress for people on stderr: a bar with an ETA on a terminal, a plain line now and then when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_EVERY_S = 15.0
Report = Callable[[float, str], None]  # share done in [0, 1], what is happening


def say(text: str) -> None:
    """One line for people."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a `Report` that shows how far a task titled `title` has come."""
    if sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _plain(title)


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=1.0)
        yield lambda share, text: bars.update(task, completed=share, description=f"{title}: {text}")


def _plain(title: str) -> Report:
    begin = time.monotonic()
    last = begin - PLAIN_EVERY_S

    def report(share: float, text: str) -> None:
        nonlocal begin, last
        now = time.monotonic()
        if share == 0:
            begin = now  # what comes before the first progress, compiling say, tells nothing of the rest
        if now - last < PLAIN_EVERY_S:
            return
        last = now
        left = f", about {(now - begin) * (1 - share) / share:.0f} s left" if share > 0.02 else ""
        say(f"{title}: {share:4.0%} {text}{left}")

    return report
