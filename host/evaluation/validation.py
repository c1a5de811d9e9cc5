"""`trade_validation_part`: what an agent would have earned, after costs, on bars that no weight was fitted to.

The best of many such results flatters, so a test part that was never looked at has the last word.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from host.evaluation.backtest import new_backtest_policy, run_backtest
from host.training.dataset import Dataset
from host.training.trainer import Trainer

MAX_DECISIONS = 16_384  # of an instrument: the last ones of its validation part
NO_BEST: dict[str, Any] = {"iteration": 0, "reward_per_bar": None, "misses": 0}  # the state before any validation


class ValidationResult(NamedTuple):
    """The agent's trading of the validation parts of all instruments."""

    reward_per_bar: float  # ranges, the mean of the instruments'; by it the best agent is chosen
    net_pips: float  # the sum of the instruments'
    trades: int
    exposure: float  # fraction of the bars


def validation_stretch(data: Dataset, history: int) -> tuple[int, int]:
    """First decision and end of the bars that are traded; none where the two are equal."""
    stop = data.validation_stop
    first = max(data.train_stop, history - 1, stop - 1 - MAX_DECISIONS)
    return min(first, stop - 1), stop - 1


def trade_validation_part(trainer: Trainer) -> ValidationResult | None:
    """The result of the agent as it is now; None where no instrument has a validation part."""
    networks, search = trainer.export_networks(), trainer.acting_search_config()
    rewards, pips, trades, held, bars = list[float](), 0.0, 0, 0, 0
    for market in trainer.markets:
        data, spec = market.data, market.data.market_spec
        first, stop = validation_stretch(data, networks.history)
        if first == stop:
            continue
        policy = new_backtest_policy(networks, spec, search)
        result = run_backtest(policy, data.bars, data.extra_features, first, stop + 1)
        profit_px, n = float(result.log.equity[-1]), stop - first
        rewards.append(profit_px / spec.market.range_px / n)
        pips += profit_px / spec.market.pip_px
        trades, held, bars = trades + len(result.trades), held + int(np.count_nonzero(result.log.target)), bars + n
    return ValidationResult(sum(rewards) / len(rewards), pips, trades, held / bars) if bars else None


class BestAgent:
    """The best agent of a training so far, by its trading of the validation part after every few iterations."""

    def __init__(self, trainer: Trainer, patience: int | None) -> None:
        self._trainer, self.patience = trainer, patience
        self.restore(NO_BEST)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state in a checkpoint."""
        reward = state["reward_per_bar"]
        self.iteration, self._misses = state["iteration"], state["misses"]
        self._reward = -math.inf if reward is None else reward

    @property
    def is_final(self) -> bool:
        """Whether so many validations in a row were no better that the training ends."""
        return self.patience is not None and self._misses >= self.patience

    def validate(self) -> tuple[bool, dict[str, float]]:
        """Validate if it is time: whether the agent is the best so far, and its result for the metrics."""
        interval = self._trainer.config.train.validation_interval
        if interval == 0 or self._trainer.iteration % interval:
            return False, {}
        found = trade_validation_part(self._trainer)
        if found is None:
            return False, {}
        is_best = found.reward_per_bar >= self._reward  # of equal ones the later: it has learnt more
        self._misses = 0 if found.reward_per_bar > self._reward else self._misses + 1
        if is_best:
            self.iteration, self._reward = self._trainer.iteration, found.reward_per_bar
        return is_best, {f"validation_{name}": value for name, value in found._asdict().items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        reward = self._reward if math.isfinite(self._reward) else None
        return {"iteration": self.iteration, "reward_per_bar": reward, "misses": self._misses}
