"""Each market that needs an enhancement: what is left of its optimum without it, computed exactly or on its bars."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from host.evaluation import synthetic
from host.evaluation.exam import DEFAULT_MARKETS, prepare_evaluation, selftest_config
from host.evaluation.market_models import PhaseModel
from host.evaluation.optimum import expected_moves, optimal_actions, run_ledger, solve_optimal_policy
from host.evaluation.synthetic import MARKETS, SyntheticMarket, SyntheticOptions, make_market
from kernels.market.bars import slice_bars
from kernels.market.chance import fill_realised_codes, fit_chance_codes
from kernels.market.ledger import Market, new_market
from tests.fixtures.trainings import TINY

PX = 5.0 * 0.0001  # the default noise
BARS = 60_000
NEEDY = ("memory", "delayed", "jumps", "sparse", "stale")
LEDGER = new_market(range_px=PX, pip_px=synthetic.PIP, interval_ns=synthetic.INTERVAL_NS)


def model_of(name: str) -> PhaseModel:
    model = MARKETS[name].model
    assert isinstance(model, PhaseModel)
    return model


def gain(name: str, model: PhaseModel | None = None, market: Market = LEDGER) -> float:
    """Profit of a bar of the optimum at the costs of the market `name`, deviations."""
    made = make_market(name, SyntheticOptions(length=2))
    return solve_optimal_policy(made._replace(model=model or made.model), market).gain_px / PX


@pytest.fixture(scope="module")
def made() -> dict[str, SyntheticMarket]:
    return {name: make_market(name, SyntheticOptions(length=BARS, seed=5)) for name in NEEDY}


@pytest.mark.parametrize("name", [*NEEDY, "noise", "close"])
def test_a_market_is_its_own_mirror_image(name: str) -> None:
    """A mirrored price negates all extra features, and nothing else changes."""
    model, G = model_of(name), len(model_of(name).transition)
    half = G // 2
    mirror = np.arange(G)[::-1] if name == "memory" else np.array([0, *range(1 + half, G), *range(1, 1 + half)])
    np.testing.assert_array_equal(model.features[mirror], -model.features)
    np.testing.assert_array_equal(model.moves[np.ix_(mirror, mirror)], -model.moves)
    np.testing.assert_array_equal(model.transition[np.ix_(mirror, mirror)], model.transition)
    np.testing.assert_array_equal(model.width[mirror], model.width)
    np.testing.assert_allclose(model.transition.sum(axis=1), 1.0)


@pytest.mark.parametrize("name", NEEDY)
def test_moves_and_phases_are_those_of_the_chain(name: str, made: dict[str, SyntheticMarket]) -> None:
    market, model = made[name], model_of(name)
    phase, moves = market.state.astype(int), np.diff(market.bars.close) / PX
    assert (model.transition[phase[:-1], phase[1:]] > 0).all()
    noise = moves - model.moves[phase[:-1], phase[1:]]
    assert (noise.mean(), noise.std()) == pytest.approx((0.0, 1.0), abs=0.02)
    for g in np.unique(phase):
        here = np.flatnonzero(phase[:-1] == g)
        surprise = moves[here] - expected_moves(market)[here] / PX
        assert abs(surprise.mean()) < 4.5 * max(surprise.std(), 0.5) / math.sqrt(len(here))
        after = np.bincount(phase[here + 1], minlength=len(model.transition)) / len(here)
        assert np.abs(after - model.transition[g]).max() < 3 / math.sqrt(len(here))


def test_the_optimum_is_the_one_of_the_text() -> None:
    """Flat in the quiet; an event is entered at its first bar, and closed when it ends; its profit over its bars.

    `delayed` is entered late where the position of the last event has to be closed first: nine times in ten of two.
    """
    held = 6 / 2 + (6 - 3) * 0.9 / 2  # an event that begins with a position; one in 20 ends without
    assert gain("delayed") == pytest.approx((held + (6 - 3) / 20) / (21 / 20) / (40 + 5.5), rel=1e-3)
    assert gain("jumps") == pytest.approx((3 / 0.6 - 3.2) / (20 + 1 / 0.6 + 1), rel=1e-3)
    assert gain("sparse") == pytest.approx((2 * 2 - 1) / (248 + 2), rel=1e-4)
    assert gain("stale") == pytest.approx((8 * 0.6 - 0.5) / (60 + 8), rel=1e-4)


def moves_of_codes(market: SyntheticMarket) -> np.ndarray:
    """The expected move after each phase [G] as the mean moves of quantile codes tell it, deviations."""
    t, phase = np.arange(300, BARS - 1), market.state[300 : BARS - 1].astype(int)
    codes, code = fit_chance_codes(market.bars, t), np.zeros(len(t), np.int64)
    fill_realised_codes(code, codes, market.bars, t)
    centres = np.array([(np.diff(market.bars.close)[t][code == c] / PX).mean() for c in range(len(codes.centres))])
    told = np.bincount(phase, centres[code]) / np.bincount(phase)
    half = len(told) // 2
    told[1 : 1 + half] = (told[1 : 1 + half] - told[1 + half :]) / 2
    return np.concatenate([[0.0], told[1 : 1 + half], -told[1 : 1 + half]])


def best_memoryless_gain(name: str, model: PhaseModel, seen: np.ndarray) -> float:
    """Gain of the best of all policies of what is seen in a phase [G] and of the side of the position, deviations.

    It is all that an agent knows: under `pnl` a network sees no more of a position than its side.
    """
    options = {-1: (-1, 0), 0: (0, 1, -1), 1: (1, 0)}  # sides after a bar, by the side before it
    policies = [itertools.product(options[side], repeat=int(seen.max()) + 1) for side in (-1, 0, 1)]
    target = np.array([*itertools.product(*policies)])[:, :, seen]  # [policies, 3, G]
    entered = (target != 0) & (target != np.array([-1, 0, 1])[:, None])
    move = (model.transition * model.moves).sum(axis=1)
    reward = target * move - MARKETS[name].spread * entered
    occupancy, mean = np.full(target.shape, 1.0 / (3 * len(seen))), np.zeros(len(target))
    for step in range(400):
        after = np.stack([(occupancy * (target == side)).sum(axis=1) for side in (-1, 0, 1)], axis=1)
        occupancy = after @ model.transition
        if step >= 200:  # the mean, since some policies are periodic
            mean += (occupancy * reward).sum(axis=(1, 2)) / 200
    return float(mean.max())


def test_memory_earns_nothing_by_the_newest_bar() -> None:
    """Nor do earlier closes help: they tell older coins, whose moves have been."""
    model = model_of("memory")
    newest = (model.features[:, 0] > 0).astype(int)
    assert gain("memory") > 0.2
    assert best_memoryless_gain("memory", model, newest) < 0.01 * gain("memory")
    known = synthetic._memory(0, 2.0)  # the newest coin is the sign of the next move
    assert best_memoryless_gain("memory", known, np.arange(2)) == pytest.approx(gain("memory", known), rel=1e-4)
    assert gain("memory", known) > 0.2


def explained(market: SyntheticMarket, at: np.ndarray, bars: int) -> float:
    """Fraction of the variance of the move over `bars` bars after those at `at` that the true state explains."""
    transition, move = model_of(market.name).transition, expected_moves(market)
    by_phase = np.zeros(len(transition))
    by_phase[market.state.astype(int)] = move
    expected = sum(np.linalg.matrix_power(transition, i) @ by_phase for i in range(bars))
    at = at[at + bars < len(move)]
    realised = market.bars.close[at + bars] - market.bars.close[at]
    return float(1 - (realised - np.asarray(expected)[market.state[at].astype(int)]).var() / realised.var())


def test_delayed_is_known_in_sum_and_not_in_time(made: dict[str, SyntheticMarket]) -> None:
    market = made["delayed"]
    assert explained(market, np.flatnonzero(market.state), 1) < 0.3
    assert explained(market, np.arange(BARS), 1) < 0.2
    assert explained(market, np.flatnonzero(np.abs(market.extra[:, 0]) == 1), 10) > 0.7
    # a search that takes a move for the mean of its code finds no entry that pays
    told = np.outer(moves_of_codes(market), np.ones(21))
    assert gain("delayed", model_of("delayed")._replace(moves=told)) < 0.2 * gain("delayed")


def information(x: np.ndarray, y: np.ndarray) -> float:
    """Mutual information of two numbers [n], nats, of their frequencies."""
    table = np.zeros((x.max() + 1, y.max() + 1))
    np.add.at(table, (x, y), 1 / len(x))
    independent = table.sum(axis=1, keepdims=True) * table.sum(axis=0)
    return float((table[table > 0] * np.log(table[table > 0] / independent[table > 0])).sum())


def test_jumps_are_told_by_a_range_and_by_no_move(made: dict[str, SyntheticMarket]) -> None:
    """What a phase does next, as the code of the last move tells it, and as the range of the bar does."""
    market, t = made["jumps"], np.arange(300, BARS - 1)
    code = np.zeros(len(t), np.int64)
    fill_realised_codes(code, fit_chance_codes(market.bars, t), market.bars, t - 1)
    inside = np.flatnonzero(market.extra[t, 0] * market.extra[t - 1, 0])  # but for the first bar, which no fall follows
    width, code = (market.bars.high - market.bars.low)[t][inside], code[inside]
    band = np.digitize(width, np.quantile(width, np.arange(1, 5) / 5))  # fewer than there are codes
    ends = (market.state[t][inside] % 2 == 0).astype(int)
    possible = information(ends, ends)
    assert information(code, ends) < 0.02 * possible
    assert information(band, ends) > 0.7 * possible
    # without the range the bars after the first of a phase are one state, which ends in a fall three times in five
    moves = np.array([[3.0] * 3, [-3.0, 0.0, 3.0]])
    blind = synthetic._events(20, np.array([[0, 0, 1], [0.6, 0, 0.4]]), moves, np.ones((2, 1)), np.ones(2))
    assert gain("jumps", blind) < 0.2 * gain("jumps")


def entry_margin(told: np.ndarray, code_probability: np.ndarray) -> float:
    """Q(BUY) - Q(HOLD) at the first bar of a rise of `jumps`, without a position, deviations.

    By a search of true values that expands the root and its children.  told [G] expected move after each phase,
    code_probability [C, G, G] of each code on the way from a phase to the next.
    """
    model, spread, discount = model_of("jumps"), MARKETS["jumps"].spread, selftest_config([]).search.discount
    value, joint = np.zeros((len(told), 3)), code_probability * model.transition

    def q(move: float, after: np.ndarray, m: int, p: float = 1.0) -> list[float]:
        """Q of flat, long, short with position m of these, times the probability p of being here; after [3]."""
        legal = [(0, 1, 2), (0, 1), (0, 2)][m]
        return [(0, move, -move)[a] - p * spread * (a not in (0, m)) + discount * float(after[a]) for a in legal]

    for _ in range(300):
        after = model.transition @ value
        value = np.array([[max(q(told[g], after[g], m)) for m in range(3)] for g in range(len(told))])
    children = joint[:, 1]  # [C, G] probability of each code and phase
    best = [[max(q(c @ told, c @ model.transition @ value, m, c.sum())) for m in range(3)] for c in children]
    flat, long, _ = q(told[1], np.sum(best, axis=0), 0)
    return long - flat


def test_a_search_by_moves_does_not_dare_to_enter_jumps(made: dict[str, SyntheticMarket]) -> None:
    """It takes the position for one that is held into the fall; codes that tell the phase let it close in time."""
    market, model = made["jumps"], model_of("jumps")
    t, phase = np.arange(300, BARS - 1), market.state.astype(int)
    codes, code = fit_chance_codes(market.bars, t), np.zeros(len(t), np.int64)
    fill_realised_codes(code, codes, market.bars, t)
    G = len(model.transition)
    count = np.zeros((len(codes.centres), G, G))
    np.add.at(count, (code, phase[t], phase[t + 1]), 1.0)
    of_moves = count / np.maximum(count.sum(axis=0), 1.0)
    of_phases = np.broadcast_to(np.eye(G)[:, None], (G, G, G))
    told = moves_of_codes(market)
    assert entry_margin(told, of_moves) < -0.2
    assert entry_margin(told, of_phases) > 0.2


def test_sparse_has_something_to_earn_in_a_bar_of_a_hundred(made: dict[str, SyntheticMarket]) -> None:
    market = made["sparse"]
    eventful = expected_moves(market) != 0
    assert 0.005 < eventful.mean() < 0.01
    windows = np.lib.stride_tricks.sliding_window_view(eventful, 1 + selftest_config([]).train.num_unroll_steps)
    assert windows.any(axis=1).mean() < 0.035
    np.testing.assert_array_equal(eventful, market.extra[:, 0] != 0)
    # and the mean moves of codes tell most of it: a larger move would be lost on them
    told = np.outer(moves_of_codes(market), np.ones(5))
    assert gain("sparse", model_of("sparse")._replace(moves=told)) > 0.5 * gain("sparse")


def test_stale_bars_teach_to_lose(made: dict[str, SyntheticMarket]) -> None:
    """A policy by the mean move after each signal: of all training bars, and of their newest third."""
    market = made["stale"]
    train, turn = BARS * 3 // 4, BARS // 2
    signal, moves = market.extra[:-1, 0], np.diff(market.bars.close)
    unseen = market._replace(bars=slice_bars(market.bars, train, BARS), state=market.state[train:])
    part, profit = np.arange(train), {}
    for name, bars in {"all": part, "newest": part[turn:]}.items():
        slope = float((signal[bars] * moves[bars]).sum() / (signal[bars] ** 2).sum()) / PX
        model = model_of("stale")._replace(moves=model_of("stale").moves * slope / 0.6)
        policy = solve_optimal_policy(market._replace(model=model), LEDGER)
        profit[name] = run_ledger(unseen.bars, optimal_actions(unseen, policy), LEDGER).profit_px
    best = run_ledger(unseen.bars, optimal_actions(unseen, solve_optimal_policy(unseen, LEDGER)), LEDGER).profit_px
    assert profit["newest"] > 0.9 * best > 0
    assert profit["all"] < 0
    old, new = signal[:turn] * market.state[:turn], signal[turn:] * market.state[turn:-1]
    assert set(old.tolist()) == {0.0, -1.0, 2.0}
    assert set(new.tolist()) == {0.0, 1.0, -2.0}


@pytest.mark.parametrize("name", NEEDY)
def test_an_agent_can_be_examined_in_it(name: str) -> None:
    assert DEFAULT_MARKETS == ("noise", "planted", "leak")
    config = selftest_config([*TINY, "train.train_fraction=0.6"])
    evaluation, data = prepare_evaluation(name, SyntheticOptions(length=9000), config, 1)
    assert evaluation.optimum_pips > 0
    assert data.extra_features.shape == (9000, 1)
    if name == "stale":
        signal: Any = data.extra_features[:, 0] * np.sign(expected_moves(evaluation.market))
        assert np.flatnonzero(signal < 0)[-1] < 9000 * 0.6 * 2 / 3 <= np.flatnonzero(signal > 0)[0]
