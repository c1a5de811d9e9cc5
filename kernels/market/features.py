"""The features of bar t, from bars <= t only: scattering, returns over dyadic horizons, costs, calendar, last gap.

Prices and spreads are divided by the volatility of the window, so a feature means the same at any price and in any
market.  `bar_features` is the only definition: training, backtest and acting all call it.  `kernels.market.position`
has the features of a position.
"""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel, module_digest
from kernels.market.bars import MAX_MISSING_BARS, SECOND_NS, Bars, missing_bars
from kernels.market.calendar import DAY_NS, FIRST_MONDAY_NS, WEEK_NS
from kernels.market.scattering import FilterBank, ScatterWork, new_filter_bank, new_scatter_work, scatter
from kernels.simd import LANES

WINDOW = 256  # returns
HISTORY = WINDOW + 1  # bars that the features of a bar are computed from, itself included
SLOW_WINDOW, FAST_WINDOW = WINDOW, 64  # returns of the slow and of the fast volatility
NUM_HORIZONS = 9  # 2^0 .. 2^8 bars
WINSOR_LIMIT = 6.0  # volatilities at which a return is clipped
MIN_FAST_RATIO = 0.1  # of fast to slow volatility: a lull does not magnify the window
MIN_VOLATILITY = 1e-8  # log return; far below a tenth of a pip
MAX_FEATURE = 8.0  # normalised features
# Standard deviation of a normalised feature without a direction; that of one with a direction is 1.  The expected move
# is odd in the prices, so these 273 of 294 columns hold no part of it, and a network fits noise with them.
UNDIRECTED_WEIGHT = 0.05
GAP_NS = DAY_NS  # missing bars of at least this duration are a gap, even if they are few
CHUNK_BARS = 256  # bars that a thread computes at a time


class FeatureSpec(NamedTuple):
    """The settings of the features."""

    bank: FilterBank
    interval_ns: int


class FeatureWork(NamedTuple):
    """Scratch arrays of one thread."""

    returns: NDArray[np.float64]  # [LANES, WINDOW] winsorised log returns, in volatilities
    log_price: NDArray[np.float64]  # [WINDOW + 1] sum of the returns so far, in volatilities
    coefficient: NDArray[np.float32]  # [LANES, paths, positions] scattering
    scatter_work: ScatterWork


class Normaliser(NamedTuple):
    """Normalised feature = (raw feature - shift) / scale, clipped to +-MAX_FEATURE."""

    shift: NDArray[np.float32]  # [F]
    scale: NDArray[np.float32]  # [F]


def new_feature_spec(J: int = 6, Q: int = 4, interval_ns: int = 60 * SECOND_NS) -> FeatureSpec:
    """Features of bars of `interval_ns`; scattering up to scale 2^J with Q wavelets an octave."""
    return FeatureSpec(new_filter_bank(J, Q, WINDOW), interval_ns)


def new_feature_work(spec: FeatureSpec) -> FeatureWork:
    """Scratch arrays for one thread."""
    return FeatureWork(
        returns=np.zeros((LANES, WINDOW)),
        log_price=np.zeros(WINDOW + 1),
        coefficient=np.zeros((LANES, len(spec.bank.order), len(spec.bank.low_pass)), np.float32),
        scatter_work=new_scatter_work(spec.bank),
    )


def feature_names(spec: FeatureSpec) -> list[str]:
    """[F] the name of each column; a name that begins with '+-' is of a column that a mirrored price negates."""
    positions = range(len(spec.bank.low_pass))
    scattered = [
        f"{'' if order else '+-'}scatter_{p}_{i}" for p, order in enumerate(spec.bank.order) for i in positions
    ]
    moves = [f"+-return_{2**k}" for k in range(NUM_HORIZONS)]
    levels = [f"+-above_mean_{2**k}" for k in range(1, NUM_HORIZONS)]
    costs = ["volatility", "spread", "range"]
    calendar = ["sin_day", "cos_day", "sin_week", "cos_week"]
    return [*scattered, *moves, *levels, *costs, *calendar, "since_gap", "gap"]


def feature_signs(spec: FeatureSpec, num_appended: int) -> NDArray[np.float32]:
    """[F] -1 for the columns that a mirrored price negates, and for those that a self-test appends; else 1."""
    own = [-1.0 if name.startswith("+-") else 1.0 for name in feature_names(spec)]
    return np.array(own + [-1.0] * num_appended, np.float32)


