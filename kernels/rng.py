"""Counter-based random streams: every draw is a pure function of (seed, stream, step), so threads cannot reorder them.

The mixing function is splitmix64's (Steele, Lea and Flood 2014), applied to a key instead of a state.
"""

import math

import numpy as np

from kernels.jit import kernel

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
MAX_UNIFORM = 1.0 - 2.0**-53


@kernel
def mix64(word: np.uint64) -> np.uint64:
    """A bijection of 64 bits that spreads every bit over all of them."""
    word = (word ^ (word >> np.uint64(30))) * MIX_1
    word = (word ^ (word >> np.uint64(27))) * MIX_2
    return word ^ (word >> np.uint64(31))


@kernel
def bits(seed: int, stream: int, step: int) -> np.uint64:
    """64 random bits, a function of the three arguments alone."""
    word = mix64(np.uint64(seed) + GOLDEN_GAMMA)
    word = mix64(word ^ (np.uint64(stream) * GOLDEN_GAMMA + MIX_1))
    return mix64(word ^ (np.uint64(step) * GOLDEN_GAMMA + MIX_2))


@kernel
def uniform(seed: int, stream: int, step: int) -> float:
    """A draw from [0, 1)."""
    return float(bits(seed, stream, step) >> np.uint64(11)) * 2.0**-53


@kernel
def gumbel(seed: int, stream: int, step: int) -> float:
    """A draw from the standard Gumbel distribution."""
    u = min(max(uniform(seed, stream, step), 2.0**-53), MAX_UNIFORM)
    return -math.log(-math.log(u))


@kernel
def randint(limit: int, seed: int, stream: int, step: int) -> int:
    """A uniform integer in [0, limit); the bias of a probability is at most limit / 2^53."""
    return int(uniform(seed, stream, step) * limit)


@kernel
def gamma(shape: float, seed: int, stream: int, step: int) -> float:
    """A draw from the gamma distribution of this shape and scale 1 (Marsaglia and Tsang 2000)."""
    key = int(bits(seed, stream, step) >> np.uint64(1))
    boost = shape if shape >= 1.0 else shape + 1.0
    d = boost - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    trial = 0
    while True:
        u = max(uniform(key, trial, 0), 2.0**-53)
        normal = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * uniform(key, trial, 1))
        v = (1.0 + c * normal) * (1.0 + c * normal) * (1.0 + c * normal)
        accept = max(uniform(key, trial, 2), 2.0**-53)
        if v > 0 and math.log(accept) < 0.5 * normal * normal + d - d * v + d * math.log(v):
            break
        trial += 1
    if shape >= 1.0:
        return d * v
    return d * v * math.exp(math.log(max(uniform(key, trial, 3), 2.0**-53)) / shape)


@kernel
def beta(a: float, b: float, seed: int, stream: int, step: int) -> float:
    """A draw from the Beta distribution with a, b >= 1 (Cheng 1978, algorithm BA).

    Rejection takes uniforms from step 2^20 `step` on, so no other draws may use `stream`.
    """
    total = a + b
    spread = 1.0 if min(a, b) <= 1 else math.sqrt((total - 2.0) / (2.0 * a * b - total))
    i = step << 20
    while True:
        u = max(uniform(seed, stream, i), 2.0**-53)
        accept = max(uniform(seed, stream, i + 1), 2.0**-53)
        v = spread * math.log(u / (1.0 - u))
        w = a * math.exp(v)
        bound = total * math.log(total / (b + w)) + (a + 1.0 / spread) * v - math.log(4.0)
        if bound >= math.log(u * u * accept):
            return w / (b + w)
        i += 2
