"""`Planner`: B roots, the search over them and its results; training and acting decide by the same `plan`."""

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
    position_features,
)
from kernels.ort import evaluate
from kernels.rng import gamma, gumbel
from kernels.search.config import MARKET, PUCT, WIDENING, SearchConfig, nodes_needed
from kernels.search.costs import ExogenousCosts, fill_costs, new_exogenous_costs
from kernels.search.expansion import SearchWork, mask_illegal, new_search_work
from kernels.search.gumbel import final_action, halving_table, improved_policy, value_of_greedy_action
from kernels.search.market_search import (
    MAX_MARKET_DEPTH,
    MarketTree,
    init_market_root,
    new_market_tree,
    root_hypothesis,
    run_market_simulations,
)
from kernels.search.mcts import run_simulations
from kernels.search.networks import Networks, NetworkShape, check_networks
from kernels.search.progressive_widening import SampledTree, init_sampled_root, new_sampled_tree, set_rng_key
from kernels.search.puct import visit_policy
from kernels.search.tree import MASKED_LOGIT, ReusedValue, Tree, init_root, new_reused_value, new_tree, softmax

STATS = ("searches", "rows", "reused")


class Planner(NamedTuple):
    """B roots, the search over them and its results.

    The caller writes the roots, by `set_root` or as rows of `networks.root.x` and of `legal`, and their noise, by
    `draw_noise`; `plan` writes the results.  A planner has the tree of its algorithm; the others are None, so that
    kernels compile for one.
    """

    tree: Tree | None
    market_tree: MarketTree | None
    sampled_tree: SampledTree | None
    work: SearchWork
    networks: Networks
    costs: ExogenousCosts
    config: SearchConfig
    reused_value: ReusedValue
    halving_table: NDArray[np.int32]  # [m + 1, n]
    position: NDArray[np.float32]  # [B, NUM_POSITION_FIELDS] of each root
    legal: NDArray[np.bool_]  # [B, A] of the root's actions in a game; the position of a market says it
    # [B, A] of the root's actions, [B, J] of its candidates under WIDENING: Gumbel draws, under PUCT gamma draws
    noise: NDArray[np.float32]
    action: NDArray[np.int32]  # [B] decision; under WIDENING the kind of its action
    policy: NDArray[np.float64]  # [B, A] improved policy, summed over sizes; under PUCT the fractions of the visits
    value: NDArray[np.float64]  # [B] Q of the most probable action of the policy, R
    q: NDArray[np.float64]  # [B, A] Q of each root action, or of its best size; NaN of an action without a visit
    network_rows: NDArray[np.int32]  # [B] network rows of the search
    depth: NDArray[np.int32]  # [B] edges, or in a market tree bars, on the longest path
    was_reused: NDArray[np.int32]  # [B] 1 where the search took a `ReusedValue`
    stats: NDArray[np.int64]  # [STATS] sums over all searches of this planner


