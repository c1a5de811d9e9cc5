"""`MarketEnv` and `MarketVectorEnv`: the market of `host.evaluation.episodes` with the interfaces of Gymnasium.

An action is one of `kernels.market.position`: HOLD, BUY, SELL, CLOSE, with several sizes an entry of each.  It is
filled at the next open and pays every cost; where `info["action_mask"]` is 0 it holds.  A reward is the change of
equity in mean bar ranges, less the penalty of `market.reward`.  An observation has the features of the newest bar, as
our networks see them, then those of the position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from host.config import load_config
from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from host.evaluation.episodes import Episodes, Stretch, write_features
from host.machine import usable_cores
from host.training.dataset import Dataset, new_dataset
from kernels.market.bars import SECOND_NS
from kernels.market.features import HISTORY, MAX_FEATURE
from kernels.market.lockstep import write_observations
from kernels.market.position import NUM_POSITION_FEATURES, NUM_POSITION_FIELDS

TRAINING, VALIDATION, TEST = "training", "validation", "test"
Info = dict[str, Any]


def read_dataset(path: Path | str, *settings: str, reading: ReadOptions | None = None) -> Dataset:
    """The bars of a file, split and fitted as `train --set SETTING` does; DataError, DatasetError or ConfigError."""
    config, (bars, source) = load_config(None, [*settings]), read_bars(path, reading)
    extra, interval_ns = np.zeros((len(bars.time), 0), np.float32), source.interval_s * SECOND_NS
    return new_dataset(bars, extra, config, source.instrument, interval_ns, usable_cores())


def stretch_of(data: Dataset, part: str) -> Stretch:
    """Episodes from random bars of the training part; of another part one, over all its bars, closed out."""
    if part == TRAINING:
        return Stretch(data.starts, data.episode_length)
    bounds = {
        VALIDATION: (max(data.train_stop, HISTORY - 1), data.validation_stop),
        TEST: (data.test_first, len(data.bars.time)),
    }
    if part not in bounds:
        raise ValueError(f"part {part!r}: there is {', '.join((TRAINING, *bounds))}")
    first, stop = bounds[part]
    if first + 1 >= stop:
        raise ValueError(f"the {part} part is empty: read_dataset(path, 'train.validation_fraction=0.15') fills it")
    return Stretch(np.array([first]), stop - 1 - first, True)


class Observer:
    """The features of the bars of a part, and the spaces of one episode."""

    def __init__(self, data: Dataset, part: str) -> None:
        self.stretch, market = stretch_of(data, part), data.market_spec.market
        self.features = np.zeros((len(data.bars.time), len(data.market_spec.normaliser.scale)), np.float32)
        first, stop = int(self.stretch.starts.min()), int(self.stretch.starts.max()) + self.stretch.length + 1
        write_features(self.features, data, first, stop, usable_cores())
        self._data, self._position = data, np.zeros(NUM_POSITION_FIELDS, np.float32)
        self.width = self.features.shape[1] + NUM_POSITION_FEATURES
        self.observation_space = Box(-MAX_FEATURE, MAX_FEATURE, (self.width,), np.float32)
        self.action_space = Discrete(2 + 2 * np.count_nonzero(market.sizes))

    def episodes(self, count: int, rng: np.random.Generator) -> Episodes:
        """`count` episodes of the part."""
        return Episodes(self._data.bars, self._data.market_spec.market, self.stretch, count, rng)

    def observe(self, episodes: Episodes) -> NDArray[np.float32]:
        """[B, F + P] new rows."""
        out = np.empty((len(episodes.bar), self.width), np.float32)
        write_observations(out, self._position, self.features, episodes.bar, episodes.account, episodes.market)
        return out

    def info(self, episodes: Episodes) -> Info:
        """The mask of legal actions [B, A], the bar [B] of the next decision, and the profit [B] of the episode."""
        mask, profit = episodes.legal().view(np.int8), episodes.equity_pips
        return {"action_mask": mask, "bar": episodes.bar.copy(), "equity_pips": profit}


class MarketEnv(Env):  # type: ignore[misc]
    """One episode of a part of the bars: of the training part from a random bar, else from the first one.

    It is truncated after `market.episode_length` decisions, with its position; at the end of another part the position
    is closed out, and it terminates.
    """

    def __init__(self, data: Dataset, part: str = TRAINING) -> None:
        self._observer = observer = Observer(data, part)
        self.observation_space, self.action_space = observer.observation_space, observer.action_space
        self._episodes, self._is_over = observer.episodes(1, self.np_random), True

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.float32], Info]:
        """Begin an episode, flat; with a seed this one and those that follow are always the same.  No options."""
        super().reset(seed=seed)
        self._episodes.rng, self._is_over = self.np_random, False
        self._episodes.begin()
        return self._observer.observe(self._episodes)[0], self._info()

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Observation, reward, whether the episode is over, whether it is cut off, and `Observer.info`."""
        if self._is_over:
            raise ResetNeeded("the episode has ended: call reset")
        (reward,), (self._is_over,) = self._episodes.step(np.array([action]))
        closes_out, observation = self._observer.stretch.closes_out, self._observer.observe(self._episodes)[0]
        terminated, truncated = bool(self._is_over and closes_out), bool(self._is_over and not closes_out)
        return observation, float(reward), terminated, truncated, self._info()

    def _info(self) -> Info:
        mask, bar, profit = self._observer.info(self._episodes).values()
        return {"action_mask": mask[0], "bar": int(bar[0]), "equity_pips": float(profit[0])}


class MarketVectorEnv(VectorEnv):  # type: ignore[misc]
    """`num_envs` episodes of a part of the bars in lockstep, stepped by one compiled call.

    An episode that ends begins anew in the same step; `final_obs` and `final_info` have its last observation and info.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 (as its base has it)

    def __init__(self, data: Dataset, num_envs: int, part: str = TRAINING) -> None:
        self._observer, self.num_envs = Observer(data, part), num_envs
        self.single_observation_space, self.single_action_space = (
            self._observer.observation_space,
            self._observer.action_space,
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._episodes = self._observer.episodes(num_envs, self.np_random)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.float32], Info]:
        """Begin all episodes, flat; with a seed these and those that follow are always the same.  No options."""
        super().reset(seed=seed)
        self._episodes.rng = self.np_random
        self._episodes.begin()
        return self._observer.observe(self._episodes), self._info()

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """As `MarketEnv.step`, of actions [B]."""
        reward, ends = self._episodes.step(actions)
        observation, info = self._observer.observe(self._episodes), self._info()
        if ends.any():
            rows, last = np.flatnonzero(ends), np.full(self.num_envs, None, object)
            for row in rows:
                last[row] = observation[row]
            self._episodes.begin(rows)
            final = {"final_obs": last, "_final_obs": ends, "final_info": info, "_final_info": ends}
            observation, info = self._observer.observe(self._episodes), self._info() | final
        is_over = np.full(self.num_envs, self._observer.stretch.closes_out)
        return observation, reward, ends & is_over, ends & ~is_over, info

    def _info(self) -> Info:
        info, whole = self._observer.info(self._episodes), np.ones(self.num_envs, np.bool_)
        return info | {f"_{name}": whole for name in info}
