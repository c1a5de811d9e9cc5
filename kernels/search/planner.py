"""`Planner`: B roots, the search over them and what came of it; the one decision path of training and acting."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import inlined, kernel
from kernels.market.bars import Bars
from kernels.market.chance import ChanceCodes
from kernels.market.ledger import Market
from kernels.market.position import (
    BUY,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    SELL,
    SIDE,
    action_kind_to,
    action_target,
    is_legal,
    position_features,
)
from kernels.ort import evaluate
from kernels.rng import gamma, gumbel
from kernels.search.config import MARKET, PUCT, WIDENING, SearchConfig
from kernels.search.costs import ExogenousCosts, fill_costs, new_exogenous_costs
from kernels.search.gumbel import final_action, halving_table, improved_policy, value_of_greedy_action
from kernels.search.market_search import MarketTree, init_market_root, new_market_tree, run_market_simulations
from kernels.search.mcts import (
    Networks,
    SearchWork,
    init_root,
    mask_illegal,
    new_search_work,
    nodes_needed,
    run_simulations,
)
from kernels.search.progressive_widening import (
    SampledTree,
    init_sampled_root,
    new_sampled_tree,
    run_sampled_simulations,
    set_rng_key,
)
from kernels.search.puct import visit_policy
from kernels.search.tree import MASKED_LOGIT, ReusedValue, Tree, new_reused_value, new_tree

STATS = ("searches", "rows", "reused")
MAX_MARKET_DEPTH = 4  # bars that a market tree is deep at most


class Planner(NamedTuple):
    """Everything a decision over B roots needs; row b of `networks.root.x` is [features of the last bars, F each | P].

    A planner has the tree of its rule; the others are None, so that kernels compile for one of them alone.
    """

    tree: Tree | None
    market_tree: MarketTree | None
    sampled_tree: SampledTree | None
    work: SearchWork
    networks: Networks
    costs: ExogenousCosts
    config: SearchConfig
    reused_value: ReusedValue
    halving_table: NDArray[np.int32]  # [m + 1, n] halving table
    position: NDArray[np.float32]  # [B, RAW] position at each root
    noise: NDArray[
        np.float32
    ]  # [B, A] of the root: Gumbel, or under PUCT a draw of gammas, Dirichlet once normalised; [B, E] under WIDENING
    action: NDArray[np.int32]  # [B] decision; under WIDENING its kind
    policy: NDArray[np.float64]  # [B, A] improved policy, summed over sizes; under PUCT the shares of the visits
    value: NDArray[np.float64]  # [B] Q of the action that the policy likes best, R
    q: NDArray[np.float64]  # [B, A] Q of each root action, or of its best size, NaN where none was found
    network_rows: NDArray[np.int32]  # [B] network rows of the search
    depth: NDArray[np.int32]  # [B] edges, or in a market tree bars, on its longest path
    was_reused: NDArray[np.int32]  # [B] 1 where a known value stood in for a search
    stats: NDArray[np.int64]  # [TALLY] of all searches of this planner


def new_planner(
    networks: Networks,
    config: SearchConfig,
    roots: int,
    actions: int,
    codes: int,
    state: int,
    has_positions: bool = True,
) -> Planner:
    """Room for `roots` searches with these networks, bound for at least `roots` rows; a game has no positions."""
    tree, market_tree, sampled = None, None, None
    noise = np.zeros((roots, actions), np.float32)
    if config.algorithm == MARKET:
        memoryless = config.mae_penalty == 0
        market_tree = new_market_tree(
            roots, config.num_simulations, actions, codes, state, MAX_MARKET_DEPTH, memoryless
        )
    elif config.algorithm == WIDENING:
        sampled = new_sampled_tree(config, roots, codes, state, networks.code_preactivation.shape[1])
        noise = sampled.tree.noise
    else:
        nodes, shared = (nodes_needed(config, codes), (config.num_simulations, networks.code_preactivation.shape[1]))
        tree = new_tree(roots, nodes, actions, codes, state, NUM_POSITION_FIELDS if has_positions else 0, shared)
        noise = tree.noise
    return Planner(
        tree=tree,
        market_tree=market_tree,
        sampled_tree=sampled,
        work=new_search_work(roots, codes, config.num_simulations),
        networks=networks,
        costs=new_exogenous_costs(roots, actions, codes, MAX_MARKET_DEPTH),
        config=config,
        reused_value=new_reused_value(roots),
        halving_table=halving_table(config.max_considered_actions, config.num_simulations),
        position=np.zeros((roots, NUM_POSITION_FIELDS), np.float32),
        noise=noise,
        action=np.zeros(roots, np.int32),
        policy=np.zeros((roots, actions)),
        value=np.zeros(roots),
        q=np.zeros((roots, actions)),
        network_rows=np.zeros(roots, np.int32),
        depth=np.zeros(roots, np.int32),
        was_reused=np.zeros(roots, np.int32),
        stats=np.zeros(len(STATS), np.int64),
    )


@inlined
def set_root(
    planner: Planner,
    b: int,
    features: NDArray[np.float32],
    position: NDArray[np.float32],
    bars: Bars,
    t: int,
    codes: ChanceCodes,
    market: Market,
) -> None:
    """Put the close of bar t with normalised `features` [F] and raw `position` [RAW] at root b."""
    x = planner.networks.root.x[b]
    F = features.shape[0]
    newest = x[x.shape[0] - NUM_POSITION_FEATURES - F :]
    for f in range(F):
        newest[f] = features[f]
    position_features(newest[F : F + NUM_POSITION_FEATURES], position, planner.config.mae_penalty == 0)
    for i in range(NUM_POSITION_FIELDS):
        planner.position[b, i] = position[i]
    fill_costs(planner.costs, b, bars, t, codes, market)


@inlined
def draw_noise(planner: Planner, b: int, seed: int, stream: int, step: int) -> None:
    """Noise of root b and the key of its sizes, by (seed, stream, step)."""
    set_rng_key(planner.sampled_tree, b, seed, stream, step)
    A = planner.noise.shape[1]
    for a in range(A):
        if planner.config.algorithm == PUCT:
            planner.noise[b, a] = gamma(planner.config.dirichlet_alpha, seed, stream, step * A + a)
        else:
            planner.noise[b, a] = gumbel(seed, stream, step * A + a)


@kernel
def plan(planner: Planner) -> int:
    """Search all roots; fills action, policy, value and the figures.  0 or the status of a failed network call."""
    status = evaluate(planner.networks.root, planner.policy.shape[0])
    if status != 0:
        return status
    return run_search(planner, planner.tree, planner.market_tree, planner.sampled_tree)


@inlined
def run_search(planner: Planner, tree: Tree | None, market_tree: MarketTree | None, sampled: SampledTree | None) -> int:
    """`plan` after the networks of the roots: of what is None the compiler knows it, and leaves the branch out."""
    status = 0
    if market_tree is not None:
        status = search_market(planner, market_tree)
    if tree is not None:
        status = search_tree(planner, tree)
    if sampled is not None:
        status = search_sampled(planner, sampled)
    for b in range(planner.network_rows.shape[0]):
        planner.stats[0] += 1
        planner.stats[1] += planner.network_rows[b]
        planner.stats[2] += planner.was_reused[b]
    return status


@inlined
def search_tree(planner: Planner, tree: Tree) -> int:
    """Grow a tree of actions and codes from every root and read it."""
    B, A = planner.policy.shape
    config, D = planner.config, tree.state.shape[2]
    for b in range(B):
        y = planner.networks.root.y[b]
        init_root(tree, b, y[:D], y[D : D + A], y[D + A])
        for i in range(tree.position.shape[2]):
            tree.position[b, 0, i] = planner.position[b, i]
        mask_illegal(tree, b, 0, config.reverse)
    status = run_simulations(
        tree, planner.work, planner.networks, planner.costs, config, planner.reused_value, planner.halving_table
    )
    for b in range(B):
        if config.algorithm == PUCT:
            planner.action[b] = visit_policy(planner.policy[b], tree, b)
        else:
            planner.action[b] = final_action(tree, config, b)
            improved_policy(planner.policy[b], tree, config, b, 0)
        planner.value[b] = value_of_greedy_action(planner.policy[b], tree, config, b, 0)
        for a in range(A):
            found = tree.edge_visits[b, 0, a] > 0
            planner.q[b, a] = np.float64(tree.edge_value[b, 0, a]) if found else math.nan
        planner.network_rows[b], planner.depth[b], planner.was_reused[b] = (
            tree.network_rows[b],
            tree.depth[b],
            tree.reused_node[b] > 0,
        )
    return status


@inlined
def search_market(planner: Planner, market_tree: MarketTree) -> int:
    """Grow a tree of market states from every root; all actions are judged at once, so there is nothing to halve."""
    B, A = planner.policy.shape
    config, D, C = planner.config, market_tree.state.shape[2], planner.costs.move.shape[1]
    for b in range(B):
        y = planner.networks.root.y[b]
        for i in range(NUM_POSITION_FIELDS):
            market_tree.root_position[b, i] = planner.position[b, i]
        init_market_root(market_tree, planner.costs, b, y[:D], y[D + A + 1 :])
    status = run_market_simulations(market_tree, planner.networks.market, planner.costs, config, planner.reused_value)
    for b in range(B):
        logits = planner.networks.root.y[b, D : D + A]
        read_market_root(planner, market_tree, b, logits)
        planner.network_rows[b] = 1 + C * market_tree.num_expanded[b]
        planner.depth[b] = 0
        for i in range(market_tree.num_expanded[b]):
            planner.depth[b] = max(planner.depth[b], market_tree.depth[b, market_tree.expansion_order[b, i]] + 1)
        planner.was_reused[b] = planner.reused_value.action[b] >= 0 and config.value_reuse != 0
    return status


@inlined
def read_market_root(planner: Planner, market_tree: MarketTree, b: int, logits: NDArray[np.float32]) -> None:
    """Policy = softmax(logits + (c_visit + n) c_scale Q / S) over the legal actions; the best with noise is taken."""
    A, config, policy = planner.policy.shape[1], planner.config, planner.policy[b]
    unit = (config.c_visit + config.num_simulations) * config.c_scale / config.q_scale
    best, greedy, best_score, highest, total = 0, 0, -np.inf, -np.inf, 0.0
    for a in range(A):
        policy[a] = MASKED_LOGIT
        planner.q[b, a] = math.nan
        if is_legal(market_tree.root_position[b, SIDE], a, A, config.reverse):
            planner.q[b, a] = market_tree.q[b, a]
            policy[a] = np.float64(logits[a]) + unit * market_tree.q[b, a]
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
    planner.value[b] = market_tree.q[b, greedy]


@inlined
def search_sampled(planner: Planner, sampled: SampledTree) -> int:
    """Grow a tree of sizes and codes from every root; its policy and Q are told by the kind of action."""
    B, A = planner.policy.shape
    config, tree = planner.config, sampled.tree
    for b in range(B):
        init_sampled_root(sampled, config, b, planner.networks.root.y[b], planner.position[b])
    status = run_sampled_simulations(sampled, planner.networks, planner.costs, config, planner.halving_table)
    for simulation in range(config.num_simulations):
        planner.work.rows_per_call[simulation, 0] = B * planner.costs.move.shape[1]
        planner.work.rows_per_call[simulation, 1] = B
    for b in range(B):
        side, policy, q = tree.position[b, 0, SIDE], planner.policy[b], planner.q[b]
        planner.action[b] = action_kind_to(side, sampled.target[b])
        planner.value[b] = value_of_greedy_action(sampled.policy[b], tree, config, b, 0)
        for a in range(A):
            policy[a] = 0.0
            q[a] = math.nan
        for e in range(sampled.policy.shape[1]):
            if sampled.draw_count[b, 0, e] > 0:
                kind, worth = (
                    action_kind_to(side, sampled.candidate_size[b, 0, e]),
                    np.float64(tree.edge_value[b, 0, e]),
                )
                policy[kind] += sampled.policy[b, e]
                if tree.edge_visits[b, 0, e] > 0 and not q[kind] >= worth:  # NaN is not
                    q[kind] = worth
        planner.network_rows[b], planner.depth[b], planner.was_reused[b] = (tree.network_rows[b], tree.depth[b], 0)
    return status


@inlined
def selected_target(sampled: SampledTree | None, b: int, action: int, side: float, market: Market) -> float:
    """Signed size that the decision at root b brings about, its kind or action being `action`."""
    if sampled is not None:
        if action == BUY or action == SELL:
            return float(sampled.target[b])
    return action_target(side, action, market.sizes)