def feature_weights(spec: FeatureSpec) -> NDArray[np.float64]:
    """[F] standard deviation of each normalised feature in training."""
    return np.array([1.0 if name.startswith("+-") else UNDIRECTED_WEIGHT for name in feature_names(spec)])


def num_features(spec: FeatureSpec) -> int:
    """F, without the columns that a self-test appends."""
    return len(feature_names(spec))


def feature_digest(spec: FeatureSpec) -> str:
    """Hash of everything besides the bars that the features of a bar depend on."""
    version = module_digest("kernels.market.features")
    text = json.dumps([spec.bank.J, spec.bank.Q, WINDOW, spec.interval_ns, feature_names(spec), version])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@kernel
def rms(x: NDArray[np.float64], first: int) -> float:
    """Root mean square of x[first:]."""
    total = 0.0
    for i in range(first, x.shape[0]):
        total += x[i] * x[i]
    return math.sqrt(total / (x.shape[0] - first))


@kernel
def winsorise(x: NDArray[np.float64], limit: float) -> None:
    """Clip the values of x to +-limit."""
    for i in range(x.shape[0]):
        x[i] = min(max(x[i], -limit), limit)


@kernel
def write_returns(x: NDArray[np.float64], bars: Bars, t: int) -> tuple[float, float]:
    """Write the winsorised log returns up to bar t into x [WINDOW]; (fast volatility, slow volatility).

    A gap is one return.  Returns are winsorised twice, because an outlier is part of the first volatility.
    """
    before = math.log(bars.close[t - WINDOW])
    for i in range(WINDOW):
        now = math.log(bars.close[t - WINDOW + 1 + i])
        x[i] = now - before
        before = now
    winsorise(x, WINSOR_LIMIT * rms(x, 0))
    winsorise(x, WINSOR_LIMIT * rms(x, 0))
    slow = max(rms(x, WINDOW - SLOW_WINDOW), MIN_VOLATILITY)
    return max(rms(x, WINDOW - FAST_WINDOW), MIN_FAST_RATIO * slow), slow


@kernel
def write_signed_moves(out: NDArray[np.float32], log_price: NDArray[np.float64]) -> int:
    """Write returns over 2^k bars and levels above the mean of 2^k bars, each over sqrt(2^k); the number of columns."""
    last = log_price[WINDOW]
    total = 0.0
    count = 0
    for k in range(NUM_HORIZONS):
        bars = 1 << k
        while count < bars:
            total += last - log_price[WINDOW - count]
            count += 1
        out[k] = (last - log_price[WINDOW - bars]) / math.sqrt(bars)
        if k > 0:
            out[NUM_HORIZONS + k - 1] = total / bars / math.sqrt(bars)
    return 2 * NUM_HORIZONS - 1


