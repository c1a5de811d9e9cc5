"""The outputs of the five networks, each computed by numpy as its equation says."""

import numpy as np

from kernels.learning.replay_buffer import Batch
from models import layers
from models import params as net
from tests.fixtures.windows import SHAPE, K


def naive_outputs(p: net.Params, batch: Batch, b: int) -> list[dict[str, np.ndarray]]:
    """Latent and logits of window b at every step, layer by layer."""

    def norm(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / np.sqrt(x.var() + layers.LAYERNORM_EPSILON)

    def head(hidden: str, out: str, *inputs: np.ndarray) -> np.ndarray:
        z = np.maximum(np.concatenate(inputs) @ getattr(p, f"{hidden}_w") + getattr(p, f"{hidden}_b"), 0)
        return np.asarray(z @ getattr(p, f"{out}_w") + getattr(p, f"{out}_b"))

    m, found = norm(head("representation_hidden", "representation_out", batch.features[b].astype(float))), []
    for k in range(K + 1):
        here = {
            "latent": m,
            "policy": head("prediction_hidden", "policy", m, batch.position[b, k]),
            "value": head("prediction_hidden", "value", m, batch.position[b, k]),
        }
        found.append(here)
        if k == K:
            break
        action, code = np.eye(SHAPE.actions)[batch.action[b, k]], np.eye(SHAPE.codes)[batch.code[b, k]]
        here["afterstate_value"] = head(
            "afterstate_hidden", "afterstate_value", m, action, batch.afterstate_position[b, k]
        )
        here["code"] = head("chance_hidden", "chance_logits", m)
        here["reward"] = head(
            "reward_hidden", "reward", m, code, batch.afterstate_position[b, k], batch.position[b, k + 1]
        )
        m = norm(m + head("dynamics_hidden", "dynamics_out", m, code))
    return found
