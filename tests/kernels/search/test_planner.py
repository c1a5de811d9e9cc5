"""The full-width search over forex roots with random networks: every claim is checked by walking the finished trees."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.artifact.networks import OnnxNetworks, hypothesis_positions
from host.artifact.onnx_check import layout_of
from kernels.market.bars import Bars
from kernels.market.chance import move_scale_px
from kernels.market.position import (
    ACTIONS,
    FULL_SIZE_ONLY,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    SIDE,
    action_target,
    apply_fill,
    apply_move,
    position_features,
)
from kernels.ort import OrtError, Session, check_status
from kernels.rng import gamma, gumbel
from kernels.search.config import PUCT, SearchConfig, new_search_config
from kernels.search.networks import NetworkShape, graph_widths
from kernels.search.onnx_networks import row_buckets
from kernels.search.planner import Planner, draw_noise, plan, set_root
from kernels.search.tree import CHANCE, DECISION, MIN_LEGAL_LOGIT, NONE, Tree
from models.export import export
from models.params import new_params
from tests.fixtures.graphs import Naive, graph, widths
from tests.fixtures.roots import BARS, CODES, FIRST_BAR, MARKETS, SHAPE, A, C, D, Root, random_root
from tests.oracles.naive import naive_move

SIZES = NetworkShape(SHAPE.features, NUM_POSITION_FEATURES, D, A, C)
few = settings(deadline=None, max_examples=8)


def random_graphs(seed: int, afterstates: bool = True) -> dict[str, bytes]:
    """Networks whose heads have an opinion: freshly initialised ones hardly do."""
    draw = np.random.default_rng(seed)
    flat = new_params(SHAPE, seed) + draw.normal(0, 0.3, new_params(SHAPE, 0).shape)
    return export(flat, SHAPE, *hypothesis_positions(SIZES, new_search_config()), afterstates)


AGENTS = [OnnxNetworks(random_graphs(seed), SIZES) for seed in range(2)]


def searched(
    agent: OnnxNetworks, config: SearchConfig, roots: list[Root], seed: int = 0, noise: Any = None, bars: Bars = BARS
) -> Planner:
    """A planner that has searched `roots` in lockstep."""
    planner = agent.planner(len(roots), config)
    for b, root in enumerate(roots):
        market = MARKETS[config.reverse]
        set_root(planner, b, root.features, root.position, bars, root.t, CODES, market)
        draw_noise(planner, b, seed, root.number, 3)
    if noise is not None:
        planner.noise[:] = noise
    check_status(plan(planner))
    return planner


def random_planner(seed: int, B: int = 6, simulations: int = 24, reverse: bool | None = None) -> Planner:
    reverse = bool(seed % 2) if reverse is None else reverse
    config = new_search_config(
        num_simulations=simulations, max_considered_actions=3, c_scale=0.3, reverse=reverse, mae_penalty=0.01
    )
    return searched(AGENTS[seed % 2], config, [random_root(seed, b, reverse) for b in range(B)], seed)


def children(tree: Tree, b: int, node: int) -> dict[int, int]:
    """Child node by edge."""
    edges = tree.child[b, node, : (A if tree.kind[b, node] == DECISION else C)]
    return {edge: int(child) for edge, child in enumerate(edges) if child != NONE}


def nodes(tree: Tree, b: int, kind: int) -> list[int]:
    return [n for n in range(tree.num_nodes[b]) if tree.kind[b, n] == kind]


def path(tree: Tree, b: int, node: int) -> list[int]:
    """Edges from the root to a node: action, code, action, ..."""
    edges = list[int]()
    while tree.parent[b, node] != NONE:
        edges.append(int(tree.edge[b, node]))
        node = tree.parent[b, node]
    return edges[::-1]


def legal_names(side: float, reverse: bool) -> set[str]:
    if side == 0:
        return {"HOLD", "BUY", "SELL"}
    return {"HOLD", "CLOSE", *([("SELL" if side > 0 else "BUY")] if reverse else [])}


def outcome(planner: Planner, b: int) -> list[bytes]:
    """Everything search b has left, to the bit."""
    used = planner.tree.num_nodes[b]
    parts = [
        array[b, :used] if array.ndim > 1 and name not in ("noise", "score") else array[b]
        for name, array in planner.tree._asdict().items()
    ]
    return [np.ascontiguousarray(p).tobytes() for p in (*parts, planner.action[b], planner.policy[b], planner.value[b])]


@given(st.integers(0, 2**20), st.sampled_from([2, 5, 9]))
@few
def test_a_batch_of_roots_is_its_single_searches_to_the_bit(seed: int, B: int) -> None:
    together = random_planner(seed, B)
    for b in range(B):
        alone = searched(AGENTS[seed % 2], together.config, [random_root(seed, b, together.config.reverse)], seed)
        assert outcome(together, b) == outcome(alone, 0), f"root {b}"


@given(st.integers(0, 2**20))
@few
def test_illegal_actions_are_never_visited_at_any_depth(seed: int) -> None:
    planner = random_planner(seed)
    tree = planner.tree
    for b in range(6):
        depth = 0
        for node in nodes(tree, b, DECISION):
            legal = legal_names(tree.position[b, node, SIDE], planner.config.reverse)
            assert {ACTIONS[a] for a in range(A) if tree.prior[b, node, a] > MIN_LEGAL_LOGIT} == legal
            assert {ACTIONS[a] for a in children(tree, b, node)} <= legal
            depth = max(depth, len(path(tree, b, node)))
        assert depth >= 4
        root_legal = legal_names(tree.position[b, 0, SIDE], planner.config.reverse)
        assert ACTIONS[planner.action[b]] in root_legal
        assert planner.policy[b].sum() == pytest.approx(1, abs=1e-12)
        for a in range(A):
            assert (planner.policy[b, a] > 0) == (ACTIONS[a] in root_legal)


@given(st.integers(0, 2**20), st.sampled_from([1, 7, 24]))
@few
def test_visits_are_conserved(seed: int, simulations: int) -> None:
    tree = random_planner(seed, simulations=simulations).tree
    for b in range(6):
        assert tree.num_nodes[b] == 1 + simulations * (1 + C)
        assert tree.visits[b, 0] == 1 + simulations
        for node in range(tree.num_nodes[b]):
            passed = sum(int(tree.visits[b, child]) for child in children(tree, b, node).values())
            ended = 1 if node == 0 or tree.kind[b, node] == CHANCE else 0
            assert tree.visits[b, node] == passed + ended
            if tree.kind[b, node] == CHANCE:
                assert len(children(tree, b, node)) == C


def naive_value(tree: Tree, b: int, node: int, discount: float) -> float:
    """Expectation over codes at a chance node; at a decision node the mean of its own value and those it visited."""
    below = {edge: (child, naive_value(tree, b, child, discount)) for edge, child in children(tree, b, node).items()}
    if tree.kind[b, node] == CHANCE:
        prior = tree.prior[b, node].astype(float)
        return sum(prior[c] * (float(tree.reward[b, n]) + discount * v) for c, (n, v) in below.items())
    counts = [1, *(int(tree.visits[b, n]) for n, _ in below.values())]
    values = [float(tree.raw_value[b, node]), *(v for _, v in below.values())]
    return float(np.average(values, weights=counts))


@given(st.integers(0, 2**20))
@few
def test_the_expectation_backup_is_a_plain_recursion_over_the_tree(seed: int) -> None:
    planner = random_planner(seed)
    for b in range(6):
        for node in range(planner.tree.num_nodes[b]):
            expected = naive_value(planner.tree, b, node, planner.config.discount)
            assert planner.tree.value[b, node] == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert np.ptp(planner.tree.value[b, : planner.tree.num_nodes[b]]) > 0.1


@given(st.integers(0, 2**20))
@few
def test_policy_and_value_of_the_root_are_the_formula(seed: int) -> None:
    """softmax(logits + (c_visit + max N) c_scale Q / S), unvisited actions at the mixed value; Danihelka et al., 3."""
    planner = random_planner(seed)
    tree, config = planner.tree, planner.config
    for b in range(6):
        logits = tree.prior[b, 0, :A].astype(float)
        prior = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        visited = children(tree, b, 0)
        q = {a: float(tree.value[b, node]) for a, node in visited.items()}
        counts = [int(tree.visits[b, node]) for node in visited.values()]
        mean = sum(prior[a] * q[a] for a in q) / sum(prior[a] for a in q)
        mixed = (float(tree.raw_value[b, 0]) + sum(counts) * mean) / (1 + sum(counts))
        completed = np.array([q.get(a, mixed) for a in range(A)])
        score = logits + (config.c_visit + max(counts)) * config.c_scale * completed / config.q_scale
        policy = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
        np.testing.assert_allclose(planner.policy[b], policy, rtol=1e-5, atol=1e-9)
        assert planner.value[b] == pytest.approx(completed[policy.argmax()], rel=1e-6)
        most = [a for a, node in visited.items() if tree.visits[b, node] == max(counts)]
        assert planner.action[b] == max(most, key=lambda a: score[a] + tree.noise[b, a])


@given(st.integers(0, 2**20))
@few
def test_positions_in_the_tree_follow_from_the_actions_and_codes_on_the_path(seed: int) -> None:
    planner = random_planner(seed)
    tree, market = planner.tree, MARKETS[planner.config.reverse]
    for b in range(6):
        t = FIRST_BAR + b
        cost = (BARS.ask_close[t] - BARS.close[t] + market.slippage_px + market.commission_px) / market.range_px
        assert planner.costs.entry_cost[b] == pytest.approx(cost, rel=1e-6)
        move = CODES.centres * move_scale_px(BARS, t) / market.range_px
        for node in range(tree.num_nodes[b]):
            position = random_root(seed, b, planner.config.reverse).position
            expected = position.astype(float)
            for i, edge in enumerate(path(tree, b, node)):
                out = np.zeros(NUM_POSITION_FIELDS, np.float32)
                if i % 2 == 0:
                    apply_fill(
                        out, position, action_target(position[SIDE], edge, FULL_SIZE_ONLY), planner.costs.entry_cost[b]
                    )
                    expected = out.astype(float)
                else:
                    apply_move(out, position, planner.costs.move[b, edge])
                    expected = naive_move(position.astype(float), move[edge])
                position = out
            assert (tree.position[b, node] == position).all()
            np.testing.assert_allclose(position, expected, rtol=1e-5, atol=1e-5)


def told(tree: Tree, b: int, node: int) -> Any:
    out = np.zeros(NUM_POSITION_FEATURES, np.float32)
    position_features(out, tree.position[b, node], False)
    return out


def network_row(tree: Tree, b: int, node: int) -> Any:
    """Input of the network that made a node, from the table `NETWORKS`."""
    parent, edge = tree.parent[b, node], tree.edge[b, node]
    state = tree.state[b, parent]
    if tree.kind[b, node] == CHANCE:
        return np.concatenate([state, np.eye(A, dtype=np.float32)[edge], told(tree, b, node)])
    hot = np.eye(C, dtype=np.float32)[edge]
    return np.concatenate([state, hot, told(tree, b, parent), told(tree, b, node)])


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_every_node_is_what_the_networks_say_of_its_path() -> None:
    # `dynamics` as a deterministic search has it: it is told of a code, and nothing has been prepared for it
    graphs = {"afterstate": random_graphs(1)["afterstate"], "dynamics": random_graphs(1, False)["dynamics"]}
    planner = random_planner(1)
    tree = planner.tree
    for kind, name in ((CHANCE, "afterstate"), (DECISION, "dynamics")):
        at = [(b, n) for b in range(6) for n in nodes(tree, b, kind) if n > 0]
        x = np.stack([network_row(tree, b, n) for b, n in at])
        y = Naive(graphs[name])(x)
        b, n = np.array(at).T
        close = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(tree.state[b, n], y[:, :D], **close)
        np.testing.assert_allclose(tree.raw_value[b, n], y[:, -1], **close)
        if kind == CHANCE:
            np.testing.assert_allclose(tree.prior[b, n, :C], softmax(y[:, -1 - C : -1]), **close)
            rows = [tree.dynamics_preactivation[b, tree.preactivation_row[b, n]] for b, n in at]
            np.testing.assert_allclose(rows, y[:, D : -1 - C], **close)
            assert (tree.preactivation_rows < tree.kind.sum(axis=1)).all()  # siblings that took it over
        else:
            np.testing.assert_allclose(tree.reward[b, n], y[:, D], **close)
            legal = tree.prior[b, n, :A] > MIN_LEGAL_LOGIT
            np.testing.assert_allclose(tree.prior[b, n, :A][legal], y[:, D + 1 : D + 1 + A][legal], **close)
            assert (tree.prior[b, n, :A][~legal] < -1e29).all()


def test_noise_belongs_to_its_root_and_decides_what_is_considered() -> None:
    """Rows of noise permuted: each search becomes the one that had that noise."""
    config = new_search_config(num_simulations=8, max_considered_actions=2)
    roots = [random_root(3, 1, False)] * 4  # flat, all the same
    noise = np.random.default_rng(0).gumbel(size=(4, A)).astype(np.float32)
    noise[0] = [0, 50, 40, 99]  # BUY, then SELL; CLOSE is illegal whatever its noise
    noise[1] = [50, 0, 40, 99]
    order = [2, 0, 3, 1]
    planner = searched(AGENTS[0], config, roots, noise=noise)
    permuted = searched(AGENTS[0], config, roots, noise=noise[order])
    for b in range(4):
        assert outcome(permuted, b) == outcome(planner, order[b])
    assert set(children(planner.tree, 0, 0)) == {1, 2}
    assert set(children(planner.tree, 1, 0)) == {0, 2}
    single = searched(AGENTS[0], config._replace(max_considered_actions=1), roots, noise=noise)
    assert single.action[:2].tolist() == [1, 0]


def test_noise_is_keyed_by_seed_stream_and_step() -> None:
    planner = AGENTS[0].planner(2, new_search_config(num_simulations=2))
    draw_noise(planner, 1, 5, 6, 7)
    expected = [np.float32(gumbel(5, 6, 7 * A + a)) for a in range(A)]
    assert planner.noise[1].tolist() == expected
    assert not planner.noise[0].any()


def test_puct_decides_by_visits_with_gammas_for_noise() -> None:
    config = new_search_config(num_simulations=24, algorithm=PUCT, reverse=True, mae_penalty=0.01)
    roots = [random_root(5, b, True) for b in range(6)]
    planner = searched(AGENTS[0], config, roots, seed=2)
    for b in range(6):
        draws = [np.float32(gamma(config.dirichlet_alpha, 2, b, 3 * A + a)) for a in range(A)]
        assert planner.noise[b].tolist() == draws
        below = children(planner.tree, b, 0)
        visits = [int(planner.tree.visits[b, below[a]]) if a in below else 0 for a in range(A)]
        assert planner.policy[b].tolist() == [count / 24 for count in visits]
        assert planner.action[b] == np.argmax(visits)
        legal = legal_names(planner.tree.position[b, 0, SIDE], True)
        assert {ACTIONS[a] for a in below} <= legal
    quiet = [
        searched(AGENTS[0], config._replace(dirichlet_fraction=fraction), roots, noise=noise)
        for fraction, noise in ((0.25, 0.0), (0.0, 0.0))
    ]
    for b in range(6):
        assert outcome(quiet[0], b) == outcome(quiet[1], b)
    assert any(outcome(quiet[0], b) != outcome(planner, b) for b in range(6))


def test_bars_after_t_change_no_decision_at_t() -> None:
    """The move, and so the chance code, of t + 1 is not known to a search at t."""
    config = new_search_config(num_simulations=24)
    roots = [random_root(4, b, False)._replace(t=FIRST_BAR) for b in range(6)]
    reversed_moves = Bars(*(np.concatenate([c[: FIRST_BAR + 1], c[:FIRST_BAR:-1]]) for c in BARS))
    reversed_moves.close[FIRST_BAR + 1 :] *= 1.5
    here = searched(AGENTS[0], config, roots)
    there = searched(AGENTS[0], config, roots, bars=reversed_moves)
    assert all(outcome(here, b) == outcome(there, b) for b in range(6))
    reversed_moves.close[FIRST_BAR] *= 1.01
    moved = searched(AGENTS[0], config, roots, bars=reversed_moves)
    assert any(outcome(here, b) != outcome(moved, b) for b in range(6))


def test_a_search_without_afterstates_wants_networks_without() -> None:
    config = new_search_config(stochastic=False)
    with pytest.raises(ValueError, match="one without wants none"):
        AGENTS[0].planner(1, config)
    shape = SHAPE._replace(codes=A)  # an action has the place of a code
    graphs = export(new_params(shape, 0), shape, 0, None, False)
    without = OnnxNetworks(graphs, SIZES._replace(codes=A))
    assert without.planner(1, config).networks.code_preactivation.shape[1] == 0
    with pytest.raises(ValueError, match="wants networks for them"):
        without.planner(1, new_search_config())


@pytest.mark.parametrize("name", ["root", "afterstate", "afterstate_value", "dynamics"])
def test_a_failing_network_call_is_an_error_and_no_decision(name: str) -> None:
    """A row that is one column too wide is refused by ONNX Runtime when the search calls it."""
    planner = AGENTS[0].planner(2, new_search_config(num_simulations=4))
    net = getattr(planner.networks, name)
    rows = row_buckets(len(net.x))
    graph = random_graphs(0)[name]
    layout = layout_of(graph)
    broken = Session(graph).bind(layout._replace(width_in=layout.width_in + 1), rows)
    planner = planner._replace(networks=planner.networks._replace(**{name: broken}))
    for b in range(2):
        root = random_root(0, b, False)
        set_root(planner, b, root.features, root.position, BARS, root.t, CODES, MARKETS[False])
    with pytest.raises(OrtError, match="invalid dimensions"):
        check_status(plan(planner))


@patch("host.artifact.networks.layout_of", widths)
def test_a_row_has_the_states_of_its_window_newest_first_and_zeros_before_the_root() -> None:
    """Networks whose next state depends on three states: those of the finished tree follow from its paths."""
    window, config = (3, new_search_config(num_simulations=40, max_considered_actions=2, discount=0.9, c_scale=0.01))
    sizes, rng = SIZES._replace(attention_window=window), np.random.default_rng(0)
    w = {
        name: rng.normal(0, 0.5, size)
        for name, size in graph_widths(sizes, config).items()
        if name not in ("market", "afterstate_value")
    }
    w["afterstate"][:, :D] = np.eye(len(w["afterstate"]), D)  # it hands the state on
    w["dynamics"][window * D + C :] = 0  # no position matters
    steps = {name: [("MatMul", ["x64", "w"], "z"), ("Tanh", ["z"], "y64")] for name in w}
    steps["afterstate"] = [("MatMul", ["x64", "w"], "y64")]
    agent = OnnxNetworks({name: graph(*w[name].shape, steps[name], {"w": w[name]}) for name in w}, sizes)
    planner = searched(agent, config, [random_root(0, b, False) for b in range(2)], seed=1)
    tree, deepest = planner.tree, 0
    assert isinstance(tree, Tree)
    for b in range(2):
        for node in nodes(tree, b, DECISION)[1:]:
            states, above = list[Any](), int(tree.parent[b, tree.parent[b, node]])
            while above != NONE:
                states.append(tree.state[b, above])
                above = NONE if above == 0 else int(tree.parent[b, tree.parent[b, above]])
            deepest = max(deepest, len(states))
            seen = [*states, *[np.zeros(D)] * window][:window]
            row = np.concatenate([*seen, np.eye(C)[tree.edge[b, node]]])
            expected = np.tanh(row @ w["dynamics"][: len(row), :D])
            np.testing.assert_allclose(tree.state[b, node], expected, rtol=0, atol=1e-6)
    assert deepest > window
