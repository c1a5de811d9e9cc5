"""The rewards of a tree of actions and codes: under `pnl` those of the ledger's rules, whatever the network says."""

from typing import Any

import numpy as np
import pytest

from host.artifact.networks import OnnxNetworks, hypothesis_positions
from kernels.market.bars import SECOND_NS
from kernels.market.chance import fit_chance_codes, move_scale_px
from kernels.market.ledger import Market, new_market
from kernels.market.position import FULL_SIZE_ONLY, MAX_SIZES, NUM_POSITION_FEATURES, NUM_POSITION_FIELDS, SIDE
from kernels.ort import check_status
from kernels.search.config import GUMBEL, PUCT, WIDENING, SearchConfig, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import Planner, draw_noise, plan, set_root
from kernels.search.progressive_widening import NUM_BETA_PARAMS
from kernels.search.tree import CHANCE, NONE, Tree
from models.export import export
from models.params import ModelShape, as_views, new_params
from tests.oracles.naive import moment, rolls, wandering_bars

F, D, C, B, H4 = 12, 8, 2, 6, 240
BARS = wandering_bars(2, 200, H4)  # a roll within every six bars
CODES = fit_chance_codes(BARS, np.arange(70, 190), C)
HALVES = (0.5, 1.0, *[0.0] * (MAX_SIZES - 2))
COSTS = {"slippage_px": 2e-5, "commission_px": 1e-5, "swap_long_px": -3e-4, "swap_short_px": 1e-4}
WAYS = {
    "gumbel": {"algorithm": GUMBEL},
    "gumbel, sampled codes": {"algorithm": GUMBEL, "expectation_backup": False, "num_simulations": 240},
    "puct": {"algorithm": PUCT},
    "puct, sampled codes": {"algorithm": PUCT, "expectation_backup": False, "num_simulations": 240},
    "widening": {"algorithm": WIDENING, "num_sampled_sizes": 2},
}
each_way = pytest.mark.parametrize("way", WAYS)


def market_of(way: str, reverse: bool, adjust: bool = False) -> Market:
    """Where sizes may change, the reward has a risk term."""
    sizes = FULL_SIZE_ONLY if way == "widening" else HALVES
    rules: dict[str, Any] = {"reverse": reverse, "sizes": sizes, "position_adjustment": adjust, **COSTS}
    return new_market(range_px=5e-4, pip_px=1e-4, interval_ns=H4 * 60 * SECOND_NS, risk_aversion=0.6 * adjust, **rules)


def config_of(way: str, reverse: bool, **others: Any) -> SearchConfig:
    return new_search_config(
        **{
            "num_simulations": 100,
            "q_scale": 0.2,
            "max_considered_actions": 2,
            "reverse": reverse,
            **WAYS[way],
            **others,
        }
    )


def searched(way: str, market: Market, config: SearchConfig, lie: float = 0.0) -> Planner:
    """Roots searched with random networks, whose rewards are off by up to the lie: flat, long, short, and so on."""
    actions, betas = (4, NUM_BETA_PARAMS) if way == "widening" else (6, 0)
    shape = ModelShape(features=F, latent=D, hidden=8, actions=actions, codes=C, num_beta_params=betas)
    flat = new_params(shape, 1)
    flat += np.random.default_rng(1).normal(0, 0.3, flat.shape)
    p, draw = as_views(flat, shape), np.random.default_rng(2)
    p.reward_b[:] += lie * draw.normal(size=p.reward_b.shape)
    sizes = NetworkShape(F, NUM_POSITION_FEATURES, D, actions, C)
    graphs = export(flat, shape, *hypothesis_positions(sizes, config, market.sizes))
    planner = OnnxNetworks(graphs, sizes).planner(B, config)
    for b in range(B):
        position = np.zeros(NUM_POSITION_FIELDS, np.float32)
        position[SIDE] = position[6] = (0, 1, -1, 0, -0.5, 0.5)[b]
        set_root(planner, b, draw.normal(size=F).astype(np.float32), position, BARS, 100 + b, CODES, market)
        draw_noise(planner, b, 3, b, 1)
    check_status(plan(planner))
    return planner


def tree_of(planner: Planner) -> Tree:
    tree = planner.tree if planner.sampled_tree is None else planner.sampled_tree.tree
    assert isinstance(tree, Tree)
    return tree


