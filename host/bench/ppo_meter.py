"""What a training of `bench ppo` is given: its bars, and the clock that evaluates it at the marks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.bench.ppo_env import Backtest, Policy, backtest_policy
from host.bench.process import BenchRow
from host.evaluation.episodes import Episodes, Stretch, write_features
from host.processes import ReportProgress
from host.training.dataset import Dataset

VALIDATION_SHARE = 0.15  # of the training bars, the last of them, for an agent that keeps what validates best


class Meter:
    """CPU seconds of a training, without its evaluations, and the curve of figures at the marks."""

    def __init__(
        self,
        marks_s: tuple[float, ...],
        measure: Callable[[Any], BenchRow],
        report_progress: ReportProgress,
        now: Callable[[], float] = time.process_time,
    ) -> None:
        self._marks_s, self._measure, self._report, self._now = marks_s, measure, report_progress, now
        self._begin: float | None = None
        self.curve = list[BenchRow]()

    def start(self, spent: float = 0.0) -> None:
        """Begin to count, from `spent` seconds."""
        self._begin = self._now() - spent

    def spent(self) -> float:
        """CPU seconds of the training so far; 0 before it starts."""
        return 0.0 if self._begin is None else self._now() - self._begin

    def read(self, agent: Any, steps: int) -> bool:
        """Evaluate the agent, after `steps` decisions of its training, if a mark is due; whether a mark is left."""
        spent, marks = self.spent(), self._marks_s[len(self.curve) :]
        due = [mark for mark in marks if mark <= spent]
        if due:
            self._report(min(spent / self._marks_s[-1], 1.0))
            figures = self._measure(agent)
            self.curve += [{"mark_s": mark, "cpu_s": spent, "steps": steps, **figures} for mark in due]
            self.start(spent)
        return len(due) < len(marks)


class Task(NamedTuple):
    """What a rival trains on.  The features of the training bars are zeros until `prepare`."""

    data: Dataset
    features: NDArray[np.float32]  # [T, F]
    length: int  # decisions of an episode
    seed: int

    def prepare(self) -> None:
        """Compute the features of the training bars."""
        write_features(self.features, self.data, 0, self.data.train_stop)

    def episodes(self, count: int, validates: bool) -> Episodes:
        """`count` episodes of the training bars, without the validation bars if the training `validates`."""
        starts = self.data.starts
        if validates:
            starts = starts[starts + self.length < self.validation_first]
        rng = np.random.Generator(np.random.Philox(key=self.seed))
        market = self.data.market_spec.market
        return Episodes(self.data.bars, market, Stretch(starts, self.length), count, rng)

    @property
    def validation_first(self) -> int:
        """First bar of the validation part of the training bars."""
        return int(self.data.train_stop * (1 - VALIDATION_SHARE))

    def validate(self, policy: Policy) -> float:
        """Profit on the validation bars, pips."""
        return self.backtest(policy, self.validation_first, self.data.train_stop).profit_pips

    def backtest(self, policy: Policy, first: int, stop: int) -> Backtest:
        """What the policy earns on the bars [first, stop)."""
        return backtest_policy(policy, self.data.bars, self.data.market_spec.market, first, stop)


def new_task(data: Dataset, length: int, seed: int) -> Task:
    """What a rival trains on, with the features of the unseen bars, which its clock does not count."""
    spec = data.market_spec
    features = np.zeros((len(data.bars.time), len(spec.normaliser.scale)), np.float32)
    task = Task(data, features, length, seed)
    write_features(task.features, data, data.test_first, len(data.bars.time))
    return task
