"""`Planner`: B roots, the search over them and what came of it; the one decision path of training and acting."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.bars import Bars
from kernels.market.chance import Codes
from kernels.market.ledger import Market
from kernels.market.position import (
    BUY,
    FEATURES,
    RAW,
    SELL,
    SIDE,
    is_legal,
    kind_to,
    position_features,
    target_side,
)
from kernels.ort import evaluate
from kernels.rng import gamma, gumbel
from kernels.search.config import MARKET, PUCT, WIDENING, SearchConfig
from kernels.search.costs import Outlook, look_ahead, new_outlook
from kernels.search.gumbel import greedy_q, halving_table, improved_policy, root_action
from kernels.search.market_search import MarketTree, grow_market, new_market_tree, plant_market
from kernels.search.mcts import Model, Work, grow, mask, new_work, nodes_needed, plant
from kernels.search.progressive_widening import Wide, draw_key, grow_wide, new_wide, plant_wide
from kernels.search.puct import visit_policy
from kernels.search.tree import MASKED, Known, Tree, new_known, new_tree

TALLY = ("searches", "rows", "reused")
HORIZON = 4  # bars that a market tree is deep at most


class Planner(NamedTuple):
    """Everything a decision over B roots needs; row b of `model.root.x` is [features of the last bars, F each | P].

    A planner has the tree of its rule; the others are None, so that kernels compile for one of them alone.
    """

    tree: Tree | None
    market: MarketTree | None
    wide: Wide | None
    work: Work
    model: Model
    outlook: Outlook
    config: SearchConfig
    known: Known
    table: NDArray[np.int32]  # [m + 1, n] halving table
    position: NDArray[np.float32]  # [B, RAW] position at each root
    noise: NDArray[
        np.float32
    ]  # [B, A] of the root: Gumbel, or under PUCT a draw of gammas, Dirichlet once normalised; [B, E] under WIDENING
    action: NDArray[np.int32]  # [B] decision; under WIDENING its kind
    policy: NDArray[
        np.float64
    ]  # [B, A] improved policy, summed over sizes; under PUCT the shares of the visits
    value: NDArray[np.float64]  # [B] Q of the action that the policy likes best, R
    q: NDArray[np.float64]  # [B, A] Q of each root action, or of its best size, NaN where none was found
    rows: NDArray[np.int32]  # [B] network rows of the search
    depth: NDArray[np.int32]  # [B] edges, or in a market tree bars, on its longest path
    reused: NDArray[np.int32]  # [B] 1 where a known value stood in for a search
    tally: NDArray[np.int64]  # [TALLY] of all searches of this planner


def new_planner(
    model: Model,
    config: SearchConfig,
    roots: int,
    actions: int,
    codes: int,
    state: int,
    positions: bool = True,
) -> Planner:
    """Room for `roots` searches with these networks, bound for at least `roots` rows; a game has no positions."""
    tree, market, wide = None, None, None
    noise = np.zeros((roots, actions), np.float32)
    if config.rule == MARKET:
        memoryless = config.excursion_weight == 0
        market = new_market_tree(roots, config.simulations, actions, codes, state, HORIZON, memoryless)
    elif config.rule == WIDENING:
        wide = new_wide(config, roots, codes, state, model.code.shape[1])
        noise = wide.tree.noise
    else:
        nodes, shared = nodes_needed(config, codes), (config.simulations, model.code.shape[1])
        tree = new_tree(roots, nodes, actions, codes, state, RAW if positions else 0, shared)
        noise = tree.noise
    return Planner(
        tree=tree,
        market=market,
        wide=wide,
        work=new_work(roots, codes, config.simulations),
        model=model,
        outlook=new_outlook(roots, actions, codes, HORIZON),
        config=config,
        known=new_known(roots),
        table=halving_table(config.considered, config.simulations),
        position=np.zeros((roots, RAW), np.float32),
        noise=noise,
        action=np.zeros(roots, np.int32),
        policy=np.zeros((roots, actions)),
        value=np.zeros(roots),
        q=np.zeros((roots, actions)),
        rows=np.zeros(roots, np.int32),
        depth=np.zeros(roots, np.int32),
        reused=np.zeros(roots, np.int32),
        tally=np.zeros(len(TALLY), np.int64),
    )


@inlined
def set_root(
    planner: Planner,
    b: int,
    features: NDArray[np.float32],
    position: NDArray[np.float32],
    bars: Bars,
    t: int,
    codes: Codes,
    market: Market,
) -> None:
    """Put the close of bar t with normalised `features` [F] and raw `position` [RAW] at root b."""
    x = planner.model.root.x[b]
    F = features.shape[0]
    newest = x[x.shape[0] - FEATURES - F :]
    for f in range(F):
        newest[f] = features[f]
    position_features(newest[F : F + FEATURES], position, planner.config.excursion_weight == 0)
    for i in range(RAW):
        planner.position[b, i] = position[i]
    look_ahead(planner.outlook, b, bars, t, codes, market)


@inlined
def draw_noise(planner: Planner, b: int, seed: int, stream: int, step: int) -> None:
    """Noise of root b and the key of its sizes, by (seed, stream, step)."""
    draw_key(planner.wide, b, seed, stream, step)
    A = planner.noise.shape[1]
    for a in range(A):
        if planner.config.rule == PUCT:
            planner.noise[b, a] = gamma(planner.config.noise_alpha, seed, stream, step * A + a)
        else:
            planner.noise[b, a] = gumbel(seed, stream, step * A + a)


@kernel
def plan(planner: Planner) -> int:
    """Search all roots; fills action, policy, value and the figures.  0 or the status of a failed network call."""
    status = evaluate(planner.model.root, planner.policy.shape[0])
    if status != 0:
        return status
    return search(planner, planner.tree, planner.market, planner.wide)


@inlined
def search(planner: Planner, tree: Tree | None, market: MarketTree | None, wide: Wide | None) -> int:
    """`plan` after the networks of the roots: of what is None the compiler knows it, and leaves the branch out."""
    status = 0
    if market is not None:
        status = search_market(planner, market)
    if tree is not None:
        status = search_tree(planner, tree)
    if wide is not None:
        status = search_wide(planner, wide)
    for b in range(planner.rows.shape[0]):
        planner.tally[0] += 1
        planner.tally[1] += planner.rows[b]
        planner.tally[2] += planner.reused[b]
    return status


@inlined
def search_tree(planner: Planner, tree: Tree) -> int:
    """Grow a tree of actions and codes from every root and read it."""
    B, A = planner.policy.shape
    config, D = planner.config, tree.state.shape[2]
    for b in range(B):
        y = planner.model.root.y[b]
        plant(tree, b, y[:D], y[D : D + A], y[D + A])
        for i in range(tree.position.shape[2]):
            tree.position[b, 0, i] = planner.position[b, i]
        mask(tree, b, 0, config.reverse)
    status = grow(tree, planner.work, planner.model, planner.outlook, config, planner.known, planner.table)
    for b in range(B):
        if config.rule == PUCT:
            planner.action[b] = visit_policy(planner.policy[b], tree, b)
        else:
            planner.action[b] = root_action(tree, config, b)
            improved_policy(planner.policy[b], tree, config, b, 0)
        planner.value[b] = greedy_q(planner.policy[b], tree, config, b, 0)
        for a in range(A):
            found = tree.edge_visits[b, 0, a] > 0
            planner.q[b, a] = np.float64(tree.edge_value[b, 0, a]) if found else math.nan
        planner.rows[b], planner.depth[b], planner.reused[b] = tree.rows[b], tree.depth[b], tree.known[b] > 0
    return status


@inlined
def search_market(planner: Planner, market: MarketTree) -> int:
    """Grow a tree of market states from every root; all actions are judged at once, so there is nothing to halve."""
    B, A = planner.policy.shape
    config, D, C = planner.config, market.state.shape[2], planner.outlook.move.shape[1]
    for b in range(B):
        y = planner.model.root.y[b]
        for i in range(RAW):
            market.root[b, i] = planner.position[b, i]
        plant_market(market, planner.outlook, b, y[:D], y[D + A + 1 :])
    status = grow_market(market, planner.model.market, planner.outlook, config, planner.known)
    for b in range(B):
        logits = planner.model.root.y[b, D : D + A]
        read_market(planner, market, b, logits)
        planner.rows[b] = 1 + C * market.expanded[b]
        planner.depth[b] = 0
        for i in range(market.expanded[b]):
            planner.depth[b] = max(planner.depth[b], market.depth[b, market.order[b, i]] + 1)
        planner.reused[b] = planner.known.action[b] >= 0 and config.reuse != 0
    return status


@inlined
def read_market(planner: Planner, market: MarketTree, b: int, logits: NDArray[np.float32]) -> None:
    """Policy = softmax(logits + (c_visit + n) c_scale Q / S) over the legal actions; the best with noise is taken."""
    A, config, policy = planner.policy.shape[1], planner.config, planner.policy[b]
    unit = (config.c_visit + config.simulations) * config.c_scale / config.value_unit
    best, greedy, best_score, highest, total = 0, 0, -np.inf, -np.inf, 0.0
    for a in range(A):
        policy[a] = MASKED
        planner.q[b, a] = math.nan
        if is_legal(market.root[b, SIDE], a, A, config.reverse):
            planner.q[b, a] = market.q[b, a]
            policy[a] = np.float64(logits[a]) + unit * market.q[b, a]
            if policy[a] > highest:
                greedy, highest = a, policy[a]
            if policy[a] + planner.noise[b, a] > best_score:
                best, best_score = a, policy[a] + planner.noise[b, a]
    for a in range(A):
        policy[a] = math.exp(policy[a] - highest)
        total += policy[a]
    for a in range(A):
        policy[a] /= total
    planner.action[b] = best
    planner.value[b] = market.q[b, greedy]


@inlined
def search_wide(planner: Planner, wide: Wide) -> int:
    """Grow a tree of sizes and codes from every root; its policy and Q are told by the kind of action."""
    B, A = planner.policy.shape
    config, tree = planner.config, wide.tree
    for b in range(B):
        plant_wide(wide, config, b, planner.model.root.y[b], planner.position[b])
    status = grow_wide(wide, planner.model, planner.outlook, config, planner.table)
    for simulation in range(config.simulations):
        planner.work.calls[simulation, 0] = B * planner.outlook.move.shape[1]
        planner.work.calls[simulation, 1] = B
    for b in range(B):
        side, policy, q = tree.position[b, 0, SIDE], planner.policy[b], planner.q[b]
        planner.action[b] = kind_to(side, wide.target[b])
        planner.value[b] = greedy_q(wide.policy[b], tree, config, b, 0)
        for a in range(A):
            policy[a] = 0.0
            q[a] = math.nan
        for e in range(wide.policy.shape[1]):
            if wide.drawn[b, 0, e] > 0:
                kind, worth = kind_to(side, wide.size[b, 0, e]), np.float64(tree.edge_value[b, 0, e])
                policy[kind] += wide.policy[b, e]
                if tree.edge_visits[b, 0, e] > 0 and not q[kind] >= worth:  # NaN is not
                    q[kind] = worth
        planner.rows[b], planner.depth[b], planner.reused[b] = tree.rows[b], tree.depth[b], 0
    return status


@inlined
def chosen_target(wide: Wide | None, b: int, action: int, side: float, market: Market) -> float:
    """Signed size that the decision at root b brings about, its kind or action being `action`."""
    if wide is not None:
        if action == BUY or action == SELL:
            return float(wide.target[b])
    return target_side(side, action, market.sizes)
