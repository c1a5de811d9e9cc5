"""`Lanes`: a batch of environments that play side by side, of Gymnasium or as kernels; `open_environment` finds one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.environments.batch_environment import RUNNING, TERMINATED, TRUNCATED, BatchEnvironment
from kernels.environments.game_2048 import GAME_2048
from kernels.environments.grid import GRID
from kernels.rng import randint

BUILT_IN = {"grid": GRID, "2048": GAME_2048}
PROBE_STEPS = 1_000  # random steps that show the scales of an environment
MAX_FEATURE = 10.0  # a scaled feature is clipped to this
MAX_ACTIONS = 127
MAX_SEED = 2**31 - 1  # of an episode


class UnplayableError(ValueError):
    """An environment that does not exist, or that this trainer cannot play."""

    exit_code = 4


class Backend(Protocol):
    """B environments: arrays that hold where they stand, and how they go on."""

    observation: NDArray[np.float32]  # [B, F]
    legal: NDArray[np.bool_]  # [B, A]
    reward: NDArray[np.float32]  # [B] of the last step
    ended: NDArray[np.int8]  # [B] RUNNING, TERMINATED or TRUNCATED, by the last step

    def reset(self, b: int, seed: int) -> None:
        """Begin an episode in environment b."""

    def step(self, action: NDArray[np.int32]) -> None:
        """One step of every environment."""

    def step_one(self, b: int, action: int) -> None:
        """One step of environment b alone."""


class EnvironmentSpec(NamedTuple):
    """Sizes and scales of an environment, and how B of them are made."""

    name: str
    features: int
    actions: int
    is_stochastic: bool
    reward_limit: float
    value_limit: float | None  # None: as far as rewards and discount reach
    new_backend: Callable[[int], Backend]


class KernelBackend:
    """A `BatchEnvironment`."""

    def __init__(self, environment: BatchEnvironment, count: int) -> None:
        self._environment, self._state = environment, np.zeros((count, environment.state))
        self.observation = np.zeros((count, environment.features), np.float32)
        self.legal = np.ones((count, environment.actions), np.bool_)
        self.reward, self.ended = np.zeros(count, np.float32), np.zeros(count, np.int8)

    def reset(self, b: int, seed: int) -> None:
        """Begin an episode in environment b."""
        self._environment.reset(self._state, b, seed)
        self._environment.observe(self.observation[b : b + 1], self.legal[b : b + 1], self._state[b : b + 1])

    def step(self, action: NDArray[np.int32]) -> None:
        """One step of every environment."""
        self._environment.step(self._state, self.reward, self.ended, action)
        self._environment.observe(self.observation, self.legal, self._state)

    def step_one(self, b: int, action: int) -> None:
        """One step of environment b alone."""
        own = slice(b, b + 1)
        self._environment.step(self._state[own], self.reward[own], self.ended[own], np.full(1, action, np.int32))
        self._environment.observe(self.observation[own], self.legal[own], self._state[own])


class GymBackend:
    """Environments of Gymnasium, whose observations are flattened and scaled; `action_mask` of an info is heeded."""

    def __init__(self, make: Callable[[], Any], count: int, scale: NDArray[np.float32], actions: int) -> None:
        from gymnasium.spaces import flatten

        self._flatten, self._scale, self._environments = flatten, scale, [make() for _ in range(count)]
        self._first_action = int(self._environments[0].action_space.start)
        self.observation = np.zeros((count, len(scale)), np.float32)
        self.legal = np.ones((count, actions), np.bool_)
        self.reward, self.ended = np.zeros(count, np.float32), np.zeros(count, np.int8)

    def reset(self, b: int, seed: int) -> None:
        """Begin an episode in environment b."""
        self._observe(b, *self._environments[b].reset(seed=seed))

    def step(self, action: NDArray[np.int32]) -> None:
        """One step of every environment."""
        for b, a in enumerate(action):
            self.step_one(b, int(a))

    def step_one(self, b: int, action: int) -> None:
        """One step of environment b alone."""
        observation, reward, terminated, truncated, info = self._environments[b].step(self._first_action + action)
        self.reward[b], self.ended[b] = reward, TERMINATED if terminated else TRUNCATED if truncated else RUNNING
        self._observe(b, observation, info)

    def _observe(self, b: int, observation: Any, info: dict[str, Any]) -> None:
        flat = np.asarray(self._flatten(self._environments[b].observation_space, observation), np.float32)
        np.clip(flat * self._scale, -MAX_FEATURE, MAX_FEATURE, out=self.observation[b])
        mask = info.get("action_mask")
        self.legal[b] = True if mask is None or not np.any(mask) else np.asarray(mask, np.bool_)


class Lanes:
    """B environments that go on with a new episode where one ends; the seed of an episode is that of its number."""

    def __init__(self, backend: Backend, seed: int, first: int) -> None:
        self.backend, self._seed, self._first = backend, seed, first  # lanes have the numbers from `first` on
        count = len(backend.ended)
        self._episode, self._actions = [0] * count, [list[int]() for _ in range(count)]
        self._return, self.finished = [0.0] * count, list[tuple[int, float]]()  # lane and return of what ended
        for b in range(count):
            self._begin(b, 0)

    def step(self, action: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]]:
        """Act in every lane: rewards [B], how the episodes stand [B], and the observations [B, F] that came."""
        backend = self.backend
        backend.step(action)
        reward, ended, came = backend.reward.copy(), backend.ended.copy(), backend.observation.copy()
        for b in range(len(action)):
            self._actions[b].append(int(action[b]))
            self._return[b] += float(reward[b])
            if ended[b] != RUNNING:
                self.finished.append((self._first + b, self._return[b]))
                self._begin(b, self._episode[b] + 1)
        return reward, ended, came

    def state(self) -> list[Any]:
        """What `restore` needs: of each lane its episode and the actions in it."""
        return [[episode, [*actions]] for episode, actions in zip(self._episode, self._actions, strict=True)]

    def restore(self, state: list[Any]) -> None:
        """Play the episodes again up to where they stood."""
        for b, (episode, actions) in enumerate(state):
            self._begin(b, episode)
            for action in actions:
                self.backend.step_one(b, action)
                self._return[b] += float(self.backend.reward[b])
            self._actions[b] = [*actions]

    def _begin(self, b: int, episode: int) -> None:
        self._episode[b], self._actions[b], self._return[b] = episode, [], 0.0
        self.backend.reset(b, randint(MAX_SEED, self._seed, self._first + b, episode))


def open_environment(name: str) -> EnvironmentSpec:
    """The environment of that name: a built-in one, an id of Gymnasium, or `module:Class` of either kind."""
    module, colon, attribute = name.partition(":")
    found: Any = BUILT_IN.get(name)
    if colon:
        try:
            found = getattr(import_module(module), attribute, None)
        except ImportError as error:
            raise UnplayableError(f"--env {name}: {error}; write it as module:Class of a module here") from None
    if isinstance(found, BatchEnvironment):
        e = found
        sizes = e.features, e.actions, e.is_stochastic, e.reward_limit, e.value_limit
        return EnvironmentSpec(name, *sizes, lambda count: KernelBackend(e, count))
    return _open_gymnasium(name, found)


def _open_gymnasium(name: str, kind: Any) -> EnvironmentSpec:
    """An environment of Gymnasium: of the class `kind`, or where that is None by its id."""
    try:
        import gymnasium
    except ImportError:
        way = f"pip install gymnasium, or take one of {', '.join(BUILT_IN)}"
        raise UnplayableError(f"--env {name}: gymnasium is not installed: {way}") from None

    def make() -> Any:
        return gymnasium.make(name) if kind is None else kind()

    try:
        one = make()
    except Exception as error:  # of Gymnasium, or of the class
        reason = " ".join(str(error).split())
        hint = "an id as CartPole-v1, module:Class, or one of " + ", ".join(BUILT_IN)
        raise UnplayableError(f"--env {name}: {reason}; give {hint}") from None
    if not isinstance(one.action_space, gymnasium.spaces.Discrete) or one.action_space.n > MAX_ACTIONS:
        raise UnplayableError(
            f"--env {name}: its actions are {one.action_space}; this trainer plans over Discrete ones, at most "
            f"{MAX_ACTIONS}: wrap it in a class with such an action_space, and give that as module:Class"
        )
    actions = int(one.action_space.n)
    scale, reward_limit = _probe(one)
    one.close()
    given = one.unwrapped
    limits = getattr(given, "reward_limit", reward_limit), getattr(given, "value_limit", None)
    is_stochastic = bool(getattr(given, "is_stochastic", False))
    return EnvironmentSpec(
        name, len(scale), actions, is_stochastic, *limits, lambda count: GymBackend(make, count, scale, actions)
    )


def _probe(environment: Any) -> tuple[NDArray[np.float32], float]:
    """Scale [F] of observations, and the largest |reward|, of a random player; 1 where all is 0."""
    from gymnasium.spaces import flatdim, flatten

    space, reward_limit = environment.observation_space, 0.0
    largest_of = np.zeros(flatdim(space))
    environment.action_space.seed(0)
    observation, info = environment.reset(seed=0)
    for _ in range(PROBE_STEPS):
        largest_of = np.maximum(largest_of, np.abs(np.asarray(flatten(space, observation), np.float64)))
        action = environment.action_space.sample(info.get("action_mask"))
        observation, reward, terminated, truncated, info = environment.step(action)
        reward_limit = max(reward_limit, abs(float(reward)))
        if terminated or truncated:
            observation, info = environment.reset()
    largest = np.where(largest_of > 0, largest_of, 1.0)
    return (1.0 / largest).astype(np.float32), reward_limit or 1.0
