"""`training_panel`: a bar with the time that a training still takes, its figures below; piped, a line every 30 s.

The time left comes from marks, one a report.  The newer half of them gives the seconds of a share of the work, so that
a slow start is forgotten.  While the replay buffer fills, reanalysis makes iterations longer: the median slope of the
cost over what is stored (Theil 1950, Sen 1968) says by how much.  A budget of minutes bounds it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, pairwise
from statistics import median
from typing import Any, NamedTuple

from host.config import Config
from host.console import log
from host.machine import memory_mb

Row = dict[str, Any]  # of metrics.jsonl
TrainingCallback = Callable[[float, Row | None], None]  # fraction done in [0, 1], the newest row of metrics
LINE_INTERVAL_S = 30.0
REFRESH_HZ = 2.0
PAIR_WIDTH, VALUE_WIDTH = 38, 9  # columns of a figure with its name, and without
MAX_MARKS, MAX_PIECES = 256, 24  # of a training; pieces of it whose slopes are compared
LOSSES = ("policy", "value", "chance")
DURATIONS = ((5400.0, 3600.0, "h", 1), (90.0, 60.0, "min", 0), (0.0, 1.0, "s", 0))  # from, unit, its name, decimals


class Mark(NamedTuple):
    """How far a training was, and when."""

    time_s: float
    fraction: float
    episodes: int
    updates: int


class TrainingClock:
    """The marks of a training: how fast it is, and how long it still takes."""

    def __init__(self, capacity: int, minutes: float | None) -> None:
        self._capacity = capacity  # of the replay buffer, in episodes
        self._deadline_s = None if minutes is None else time.monotonic() + 60 * minutes
        self._marks, self._end_s = list[Mark](), self._deadline_s

    def add(self, mark: Mark) -> None:
        """Take in how far the training is."""
        if self._marks and mark.fraction <= self._marks[-1].fraction:
            return
        self._marks.append(mark)
        if len(self._marks) > MAX_MARKS:
            del self._marks[1:-1:2]
        if len(self._marks) > 2:  # the first piece may have compiled
            end_s, last_s = mark.time_s + self._left(), mark.time_s - self._marks[-2].time_s
            self._end_s = end_s if self._deadline_s is None else min(end_s, self._deadline_s - last_s / 2)

    def left_s(self) -> float | None:
        """Seconds until the end, or None while nothing is known."""
        return None if self._end_s is None else max(self._end_s - time.monotonic(), 0.0)

    def rate(self, field: str) -> float | None:
        """Episodes or updates a second, of the newer half of the marks."""
        if len(self._marks) < 2:
            return None
        middle, last = self._recent()
        return float(getattr(last, field) - getattr(middle, field)) / (last.time_s - middle.time_s)

    def _recent(self) -> tuple[Mark, Mark]:
        """First and last mark of the newer half."""
        return self._marks[(len(self._marks) - 1) // 2], self._marks[-1]

    def _stored(self, mark: Mark) -> float:
        """Share of the replay buffer that was full."""
        return min(mark.episodes / self._capacity, 1.0)

    def _left(self) -> float:
        """Seconds of what is left: of the part in which the replay buffer still fills, and of the rest."""
        middle, last = self._recent()
        done, stored, before = last.fraction - middle.fraction, self._stored(last), self._stored(middle)
        cost, slope, left = (last.time_s - middle.time_s) / done, self._slope(), 1 - last.fraction
        typical, growth = (stored + before) / 2, (stored - before) / done
        filling = min(left, (1 - stored) / growth) if growth > 0 else 0.0
        end = stored + growth * filling
        slope = min(slope, cost / max(typical, 1e-9))  # an empty buffer costs nothing at the least
        return filling * (cost + slope * ((stored + end) / 2 - typical)) + (left - filling) * (
            cost + slope * (end - typical)
        )

    def _slope(self) -> float:
        """Seconds that all of the work takes longer with a full replay buffer than with an empty one; 0 or more."""
        step = -(-len(self._marks) // MAX_PIECES)
        pieces = list(pairwise(self._marks[::-step][::-1]))[1:]  # the first may have compiled
        costs = [
            ((self._stored(a) + self._stored(b)) / 2, (b.time_s - a.time_s) / (b.fraction - a.fraction))
            for a, b in pieces
        ]
        slopes = [(d - b) / (c - a) for (a, b), (c, d) in combinations(costs, 2) if c > a]
        return max(median(slopes), 0.0) if slopes else 0.0


class TrainingPanel:
    """What is shown of a training."""

    def __init__(self, title: str, config: Config, minutes: float | None) -> None:
        self._title, self._episode_length = title, config.market.episode_length
        self._clock = TrainingClock(config.train.replay_capacity, minutes)
        self._fraction, self._row, self._kernel = 0.0, Row(), ""

    def note_kernel(self, number: int, new: int, name: str) -> None:
        """Show until the next update that a kernel is compiled: an algorithm may meet one after the first iteration."""
        self._kernel = name

    def update(self, fraction: float, row: Row | None) -> None:
        """Show this from now on."""
        self._fraction, self._row, self._kernel = fraction, self._row | (row or {}), ""
        if row is not None:
            self._clock.add(Mark(time.monotonic(), fraction, row["episodes"], row["updates"]))

    def figures(self) -> dict[str, str]:
        """The figures by their names; - where nothing is known."""
        row, episodes, updates = self._row, self._clock.rate("episodes"), self._clock.rate("updates")
        of_market, of_game = ("validation, net pips", "validation_net_pips"), ("mean return", "mean_return")
        result, name_in_row = of_game if "reward_per_decision" in row else of_market
        return {
            "iteration": show(row.get("iteration")),
            "episodes": show(row.get("episodes")),
            "episodes a minute": show(episodes and 60 * episodes),
            "decisions a second": show(episodes and self._episode_length * episodes),
            "learner steps a second": show(updates),
            **{f"{name} loss": show(row.get(name)) for name in LOSSES},
            result: show(row.get(name_in_row)),
            "memory, MB": show(row.get("rss_mb") or memory_mb("VmRSS") or None),
            **({"compiling": self._kernel} if self._kernel else {}),
        }

    def time_left(self) -> str:
        """`about 5 min left`, or an empty string."""
        left = self._clock.left_s()
        if left is None or self._fraction >= 1:
            return ""
        _, unit, name, decimals = next(row for row in DURATIONS if left >= row[0])
        return f"about {left / unit:.{decimals}f} {name} left"

    def line(self) -> str:
        """All of it in a line."""
        left = self.time_left()
        texts = [f"{name} {value}" for name, value in self.figures().items()]
        return f"{self._title}: {self._fraction:4.0%} {'; '.join([*texts, *([left] if left else [])])}"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """A bar, and the figures in as many columns as have room; rich calls it at each refresh."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            bar.add_column(no_wrap=True, ratio=ratio)
        share = ProgressBar(total=1.0, completed=self._fraction)
        bar.add_row(self._title, share, f"{self._fraction:.0%}", self.time_left())
        yield bar
        columns, cells = max(options.max_width // PAIR_WIDTH, 1), [*self.figures().items()]
        rows = -(-len(cells) // columns)
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(columns):
            table.add_column(no_wrap=True, style="dim")
            table.add_column(no_wrap=True, justify="right", min_width=VALUE_WIDTH)
        for i in range(rows):
            table.add_row(*(text for cell in cells[i::rows] for text in cell))
        yield table


@contextmanager
def training_panel(title: str, config: Config, minutes: float | None) -> Iterator[TrainingCallback]:
    """Yield a `TrainingCallback` that shows the training `title`: a live panel on a terminal, elsewhere plain lines."""
    panel = TrainingPanel(title, config, minutes)
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _plain_lines(panel)
        return
    from rich.console import Console
    from rich.live import Live

    from kernels.jit import watch_compiler

    live = Live(panel, console=Console(stderr=True, highlight=False), refresh_per_second=REFRESH_HZ)
    with live, watch_compiler(panel.note_kernel):
        yield panel.update


def _plain_lines(panel: TrainingPanel) -> TrainingCallback:
    last_s = time.monotonic() - LINE_INTERVAL_S

    def report(fraction: float, row: Row | None) -> None:
        nonlocal last_s
        panel.update(fraction, row)
        now_s = time.monotonic()
        if now_s - last_s >= LINE_INTERVAL_S or fraction >= 1:
            last_s = now_s
            log(panel.line())

    return report


def show(value: float | None) -> str:
    """A figure with three digits or more; - for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:,.3g}"
