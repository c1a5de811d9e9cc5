"""What an agent has learnt: the optimal policy has learnt all, and the noise of the market is in no measure."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from host.evaluation import learning, optimum
from host.evaluation.exam import EvaluationSet, new_evaluation_set, prepare_evaluation, selftest_config
from host.evaluation.learning import FLAT, compare_q, expected_profit, measure_agent, optimal_expected_profit
from host.evaluation.optimum import discounted_q, expected_moves, optimal_actions
from host.evaluation.synthetic import INTERVAL_NS, MARKETS, PIP, SyntheticOptions, make_market
from host.training.trainer import Trainer
from kernels.market.chance import code_of_move, standardised_move
from kernels.market.ledger import new_market
from kernels.market.position import action_kind
from tests.fixtures.trainings import TINY

DISCOUNT = 0.9


@cache
def prepared(name: str, length: int = 20_000) -> tuple[EvaluationSet, Any]:
    """A market of which all bars are unseen, and what is read of its data set."""
    synthetic = make_market(name, SyntheticOptions(length=length, seed=4))
    range_px = float((synthetic.bars.high - synthetic.bars.low).mean())
    data: Any = SimpleNamespace(
        test_first=0, market_spec=SimpleNamespace(market=new_market(range_px, PIP, INTERVAL_NS, slippage_px=1e-6))
    )
    return new_evaluation_set(synthetic, data), data


def q_of_flat_roots(name: str, actions: int) -> Any:
    """[T, A] of the optimum, in ranges; smaller sizes are worth less, and an illegal action is NaN."""
    evaluation, data = prepared(name)
    market = data.market_spec.market
    exact = discounted_q(evaluation.test_market, market, evaluation.optimal_policy, DISCOUNT)[FLAT].T / market.range_px
    kinds = [action_kind(a, actions) for a in range(actions)]
    q = np.where(np.isfinite(exact), exact, np.nan)[:, kinds]
    q[:, 1 : actions - 2] *= 0.3 if actions > 4 else 1.0  # all but the largest SELL and CLOSE
    largest_buy = max(a for a, kind in enumerate(kinds) if kind == 1)
    q[:, largest_buy] = exact[:, 1]
    return q


def trainer_like(data: Any) -> Any:
    return SimpleNamespace(
        markets=[SimpleNamespace(data=data)], config=SimpleNamespace(search=SimpleNamespace(discount=DISCOUNT))
    )


@pytest.mark.parametrize("actions", [4, 8])
@pytest.mark.parametrize("name", [name for name in MARKETS if name != "noise"])
def test_the_optimum_agrees_with_itself(name: str, actions: int) -> None:
    evaluation, data = prepared(name)
    q = q_of_flat_roots(name, actions)
    found = compare_q(evaluation, trainer_like(data), q)
    assert (found["q_slope"], found["q_correlation"]) == pytest.approx((1.0, 1.0), abs=1e-9)
    q[::3, 1:-1] = np.nan  # not visited
    half = compare_q(evaluation, trainer_like(data), 0.5 * q[:2000] + 3.0)
    assert (half["q_slope"], half["q_correlation"]) == pytest.approx((0.5, 1.0), abs=1e-9)
    nothing = compare_q(evaluation, trainer_like(data), np.zeros_like(q))
    assert nothing == {"q_slope": 0.0, "q_correlation": None}
    turned = compare_q(evaluation, trainer_like(data), -q)
    assert (turned["q_slope"], turned["q_correlation"]) == pytest.approx((-1.0, -1.0), abs=1e-9)


def test_a_market_without_a_state_has_no_slope() -> None:
    evaluation, data = prepared("noise")
    q = np.random.default_rng(0).normal(size=(50, 4))
    assert compare_q(evaluation, trainer_like(data), q) == {"q_slope": None, "q_correlation": None}


@pytest.mark.parametrize("name", ["planted", "planted-hard", "leak", "close"])
def test_the_expected_profit_of_the_optimum_is_its_gain(name: str) -> None:
    """The noise of the market is gone; that of the state is left."""
    evaluation, _ = prepared(name, 120_000)
    bars = len(evaluation.test_market.bars.time) - 1
    expected = optimal_expected_profit(evaluation)
    assert expected * PIP / bars == pytest.approx(evaluation.optimal_policy.gain_px, rel=0.04)
    assert expected != evaluation.optimum_pips


@pytest.mark.parametrize("name", ["planted", "leak", "close", "jumps", "stale"])
def test_expected_profit_does_not_see_the_noise_of_the_market(name: str) -> None:
    """A held position earns the sum of expected moves, whatever its profit in the ledger was."""
    evaluation, _ = prepared(name)
    synthetic = evaluation.test_market
    moves, target = (
        np.diff(synthetic.bars.close),
        np.random.default_rng(1).integers(-1, 2, len(synthetic.bars.time) - 1),
    )
    cost = 12.5
    profit = float(target @ moves) / PIP - cost
    expected = float(target @ expected_moves(synthetic)[:-1]) / PIP - cost
    assert expected_profit(evaluation, target.astype(float), profit) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["planted", "planted-hard", "leak", "close"])
def test_expected_moves_are_the_mean_of_those_that_came(name: str) -> None:
    """Regression of the moves on them: slope 1, no constant."""
    synthetic = prepared(name)[0].test_market
    x, y = expected_moves(synthetic)[:-1], np.diff(synthetic.bars.close)
    error = (y - x).std() / (x.std() * np.sqrt(len(x)))
    assert x @ y / (x @ x) == pytest.approx(1.0, abs=4 * error)
    assert abs((y - x).mean()) < 4 * (y - x).std() / np.sqrt(len(x))


@pytest.mark.parametrize("name", ["planted", "leak", "close"])
def test_discounted_q_satisfies_the_bellman_equation(name: str) -> None:
    """In every state of the grid: Q = reward + gamma E[max Q of the position after]."""
    evaluation, data = prepared(name)
    policy, market = evaluation.optimal_policy, data.market_spec.market
    at_states = evaluation.test_market._replace(state=policy.states)
    q = discounted_q(at_states, market, policy, DISCOUNT)
    states, move, chain = optimum._markov_chain(at_states, len(policy.states))
    np.testing.assert_array_equal(states, policy.states)
    fill = market.slippage_px + market.commission_px
    for side, after, action in [(0, 0, 0), (0, 1, 1), (0, -1, 2), (1, 1, 0), (1, 0, 3), (-1, 0, 3), (-1, -1, 0)]:
        expected = after * move + DISCOUNT * chain @ q[after + 1].max(axis=0)
        costs = q[side + 1, action] - expected
        assert np.ptp(costs) < 1e-9  # one in all states
        paid = fill + (evaluation.test_market.spread_px if side == 0 else 0.0) if after != side else 0.0
        assert -costs.mean() == pytest.approx(paid, abs=2e-9), (side, after)
    assert (q[FLAT, 3] == -np.inf).all()


def test_a_likelihood_is_that_of_the_bin_of_a_move_whatever_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    config = selftest_config([*TINY, "train.chance_codes=learned"])
    evaluation, data = prepare_evaluation("planted", SyntheticOptions(length=1500), config, 1)
    of_bin, of_kind = np.arange(1, 9) / 36, np.linspace(0.1, 0.8, 8)
    p = np.stack([of_bin * of_kind, of_bin * (1 - of_kind)], axis=1).ravel()
    asked = list[Any]()
    monkeypatch.setattr(
        learning, "chance_logits", lambda networks, store, ts: asked.append(ts) or np.tile(np.log(p), (len(ts), 1))
    )
    found = learning.measure_roots(evaluation, Trainer([data], config, 1))
    bins = [code_of_move(data.market_spec.codes, standardised_move(data.bars, t)) for t in asked[0]]
    assert found["chance_nll"] == pytest.approx(-np.log(of_bin[bins]).mean())


@pytest.mark.parametrize(
    ("algorithm", "codes"), [("market", "quantile"), ("market", "learned"), ("widening", "quantile")]
)
def test_agents_of_every_search_are_measured(algorithm: str, codes: str) -> None:
    """Widening searches every candidate, so each root has visited both sides."""
    settings = f"search.algorithm={algorithm}", f"train.chance_codes={codes}"
    config = selftest_config([*TINY, *settings, "train.updates_per_iteration=1"])
    evaluation, data = prepare_evaluation("planted", SyntheticOptions(length=1500), config, 1)
    trainer = Trainer([data], config, 1)
    trainer.run_iteration()
    document = measure_agent(evaluation, trainer)
    assert document["chance_nll"] == pytest.approx(np.log(8), abs=0.5)  # of 8 bins, whatever kinds there are
    assert abs(document["q_slope"]) < 1
    assert -1 <= document["q_correlation"] <= 1
    flat = document["exposure"] == 0
    assert (document["expected_fraction"] == 0) == flat


def test_the_optimal_actions_have_the_expected_fraction_1() -> None:
    evaluation, _ = prepared("planted")
    side, sides = 0, list[float]()
    for action in optimal_actions(evaluation.test_market, evaluation.optimal_policy)[:-1]:
        side = {0: side, 1: 1, 2: -1, 3: 0}[int(action)]
        sides.append(float(side))
    expected = expected_profit(evaluation, np.array(sides), evaluation.optimum_pips)
    assert expected == optimal_expected_profit(evaluation)