@kernel
def write_calendar(out: NDArray[np.float32], time_ns: int) -> int:
    """Write sine and cosine of the hour of the day and of the day of the week, UTC; the number of columns."""
    day = 2.0 * math.pi * ((time_ns % DAY_NS) / DAY_NS)
    week = 2.0 * math.pi * (((time_ns - FIRST_MONDAY_NS) % WEEK_NS) // DAY_NS / 7.0)
    out[0], out[1] = math.sin(day), math.cos(day)
    out[2], out[3] = math.sin(week), math.cos(week)
    return 4


@kernel
def write_last_gap(out: NDArray[np.float32], bars: Bars, t: int, interval_ns: int) -> int:
    """Write log1p of the bars since the last gap in the window and log1p of its missing bars; the number of columns."""
    out[0], out[1] = math.log1p(WINDOW), 0.0
    for i in range(WINDOW):
        missing = missing_bars(bars, t - i, interval_ns)
        if missing > MAX_MISSING_BARS or (missing > 0 and missing * interval_ns >= GAP_NS):
            out[0], out[1] = math.log1p(i), math.log1p(missing)
            break
    return 2


@kernel
def bar_features(out: NDArray[np.float32], spec: FeatureSpec, bars: Bars, t: int, work: FeatureWork) -> None:
    """Write into out [F] the raw features of bar t >= HISTORY - 1, in the order of `feature_names`."""
    direct_features(out, spec, bars, t, work, 0)
    scatter(work.coefficient[:1], spec.bank, work.returns[:1], work.scatter_work)
    scattered_features(out, work.coefficient[0])


@kernel
def direct_features(out: NDArray[np.float32], spec: FeatureSpec, bars: Bars, t: int, work: FeatureWork, w: int) -> None:
    """Write the columns of out [F] that need no scattering, and the window to scatter into work.returns[w]."""
    x, level = work.returns[w], work.log_price
    fast, slow = write_returns(x, bars, t)
    level[0] = 0.0
    for i in range(WINDOW):
        x[i] /= fast
        level[i + 1] = level[i] + x[i]
    c = work.coefficient.shape[1] * work.coefficient.shape[2]
    c += write_signed_moves(out[c:], level)
    out[c] = math.log(fast / slow)
    out[c + 1] = math.log1p(max(math.log(bars.ask_close[t] / bars.close[t]), 0.0) / fast)
    out[c + 2] = math.log1p(max(math.log(bars.high[t] / bars.low[t]), 0.0) / fast)
    c += 3
    c += write_calendar(out[c:], bars.time[t])
    write_last_gap(out[c:], bars, t, spec.interval_ns)


@kernel
def scattered_features(out: NDArray[np.float32], coefficient: NDArray[np.float32]) -> None:
    """Write the first columns of out [F] from coefficient [paths, positions]: log1p, but order 0 as it stands."""
    c = 0
    for p in range(coefficient.shape[0]):
        for i in range(coefficient.shape[1]):
            s = float(coefficient[p, i])
            out[c] = s if p == 0 else math.log1p(max(s, 0.0))
            c += 1


@kernel
def fill_features(
    out: NDArray[np.float32], spec: FeatureSpec, bars: Bars, ts: NDArray[np.int64], work: FeatureWork
) -> None:
    """Write into out [n, F] the raw features of the bars ts [n], LANES windows at a time."""
    for first in range(0, ts.shape[0], LANES):
        n = min(LANES, ts.shape[0] - first)
        for w in range(n):
            direct_features(out[first + w], spec, bars, ts[first + w], work, w)
        scatter(work.coefficient[:n], spec.bank, work.returns[:n], work.scatter_work)
        for w in range(n):
            scattered_features(out[first + w], work.coefficient[w])


def compute_features(spec: FeatureSpec, bars: Bars, ts: NDArray[np.int64], threads: int) -> NDArray[np.float32]:
    """[n, F] raw features of the bars ts [n].  Raises IndexError for a bar without HISTORY - 1 bars before it."""
    ts = np.ascontiguousarray(ts, np.int64)
    if len(ts) and not (HISTORY - 1 <= ts.min() and ts.max() < len(bars.time)):
        raise IndexError(f"features need bars {HISTORY - 1} .. {len(bars.time) - 1}")
    out = np.empty((len(ts), num_features(spec)), np.float32)

    def fill(first: int) -> None:
        stop = first + CHUNK_BARS
        fill_features(out[first:stop], spec, bars, ts[first:stop], new_feature_work(spec))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(0, len(ts), CHUNK_BARS)))
    return out


def fit_normaliser(X: NDArray[np.float32], spec: FeatureSpec) -> Normaliser:
    """Mean and standard deviation of raw features X [n, F], the latter over the weight of the column.

    Signed columns are not shifted.  The columns that a self-test appends are neither shifted nor scaled.
    """
    own, weight = feature_names(spec), feature_weights(spec)
    shift, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
    for f, name in enumerate(own):
        column = X[:, f].astype(np.float64)
        shift[f] = 0.0 if name.startswith("+-") else column.mean()
        deviation = math.sqrt(np.mean((column - shift[f]) ** 2))
        scale[f] = (deviation if deviation > 1e-6 * max(1.0, abs(shift[f])) else 1.0) / weight[f]
    return Normaliser(shift.astype(np.float32), scale.astype(np.float32))


@kernel
def normalise(x: NDArray[np.float32], normaliser: Normaliser) -> None:
    """Normalise the raw features x [F] in place."""
    for f in range(x.shape[0]):
        z = (float(x[f]) - normaliser.shift[f]) / normaliser.scale[f]
        x[f] = min(max(z, -MAX_FEATURE), MAX_FEATURE)


@kernel
def normalise_rows(X: NDArray[np.float32], rows: NDArray[np.int32], normaliser: Normaliser) -> None:
    """Normalise the rows `rows` [n] of raw features X [any, F] in place."""
    for i in range(rows.shape[0]):
        normalise(X[rows[i]], normaliser)
