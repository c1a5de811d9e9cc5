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
from models.adamw import CLIP, Adam, add_up, new_adam, rate_at, update
from models.extensions.chance_encoder import Coder, new_coder
from models.extensions.consistency import Foresight, new_foresight
from models.extensions.transformer import Stream, new_stream
from models.extensions.unizero import Seen, new_seen, see
from models.extensions.value_prefix import RESET, prefix_forward
from models.layers import decode, hidden_forward
from models.loss import (
    CHUNKS,
    LATENT_GRADIENT,
    LOSSES,
    WEIGHTS,
    LossWeights,
    Work,
    bars_that_came,
    fill_inputs,
    fill_targets,
    forward_latents,
    loss_and_gradient,
    new_work,
)
from models.params import Array, Params, Shape, count, decays, new_params, views


class Room(NamedTuple):
    """Workspaces of a thread."""

    work: Work
    foresight: Foresight | None  # of the consistency loss
    stream: Stream | None  # of a transformer
    bars: Array | None  # [Z, n, F] features of more bars than the present one
    seen: Seen | None  # of joint training
    coder: Coder | None  # of learned codes


def new_room(
    shape: Shape, n: int, K: int, weights: LossWeights, dtype: Any = np.float32, candidates: int = 0
) -> Room:
    """Workspaces for n windows of K steps."""
    J, joint = (K, True) if weights.joint > 0 else (0, False)
    Z = shape.context + J
    return Room(
        new_work(shape, n, K, dtype, joint, candidates),
        new_foresight(shape, K * n, dtype) if weights.consistency > 0 else None,
        new_stream(shape, n, K, J, dtype) if shape.layers else None,
        np.zeros((Z, n, shape.features), dtype) if Z > 1 else None,
        new_seen(shape, n, K, dtype) if joint else None,
        new_coder(shape, n, K, dtype) if shape.encode else None,
    )


