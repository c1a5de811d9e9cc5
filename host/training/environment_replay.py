"""`EnvironmentReplay`: the episodes of an environment in a training; `EnvironmentDomain`: what a `Trainer` asks of it.

Lanes of environments play the decisions of an iteration; an episode goes on in the next one.  What a lane played is cut
where an episode ends, and each piece goes into a slot of the replay buffer: kernels.learning.environment_replay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.config import Config, ConfigError
from host.training.domain import MemoryRoom, Round
from host.training.environments import EnvironmentSpec, Lanes
from host.training.health import decision_metrics
from host.training.market_domain import loss_weights, new_shape
from host.training.market_replay import (
    STREAM_NOISE,
    STREAM_REANALYZE,
    STREAM_SAMPLES,
    VALUE_BATCH,
    capped_cdf,
    stale_slots,
)
from host.training.search_pool import PLAY, REANALYZE, Rows, Searches, SearchPool, batches_of
from kernels.environments.batch_environment import RUNNING, TERMINATED
from kernels.learning.bar_search import SearchedBars
from kernels.learning.environment_replay import (
    new_environment_steps,
    sample_environment,
    set_roots,
    set_stored_roots,
    store_decisions,
    store_searches,
    value_last_observations,
)
from kernels.learning.prioritized import bellman_errors
from kernels.learning.replay_buffer import (
    Batch,
    ReplayBuffer,
    ValueTargetConfig,
    backward_lambda,
    new_replay_buffer,
)
from kernels.ort import check_status
from kernels.rng import randint, uniform
from kernels.search.config import ALGORITHMS, MARKET, WIDENING, SearchConfig, new_search_config
from kernels.search.planner import Planner, plan
from kernels.search.tree import REUSE_CHANCE_CHILD, VALUE_REUSES
from models.extension import LossWeights
from models.extensions.chance_encoder import encode_bars
from models.params import Params
from models.shape import ModelShape, News

RECENT_EPISODES = 100  # whose mean return is shown
RANDOM_ACTION = 0.25  # probability of a random action in a lane that explores
STREAM_RANDOM = 5  # beside those of a market


class EnvironmentReplay:
    """The episodes of one environment."""

    index = 0

    def __init__(self, spec: EnvironmentSpec, config: Config, batches: list[Batch], shape: ModelShape) -> None:
        t, self.config, self.batches, self._shape = config.train, config, batches, shape
        self.seed, self._is_stochastic = t.seed, is_stochastic(config)
        self._length, count = config.market.episode_length, t.num_envs * t.batches_per_iteration
        L, capacity = self._length + 1, t.replay_capacity  # a row behind the last decision
        sizes = spec.features, spec.actions
        self.replay = new_replay_buffer(capacity, L, spec.actions)
        self.steps = new_environment_steps(capacity, L, *sizes)
        # what the lanes play in an iteration, before it is cut
        self._played, self._seen = new_replay_buffer(count, L, spec.actions), new_environment_steps(count, L, *sizes)
        self._ended = np.zeros((count, L), np.int8)
        self._came = np.zeros((count, L, spec.features), np.float32)  # observation after each decision
        self._lanes = [Lanes(spec.new_backend(len(b)), t.seed, first) for first, b in self._batches(np.arange(count))]
        self.num_pieces, self.num_rounds, self.episodes = 0, 0, 0
        self.recent = list[float]()  # returns of the last episodes

    def _batches(self, indices: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        return batches_of(indices, self.config.train.num_envs)

    @property
    def num_stored_episodes(self) -> int:
        """Slots in use."""
        return min(self.num_pieces, len(self.steps.length))

    def num_decisions(self, slots: NDArray[np.int64]) -> int:
        """Decisions in `slots`."""
        return int(self.steps.length[slots].sum())

    def play_round(
        self,
        pool: SearchPool,
        networks: OnnxNetworks,
        p: Params,
        search: SearchConfig,
        iteration: int,
        td_lambda: float,
    ) -> Round:
        """Play the decisions of an iteration in every lane."""
        t = self.config.train
        searches = Searches(PLAY, search, t.num_envs, self.num_rounds * self._length)
        counts = pool.search(self, searches, self._played, networks, self._batches(np.arange(len(self._ended))))
        self.num_rounds += 1
        slots = self._store_pieces(iteration)
        self._close_slots(networks, slots, search.discount, td_lambda)
        finished = [end for lanes in self._lanes for end in lanes.finished]
        shown = [total for lane, total in finished if lane % t.num_envs >= t.random_episodes]
        for lanes in self._lanes:
            lanes.finished.clear()
        self.episodes += len(finished)
        self.recent = [*self.recent, *shown][-RECENT_EPISODES:]
        stale = stale_slots(self.replay, t, iteration)
        return Round(slots, stale, None, Counter(counts), self._decision_metrics(slots))

    def _decision_metrics(self, slots: NDArray[np.int64]) -> dict[str, float]:
        """Figures of the decisions in `slots`, without the rows behind them."""
        L, names = self.replay.reward.shape[1], ("reward", "held", "policy", "value", "search_value")
        is_decision = np.arange(L) < self.steps.length[slots, None]
        rows = {name: getattr(self.replay, name)[slots][:, :L][is_decision][None] for name in names}
        return decision_metrics(self.replay._replace(**rows), np.zeros(1, np.int64))

    def run_batch(self, searches: Searches, rows: Rows, planner: Planner, first: int, batch: NDArray[np.int64]) -> int:
        """Play a batch of lanes, or search the decisions in a batch of slots again; the status of the networks."""
        assert not isinstance(rows, SearchedBars)
        if searches.kind == REANALYZE:
            return self._search_again(rows, planner, batch, self.seed + STREAM_REANALYZE + searches.iteration)
        lanes = self._lanes[first // self.config.train.num_envs]
        for k in range(self._length):
            now = lanes.backend
            self._seen.observation[batch, k], self._seen.legal[batch, k] = now.observation, now.legal
            noise = self.seed + STREAM_NOISE, first, searches.episodes + k
            set_roots(planner, now.observation, now.legal, *noise)
            if (status := plan(planner)) != 0:
                return status
            self._explore(planner.action, now.legal, first, searches.episodes + k)
            store_decisions(rows, batch, k, planner)
            rows.reward[batch, k], self._ended[batch, k], self._came[batch, k] = lanes.step(planner.action)
        return 0

    def _explore(self, action: NDArray[np.int32], legal: NDArray[np.bool_], first: int, step: int) -> None:
        """Let the first lanes of a batch act at random now and then: a good agent forgets what it never sees."""
        for b in range(min(self.config.train.random_episodes, len(action))):
            keys = self.seed + STREAM_RANDOM, first + b
            if uniform(*keys, 2 * step) < RANDOM_ACTION:
                choices = np.flatnonzero(legal[b])
                action[b] = choices[randint(len(choices), *keys, 2 * step + 1)]

    def _search_again(self, rows: ReplayBuffer, planner: Planner, slots: NDArray[np.int64], seed: int) -> int:
        """Search every decision of the slots again, in lockstep, the last one first; the status of the networks."""
        for k in range(int(self.steps.length[slots].max()) - 1, -1, -1):
            set_stored_roots(planner, rows, self.steps, slots, k, seed)
            if (status := plan(planner)) != 0:
                return status
            store_searches(rows, self.steps, slots, k, planner)
        return 0

    def _cuts(self) -> Iterator[tuple[int, int, int]]:
        """Lane, first decision and end of every piece that was played."""
        for lane in range(len(self._ended)):
            first = 0
            for k in range(self._length):
                if self._ended[lane, k] != RUNNING or k == self._length - 1:
                    yield lane, first, k + 1
                    first = k + 1

    def _store_pieces(self, iteration: int) -> NDArray[np.int64]:
        """Put every piece into a slot, the oldest one's; the slots."""
        capacity, slots = len(self.steps.length), list[int]()
        for lane, first, stop in self._cuts():
            slots.append(self.num_pieces % capacity)
            self._store_piece(slots[-1], lane, first, stop)
            self.num_pieces += 1
        found = np.unique(np.asarray(slots[-capacity:]))
        self.replay.searched_iteration[found] = self.replay.played_iteration[found] = iteration
        return found

    def _store_piece(self, slot: int, lane: int, first: int, stop: int) -> None:
        replay, steps, played, n = self.replay, self.steps, self._played, stop - first
        replay.start_bar[slot] = self.num_pieces
        for name in ("action", "reward", "policy", "value", "search_value"):
            array = getattr(replay, name)
            array[slot] = 0
            array[slot, :n] = getattr(played, name)[lane, first:stop]
        steps.observation[slot, :n] = self._seen.observation[lane, first:stop]
        steps.observation[slot, n:] = self._came[lane, stop - 1]
        steps.legal[slot, :n] = self._seen.legal[lane, first:stop]
        steps.code[slot] = 0 if self._is_stochastic else replay.action[slot]
        steps.length[slot], steps.is_terminal[slot] = n, self._ended[lane, stop - 1] == TERMINATED
        replay.expected_reward[slot, :, 0] = replay.reward[slot]
        replay.policy[slot, n:, 0, 0] = 1.0
        replay.action[slot, n] = 0 if steps.is_terminal[slot] else 1  # not greedy: see the kernels

    def _close_slots(self, networks: OnnxNetworks, slots: NDArray[np.int64], discount: float, td_lambda: float) -> None:
        """Value the last observation of `slots`, then turn their search values into lambda-returns."""
        root, codes = networks.root(VALUE_BATCH), networks.shape.codes
        check_status(value_last_observations(self.replay, self.steps, slots, root, codes))
        backward_lambda(self.replay, slots, discount, td_lambda)

    def reanalyze(
        self,
        pool: SearchPool,
        networks: OnnxNetworks,
        stale: NDArray[np.int64],
        searched: SearchedBars | None,
        search: SearchConfig,
        iteration: int,
        td_lambda: float,
    ) -> dict[str, int]:
        """Search the slots `stale` again, the longest together; counts."""
        mode, t = self.config.search.value_reuse, self.config.train
        search = search._replace(value_reuse=VALUE_REUSES.index(mode) if mode in VALUE_REUSES else 0)
        by_length = stale[np.argsort(self.steps.length[stale], kind="stable")]
        searches = Searches(REANALYZE, search, t.num_envs, iteration=iteration)
        counts = pool.search(self, searches, self.replay, networks, self._batches(by_length))
        self._close_slots(networks, stale, search.discount, td_lambda)
        self.replay.searched_iteration[stale] = iteration
        return counts

    def priority_cdf(self, target: ValueTargetConfig) -> NDArray[np.float64]:
        """[decisions] cumulative probabilities, by the Bellman errors of the stored values or all alike."""
        stored, alpha = self.num_stored_episodes, self.config.train.per_alpha
        is_decision = np.arange(self.replay.reward.shape[1]) < self.steps.length[:stored, None]
        self._decision = np.flatnonzero(is_decision)
        error = np.ones(is_decision.shape)
        if alpha > 0:
            bellman_errors(error, self.replay, target)
        return capped_cdf(error[is_decision], alpha, target.iteration)

    def fill_batch(self, cdf: NDArray[np.float64], target: ValueTargetConfig, step: int) -> None:
        """Draw the windows of update `step`; updates take turns with the batches."""
        t, batch = self.config.train, self.batches[step % len(self.batches)]
        stored = self._decision, self.replay, self.steps, target, self._is_stochastic
        sample_environment(batch, np.zeros(t.batch_size), cdf, *stored, t.per_beta, self.seed + STREAM_SAMPLES, step)

    def assign_chance_codes(self, p: Params) -> None:
        """Encode what chance did in the stored pieces, if a search reads that; the learner encodes windows itself."""
        if self._is_stochastic and self.config.search.value_reuse == VALUE_REUSES[REUSE_CHANCE_CHILD]:
            for slot in range(self.num_stored_episodes):
                seen = self.steps.observation[slot]
                before = np.arange(len(seen) - 1, dtype=np.int32)
                one_bin = np.zeros(len(before), np.int64)
                self.steps.code[slot, :-1] = encode_bars(p, seen, before + 1, before, one_bin, self._shape)

    def check_rewards(self, slots: NDArray[np.int64]) -> None:
        """Raise FloatingPointError where a reward is not finite."""
        if not np.isfinite(self.replay.reward[slots]).all():
            raise FloatingPointError("a reward of the environment is not finite")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of a checkpoint."""
        return self.replay._asdict() | {f"steps_{name}": array for name, array in self.steps._asdict().items()}

    def state(self) -> dict[str, Any]:
        """The counts, and the episodes that go on."""
        counts = {name: getattr(self, name) for name in ("num_pieces", "num_rounds", "episodes")}
        return {**counts, "recent": [*self.recent], "lanes": [lanes.state() for lanes in self._lanes]}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; the episodes that go on are played again up to where they stood."""
        for name in ("num_pieces", "num_rounds", "episodes"):
            setattr(self, name, state[name])
        self.recent = [*state["recent"]]
        for lanes, own in zip(self._lanes, state["lanes"], strict=True):
            lanes.restore(own)


