"""The Beta head: how large an entry of each side is to be, as a distribution over (0, 1), and its loss.

alpha = 1 + softplus(a) and beta = 1 + softplus(b) keep it unimodal.  The loss of a decision is the cross-entropy of its
candidates, -sum_e pi'_e log Beta(size_e), less a bonus for the entropy: maximum likelihood of what was drawn from the
head itself contracts it at every step.
"""

import math
from typing import NamedTuple

from kernels.jit import inlined, kernel
from kernels.search.progressive_widening import NUM_BETA_PARAMS, softplus
from models.layers import Array

ENTROPY_BONUS = 5e-3  # of the entropy
MIN_SIZE = 2.0**-10  # the nearest that a size comes to 0 or 1, where its logarithm has no end
ASYMPTOTIC = 8.0  # from here on the series below are right to 1e-12


class SizeCandidates(NamedTuple):
    """Entries that a search tried, of n decisions."""

    size: Array  # [n, E] signed, 0 = none
    candidate_policy: Array  # [n, E] of each in the improved policy


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
    """(loss, its slopes in alpha = p and beta = q) of sizes x, y = 1 - x, with sums of share, share log x and log y."""
    norm = math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)
    psi_p, psi_q, psi = digamma(p), digamma(q), digamma(p + q)
    entropy = norm - (p - 1.0) * psi_p - (q - 1.0) * psi_q + (p + q - 2.0) * psi
    spread = (p + q - 2.0) * trigamma(p + q)
    loss = total_probability * norm - (p - 1.0) * log_x - (q - 1.0) * log_y - ENTROPY_BONUS * entropy
    d_p = total_probability * (psi_p - psi) - log_x - ENTROPY_BONUS * (spread - (p - 1.0) * trigamma(p))
    d_q = total_probability * (psi_q - psi) - log_y - ENTROPY_BONUS * (spread - (q - 1.0) * trigamma(q))
    return loss, d_p, d_q


@kernel
def beta_loss(z: Array, db: Array, b: Array, candidates: SizeCandidates, weight: Array, factor: float) -> float:
    """sum_i weight_i loss_i of the head's z_i + b over n rows, of the sides that have candidates.

    z [n, BETAS], a and b of a BUY and of a SELL, becomes the gradient of `factor` times that, and db [BETAS] the one
    of b.
    """
    size, share, total = candidates.size, candidates.candidate_policy, 0.0
    db[:] = 0
    for i in range(z.shape[0]):
        for first in range(0, NUM_BETA_PARAMS, 2):
            found, mass, log_x, log_y = False, 0.0, 0.0, 0.0
            for e in range(size.shape[1]):
                if size[i, e] != 0 and (size[i, e] > 0) == (first == 0):
                    x = min(max(abs(float(size[i, e])), MIN_SIZE), 1.0 - MIN_SIZE)
                    found = True
                    mass += share[i, e]
                    log_x += share[i, e] * math.log(x)
                    log_y += share[i, e] * math.log1p(-x)
            p, q = float(z[i, first] + b[first]), float(z[i, first + 1] + b[first + 1])
            z[i, first] = z[i, first + 1] = 0
            if not found:
                continue
            loss, d_p, d_q = side_loss(mass, log_x, log_y, 1.0 + softplus(p), 1.0 + softplus(q))
            total += weight[i] * loss
            z[i, first] = factor * weight[i] * d_p / (1.0 + math.exp(-p))
            z[i, first + 1] = factor * weight[i] * d_q / (1.0 + math.exp(-q))
            db[first] += z[i, first]
            db[first + 1] += z[i, first + 1]
    return total
