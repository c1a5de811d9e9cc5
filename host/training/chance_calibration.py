"""How far the chance prior may be believed: the scale of its logits, fitted to bars that no weight has seen.

A network that has seen few bars predicts their accidents too.  On the validation part such a prediction is worth
nothing, so the best scale of its logits is near 0 (temperature scaling, Guo et al. 2017).  The logits have two parts,
scaled apart: the size of the next move is easy to foresee, its direction hard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.training.chance_diagnostics import chance_logits
from host.training.dataset import Dataset
from host.training.feature_store import FeatureStore
from kernels.market.chance import fill_realised_codes, log_softmax
from models.params import as_views
from models.shape import Array, ModelShape

MAX_VALIDATION_BARS = 16_384  # evenly spaced over the validation part
SHRINKAGE = 3.0  # a scale of z standard errors counts as 0 unless z squared is larger
MAX_SCALE, NEWTON_STEPS = 2.0, 8
SCALE_RANGE = -3.0, 6.0  # a Newton step stays within it


class ChanceCalibration(NamedTuple):
    """The factors of the two parts of the logits of a chance prior, and the evidence for them.

    The codes are ordered by the move that they stand for.  In one part a code and its mirror image are equal: it tells
    the size of a move.  In the other they are opposite: it tells the direction.
    """

    size_scale: float
    direction_scale: float
    size_z: float  # best factor of each part in standard errors; below about 2 there is no evidence for it
    direction_z: float
    validation_nll: float  # of the validation bars under the scaled prior, nats; log C if it knows nothing


def validation_bars(train_stop: int, validation_stop: int) -> NDArray[np.int64]:
    """The bars whose successors the calibration predicts; all of them lie within the validation part."""
    count = min(max(validation_stop - 1 - train_stop, 0), MAX_VALIDATION_BARS)
    return np.unique(np.linspace(train_stop, validation_stop - 2, count).astype(np.int64))


class ValidationPart:
    """Features and codes of the validation bars; there are none where the codes are learned, which have no order."""

    def __init__(self, data: Dataset, context: int, threads: int) -> None:
        stop = data.validation_stop if data.market_spec.codes.learned_code.size == 0 else 0
        self.ts = validation_bars(data.train_stop, stop)
        self.code = np.zeros(len(self.ts), np.int64)
        self.store = FeatureStore(data, len(self.ts) * context, threads, 0, context - 1)
        self.store.acquire(self.ts, 1)
        fill_realised_codes(self.code, data.market_spec.codes, data.bars, self.ts)


def calibrate_parts(parts: list[ValidationPart], networks: OnnxNetworks) -> ChanceCalibration | None:
    """How far the bars of all `parts` bear out the chance prior of the root network; None without bars."""
    if not any(len(part.ts) for part in parts):
        return None
    logits = np.concatenate([chance_logits(networks, part.store, part.ts) for part in parts])
    return calibrate_chance(logits, np.concatenate([part.code for part in parts]))


def calibrate_chance(logits: NDArray[np.float64], code: NDArray[np.int64]) -> ChanceCalibration:
    """The scale with which `logits` [n, C] predict `code` [n] best, shrunk by its own uncertainty.

    The estimate t with z standard errors becomes t (1 - SHRINKAGE / z^2), or 0, as James and Stein shrink a mean.
    """
    centred = logits - logits.mean(axis=1, keepdims=True)
    mirrored = centred[:, ::-1]
    parts = np.stack([centred + mirrored, centred - mirrored], axis=-1) / 2  # [n, C, 2]
    best, information = _most_likely_scale(parts, code)
    z = best * np.sqrt(information)
    shrunk = np.where(best > 0, best * np.maximum(0.0, 1.0 - SHRINKAGE / np.maximum(z * z, 1e-12)), 0.0)
    scale = np.minimum(shrunk, MAX_SCALE)
    log_p = log_softmax(parts @ scale)
    nll = -float(log_p[np.arange(len(code)), code].mean())
    return ChanceCalibration(float(scale[0]), float(scale[1]), float(z[0]), float(z[1]), nll)


def scale_chance_prior(flat: Array, shape: ModelShape, found: ChanceCalibration) -> Array:
    """A copy of the parameters `flat` [N] with the parts of the chance logits scaled."""
    same = np.float32((found.size_scale + found.direction_scale) / 2)
    mirrored = np.float32((found.size_scale - found.direction_scale) / 2)
    scaled = flat.copy()
    p = as_views(scaled, shape)
    for x in (p.chance_logits_w, p.chance_logits_b):
        x[:] = same * x + mirrored * x[..., ::-1]
    return scaled


def _most_likely_scale(
    parts: NDArray[np.float64], code: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Maximum-likelihood scale [2] of the parts [n, C, 2] of logits, and its Fisher information [2], by Newton."""
    scale, realised = np.full(2, 0.5), parts[np.arange(len(code)), code].sum(axis=0)
    information = np.zeros((2, 2))
    for _ in range(NEWTON_STEPS):
        p = np.exp(log_softmax(parts @ scale))
        mean = np.einsum("nc,nck->nk", p, parts)
        information = np.einsum("nc,nck,ncl->kl", p, parts, parts) - mean.T @ mean
        gradient = mean.sum(axis=0) - realised
        scale = np.clip(scale - np.linalg.solve(information + 1e-9 * np.eye(2), gradient), *SCALE_RANGE)
    return scale, np.maximum(np.diag(information), 0.0)
