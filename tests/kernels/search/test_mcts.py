"""The trees of `parity` mode against mctx's, and the properties that a search of any mode must have."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from kernels.ort import GraphLayout, Session, check_status
from kernels.search import gumbel, tree
from kernels.search import mcts as search
from kernels.search.config import GUMBEL, PUCT, SearchConfig, new_search_config
from kernels.search.costs import new_exogenous_costs
from kernels.search.puct import visit_policy
from tests.fixtures.graphs import graph
from tests.fixtures.paths import ROOT

GOLDENS = Path(os.environ.get("SWT_GOLDENS") or ROOT / "tests" / "oracles" / "golden" / "search.json")
STOCHASTIC = 9  # a case with codes; the first one is deterministic
CASES = json.loads(GOLDENS.read_text())["cases"]


def rows(*blocks: Any) -> np.ndarray:
    return np.concatenate([np.atleast_2d(np.asarray(block, float)) for block in blocks])


def columns(*blocks: Any) -> np.ndarray:
    return np.concatenate([np.asarray(block, float) for block in blocks], axis=1)


def decision_heads(w: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Nodes that end in y = [x' | reward | logits | value] from `next` and `reward`."""
    steps = [
        ("MatMul", ["next", "Wp"], "logits"),
        ("MatMul", ["next", "wv"], "v"),
        ("Tanh", ["v"], "value"),
        ("Concat", ["next", "reward", "logits", "value"], "y64"),
    ]
    return steps, {"Wp": np.transpose(w["Wp"]), "wv": np.reshape(w["wv"], (3, 1))}


def golden_graphs(case: dict[str, Any]) -> tuple[bytes, bytes]:
    """(afterstate, dynamics) of the closed-form model of the goldens."""
    w, A, C = case["weights"], case["cfg"]["A"], case["cfg"]["C"]
    afterstate_in = rows(np.transpose(w["Wa"]), w["Ba"])
    wr = 0.3 * np.reshape(w["wr"], (3, 1))
    heads, head_weights = decision_heads(w)
    state_after = [("MatMul", ["x64", "after"], "pre"), ("Tanh", ["pre"], "a")]
    if not case["cfg"]["stochastic"]:
        steps = [
            *state_after,
            ("MatMul", ["a", "Wd"], "d"),
            ("Add", ["d", "Bd"], "dd"),
            ("Tanh", ["dd"], "next"),
            ("MatMul", ["a", "wr"], "r"),
            ("Add", ["r", "br"], "reward"),
            *heads,
        ]
        weights = {"after": afterstate_in, "Wd": np.transpose(w["Wd"]), "Bd": w["Bd"], "wr": wr, "br": w["br"]}
        return b"", graph(3 + A, 3 + 1 + A + 1, steps, weights | head_weights)
    after = graph(
        3 + A,
        3 + C + 1,
        [
            *state_after,
            ("MatMul", ["a", "Wc"], "codes"),
            ("MatMul", ["a", "wav"], "v"),
            ("Tanh", ["v"], "value"),
            ("Concat", ["a", "codes", "value"], "y64"),
        ],
        {"after": afterstate_in, "Wc": np.transpose(w["Wc"]), "wav": np.reshape(w["wav"], (3, 1))},
    )
    steps = [("MatMul", ["x64", "Wd"], "d"), ("Tanh", ["d"], "next"), ("MatMul", ["x64", "Wr"], "reward"), *heads]
    weights = {"Wd": rows(np.transpose(w["Wd"]), w["Bd"]), "Wr": rows(wr, np.reshape(w["br"], (C, 1)))}
    return after, graph(3 + C, 3 + 1 + A + 1, steps, weights | head_weights)


class Searcher:
    """A search of B roots over golden graphs."""

    def __init__(self, case: dict[str, Any], batch: int, **others: Any) -> None:
        self.case, c = case, case["cfg"]
        golden = {
            "num_simulations": c["n"],
            "max_considered_actions": c["m"],
            "discount": c["gamma"],
            "c_visit": c["maxvisit_init"],
            "c_scale": c["value_scale"],
            "rescale": c["rescale"],
            "stochastic": c["stochastic"],
            "expectation_backup": False,
        }
        self.config = new_search_config(**(golden | others))
        after, dynamics = golden_graphs(case)
        A, C = c["A"], c["C"]
        counts = range(1, batch + 1)
        dyn = Session(dynamics).bind(GraphLayout(3 + (C if c["stochastic"] else A), 3 + 1 + A + 1), counts)
        aft = Session(after).bind(GraphLayout(3 + A, 3 + C + 1), counts) if after else dyn
        self.model = search.no_networks()._replace(afterstate=aft, dynamics=dyn)
        self.tree = tree.new_tree(batch, search.nodes_needed(self.config, C), A, C, 3, 0)
        self.work = search.new_search_work(batch, C, self.config.num_simulations)
        self.outlook, self.known = new_exogenous_costs(batch, A, C, 1), tree.new_reused_value(batch)
        self.table = gumbel.halving_table(c["m"], self.config.num_simulations)

    def plant(self, b: int, invalid: list[int], noise: list[float]) -> None:
        w = self.case["weights"]
        x = np.array(w["x0"])
        logits = np.array(w["Wp"]) @ x
        search.init_root(
            self.tree, b, x.astype(np.float32), logits.astype(np.float32), float(np.tanh(np.dot(w["wv"], x)))
        )
        self.tree.noise[b] = noise
        for a, bad in enumerate(invalid):
            if bad:
                self.tree.prior[b, 0, a] = tree.MASKED_LOGIT

    def run(self) -> None:
        check_status(
            search.run_simulations(self.tree, self.work, self.model, self.outlook, self.config, self.known, self.table)
        )


