"""MuZero of LightZero learns CartPole-v1 by LightZero's own settings, until its own evaluator sees the goal.

The source is run by a Python that has LightZero (`host/bench/cartpole_rivals.py`), and needs nothing of this program.
Changed are: CartPole-v1 for -v0, the goal, no GPU, one thread, and environments in the process itself.
"""

import json
import sys
import time
from importlib import import_module
from typing import Any

CURVE = "curve.json"  # [CPU seconds, environment steps, updates, mean return] at each evaluation


def train(seed: int, limit_s: float, goal: float) -> None:
    """Train until `goal` or `limit_s` CPU seconds, and write CURVE into the current folder.

    The clock begins behind the evaluation of the untrained agent, and stands still in every later one.
    """
    import_module("torch").set_num_threads(1)
    settings = import_module("zoo.classic_control.cartpole.config.cartpole_muzero_config")
    main, create = settings.main_config, settings.create_config
    main.env.env_id, main.env.stop_value, main.policy.cuda = "CartPole-v1", goal, False
    create.env_manager.type = "base"
    Evaluator = import_module("lzero.worker").MuZeroEvaluator
    evaluate, curve, resumed = Evaluator.eval, list[list[float]](), [0.0]

    def evaluate_off_the_clock(self: Any, save: Any, updates: int, steps: int) -> Any:
        seconds = curve[-1][0] + time.process_time() - resumed[0] if curve else 0.0
        stop, episodes = evaluate(self, save, updates, steps)
        curve.append([seconds, steps, updates, float(episodes["eval_episode_return_mean"])])
        with open(CURVE, "w", encoding="utf-8") as file:
            json.dump(curve, file)
        resumed[0] = time.process_time()
        return stop or seconds >= limit_s, episodes

    Evaluator.eval = evaluate_off_the_clock
    import_module("lzero.entry").train_muzero([main, create], seed=seed, max_env_step=settings.max_env_step)


if __name__ == "__main__":
    train(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
