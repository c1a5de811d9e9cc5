"""The optimal policy of a synthetic market: relative value iteration over a grid of its state (Puterman 1994, 8.5)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.evaluation.market_models import MAX_ITERATIONS, Chain
from host.evaluation.synthetic import Floats, SyntheticMarket
from kernels.market.bars import Bars
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, close_out, new_accounts, step
from kernels.market.position import ACTIONS, FULL_SIZE_ONLY, HOLD, action_target, is_legal

GRID_CELLS = 401
GAIN_TOLERANCE = 1e-7  # standard deviations of a move
SIDES = (-1, 0, 1)


class OptimalPolicy(NamedTuple):
    """The best stationary policy over a grid of G values of the true state."""

    gain_px: float  # mean profit of a bar
    states: Floats  # [G] ascending and evenly spaced
    action: NDArray[np.int8]  # [3, G] best action of a short, flat or long position
    regret_px: Floats  # [3, A, G] loss of an action against the best one; inf where illegal


class LedgerResult(NamedTuple):
    """The profit that the ledger books for a sequence of actions."""

    profit_px: float
    rewards: Floats  # [T - 1] mean bar ranges; the last one includes the close-out
    trades: int


def solve_optimal_policy(synthetic: SyntheticMarket, market: Market, cells: int = GRID_CELLS) -> OptimalPolicy:
    """The policy of the largest mean profit: full positions only, the ledger's rules and costs, no overnight swap."""
    points, move, chain = _markov_chain(synthetic, cells)
    reward = _expected_rewards(synthetic, market, move)
    gain, q = _value_iteration(reward, chain, GAIN_TOLERANCE * synthetic.noise_px)
    # argmax breaks ties by the lowest number, which is HOLD
    return OptimalPolicy(gain, points, q.argmax(axis=1).astype(np.int8), q.max(axis=1, keepdims=True) - q)


def _markov_chain(synthetic: SyntheticMarket, cells: int) -> Chain:
    return synthetic.model.chain(synthetic.noise_px, synthetic.phi, cells)


def expected_moves(synthetic: SyntheticMarket) -> Floats:
    """[T] expected move after each bar, px, by what the true state of the market tells."""
    return synthetic.model.expected_moves(synthetic.noise_px, synthetic.phi, synthetic.state)


def discounted_q(synthetic: SyntheticMarket, market: Market, policy: OptimalPolicy, discount: float) -> Floats:
    """[3, A, T] discounted value of each action by side, along the bars, px; -inf where illegal."""
    _, move, chain = _markov_chain(synthetic, len(policy.states))
    reward = _expected_rewards(synthetic, market, move)
    _, q = _value_iteration(reward, chain, GAIN_TOLERANCE * synthetic.noise_px, discount)
    return q[:, :, state_cells(synthetic, policy)]


def _expected_rewards(synthetic: SyntheticMarket, market: Market, move: Floats) -> Floats:
    """[3, A, G] expected profit of a bar by side, action and state; -inf where illegal."""
    fill = market.slippage_px + market.commission_px
    reward = np.full((len(SIDES), len(ACTIONS), len(move)), -np.inf)
    for s, side in enumerate(SIDES):
        for action in range(len(ACTIONS)):
            if not is_legal(float(side), action, len(ACTIONS), market.reverse):
                continue
            target = action_target(float(side), action, FULL_SIZE_ONLY)
            entered, left = target not in (0.0, side), side not in (0, target)
            cost = (synthetic.spread_px + fill if entered else 0.0) + (fill if left else 0.0)
            reward[s, action] = target * move - cost
    return reward


def _value_iteration(reward: Floats, chain: Floats, precision: float, discount: float = 1.0) -> tuple[float, Floats]:
    """(gain, action values [3, A, G]); stops once no value changes by more than `precision`.

    Without a discount the values are relative to that of a flat position in state 0, and the gain is a bar's profit:
    then it stops once the changes are `precision` apart.
    """
    actions = range(len(ACTIONS))
    after = [[int(action_target(float(side), action, FULL_SIZE_ONLY)) + 1 for action in actions] for side in SIDES]
    value = np.zeros((len(SIDES), len(chain)))
    for _ in range(MAX_ITERATIONS):
        next_value = value @ chain.T
        q = reward + discount * next_value[after]
        best = q.max(axis=1)
        change = best - value
        if (np.ptp(change) if discount == 1 else np.abs(change).max()) < precision:
            return float((change.max() + change.min()) / 2), q
        value = best - best[1, 0] if discount == 1 else best
    raise ArithmeticError("value iteration does not converge: the half-life is too long")


def optimal_actions(synthetic: SyntheticMarket, policy: OptimalPolicy) -> NDArray[np.int8]:
    """[T] the actions of `policy` along the bars, from flat; no bar follows to fill the last one."""
    table = policy.action[:, state_cells(synthetic, policy)].T.tolist()
    side, actions = 0, np.zeros(len(table), np.int8)
    for t, row in enumerate(table):
        actions[t] = action = row[side + 1]
        side = (side, 1, -1, 0)[action]
    return actions


def state_cells(synthetic: SyntheticMarket, policy: OptimalPolicy) -> NDArray[np.int64]:
    """[T] index of the grid point nearest to the true state."""
    states = policy.states
    spacing = states[1] - states[0] if len(states) > 1 else 1.0
    cells = np.rint((synthetic.state - states[0]) / spacing)
    return np.asarray(np.clip(cells, 0, len(states) - 1), np.int64)


def closing_regret(
    synthetic: SyntheticMarket, policy: OptimalPolicy, target: Floats, action: NDArray[np.int8]
) -> float | None:
    """Regret of the decisions with an open position over the regret of holding instead: 0 is optimal, 1 never closes.

    `target` [n] is the position after each of the first n actions, from flat.  None: no position was due to be closed.
    """
    side = np.sign(np.concatenate([[0], target[:-1]])).astype(np.int64)
    held = np.flatnonzero(side)
    loss_px = policy.regret_px[side[held] + 1, :, state_cells(synthetic, policy)[held]]  # [held, A]
    due = float(loss_px[:, HOLD].sum())
    return float(loss_px[np.arange(len(held)), action[held]].sum()) / due if due > 0 else None


def run_ledger(bars: Bars, actions: NDArray[np.int8], market: Market) -> LedgerResult:
    """Book `actions` [T] in the ledger, from flat, closed at the last bar; a reward is profit without any penalty."""
    market = market._replace(mae_penalty=0.0)
    account, trade = new_accounts(1)[0], np.zeros(NUM_TRADE_FIELDS)
    last = len(actions) - 1
    rewards = np.array([step(account, trade, bars, t, int(actions[t]), market) for t in range(last)])
    rewards[-1] += close_out(account, trade, bars, last, market)
    entries = int(np.isin(actions[:last], (1, 2)).sum())
    return LedgerResult(float(rewards.sum() * market.range_px), rewards, entries)


def run_optimal_policy(synthetic: SyntheticMarket, market: Market) -> LedgerResult:
    """Profit of the optimal policy on these bars, with the largest size, to which profit is proportional."""
    market = market._replace(sizes=(max(market.sizes), *FULL_SIZE_ONLY[1:]))
    return run_ledger(synthetic.bars, optimal_actions(synthetic, solve_optimal_policy(synthetic, market)), market)
