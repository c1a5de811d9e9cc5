"""The Beta head: the size of an entry of each side, as a Beta distribution over (0, 1), and its loss.

alpha = 1 + softplus(a) and beta = 1 + softplus(b) keep a distribution unimodal.  The loss of a decision is the
cross-entropy -sum_e pi'_e log Beta(size_e) of the candidates that the search drew, less a bonus for the entropy in
proportion to sum_e pi'_e: a side that the search would not enter has no say in its sizes.
Without the bonus the head contracts at every step, because it is fitted to draws of its own.
"""

import math
from typing import NamedTuple

import numpy as np

from kernels.jit import inlined, kernel
from kernels.search.progressive_widening import NUM_BETA_PARAMS, softplus
from models.activations import num_seen_bars
from models.extension import Extension, LossTerm, Pass, WorkSize
from models.shape import Array, CoreParams, ModelShape

ENTROPY_BONUS = 5e-3  # weight of the entropy, beside a probability of 1
MIN_SIZE = 2.0**-10  # a size keeps this distance from 0 and 1, where its logarithm diverges
ASYMPTOTIC = 8.0  # the series below are right to 1e-12 from here on


class BetaHeadParams(CoreParams):
    """Parameters of the output layer that stands beside the policy's."""

    beta_head_w: Array  # [H, num_beta_params] a and b of a BUY, then of a SELL
    beta_head_b: Array


class SizeCandidates(NamedTuple):
    """Entries that a search tried."""

    size: Array  # [decisions, candidates] signed, 0 = none
    candidate_policy: Array  # [decisions, candidates] probability of each in the improved policy


@kernel
def digamma(x: float) -> float:
    """d log Gamma(x) / dx, x > 0 (Abramowitz and Stegun 6.3.5 and 6.3.18)."""
    total = 0.0
    while x < ASYMPTOTIC:
        total -= 1.0 / x
        x += 1.0
    r = 1.0 / (x * x)
    series = r * (1.0 / 12.0 - r * (1.0 / 120.0 - r * (1.0 / 252.0 - r * (1.0 / 240.0 - r / 132.0))))
    return total + math.log(x) - 0.5 / x - series


@kernel
def trigamma(x: float) -> float:
    """d digamma(x) / dx, x > 0 (Abramowitz and Stegun 6.4.6 and 6.4.12)."""
    total = 0.0
    while x < ASYMPTOTIC:
        total += 1.0 / (x * x)
        x += 1.0
    r = 1.0 / (x * x)
    series = r * (1.0 / 6.0 - r * (1.0 / 30.0 - r * (1.0 / 42.0 - r * (1.0 / 30.0 - r * 5.0 / 66.0))))
    return total + 1.0 / x + 0.5 * r + series / x


@inlined
def side_loss(total_probability: float, log_x: float, log_y: float, p: float, q: float) -> tuple[float, float, float]:
    """Loss of one side, and its slopes in alpha = p and beta = q.

    The arguments are sums over its candidates: of their probability, and of that times log x and log(1 - x).
    """
    norm = math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)
    psi_p, psi_q, psi = digamma(p), digamma(q), digamma(p + q)
    entropy = norm - (p - 1.0) * psi_p - (q - 1.0) * psi_q + (p + q - 2.0) * psi
    spread = (p + q - 2.0) * trigamma(p + q)
    bonus = ENTROPY_BONUS * total_probability
    loss = total_probability * norm - (p - 1.0) * log_x - (q - 1.0) * log_y - bonus * entropy
    d_p = total_probability * (psi_p - psi) - log_x - bonus * (spread - (p - 1.0) * trigamma(p))
    d_q = total_probability * (psi_q - psi) - log_y - bonus * (spread - (q - 1.0) * trigamma(q))
    return loss, d_p, d_q


@kernel
def beta_loss(z: Array, db: Array, b: Array, candidates: SizeCandidates, weight: Array, factor: float) -> float:
    """sum_i weight_i loss_i of the parameters z_i + b over n decisions, of the sides that have candidates.

    z [n, num_beta_params] and db [num_beta_params] become the gradients of `factor` times that.
    """
    size, policy, total = candidates.size, candidates.candidate_policy, 0.0
    db[:] = 0
    for i in range(z.shape[0]):
        for first in range(0, NUM_BETA_PARAMS, 2):
            has_candidate, probability, log_x, log_y = False, 0.0, 0.0, 0.0
            for e in range(size.shape[1]):
                if size[i, e] != 0 and (size[i, e] > 0) == (first == 0):
                    x = min(max(abs(float(size[i, e])), MIN_SIZE), 1.0 - MIN_SIZE)
                    has_candidate = True
                    probability += policy[i, e]
                    log_x += policy[i, e] * math.log(x)
                    log_y += policy[i, e] * math.log1p(-x)
            p, q = float(z[i, first] + b[first]), float(z[i, first + 1] + b[first + 1])
            z[i, first] = z[i, first + 1] = 0
            if not has_candidate:
                continue
            loss, d_p, d_q = side_loss(probability, log_x, log_y, 1.0 + softplus(p), 1.0 + softplus(q))
            total += weight[i] * loss
            z[i, first] = factor * weight[i] * d_p / (1.0 + math.exp(-p))
            z[i, first + 1] = factor * weight[i] * d_q / (1.0 + math.exp(-q))
            db[first] += z[i, first]
            db[first + 1] += z[i, first + 1]
    return total


class BetaHead(Extension):
    """The loss of the entry sizes, on the hidden layer of the policy."""

    switch = "num_beta_params"
    small_init = ("beta_head_w",)
    policy_layers = ("beta_head",)
    serves_market_search = False

    @staticmethod
    def layers(shape: ModelShape) -> dict[str, tuple[int, ...]]:
        return {"beta_head": (shape.hidden, shape.num_beta_params)}

    def __init__(self, size: WorkSize) -> None:
        decisions = (size.seen_bars + size.steps + 1) * size.windows
        self.candidates = SizeCandidates(*np.zeros((2, decisions, size.num_candidates), size.dtype))

    def fill(self, step: Pass) -> None:
        K, n, num_seen = len(step.work.dynamics_hidden), len(step.work.latent[0]), num_seen_bars(step.work)
        order = [*range(1, num_seen + 1), *range(K + 1)]
        pairs = zip(self.candidates, (step.batch.candidate_size, step.batch.candidate_policy), strict=True)
        for array, source in pairs:
            array.reshape(len(order), n, -1)[...] = source[step.rows][:, order].swapaxes(0, 1)

    def output_losses(self, step: Pass, hidden_layer: str) -> list[LossTerm]:
        weight = step.work.decision_weight, step.weights.beta_head
        term = LossTerm("beta_head", "beta_head", lambda z, db, b: beta_loss(z, db, b, self.candidates, *weight))
        return [term] if hidden_layer == "prediction_hidden" else []
