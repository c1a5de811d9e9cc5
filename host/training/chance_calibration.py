"""How far the chance prior may be believed: the scale of its logits, fitted to bars that no weight has seen.

A network that has seen few bars predicts their accidents too.  On the validation part such a prediction is worth
nothing, so the best scale of its logits is near 0 (temperature scaling, Guo et al. 2017).  The logits have two parts,
scaled apart: the size of the next move is easy to foresee, its direction hard.  Learned codes have no order and are not
equally frequent: one scale moves their logits between what the prior says of all bars together and what it says of one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.artifact.networks import OnnxNetworks
from host.training.chance_diagnostics import chance_logits, learned_codes
from host.training.dataset import Dataset
from host.training.feature_store import FeatureStore
from kernels.market.chance import fill_realised_codes, log_softmax
from models.params import Params, as_views
from models.shape import Array, ModelShape

MAX_VALIDATION_BARS = 16_384  # evenly spaced over the validation part
SHRINKAGE = 3.0  # a scale of z standard errors counts as 0 unless z squared is larger
MAX_SCALE, NEWTON_STEPS = 2.0, 8
MIN_PROBABILITY = 1e-6  # of a code in the baseline
SCALE_RANGE = -3.0, 6.0  # a Newton step stays within it


class ChanceCalibration(NamedTuple):
    """The factors of the two parts of the logits of a chance prior, and the evidence for them.

    The codes are ordered by the move that they stand for.  In one part a code and its mirror image are equal: it tells
    the size of a move.  In the other they are opposite: it tells the direction.  Both factors of learned codes are one.
    """

    size_scale: float
    direction_scale: float
    size_z: float  # best factor of each part in standard errors; below about 2 there is no evidence for it
    direction_z: float | None  # None of learned codes, which have no directions
    validation_nll: float  # of the validation bars under the scaled prior, nats; log C if it knows nothing
    baseline: tuple[float, ...] = ()  # [C] logits of learned codes without a forecast

    def metrics(self) -> dict[str, float]:
        """Its numbers by name."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, float)}


def validation_bars(train_stop: int, validation_stop: int) -> NDArray[np.int64]:
    """The bars whose successors the calibration predicts; all of them lie within the validation part."""
    count = min(max(validation_stop - 1 - train_stop, 0), MAX_VALIDATION_BARS)
    return np.unique(np.linspace(train_stop, validation_stop - 2, count).astype(np.int64))


class ValidationPart:
    """Features of the validation bars, and their codes unless those are learned: they change with the encoder."""

    def __init__(self, data: Dataset, context: int, threads: int) -> None:
        is_learned = data.market_spec.codes.learned_code.size > 0
        self.ts = validation_bars(data.train_stop, data.validation_stop)
        self.code = np.zeros(len(self.ts), np.int64)
        self.store = FeatureStore(data, len(self.ts) * (context + is_learned), threads, 0, context - 1)
        self.store.acquire(self.ts, 1 + is_learned)
        if not is_learned:
            fill_realised_codes(self.code, data.market_spec.codes, data.bars, self.ts)


def calibrate_parts(
    parts: list[ValidationPart], networks: OnnxNetworks, p: Params, shape: ModelShape
) -> ChanceCalibration | None:
    """How far the bars of all `parts` bear out the chance prior of the root network; None without bars.

    The encoder of learned codes, if there is one, has the parameters `p`.
    """
    if not any(len(part.ts) for part in parts):
        return None
    logits = np.concatenate([chance_logits(networks, part.store, part.ts) for part in parts])
    if shape.chance_encoder_width:
        return calibrate_learned(logits, np.concatenate([learned_codes(p, shape, x.store, x.ts) for x in parts]))
    return calibrate_chance(logits, np.concatenate([part.code for part in parts]))


def calibrate_chance(logits: NDArray[np.float64], code: NDArray[np.int64]) -> ChanceCalibration:
    """The scale with which `logits` [n, C] predict `code` [n] best, shrunk by its own uncertainty.

    The estimate t with z standard errors becomes t (1 - SHRINKAGE / z^2), or 0, as James and Stein shrink a mean.
    """
    centred = logits - logits.mean(axis=1, keepdims=True)
    mirrored = centred[:, ::-1]
    parts = np.stack([centred + mirrored, centred - mirrored], axis=-1) / 2  # [n, C, 2]
    (size, direction), (size_z, direction_z), nll = _shrunk_scale(parts, code, np.zeros(logits.shape[1]))
    return ChanceCalibration(size, direction, size_z, direction_z, nll)


def calibrate_learned(logits: NDArray[np.float64], code: NDArray[np.int64]) -> ChanceCalibration:
    """The scale of `logits` [n, C] about their baseline, the mean of their probabilities, as `calibrate_chance`."""
    log_p = log_softmax(logits)
    baseline = np.log(np.exp(log_p).mean(axis=0) + MIN_PROBABILITY)
    (scale,), (z,), nll = _shrunk_scale((log_p - baseline)[..., None], code, baseline)
    return ChanceCalibration(scale, scale, z, None, nll, tuple(baseline.tolist()))


def _shrunk_scale(
    parts: NDArray[np.float64], code: NDArray[np.int64], baseline: NDArray[np.float64]
) -> tuple[list[float], list[float], float]:
    """The scale [k] of the parts [n, C, k] of the logits above `baseline` [C], shrunk; its z [k]; the NLL with it."""
    best, information = _most_likely_scale(parts, code, baseline)
    z = best * np.sqrt(information)
    shrunk = np.where(best > 0, best * np.maximum(0.0, 1.0 - SHRINKAGE / np.maximum(z * z, 1e-12)), 0.0)
    scale = np.minimum(shrunk, MAX_SCALE)
    log_p = log_softmax(parts @ scale + baseline)
    return scale.tolist(), z.tolist(), -float(log_p[np.arange(len(code)), code].mean())


def scale_chance_prior(flat: Array, shape: ModelShape, found: ChanceCalibration) -> Array:
    """A copy of the parameters `flat` [N] with the parts of the chance logits scaled, about the baseline if any."""
    same = np.float32((found.size_scale + found.direction_scale) / 2)
    mirrored = np.float32((found.size_scale - found.direction_scale) / 2)
    scaled = flat.copy()
    p = as_views(scaled, shape)
    for x in (p.chance_logits_w, p.chance_logits_b):
        x[:] = same * x + mirrored * x[..., ::-1]
    if found.baseline:
        p.chance_logits_b += (1 - same) * np.array(found.baseline, np.float32)
    return scaled


def _most_likely_scale(
    parts: NDArray[np.float64], code: NDArray[np.int64], baseline: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Maximum-likelihood scale [k] of the parts [n, C, k] of logits, and its Fisher information [k], by Newton."""
    k = parts.shape[2]
    scale, realised = np.full(k, 0.5), parts[np.arange(len(code)), code].sum(axis=0)
    information = np.zeros((k, k))
    for _ in range(NEWTON_STEPS):
        p = np.exp(log_softmax(parts @ scale + baseline))
        mean = np.einsum("nc,nck->nk", p, parts)
        information = np.einsum("nc,nck,ncl->kl", p, parts, parts) - mean.T @ mean
        gradient = mean.sum(axis=0) - realised
        scale = np.clip(scale - np.linalg.solve(information + 1e-9 * np.eye(k), gradient), *SCALE_RANGE)
    return scale, np.maximum(np.diag(information), 0.0)