def news_of_observations(features: int) -> tuple[News, ...]:
    """What came and how it differs from what was before: chance is in the difference."""
    return tuple(News(i, is_change=change) for change in (False, True) for i in range(features))


class EnvironmentDomain:
    """An environment of which an agent learns."""

    position_sizes = ()

    def __init__(self, spec: EnvironmentSpec, config: Config) -> None:
        if config.search.algorithm in (ALGORITHMS[MARKET], ALGORITHMS[WIDENING]):
            raise ConfigError(f"search.algorithm: {config.search.algorithm} wants a market; --env wants gumbel or puct")
        self.spec, self.config, t = spec, config, config.train
        self.num_decisions = t.replay_capacity * config.market.episode_length
        reach = spec.reward_limit / max(1.0 - config.search.discount, 1.0 / self.num_decisions)
        self.shape = new_shape(config, spec.features, spec.actions)._replace(
            position=0,
            codes=config.network.num_chance_codes if is_stochastic(config) else spec.actions,
            reward_limit=spec.reward_limit,
            value_limit=spec.value_limit or reach,
            afterstate_width=config.network.hidden if is_stochastic(config) else 0,
            news=news_of_observations(spec.features) if is_stochastic(config) else (),
        )

    def loss_weights(self) -> LossWeights:
        """The weights of the losses; without chance there are no afterstates."""
        chance = 1.0 if is_stochastic(self.config) else 0.0
        return loss_weights(self.config)._replace(reward=1.0, chance=chance, afterstate_value=chance / 2)

    def search_config(self, num_simulations: int, c_scale: float, q_scale: float) -> SearchConfig:
        """A search with the conventions of mctx: Q is scaled by its extremes, values are means of visits.

        An afterstate is added with all its codes: a few visits would see its likeliest ones only.
        """
        s = self.config.search
        return new_search_config(
            num_simulations=num_simulations,
            max_considered_actions=min(s.max_considered_actions, self.spec.actions),
            discount=s.discount,
            c_visit=s.c_visit,
            c_scale=c_scale,
            rescale_values=True,
            stochastic=is_stochastic(self.config),
            expectation_backup=is_stochastic(self.config),
            exact_rewards=False,
            algorithm=ALGORITHMS.index(s.algorithm),
        )

    def new_replays(
        self, batches: list[Batch], shape: ModelShape, candidates: int, threads: int, room: MemoryRoom
    ) -> list[EnvironmentReplay]:
        """The replay buffer of the environment."""
        return [EnvironmentReplay(self.spec, self.config, batches, shape)]

    def validation_parts(self, replays: Sequence[Any], context: int, threads: int) -> list[Any]:
        """None: new episodes bear out what was learnt."""
        return []

    def metrics(self, played: list[tuple[Any, NDArray[np.int64]]]) -> dict[str, float]:
        """Mean return of the last episodes, if one has ended; reward of a decision of this iteration."""
        (replay, slots), *_ = played
        reward, decisions = replay.replay.reward[slots].sum(dtype=np.float64), replay.num_decisions(slots)
        mean_return = {"mean_return": float(np.mean(replay.recent))} if replay.recent else {}
        return {"reward_per_decision": float(reward / decisions), **mean_return}


