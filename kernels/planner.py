"""`Planner`: B roots, the search over them and what came of it; the one decision path of training and acting."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels._jit import inlined, kernel
from kernels.bars import Bars
from kernels.gumbel import SearchConfig, greedy_q, halving_table, improved_policy, root_action
from kernels.market import Codes, Market, entry_cost, move_scale_px
from kernels.ort import evaluate
from kernels.position import FEATURES, RAW, position_features, target_side
from kernels.rng import gumbel
from kernels.search import Model, Outlook, Work, grow, mask, new_outlook, new_work, nodes_needed, plant
from kernels.tree import Tree, new_tree


class Planner(NamedTuple):
    """Everything a decision over B roots needs; row b of `model.root.x` is [bar features F | position features P]."""

    tree: Tree
    work: Work
    model: Model
    outlook: Outlook
    config: SearchConfig
    table: NDArray[np.int32]  # [m + 1, n] halving table
    action: NDArray[np.int32]  # [B] decision
    policy: NDArray[np.float64]  # [B, A] improved policy
    value: NDArray[np.float64]  # [B] Q of the action that the improved policy likes best, R


def new_planner(model: Model, config: SearchConfig, roots: int, actions: int, codes: int) -> Planner:
    """Room for `roots` searches with these networks (bound for at least `roots` rows, `dynamics` for roots x codes)."""
    latent = model.afterstate.y.shape[1] - codes - 1
    return Planner(
        tree=new_tree(roots, nodes_needed(config, codes), actions, codes, latent, RAW),
        work=new_work(roots, codes),
        model=model,
        outlook=new_outlook(roots, actions, codes),
        config=config,
        table=halving_table(config.considered, config.simulations),
        action=np.zeros(roots, np.int32),
        policy=np.zeros((roots, actions)),
        value=np.zeros(roots),
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
    x[:F] = features
    position_features(x[F : F + FEATURES], position)
    planner.tree.position[b, 0, :] = position
    scale = move_scale_px(bars, t) / market.range_px
    for c in range(codes.centres.shape[0]):
        planner.outlook.move[b, c] = codes.centres[c] * scale
    planner.outlook.entry_cost[b] = entry_cost(bars, t, market)
    for a in range(planner.outlook.size.shape[1]):
        planner.outlook.size[b, a] = target_side(0.0, a, market.sizes)


@inlined
def draw_noise(planner: Planner, b: int, seed: int, stream: int, step: int) -> None:
    """Gumbel noise of root b, keyed by (seed, stream, step)."""
    A = planner.tree.noise.shape[1]
    for a in range(A):
        planner.tree.noise[b, a] = gumbel(seed, stream, step * A + a)


@kernel
def plan(planner: Planner) -> int:
    """Search all roots; fills action, policy and value.  0 or the status of a failed network call."""
    tree, model = planner.tree, planner.model
    B, A = planner.policy.shape
    status = evaluate(model.root, B)
    if status != 0:
        return status
    D = tree.state.shape[2]
    for b in range(B):
        y = model.root.y[b]
        plant(tree, b, y[:D], y[D : D + A], y[D + A])
        mask(tree, b, 0, planner.config.reverse)
    status = grow(tree, planner.work, model, planner.outlook, planner.config, planner.table)
    for b in range(B):
        planner.action[b] = root_action(tree, planner.config, b)
        improved_policy(planner.policy[b], tree, planner.config, b, 0)
        planner.value[b] = greedy_q(planner.policy[b], tree, planner.config, b, 0)
    return status
