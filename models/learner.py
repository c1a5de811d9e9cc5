"""The learner: a batch cut into chunks on threads, their gradients added in order, one optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from kernels.learning.replay_buffer import Batch
from models.adamw import MAX_GRADIENT_NORM, AdamState, adamw_update, learning_rate_at, new_adam_state, reduce_gradients
from models.extension import DEFAULT_LOSS_WEIGHTS, LossWeights
from models.loss import NUM_CHUNKS, Workspace, chunk_losses, new_workspace, reward_errors
from models.params import ModelShape, Params, as_views, new_params, not_finite, num_params, param_slices, weight_decays
from models.registry import active_extensions, needs

HEAD_DECAY_STEPS = 540.0  # heads fit targets without noise: however few the bars, their rate falls no sooner
MAX_NAMES = 4  # in a message


class Learner:
    """Parameters, optimiser and workspaces; `learn` takes one step and allocates nothing large."""

    def __init__(
        self,
        shape: ModelShape,
        batch_size: int,
        K: int,
        seed: int,
        learning_rate: float,
        weight_decay: float,
        lr_decay_steps: float,
        threads: int,
        weights: LossWeights = DEFAULT_LOSS_WEIGHTS,
        num_candidates: int = 0,
        freeze_steps: float = math.inf,
    ) -> None:
        if batch_size % NUM_CHUNKS:
            raise ValueError(f"a batch of {batch_size} windows is not {NUM_CHUNKS} equal chunks")
        self.extensions = active_extensions(shape, weights)
        self.shape, self.step = shape, 0
        self.params = new_params(shape, seed)
        self.adam: AdamState = new_adam_state(self.params)
        self._learning_rate, self.rate_factor = learning_rate, 1.0  # the factor falls where training diverged
        of_heads = max(lr_decay_steps, HEAD_DECAY_STEPS), math.inf
        of_others = lr_decay_steps, freeze_steps
        self._parts = [(part, *(of_heads if is_head else of_others)) for part, is_head in param_slices(shape)]
        self._weight_decay = weight_decays(shape, weight_decay)
        self._param_views = as_views(self.params, shape)
        self._gradient_parts = np.zeros((NUM_CHUNKS, num_params(shape)), np.float32)
        self._gradients = [as_views(part, shape) for part in self._gradient_parts]
        # one a thread, whichever takes it: it stays in the cache
        self._workspaces = SimpleQueue[Workspace]()
        for _ in range(min(threads, NUM_CHUNKS)):
            self._workspaces.put(
                new_workspace(shape, batch_size // NUM_CHUNKS, K, weights, num_candidates=num_candidates)
            )
        pool = ThreadPoolExecutor(min(threads, NUM_CHUNKS))
        self._map: Callable[..., Iterable[Any]] = map if threads == 1 else pool.map  # this thread needs no pool

    def learn(
        self, batch: Batch, target_params: Params | None = None, beside: Iterable[Callable[[], None]] = ()
    ) -> dict[str, float]:
        """Take one step on a batch; its losses by name and the norm of the gradient.

        The threads run the tasks `beside` first: on threads of their own these would wait for a core, or make one wait.
        Raises ValueError if an extension misses the soft target network or a part of the batch.  Raises
        FloatingPointError and changes nothing if a loss or the gradient is not finite.
        """
        given = {"target": target_params is not None, "next_features": batch.next_features.shape[1] > 0}
        missing = sorted(name for name in needs(self.extensions) if not given[name])
        if missing:
            raise ValueError(f"a loss that looks ahead needs {', '.join(missing)}")
        gradients = (partial(self._chunk_gradient, batch, target_params, i) for i in range(NUM_CHUNKS))
        chunks = list(self._map(lambda task: task(), [*beside, *gradients]))[-NUM_CHUNKS:]
        losses = {name: sum(chunk[name] for chunk in chunks) for name in chunks[0]}
        squares = [reduce_gradients(self._gradient_parts, own.start, own.stop) for own, _, _ in self._parts]
        losses["gradient_norm"] = math.sqrt(sum(squares))
        bad = [name for name, x in losses.items() if not math.isfinite(x)]
        if bad:
            bad += [f"gradient of {name}" for name in not_finite(self._gradient_parts[0], self.shape)]
            bad = [f"weight {name}" for name in not_finite(self.params, self.shape)] + bad
            raise FloatingPointError(f"learning step {self.step}: not finite: {name_few(bad)}")
        scale = min(1.0, MAX_GRADIENT_NORM / max(losses["gradient_norm"], 1e-12))
        for own, decay_steps, stop in self._parts:  # of a default network, it takes less than to wake a thread
            if self.step < stop:
                self._update(own, decay_steps, scale)
        self.step += 1
        return losses

    def reward_errors(self, batch: Batch) -> dict[str, float]:
        """The reward error of each step of the first chunk of a batch, by name, if an extension reports it."""
        if not any(extension.reports_reward_errors for extension in self.extensions):
            return {}
        workspace = self._workspaces.get_nowait()
        try:
            errors = reward_errors(workspace, self._param_views, batch)
        finally:
            self._workspaces.put(workspace)
        return {f"reward_error_{k}": error for k, error in enumerate(errors, 1)}

    def _update(self, own: slice, decay_steps: float, scale: float) -> None:
        adam = AdamState(self.adam.mean[own], self.adam.square[own])
        rate = self.rate_factor * learning_rate_at(self.step, self._learning_rate, decay_steps)
        adamw_update(
            self.params[own], adam, self._gradient_parts[0, own], self._weight_decay[own], self.step, rate, scale
        )

    def _chunk_gradient(self, batch: Batch, target_params: Params | None, i: int) -> dict[str, float]:
        workspace = self._workspaces.get_nowait()  # there is one for every thread
        try:
            first = i * workspace.activations.latent.shape[1]
            return chunk_losses(workspace, self._gradients[i], self._param_views, batch, first, target_params)
        finally:
            self._workspaces.put(workspace)


def name_few(names: list[str]) -> str:
    """The first names of a list, and how many there are more."""
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
