"""The features of bar t from bars <= t only: scattering, signed moves at dyadic horizons, costs, calendar, holes.

Everything is in units of the window's own volatility, so a feature means the same at any price and in any market.
`bar_features` is the only definition: training, backtest and acting all come through it.  What a position adds is in
`kernels.position`.
"""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel, module_digest
from kernels.market.bars import SECOND_NS, Bars, missing_bars
from kernels.market.scattering import FilterBank, ScatterWork, new_filter_bank, new_scatter_work, scatter
from kernels.simd import LANES

WINDOW = 256  # returns
HISTORY = WINDOW + 1  # bars that bar t needs, itself included
SLOW_WINDOW, FAST_WINDOW = WINDOW, 64  # returns that the slow and the fast volatility are taken over
NUM_HORIZONS = 9  # 2^0 .. 2^8 bars
WINSOR_LIMIT = 6.0  # volatilities that a return may count for
MIN_FAST_RATIO = 0.1  # of the slow volatility: a lull does not blow the window up
MIN_VOLATILITY = 1e-8  # log return; far below a tenth of a pip
MAX_FEATURE = 8.0  # normalised features
DAY_NS, WEEK_NS = 86_400 * SECOND_NS, 7 * 86_400 * SECOND_NS
FIRST_MONDAY_NS = 4 * DAY_NS  # the epoch began on a Thursday
GAP_NS = 24 * 3600 * SECOND_NS  # a hole at least this long counts whatever the interval
GAP_BARS = 10  # a hole of more bars counts
CHUNK_BARS = 256  # bars a thread takes at a time


class FeatureSpec(NamedTuple):
    """What the features are of, as kernels see it."""

    bank: FilterBank
    interval_ns: int


class FeatureWork(NamedTuple):
    """Scratch of one thread."""

    returns: NDArray[np.float64]  # [LANES, WINDOW] winsorised log returns, then in volatilities
    log_price: NDArray[np.float64]  # [WINDOW + 1] log price built from them, volatilities
    coefficient: NDArray[np.float32]  # [LANES, paths, T']
    scatter_work: ScatterWork


class Normaliser(NamedTuple):
    """Normalised = (raw - shift) / scale, clipped."""

    shift: NDArray[np.float32]  # [F]
    scale: NDArray[np.float32]  # [F]


def new_feature_spec(J: int = 6, Q: int = 4, interval_ns: int = 60 * SECOND_NS) -> FeatureSpec:
    """Scattering to scale 2^J with Q filters an octave, of bars of `interval_ns`."""
    return FeatureSpec(new_filter_bank(J, Q, WINDOW), interval_ns)


def new_feature_work(spec: FeatureSpec) -> FeatureWork:
    """Scratch for one thread."""
    return FeatureWork(
        returns=np.zeros((LANES, WINDOW)),
        log_price=np.zeros(WINDOW + 1),
        coefficient=np.zeros((LANES, len(spec.bank.order), len(spec.bank.low_pass)), np.float32),
        scatter_work=new_scatter_work(spec.bank),
    )


def feature_names(spec: FeatureSpec) -> list[str]:
    """[F] a name for each column; the ones that a mirrored price negates begin with '+-'."""
    positions = range(len(spec.bank.low_pass))
    scattered = [
        f"{'' if order else '+-'}scatter_{p}_{i}" for p, order in enumerate(spec.bank.order) for i in positions
    ]
    moves = [f"+-return_{2**k}" for k in range(NUM_HORIZONS)]
    levels = [f"+-above_mean_{2**k}" for k in range(1, NUM_HORIZONS)]
    costs = ["volatility", "spread", "range"]
    calendar = ["sin_day", "cos_day", "sin_week", "cos_week"]
    return [*scattered, *moves, *levels, *costs, *calendar, "since_hole", "hole"]


def feature_signs(spec: FeatureSpec, num_appended: int) -> NDArray[np.float32]:
    """[F] -1 for the columns that a mirrored price negates, as it does what a self-test appends, else 1."""
    own = [-1.0 if name.startswith("+-") else 1.0 for name in feature_names(spec)]
    return np.array(own + [-1.0] * num_appended, np.float32)


def num_features(spec: FeatureSpec) -> int:
    """F, without columns that a market appends."""
    return len(feature_names(spec))