@pytest.mark.parametrize("number", range(len(CASES)))
def test_parity_trees_equal_mctx(number: int) -> None:
    case = CASES[number]
    c, want = case["cfg"], case["expected"]
    searcher = Searcher(case, 3)
    for b in range(3):  # the middle root is the golden one: its neighbours must not touch it
        searcher.plant(b, c["invalid"] if b == 1 else [0] * c["A"], case["gumbel"] if b == 1 else [0.0] * c["A"])
    searcher.run()
    t, n = searcher.tree, c["n"] + 1
    assert t.num_nodes[1] == n
    np.testing.assert_array_equal(t.parent[1, :n], want["parents"])
    np.testing.assert_array_equal(t.edge[1, :n], want["action_from_parent"])
    np.testing.assert_array_equal(t.visits[1, :n], want["node_visits"])
    np.testing.assert_allclose(t.value[1, :n], want["node_values"], atol=1e-5)
    visits = t.edge_visits[1, 0, : c["A"]]
    np.testing.assert_array_equal(visits, want["root_visits"])
    assert gumbel.final_action(t, searcher.config, 1) == want["action"]
    gumbel.transformed_q(t, searcher.config, 1, 0)
    legal = np.array(c["invalid"]) == 0
    np.testing.assert_allclose(t.score[1, : c["A"]][legal], np.array(want["completed_q"])[legal], atol=2e-4, rtol=1e-4)
    policy = np.zeros(c["A"])
    gumbel.improved_policy(policy, t, searcher.config, 1, 0)
    np.testing.assert_allclose(policy, want["action_weights"], atol=1e-4)


@dataclass
class Branch:
    """A node of the naive tree: its own value and the returns of the simulations that passed."""

    state: Any
    raw: float
    prior: Any  # probabilities of its actions or codes
    is_chance: bool = False
    reward: float = 0.0
    returns: list[float] = field(default_factory=list)
    children: dict[int, Branch] = field(default_factory=dict)

    @property
    def visits(self) -> int:
        return 1 + len(self.returns)

    @property
    def value(self) -> float:
        return float(np.mean([self.raw, *self.returns]))

    def shape(self) -> Any:
        """What of the tree is to be equal: visits and values by path."""
        below = {edge: child.shape() for edge, child in self.children.items()}
        return self.visits, pytest.approx(self.value, abs=1e-5), below


