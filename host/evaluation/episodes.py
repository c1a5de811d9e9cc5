"""The market as an environment: B episodes in lockstep, whose bars, fills and rewards are the ledger's.

`host.gym` gives it to agents of Gymnasium, `host.bench.ppo_agents` to those of Stable-Baselines3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.training.dataset import Dataset
from kernels.market.bars import Bars
from kernels.market.features import HISTORY, compute_features, normalise_rows
from kernels.market.ledger import ACC_EQUITY, ACC_SIDE, NUM_TRADE_FIELDS, Market, close_out, new_accounts
from kernels.market.lockstep import step_accounts, write_legal
from kernels.market.position import count_actions


class Stretch(NamedTuple):
    """Where episodes begin, and how they end."""

    starts: NDArray[np.int64]  # bars of a first decision
    length: int  # decisions of an episode
    closes_out: bool = False  # the last position is closed out: the episode is over.  Else it is cut off, not over


class Episodes:
    """B episodes in lockstep, each from flat at a random start.

    `account` [B, NUM_ACCOUNT_FIELDS] is the ledger's, `bar` [B] the bar of the next decision.
    """

    def __init__(self, bars: Bars, market: Market, stretch: Stretch, count: int, rng: np.random.Generator) -> None:
        self.bars, self.market, self.stretch, self.rng = bars, market, stretch, rng
        self.num_actions = count_actions(market.sizes)
        self.account, self._trade = new_accounts(count), np.zeros(NUM_TRADE_FIELDS)
        self.bar, self._stop = np.zeros(count, np.int64), np.zeros(count, np.int64)

    def begin(self, rows: NDArray[np.int64] | None = None) -> None:
        """Begin the episodes `rows` anew, by default all."""
        rows = np.arange(len(self.bar)) if rows is None else rows
        self.bar[rows] = self.rng.choice(self.stretch.starts, len(rows))
        self.account[rows], self._stop[rows] = 0, self.bar[rows] + self.stretch.length

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Take action [B], where an illegal one holds: rewards [B] in mean bar ranges, and which episodes end [B].

        An episode that has ended must begin anew before the next step.
        """
        reward, action = np.empty(len(self.bar)), np.ascontiguousarray(action, np.int64)
        if action.shape != self.bar.shape:
            raise ValueError(f"actions {list(action.shape)} of {len(self.bar)} episodes")
        step_accounts(reward, self.account, self._trade, self.bars, self.bar, action, self.market, self.num_actions)
        self.bar += 1
        ends = self.bar == self._stop
        if self.stretch.closes_out:
            for row in np.flatnonzero(ends):
                reward[row] += close_out(self.account[row], self._trade, self.bars, self.bar[row], self.market)
        return reward, ends

    def legal(self) -> NDArray[np.bool_]:
        """[B, A] the actions that the positions permit."""
        out = np.empty((len(self.bar), self.num_actions), np.bool_)
        write_legal(out, self.account, self.market)
        return out

    @property
    def side(self) -> NDArray[np.float64]:
        """[B] signed sizes of the positions."""
        return self.account[:, ACC_SIDE]

    @property
    def equity_pips(self) -> NDArray[np.float64]:
        """[B] profit since the episodes began, net of every cost so far."""
        pips: NDArray[np.float64] = self.account[:, ACC_EQUITY] / self.market.pip_px
        return pips


def write_features(out: NDArray[np.float32], data: Dataset, first: int, stop: int, threads: int = 1) -> None:
    """Write into out [T, F] what our networks see at the bars [first, stop) that have enough history before them."""
    spec, ts = data.market_spec, np.arange(max(first, HISTORY - 1), stop)
    features = compute_features(spec.features, data.bars, ts, threads)
    out[ts] = np.concatenate([features, data.extra_features[ts]], axis=1)
    normalise_rows(out, ts.astype(np.int32), spec.normaliser)
