"""What a search takes over from the one a bar later (ReZero), in the search itself and in reanalyse."""

from typing import Any

import numpy as np
import pytest

from host.artifact.networks import OnnxNetworks, hypothesis_positions
from host.training import market_replay
from host.training.trainer import Trainer
from kernels.learning.reanalyze import reanalyze_policies
from kernels.learning.replay_buffer import MarketData, ReplayBuffer, new_replay_buffer
from kernels.market.chance import code_of_move, fit_chance_codes, standardised_move
from kernels.market.ledger import new_market
from kernels.market.position import NUM_POSITION_FEATURES, NUM_POSITION_FIELDS, SIDE
from kernels.ort import check_status
from kernels.search.config import ALGORITHMS, GUMBEL, MARKET, SearchConfig, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import Planner, draw_noise, plan, set_root
from kernels.search.tree import NONE, REUSE_CHANCE_CHILD, REUSE_KNOWN_ARM, REUSE_OFF, VALUE_REUSES
from models.export import export
from models.params import ModelShape, as_views, new_params
from tests.fixtures.trainings import dataset, model_bytes, same_state, tiny, trained
from tests.oracles.naive import wandering_bars

SHAPE = ModelShape(features=12, latent=8, hidden=8, codes=5)
A, C, D = SHAPE.actions, SHAPE.codes, SHAPE.latent
SIZES = NetworkShape(SHAPE.features, NUM_POSITION_FEATURES, D, A, C)
MINUTE_NS = 60_000_000_000
BARS = wandering_bars(2, 200, 1)
WORLD = new_market(range_px=5e-4, pip_px=1e-4, interval_ns=MINUTE_NS, slippage_px=2e-5)
CODES = fit_chance_codes(BARS, np.arange(70, 190), C)
FIRST_BAR, B = 100, 3
EACH_ALGORITHM = pytest.mark.parametrize("algorithm", [GUMBEL, MARKET], ids=lambda algorithm: ALGORITHMS[algorithm])


def random_agent(certain: int | None = None) -> OnnxNetworks:
    """Networks with an opinion; with a code that is `certain`."""
    draw = np.random.default_rng(4)
    flat = new_params(SHAPE, 4)
    flat += draw.normal(0, 0.3, flat.shape)
    if certain is not None:
        as_views(flat, SHAPE).chance_logits_w[:] = 0
        as_views(flat, SHAPE).chance_logits_b[:] = [200.0 * (c == certain) for c in range(C)]
    return OnnxNetworks(export(flat, SHAPE, *hypothesis_positions(SIZES, new_search_config())), SIZES)


AGENT, CERTAIN = random_agent(), random_agent(certain=2)


def config_of(algorithm: int, reuse: int = REUSE_OFF, simulations: int = 24) -> SearchConfig:
    return new_search_config(simulations, algorithm=algorithm, value_reuse=reuse)


def searched_planner(agent: OnnxNetworks, config: SearchConfig, reused: Any = None) -> Planner:
    """Three roots, flat, long and short, that have been searched knowing (action, code, reward, value) of each."""
    planner, draw = agent.planner(B, config), np.random.default_rng(1)
    for b in range(B):
        position = np.zeros(NUM_POSITION_FIELDS, np.float32)
        position[SIDE] = position[6] = (0, 1, -1)[b]
        features = draw.normal(size=SHAPE.features).astype(np.float32)
        set_root(planner, b, features, position, BARS, FIRST_BAR + b, CODES, WORLD)
        draw_noise(planner, b, 0, b, 3)
        if reused is not None:
            for field, value in zip(planner.reused_value, reused[b], strict=True):
                field[b] = value
    check_status(plan(planner))
    return planner


def outcome(planner: Planner) -> list[bytes]:
    names = ("q", "policy", "value", "action", "network_rows", "depth")
    return [np.asarray(getattr(planner, name)).tobytes() for name in names]


@EACH_ALGORITHM
def test_where_nothing_is_reused_the_three_forms_are_one_to_the_bit(algorithm: int) -> None:
    outcomes = [outcome(searched_planner(AGENT, config_of(algorithm, reuse))) for reuse in range(len(VALUE_REUSES))]
    assert outcomes[1] == outcomes[0]
    assert outcomes[2] == outcomes[0]


REUSED = [(1, 3, 0.4, 2.5), (0, 1, -0.2, -1.5), (3, 0, 0.1, 0.7)]  # BUY, HOLD, CLOSE


@EACH_ALGORITHM
def test_the_known_arm_is_worth_its_reward_and_the_value_behind_it(algorithm: int) -> None:
    planner = searched_planner(AGENT, config_of(algorithm, REUSE_KNOWN_ARM), REUSED)
    for b, (action, _, reward, value) in enumerate(REUSED):
        assert planner.q[b, action] == pytest.approx(reward + 0.99 * value, rel=1e-5)
    assert planner.was_reused.tolist() == [1, 1, 1]
    if algorithm == GUMBEL:
        rows = searched_planner(AGENT, config_of(algorithm)).network_rows
        assert (planner.network_rows < rows).all()


