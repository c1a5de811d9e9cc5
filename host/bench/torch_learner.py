"""The learning step in PyTorch, from the same weights on the same batches, for `bench learn` to measure beside ours."""

import math
from importlib import import_module
from typing import Any

from kernels.learning.replay_buffer import Batch
from models.adamw import ADAM_EPSILON, BETA_1, BETA_2, MAX_GRADIENT_NORM, learning_rate_at
from models.layers import HL_GAUSS_SIGMA, MASKED_LOGIT
from models.layers import LAYERNORM_EPSILON as NORM_EPSILON
from models.loss import DEFAULT_LOSS_WEIGHTS, LATENT_GRADIENT_SCALE, LOSSES
from models.params import ModelShape, as_views
from models.shape import Array

torch: Any = import_module("torch")
Tensor = Any


class TorchLearner:
    """The networks, losses and optimiser of `models.learner.Learner`, with PyTorch's gradients."""

    def __init__(
        self, shape: ModelShape, flat: Array, learning_rate: float, weight_decay: float, lr_decay_steps: float,
        threads: int, compiled: bool,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        named = vars(as_views(flat.copy(), shape))
        self._p = {name: torch.from_numpy(view).requires_grad_() for name, view in named.items()}
        decays = {"_w": weight_decay, "_b": 0.0}
        groups = [
            {"params": [p for name, p in self._p.items() if name.endswith(end)], "weight_decay": decay}
            for end, decay in decays.items()
        ]
        self._optimizer = torch.optim.AdamW(groups, learning_rate, (BETA_1, BETA_2), ADAM_EPSILON, fused=True)
        self._shape, self._learning_rate, self._lr_decay_steps, self._step = shape, learning_rate, lr_decay_steps, 0
        self._losses = torch.compile(self._eager_losses) if compiled else self._eager_losses

    def learn(self, batch: Batch) -> dict[str, float]:
        """One step on a batch; its losses."""
        s, data = self._shape, {name: torch.from_numpy(array) for name, array in batch._asdict().items()}
        # outside of what is compiled: the compiler would compute these targets anew wherever they are read
        data["value"] = hl_gauss(data["value"], s.value_limit, s.value_bins)
        data["reward"] = hl_gauss(data["reward"], s.reward_limit, s.reward_bins)
        losses = self._losses(**data)
        self._optimizer.zero_grad()
        (losses @ torch.tensor(DEFAULT_LOSS_WEIGHTS[: len(LOSSES)])).backward()
        torch.nn.utils.clip_grad_norm_(self._p.values(), MAX_GRADIENT_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self._step, self._learning_rate, self._lr_decay_steps)
        self._optimizer.step()
        self._step += 1
        return dict(zip(LOSSES, losses.tolist(), strict=True))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self._p[f"{name}_w"].T, self._p[f"{name}_b"])

    def _mlp(self, hidden: str, out: str, *inputs: Tensor) -> Tensor:
        return self._linear(out, torch.relu(self._linear(hidden, torch.cat(inputs, -1))))

    def _eager_losses(self, features: Tensor, position: Tensor, afterstate_position: Tensor, **batch: Tensor) -> Tensor:
        """[5] the losses in the order of LOSSES; the other tensors of a `Batch`, value and reward [..., V]."""
        s, K = self._shape, afterstate_position.shape[1]
        one_hot = torch.nn.functional.one_hot
        action, code = one_hot(batch["action"], s.actions).float(), one_hot(batch["code"], s.codes).float()
        m = layer_norm(self._mlp("representation_hidden", "representation_out", features))
        latents = [m]
        for k in range(K):
            m = LATENT_GRADIENT_SCALE * m + (1 - LATENT_GRADIENT_SCALE) * m.detach()
            m = layer_norm(m + self._mlp("dynamics_hidden", "dynamics_out", m, code[:, k]))
            latents.append(m)
        m = torch.stack(latents, 1)
        hidden = torch.relu(self._linear("prediction_hidden", torch.cat([m, position], -1)))
        policy = self._linear("policy", hidden).masked_fill(~batch["legal"], MASKED_LOGIT)
        decision, step, before = batch["weight"], batch["weight"][:, 1:], m[:, :K]
        afterstate = self._mlp("afterstate_hidden", "afterstate_value", before, action, afterstate_position)
        reward = self._mlp("reward_hidden", "reward", before, code, afterstate_position, position[:, 1:])
        losses = [
            cross_entropy(policy, batch["policy"] * batch["legal"], decision),
            cross_entropy(self._linear("value", hidden), batch["value"], decision),
            cross_entropy(afterstate, batch["value"][:, :K], step),
            cross_entropy(self._mlp("chance_hidden", "chance_logits", before), code, step),
            cross_entropy(reward, batch["reward"], step),
        ]
        return torch.stack(losses)


def layer_norm(x: Tensor) -> Tensor:
    """Layer norm without parameters."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON)


def cross_entropy(z: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean weighted cross entropy of logits."""
    return -(weight * (target * torch.log_softmax(z, -1)).sum(-1)).mean()


def hl_gauss(x: Tensor, limit: float, bins: int) -> Tensor:
    """[..., bins] categorical targets of x [...]."""
    width = 2 * limit / (bins - 1)
    edges = torch.linspace(-limit - width / 2, limit + width / 2, bins + 1)
    cdf = torch.erf((edges - x.clamp(-limit, limit)[..., None]) / (HL_GAUSS_SIGMA * width * math.sqrt(2)))
    mass = cdf.diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)
