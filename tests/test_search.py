"""The trees of `parity` mode against mctx's, and the properties that a search of any mode must have."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import gumbel, search, tree
from kernels.ort import Session, check, no_net
from kernels.outlook import new_outlook
from tests.graphs import graph

GOLDENS = Path(os.environ.get("SWT_GOLDENS") or Path(__file__).parent / "golden" / "search.json")
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
        weights = {
            "after": afterstate_in,
            "Wd": np.transpose(w["Wd"]),
            "Bd": w["Bd"],
            "wr": wr,
            "br": w["br"],
        }
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
    steps = [
        ("MatMul", ["x64", "Wd"], "d"),
        ("Tanh", ["d"], "next"),
        ("MatMul", ["x64", "Wr"], "reward"),
        *heads,
    ]
    weights = {"Wd": rows(np.transpose(w["Wd"]), w["Bd"]), "Wr": rows(wr, np.reshape(w["br"], (C, 1)))}
    return after, graph(3 + C, 3 + 1 + A + 1, steps, weights | head_weights)


class Searcher:
    """A search of B roots over golden graphs."""

    def __init__(self, case: dict[str, Any], batch: int) -> None:
        self.case, c = case, case["cfg"]
        self.config = gumbel.new_search_config(
            simulations=c["n"],
            considered=c["m"],
            discount=c["gamma"],
            c_visit=c["maxvisit_init"],
            c_scale=c["value_scale"],
            rescale=c["rescale"],
            stochastic=c["stochastic"],
            full_width=False,
        )
        after, dynamics = golden_graphs(case)
        A, C = c["A"], c["C"]
        counts = range(1, batch + 1)
        dyn = Session(dynamics).bind(3 + (C if c["stochastic"] else A), 3 + 1 + A + 1, counts)
        aft = Session(after).bind(3 + A, 3 + C + 1, counts) if after else dyn
        self.model = search.Model(aft, aft, dyn, no_net())
        self.tree = tree.new_tree(batch, search.nodes_needed(self.config, C), A, C, 3, 0)
        self.work = search.new_work(batch, C, c["n"])
        self.outlook, self.known = new_outlook(batch, A, C, 1), tree.new_known(batch)
        self.table = gumbel.halving_table(c["m"], c["n"])

    def plant(self, b: int, invalid: list[int], noise: list[float]) -> None:
        w = self.case["weights"]
        x = np.array(w["x0"])
        logits = np.array(w["Wp"]) @ x
        search.plant(
            self.tree, b, x.astype(np.float32), logits.astype(np.float32), float(np.tanh(np.dot(w["wv"], x)))
        )
        self.tree.noise[b] = noise
        for a, bad in enumerate(invalid):
            if bad:
                self.tree.legal[b, 0, a] = False
                self.tree.prior[b, 0, a] = tree.MASKED

    def run(self) -> None:
        check(
            search.grow(self.tree, self.work, self.model, self.outlook, self.config, self.known, self.table)
        )


@pytest.mark.parametrize("number", range(len(CASES)))
def test_parity_trees_equal_mctx(number: int) -> None:
    case = CASES[number]
    c, want = case["cfg"], case["expected"]
    searcher = Searcher(case, 3)
    for b in range(3):  # the middle root is the golden one: its neighbours must not touch it
        searcher.plant(
            b, c["invalid"] if b == 1 else [0] * c["A"], case["gumbel"] if b == 1 else [0.0] * c["A"]
        )
    searcher.run()
    t, n = searcher.tree, c["n"] + 1
    assert t.used[1] == n
    np.testing.assert_array_equal(t.parent[1, :n], want["parents"])
    np.testing.assert_array_equal(t.edge[1, :n], want["action_from_parent"])
    np.testing.assert_array_equal(t.visits[1, :n], want["node_visits"])
    np.testing.assert_allclose(t.value[1, :n], want["node_values"], atol=1e-5)
    visits = [gumbel.visits_of(t, 1, 0, a) for a in range(c["A"])]
    np.testing.assert_array_equal(visits, want["root_visits"])
    assert gumbel.root_action(t, searcher.config, 1) == want["action"]
    gumbel.scaled_q(t, searcher.config, 1, 0)
    legal = np.array(c["invalid"]) == 0
    np.testing.assert_allclose(t.score[1][legal], np.array(want["completed_q"])[legal], atol=2e-4, rtol=1e-4)
    policy = np.zeros(c["A"])
    gumbel.improved_policy(policy, t, searcher.config, 1, 0)
    np.testing.assert_allclose(policy, want["action_weights"], atol=1e-4)