def feature_digest(spec: FeatureSpec) -> str:
    """Hash of everything the features of a bar depend on besides the bars."""
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
    """Clip x to +-limit."""
    for i in range(x.shape[0]):
        x[i] = min(max(x[i], -limit), limit)


@kernel
def write_returns(x: NDArray[np.float64], bars: Bars, t: int) -> tuple[float, float]:
    """Write winsorised log returns up to bar t into x [WINDOW]; their fast and slow volatility.  A hole is one step.

    Twice, because the first volatility is that of the outlier itself.
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
    """out: return over 2^k bars, then level above the mean of the last 2^k, over sqrt(2^k); columns written."""
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
    """out [4]: sine and cosine of the hour of the day and of the day of the week, UTC; columns written."""
    day = 2.0 * math.pi * ((time_ns % DAY_NS) / DAY_NS)
    week = 2.0 * math.pi * (((time_ns - FIRST_MONDAY_NS) % WEEK_NS) // DAY_NS / 7.0)
    out[0], out[1] = math.sin(day), math.cos(day)
    out[2], out[3] = math.sin(week), math.cos(week)
    return 4


@kernel
def write_last_gap(out: NDArray[np.float32], bars: Bars, t: int, interval_ns: int) -> int:
    """out [2]: log1p of the bars since the last hole within the window, and of the bars it lacks; columns written."""
    out[0], out[1] = math.log1p(WINDOW), 0.0
    for i in range(WINDOW):
        missing = missing_bars(bars, t - i, interval_ns)
        if missing > GAP_BARS or (missing > 0 and missing * interval_ns >= GAP_NS):
            out[0], out[1] = math.log1p(i), math.log1p(missing)
            break
    return 2


@kernel
def bar_features(out: NDArray[np.float32], spec: FeatureSpec, bars: Bars, t: int, work: FeatureWork) -> None:
    """out [F]: raw features of bar t >= HISTORY - 1, in the order of `feature_names`."""
    direct_features(out, spec, bars, t, work, 0)
    scatter(work.coefficient[:1], spec.bank, work.returns[:1], work.scatter_work)
    scattered_features(out, work.coefficient[0])


@kernel
def direct_features(out: NDArray[np.float32], spec: FeatureSpec, bars: Bars, t: int, work: FeatureWork, w: int) -> None:
    """The columns of out [F] that are not scattered; what is to be scattered into work.x[w]."""
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
    """The first columns of out [F] from coefficient [paths, T']: logarithms, but for order 0, which has a sign."""
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
    """out [n, F]: raw features of the bars ts [n], LANES windows at a time."""
    for first in range(0, ts.shape[0], LANES):
        n = min(LANES, ts.shape[0] - first)
        for w in range(n):
            direct_features(out[first + w], spec, bars, ts[first + w], work, w)
        scatter(work.coefficient[:n], spec.bank, work.returns[:n], work.scatter_work)
        for w in range(n):
            scattered_features(out[first + w], work.coefficient[w])


def compute_features(spec: FeatureSpec, bars: Bars, ts: NDArray[np.int64], threads: int) -> NDArray[np.float32]:
    """[n, F] raw features of the bars ts [n], each >= HISTORY - 1."""
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
    """Mean and deviation of raw features X [n, F]; signed columns keep their zero, appended ones stay as they are."""
    own = feature_names(spec)
    shift, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
    for f, name in enumerate(own):
        column = X[:, f].astype(np.float64)
        shift[f] = 0.0 if name.startswith("+-") else column.mean()
        spread = math.sqrt(np.mean((column - shift[f]) ** 2))
        scale[f] = spread if spread > 1e-6 * max(1.0, abs(shift[f])) else 1.0
    return Normaliser(shift.astype(np.float32), scale.astype(np.float32))


@kernel
def normalise(x: NDArray[np.float32], normaliser: Normaliser) -> None:
    """Normalise raw features x [F] in place."""
    for f in range(x.shape[0]):
        z = (float(x[f]) - normaliser.shift[f]) / normaliser.scale[f]
        x[f] = min(max(z, -MAX_FEATURE), MAX_FEATURE)


@kernel
def normalise_rows(X: NDArray[np.float32], rows: NDArray[np.int32], normaliser: Normaliser) -> None:
    """Normalise rows [n] of raw features X [rows, F] in place."""
    for i in range(rows.shape[0]):
        normalise(X[rows[i]], normaliser)
