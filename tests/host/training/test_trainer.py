"""A run is a pure function of configuration, data and iterations; what it stores is what the ledger booked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.artifact.networks import history_bars
from host.training import trainer as module
from host.training.dataset import DatasetError
from host.training.feature_store import FeatureStore
from host.training.market_domain import MarketDomain
from host.training.market_replay import STREAM_SAMPLES
from host.training.trainer import Budget, Trainer, train_for
from kernels.learning.selfplay import random_size
from kernels.market.bars import Bars
from kernels.market.features import HISTORY
from kernels.market.ledger import NUM_TRADE_FIELDS, new_accounts, step, step_to_target, write_position
from kernels.market.position import (
    ACTIONS,
    BUY,
    NUM_POSITION_FIELDS,
    SELL,
    SIDE,
    action_kind_to,
    action_names,
    position_features,
)
from kernels.rng import randint
from kernels.search.config import WIDENING, new_search_config
from kernels.search.networks import NetworkShape, graph_widths
from kernels.search.progressive_widening import new_sampled_tree
from models.params import param_slices
from tests.fixtures.graphs import Naive
from tests.fixtures.replays import drawn_position
from tests.fixtures.trainings import BARS, WORLD, T, dataset, model_bytes, same_state, tiny, trained
from tests.oracles.naive import Broker


@pytest.mark.parametrize("settings", [[], WORLD], ids=["mlp", "transformer"])
def test_threads_do_not_change_the_model(settings: list[str], tmp_path: Path) -> None:
    one, two = trained(3, 1, *settings), trained(3, 2, *settings)
    assert model_bytes(one, tmp_path) == model_bytes(two, tmp_path)
    assert same_state(one, two)


def test_the_room_of_the_feature_store_does_not_change_the_model(tmp_path: Path) -> None:
    trainer = Trainer([dataset(tiny())], tiny(), 1)
    trainer.markets[0].feature_store = FeatureStore(trainer.markets[0].data, 16 * 25, 1, cache_mb=0)
    for _ in range(7):  # the replay holds four iterations
        trainer.run_iteration()
    assert model_bytes(trainer, tmp_path) == model_bytes(trained(7), tmp_path)


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    zero, one = trained(), trained(3, 1, "train.seed=1")
    assert model_bytes(zero, tmp_path) != model_bytes(one, tmp_path)
    assert (zero.markets[0].replay.start_bar[:12] != one.markets[0].replay.start_bar[:12]).any()


@pytest.mark.parametrize("iterations", [1, 5])  # 5 > 16 / 4: the ring has gone round
def test_a_restored_run_goes_on_to_the_bit(iterations: int, tmp_path: Path) -> None:
    straight = trained(iterations)
    arrays, state = straight.snapshot()
    resumed = Trainer([dataset(tiny())], tiny(), 2)
    resumed.run_iteration()
    resumed.markets[0].feature_store.X[:] = np.nan  # as of an iteration that was stopped before it computed them
    resumed.restore({name: array.copy() for name, array in arrays.items()}, dict(state))
    assert same_state(resumed, straight)
    for _ in range(2):
        resumed.run_iteration()
    assert same_state(resumed, trained(iterations + 2))
    assert model_bytes(resumed, tmp_path) == model_bytes(trained(iterations + 2), tmp_path)


def test_a_restored_transformer_goes_on_to_the_bit() -> None:
    arrays, state = trained(1, 1, *WORLD).snapshot()
    resumed = Trainer([dataset(tiny(*WORLD))], tiny(*WORLD), 2)
    resumed.restore({name: array.copy() for name, array in arrays.items()}, dict(state))
    for _ in range(2):
        resumed.run_iteration()
    assert same_state(resumed, trained(3, 1, *WORLD))


@pytest.mark.parametrize(
    "rule",
    [
        "market.reverse=false",
        "market.reverse=true",
        "market.reward=drawdown_penalised",
        "market.position_sizes=[0.1, 0.5, 0.75]",
    ],
    ids=lambda r: r[7:],
)
def test_rewards_and_positions_in_the_replay_are_the_ledgers(rule: str) -> None:
    settings = [rule, "market.mae_penalty=0.05", "market.commission=0.2", "market.slippage=0.3"]
    trainer = trained(2, 1, *settings)
    replay, market = trainer.markets[0].replay, trainer.markets[0].data.market_spec.market
    assert market.mae_penalty == (0.05 if "drawdown_penalised" in rule else 0.0)
    trade, position = np.zeros(NUM_TRADE_FIELDS), np.zeros(NUM_POSITION_FIELDS, np.float32)
    names, orders = action_names(market.sizes), set[str]()
    assert trainer.markets[0].num_stored_episodes == 8
    for slot in range(trainer.markets[0].num_stored_episodes):
        account, broker, start = new_accounts(1)[0], Broker(BARS, market), int(replay.start_bar[slot])
        for k, action in enumerate(replay.action[slot]):
            write_position(position, account, market)
            assert (replay.position[slot, k] == position).all()
            assert names[action] in broker.allowed()
            reward = step(account, trade, BARS, start + k, int(action), market)
            assert replay.reward[slot, k] == np.float32(reward)
            orders.add(names[action])
            naive = broker.trade(names[action], start + k)
            assert reward == pytest.approx(naive, rel=1e-6, abs=1e-9)
        write_position(position, account, market)
        assert (replay.position[slot, -1] == position).all()
    assert {order.split()[0] for order in orders} >= {"HOLD", "BUY", "SELL"}
    held = replay.position[: trainer.markets[0].num_stored_episodes, :, SIDE]
    turned = (held[:, 1:] * held[:, :-1] < 0).any()
    assert turned == ("reverse=true" in rule)


@pytest.mark.parametrize("reverse", ["false", "true"])
def test_a_replay_of_any_size_is_the_ledgers(reverse: str) -> None:
    """Positions, rewards and kinds of a widened search; the candidates that are entries, with their shares."""
    settings = ("search.algorithm=widening", f"market.reverse={reverse}", "train.random_episodes=2")
    trainer = trained(6, 1, *settings)
    replay, market, sizes = trainer.markets[0].replay, trainer.markets[0].data.market_spec.market, set[float]()
    trade, position = np.zeros(NUM_TRADE_FIELDS), np.zeros(NUM_POSITION_FIELDS, np.float32)
    for slot in range(trainer.markets[0].num_stored_episodes):
        account, start = new_accounts(1)[0], int(replay.start_bar[slot])
        for k, action in enumerate(replay.action[slot]):
            write_position(position, account, market)
            assert (replay.position[slot, k] == position).all()
            side, target = float(position[SIDE]), float(replay.position[slot, k + 1, SIDE])
            assert action == action_kind_to(side, target)
            assert replay.reward[slot, k] == np.float32(step_to_target(account, trade, BARS, start + k, target, market))
            size, share = replay.candidate_size[slot, k], replay.candidate_policy[slot, k]
            signs = {0: (2, 2), 1: (0, 2), -1: (2, 0)} if reverse == "true" else {0: (2, 2), 1: (0, 0), -1: (0, 0)}
            assert ((size > 0).sum(), (size < 0).sum()) == signs[int(np.sign(side))]
            assert share[size > 0].sum() == pytest.approx(replay.policy[slot, k, 0, BUY], abs=1e-6)
            assert share[size < 0].sum() == pytest.approx(replay.policy[slot, k, 0, SELL], abs=1e-6)
            assert (share[size == 0] == 0).all()
            sizes |= {abs(target)} if action in (BUY, SELL) else set()
    assert len(sizes) > 2
    assert 0 < min(sizes) <= max(sizes) <= 1


def test_random_entries_are_full_or_of_any_smaller_size() -> None:
    """Half of them each; `close` with widening took 384 episodes instead of 256 when none was full."""
    tree, drawn = new_sampled_tree(new_search_config(algorithm=WIDENING), 1, 2, 4, 0), list[float]()
    for k in range(4000):
        random_size(tree, 0, (BUY, SELL)[k % 2], 7, 3, k)
        drawn.append(float(tree.target[0]))
    sizes = np.abs(drawn)
    assert (np.sign(drawn) == np.tile([1, -1], 2000)).all()
    assert np.mean(sizes == 1) == pytest.approx(0.5, abs=0.03)
    counts, _ = np.histogram(sizes[sizes < 1], 4, (0, 1))
    np.testing.assert_allclose(counts, 500, atol=75)


def test_rewards_of_an_episode_sum_to_its_profit() -> None:
    """`pnl`: the sum of rewards is the change of marked equity, in R."""
    trainer = trained(2)
    market = trainer.markets[0].data.market_spec.market
    for slot in range(trainer.markets[0].num_stored_episodes):
        broker, start = Broker(BARS, market), int(trainer.markets[0].replay.start_bar[slot])
        for k, action in enumerate(trainer.markets[0].replay.action[slot]):
            broker.trade(ACTIONS[action], start + k)
        total = float(trainer.markets[0].replay.reward[slot].sum(dtype=np.float64))
        assert total == pytest.approx(broker.equity() / market.range_px, rel=1e-5, abs=1e-5)


def test_what_a_run_stores_is_finite_and_within_the_training_part() -> None:
    trainer = trained(5)
    for name, array in trainer.snapshot()[0].items():
        assert np.isfinite(array).all(), name
    replay = trainer.markets[0].replay
    np.testing.assert_allclose(replay.policy.sum(axis=-1), 1, rtol=1e-5)
    assert (replay.start_bar >= HISTORY - 1).all()
    assert (replay.start_bar + 24 < trainer.markets[0].data.train_stop).all()
    assert set(replay.searched_iteration.tolist()) <= set(range(1, 5))
    assert trainer.learner.step == 15
    assert trainer.episodes == 20


@pytest.mark.parametrize("reuse", ["off", "shared_tree"])
@pytest.mark.parametrize("settings", [[], WORLD], ids=["mlp", "transformer"])
def test_stored_values_are_those_of_the_network_that_played(settings: list[str], reuse: str) -> None:
    """After an iteration the values of the replay are the target network's of the iteration's begin.

    Those behind the last decision are there where a target reads them: by a search of all bars, or with n-step returns.
    """
    settings = [*settings, f"search.value_reuse={reuse}", "train.reanalyze_interval=0"]
    if reuse == "off":
        settings.append("train.search_value_weight=0.5")
    trainer = Trainer([dataset(tiny(*settings))], tiny(*settings), 1)
    trainer.run_iteration()
    root = Naive(trainer.export_graphs()["root"])
    trainer.run_iteration()
    for slot in range(trainer.markets[0].num_stored_episodes):
        context = trainer.network_shape.context
        rows = np.zeros((25, context * trainer.network_shape.features + 9), np.float32)
        bars = trainer.markets[0].replay.start_bar[slot] + np.arange(25)[:, None] + np.arange(1 - context, 1)
        rows[:, :-9] = (
            trainer.markets[0].feature_store.X[trainer.markets[0].feature_store.row_of_bar[bars]].reshape(25, -1)
        )
        for m in range(trainer.markets[0].replay.value.shape[2]):
            for k in range(25):
                _, position = drawn_position(trainer.markets[0].replay, slot, k, m if reuse == "shared_tree" else None)
                position_features(rows[k, -9:], position, True)
            y = root(rows)
            value = y[:, trainer.network_shape.state + trainer.network_shape.actions]
            np.testing.assert_allclose(trainer.markets[0].replay.value[slot, :, m], value, rtol=1e-4, atol=1e-5)


def test_lambda_falls_to_half_with_the_passes_and_reaches_the_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer([dataset(tiny())], tiny("train.td_lambda=0.8", "train.td_lambda_passes=10"), 1)
    rows = trainer.config.train.batch_size * (trainer.config.train.num_unroll_steps + 1)
    half = round(10 * trainer.markets[0].data.train_stop / rows)
    lambdas = []
    for floor, updates in ((8_000, 0), (8_000, 8_000), (0, half), (0, 2 * half)):
        monkeypatch.setattr(module, "LAMBDA_STEPS", floor)
        trainer.learner.step = updates
        lambdas.append(trainer.td_lambda)
    assert lambdas == pytest.approx([0.8, 0.6, 0.6, 0.48], rel=0.05)
    ends = []
    for steps in (1e-3, 1e9):
        monkeypatch.setattr(module, "LAMBDA_STEPS", steps)
        ends.append(Trainer([dataset(tiny())], tiny("train.td_lambda_passes=1e-3"), 1))
        for _ in range(2):
            ends[-1].run_iteration()
    assert not np.array_equal(*(end.markets[0].replay.search_value for end in ends))


@pytest.mark.parametrize(("sizes", "candidates"), [(2, 5), (4, 9)])
def test_widening_tries_every_candidate(sizes: int, candidates: int) -> None:
    """Else the first of HOLD and of the sizes of both sides is all that a search knows."""
    config = tiny("search.algorithm=widening", f"search.num_sampled_sizes={sizes}")
    search = MarketDomain([dataset(config)], config).search_config(4, 1.0, 1.0)
    assert (search.num_simulations, search.max_considered_actions) == (candidates, candidates)


def test_training_and_acting_weigh_q_each_by_its_own_setting() -> None:
    trainer = Trainer([dataset(tiny())], tiny("search.c_scale=7", "train.c_scale=3"), 1)
    assert (trainer.search_config(5).c_scale, trainer.acting_search_config().c_scale) == (3.0, 7.0)


def test_sizes_lie_on_a_line_unless_a_risk_term_bends_it() -> None:
    found = [tiny("market.position_sizes=[0.5,1.0]", *more) for more in ([], ["market.risk_aversion=0.5"])]
    searches = [MarketDomain([dataset(config)], config).search_config(4, 1.0, 1.0) for config in found]
    assert [search.linear_values for search in searches] == [True, False]
    widths = [graph_widths(NetworkShape(4, NUM_POSITION_FIELDS + 1, 3, 6, 5), search)["market"] for search in searches]
    assert [y - 3 - 5 for _, y in widths] == [3, 5]


@pytest.mark.parametrize("learned", [True, False])
def test_returns_are_of_what_came_where_rewards_are_learned(learned: bool) -> None:
    """Elsewhere they are of the mean moves of codes, which tell no jump."""
    trainer = trained(2, 1, "search.algorithm=gumbel", f"train.value_prefix={str(learned).lower()}")
    replay, slots = trainer.markets[0].replay, trainer.markets[0].num_stored_episodes
    assert np.abs(replay.reward[:slots]).max() > 0
    assert np.array_equal(replay.expected_reward[:slots, :, 0], replay.reward[:slots]) == learned


def test_after_so_many_passes_only_heads_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREEZE_STEPS", 1)
    trainer = Trainer([dataset(tiny())], tiny("train.freeze_passes=1e-3"), 1)
    trainer.run_iteration()
    before = trainer.learner.params.copy()
    trainer.run_iteration()
    for own, is_head in param_slices(trainer.learner.shape):
        assert np.array_equal(trainer.learner.params[own], before[own]) != is_head


def test_codes_are_a_setting() -> None:
    trainer = trained(2, 1, "network.num_chance_codes=5")
    assert trainer.network_shape.codes == trainer.learner.shape.codes == 5
    assert np.isfinite(trainer.learner.params).all()


def test_a_nan_in_a_feature_stops_training() -> None:
    extra = np.zeros((T, 1), np.float32)
    extra[HISTORY + 100 :: 40] = np.nan
    with pytest.raises(FloatingPointError, match="feature extra 0 of the bar that closed at 2020-01-0"):
        Trainer([dataset(tiny(), extra=extra)], tiny(), 1).run_iteration()


def test_a_nan_among_the_weights_stops_training_and_changes_nothing() -> None:
    trainer = Trainer([dataset(tiny())], tiny(), 1)
    trainer.run_iteration()
    trainer.learner.params[5] = np.nan
    before = trainer.target_params.copy()
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.learn()
    assert (trainer.target_params == before).all()


@pytest.mark.parametrize("column", ["close", "high", "open", "ask_close"])
def test_a_nan_in_the_bars_is_refused(column: str) -> None:
    bars = Bars(*(c.copy() for c in BARS))
    getattr(bars, column)[HISTORY + 50 :: 5] = np.nan
    with pytest.raises(DatasetError, match=f"{column} of the bar that closed at 2020-01-01T05:07:00Z is not a finite"):
        dataset(tiny(), bars)


def test_bars_after_the_training_part_change_no_weight() -> None:
    changed = Bars(*(c.copy() for c in BARS))
    stop = trained().markets[0].data.train_stop
    for column in changed[1:]:
        column[stop:] *= 1.05
    trainer = Trainer([dataset(tiny(), changed)], tiny(), 1)
    for _ in range(3):
        trainer.run_iteration()
    assert same_state(trainer, trained())
    for column in changed[1:]:
        column[stop - 300 :] *= 1.05
    other = Trainer([dataset(tiny(), changed)], tiny(), 1)
    other.run_iteration()
    assert not same_state(other, trained(1))


def test_a_budget_of_episodes_is_met_by_whole_iterations_and_once_met_trains_no_more() -> None:
    trainer = Trainer([dataset(tiny())], tiny(), 1)
    rows = list[dict[str, Any]]()
    train_for(trainer, Budget(episodes=9), rows.append, lambda share, text: None)
    assert [row["episodes"] for row in rows] == [4, 8, 12]
    train_for(trainer, Budget(episodes=9), rows.append, lambda share, text: None)
    assert trainer.episodes == 12


def test_too_few_bars_are_refused_with_the_reason() -> None:
    with pytest.raises(DatasetError, match=r"market\.episode_length"):
        dataset(tiny("market.episode_length=800"))


@pytest.mark.parametrize("mirror", [True, False])
def test_a_transformer_learns_from_bars_before_the_first_of_a_window(mirror: bool) -> None:
    """And nothing but its own layers: a root of three bars, episodes that have them, and errors by depth logged."""
    config = tiny(*WORLD, f"train.mirror_augmentation={str(mirror).lower()}")
    trainer = Trainer([dataset(config)], config, 1)
    row = trainer.run_iteration()
    assert [name for name in row if name.startswith("reward_error")] == [f"reward_error_{k}" for k in range(1, 6)]
    assert row["latent"] > 0
    assert trainer.markets[0].data.starts.min() == HISTORY + 1
    assert (
        trainer.network_shape.attention_window,
        trainer.network_shape.context,
        history_bars(trainer.network_shape),
    ) == (
        2,
        3,
        HISTORY + 2,
    )
    step, F = trainer.learner.step - 1, trainer.network_shape.features
    for b in range(32):
        draw = randint(trainer.markets[0].num_stored_episodes * 24, trainer.config.train.seed + STREAM_SAMPLES, step, b)
        bars = int(trainer.markets[0].replay.start_bar[draw // 24]) + draw % 24 - np.arange(3)[::-1]
        turned = mirror and randint(2, trainer.config.train.seed + STREAM_SAMPLES, step, 32 + b) == 1
        expected = trainer.markets[0].feature_store.X[trainer.markets[0].feature_store.row_of_bar[bars]] * (
            trainer.markets[0].feature_store.market_data.mirror_sign if turned else 1
        )
        np.testing.assert_array_equal(trainer.batch.features[b].reshape(3, F), expected)
    for start in trainer.markets[0].replay.start_bar[:4]:
        trainer.markets[0].feature_store.release(np.array([start]), 25)
    assert (trainer.markets[0].feature_store._ref_count == 0).all()


def test_consistency_and_the_age_cut_are_off_and_on_by_configuration() -> None:
    off, on = trained(1), trained(1, 1, "train.consistency_weight=1.0", "train.off_policy_correction=0.3")
    assert off.learner.shape.projector_width == 0
    assert on.learner.shape.projector_width == 2 * on.learner.shape.latent
    assert on.value_target.off_policy_correction == 0.3
    assert (on.markets[0].replay.played_iteration[:4] == 0).all()
    losses = on.learn()
    assert -1 <= losses["consistency"] <= 1
    assert "consistency" not in off.learn()
    assert {name: graph for name, graph in on.export_graphs().items() if b"project" in graph} == {}