def test_chance_child_replaces_the_value_behind_the_realised_code_and_nothing_else() -> None:
    """Market search: Q of the realised action moves by p gamma (reused - searched), the others stay to the bit."""
    plain = searched_planner(AGENT, config_of(MARKET))
    planner = searched_planner(AGENT, config_of(MARKET, REUSE_CHANCE_CHILD), REUSED)
    slot_of = {0: {0: 0, 1: 1, 2: 2}, 1: {0: 1, 3: 0}, 2: {0: 2, 3: 0}}  # flat, long, short
    for b, (action, code, _, value) in enumerate(REUSED):
        market = plain.market_tree
        assert market is not None
        before = market.value[b, market.first_child[b, 0] + code, slot_of[b][action]]
        p = market.prior[b, 0, code]
        moved = plain.q[b, action] + p * 0.99 * (np.float32(value) - before)
        assert planner.q[b, action] == pytest.approx(moved, abs=1e-6)
        others = np.arange(A) != action
        assert planner.q[b, others].tobytes() == plain.q[b, others].tobytes()
    assert (planner.network_rows == plain.network_rows).all()
    assert planner.was_reused.tolist() == [1, 1, 1]


def test_chance_child_saves_its_row_and_stands_behind_its_code() -> None:
    """Tree search of one simulation an action: Q = sum over codes of p (reward + gamma value), one of them reused."""
    simulations = 3
    plain = searched_planner(AGENT, config_of(GUMBEL, simulations=simulations))
    planner = searched_planner(AGENT, config_of(GUMBEL, REUSE_CHANCE_CHILD, simulations), REUSED)
    b, (action, code, reward, value) = 0, REUSED[0]
    assert planner.network_rows[b] == plain.network_rows[b] - 1 == simulations * (1 + C)
    tree, old = planner.tree, plain.tree
    assert tree is not None
    assert old is not None
    node, before = tree.child[b, 0, action], old.child[b, 0, action]
    q = 0.0
    for c in range(C):
        child = old.child[b, before, c]
        r, v = (reward, value) if c == code else (old.reward[b, child], old.value[b, child])
        q += float(old.prior[b, before, c]) * (float(r) + 0.99 * float(v))
    assert planner.q[b, action] == pytest.approx(q, abs=1e-5)
    assert tree.reused_node[b] == tree.child[b, node, code]
    assert (tree.child[b, tree.reused_node[b]] == NONE).all()
    for a in (0, 2):
        assert planner.q[b, a] == plain.q[b, a]
    larger = searched_planner(AGENT, config_of(GUMBEL, REUSE_CHANCE_CHILD, 60), REUSED).tree
    assert larger is not None
    assert (larger.child[b, larger.reused_node[b]] == NONE).all()  # never searched below
    assert larger.value[b, larger.reused_node[b]] == np.float32(value)


@EACH_ALGORITHM
def test_in_a_deterministic_world_that_the_model_knows_reuse_changes_no_choice(algorithm: int) -> None:
    """One code is certain, and what is reused is what the search itself finds behind it."""
    plain = searched_planner(CERTAIN, config_of(algorithm))
    action = [int(np.nanargmax(q)) for q in plain.q]
    reused = list[tuple[int, int, float, float]]()
    for b in range(B):
        reused.append((action[b], 2, *behind(plain, b, action[b])))
    for reuse in (REUSE_CHANCE_CHILD, REUSE_KNOWN_ARM):
        planner = searched_planner(CERTAIN, config_of(algorithm, reuse), reused)
        assert np.nanargmax(planner.q, axis=1).tolist() == action
        assert (planner.policy.argmax(axis=1) == plain.policy.argmax(axis=1)).all()
        if algorithm == MARKET:
            np.testing.assert_allclose(planner.q, plain.q, atol=1e-5)


def behind(planner: Planner, b: int, action: int) -> tuple[float, float]:
    """Reward and value that the search of `planner` found behind the certain code of `action`."""
    q = float(planner.q[b, action])
    if planner.tree is not None:
        after = planner.tree.child[b, 0, action]
        child = planner.tree.child[b, after, 2]
        return float(planner.tree.reward[b, child]), float(planner.tree.value[b, child])
    market = planner.market_tree
    assert market is not None
    slot = {0: int((0, 1, 2)[b]), 3: 0}.get(action, action)
    value = float(market.value[b, market.first_child[b, 0] + 2, slot])
    return q - 0.99 * value, value


L = 6


