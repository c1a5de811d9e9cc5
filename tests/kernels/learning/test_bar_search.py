"""One search a bar against searches of each decision: the same play and the same targets, of fewer rows."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from host.artifact.networks import OnnxNetworks
from host.training import market_replay
from host.training.market_replay import SEARCH_BATCH
from host.training.trainer import Trainer
from kernels.learning.bar_search import SearchedBars, store_searched_bars
from kernels.learning.replay_buffer import position_after
from kernels.market.position import NUM_POSITION_FIELDS, PREVIOUS_SIDE, SIDE, action_target
from kernels.ort import check_status
from kernels.search.planner import plan, set_root
from tests.fixtures.trainings import dataset, tiny

L, EPISODES = 24, 4
RULES = {
    "one size": (),
    "reverse": ("market.reverse=true",),
    "three sizes": ("market.position_sizes=[0.25, 0.5, 1.0]", "market.reverse=true"),
    "sizes that change": (
        "market.position_sizes=[0.5, 1.0]",
        "market.position_adjustment=true",
        "market.risk_aversion=0.5",
    ),
}
EACH_RULE = pytest.mark.parametrize("rule", RULES)
COSTS = ("market.commission=0.2", "market.slippage=0.3", "train.random_episodes=1", "train.c_scale=0.02")


@cache
def first_iteration(rule: str, *settings: str) -> tuple[Trainer, dict[str, Any]]:
    """A trainer after its first iteration, whose networks had an opinion from the start, and its metrics."""
    config = tiny("search.algorithm=market", *COSTS, *RULES[rule], *settings)
    trainer = Trainer([dataset(config)], config, 1)
    trainer.target_params += np.random.default_rng(7).normal(0, 0.3, trainer.target_params.shape).astype(np.float32)
    return trainer, trainer.run_iteration()


def held_rows(array: Any, held: Any) -> Any:
    """[R, L, ...] of the positions that were held, of an array [R, L, M, ...]."""
    r, k = np.indices(array.shape[:2])
    return array[r, k, held[:, : array.shape[1]]]


@EACH_RULE
def test_play_and_targets_are_those_of_a_search_of_each_decision(rule: str) -> None:
    """Play, policies, values and last search values to the bit.

    The expected reward is reckoned in two ways: without a gap, (reward - side (move - expected move)) of the action
    taken is Q less the expected value behind it, so that the noise of the market is in neither.  Likewise the square of
    the move, where the reward has a risk term.
    """
    alone, shared = (first_iteration(rule, f"search.value_reuse={form}")[0] for form in ("off", "shared_tree"))
    a, s, used = alone.markets[0].replay, shared.markets[0].replay, slice(0, EPISODES)
    M, sizes, held = s.policy.shape[2], shared.markets[0].data.market_spec.market.sizes, s.held[used]
    assert (M, a.policy.shape[2]) == (len(s.policy[0, 0, 0]) - 1, 1)
    for name in ("start_bar", "action", "reward", "position"):
        assert getattr(a, name).tobytes() == getattr(s, name).tobytes(), name
    sides = np.array([np.float32(action_target(0.0, m, sizes)) for m in range(M)])
    np.testing.assert_array_equal(sides[held], s.position[used, :, SIDE])
    assert len(set(held.ravel().tolist())) > 2
    np.testing.assert_array_equal(held_rows(s.policy[used], held), a.policy[used, :, 0])
    np.testing.assert_array_equal(held_rows(s.value[used, :L], held), a.value[used, :L, 0])
    np.testing.assert_array_equal(held_rows(s.search_value[used], held)[:, -1], a.search_value[used, -1, 0])
    greedy = a.policy[used, :, 0].argmax(axis=-1) == a.action[used]
    assert greedy.sum() > 20
    expected, other = held_rows(s.expected_reward[used], held), a.expected_reward[used, :, 0]
    np.testing.assert_allclose(expected[greedy], other[greedy], atol=2e-5)
    moved = np.abs(a.reward[used] - other) > 0.01
    assert (moved & greedy).sum() > 5


def test_a_reward_that_is_more_than_a_sum_of_moves_stays_the_realised_one() -> None:
    replay = (
        first_iteration("one size", "market.reward=drawdown_penalised", "market.mae_penalty=0.05")[0].markets[0].replay
    )
    assert replay.policy.shape[2] == 1  # no tree is shared
    assert replay.reward.any()
    np.testing.assert_array_equal(replay.expected_reward[..., 0], replay.reward)


@pytest.mark.parametrize("span", [12, 200])
def test_a_bar_is_searched_once_whatever_passes_it(span: int) -> None:
    """Rows and searches of an iteration whose four episodes begin within `span` bars."""
    rows = {}
    for form in ("off", "shared_tree"):
        config = tiny("search.algorithm=market", f"search.value_reuse={form}", "train.updates_per_iteration=1")
        data = dataset(config)
        trainer = Trainer([data._replace(starts=data.starts[:span:4])], config, 1)
        rows[form] = trainer.run_iteration()
    bars = len(np.unique(trainer.markets[0].replay.start_bar[:EPISODES, None] + np.arange(L + 1)))
    searches = min(bars, SEARCH_BATCH) * -(-bars // SEARCH_BATCH)  # the last batch is filled up
    of_one = rows["off"]["search_rows"] // (EPISODES * L)
    assert rows["shared_tree"]["search_rows"] == searches * (of_one + 2)  # two more positions at the root
    assert rows["shared_tree"]["reused"] == EPISODES * (L + 1) - bars
    if span == 12:
        assert bars < EPISODES * (L + 1) / 2
        assert rows["shared_tree"]["search_rows"] < rows["off"]["search_rows"]


@EACH_RULE
def test_q_of_every_position_is_that_of_a_search_that_begins_with_it(rule: str) -> None:
    trainer = first_iteration(rule, "search.value_reuse=shared_tree")[0]
    networks = OnnxNetworks(trainer.export_graphs(), trainer.network_shape)
    slots = np.arange(EPISODES)
    search = trainer.search_config(trainer.config.train.num_simulations)
    searched, counts = trainer.markets[0].search_bars(trainer.pool, networks, slots, search)
    spec, M, n = trainer.markets[0].data.market_spec, searched.q.shape[1], len(searched.q)
    ts = np.flatnonzero(searched.row_of_bar >= 0)
    assert (n, counts["searches"] >= n) == (len(ts), True)
    planner = networks.planner(1, search)
    for t in ts[:: max(1, n // 4)]:
        for m in range(M):
            position = np.zeros(NUM_POSITION_FIELDS, np.float32)
            position[SIDE] = position[PREVIOUS_SIDE] = action_target(0.0, m, spec.market.sizes)
            features = trainer.markets[0].feature_store.X[trainer.markets[0].feature_store.row_of_bar[t]]
            set_root(planner, 0, features, position, trainer.markets[0].data.bars, t, spec.codes, spec.market)
            check_status(plan(planner))
            row = searched.row_of_bar[t]
            np.testing.assert_array_equal(np.nan_to_num(planner.q[0], nan=-np.inf), searched.q[row, m])
            check_stored(trainer, searched, int(t), m, planner.policy[0], float(planner.value[0]))


def check_stored(trainer: Trainer, searched: SearchedBars, t: int, m: int, policy: Any, value: float) -> None:
    """An episode that begins at bar t stores this policy [A] and value of position m."""
    replay = trainer.markets[0].replay
    starts = replay.start_bar.copy()
    replay.start_bar[0] = t
    if (searched.row_of_bar[t : t + L + 1] < 0).any():
        replay.start_bar[:] = starts
        return
    store_searched_bars(replay, np.array([0]), searched, trainer.search_config(4))
    np.testing.assert_array_equal(replay.policy[0, 0, m], policy.astype(np.float32))
    assert replay.search_value[0, 0, m] == np.float32(value)
    best, row = int(policy.argmax()), searched.row_of_bar[t]
    after = position_after(m, best, len(policy))
    assert replay.expected_reward[0, 0, m] == np.float32(searched.q[row, m, best] - searched.next_value[row, after])
    replay.start_bar[:] = starts


@pytest.mark.parametrize("fresh", [0, 1, 2])
def test_what_is_fresh_is_not_stored_again(fresh: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = list[list[int]]()

    def watched(replay: Any, slots: Any, *others: Any) -> None:
        stored.append(slots.tolist())
        store_searched_bars(replay, slots, *others)

    monkeypatch.setattr(market_replay, "store_searched_bars", watched)
    settings = (f"train.reanalyze_interval={fresh}", "search.algorithm=market", "search.value_reuse=shared_tree")
    run = Trainer([dataset(tiny(*settings))], tiny(*settings), 1)
    searched = dict[int, int]()  # slot: iteration of its last search
    for iteration in range(6):
        stored.clear()
        row = run.run_iteration()
        new = [(4 * iteration + i) % 16 for i in range(4)]
        searched |= dict.fromkeys(new, iteration)
        stale = sorted(slot for slot, last in searched.items() if iteration - last > fresh)
        assert stored == [new, stale]
        assert (row["reanalyzed"], row["skipped"]) == (L * len(stale), L * (len(searched) - len(stale)))
        bars = run.markets[0].replay.start_bar[[*new, *stale]][:, None] + np.arange(L + 1)
        assert row["reused"] == bars.size - len(np.unique(bars))
        searched |= dict.fromkeys(stale, iteration)
        assert run.markets[0].replay.searched_iteration[: len(searched)].tolist() == [
            searched[s] for s in sorted(searched)
        ]
