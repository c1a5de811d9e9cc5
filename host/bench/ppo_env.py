"""The market as `bench ppo` gives it to other agents: B episodes in lockstep, and decisions over bars that follow.

An observation is (bar, side): it names a row of the features and a position, which an agent's network looks up.  Read
`Decisions`, whose rewards are the ledger's, then `Episodes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from host.evaluation.synthetic import PIP, Floats
from host.training.dataset import Dataset
from kernels.market.bars import Bars
from kernels.market.features import HISTORY, compute_features, normalise_rows
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, new_accounts, run_targets, step, step_to_target
from kernels.market.position import ACTIONS, HOLD, action_target, is_legal

SIDES = (-1, 0, 1)
CHUNK_ROWS = 16_384  # observations that a policy is asked about at a time
Observations = NDArray[np.float32]  # [n, 2] bar and side; a float32 holds every bar below 2^24
Policy = Callable[[Observations, NDArray[np.bool_]], NDArray[np.int64]]  # observations, legal [n, A] -> actions [n]


class Decisions(NamedTuple):
    """What each action does at the close of each bar t, by the side that is held: -1, 0 or 1 is row 0, 1 or 2."""

    reward: NDArray[np.float32]  # [T, 3, A] of bar t + 1, mean bar ranges; of an illegal action that of HOLD
    target: NDArray[np.int64]  # [3, A] side after the action; an illegal action holds
    legal: NDArray[np.bool_]  # [3, A]


# Not cached: numba's own cache would not see an edit of `step`, and kernels of the program live in kernels/.
@njit(nogil=True)
def book_decisions(
    reward: NDArray[np.float64], account: NDArray[np.float64], trade: NDArray[np.float64], bars: Bars, market: Market
) -> None:
    """Write into reward [T, 3, A] what the ledger books for a position that was entered at the bar before, or NaN."""
    for t in range(1, reward.shape[0] - 1):
        for s in range(reward.shape[1]):
            for action in range(reward.shape[2]):
                account[:] = 0.0
                if s != 1:
                    step_to_target(account, trade, bars, t - 1, s - 1.0, market)
                reward[t, s, action] = step(account, trade, bars, t, action, market)


def new_decisions(bars: Bars, market: Market) -> Decisions:
    """The table of a market whose reward is the profit and whose positions are full: it depends on the side alone."""
    count = len(ACTIONS)
    legal = np.array([[is_legal(float(s), a, count, market.reverse) for a in range(count)] for s in SIDES])
    target = np.array([[action_target(float(s), a, market.sizes) for a in range(count)] for s in SIDES])
    reward = np.zeros((len(bars.time), *legal.shape))
    book_decisions(reward, new_accounts(1)[0], np.zeros(NUM_TRADE_FIELDS), bars, market)
    reward = np.where(legal, reward, reward[:, :, HOLD, None])
    held = np.array(SIDES)[:, None]
    return Decisions(reward.astype(np.float32), np.where(legal, target, held).astype(np.int64), legal)


def write_features(out: NDArray[np.float32], data: Dataset, first: int, stop: int) -> None:
    """Write into out [T, F] what our networks see at the bars [first, stop) that have enough history before them."""
    spec, ts = data.market_spec, np.arange(max(first, HISTORY - 1), stop)
    features = compute_features(spec.features, data.bars, ts, 1)
    out[ts] = np.concatenate([features, data.extra_features[ts]], axis=1)
    normalise_rows(out, ts.astype(np.int32), spec.normaliser)


class Episodes:
    """B episodes from random training bars; one that has had `length` decisions is cut off, not over."""

    def __init__(self, decisions: Decisions, starts: NDArray[np.int64], length: int, count: int, seed: int) -> None:
        self.decisions, self._starts, self._length = decisions, starts, length
        self._rng = np.random.Generator(np.random.Philox(key=seed))
        self.bar, self.side = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._stop = np.zeros(count, np.int64)  # bar at which the episode is cut off

    def reset(self) -> Observations:
        """Begin all episodes anew, from flat."""
        self._begin(np.arange(len(self.bar)))
        return self.observe()

    def _begin(self, rows: NDArray[np.int64]) -> None:
        self.bar[rows] = self._rng.choice(self._starts, len(rows))
        self.side[rows], self._stop[rows] = 0, self.bar[rows] + self._length

    def observe(self) -> Observations:
        """[B, 2] bar and side."""
        return np.stack([self.bar, self.side], axis=1).astype(np.float32)

    def legal(self) -> NDArray[np.bool_]:
        """[B, A] the actions that the positions permit."""
        return self.decisions.legal[self.side + 1]

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], Observations]:
        """Next observations, rewards [B], which episodes were cut off [B], and the last observation of those."""
        row = self.side + 1
        reward = self.decisions.reward[self.bar, row, action]
        self.side = self.decisions.target[row, action]
        self.bar += 1
        is_cut = self.bar == self._stop
        last = self.observe()
        if not is_cut.any():
            return last, reward, is_cut, last[:0]
        rows = np.flatnonzero(is_cut)
        self._begin(rows)
        return self.observe(), reward, is_cut, last[rows]


class Backtest(NamedTuple):
    """What the ledger books for a policy that decides alone, from flat to the close-out."""

    profit_pips: float
    target: Floats  # [T - 1] side after each decision
    trades: int


def backtest_policy(
    policy: Policy, decisions: Decisions, bars: Bars, market: Market, first: int, stop: int
) -> Backtest:
    """Follow `policy` over the bars [first, stop); the ledger holds where an action is illegal."""
    rows, ts = np.arange(len(SIDES)), np.arange(first, stop - 1)
    asked = np.stack([np.repeat(ts, len(SIDES)), np.tile(SIDES, len(ts))], axis=1).astype(np.float32)
    legal = np.tile(decisions.legal, (len(ts), 1))
    chunks = [slice(i, i + CHUNK_ROWS) for i in range(0, len(asked), CHUNK_ROWS)]
    answers = np.concatenate([policy(asked[chunk], legal[chunk]) for chunk in chunks])
    actions = answers.reshape(-1, len(SIDES)).astype(np.int8)
    side, sides = 0, list[int]()
    for after in decisions.target[rows, actions].tolist():
        side = after[side + 1]
        sides.append(side)
    target, equity, trades = np.array(sides, np.float64), np.zeros(len(ts)), np.zeros((len(ts), NUM_TRADE_FIELDS))
    count = run_targets(equity, trades, new_accounts(1)[0], bars, first, target, market)
    return Backtest(float(equity[-1]) / PIP, target, count)
