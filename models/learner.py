"""The learner: batches cut into chunks on threads, their gradients added, one optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from kernels.learning.replay_buffer import Batch
from models.adamw import MAX_GRADIENT_NORM, AdamState, adamw_update, learning_rate_at, new_adam_state, reduce_gradients
from models.extensions.chance_encoder import ChanceEncoderWork, new_chance_encoder_work
from models.extensions.consistency import ConsistencyWork, new_consistency_work
from models.extensions.transformer import TransformerActivations, new_transformer_activations
from models.extensions.unizero import TargetLatents, new_target_latents, represent_targets
from models.extensions.value_prefix import RESET_INTERVAL, value_prefix_forward
from models.layers import decode, linear_relu_forward
from models.loss import (
    DEFAULT_LOSS_WEIGHTS,
    LATENT_GRADIENT_SCALE,
    LOSSES,
    NUM_CHUNKS,
    Activations,
    LossWeights,
    fill_inputs,
    fill_targets,
    loss_and_gradient,
    new_activations,
    num_seen_bars,
    unroll_forward,
)
from models.params import Array, ModelShape, Params, as_views, new_params, num_params, weight_decays


class Workspace(NamedTuple):
    """Workspaces of a thread."""

    activations: Activations
    consistency: ConsistencyWork | None  # of the consistency loss
    transformer: TransformerActivations | None  # of a transformer
    bar_features: Array | None  # [Z, n, F] features of more bars than the present one
    target_latents: TargetLatents | None  # of joint training
    chance_encoder: ChanceEncoderWork | None  # of learned codes


def new_workspace(
    shape: ModelShape, n: int, K: int, weights: LossWeights, dtype: Any = np.float32, num_candidates: int = 0
) -> Workspace:
    """Workspaces for n windows of K steps."""
    J, joint = (K, True) if weights.unizero > 0 else (0, False)
    Z = shape.context + J
    return Workspace(
        new_activations(shape, n, K, dtype, joint, num_candidates),
        new_consistency_work(shape, K * n, dtype) if weights.consistency > 0 else None,
        new_transformer_activations(shape, n, K, J, dtype) if shape.num_layers else None,
        np.zeros((Z, n, shape.features), dtype) if Z > 1 else None,
        new_target_latents(shape, n, K, dtype) if joint else None,
        new_chance_encoder_work(shape, n, K, dtype) if shape.chance_encoder_width else None,
    )


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
        lr_decay_steps: int,
        threads: int,
        weights: LossWeights = DEFAULT_LOSS_WEIGHTS,
        num_candidates: int = 0,
    ) -> None:
        if batch_size % NUM_CHUNKS:
            raise ValueError(f"a batch of {batch_size} windows is not {NUM_CHUNKS} equal chunks")
        if (weights.consistency > 0) != (shape.projector_width > 0):
            raise ValueError("the consistency loss and its layers go together: both or neither")
        if shape.num_layers and weights.consistency > 0:
            raise ValueError("a transformer has no consistency loss: joint training compares its latents")
        self.shape, self.step = shape, 0
        self.params = new_params(shape, seed)
        self.adam: AdamState = new_adam_state(self.params)
        self._learning_rate, self._lr_decay_steps, self._weights = learning_rate, lr_decay_steps, weights
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

    def learn(self, batch: Batch, target_params: Params | None = None) -> dict[str, float]:
        """One step on a batch; its losses.  Raises FloatingPointError and changes nothing if one is not finite.

        The consistency loss and joint training need the soft target network and a batch that looks ahead.
        """
        w, rest = self._weights, [*LOSSES]
        if w.consistency + w.unizero > 0 and (target_params is None or batch.next_features.shape[1] == 0):
            raise ValueError("a loss that looks ahead needs the target network and a batch that does")
        rest += ["beta_head"] if self.shape.num_beta_params > 0 else []
        rest += ["consistency"] if w.consistency > 0 else []
        rest += ["latent"] if w.unizero > 0 else []
        rest += ["commitment", "code_entropy", "code_move"] if self.shape.chance_encoder_width else []
        if self.shape.chance_encoder_width and batch.next_features.shape[1] * batch.move.shape[1] == 0:
            raise ValueError("learned codes need a batch that looks ahead, with moves")
        rows = list(self._map(lambda i: self._chunk_gradient(batch, target_params, i), range(NUM_CHUNKS)))
        found = dict(zip(rest, (sum(column) for column in zip(*rows, strict=True)), strict=True))
        found["gradient_norm"] = math.sqrt(sum(self._map(self._reduce_gradients, self._param_slices())))
        bad = [name for name, x in found.items() if not math.isfinite(x)]
        if bad:
            raise FloatingPointError(f"learning step {self.step}: not finite: {', '.join(bad)}")
        scale = min(1.0, MAX_GRADIENT_NORM / max(found["gradient_norm"], 1e-12))
        list(self._map(lambda part: self._update(part, scale), self._param_slices()))
        self.step += 1
        return found

    def reward_errors(self, batch: Batch) -> list[float]:
        """Of a chunk of the batch, by depth: see the function of this name."""
        room = self._workspaces.get_nowait()
        try:
            return reward_errors(room, self._param_views, batch, self.shape)
        finally:
            self._workspaces.put(room)

    def _param_slices(self) -> list[slice]:
        """The parameters in CHUNKS pieces, so that the optimiser runs on all threads as well."""
        edges = [len(self.params) * i // NUM_CHUNKS for i in range(NUM_CHUNKS + 1)]
        return [slice(first, stop) for first, stop in pairwise(edges)]

    def _reduce_gradients(self, part: slice) -> float:
        return reduce_gradients(self._gradient_parts, part.start, part.stop)

    def _update(self, part: slice, scale: float) -> None:
        adam = AdamState(self.adam.mean[part], self.adam.square[part])
        rate = learning_rate_at(self.step, self._learning_rate, self._lr_decay_steps)
        adamw_update(
            self.params[part], adam, self._gradient_parts[0, part], self._weight_decay[part], self.step, rate, scale
        )

    def _chunk_gradient(self, batch: Batch, target_params: Params | None, i: int) -> list[float]:
        room = self._workspaces.get_nowait()  # there is one for every thread
        try:
            work, n = room.activations, room.activations.latent.shape[1]
            rows = slice(i * n, (i + 1) * n)
            fill_inputs(work, batch, i * n)
            fill_targets(work, batch, i * n, self.shape, self._weights.unizero)
            x = gather_features(room, batch, rows)
            sight = came = None
            if room.consistency is not None and target_params is not None:
                room.consistency.x.reshape(len(work.dynamics_hidden), n, -1)[...] = batch.next_features[rows].swapaxes(
                    0, 1
                )
                sight = room.consistency, target_params
            if room.target_latents is not None and target_params is not None:
                came = represent_targets(room.target_latents, target_params, x)
            coding = (
                (room.chance_encoder, batch.next_features[rows], batch.move[rows])
                if room.chance_encoder is not None
                else None
            )
            more = LATENT_GRADIENT_SCALE, sight, room.transformer, came, coding
            return loss_and_gradient(self._gradients[i], work, self._param_views, x, self._weights, *more)
        finally:
            self._workspaces.put(room)


def reward_errors(workspace: Workspace, p: Params, batch: Batch, shape: ModelShape) -> list[float]:
    """Mean |predicted - realised reward| of the bars 1 .. K of the first windows, all codes after x being imagined.

    What a search suffers from the drift of imagined latents (exposure bias) shows as a growth with the depth.
    """
    work, n, M = (workspace.activations, workspace.activations.latent.shape[1], len(workspace.activations.reward_input))
    fill_inputs(work, batch, 0)
    unroll_forward(work, p, gather_features(workspace, batch, slice(0, n)), workspace.transformer)
    linear_relu_forward(work.hidden[:M], work.reward_input, p.reward_hidden_w, p.reward_hidden_b)
    told, weight = work.hidden[:M], batch.weight[:n, 1:].T
    if shape.value_prefix_width:
        value_prefix_forward(work.value_prefix, told, p.lstm_w, p.lstm_b)
        told = work.value_prefix.normed
    found = decode(told @ p.reward_w + p.reward_b, shape.reward_limit).reshape(weight.shape)
    if shape.value_prefix_width:
        found[1:] -= found[:-1] * (np.arange(1, len(found)) % RESET_INTERVAL > 0)[:, None]
    gap = np.abs(found - batch.reward[:n].T) * weight
    return [float(x) for x in gap.sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0)]


def gather_features(workspace: Workspace, batch: Batch, rows: slice) -> Array:
    """Features [Z n, F] of the bars of these windows: the context, those that came, the present one."""
    if workspace.bar_features is None:
        return batch.features[rows]
    Z, n, F = workspace.bar_features.shape
    J = num_seen_bars(workspace.activations)
    past = batch.features[rows].reshape(n, Z - J, F)
    workspace.bar_features[: Z - J - 1] = past[:, :-1].swapaxes(0, 1)
    workspace.bar_features[Z - J - 1 : Z - 1] = batch.next_features[rows, :J].swapaxes(0, 1)
    workspace.bar_features[Z - 1] = past[:, -1]
    return workspace.bar_features.reshape(-1, F)