class NaivePuct:
    """PUCT over objects (Schrittwieser et al. 2020, appendix B); codes by prior / (visits + 1)."""

    def __init__(self, case: dict[str, Any], config: SearchConfig, noise: Any, legal: Any) -> None:
        self.case, self.config, self.legal = case, config, legal
        after, dynamics = golden_graphs(case)
        self.nets = [onnxruntime.InferenceSession(g) if g else None for g in (after, dynamics)]
        w = case["weights"]
        x = np.array(w["x0"])
        prior = self.softmax(np.where(legal, np.array(w["Wp"]) @ x, -np.inf))
        shares = np.where(legal, noise, 0) / max(np.where(legal, noise, 0).sum(), 1e-9)
        share = config.dirichlet_fraction if noise.any() else 0.0
        self.root = Branch(x, float(np.tanh(np.dot(w["wv"], x))), (1 - share) * prior + share * shares)
        for _ in range(config.num_simulations):
            self.simulate()

    @staticmethod
    def softmax(z: Any) -> Any:
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    def q(self, child: Branch) -> float:
        return child.value if child.is_chance else child.reward + self.config.discount * child.value

    def choose(self, node: Branch) -> int:
        if node.is_chance:
            counts = [node.children[c].visits if c in node.children else 0 for c in range(len(node.prior))]
            return int(np.argmax(node.prior / (np.array(counts) + 1)))
        q = np.array([self.q(node.children[a]) if a in node.children else node.value for a in range(len(node.prior))])
        low, high = min(q.min(), node.value), max(q.max(), node.value)
        unit = max(high - low, 1e-8) if self.config.rescale_values else self.config.q_scale
        counts = np.array([node.children[a].visits if a in node.children else 0 for a in range(len(q))])
        weight = 1.25 + math.log((node.visits + 19653) / 19652)
        score = q / unit + node.prior * math.sqrt(node.visits) / (1 + counts) * weight
        if node is self.root:
            score = np.where(self.legal, score, -np.inf)
        return int(np.argmax(score))

    def simulate(self) -> None:
        path = [self.root]
        edge = self.choose(path[-1])
        while edge in path[-1].children:
            path.append(path[-1].children[edge])
            edge = self.choose(path[-1])
        new = self.expand(path[-1], edge)
        path[-1].children[edge] = new
        gain = new.raw
        for node, parent in zip([new, *path[:0:-1]], path[::-1], strict=True):
            gain = gain if node.is_chance else node.reward + self.config.discount * gain
            parent.returns.append(gain)

    def expand(self, node: Branch, edge: int) -> Branch:
        A, C = self.case["cfg"]["A"], self.case["cfg"]["C"]
        is_after = self.config.stochastic and not node.is_chance
        hot = np.eye(A if is_after or not self.config.stochastic else C)[edge]
        x = np.concatenate([node.state, hot])[None].astype(np.float32)
        y = self.nets[0 if is_after else 1].run(None, {"x": x})[0][0].astype(float)
        if is_after:
            return Branch(y[:3], y[-1], self.softmax(y[3:-1]), True)
        return Branch(y[:3], y[-1], self.softmax(y[4:-1]), reward=y[3])


def shape_of(t: tree.Tree, b: int, node: int = 0) -> Any:
    edges = [int(e) for e in np.flatnonzero(t.child[b, node] >= 0)]
    below = {edge: shape_of(t, b, int(t.child[b, node, edge])) for edge in edges}
    return int(t.visits[b, node]), float(t.value[b, node]), below


@pytest.mark.parametrize("number", [0, STOCHASTIC])
def test_puct_is_the_naive_tree(number: int) -> None:
    """Plain and within the node's range; with Dirichlet noise and without; with actions that are illegal."""
    case = CASES[number]
    A, draw = case["cfg"]["A"], np.random.default_rng(number)
    for rescale in (False, True):
        searcher = Searcher(case, 3, algorithm=PUCT, rescale_values=rescale, num_simulations=40, q_scale=3.0)
        noise = draw.gamma(0.3, size=(3, A))
        noise[0] = 0
        invalid = [[0] * A, [0] * A, [0] * (A - 1) + [1]]
        for b in range(3):
            searcher.plant(b, invalid[b], noise[b].tolist())
        searcher.run()
        for b in range(3):
            legal = np.array(invalid[b]) == 0
            naive = NaivePuct(case, searcher.config, noise[b], legal)
            assert shape_of(searcher.tree, b) == naive.root.shape()
            policy = np.zeros(A)
            action = visit_policy(policy, searcher.tree, b)
            visits = [naive.root.children[a].visits if a in naive.root.children else 0 for a in range(A)]
            assert action == np.argmax(visits)
            np.testing.assert_allclose(policy, np.array(visits) / 40)


MODES = [
    {"stochastic": stochastic, "expectation_backup": full_width, "algorithm": rule}
    for stochastic, full_width in ((False, False), (True, False), (True, True))
    for rule in (GUMBEL, PUCT)
]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_visits_are_conserved_in_every_mode(mode: dict[str, Any]) -> None:
    """A node's visits are its own evaluation and those of its children; at full width a code has none of its own."""
    case = CASES[STOCHASTIC if mode["stochastic"] else 0]
    searcher = Searcher(case, 2, num_simulations=30, **mode)
    searcher.plant(0, [0] * case["cfg"]["A"], case["gumbel"])
    searcher.plant(1, [1] + [0] * (case["cfg"]["A"] - 1), [0.0] * case["cfg"]["A"])
    searcher.run()
    t = searcher.tree
    for b in range(2):
        assert t.visits[b, 0] == 31
        for node in range(t.num_nodes[b]):
            passed = sum(int(t.visits[b, child]) for child in t.child[b, node] if child != tree.NONE)
            is_code = mode["expectation_backup"] and node > 0 and t.kind[b, node] == tree.DECISION
            assert t.visits[b, node] == passed + (0 if is_code else 1)
    assert t.child[1, 0, 0] == tree.NONE


