"""What `bench ppo` shows of the market to other agents, and a policy of theirs over bars that follow.

An observation is (bar, side): it names a row of the features and a position, which an agent's network looks up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.evaluation.episodes import Episodes
from host.evaluation.synthetic import PIP, Floats
from kernels.market.bars import Bars
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, new_accounts, run_targets
from kernels.market.position import ACTIONS, action_target, is_legal

SIDES = (-1, 0, 1)
CHUNK_ROWS = 16_384  # observations that a policy is asked about at a time
Observations = NDArray[np.float32]  # [n, 2] bar and side; a float32 holds every bar below 2^24
Policy = Callable[[Observations, NDArray[np.bool_]], NDArray[np.int64]]  # observations, legal [n, A] -> actions [n]


def observe(episodes: Episodes) -> Observations:
    """[B, 2] bar and side."""
    return np.stack([episodes.bar, episodes.side], axis=1).astype(np.float32)


class Decisions(NamedTuple):
    """What each action does, by the side that is held: -1, 0 or 1 is row 0, 1 or 2."""

    target: NDArray[np.int64]  # [3, A] side after the action; an illegal action holds
    legal: NDArray[np.bool_]  # [3, A]


def new_decisions(market: Market) -> Decisions:
    """The table of a market whose positions are full."""
    count = len(ACTIONS)
    legal = np.array([[is_legal(float(s), a, count, market.reverse) for a in range(count)] for s in SIDES])
    target = np.array([[action_target(float(s), a, market.sizes) for a in range(count)] for s in SIDES])
    return Decisions(np.where(legal, target, np.array(SIDES)[:, None]).astype(np.int64), legal)


class Backtest(NamedTuple):
    """What the ledger books for a policy that decides alone, from flat to the close-out."""

    profit_pips: float
    target: Floats  # [T - 1] side after each decision
    trades: int


def backtest_policy(policy: Policy, bars: Bars, market: Market, first: int, stop: int) -> Backtest:
    """Follow `policy` over the bars [first, stop); the ledger holds where an action is illegal."""
    decisions, rows, ts = new_decisions(market), np.arange(len(SIDES)), np.arange(first, stop - 1)
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
