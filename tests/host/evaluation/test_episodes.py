"""Episodes in lockstep: every number is the ledger's, and what agents see is what our networks see."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from host.evaluation.episodes import Episodes, Stretch, write_features
from host.training.feature_store import FeatureStore
from kernels.market.ledger import ACC_SIDE, NUM_TRADE_FIELDS, close_out, new_accounts, new_market, step, write_position
from kernels.market.lockstep import write_observations
from kernels.market.position import (
    BUY,
    CLOSE,
    HOLD,
    NUM_POSITION_FEATURES,
    NUM_POSITION_FIELDS,
    SELL,
    is_legal,
    position_features,
)
from tests.fixtures.trainings import dataset, tiny

DATA = dataset(tiny())
SPEC = DATA.market_spec
COSTLY: dict[str, Any] = {"slippage_px": 3e-5, "commission_px": 2e-5, "swap_long_px": -4e-5, "swap_short_px": -1e-5}
MARKETS = [
    SPEC.market,
    new_market(**{**SPEC.market._asdict(), **COSTLY}),
    new_market(**{**SPEC.market._asdict(), **COSTLY, "reverse": True, "sizes": (0.25, 1.0), "mae_penalty": 0.01}),
]


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(MARKETS), st.integers(1, 5), st.integers(1, 40), st.booleans())
def test_bars_fills_and_rewards_are_the_ledgers(seed: int, market: Any, count: int, length: int, closes: bool) -> None:
    """To the bit, along random actions, of which some are illegal: these hold, where the ledger alone says NaN."""
    rng, stretch = generator(seed), Stretch(DATA.starts, length, closes)
    episodes = Episodes(DATA.bars, market, stretch, count, generator(seed + 1))
    episodes.begin()
    account, trade = new_accounts(count), np.zeros(NUM_TRADE_FIELDS)
    bar = episodes.bar.copy()
    assert {*bar} <= {*DATA.starts}
    for _ in range(60):
        action = rng.integers(-1, episodes.num_actions + 1, count)
        legal, expected, ends = episodes.legal(), np.zeros(count), episodes._stop == bar + 1
        for b, a in enumerate(action):
            may = is_legal(account[b, ACC_SIDE], int(a), episodes.num_actions, market.reverse)
            assert may == (0 <= a < episodes.num_actions and legal[b, a])
            expected[b] = step(account[b], trade, DATA.bars, bar[b], int(a) if may else HOLD, market)
            if closes and ends[b]:
                expected[b] += close_out(account[b], trade, DATA.bars, bar[b] + 1, market)
        reward, ended = episodes.step(action)
        bar += 1
        assert reward.tobytes() == expected.tobytes()
        assert np.isfinite(reward).all()
        np.testing.assert_array_equal(ended, ends)
        np.testing.assert_array_equal(episodes.account, account)
        np.testing.assert_array_equal(episodes.bar, bar)
        if ends.any():
            rows = np.flatnonzero(ends)
            episodes.begin(rows)
            account[rows], bar[rows] = 0, episodes.bar[rows]


def test_an_episode_ends_with_its_position() -> None:
    starts = np.array([300, 500, 700])
    episodes = Episodes(DATA.bars, SPEC.market, Stretch(starts, 3), 64, generator(0))
    episodes.begin()
    first = episodes.bar.copy()
    assert {*first} == {*starts}
    assert not episodes.side.any()
    assert episodes.legal()[0].tolist() == [True, True, True, False]
    for action, ends in ((BUY, False), (HOLD, False), (HOLD, True)):
        assert (episodes.step(np.full(64, action))[1] == ends).all()
        assert episodes.legal()[0].tolist() == [True, False, False, True]
    np.testing.assert_array_equal(episodes.bar, first + 3)
    assert (episodes.side == 1).all()  # the value of the position goes on
    episodes.begin(np.arange(2))
    assert episodes.side.tolist() == [0, 0] + [1] * 62
    assert not episodes.equity_pips[:2].any()
    assert episodes.equity_pips[2:].all()


def test_actions_of_other_shapes_are_refused() -> None:
    episodes = Episodes(DATA.bars, SPEC.market, Stretch(DATA.starts, 3), 4, generator(0))
    episodes.begin()
    with pytest.raises(ValueError, match=r"actions \[3\] of 4 episodes"):
        episodes.step(np.array([BUY, SELL, CLOSE]))


def observations(market: Any, features: NDArray[np.float32], episodes: Episodes) -> NDArray[np.float32]:
    out = np.full((len(episodes.bar), features.shape[1] + NUM_POSITION_FEATURES), np.nan, np.float32)
    position = np.zeros(NUM_POSITION_FIELDS, np.float32)
    write_observations(out, position, features, episodes.bar, episodes.account, market)
    return out


@pytest.mark.parametrize("market", MARKETS[1:])
def test_an_observation_is_what_our_networks_see(market: Any) -> None:
    features = np.zeros((len(DATA.bars.time), len(SPEC.normaliser.scale)), np.float32)
    write_features(features, DATA, 0, DATA.train_stop)
    ts = np.arange(DATA.starts.min(), DATA.train_stop)
    store = FeatureStore(DATA, len(ts), 1)
    store.acquire(ts, 1)
    np.testing.assert_array_equal(features[ts], store.X[store.row_of_bar[ts]])
    assert not features[DATA.train_stop :].any()
    episodes = Episodes(DATA.bars, market, Stretch(DATA.starts, 24), 3, generator(0))
    episodes.begin()
    for action in (BUY, HOLD, HOLD):
        episodes.step(np.array([action, HOLD, HOLD]))
    rows = observations(market, features, episodes)
    for row, bar, account in zip(rows, episodes.bar, episodes.account, strict=True):
        position, expected = np.zeros(NUM_POSITION_FIELDS, np.float32), np.zeros(NUM_POSITION_FEATURES, np.float32)
        write_position(position, account, market)
        position_features(expected, position, market.mae_penalty == 0)
        np.testing.assert_array_equal(row, np.concatenate([features[bar], expected]))
    assert rows[0, -NUM_POSITION_FEATURES] > 0
    assert not rows[1:, -NUM_POSITION_FEATURES:].any()
