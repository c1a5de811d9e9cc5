"""Widening against a tree of objects and dicts, and the properties that a search over sizes must have."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from host.artifact.onnx_check import layout_of
from kernels.market.position import (
    ACTIONS,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    SIDE,
    apply_fill,
    apply_move,
    position_features,
)
from kernels.ort import GraphLayout, OrtError, Session, check_status, evaluate
from kernels.rng import beta, gumbel, uniform
from kernels.search.config import WIDENING, SearchConfig, new_search_config
from kernels.search.gumbel import halving_table
from kernels.search.networks import Networks, NetworkShape, no_networks
from kernels.search.onnx_networks import row_buckets
from kernels.search.planner import Planner, new_planner, plan
from kernels.search.progressive_widening import (
    MIN_SIZE,
    NUM_BETA_PARAMS,
    SampledTree,
    draw_root_candidates,
    max_draws_table,
    new_sampled_tree,
    sampled_tree_bytes,
    set_rng_key,
)
from kernels.search.tree import CHANCE, DECISION, NONE
from models.export import export
from models.params import ModelShape, new_params
from tests.fixtures.graphs import graph, widths

F, D, C, P = 12, 8, 5, NUM_POSITION_FEATURES
SIZES = NetworkShape(F, P, D, 4, C)
few = settings(deadline=None, max_examples=6)


def random_graphs(seed: int) -> dict[str, bytes]:
    """Networks with opinions."""
    shape = ModelShape(features=F, latent=D, hidden=8, codes=C, num_beta_params=NUM_BETA_PARAMS)
    flat = new_params(shape, seed)
    return export(flat + np.random.default_rng(seed).normal(0, 0.3, flat.shape), shape, 0)


Opened = dict[str, tuple[Session, GraphLayout]]


def opened(graphs: dict[str, bytes], layout: Callable[[bytes], GraphLayout] = layout_of) -> Opened:
    return {name: (Session(graph), layout(graph)) for name, graph in graphs.items()}


def bound(sessions: Opened, B: int) -> Networks:
    rows = {"root": B, "afterstate": B, "dynamics": B * C}
    model = no_networks()._replace(
        **{name: sessions[name][0].bind(sessions[name][1], row_buckets(rows[name])) for name in rows}
    )
    if "code" in sessions:
        session, layout = sessions["code"]
        code = session.bind(layout, [C])
        code.x[:] = np.eye(C)
        check_status(evaluate(code, C))
        model = model._replace(code_preactivation=code.y)
    return model


SESSIONS = [opened(random_graphs(seed)) for seed in range(2)]


@dataclass
class Root:
    """One root: what the caller of a search knows of it."""

    number: int
    x: Any  # [F]
    position: Any  # [RAW]
    move: Any  # [C]
    entry_cost: float
    exit_cost: float
    financing: Any  # [depth, 2]


def random_root(seed: int, number: int) -> Root:
    """Flat, long or short by `number`; a part of a position with a history."""
    draw = np.random.default_rng([seed, number])
    position, side = np.zeros(NUM_POSITION_FIELDS, np.float32), number % 3 - 1
    if side:
        position[:] = [side * 0.4, 3 + number, 0.5, 0.2, 1.5, 2.0, side * 0.4, 0.1]
    x, move, financing = draw.normal(size=F), np.sort(draw.normal(size=C)), draw.normal(0, 0.1, (64, 2))
    return Root(number, x.astype(np.float32), position, move.astype(np.float32), 0.3, 0.1, financing)


def config_of(seed: int, simulations: int = 40) -> SearchConfig:
    return new_search_config(
        simulations, 6, c_scale=0.05, reverse=bool(seed % 2), algorithm=WIDENING, num_sampled_sizes=3
    )


def searched(config: SearchConfig, roots: list[Root], seed: int, sessions: Any = None) -> tuple[Planner, SampledTree]:
    """Roots searched in lockstep."""
    B = len(roots)
    model = bound(sessions or SESSIONS[seed % 2], B)
    wide = new_sampled_tree(config, B, C, D, model.code_preactivation.shape[1], coefficient=2.0, exponent=0.5)
    planner = new_planner(model, config, B, SIZES)._replace(sampled_tree=wide, noise=wide.tree.noise)
    for b, root in enumerate(roots):
        model.root.x[b, :F] = root.x
        position_features(model.root.x[b, F:], root.position, True)
        planner.position[b], planner.costs.move[b] = root.position, root.move
        planner.costs.entry_cost[b], planner.costs.exit_cost[b] = root.entry_cost, root.exit_cost
        planner.costs.financing[b] = root.financing[: config.num_simulations]
        planner.noise[b] = [gumbel(seed, root.number, e) for e in range(planner.noise.shape[1])]
        set_rng_key(wide, b, seed, root.number, 9)
    check_status(plan(planner))
    return planner, wide


@dataclass
class Spot:
    """A decision node: candidates by signed size, in the order in which they were first drawn."""

    number: int
    state: Any
    position: Any
    reward: float
    head: Any
    raw: Any
    depth: int = 0
    prior: dict[float, Any] = field(default_factory=dict)
    drawn: dict[float, int] = field(default_factory=dict)
    after: dict[float, "After"] = field(default_factory=dict)

    @property
    def side(self) -> float:
        return float(self.position[SIDE])

    def counts(self) -> dict[float, int]:
        return {size: self.after[size].visits if size in self.after else 0 for size in self.prior}

    @property
    def value(self) -> Any:
        total, visits = float(self.raw), 1
        for after in (self.after[size] for size in self.prior if size in self.after):
            total, visits = total + after.visits * float(after.value), visits + after.visits
        return np.float32(total / visits) if self.after else self.raw


@dataclass
class After:
    """A chance node with all its outcomes."""

    number: int
    state: Any
    position: Any
    prior: Any
    raw: Any
    next: list[Spot] = field(default_factory=list)
    visits: int = 0
    value: Any = 0.0


@njit
def exp32(x: Any) -> Any:
    """The exponential in single precision, as compiled code rounds it; Python has only the double one."""
    return math.exp(x)


class Naive:
    """The search of one root, from the words of the module and of Danihelka et al."""

    def __init__(self, config: SearchConfig, root: Root, seed: int, key: int, noise: Any) -> None:
        self.config, self.root, self.key, self.noise = config, root, key, noise
        self.model, self.limit = (bound(SESSIONS[seed % 2], 1), [math.ceil(2 * n**0.5 - 1e-9) for n in range(99)])
        self.table = halving_table(config.max_considered_actions, config.num_simulations)
        self.used = 1
        self.model.root.x[0] = np.concatenate([root.x, self.told(root.position)])
        y = self.ask(self.model.root)
        self.top = Spot(0, y[:D], root.position, 0.0, y[D : D + 8], y[D + 8])
        self.draw_top()

    def told(self, position: Any) -> Any:
        out = np.zeros(P, np.float32)
        position_features(out, position, True)
        return out

    def ask(self, net: Any) -> Any:
        check_status(evaluate(net, 1))
        return net.y[0].copy()

    def legal(self, side: float) -> list[str]:
        if side == 0:
            return ["HOLD", "BUY", "SELL"]
        turn = "SELL" if side > 0 else "BUY"
        return [
            k for k in ("HOLD", "BUY", "SELL", "CLOSE") if k in ("HOLD", "CLOSE", turn if self.config.reverse else "")
        ]

    def logit(self, spot: Spot, kind: str) -> Any:
        return spot.head[["HOLD", "BUY", "SELL", "CLOSE"].index(kind)]

    def size(self, spot: Spot, kind: str, draw: int) -> float:
        if kind in ("HOLD", "CLOSE"):
            return spot.side if kind == "HOLD" else 0.0
        a, b = (
            1.0 + max(z, 0.0) + math.log1p(math.exp(-abs(z)))
            for z in map(float, spot.head[4:6] if kind == "BUY" else spot.head[6:8])
        )
        size = max(beta(a, b, self.key, 2 * spot.number + 1, draw), MIN_SIZE)
        if (self.key, spot.number, draw) == (0, 0, 1):
            size = a / (a + b)
        return float(np.float32(size if kind == "BUY" else -size))

    def draw_top(self) -> None:
        for kind in self.legal(self.top.side):
            parts = 3 if kind in ("BUY", "SELL") else 1
            for part in range(parts):
                full = {"BUY": 1.0, "SELL": -1.0}.get(kind) if part == 0 else None
                size = self.size(self.top, kind, part) if full is None else full
                self.top.prior[size] = np.float32(float(self.logit(self.top, kind)) - math.log(parts))
                self.top.drawn[size] = 1

    def kind(self, spot: Spot, quantile: float) -> str:
        legal = self.legal(spot.side)
        highest = max(self.logit(spot, kind) for kind in legal)
        weights = [float(exp32(self.logit(spot, kind) - highest)) for kind in legal]
        left = quantile * sum(weights)
        for kind, weight in zip(legal, weights, strict=True):
            left -= weight
            if left < 0:
                return kind
        return legal[-1]

    def widen(self, spot: Spot) -> None:
        visits = 1 + sum(spot.counts().values())
        while sum(spot.drawn.values()) < self.limit[visits]:
            draw = sum(spot.drawn.values())
            size = self.size(spot, self.kind(spot, uniform(self.key, 2 * spot.number, draw)), draw)
            spot.drawn[size] = spot.drawn.get(size, 0) + 1
            spot.prior[size] = np.float32(math.log(spot.drawn[size]))

    def improved(self, spot: Spot) -> tuple[dict[float, float], dict[float, float]]:
        """(sigma(completed Q), improved policy) by candidate."""
        highest = max(spot.prior.values())
        weights = {size: exp32(prior - highest) for size, prior in spot.prior.items()}
        total = sum(float(weight) for weight in weights.values())
        counts, mass, weighted = spot.counts(), 0.0, 0.0
        q = {size: float(after.value) for size, after in spot.after.items()}
        for size in (size for size in spot.prior if size in q):
            mass += float(weights[size]) / total
            weighted += float(weights[size]) / total * q[size]
        visits = sum(counts.values())
        mixed = (float(spot.raw) + visits * weighted / mass) / (1 + visits) if visits else float(spot.raw)
        unit = (self.config.c_visit + max(counts.values())) * self.config.c_scale / self.config.q_scale
        scaled = {size: q.get(size, mixed) * unit for size in spot.prior}
        score = {size: scaled[size] + float(spot.prior[size]) for size in spot.prior}
        exps = {size: math.exp(s - max(score.values())) for size, s in score.items()}
        return scaled, {size: e / sum(exps.values()) for size, e in exps.items()}

    def considered(self, visit: int) -> float:
        """Candidate of the root with so many visits and the best noise + logit + sigma(Q)."""
        scaled, _ = self.improved(self.top)
        highest, best, best_score = max(self.top.prior.values()), math.nan, -math.inf
        for e, (size, prior) in enumerate(self.top.prior.items()):
            score = max(float(self.noise[e] + (prior - highest)) + scaled[size], -1e9)
            if self.top.counts()[size] == visit and score > best_score:
                best, best_score = size, score
        return best

    def simulate(self, simulation: int) -> None:
        m = min(self.config.max_considered_actions, len(self.top.prior))
        spot, path = self.top, list[After]()
        size = self.considered(self.table[m, simulation])
        while size in spot.after:
            path.append(spot.after[size])
            ratio = [
                float(p) / (1 + sum(spot.after[size].next[c].counts().values()))
                for c, p in enumerate(spot.after[size].prior)
            ]
            spot = spot.after[size].next[int(np.argmax(ratio))]
            self.widen(spot)
            _, policy = self.improved(spot)
            counts = spot.counts()
            score = {s: policy[s] - counts[s] / (1.0 + sum(counts.values())) for s in spot.prior}
            size = max(score, key=lambda s: score[s])
        spot.after[size] = self.expand(spot, size)
        for after in reversed([*path, spot.after[size]]):
            after.visits += 1
            total = 0.0
            for p, spot in zip(after.prior, after.next, strict=True):
                total += float(p) * (float(spot.reward) + self.config.discount * float(spot.value))
            after.value = np.float32(total)

    def reward(self, depth: int, side: float, size: float, code: int) -> float:
        """The profit of a bar with `size`, and what it cost to come to it."""
        fill = 0.0 if size == side else self.root.exit_cost * abs(side) + self.root.entry_cost * abs(size)
        carry = abs(size) * float(self.root.financing[depth][0 if size > 0 else 1])
        return size * float(self.root.move[code]) + carry - fill

    def expand(self, spot: Spot, size: float) -> After:
        position = np.zeros(NUM_POSITION_FIELDS, np.float32)
        apply_fill(position, spot.position, np.float32(size), np.float32(self.root.entry_cost))
        kind = 0 if size == spot.side else 1 if size > 0 else 2 if size < 0 else 3
        self.model.afterstate.x[0] = np.concatenate([spot.state, np.eye(4)[kind], self.told(position)])
        y, T = self.ask(self.model.afterstate), self.model.code_preactivation.shape[1]
        preactivation, logits = y[D : D + T], y[D + T : D + T + C]
        weights = [exp32(z - max(logits)) for z in logits]
        total = sum(float(weight) for weight in weights)
        after = After(self.used, y[:D], position, [np.float32(float(w) / total) for w in weights], y[-1])
        for c in range(C):
            moved = np.zeros(NUM_POSITION_FIELDS, np.float32)
            apply_move(moved, position, self.root.move[c])
            told = self.told(position), self.told(moved)
            self.model.dynamics.x[0] = np.concatenate(
                [after.state, preactivation + self.model.code_preactivation[c], *told]
            )
            y = self.ask(self.model.dynamics)
            number, reward = after.number + 1 + c, self.reward(spot.depth, spot.side, size, c)
            after.next.append(Spot(number, y[:D], moved, reward, y[D + 1 : D + 9], y[D + 9], spot.depth + 1))
        self.used += 1 + C
        return after


def children(wide: SampledTree, b: int, node: int) -> dict[int, int]:
    """Child by edge."""
    return {e: int(c) for e, c in enumerate(wide.tree.child[b, node]) if c != NONE}


def compare(wide: SampledTree, b: int, spot: Spot) -> int:
    """Tree b below a decision node is the naive one, values but for rounding; how many nodes were compared."""
    tree, node, seen = wide.tree, spot.number, 1
    count = len(spot.prior)
    assert wide.candidate_size[b, node, :count].tolist() == list(spot.prior)
    assert wide.draw_count[b, node].tolist() == [*spot.drawn.values()] + [0] * (wide.draw_count.shape[2] - count)
    assert tree.prior[b, node, :count].tolist() == [float(p) for p in spot.prior.values()]
    assert tree.value[b, node] == pytest.approx(spot.value, rel=1e-5, abs=1e-6)
    assert [list(spot.prior)[e] for e in children(wide, b, node)] == [s for s in spot.prior if s in spot.after]
    for e, child in children(wide, b, node).items():
        after = spot.after[list(spot.prior)[e]]
        assert (child, tree.visits[b, child]) == (after.number, after.visits)
        assert tree.value[b, child] == pytest.approx(after.value, rel=1e-5, abs=1e-6)
        assert tree.raw_value[b, child] == after.raw
        assert (tree.position[b, child] == after.position).all()
        seen += 1 + sum(compare(wide, b, following) for following in after.next)
    return seen


@few
@given(st.integers(0, 2**20))
def test_the_tree_is_the_naive_one(seed: int) -> None:
    config = config_of(seed)
    roots = [random_root(seed, b) for b in range(3)]
    planner, wide = searched(config, roots, seed)
    for b, root in enumerate(roots):
        naive = Naive(config, root, seed, int(wide.rng_key[b]), planner.noise[b])
        for simulation in range(config.num_simulations):
            naive.simulate(simulation)
        seen = compare(wide, b, naive.top)
        assert seen == wide.tree.num_nodes[b] == planner.network_rows[b] == 1 + config.num_simulations * (1 + C)
        counts = naive.top.counts()
        best = naive.considered(max(counts.values()))
        assert wide.target[b] == best
        policy = naive.improved(naive.top)[1]
        np.testing.assert_allclose(wide.policy[b, : len(policy)], list(policy.values()), rtol=2e-4)
        check_kinds(planner, wide, b, naive.top, policy)
        assert planner.value[b] == pytest.approx(
            naive.improved(naive.top)[0][max(policy, key=lambda s: policy[s])]
            * config.q_scale
            / (config.c_scale * (config.c_visit + max(counts.values()))),
            rel=1e-5,
            abs=1e-6,
        )


def check_kinds(planner: Planner, wide: SampledTree, b: int, top: Spot, policy: dict[float, float]) -> None:
    """Decision, policy and Q of a planner are those of the candidates, told by the kind of action."""
    kinds = {size: kind_between(top.side, size) for size in policy}
    assert ACTIONS[planner.action[b]] == kinds[float(wide.target[b])]
    for kind, name in enumerate(ACTIONS):
        mine = [size for size in policy if kinds[size] == name]
        assert planner.policy[b, kind] == pytest.approx(sum(policy[size] for size in mine), rel=2e-4)
        q = [float(top.after[size].value) for size in mine if size in top.after]
        assert planner.q[b, kind] == pytest.approx(max(q, default=math.nan), rel=1e-5, abs=1e-6, nan_ok=True)


def kind_between(side: float, target: float) -> str:
    if target == side:
        return "HOLD"
    return "CLOSE" if target == 0 else "BUY" if target > 0 else "SELL"


def nodes(wide: SampledTree, b: int, kind: int) -> Iterator[int]:
    return (n for n in range(wide.tree.num_nodes[b]) if wide.tree.kind[b, n] == kind)


@few
@given(st.integers(0, 2**20))
def test_children_are_bounded_legal_and_never_resized(seed: int) -> None:
    config = config_of(seed, 60)
    _, wide = searched(config, [random_root(seed, b) for b in range(6)], seed)
    tree, widest, entries = wide.tree, 0, 0
    for b in range(6):
        for node in nodes(wide, b, DECISION):
            side, below = tree.position[b, node, SIDE], children(wide, b, node)
            drawn = int(wide.draw_count[b, node].sum())
            visits = 1 + sum(int(tree.visits[b, child]) for child in below.values())
            if node > 0:
                assert drawn <= wide.max_draws[visits - 1 if below else 0], "widened before the visit was counted"
                assert len(below) <= math.ceil(2 * visits**0.5)
                widest = max(widest, len(below))
            for e, child in below.items():
                size = wide.candidate_size[b, node, e]
                assert wide.draw_count[b, node, e] > 0
                assert tree.position[b, child, SIDE] == size
                if size == side:
                    continue
                entries += abs(size) not in (0, 1)
                assert MIN_SIZE <= abs(size) <= 1 or size == 0
                assert side == 0 or size == 0 or (config.reverse and size * side < 0)
    assert widest >= 3
    assert entries > 20


@few
@given(st.integers(0, 2**20))
def test_visits_are_conserved(seed: int) -> None:
    planner, wide = searched(config_of(seed), [random_root(seed, b) for b in range(3)], seed)
    tree = wide.tree
    for b in range(3):
        assert tree.visits[b, 0] == 41
        for kind, own in ((DECISION, 0), (CHANCE, 1)):
            for node in nodes(wide, b, kind):
                passed = sum(int(tree.visits[b, child]) for child in children(wide, b, node).values())
                assert tree.visits[b, node] == passed + (1 if node == 0 else own)
                assert kind == DECISION or len(children(wide, b, node)) == C
        assert np.isfinite(tree.value[b]).all()
        assert planner.policy[b].sum() == pytest.approx(1)


@few
@given(st.integers(0, 2**20), st.sampled_from([2, 7]))
def test_a_batch_of_roots_is_its_single_searches_to_the_bit(seed: int, B: int) -> None:
    roots = [random_root(seed, b) for b in range(B)]
    together = searched(config_of(seed), roots, seed)
    for b, root in enumerate(roots):
        alone = searched(config_of(seed), [root], seed)
        for one, other in zip((*together[1].tree, *together[1][1:4]), (*alone[1].tree, *alone[1][1:4]), strict=True):
            assert one[b].tobytes() == other[0].tobytes()
        assert together[1].target[b] == alone[1].target[0]


def test_sizes_are_keyed_by_seed_stream_and_step() -> None:
    config, root = config_of(0), random_root(0, 1)
    sizes = [searched(config, [root], seed, SESSIONS[0])[1].candidate_size for seed in (0, 2, 0)]
    assert (sizes[0] == sizes[2]).all()
    drawn = [2, 3, 5, 6]
    assert (sizes[0][0, 0, [1, 4]] == [1, -1]).all()
    assert (sizes[0][0, 0, drawn] != sizes[1][0, 0, drawn]).all()
    assert len(set(np.abs(sizes[0][0, 0, drawn]).tolist())) == 4


def test_the_root_draws_from_the_policy() -> None:
    """The first of Gumbel-top-k has the kind and the size that the head says; one size in three is the full one."""
    config, root = (
        new_search_config(num_simulations=1, max_considered_actions=1, algorithm=WIDENING, num_sampled_sizes=3),
        random_root(5, 1),
    )
    roots = [replace(root, number=number) for number in range(1500)]
    _, wide = searched(config, roots, 0)
    taken = wide.target.astype(float)
    head = wide.policy_head[0, 0].astype(float)
    policy = np.exp(head[:3]) / np.exp(head[:3]).sum()
    assert policy.min() > 0.02
    a, b = 1 + np.log1p(np.exp(head[4::2])), 1 + np.log1p(np.exp(head[5::2]))
    for kind, chosen in enumerate((taken == 0, taken > 0, taken < 0)):
        assert abs(chosen.mean() - policy[kind]) < 4 * np.sqrt(policy[kind] / 1500)
        if kind:
            total = a[kind - 1] + b[kind - 1]
            drawn = a[kind - 1] / total
            square = drawn**2 + drawn * (1 - drawn) / (total + 1)
            mean, square = (2 * drawn + 1) / 3, (2 * square + 1) / 3
            error = np.sqrt((square - mean**2) / chosen.sum())
            assert abs(np.abs(taken[chosen]).mean() - mean) < 4 * error


def parabola(best: float) -> Opened:
    """A market that pays 2 best s - s^2 for a bar with the signed size s, and nothing is known beyond."""
    after = graph(
        D + 4 + P,
        D + C + 1,
        [("MatMul", ["x64", "all"], "y64")],
        {"all": np.eye(D + 4 + P, D + C + 1) * (np.arange(D + C + 1) < D)},
    )
    take = np.zeros((D + C + 2 * P, 1))
    take[D + C] = 1  # the first feature of the position after the action is its signed size
    steps = [
        ("MatMul", ["x64", "take"], "s"),
        ("Mul", ["s", "s"], "s2"),
        ("Mul", ["s", "slope"], "linear"),
        ("Sub", ["linear", "s2"], "reward"),
        ("MatMul", ["x64", "nothing"], "zero"),
        ("MatMul", ["x64", "state"], "kept"),
        ("Concat", ["kept", "reward", "zero"], "y64"),
    ]
    weights = {
        "take": take,
        "slope": [[2 * best]],
        "nothing": np.zeros((D + C + 2 * P, 9)),
        "state": np.eye(D + C + 2 * P, D),
    }
    root = graph(F + P, D + 9 + C, [("MatMul", ["x64", "w"], "y64")], {"w": np.zeros((F + P, D + 9 + C))})
    dynamics = graph(D + C + 2 * P, D + 10, steps, weights)
    return opened({"root": root, "afterstate": after, "dynamics": dynamics}, widths)


@pytest.mark.parametrize("best", [0.6, -0.3, 0.0])
def test_the_size_that_pays_most_wins(best: float) -> None:
    """All candidates considered, nothing beyond the next bar, Q far above the noise: the size nearest to the best."""
    config = new_search_config(64, 17, 0.0, c_scale=1e4, algorithm=WIDENING, num_sampled_sizes=8, exact_rewards=False)
    root = random_root(0, 1)
    root.entry_cost = 0.0
    planner, wide = searched(config, [root] * 8, 0, parabola(best))
    for b in range(8):
        sizes = wide.candidate_size[b, 0, :17]
        assert (sizes[1:9] == -sizes[9:]).all()  # one head, one draw
        size = float(wide.target[b])
        assert size == sizes[np.abs(sizes - best).argmin()]
        assert planner.value[b] == pytest.approx(2 * best * size - size**2)


def test_an_agent_that_acts_tries_the_mean_of_its_head() -> None:
    """A head of zeros is symmetric: its mean is a half, whatever the draws of a training were."""
    config = new_search_config(5, 5, algorithm=WIDENING, num_sampled_sizes=2, exact_rewards=False)
    _, wide = searched(config, [random_root(0, 1)], 3, parabola(0.6))
    assert wide.candidate_size[0, 0, 2] != 0.5
    wide.rng_key[:] = 0
    draw_root_candidates(wide, config, 0)
    assert wide.candidate_size[0, 0, :5].tolist() == [0.0, 1.0, 0.5, -1.0, -0.5]


def test_limits_are_the_published_table() -> None:
    at = [1, 2, 4, 8, 16, 32, 64]
    for (coefficient, exponent), row in {
        (1, 0.5): [1, 2, 2, 3, 4, 6, 8],
        (2, 0.5): [2, 3, 4, 6, 8, 12, 16],
        (2, 0.35): [2, 3, 4, 5, 6, 7, 9],
        (4, 0.25): [4, 5, 6, 7, 8, 10, 12],
        (1, 1 / 3): [1, 2, 2, 2, 3, 4, 4],
    }.items():
        assert max_draws_table(coefficient, exponent, 64)[at].tolist() == row


def test_memory_is_bounded_by_what_a_search_is_told() -> None:
    config = new_search_config(num_simulations=16)
    one, many = (new_sampled_tree(config, B, C, D, 48) for B in (1, 5))
    assert sampled_tree_bytes(one) == sampled_tree_bytes(many)
    arrays = (*many.tree, *(array for array in many[1:] if array is not many.max_draws))
    assert 5 * sampled_tree_bytes(many) == sum(array.nbytes for array in arrays)
    assert many.draw_count.shape == (5, 1 + 16 * (1 + C), 6)  # ceil(2 17^0.35)
    wider = new_sampled_tree(config, 1, C, D, 48, coefficient=4.0, exponent=0.5)
    assert wider.draw_count.shape[2] == max_draws_table(4.0, 0.5, 17)[-1] == 17


@pytest.mark.parametrize("wrong", [{"num_sampled_sizes": 0}, {"coefficient": 0.5}, {"exponent": 1.5}])
def test_impossible_widening_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="full width"):
        new_sampled_tree(new_search_config(num_sampled_sizes=wrong.pop("num_sampled_sizes", 4)), 1, C, D, 0, **wrong)


@pytest.mark.parametrize("name", ["root", "afterstate", "dynamics"])
def test_a_failing_network_call_is_an_error(name: str) -> None:
    model = bound(SESSIONS[0], 1)
    net = getattr(model, name)
    session, layout = SESSIONS[0][name]
    broken = session.bind(layout._replace(width_in=layout.width_in + 1), row_buckets(len(net.x)))
    planner = new_planner(model, new_search_config(algorithm=WIDENING), 1, SIZES)
    planner = planner._replace(networks=model._replace(**{name: broken}))
    with pytest.raises(OrtError, match="invalid dimensions"):
        check_status(plan(planner))