class Learner:
    """Parameters, optimiser and workspaces; `learn` takes one step and allocates nothing large."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        K: int,
        seed: int,
        rate: float,
        decay: float,
        horizon: int,
        threads: int,
        weights: LossWeights = WEIGHTS,
        candidates: int = 0,
    ) -> None:
        if batch % CHUNKS:
            raise ValueError(f"a batch of {batch} windows is not {CHUNKS} equal chunks")
        if (weights.consistency > 0) != (shape.project > 0):
            raise ValueError("the consistency loss and its layers go together: both or neither")
        if shape.layers and weights.consistency > 0:
            raise ValueError("a transformer has no consistency loss: joint training compares its latents")
        self.shape, self.step = shape, 0
        self.params = new_params(shape, seed)
        self.adam: Adam = new_adam(self.params)
        self._rate, self._horizon, self._weights = rate, horizon, weights
        self._decays = decays(shape, decay)
        self._views = views(self.params, shape)
        self._parts = np.zeros((CHUNKS, count(shape)), np.float32)
        self._d = [views(part, shape) for part in self._parts]
        # one a thread, whichever takes it: it stays in the cache
        self._rooms = SimpleQueue[Room]()
        for _ in range(min(threads, CHUNKS)):
            self._rooms.put(new_room(shape, batch // CHUNKS, K, weights, candidates=candidates))
        pool = ThreadPoolExecutor(min(threads, CHUNKS))
        self._each: Callable[..., Iterable[Any]] = (
            map if threads == 1 else pool.map
        )  # this thread needs no pool

    def learn(self, batch: Batch, target: Params | None = None) -> dict[str, float]:
        """One step on a batch; its losses.  Raises FloatingPointError and changes nothing if one is not finite.

        The consistency loss and joint training need the soft target network and a batch that looks ahead.
        """
        w, rest = self._weights, [*LOSSES]
        if w.consistency + w.joint > 0 and (target is None or batch.ahead.shape[1] == 0):
            raise ValueError("a loss that looks ahead needs the target network and a batch that does")
        rest += ["size"] if self.shape.sizes > 0 else []
        rest += ["consistency"] if w.consistency > 0 else []
        rest += ["latent"] if w.joint > 0 else []
        rest += ["commitment", "usage", "telling"] if self.shape.encode else []
        if self.shape.encode and batch.ahead.shape[1] * batch.move.shape[1] == 0:
            raise ValueError("learned codes need a batch that looks ahead, with moves")
        rows = list(self._each(lambda i: self._chunk(batch, target, i), range(CHUNKS)))
        found = dict(zip(rest, (sum(column) for column in zip(*rows, strict=True)), strict=True))
        found["gradient_norm"] = math.sqrt(sum(self._each(self._add_up, self._slices())))
        bad = [name for name, x in found.items() if not math.isfinite(x)]
        if bad:
            raise FloatingPointError(f"learning step {self.step}: not finite: {', '.join(bad)}")
        scale = min(1.0, CLIP / max(found["gradient_norm"], 1e-12))
        list(self._each(lambda part: self._update(part, scale), self._slices()))
        self.step += 1
        return found

    def reward_errors(self, batch: Batch) -> list[float]:
        """Of a chunk of the batch, by depth: see the function of this name."""
        room = self._rooms.get_nowait()
        try:
            return reward_errors(room, self._views, batch, self.shape)
        finally:
            self._rooms.put(room)

    def _slices(self) -> list[slice]:
        """The parameters in CHUNKS pieces, so that the optimiser runs on all threads as well."""
        edges = [len(self.params) * i // CHUNKS for i in range(CHUNKS + 1)]
        return [slice(first, stop) for first, stop in pairwise(edges)]

    def _add_up(self, part: slice) -> float:
        return add_up(self._parts, part.start, part.stop)

    def _update(self, part: slice, scale: float) -> None:
        adam = Adam(self.adam.mean[part], self.adam.square[part])
        rate = rate_at(self.step, self._rate, self._horizon)
        update(self.params[part], adam, self._parts[0, part], self._decays[part], self.step, rate, scale)

    def _chunk(self, batch: Batch, target: Params | None, i: int) -> list[float]:
        room = self._rooms.get_nowait()  # there is one for every thread
        try:
            work, n = room.work, room.work.latent.shape[1]
            rows = slice(i * n, (i + 1) * n)
            fill_inputs(work, batch, i * n)
            fill_targets(work, batch, i * n, self.shape, self._weights.joint)
            x = features_of(room, batch, rows)
            sight = came = None
            if room.foresight is not None and target is not None:
                room.foresight.x.reshape(len(work.move), n, -1)[...] = batch.ahead[rows].swapaxes(0, 1)
                sight = room.foresight, target
            if room.seen is not None and target is not None:
                came = see(room.seen, target, x)
            coding = (room.coder, batch.ahead[rows], batch.move[rows]) if room.coder is not None else None
            more = LATENT_GRADIENT, sight, room.stream, came, coding
            return loss_and_gradient(self._d[i], work, self._views, x, self._weights, *more)
        finally:
            self._rooms.put(room)


def reward_errors(room: Room, p: Params, batch: Batch, shape: Shape) -> list[float]:
    """Mean |predicted - realised reward| of the bars 1 .. K of the first windows, all codes after x being imagined.

    What a search suffers from the drift of imagined latents (exposure bias) shows as a growth with the depth.
    """
    work, n, M = room.work, room.work.latent.shape[1], len(room.work.gain_in)
    fill_inputs(work, batch, 0)
    forward_latents(work, p, features_of(room, batch, slice(0, n)), room.stream)
    hidden_forward(work.hidden[:M], work.gain_in, p.gain_w, p.gain_b)
    told, weight = work.hidden[:M], batch.weight[:n, 1:].T
    if shape.prefix:
        prefix_forward(work.prefix, told, p.prefix_w, p.prefix_b)
        told = work.prefix.normed
    found = decode(told @ p.reward_w + p.reward_b, shape.reward_limit).reshape(weight.shape)
    if shape.prefix:
        found[1:] -= found[:-1] * (np.arange(1, len(found)) % RESET > 0)[:, None]
    gap = np.abs(found - batch.reward[:n].T) * weight
    return [float(x) for x in gap.sum(axis=1) / np.maximum(weight.sum(axis=1), 1.0)]


def features_of(room: Room, batch: Batch, rows: slice) -> Array:
    """Features [Z n, F] of the bars of these windows: the context, those that came, the present one."""
    if room.bars is None:
        return batch.x[rows]
    Z, n, F = room.bars.shape
    J = bars_that_came(room.work)
    past = batch.x[rows].reshape(n, Z - J, F)
    room.bars[: Z - J - 1] = past[:, :-1].swapaxes(0, 1)
    room.bars[Z - J - 1 : Z - 1] = batch.ahead[rows, :J].swapaxes(0, 1)
    room.bars[Z - 1] = past[:, -1]
    return room.bars.reshape(-1, F)
