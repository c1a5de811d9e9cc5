"""PPO and DQN of Stable-Baselines3 on `host.evaluation.episodes.Episodes`.  Imported only where they are installed."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.bench.ppo_env import Observations, Policy, observe
from host.bench.ppo_meter import Meter, Task
from host.evaluation.episodes import Episodes

torch: Any = import_module("torch")
spaces: Any = import_module("gymnasium.spaces")
VecEnv: Any = import_module("stable_baselines3.common.vec_env").VecEnv
Callback: Any = import_module("stable_baselines3.common.callbacks").BaseCallback
Extractor: Any = import_module("stable_baselines3.common.torch_layers").BaseFeaturesExtractor

MAX_STEPS = 10**12  # the clock ends a training


class LockstepEnv(VecEnv):  # type: ignore[misc]
    """`Episodes` as the vectorised environment of Stable-Baselines3."""

    render_mode = None

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        low, high = np.array([0, -1], np.float32), np.array([2**24, 1], np.float32)
        super().__init__(len(episodes.bar), spaces.Box(low, high), spaces.Discrete(episodes.num_actions))

    def reset(self) -> Observations:
        """Begin all episodes anew."""
        self.episodes.begin()
        return observe(self.episodes)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """One decision of every episode."""
        reward, is_cut = self.episodes.step(self._actions)
        observation, infos = observe(self.episodes), [dict[str, Any]() for _ in is_cut]
        if is_cut.any():
            rows = np.flatnonzero(is_cut)
            for row in rows:
                infos[row] = {"TimeLimit.truncated": True, "terminal_observation": observation[row]}
            self.episodes.begin(rows)
            observation = observe(self.episodes)
        return observation, reward.astype(np.float32), is_cut, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute once for each episode."""
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Nothing can be set."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """The rows of what the method returns."""
        return list(getattr(self, method_name)(*args, **kwargs))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No episode has a wrapper."""
        return [False] * self.num_envs

    def action_masks(self) -> NDArray[np.bool_]:
        """[B, A] what MaskablePPO may choose."""
        return self.episodes.legal()


class LookUp(Extractor):  # type: ignore[misc]
    """What the networks see of an observation: the features of its bar, and its side as our networks see it."""

    def __init__(self, observation_space: Any, features: NDArray[np.float32]) -> None:
        super().__init__(observation_space, features.shape[1] + 2)
        self.features = torch.from_numpy(features)  # no parameter and no buffer: copies of a policy share it

    def forward(self, observations: Any) -> Any:
        """[n, F + 2] of observations [n, 2]."""
        side = observations[:, 1:]
        return torch.cat([self.features[observations[:, 0].long()], side, side.abs()], dim=1)

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Rival(NamedTuple):
    """An algorithm with the settings that were best for it."""

    algorithm: str  # module and class
    episodes: int  # in lockstep
    settings: dict[str, Any]
    width: int = 64  # of the two hidden layers
    learning_rate_s: float = np.inf  # CPU seconds after which the learning rate is halved; 1 / time behind that
    exploration_s: float = 0.0  # CPU seconds in which random actions become rare
    final_exploration: float = 0.05  # share of random actions
    validation_s: float = 0.0  # CPU seconds between two looks at the validation bars; 0: none


GAMMA = 0.985
PPO_SETTINGS = {
    "n_steps": 256, "batch_size": 2048, "n_epochs": 5, "gamma": GAMMA, "gae_lambda": 0.9, "learning_rate": 1e-3,
    "ent_coef": 0.05,
}  # fmt: skip
DQN_SETTINGS = {
    "buffer_size": 1_000_000, "learning_starts": 2_000, "batch_size": 512, "train_freq": 1, "gradient_steps": 1,
    "gamma": GAMMA, "learning_rate": 1e-3, "target_update_interval": 2_500,
}  # fmt: skip
RIVALS = {
    "PPO": Rival("stable_baselines3.PPO", 32, PPO_SETTINGS),
    "masked PPO": Rival("sb3_contrib.MaskablePPO", 32, PPO_SETTINGS),
    "DQN": Rival("stable_baselines3.DQN", 64, DQN_SETTINGS, learning_rate_s=30.0, exploration_s=10.0, validation_s=3.0),
}
WARM_UP_STEPS = 4_000  # of a throw-away model: an update of DQN; PPO ends its first one


def train_rival(name: str, task: Task, meter: Meter) -> None:
    """Train until the meter has its last mark."""
    torch.set_num_threads(1)
    new_model(RIVALS[name], task, meter).learn(WARM_UP_STEPS, log_interval=None)
    model = new_model(RIVALS[name], task, meter)
    meter.start()
    task.prepare()
    model.learn(MAX_STEPS, Training(RIVALS[name], task, meter), log_interval=None)


def new_model(rival: Rival, task: Task, meter: Meter) -> Any:
    """A model that has learnt nothing yet."""
    module, name = rival.algorithm.rsplit(".", 1)
    network = {
        "net_arch": [rival.width] * 2, "features_extractor_class": LookUp,
        "features_extractor_kwargs": {"features": task.features},
    }  # fmt: skip
    rate = rival.settings["learning_rate"]
    settings = {**rival.settings, "learning_rate": lambda _: rate / (1 + meter.spent() / rival.learning_rate_s)}
    env = LockstepEnv(task.episodes(rival.episodes, rival.validation_s > 0))
    algorithm = getattr(import_module(module), name)
    return algorithm("MlpPolicy", env, **settings, policy_kwargs=network, device="cpu", seed=task.seed)


class Training(Callback):  # type: ignore[misc]
    """Moves the schedules by the CPU time that is spent, keeps the policy that validates best, reads the meter."""

    def __init__(self, rival: Rival, task: Task, meter: Meter) -> None:
        super().__init__()
        self.rival, self.task, self.meter = rival, task, meter
        self.best_score, self.next_validation_s = -np.inf, 0.0
        self.kept: Any = None

    def _on_step(self) -> bool:
        rival, model, spent = self.rival, self.model, self.meter.spent()
        if rival.exploration_s:
            share = min(spent / rival.exploration_s, 1.0)
            model.exploration_schedule = lambda _: 1.0 + share * (rival.final_exploration - 1.0)
        if rival.validation_s and spent >= self.next_validation_s:
            self.next_validation_s = spent + rival.validation_s
            score = self.task.validate(self.as_policy(model.policy))
            if score > self.best_score:
                self.best_score, self.kept = score, copy.deepcopy(model.policy)
        return self.meter.read(self.as_policy(self.kept or model.policy), model.num_timesteps)

    def as_policy(self, policy: Any) -> Policy:
        """The deterministic decisions of a policy of Stable-Baselines3."""

        def decide(observations: Observations, legal: NDArray[np.bool_]) -> NDArray[np.int64]:
            masks = {"action_masks": legal} if "Maskable" in self.rival.algorithm else {}
            actions: NDArray[np.int64] = policy.predict(observations, deterministic=True, **masks)[0]
            return actions

        return decide
