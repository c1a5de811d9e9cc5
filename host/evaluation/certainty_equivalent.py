"""The optimum of `risk`, the known market where sizes pay: that of `planted` with a risk term in the reward.

Profit is linear in the size, so its optimum is flat or full.  The risk term is quadratic: the best size is in between,
and costs make it worth keeping a size that is nearly the best (Garleanu and Pedersen 2013).  Value iteration over the
state and the signed sizes gives the best certainty equivalent: mean profit of a bar less the risk term, in mean ranges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from host.evaluation.market_models import MAX_ITERATIONS, LevelModel
from host.evaluation.optimum import GAIN_TOLERANCE, GRID_CELLS, _markov_chain, expected_moves
from host.evaluation.synthetic import Floats, SyntheticMarket
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, new_accounts, run_targets
from kernels.market.position import action_target, count_actions, fill_size, is_legal


class SizedPolicy(NamedTuple):
    """The policy of the largest certainty equivalent over L signed sizes and a grid of G values of the true state."""

    gain: float  # certainty equivalent of a bar, ranges
    level: Floats  # [L] signed sizes, ascending
    states: Floats  # [G] ascending and evenly spaced
    target: Floats  # [L, G] best signed size after the decision


def has_sized_optimum(synthetic: SyntheticMarket, market: Market) -> bool:
    """Whether the reward has a risk term, in a market whose optimum under it is known."""
    model = synthetic.model
    return market.risk_aversion > 0 and isinstance(model, LevelModel) and model.walk == 0


def solve_sized_policy(synthetic: SyntheticMarket, market: Market, cells: int = GRID_CELLS) -> SizedPolicy:
    """The optimum of `planted` with the sizes, rules and costs of the market, no overnight swap."""
    states, move_px, chain = _markov_chain(synthetic, cells)
    sizes = [size for size in market.sizes if size > 0]
    level = np.array([*(-size for size in reversed(sizes)), 0.0, *sizes])
    reward = _rewards(synthetic, market, level, move_px)
    value, flat = np.zeros((len(level), cells)), len(sizes)
    for _ in range(MAX_ITERATIONS):
        q = reward + value @ chain.T
        best = q.max(axis=1)
        change = best - value
        if np.ptp(change) < GAIN_TOLERANCE:
            return SizedPolicy(float(change.max() + change.min()) / 2, level, states, level[q.argmax(axis=1)])
        value = best - best[flat, 0]
    raise ArithmeticError("value iteration does not converge: the half-life is too long")


def _rewards(synthetic: SyntheticMarket, market: Market, level: Floats, move_px: Floats) -> Floats:
    """[L, L, G] expected reward of a bar by the size before and after the decision, ranges; -inf where illegal."""
    actions, gain = count_actions(market.sizes), np.outer(level, move_px / market.range_px)
    reward = np.full((len(level), *gain.shape), -np.inf)
    gain -= np.outer(level**2, expected_risk(synthetic, market, move_px))
    exit_px = market.slippage_px + market.commission_px
    for s, side in enumerate(level.tolist()):
        for action in range(actions):
            target = action_target(side, action, market.sizes)
            if is_legal(side, action, actions, market.reverse, market.position_adjustment, target):
                opened, closed = fill_size(side, target)
                cost_px, t = opened * (exit_px + synthetic.spread_px) + closed * exit_px, np.searchsorted(level, target)
                reward[s, t] = gain[t] - cost_px / market.range_px
    return reward


def expected_risk(synthetic: SyntheticMarket, market: Market, move_px: Floats) -> Floats:
    """Expected risk term of a bar of a full position, ranges, whose expected move is `move_px`, in `planted`."""
    return 0.5 * market.risk_aversion * (move_px**2 + synthetic.noise_px**2) / market.range_px**2


def follow_policy(synthetic: SyntheticMarket, policy: SizedPolicy) -> Floats:
    """[T - 1] signed sizes of `policy` along the bars, from flat."""
    cells = np.rint((synthetic.state - policy.states[0]) / np.diff(policy.states[:2]))
    cells = np.clip(cells, 0, len(policy.states) - 1)
    row, rows = len(policy.level) // 2, list[int]()
    table = np.searchsorted(policy.level, policy.target)
    for cell in cells[:-1].astype(np.int64):
        row = int(table[row, cell])
        rows.append(row)
    return policy.level[rows]


def target_equity(synthetic: SyntheticMarket, market: Market, target: Floats) -> Floats:
    """[T - 1] equity of the positions `target` [T - 1] in the ledger, closed at the last bar, px."""
    equity_px, trades = np.zeros(len(target)), np.zeros((len(target) + 1, NUM_TRADE_FIELDS))
    run_targets(equity_px, trades, new_accounts(1)[0], synthetic.bars, 0, target, market)
    return equity_px


def certainty_equivalent(synthetic: SyntheticMarket, market: Market, target: Floats) -> float:
    """Mean of a bar, ranges, of the positions `target` [T - 1], had each bar moved as its true state lets expect."""
    equity_px, move_px = target_equity(synthetic, market, target), expected_moves(synthetic)[:-1]
    surprise_px = np.diff(synthetic.bars.close) - move_px
    risk = target**2 @ expected_risk(synthetic, market, move_px)
    return float(((equity_px[-1] - target @ surprise_px) / market.range_px - risk) / len(target))