@pytest.mark.parametrize("number", [0, STOCHASTIC])
def test_permuted_actions_permute_the_result(number: int) -> None:
    case = CASES[number]
    A, n = case["cfg"]["A"], case["cfg"]["n"]
    order = np.random.default_rng(1).permutation(A)
    w = case["weights"]
    weights = w | {"Wp": np.array(w["Wp"])[order].tolist(), "Ba": np.array(w["Ba"])[order].tolist()}
    found = list[Any]()
    for given, noise in ((case, case["gumbel"]), (case | {"weights": weights}, np.array(case["gumbel"])[order])):
        searcher = Searcher(given, 1)
        searcher.plant(0, [0] * A, list(noise))
        searcher.run()
        policy = np.zeros(A)
        gumbel.improved_policy(policy, searcher.tree, searcher.config, 0, 0)
        visits = searcher.tree.edge_visits[0, 0, :A].copy()
        found.append((policy, visits, gumbel.final_action(searcher.tree, searcher.config, 0)))
    (policy, visits, action), (permuted_policy, permuted_visits, permuted_action) = found
    np.testing.assert_array_equal(permuted_visits, visits[order])
    np.testing.assert_allclose(permuted_policy, policy[order], atol=1e-5)
    assert order[permuted_action] == action
    assert visits.sum() == n


def one_code(case: dict[str, Any]) -> dict[str, Any]:
    """The world of a deterministic case with a code, the only one, between action and outcome."""
    return case | {"cfg": case["cfg"] | {"stochastic": True}}


def bars_of(t: tree.Tree, b: int, node: int = 0) -> Any:
    """Visits, value and what is below by action; a code that is certain is no step of its own."""
    below = {}
    for a in np.flatnonzero(t.child[b, node] >= 0):
        child = int(t.child[b, node, a])
        if t.kind[b, child] == tree.CHANCE:
            visits, (_, value, more) = int(t.visits[b, child]), bars_of(t, b, int(t.child[b, child, 0]))
            below[int(a)] = visits, value, more
        else:
            below[int(a)] = bars_of(t, b, child)
    return int(t.visits[b, node]), pytest.approx(float(t.value[b, node]), abs=2e-5), below


@pytest.mark.parametrize("rule", [GUMBEL, PUCT])
def test_at_full_width_a_certain_code_leaves_the_deterministic_tree(rule: int) -> None:
    """Visits counted per bar: an afterstate comes with its code."""
    case = CASES[2]
    searchers = [
        Searcher(case, 1, algorithm=rule, num_simulations=40),
        Searcher(one_code(case), 1, algorithm=rule, num_simulations=40, expectation_backup=True),
    ]
    for searcher in searchers:
        searcher.plant(0, [0, 0, 0, 1], [0.0] * 4 if rule == PUCT else case["gumbel"])
        searcher.run()
    assert bars_of(searchers[1].tree, 0) == bars_of(searchers[0].tree, 0)


def test_puct_with_a_certain_code_comes_to_the_same_at_twice_the_simulations() -> None:
    """Sampled codes: an afterstate takes a simulation, and its own value a part of the mean that fades."""
    gaps = list[float]()
    for n in (20, 200):
        shares = []
        for case, simulations in ((CASES[2], n), (one_code(CASES[2]), 2 * n)):
            searcher = Searcher(case, 1, algorithm=PUCT, num_simulations=simulations)
            searcher.plant(0, [0] * 4, [0.0] * 4)
            searcher.run()
            policy = np.zeros(4)
            visit_policy(policy, searcher.tree, 0)
            shares.append((policy, searcher.tree.value[0, 0]))
        assert shares[0][0].argmax() == shares[1][0].argmax()
        gaps.append(float(np.abs(shares[0][0] - shares[1][0]).max()))
    assert gaps[1] < 0.05 < gaps[0]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_constant_reward_of_one_is_worth_1_over_1_minus_gamma(mode: dict[str, Any]) -> None:
    """One action, values of 0: the mean of the returns (1 - g^d) / (1 - g) of ever deeper leaves d."""
    w = CASES[0]["weights"]
    single = {"Wp": w["Wp"][:1], "Ba": w["Ba"][:1], "wr": [0.0] * 3, "br": [1.0], "wv": [0.0] * 3}
    case = CASES[0] | {"weights": w | single | {"wav": [0.0] * 3}}
    case["cfg"] = CASES[0]["cfg"] | {"A": 1, "m": 1, "gamma": 0.9, "stochastic": mode["stochastic"]}
    for n in (5, 100, 400):
        searcher = Searcher(case, 1, num_simulations=n, **mode)
        searcher.plant(0, [0], [0.0])
        searcher.run()
        halved = mode["stochastic"] and not mode["expectation_backup"]
        depths = np.arange(n + 1) // (2 if halved else 1)
        expected = ((1 - 0.9**depths) / 0.1).mean()
        assert searcher.tree.value[0, 0] == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(10, rel=0.06)
