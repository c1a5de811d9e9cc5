"""The best policy of a synthetic market, by value iteration over a grid of its state."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.evaluation.synthetic import MOST_SWEEPS, PHASES_OF_CLOSE, Floats, Synthetic
from kernels.market.bars import Bars
from kernels.market.ledger import TRADE, Market, close_out, new_accounts, step
from kernels.market.position import ACTIONS, FULL, HOLD, is_legal, target_side

CELLS = 401  # of the state's grid


REACH = 6.0  # half-width of the grid, standard deviations of the state


PRECISION = 1e-7  # of the gain, in standard deviations of a move


SIDES = (-1, 0, 1)


class Optimum(NamedTuple):
    """The best stationary policy over the true state."""

    gain_px: float  # average profit of a bar
    points: Floats  # [S] states, ascending and evenly spaced
    action: NDArray[np.int8]  # [3, S] best action of a short, flat, long position
    regret_px: Floats  # [3, A, S] what an action loses against the best one; inf where illegal


class Played(NamedTuple):
    """What the ledger booked for a sequence of actions."""

    profit_px: float
    rewards: Floats  # [T - 1] R, the last one with the close-out
    trades: int


def find_optimum(synthetic: Synthetic, market: Market, cells: int = CELLS) -> Optimum:
    """The policy of the largest average profit, full positions only, under the ledger's rules and costs (no swap)."""
    points, move, chain = _chain(synthetic, cells)
    reward = _rewards(synthetic, market, move)
    gain, q = _iterate(reward, chain, PRECISION * synthetic.noise_px)
    # ties go to the action of the lowest number, so to HOLD
    return Optimum(gain, points, q.argmax(axis=1).astype(np.int8), q.max(axis=1, keepdims=True) - q)


def _chain(synthetic: Synthetic, cells: int) -> tuple[Floats, Floats, Floats]:
    """(states [S], expected move from each [S], transition [S, S])."""
    if synthetic.name == "noise":
        return np.zeros(1), np.zeros(1), np.ones((1, 1))
    if synthetic.name == "leak":
        mean_move = synthetic.noise_px * math.sqrt(2.0 / math.pi)
        return np.array([-1.0, 1.0]), np.array([-mean_move, mean_move]), np.full((2, 2), 0.5)
    if synthetic.name == "close":
        phases = PHASES_OF_CLOSE
        return np.arange(float(len(phases.drift))), phases.drift * synthetic.noise_px, phases.chain
    noise_px = synthetic.state_noise_px
    reach = REACH * noise_px / math.sqrt(1.0 - synthetic.phi**2)
    x = np.linspace(-reach, reach, cells)
    if x[1] - x[0] > noise_px:
        raise ValueError(f"{cells} cells are too few for a half-life of {synthetic.options.half_life} bars")
    density = np.exp(-0.5 * ((x[None, :] - synthetic.phi * x[:, None]) / noise_px) ** 2)
    return x, (synthetic.phi - 1.0) * x, density / density.sum(axis=1, keepdims=True)


def _rewards(synthetic: Synthetic, market: Market, move: Floats) -> Floats:
    """[3, A, S] expected profit of a bar by side, action and state; -inf where illegal."""
    fill = market.slippage_px + market.commission_px
    reward = np.full((len(SIDES), len(ACTIONS), len(move)), -np.inf)
    for s, side in enumerate(SIDES):
        for action in range(len(ACTIONS)):
            if not is_legal(float(side), action, len(ACTIONS), market.reverse):
                continue
            target = target_side(float(side), action, FULL)
            entered, left = target not in (0.0, side), side not in (0, target)
            cost = (synthetic.spread_px + fill if entered else 0.0) + (fill if left else 0.0)
            reward[s, action] = target * move - cost
    return reward


def _iterate(reward: Floats, chain: Floats, precision: float) -> tuple[float, Floats]:
    """(gain, relative values of the actions [3, A, S])."""
    kinds = range(len(ACTIONS))
    after = [[int(target_side(float(side), action, FULL)) + 1 for action in kinds] for side in SIDES]
    value = np.zeros((len(SIDES), len(chain)))
    for _ in range(MOST_SWEEPS):
        ahead = value @ chain.T
        q = reward + ahead[after]
        best = q.max(axis=1)
        change = best - value
        if np.ptp(change) < precision:
            return float((change.max() + change.min()) / 2), q
        value = best - best[1, 0]
    raise ArithmeticError("value iteration does not converge: the half-life is too long")


def optimal_actions(synthetic: Synthetic, optimum: Optimum) -> NDArray[np.int8]:
    """[T] the policy's actions along the bars, from flat; the last bar's cannot be filled."""
    table = optimum.action[:, _cells(synthetic, optimum)].T.tolist()
    side, actions = 0, np.zeros(len(table), np.int8)
    for t, row in enumerate(table):
        actions[t] = action = row[side + 1]
        side = (side, 1, -1, 0)[action]
    return actions


def _cells(synthetic: Synthetic, optimum: Optimum) -> NDArray[np.int64]:
    """[T] index of the true state in the optimum's points."""
    points = optimum.points
    spacing = points[1] - points[0] if len(points) > 1 else 1.0
    cells = np.rint((synthetic.state - points[0]) / spacing)
    return np.asarray(np.clip(cells, 0, len(points) - 1), np.int64)


def closing_regret(
    synthetic: Synthetic, optimum: Optimum, target: Floats, action: NDArray[np.int8]
) -> float | None:
    """What the decisions with an open position lose, as a share of what never closing would: 0 is the best.

    target [n] is the side after each of the first n actions, from flat; None: no position was due to be closed.
    """
    side = np.sign(np.concatenate([[0], target[:-1]])).astype(np.int64)
    held = np.flatnonzero(side)
    loss_px = optimum.regret_px[side[held] + 1, :, _cells(synthetic, optimum)[held]]  # [held, A]
    due = float(loss_px[:, HOLD].sum())
    return float(loss_px[np.arange(len(held)), action[held]].sum()) / due if due > 0 else None


def play(bars: Bars, actions: NDArray[np.int8], market: Market) -> Played:
    """Book `actions` [T] through the ledger, from flat, closed at the last bar; profit is money, without excursions."""
    market = market._replace(excursion_weight=0.0)
    account, trade = new_accounts(1)[0], np.zeros(TRADE)
    last = len(actions) - 1
    rewards = np.array([step(account, trade, bars, t, int(actions[t]), market) for t in range(last)])
    rewards[-1] += close_out(account, trade, bars, last, market)
    entries = int(np.isin(actions[:last], (1, 2)).sum())
    return Played(float(rewards.sum() * market.range_px), rewards, entries)


def play_optimum(synthetic: Synthetic, market: Market) -> Played:
    """What the best policy earns on these very bars, with the largest size: profit is proportional to it."""
    market = market._replace(sizes=(max(market.sizes), *FULL[1:]))
    return play(synthetic.bars, optimal_actions(synthetic, find_optimum(synthetic, market)), market)
