"""The tree of market states against a naive one of objects, and against the ledger itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host.artifact.networks import OnnxNetworks, hypothesis_positions
from kernels.market.bars import SECOND_NS, Bars
from kernels.market.chance import ChanceCodes, fit_chance_codes, move_scale_px
from kernels.market.ledger import NUM_TRADE_FIELDS, Market, new_accounts, new_market, step
from kernels.market.position import (
    ADVERSE_EXCURSION,
    ENTRY_COST,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    SIDE,
    UNREALISED,
    action_names,
    position_features,
)
from kernels.ort import check_status
from kernels.search.config import MARKET, SearchConfig, new_search_config
from kernels.search.market_search import EXPANSION_BATCH, MAX_MARKET_DEPTH
from kernels.search.networks import NetworkShape, graph_widths
from kernels.search.planner import Planner, draw_noise, plan, set_root
from kernels.search.tree import NONE
from models.export import export
from models.params import ModelShape, as_views, new_params
from tests.fixtures.graphs import Naive as NaiveGraph
from tests.fixtures.graphs import graph, widths
from tests.oracles.naive import moment, naive_move, rolls, wandering_bars

F, D, H4 = 12, 8, 240
BARS = wandering_bars(2, 200, H4)  # a roll within every six bars
CODES = {C: fit_chance_codes(BARS, np.arange(70, 190), C) for C in (2, 5)}
FIRST_BAR = 100
HALVES = (0.25, 0.5, 0.6, 0.8, 1.0)
few = settings(deadline=None, max_examples=6)


@dataclass(frozen=True)
class World:
    """A market with a reward, sizes and a rule of turning, and random networks for it."""

    k: float = 0.0
    reverse: bool = False
    sizes: tuple[float, ...] = (1.0,)
    C: int = 5
    seed: int = 0
    adjust: bool = False
    risk: float = 0.0
    linear: bool = False

    @property
    def actions(self) -> int:
        return 2 * len(self.sizes) + 2

    @property
    def market(self) -> Market:
        costs = {"slippage_px": 2e-5, "commission_px": 1e-5, "swap_long_px": -3e-5, "swap_short_px": 1e-5}
        rules: dict[str, Any] = {"mae_penalty": self.k, "reverse": self.reverse, "sizes": self.sizes, **costs}
        rules |= {"position_adjustment": self.adjust, "risk_aversion": self.risk}
        return new_market(range_px=5e-4, pip_px=1e-4, interval_ns=H4 * 60 * SECOND_NS, **rules)

    @property
    def shape_sizes(self) -> NetworkShape:
        return NetworkShape(F, NUM_POSITION_FEATURES, D, self.actions, self.C)

    def config(self, simulations: int, **others: Any) -> SearchConfig:
        rules = {"reverse": self.reverse, "mae_penalty": self.k, "algorithm": MARKET, "c_scale": 0.05}
        rules |= {"position_adjustment": self.adjust, "linear_values": self.linear}
        return new_search_config(num_simulations=simulations, **(rules | others))

    def params(self) -> tuple[Any, ModelShape]:
        shape = ModelShape(features=F, latent=D, hidden=8, actions=self.actions, codes=self.C)
        flat = new_params(shape, self.seed)
        return flat + np.random.default_rng(self.seed).normal(0, 0.3, flat.shape), shape

    def graphs(self, flat: Any, shape: ModelShape) -> dict[str, bytes]:
        return export(flat, shape, *hypothesis_positions(self.shape_sizes, self.config(1), self.market.sizes))


@dataclass(frozen=True)
class Root:
    features: Any  # [F]
    position: Any  # [RAW]
    t: int
    number: int  # stream of its noise


def random_root(seed: int, number: int, sizes: tuple[float, ...]) -> Root:
    """Flat, long or short, in turns; a position as the ledger could have left it."""
    draw = np.random.default_rng([seed, number])
    position, sign = np.zeros(NUM_POSITION_FIELDS, np.float32), number % 3 - 1
    if sign:
        side = sign * draw.choice(sizes)
        position[:] = [side, 3 + number, -0.4, 0.2, 1.5, 2.0, side, 0.3]
    return Root(draw.normal(size=F).astype(np.float32), position, FIRST_BAR + number, number)


def searched(
    agent: OnnxNetworks,
    world: World,
    config: SearchConfig,
    roots: list[Root],
    seed: int = 0,
    bars: Bars = BARS,
    codes: ChanceCodes | None = None,
) -> Planner:
    planner = agent.planner(len(roots), config)
    for b, root in enumerate(roots):
        known = CODES[world.C] if codes is None else codes
        set_root(planner, b, root.features, root.position, bars, root.t, known, world.market)
        draw_noise(planner, b, seed, root.number, 3)
    check_status(plan(planner))
    return planner


@dataclass
class State:
    """A node of the naive tree."""

    row: Any  # of its parent's latent and its code, as the network reads them
    latent: Any
    chances: Any
    depth: int
    reach: float
    children: list[State] = field(default_factory=list)
    memory: dict[tuple[float, ...], float] = field(default_factory=dict)


class Naive:
    """Expansion in batches, best first, then the exact recursion over positions, rewards by the rules of the market."""

    def __init__(self, world: World, graphs: dict[str, bytes], config: SearchConfig, root: Root) -> None:
        self.world, self.config, self.root = world, config, root
        self.nets = {name: NaiveGraph(graphs[name]) for name in ("root", "market")}
        x = np.concatenate([root.features, self.told(root.position)])
        y = self.run("root", x)
        self.logits = y[D : D + world.actions]
        self.start = State(None, y[:D], softmax(y[D + world.actions + 1 :]), 0, 1.0)
        market, t = world.market, root.t
        self.moves = CODES[world.C].centres * move_scale_px(BARS, t) / market.range_px
        scale = move_scale_px(BARS, t) / market.range_px
        self.risk = world.risk / 2 * CODES[world.C].mean_square * scale**2
        self.exit = (market.slippage_px + market.commission_px) / market.range_px
        self.entry = self.exit + (BARS.ask_close[t] - BARS.close[t]) / market.range_px
        self.grow()

    def run(self, name: str, x: Any) -> Any:
        return self.nets[name](x[None])[0].astype(float)

    def told(self, position: Any) -> Any:
        out = np.zeros(NUM_POSITION_FEATURES, np.float32)
        position_features(out, np.asarray(position, np.float32), self.world.k == 0)
        return out

    def network_value(self, node: State, position: Any) -> float:
        """Under `pnl` the graph has a value for every size an entry can have, elsewhere of what it is shown.

        Where values are linear it has those of flat and of the largest position on each side.
        """
        hypotheses = hypothesis_positions(self.world.shape_sizes, self.config, self.world.market.sizes)
        first = D + self.world.C
        if self.world.linear:
            flat, long, short = map(float, self.run("market", node.row)[first:])
            part = abs(position[SIDE]) / self.world.sizes[-1]
            return (1 - part) * flat + part * (long if position[SIDE] > 0 else short)
        if hypotheses[1] is not None:
            (hypothesis,) = [s for s, told in enumerate(hypotheses[1]) if (told == self.told(position)).all()]
            return float(self.run("market", node.row)[first + hypothesis])
        shown = np.zeros(hypotheses[0] * NUM_POSITION_FEATURES)
        shown[:NUM_POSITION_FEATURES] = self.told(position)
        return float(self.run("market", np.concatenate([node.row, shown]))[first])

    def grow(self) -> None:
        self.states, left, batch = [self.start], self.config.num_simulations, 1
        while left > 0:
            leaves = [s for s in self.states if not s.children and s.depth < MAX_MARKET_DEPTH]
            best = sorted(leaves, key=lambda s: -s.reach)[: min(batch, left)]
            if not best:
                return
            for node in best:
                for c in range(self.world.C):
                    node.children.append(self.child(node, c))
                self.states += node.children
            left, batch = left - len(best), EXPANSION_BATCH

    def child(self, node: State, code: int) -> State:
        row = np.concatenate([node.latent, np.eye(self.world.C)[code]])
        extra = 0 if self.world.k == 0 else graph_widths(self.world.shape_sizes, self.config)["market"][0] - len(row)
        y = self.run("market", np.concatenate([row, np.zeros(extra)]))
        reach = node.reach * self.config.discount * node.chances[code]
        return State(row, y[:D], softmax(y[D : D + self.world.C]), node.depth + 1, reach)

    def legal(self, side: float) -> list[int]:
        names = action_names(self.world.market.sizes)
        if side == 0:
            return [a for a, name in enumerate(names) if name != "CLOSE"]
        turn = "SELL" if side > 0 else "BUY"
        return [
            a
            for a, name in enumerate(names)
            if name in ("HOLD", "CLOSE")
            or (self.world.reverse and name.startswith(turn))
            or (self.world.adjust and not name.startswith(turn) and self.target(side, a) != side)
        ]

    def target(self, side: float, action: int) -> float:
        name = action_names(self.world.market.sizes)[action]
        if name in ("HOLD", "CLOSE"):
            return side if name == "HOLD" else 0.0
        kind, _, size = name.partition(" ")
        return float(size or 1) * (1 if kind == "BUY" else -1)

    def swap(self, depth: int, target: float) -> float:
        market = self.world.market
        now = int(BARS.time[self.root.t]) + depth * market.interval_ns
        rate = market.swap_long_px if target > 0 else market.swap_short_px
        return rolls(moment(now), moment(now + market.interval_ns)) * rate * abs(target) / market.range_px

    def q(self, node: State, position: Any, action: int) -> float:
        side = float(position[SIDE])
        target = self.target(side, action)
        gain, after = self.swap(node.depth, target), np.array(position, float)
        if target != side:
            common = min(abs(side), abs(target)) if side * target > 0 else 0.0  # neither closed nor opened
            gain -= self.exit * (abs(side) - common) + self.entry * (abs(target) - common)
            after = np.zeros(NUM_POSITION_FIELDS)
            after[SIDE], after[UNREALISED], after[ENTRY_COST] = (
                target,
                -self.entry * abs(target),
                self.entry * abs(target),
            )
        for p, move, risk, child in zip(node.chances, self.moves, self.risk, node.children, strict=True):
            there = naive_move(after, move)
            reward = target * move - self.world.k * there[ADVERSE_EXCURSION] - target**2 * risk
            gain += p * (reward + self.config.discount * self.v(child, there))
        return float(gain)

    def v(self, node: State, position: Any) -> float:
        key = tuple(position) if self.world.k else (float(position[SIDE]),)
        if key not in node.memory:
            if node.children:
                node.memory[key] = max(self.q(node, position, a) for a in self.legal(position[SIDE]))
            else:
                node.memory[key] = self.network_value(node, position)
        return node.memory[key]


def softmax(z: Any) -> Any:
    e = np.exp(z - np.max(z))
    return e / e.sum()


WORLDS = [
    World(k=k, reverse=reverse, sizes=sizes, seed=i)
    for i, (k, reverse, sizes) in enumerate(product((0.0, 0.05), (False, True), ((1.0,), HALVES)))
]
ADJUSTING = [World(reverse=reverse, sizes=(0.5, 1.0), seed=8, adjust=True, risk=0.6) for reverse in (False, True)]
LINEAR = [
    World(sizes=(0.25, 0.8), seed=9, linear=True),
    World(sizes=HALVES, seed=10, linear=True, adjust=True, reverse=True),
]


@pytest.mark.parametrize(
    "world", [*WORLDS, *ADJUSTING, *LINEAR], ids=lambda w: f"k{w.k}-{w.reverse}-{w.sizes}-{w.adjust}-{w.linear}"
)
def test_the_search_is_the_naive_recursion(world: World) -> None:
    graphs, config = world.graphs(*world.params()), world.config(24, discount=0.7)
    roots = [random_root(world.seed, b, world.sizes) for b in range(3)]
    planner = searched(OnnxNetworks(graphs, world.shape_sizes), world, config, roots, seed=5)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    for b, root in enumerate(roots):
        naive = Naive(world, graphs, config, root)
        legal = naive.legal(root.position[SIDE])
        q = np.full(world.actions, np.nan)
        q[legal] = [naive.q(naive.start, root.position, a) for a in legal]
        np.testing.assert_allclose(planner.q[b], q, **close)
        unit = (config.c_visit + config.num_simulations) * config.c_scale / config.q_scale
        score = np.where(np.isnan(q), -np.inf, naive.logits + unit * np.nan_to_num(q))
        np.testing.assert_allclose(planner.policy[b], softmax(score), rtol=1e-4, atol=1e-5)
        assert planner.value[b] == pytest.approx(q[score.argmax()], **{"rel": 1e-5, "abs": 1e-5})
        assert planner.action[b] == (score + planner.noise[b]).argmax()
        assert planner.network_rows[b] == len(naive.states)
        assert planner.depth[b] == max(state.depth for state in naive.states)
    assert np.nanstd(planner.q) > 0.01


@given(st.integers(0, 2**20), st.sampled_from([2, 7]), st.sampled_from([WORLDS[3], WORLDS[4]]))
@few
def test_a_batch_is_its_single_searches_to_the_bit_and_the_illegal_has_no_q(seed: int, B: int, world: World) -> None:
    agent = AGENTS[world]
    config = world.config(20)
    roots = [random_root(seed, b, world.sizes) for b in range(B)]
    together = searched(agent, world, config, roots, seed)
    for b, root in enumerate(roots):
        alone = searched(agent, world, config, [root], seed)
        for name in ("q", "policy", "value", "action", "network_rows", "depth"):
            assert getattr(together, name)[b].tobytes() == getattr(alone, name)[0].tobytes(), (name, b)
        legal = set(np.flatnonzero(~np.isnan(together.q[b])).tolist())
        flat = root.position[SIDE] == 0
        assert (0 in legal, world.actions - 1 in legal) == (True, not flat)
        assert together.depth[b] == together.market_tree.depth[b, : together.market_tree.num_nodes[b]].max()
        assert set(np.flatnonzero(together.policy[b]).tolist()) <= legal
        assert int(together.action[b]) in legal


AGENTS = {world: OnnxNetworks(world.graphs(*world.params()), world.shape_sizes) for world in (WORLDS[3], WORLDS[4])}


def path_graphs(world: World, path: list[int]) -> dict[str, bytes]:
    """A market that takes exactly the codes of `path`, and networks that value nothing: the latent counts the bars."""
    A, C = world.actions, world.C
    widths = graph_widths(NetworkShape(1, NUM_POSITION_FEATURES, D, A, C), world.config(1))
    root, market = np.zeros(widths["root"]), np.zeros(widths["market"])
    root[0, 0] = 1.0
    root[0, D + A + 1 + path[0]] = 200.0
    for d in range(len(path)):
        market[d, d + 1] = 1.0
        if d + 1 < len(path):
            market[d, D + path[d + 1]] = 200.0
    return {
        name: graph(*w.shape, [("MatMul", ["x64", "w"], "y64")], {"w": w})
        for name, w in (("root", root), ("market", market))
    }


def followed_bars(path: list[int], codes: ChanceCodes, t: int) -> Bars:
    """Bars up to t, then moves that are the centres of `path`: each opens at the last close, at the spread of t."""
    bars = Bars(*(column.copy() for column in BARS))
    scale, spread = move_scale_px(bars, t), bars.ask_close[t] - bars.close[t]
    for d, code in enumerate(path):
        i = t + 1 + d
        bars.time[i] = bars.time[i - 1] + H4 * 60 * SECOND_NS
        bars.open[i], bars.close[i] = bars.close[i - 1], bars.close[i - 1] + codes.centres[code] * scale
        bars.ask_open[i], bars.ask_close[i] = bars.open[i] + spread, bars.close[i] + spread
    return bars


@given(
    st.lists(st.integers(0, 4), min_size=MAX_MARKET_DEPTH, max_size=MAX_MARKET_DEPTH),
    st.sampled_from([*WORLDS, *ADJUSTING]),
)
@example([4, 4, 0, 4], ADJUSTING[0])
@settings(deadline=None, max_examples=8)
def test_rewards_of_the_tree_are_the_ledgers(path: list[int], world: World) -> None:
    """Q of a flat root is the best that any sequence of four actions earns in the ledger on that very series."""
    codes = CODES[5]._replace(mean_square=CODES[5].centres ** 2)  # a code stands for its centre alone
    t, config = FIRST_BAR + len(set(path)), world.config(MAX_MARKET_DEPTH, discount=0.9)
    bars, market = followed_bars(path, codes, t), world.market
    agent = OnnxNetworks(path_graphs(world, path), NetworkShape(1, NUM_POSITION_FEATURES, D, world.actions, 5))
    root = Root(np.ones(1, np.float32), np.zeros(NUM_POSITION_FIELDS, np.float32), t, 0)
    with patch("host.artifact.networks.layout_of", widths):
        planner = searched(agent, world, config, [root], bars=bars, codes=codes)
    assert planner.depth[0] == MAX_MARKET_DEPTH
    best, trade = np.full(world.actions, -np.inf), np.zeros(NUM_TRADE_FIELDS)

    def play(account: Any, depth: int, action: int) -> float:
        """The best discounted rewards that begin with `action`; NaN where it is illegal."""
        after = account.copy()
        reward = step(after, trade, bars, t + depth, action, market)
        if math.isnan(reward) or depth + 1 == MAX_MARKET_DEPTH:
            return reward
        return reward + 0.9 * float(np.nanmax([play(after, depth + 1, a) for a in actions]))

    actions = [
        0,
        1,
        world.actions // 2 - 1,
        world.actions // 2,
        world.actions - 2,
        world.actions - 1,
    ]  # with five sizes: the outer ones
    actions = sorted(set(actions))
    account = new_accounts(1)[0]
    for action in range(world.actions):
        best[action] = play(account, 0, action)
    assert (np.isnan(best) == np.isnan(planner.q[0])).all()
    np.testing.assert_allclose(planner.q[0], best, rtol=2e-5, atol=2e-5)


def test_amddp_of_no_weight_is_pnl_where_the_networks_see_the_side_alone() -> None:
    pnl, amddp = World(reverse=True, sizes=HALVES), World(k=1e-12, reverse=True, sizes=HALVES)
    flat, shape = pnl.params()
    as_views(flat, shape).prediction_hidden_w[D + 2 :] = 0
    roots = [random_root(9, b, HALVES) for b in range(3)]
    a, b = (searched(OnnxNetworks(w.graphs(flat, shape), w.shape_sizes), w, w.config(20), roots) for w in (pnl, amddp))
    np.testing.assert_allclose(a.q, b.q, atol=1e-5)
    np.testing.assert_allclose(a.policy, b.policy, atol=1e-4)
    assert (a.action == b.action).all()
    assert (a.network_rows == b.network_rows).all()


@pytest.mark.parametrize("k", [0.0, 0.05])
def test_the_order_of_the_codes_does_not_matter(k: float) -> None:
    world, order = World(k=k, seed=3), [3, 0, 4, 2, 1]
    flat, shape = world.params()
    roots = [random_root(4, b, world.sizes) for b in range(3)]
    plain = searched(OnnxNetworks(world.graphs(flat, shape), world.shape_sizes), world, world.config(20), roots)
    p = as_views(flat, shape)
    p.dynamics_hidden_w[D:] = p.dynamics_hidden_w[D:][order]
    p.chance_logits_w[:], p.chance_logits_b[:] = p.chance_logits_w[:, order], p.chance_logits_b[order]
    codes = ChanceCodes(CODES[5].edges, CODES[5].centres[order])
    agent = OnnxNetworks(world.graphs(flat, shape), world.shape_sizes)
    permuted = searched(agent, world, world.config(20), roots, codes=codes)
    np.testing.assert_allclose(permuted.q, plain.q, atol=1e-5)
    np.testing.assert_allclose(permuted.policy, plain.policy, atol=1e-4)
    for name in ("action", "network_rows", "depth"):
        assert (getattr(permuted, name) == getattr(plain, name)).all()


def test_expansions_cost_their_rows_and_end_at_the_horizon() -> None:
    world = World(C=2, k=0.05)
    agent = OnnxNetworks(world.graphs(*world.params()), world.shape_sizes)
    everything = sum(2**d for d in range(MAX_MARKET_DEPTH))
    found = list[Any]()
    for simulations in (1, 2, 9, 10, everything, 3 * everything):
        planner = searched(agent, world, world.config(simulations), [random_root(1, 2, world.sizes)])
        assert planner.network_rows[0] == 1 + 2 * min(simulations, everything)
        assert 1 <= planner.depth[0] <= MAX_MARKET_DEPTH
        found.append(planner.q[0])
    np.testing.assert_array_equal(found[-1], found[-2])
    assert planner.depth[0] == MAX_MARKET_DEPTH


@patch("host.artifact.networks.layout_of", widths)
def test_a_row_has_the_states_of_its_window_newest_first_and_zeros_before_the_root() -> None:
    """A network whose next state depends on three states: those of the finished tree follow from its paths."""
    world, window = WORLDS[0], 3
    sizes, rng = world.shape_sizes._replace(attention_window=window), np.random.default_rng(0)
    w = {name: rng.normal(0, 0.5, size) for name, size in graph_widths(sizes, world.config(60)).items()}
    steps = [("MatMul", ["x64", "w"], "z"), ("Tanh", ["z"], "y64")]
    agent = OnnxNetworks({name: graph(*w[name].shape, steps, {"w": w[name]}) for name in ("root", "market")}, sizes)
    planner = searched(agent, world, world.config(60), [random_root(1, b, (1.0,)) for b in range(2)])
    tree, deepest = planner.market_tree, 0
    assert tree is not None
    for b in range(2):
        for above in tree.expansion_order[b, : tree.num_expanded[b]]:
            path = [int(above)]
            while tree.parent[b, path[-1]] != NONE:
                path.append(int(tree.parent[b, path[-1]]))
            deepest = max(deepest, len(path))
            states = [*tree.state[b, path], *[np.zeros(D)] * window][:window]
            for code in range(world.C):
                row = np.concatenate([*states, np.eye(world.C)[code]])
                child = tree.first_child[b, above] + code
                expected = np.tanh(row @ w["market"])[:D]
                np.testing.assert_allclose(tree.state[b, child], expected, rtol=0, atol=1e-6)
    assert deepest > window
