"""The market with the interfaces of Gymnasium."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install '.[gym]'")

from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from host.data.formats import ReadOptions
from host.gym.market_env import TEST, TRAINING, VALIDATION, MarketEnv, MarketVectorEnv, read_dataset
from kernels.market.bars import SECOND_NS
from kernels.market.ledger import NUM_TRADE_FIELDS, new_accounts, run_targets
from kernels.market.position import BUY, CLOSE, HOLD, SELL
from tests.fixtures.paths import ROOT
from tests.fixtures.trained import ROWS, feed_of
from tests.fixtures.trainings import dataset, tiny

COSTS = ("market.slippage=0.3", "market.commission=0.2", "market.swap_long=-3", "market.swap_short=-2")
DATA = dataset(tiny(*COSTS))


@pytest.mark.parametrize("part", [TRAINING, VALIDATION, TEST])
def test_gymnasium_accepts_the_environment(part: str) -> None:
    check_env(MarketEnv(DATA, part), skip_render_check=True)


@pytest.mark.parametrize("part", [TRAINING, VALIDATION, TEST])
def test_a_part_has_the_features_of_its_bars_and_no_other(part: str) -> None:
    observer = MarketEnv(DATA, part)._observer
    first, last = observer.stretch.starts.min(), observer.stretch.starts.max() + observer.stretch.length
    assert np.flatnonzero(observer.features.any(axis=1)).tolist() == [*range(first, last + 1)]
    assert last < {TRAINING: DATA.train_stop, VALIDATION: DATA.validation_stop, TEST: len(DATA.bars.time)}[part]


def test_the_mask_names_the_legal_actions() -> None:
    env = MarketEnv(DATA)
    with pytest.raises(ResetNeeded):
        env.step(HOLD)
    observation, info = env.reset(seed=1)
    assert info == {"action_mask": pytest.approx([1, 1, 1, 0]), "bar": info["bar"], "equity_pips": 0}
    assert env.action_space.sample(mask=info["action_mask"]) in (HOLD, BUY, SELL)
    for action, mask, side in ((CLOSE, [1, 1, 1, 0], 0), (SELL, [1, 0, 0, 1], -1), (BUY, [1, 0, 0, 1], -1)):
        observation, _, terminated, truncated, info = env.step(action)
        assert (terminated, truncated) == (False, False)
        assert info["action_mask"].tolist() == mask
        assert observation[-9] == side
    for _ in range(21):
        assert not truncated
        observation, _, terminated, truncated, info = env.step(HOLD)
        assert observation in env.observation_space
    assert (terminated, truncated) == (False, True)
    with pytest.raises(ResetNeeded):
        env.step(HOLD)


def test_a_seed_fixes_all_episodes() -> None:
    def bars(env: MarketEnv, seed: int | None) -> list[int]:
        return [env.reset(seed=s)[1]["bar"] for s in (seed, None, None, None)]

    env = MarketEnv(DATA)
    first = bars(env, 5)
    assert bars(MarketEnv(DATA), 5) == bars(env, 5) == first
    assert bars(env, 6) != first
    assert len({*first}) > 1


def test_an_episode_of_the_test_part_earns_what_the_ledger_books() -> None:
    """A close-out of the last position included: both legs cost."""
    env, rng = MarketEnv(DATA, TEST), np.random.default_rng(0)
    observation, info = env.reset()
    assert info["bar"] == DATA.test_first
    rewards, targets, terminated = list[float](), list[float](), False
    while not terminated:
        action = env.action_space.sample(mask=info["action_mask"]) if rng.random() < 0.2 else HOLD
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        targets.append(float(observation[-9]))
        assert observation[:-9].any()
        assert not truncated
    targets[-1] = targets[-2]  # closed out behind the last decision, at the close of the last bar
    market, n = DATA.market_spec.market, len(rewards)
    equity, trades = np.zeros(n), np.zeros((n, NUM_TRADE_FIELDS))
    assert n == len(DATA.bars.time) - 1 - DATA.test_first
    run_targets(equity, trades, new_accounts(1)[0], DATA.bars, DATA.test_first, np.array(targets), market)
    assert info["equity_pips"] == pytest.approx(equity[-1] / market.pip_px, rel=1e-12)
    assert sum(rewards) == pytest.approx(equity[-1] / market.range_px)


def test_a_vector_is_many_environments() -> None:
    """A row and an environment on its own, over the ends of episodes, which begin anew in the same step."""
    envs, rng = MarketVectorEnv(DATA, 3), np.random.default_rng(0)
    observation, info = envs.reset(seed=3)
    again = MarketVectorEnv(DATA, 3).reset(seed=3)
    np.testing.assert_array_equal(observation, again[0])
    assert observation in envs.observation_space
    alone: list[Any] = [MarketEnv(DATA) for _ in range(3)]

    def follow(row: int, bar: int) -> None:
        """Begin the episode of `row` where that of the vector did."""
        alone[row].reset()
        alone[row]._episodes.bar[0], alone[row]._episodes._stop[0] = bar, envs._episodes._stop[row]

    envs._episodes._stop -= np.arange(3)  # so that one ends while others go on
    for row in range(3):
        follow(row, info["bar"][row])
    ended = 0
    for _ in range(60):
        action = rng.integers(0, 4, 3)
        observation, reward, terminated, truncated, info = envs.step(action)
        assert not terminated.any()
        for row in range(3):
            seen, earned, _, cut, own = alone[row].step(action[row])
            assert (earned, cut) == (reward[row], truncated[row])
            np.testing.assert_array_equal(seen, info["final_obs"][row] if cut else observation[row])
            for name, value in own.items():
                np.testing.assert_array_equal(value, (info["final_info"] if cut else info)[name][row])
            if cut:
                ended += 1
                follow(row, info["bar"][row])
                assert not observation[row, -9:].any()
                assert info["_final_obs"][row]
    assert ended == 6


def test_a_file_of_a_stranger_is_an_environment(tmp_path: Path) -> None:
    path, asked = feed_of(ROWS[:1500], tmp_path / "EURUSD.csv"), ("market.episode_length=50", "market.reverse=true")
    data = read_dataset(path, *asked, "market.position_sizes=[0.5,1]", reading=ReadOptions(side="ask"))
    env = MarketEnv(data)
    assert (env.action_space.n, data.market_spec.profile.symbol) == (6, "EURUSD")
    assert data.market_spec.market.interval_ns == 3600 * SECOND_NS
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, env.reset(seed=0)[0])
    assert sum(not env.step(HOLD)[3] for _ in range(50)) == 49


def test_a_part_that_is_none_or_empty_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("part 'all': there is training, validation, test")):
        MarketEnv(DATA, "all")
    with pytest.raises(ValueError, match="the validation part is empty"):
        MarketEnv(dataset(tiny("train.validation_fraction=0")), VALIDATION)


def test_the_example_of_the_document_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    section = (ROOT / "host" / "README.md").read_text(encoding="utf-8").split("## The market as a Gymnasium")[1]
    names: dict[str, Any] = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    assert capsys.readouterr().out == f"{names['info']['equity_pips']:.1f} pips by random actions\n"
    assert names["truncated"]
    assert names["observations"].shape == (64, names["observation"].shape[0])
