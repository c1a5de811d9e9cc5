"""One agent learns several instruments: each has its own bars, costs and share, and no draw of one moves another's."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.artifact.networks import OnnxNetworks
from host.config import Config, ConfigError
from host.data.instruments import Instrument
from host.evaluation.backtest import new_backtest_policy, run_backtest
from host.evaluation.synthetic import INTERVAL_NS, SyntheticOptions, make_market
from host.training.chance_calibration import calibrate_chance, calibrate_parts
from host.training.chance_diagnostics import chance_logits
from host.training.dataset import Dataset, new_dataset
from host.training.market_replay import ReplaySizes, draw_newer, share_sizes, split_by_shares
from host.training.trainer import Trainer
from kernels.market.ledger import step_to_target
from kernels.market.position import action_names
from models.export import export
from tests.fixtures.trainings import dataset, same_state, tiny, trained
from tests.oracles.naive import Broker

YEN = make_market("planted", SyntheticOptions(length=1400, seed=7)).bars
YEN = YEN._replace(**{name: getattr(YEN, name) * 100 for name in YEN._fields if name not in ("time", "volume")})


def yen(config: Config) -> Dataset:
    """A longer data set of another price scale."""
    extra = np.zeros((len(YEN.time), 0), np.float32)
    return new_dataset(YEN, extra, config, Instrument("USDJPY", 0.01, 0.001, 1.0), INTERVAL_NS, 1)


def pair(threads: int = 1, *changes: str) -> Trainer:
    config = tiny(*changes)
    return Trainer([dataset(config), yen(config)], config, threads)


def run(trainer: Trainer, iterations: int) -> Trainer:
    for _ in range(iterations):
        trainer.run_iteration()
    return trainer


def test_two_instruments_are_the_same_on_any_number_of_threads_and_after_a_restart() -> None:
    straight = run(pair(1), 6)
    assert same_state(straight, run(pair(2), 6))
    arrays, state = run(pair(1), 4).snapshot()
    resumed = pair(2)
    resumed.restore({name: array.copy() for name, array in arrays.items()}, state)
    assert same_state(run(resumed, 2), straight)


@pytest.mark.parametrize("threads", [1, 2])
def test_windows_are_drawn_once_each_beside_every_second_step(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, drawn, known = pair(threads, "train.updates_per_iteration=4"), list[int](), list[list[int]]()
    learn, fill = trainer.learner.learn, trainer.markets[0].fill_batch

    def watched_learn(*arguments: Any) -> dict[str, float]:
        losses = learn(*arguments)
        known.append(sorted(drawn))
        return losses

    monkeypatch.setattr(trainer.markets[0], "fill_batch", lambda *a: (drawn.append(a[-1]), fill(*a)))
    monkeypatch.setattr(trainer.learner, "learn", watched_learn)
    trainer.run_iteration()
    assert known == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_each_instrument_has_its_share_of_episodes_and_windows() -> None:
    trainer = run(pair(1, "train.instrument_shares=[1, 3]"), 2)
    assert [market.sizes for market in trainer.markets] == [ReplaySizes(5, 2, 9), ReplaySizes(11, 2, 23)]
    assert trainer.episodes == 8
    rows = 0
    for market in trainer.markets:
        own = market.sizes.batch_size
        (batch,) = (b for b in market.batches if b.features.base is trainer.batch.features)
        np.testing.assert_array_equal(batch.features, trainer.batch.features[rows : rows + own])
        rows += own
        F, stored = market.feature_store.X.shape[1], market.feature_store.X
        signs = market.feature_store.market_data.mirror_sign
        for x in batch.features.reshape(-1, F):  # every window shows a bar of its instrument, or its mirror
            assert any((stored == y).all(axis=1).any() for y in (x, x * signs))
    assert rows == trainer.config.train.batch_size


def test_rewards_are_what_the_ledger_of_the_own_instrument_books() -> None:
    trainer = run(pair(), 3)
    for market, bars in zip(trainer.markets, (trainer.markets[0].data.bars, YEN), strict=True):
        spec = market.data.market_spec.market
        names = action_names(spec.sizes)
        assert market.num_stored_episodes > 0
        assert (market.replay.start_bar[: market.num_stored_episodes] + 24 < market.data.train_stop).all()
        for slot in range(market.num_stored_episodes):
            start, broker = int(market.replay.start_bar[slot]), Broker(bars, spec)
            booked = [broker.trade(names[a], start + k) for k, a in enumerate(market.replay.action[slot])]
            np.testing.assert_allclose(market.replay.reward[slot], booked, rtol=1e-4, atol=1e-5)


def test_the_first_of_two_draws_its_episodes_as_if_it_were_alone() -> None:
    alone, first = trained(1).markets[0], run(pair(1, "train.instrument_shares=[1, 1]"), 1).markets[0]
    own = first.sizes.episodes
    np.testing.assert_array_equal(first.replay.start_bar[:own], alone.replay.start_bar[:own])
    second = pair(1, "train.instrument_shares=[1, 1]").markets[1]
    assert second.seed != first.seed


def test_the_chance_prior_is_calibrated_on_the_validation_bars_of_all() -> None:
    trainer = run(pair(), 2)
    trainer.export_networks()
    root = OnnxNetworks(
        {"root": export(trainer.target_params, trainer.learner.shape, 0)["root"]}, trainer.network_shape
    )
    parts = trainer._validation_parts
    logits = np.concatenate([chance_logits(root, part.store, part.ts) for part in parts])
    expected = calibrate_chance(logits, np.concatenate([part.code for part in parts]))
    assert len({len(part.ts) for part in parts}) == 2
    assert trainer.calibration == calibrate_parts(parts, root, trainer._target_views, trainer.learner.shape) == expected


def test_the_agent_trades_each_of_its_instruments() -> None:
    trainer = run(pair(), 2)
    for market in trainer.markets:
        data = market.data
        policy = new_backtest_policy(trainer.export_networks(), data.market_spec, trainer.acting_search_config())
        result = run_backtest(policy, data.bars, data.extra_features, data.test_first, len(data.bars.time))
        account, trade, equity = np.zeros(13), np.zeros(9), list[float]()
        for i, target in enumerate(result.log.target.tolist()[:50]):
            step_to_target(account, trade, data.bars, data.test_first + i, target, data.market_spec.market)
            equity.append(float(account[1]))
        np.testing.assert_allclose(result.log.equity[:50], equity)


@settings(max_examples=200)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=12), st.integers(12, 5000))
def test_shares_add_up_and_are_near(shares: list[float], total: int) -> None:
    parts, exact = split_by_shares(total, shares), np.array(shares) / sum(shares) * (total - len(shares)) + 1
    assert sum(parts) == total
    assert min(parts) >= 1
    assert np.abs(np.array(parts) - exact).max() < 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["train.instrument_shares=[1, 2, 3]"], "3 numbers, but the files have 2 instruments"),
        (["train.num_envs=1", "train.random_episodes=0"], "1 cannot be shared by 2 instruments"),
    ],
)
def test_shares_that_fit_no_instruments_are_refused(changes: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pair(1, *changes)


def test_by_default_each_bar_counts_the_same() -> None:
    t: Any = tiny("train.batch_size=400", "train.num_envs=4", "train.replay_capacity=100").train
    assert [size.batch_size for size in share_sizes(t, [1000, 3000])] == [101, 299]


def test_half_of_the_draws_are_younger_than_the_half_life() -> None:
    u = (np.arange(10_000) + 0.5) / 10_000
    np.testing.assert_array_equal(draw_newer(u, 100, 0.0), np.arange(10_000) // 100)
    age = 9_999 - draw_newer(u, 10_000, 500.0)
    assert np.mean(age < 500) == pytest.approx(0.5, abs=1e-3)
    assert np.mean(age < 1_000) == pytest.approx(0.75, abs=1e-3)
    assert (age.min(), age.max()) == (0, pytest.approx(500 * np.log2(20_000), rel=0.01))
    few = draw_newer(u, 10, 500.0)  # cut off
    assert set(few.tolist()) == set(range(10))
    assert abs(np.bincount(few) - 1_000).max() < 10


def test_newer_bars_are_played_more_often() -> None:
    starts = [trained(1, 1, *s).markets[0].replay.start_bar for s in ([], ["train.bar_half_life=10"])]
    newest = trained(1).markets[0].data.starts[-1]
    old, new = (newest - start[start >= 0] for start in starts)
    assert old.max() > 200
    assert new.max() < 100