def new_planner(networks: Networks, config: SearchConfig, roots: int, shape: NetworkShape) -> Planner:
    """A planner of B = `roots` searches with these networks, bound for at least `roots` rows.

    Raises ValueError, with array and shapes, for networks that are not of `shape`, and for settings without a search.
    """
    check_networks(networks, shape, config, roots)
    actions, codes, state = shape.actions, shape.codes, shape.state
    preactivation = networks.code_preactivation.shape[1]
    tree, market_tree, sampled, depth = None, None, None, config.num_simulations
    noise = np.zeros((roots, actions), np.float32)
    if config.algorithm == MARKET:
        memoryless, depth = config.mae_penalty == 0, MAX_MARKET_DEPTH
        market_tree = new_market_tree(roots, config.num_simulations, actions, codes, state, depth, memoryless)
    elif config.algorithm == WIDENING:
        sampled = new_sampled_tree(config, roots, codes, state, preactivation)
        noise = sampled.tree.noise
    else:
        nodes, fields = nodes_needed(config, codes), NUM_POSITION_FIELDS if shape.position else 0
        tree = new_tree(roots, nodes, actions, codes, state, fields, (config.num_simulations, preactivation))
        noise = tree.noise
    return Planner(
        tree=tree,
        market_tree=market_tree,
        sampled_tree=sampled,
        work=new_search_work(roots, codes, config.num_simulations),
        networks=networks,
        costs=new_exogenous_costs(roots, actions, codes, depth),
        config=config,
        reused_value=new_reused_value(roots),
        halving_table=halving_table(config.max_considered_actions, config.num_simulations),
        position=np.zeros((roots, NUM_POSITION_FIELDS), np.float32),
        legal=np.ones((roots, actions), np.bool_),
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
    """Make the close of bar t root b, with normalised `features` [F] and `position` [NUM_POSITION_FIELDS].

    Writes the last columns of row b of `networks.root.x`, the position, and the costs of the bars ahead.  Columns of
    earlier bars, where `NetworkShape.context` is above 1, are the caller's.
    """
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
    """Draw the noise of root b, and the key of its sizes, by (seed, stream, step); without noise a search is greedy."""
    set_rng_key(planner.sampled_tree, b, seed, stream, step)
    A = planner.noise.shape[1]
    if planner.config.algorithm != PUCT:
        fill_gumbel(planner.noise[b], seed, stream, step)
        return
    for a in range(A):
        planner.noise[b, a] = gamma(planner.config.dirichlet_alpha, seed, stream, step * A + a)


@inlined
def fill_gumbel(noise: NDArray[np.float32], seed: int, stream: int, step: int) -> None:
    """Write Gumbel draws, keyed by (seed, stream, step), into noise [A]."""
    for a in range(noise.shape[0]):
        noise[a] = gumbel(seed, stream, step * noise.shape[0] + a)


@kernel
def plan(planner: Planner) -> int:
    """Search all roots and write the results.  0, or the status of a failed network call for `check_status`.

    Raises ValueError where a network has fewer rows than the search calls it for.
    """
    check_rows(planner)
    status = evaluate(planner.networks.root, planner.policy.shape[0])
    if status != 0:
        return status
    return run_search(planner, planner.tree, planner.market_tree, planner.sampled_tree)


@inlined
def check_rows(planner: Planner) -> None:
    """ValueError where a network is bound for fewer rows than a call has: they would lie beyond its end."""
    B, config, networks = planner.policy.shape[0], planner.config, planner.networks
    if networks.root.x.shape[0] < B:
        raise ValueError("networks.root.x has fewer rows than planner.policy: bind it for more")
    if config.algorithm == MARKET:
        if networks.market.x.shape[0] < planner.costs.move.shape[1]:
            raise ValueError("networks.market.x has fewer rows than planner.costs.move has codes: bind it for more")
        return
    if networks.dynamics.x.shape[0] == 0:
        raise ValueError("networks.dynamics.x has no row: bind it")
    if config.stochastic and networks.afterstate.x.shape[0] < B:
        raise ValueError("networks.afterstate.x has fewer rows than planner.policy: bind it for more")


@inlined
def run_search(planner: Planner, tree: Tree | None, market_tree: MarketTree | None, sampled: SampledTree | None) -> int:
    """Search with the tree that is not None: the compiler knows a None by its type and leaves the branch out."""
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
    """Grow a tree of actions and codes from every root and read its results."""
    B, A = planner.policy.shape
    config, S = planner.config, tree.state.shape[2]
    for b in range(B):
        y = planner.networks.root.y[b]
        init_root(tree, b, y[:S], y[S : S + A], y[S + A])
        for i in range(tree.position.shape[2]):
            tree.position[b, 0, i] = planner.position[b, i]
        mask_illegal(tree, planner.costs, config, b, 0)
        for a in range(A):
            if not planner.legal[b, a]:
                tree.prior[b, 0, a] = MASKED_LOGIT
    status = simulate_all(planner, tree, None)
    for b in range(B):
        if config.algorithm == PUCT:
            planner.action[b] = visit_policy(planner.policy[b], tree, b)
        else:
            planner.action[b] = final_action(tree, config, b)
            improved_policy(planner.policy[b], tree, config, b, 0)
        planner.value[b] = value_of_greedy_action(planner.policy[b], tree, config, b, 0)
        for a in range(A):
            is_visited = tree.edge_visits[b, 0, a] > 0
            planner.q[b, a] = np.float64(tree.edge_value[b, 0, a]) if is_visited else math.nan
        planner.network_rows[b], planner.depth[b] = tree.network_rows[b], tree.depth[b]
        planner.was_reused[b] = tree.reused_node[b] > 0
    return status


@inlined
def simulate_all(planner: Planner, tree: Tree, sampled: SampledTree | None) -> int:
    """`run_simulations` with what the planner has."""
    networks, costs, table = planner.networks, planner.costs, planner.halving_table
    return run_simulations(tree, sampled, planner.work, networks, costs, planner.config, planner.reused_value, table)


@inlined
def search_market(planner: Planner, market_tree: MarketTree) -> int:
    """Grow a tree of market states from every root and read its results; it has Q of all actions, without halving."""
    B, A = planner.policy.shape
    config, S, C = planner.config, market_tree.state.shape[2], planner.costs.move.shape[1]
    for b in range(B):
        y = planner.networks.root.y[b]
        for i in range(NUM_POSITION_FIELDS):
            market_tree.root_position[b, i] = planner.position[b, i]
        init_market_root(market_tree, planner.costs, b, y[:S], y[S + A + 1 :])
    status = run_market_simulations(market_tree, planner.networks.market, planner.costs, config, planner.reused_value)
    for b in range(B):
        logits = planner.networks.root.y[b, S : S + A]
        read_market_root(planner, market_tree, b, logits)
        planner.network_rows[b] = 1 + C * market_tree.num_expanded[b]
        planner.depth[b] = 0
        for i in range(market_tree.num_expanded[b]):
            planner.depth[b] = max(planner.depth[b], market_tree.depth[b, market_tree.expansion_order[b, i]] + 1)
        planner.was_reused[b] = planner.reused_value.action[b] >= 0 and config.value_reuse != 0
    return status


@inlined
def read_market_root(planner: Planner, market_tree: MarketTree, b: int, logits: NDArray[np.float32]) -> None:
    """Read Q of the root's position, and decide by it."""
    q = planner.q[b]
    for a in range(q.shape[0]):
        q[a] = market_tree.q[b, root_hypothesis(market_tree, planner.costs, b), a]
    action, greedy = decide_by_q(planner.policy[b], q, logits, planner.noise[b], planner.config)
    planner.action[b], planner.value[b] = action, q[greedy]
    for a in range(q.shape[0]):
        if q[a] == -np.inf:
            q[a] = math.nan


@inlined
def decide_by_q(
    policy: NDArray[np.float64],
    q: NDArray[np.float64],
    logits: NDArray[np.float32],
    noise: NDArray[np.float32],
    config: SearchConfig,
) -> tuple[int, int]:
    """Write policy [A] = softmax(logits + (c_visit + n) c_scale Q / q_scale) of the actions with Q > -inf.

    Returns the best action with noise, a sample of that policy, and the best one without.
    """
    A = policy.shape[0]
    unit = (config.c_visit + config.num_simulations) * config.c_scale / config.q_scale
    best, greedy, best_score, highest = 0, 0, -np.inf, -np.inf
    for a in range(A):
        policy[a] = MASKED_LOGIT
        if q[a] != -np.inf:
            policy[a] = np.float64(logits[a]) + unit * q[a]
            if policy[a] > highest:
                greedy, highest = a, policy[a]
            if policy[a] + noise[a] > best_score:
                best, best_score = a, policy[a] + noise[a]
    softmax(policy)
    return best, greedy


@inlined
def search_sampled(planner: Planner, sampled: SampledTree) -> int:
    """Grow a tree of sizes and codes from every root; read policy and Q by the kind of action."""
    B, A = planner.policy.shape
    config, tree = planner.config, sampled.tree
    for b in range(B):
        init_sampled_root(sampled, config, b, planner.networks.root.y[b], planner.position[b])
    status = simulate_all(planner, tree, sampled)
    for b in range(B):
        improved_policy(sampled.policy[b], tree, config, b, 0)
        sampled.target[b] = sampled.candidate_size[b, 0, final_action(tree, config, b)]
        side, policy, q = tree.position[b, 0, SIDE], planner.policy[b], planner.q[b]
        planner.action[b] = action_kind_to(side, sampled.target[b])
        planner.value[b] = value_of_greedy_action(sampled.policy[b], tree, config, b, 0)
        for a in range(A):
            policy[a] = 0.0
            q[a] = math.nan
        for j in range(sampled.policy.shape[1]):
            if sampled.draw_count[b, 0, j] > 0:
                kind = action_kind_to(side, sampled.candidate_size[b, 0, j])
                value = np.float64(tree.edge_value[b, 0, j])
                policy[kind] += sampled.policy[b, j]
                # not q >= value holds for the NaN of an action without a visit
                if tree.edge_visits[b, 0, j] > 0 and not q[kind] >= value:
                    q[kind] = value
        planner.network_rows[b], planner.depth[b], planner.was_reused[b] = tree.network_rows[b], tree.depth[b], 0
    return status


@inlined
def selected_target(sampled: SampledTree | None, b: int, action: int, side: float, market: Market) -> float:
    """Signed size of the position after `action`, or after an entry of that kind with the size that root b decided."""
    if sampled is not None:
        if action == BUY or action == SELL:
            return float(sampled.target[b])
    return action_target(side, action, market.sizes)