class Naive:
    """The values of a finished tree from its shape, its priors and the network's values; rewards by the rules."""

    def __init__(self, planner: Planner, market: Market, b: int) -> None:
        self.planner, self.tree, self.market, self.b, self.deepest = planner, tree_of(planner), market, b, 0
        scale = move_scale_px(BARS, 100 + b) / market.range_px
        self.moves, self.squares = CODES.centres * scale, CODES.mean_square * scale**2

    def reward(self, depth: int, side: float, target: float, code: int) -> float:
        """In ranges: fills at the spread of the root, nights of the bar, and the move."""
        market, t = self.market, 100 + self.b
        now = int(BARS.time[t]) + depth * market.interval_ns
        nights = rolls(moment(now), moment(now + market.interval_ns))
        paid = nights * abs(target) * (market.swap_long_px if target > 0 else market.swap_short_px)
        if target != side:
            fill = market.slippage_px + market.commission_px
            common = min(abs(side), abs(target)) if side * target > 0 else 0.0  # neither closed nor opened
            paid -= (abs(side) - common) * fill + (abs(target) - common) * (fill + BARS.ask_close[t] - BARS.close[t])
        risk = market.risk_aversion / 2 * target**2 * self.squares[code]
        return float(paid / market.range_px + target * self.moves[code] - risk)

    def target(self, node: int, side: float, edge: int) -> float:
        if self.planner.sampled_tree is not None:
            return float(self.planner.sampled_tree.candidate_size[self.b, node, edge])
        return [side, 0.5, 1.0, -0.5, -1.0, 0.0][edge]

    def below(self, node: int) -> list[tuple[int, int]]:
        return [(edge, int(child)) for edge, child in enumerate(self.tree.child[self.b, node]) if child != NONE]

    def value(self, node: int, side: float, depth: int) -> float:
        """Of a decision: the mean of the network's value and of those it went through."""
        self.deepest = max(self.deepest, depth)
        q = [self.q(child, side, self.target(node, side, a), depth) for a, child in self.below(node)]
        counts = [1, *(int(self.tree.visits[self.b, child]) for _, child in self.below(node))]
        value = float(np.average([float(self.tree.raw_value[self.b, node]), *q], weights=counts))
        assert self.tree.value[self.b, node] == pytest.approx(value, rel=1e-4, abs=1e-4)
        return value

    def q(self, node: int, side: float, target: float, depth: int) -> float:
        """Of an action: the expectation over the codes, or the mean of those it sampled and of the network's value."""
        assert self.tree.kind[self.b, node] == CHANCE
        codes = self.below(node)
        returns = [
            self.reward(depth, side, target, code) + self.planner.config.discount * self.value(child, target, depth + 1)
            for code, child in codes
        ]
        if self.planner.config.expectation_backup:
            return float(np.dot(self.tree.prior[self.b, node, :C], returns))
        counts = [1, *(int(self.tree.visits[self.b, child]) for _, child in codes)]
        return float(np.average([float(self.tree.raw_value[self.b, node]), *returns], weights=counts))


def resizes(tree: Tree) -> bool:
    """Whether a decision of a tree changes the size of a position on its side."""
    found = False
    for b in range(B):
        for node in range(1, int(tree.num_nodes[b])):
            before, after = (float(tree.position[b, i, SIDE]) for i in (tree.parent[b, node], node))
            found |= before * after > 0 and before != after
    return found


@each_way
@pytest.mark.parametrize(("reverse", "adjust"), [(False, False), (True, False), (False, True)])
def test_q_is_that_of_the_rules(way: str, reverse: bool, adjust: bool) -> None:
    market = market_of(way, reverse, adjust)
    planner = searched(way, market, config_of(way, reverse, position_adjustment=adjust), lie=3.0)
    tree, deepest = tree_of(planner), 0
    assert adjust == resizes(tree)
    for b in range(B):
        naive = Naive(planner, market, b)
        side = float(planner.position[b, SIDE])
        naive.value(0, side, 0)
        for edge, child in naive.below(0):
            q = naive.q(child, side, naive.target(0, side, edge), 0)
            assert tree.edge_value[b, 0, edge] == pytest.approx(q, rel=1e-4, abs=1e-4)
        deepest = max(deepest, naive.deepest)
    assert deepest > 4  # beyond the horizon of a market search
    assert np.abs(planner.costs.financing).max() > 0.1


def outcome(planner: Planner) -> list[bytes]:
    return [getattr(planner, name).tobytes() for name in ("q", "policy", "value", "action", "depth")]


@each_way
def test_a_network_that_lies_about_rewards_changes_nothing(way: str) -> None:
    market, config = market_of(way, True), config_of(way, True)
    assert outcome(searched(way, market, config)) == outcome(searched(way, market, config, lie=3.0))


@each_way
@pytest.mark.parametrize("others", [{"mae_penalty": 0.01}, {"exact_rewards": False}], ids=str)
def test_other_rewards_are_the_networks(way: str, others: dict[str, Any]) -> None:
    market, config = market_of(way, True), config_of(way, True, **others)
    assert outcome(searched(way, market, config)) != outcome(searched(way, market, config, lie=3.0))