def is_stochastic(config: Config) -> bool:
    """Whether chance codes stand between two decisions: they are learned."""
    return config.train.chance_codes == "learned"


class GreedyPlayer:
    """An agent that does not explore.  Its search has as many roots as it is shown observations."""

    def __init__(self, networks: OnnxNetworks, search: SearchConfig) -> None:
        self._networks, self._search = networks, search
        self._planner = networks.planner(1, search)

    def choose(self, observation: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Actions [B] for observations [B, F]."""
        if len(self._planner.action) != len(observation):
            self._planner = self._networks.planner(len(observation), self._search)
        set_roots(self._planner, observation, legal, 0, 0, -1)
        check_status(plan(self._planner))
        return self._planner.action


def play_greedily(
    spec: EnvironmentSpec, networks: OnnxNetworks, search: SearchConfig, episodes: int, seed: int
) -> NDArray[np.float64]:
    """Returns [episodes] of an agent that does not explore, each of an episode of its own."""
    lanes, player = Lanes(spec.new_backend(episodes), seed, 0), GreedyPlayer(networks, search)
    now, running, total = lanes.backend, np.arange(episodes), np.zeros(episodes)
    while len(running):
        action = now.legal.argmax(axis=1).astype(np.int32)  # any, in a lane whose episode is over
        action[running] = player.choose(now.observation[running], now.legal[running])
        reward, ended, _ = lanes.step(action)
        total[running] += reward[running]
        running = running[ended[running] == RUNNING]
    return total