def random_replay() -> ReplayBuffer:
    """Two episodes of legal actions whose positions are what they led to, as far as a side goes."""
    draw, replay = np.random.default_rng(3), new_replay_buffer(B, L, A)
    replay.start_bar[:] = [110, 130, 90]
    for slot in range(B):
        side = 0
        for k in range(L):
            replay.position[slot, k, [SIDE, 6]] = side
            action = draw.choice([0, 1, 2] if side == 0 else [0, 3])
            replay.action[slot, k] = action
            side = {0: side, 1: 1, 2: -1, 3: 0}[int(action)]
        replay.position[slot, L, [SIDE, 6]] = side
    replay.reward[:] = draw.normal(size=replay.reward.shape)
    return replay


@EACH_ALGORITHM
@pytest.mark.parametrize("reuse", range(3), ids=VALUE_REUSES.__getitem__)
def test_reanalyse_goes_from_last_to_first_and_uses_the_value_just_found(algorithm: int, reuse: int) -> None:
    X = np.random.default_rng(5).normal(size=(len(BARS.time), SHAPE.features)).astype(np.float32)
    rows, slots = np.arange(len(BARS.time), dtype=np.int32), np.array([2, 0])
    market_data = MarketData(X, rows, np.ones(X.shape[1], np.float32), BARS, CODES, WORLD)
    replay, untouched = random_replay(), random_replay()
    config = config_of(algorithm, reuse, 8)
    planner = AGENT.planner(2, config)
    check_status(reanalyze_policies(replay, planner, slots, market_data, 9))
    for slot in slots:
        value = np.float32(0)
        for k in reversed(range(L)):
            alone, t = AGENT.planner(1, config), int(replay.start_bar[slot]) + k
            set_root(alone, 0, X[t], untouched.position[slot, k], BARS, t, CODES, WORLD)
            draw_noise(alone, 0, 9, int(replay.start_bar[slot]), k)
            if reuse != REUSE_OFF and k + 1 < L:
                code = code_of_move(CODES, standardised_move(BARS, t))
                expected = untouched.action[slot, k], code, untouched.reward[slot, k], value
                for field, value_of in zip(alone.reused_value, expected, strict=True):
                    field[0] = value_of
            check_status(plan(alone))
            value = np.float32(alone.value[0])
            assert replay.search_value[slot, k, 0] == value
            np.testing.assert_array_equal(replay.policy[slot, k, 0], alone.policy[0].astype(np.float32))
    assert not replay.policy[1].any()
    assert planner.stats[0] == 2 * L
    assert planner.stats[2] <= (0 if reuse == REUSE_OFF else 2 * (L - 1))
    assert (planner.stats[2] > 0) == (reuse != REUSE_OFF)


@pytest.mark.parametrize("fresh", [0, 1, 2])
def test_reanalyse_skips_and_counts_what_is_fresh(fresh: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reanalyzed = list[list[int]]()

    def watched(replay: ReplayBuffer, planner: Planner, slots: Any, *others: Any) -> int:
        reanalyzed[-1] += slots.tolist()
        return int(reanalyze_policies(replay, planner, slots, *others))

    monkeypatch.setattr(market_replay, "reanalyze_policies", watched)
    settings = (f"train.reanalyze_interval={fresh}", "search.algorithm=market", "search.value_reuse=chance_child")
    run = Trainer([dataset(tiny(*settings))], tiny(*settings), 1)
    searched = dict[int, int]()  # slot: iteration of its last search
    for iteration in range(6):
        reanalyzed.append([])
        row = run.run_iteration()
        new = [(4 * iteration + i) % 16 for i in range(4)]
        searched |= dict.fromkeys(new, iteration)
        stale = sorted(slot for slot, last in searched.items() if iteration - last > fresh)
        assert sorted(reanalyzed[-1]) == stale
        assert row["reanalyzed"] == 24 * len(stale)
        assert row["skipped"] == 24 * (len(searched) - len(stale))
        assert row["reused"] == 23 * len(stale)  # all but the last decision of an episode
        searched |= dict.fromkeys(stale, iteration)
        assert run.markets[0].replay.searched_iteration[: len(searched)].tolist() == [
            searched[s] for s in sorted(searched)
        ]


@pytest.mark.parametrize("reuse", ["chance_child", "known_arm"])
def test_reanalyse_on_two_threads_gives_the_same_bytes(reuse: str, tmp_path: Any) -> None:
    settings = (f"search.value_reuse={reuse}", "search.algorithm=market")
    one, two = trained(4, 1, *settings), trained(4, 2, *settings)
    assert same_state(one, two)
    assert model_bytes(one, tmp_path) == model_bytes(two, tmp_path)


def test_without_reanalyse_nothing_is_searched_again() -> None:
    config = tiny("train.reanalyze=false", "search.algorithm=market")
    run = Trainer([dataset(config)], config, 1)
    rows = [run.run_iteration() for _ in range(3)]
    assert [row["reanalyzed"] for row in rows] == [0, 0, 0]
    assert rows[-1]["skipped"] == 24 * 12
