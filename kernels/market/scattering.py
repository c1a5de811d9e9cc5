"""Wavelet scattering of a window, equal to `Scattering1D(J, length, Q)` of kymatio 0.3, in one kernel.

S0 = x * phi, S1 = |x * psi1| * phi, S2 = ||x * psi1| * psi2| * phi (Anden and Mallat 2014, Deep Scattering Spectrum),
with Morlet wavelets psi and a Gaussian phi of width 2^J.  J and Q are kymatio's parameters.  A path is one choice of
wavelets.  Widths: `padded` samples of the padded window; `paths`; `positions`, the length / 2^J samples at which a path
is read; `low_bins`, the bins of a spectrum that phi does not remove.  At level j one sample in 2^j is kept.

All arithmetic runs on LANES float32 side by side, sample i of lane k at i * LANES + k.  The lanes are either one path
of LANES windows or LANES paths of one window.  A lane has the same operations either way, so the coefficients are equal
bit for bit.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.jit import kernel
from kernels.simd import LANES, Vector, load, sqrt, store

SIGMA_0 = 0.1  # width of phi at J = 0, cycles per sample
OVERLAP = math.sqrt(0.5)  # height at which neighbouring wavelets meet
ALIASING = 5.0  # widths above its centre at which a wavelet ends
MIN_FIRST_CENTRE = 0.35  # least centre of the first wavelet, cycles per sample
MAX_MISSED_MASS = 1e-3  # mass of phi that may lie beyond the padding
NEGLIGIBLE = 1e-8  # fraction of a filter's peak below which a bin is left out
MAX_PERIODS = 5  # periods of a filter that are folded into one

FloatArray = NDArray[np.float64]
LaneArray = NDArray[np.float32]
IndexArray = NDArray[np.int64]


class FilterBank(NamedTuple):
    """Filters and tables of one (J, Q, length).  Path 0 is order 0; orders 1 and 2 follow, each from fine to coarse."""

    J: int
    Q: int
    padding_index: IndexArray  # [padded] sample of the window at each sample of the padded window
    cos: LaneArray  # [padded] cos(2 pi k / padded)
    sin: LaneArray  # [padded] sin(2 pi k / padded)
    bin_place: IndexArray  # [2 padded] `fft` of n samples leaves bin f at bin_place[n + f]
    low_pass: LaneArray  # [positions, padded] phi: weight of each padded sample
    low_pass_re: LaneArray  # [positions, low_bins] phi: weight of the real part of each bin
    low_pass_im: LaneArray  # [positions, low_bins] phi: weight of the imaginary part
    order: IndexArray  # [paths]
    level: IndexArray  # [paths] at which the modulus of the path is sampled
    parent: IndexArray  # [paths] path whose modulus is filtered; path 0 is the window
    spectrum_start: IndexArray  # [paths] place of bin 0 in the spectra stored; orders 0 and 1
    first_bin: IndexArray  # [paths] first bin of the parent's spectrum that the filter reads
    tap_start: IndexArray  # [paths + 1] path p has weight[tap_start[p] : tap_start[p + 1]]
    weight: LaneArray  # [taps] of all filters; includes the 1 / length of the inverse transform
    path_of_lane: IndexArray  # [paths] path 0, then by level; within a level order 1 first
    # [1 + levels, 3] for path 0 and then for each level: first place in path_of_lane, first place of order 2, end
    level_lanes: IndexArray


class ScatterWork(NamedTuple):
    """Scratch arrays of LANES lanes."""

    u: LaneArray  # [padded * LANES] samples of the windows, or of moduli
    re: LaneArray  # [padded * LANES] a transform, in place
    im: LaneArray  # [padded * LANES]
    # [bins of all spectra * LANES] bins 0 .. n / 2 of the paths of orders 0 and 1
    spectrum_re: LaneArray
    spectrum_im: LaneArray  # of the same shape; always zero in bins 0 and n / 2
    total: LaneArray  # [LANES]


def aligned_zeros(size: int) -> LaneArray:
    """[size] zeros from the edge of a cache line on: loads that straddle two lines take 1.3 times as long."""
    raw = np.zeros(size + LANES, np.float32)
    return raw[-(raw.ctypes.data // 4) % LANES :][:size]


def new_scatter_work(bank: FilterBank) -> ScatterWork:
    """Scratch arrays for one thread."""
    samples = LANES * len(bank.padding_index)
    bins = LANES * int(kept_bins(bank.order, bank.level, len(bank.padding_index)).sum())
    return ScatterWork(*map(aligned_zeros, (samples, samples, samples, bins, bins, LANES)))


def kept_bins(order: IndexArray, level: IndexArray, padded: int) -> IndexArray:
    """[paths] number of bins to store of each spectrum: half, because the samples are real; none of order 2."""
    return np.where(order < 2, (padded >> level) // 2 + 1, 0)


def morlet(length: int, centre: float, width: float) -> FloatArray:
    """[length] spectrum of a Morlet wavelet of mean 0, or of a Gaussian if `centre` is 0; the moduli have sum 1."""
    periods = min(math.ceil(math.sqrt(-2 * width**2 * math.log(1e-7)) + 1), MAX_PERIODS)
    if periods == 1:
        raise ValueError("the narrowest filter is narrower than a bin")
    f = np.arange((1 - periods) * length, periods * length) / length

    def bump(at: float) -> FloatArray:
        folded = np.exp(-((f - at) ** 2) / (2 * width**2)).reshape(2 * periods - 1, length)
        return np.asarray(folded.mean(axis=0))

    low = bump(0.0)
    spectrum = low
    if centre > 0:
        band = bump(centre)
        spectrum = band - band[0] / low[0] * low
    return np.asarray(spectrum / np.abs(np.fft.ifft(spectrum)).sum())


def wavelets(J: int, Q: int) -> list[tuple[float, float, int]]:
    """(centre, width, level) of each wavelet: Q an octave down to the width of phi, then Q - 1 of that width."""
    step = 2 ** (1 / Q)
    narrowest = SIGMA_0 / 2**J
    centre = max(1 / (1 + 2 ** (3 / Q)), MIN_FIRST_CENTRE)
    width = centre * (1 - 1 / step) / (1 + 1 / step) / math.sqrt(2 * math.log(1 / OVERLAP))
    if width <= narrowest:
        raise ValueError(f"J = {J} is too small for Q = {Q}")
    shapes = [(centre, width)]
    while shapes[-1][1] > narrowest * step:
        shapes.append((shapes[-1][0] / step, shapes[-1][1] / step))
    elbow = shapes[-1][0]
    shapes += [(elbow - q / Q * elbow, narrowest) for q in range(1, Q)]
    return [(c, w, max_level(c, w)) for c, w in shapes]


def max_level(centre: float, width: float) -> int:
    """Largest j such that one sample in 2^j suffices for frequencies up to ALIASING widths above the centre."""
    return math.floor(-math.log2(min(centre + ALIASING * width, 0.5))) - 1


def padded_length(J: int, length: int) -> int:
    """Power of two that leaves three half-widths of phi at each end, or as much as reflection can fill."""
    phi = np.abs(np.fft.ifft(morlet(length, 0.0, SIGMA_0 / 2**J)))[: length // 2]
    missed = np.cumsum(phi[::-1])[::-1]
    enough = np.flatnonzero(missed <= MAX_MISSED_MASS)
    margin = 3 * (int(enough[0]) + 1 if len(enough) else length // 2)
    exponent = math.ceil(math.log2(length + 2 * margin))
    return int(2 ** min(exponent, math.floor(math.log2(3 * length - 2))))


def filter_support(spectrum: FloatArray) -> tuple[int, int]:
    """(first bin, number of bins) of the circular spectrum without its longest run of negligible bins."""
    num_bins = len(spectrum)
    kept = np.flatnonzero(np.abs(spectrum) > NEGLIGIBLE * np.abs(spectrum).max())
    distance = np.diff(kept, append=kept[0] + num_bins)
    last = int(np.argmax(distance))
    return int(kept[(last + 1) % len(kept)]), num_bins + 1 - int(distance[last])


def new_filter_bank(J: int, Q: int, length: int = 256) -> FilterBank:
    """Filters for windows of `length` samples, Q wavelets an octave in order 1 and one in order 2."""
    padded = padded_length(J, length)
    left = (padded - length) // 2
    first, stop = (-(-edge // 2**J) for edge in (left, left + length))
    read = 2**J * np.arange(first, stop)[:, None]
    low_pass = morlet(padded, 0.0, SIGMA_0 / 2**J)
    bins = np.flatnonzero(low_pass[: padded // 2] > NEGLIGIBLE * low_pass[0])
    low = np.where(bins, 2, 1) * low_pass[bins] / padded * np.exp(2j * np.pi * read * bins / padded)
    turn = 2 * np.pi * np.arange(padded) / padded
    order, level, parent, weight, first_bin = new_paths(J, Q, padded)
    size = kept_bins(order, level, padded)
    stage = np.where(order > 0, level + 1, 0)
    lane = np.lexsort((order, stage))
    key = 2 * stage[lane] + (order[lane] == 2)
    edges = 2 * np.arange(stage.max() + 1)[:, None] + np.arange(3)
    return FilterBank(
        J=J,
        Q=Q,
        padding_index=np.pad(np.arange(length), (left, padded - length - left), mode="reflect"),
        cos=np.cos(turn).astype(np.float32),
        sin=np.sin(turn).astype(np.float32),
        bin_place=new_bin_places(padded),
        low_pass=np.fft.ifft(low_pass).real[(read - np.arange(padded)) % padded].astype(np.float32),
        low_pass_re=low.real.astype(np.float32),
        low_pass_im=-low.imag.astype(np.float32),
        order=order,
        level=level,
        parent=parent,
        spectrum_start=np.cumsum(size) - size,
        first_bin=first_bin,
        tap_start=np.cumsum([0, *map(len, weight)]),
        weight=np.concatenate(weight).astype(np.float32),
        path_of_lane=lane,
        level_lanes=np.searchsorted(key, edges),
    )


def new_paths(J: int, Q: int, padded: int) -> tuple[IndexArray, IndexArray, IndexArray, list[FloatArray], IndexArray]:
    """(order, level, parent, filter, first bin of the filter) of the paths; each has one element a path."""
    ones, twos = wavelets(J, Q), wavelets(J, 1)
    edges = [(1, 0, one) for one in ones]
    edges += [(2, n, two) for n, one in enumerate(ones, 1) for two in twos if two[2] > one[2]]
    order, level, parent, weight, first = [0], [0], [0], [np.zeros(0)], [0]
    for rank, n, (centre, width, j) in edges:
        # The mean, not the sum, of the folded periods, as in kymatio, so that the scales agree.
        folded = morlet(padded, centre, width).reshape(2 ** level[n], -1).mean(axis=0)
        start, count = filter_support(folded)
        weight.append(np.roll(folded, -start)[:count] / len(folded))
        order, level, parent, first = [*order, rank], [*level, j], [*parent, n], [*first, start]
    return np.array(order), np.array(level), np.array(parent), weight, np.array(first)


def new_bin_places(padded: int) -> IndexArray:
    """[2 padded] place at which `fft` of n = 1, 2, 4 .. padded samples leaves bin f, at [n + f]."""
    place = np.zeros(2 * padded, np.int64)
    for k in range(1, padded.bit_length()):
        n, radix = 2**k, min(2**k, 4)
        f = np.arange(n)
        place[n : 2 * n] = f % radix * (n // radix) + place[n // radix + f // radix]
    return place


@kernel
def fft(bank: FilterBank, re: LaneArray, im: LaneArray, n: int) -> None:
    """Transform n = 2^k samples of each lane in place; bin f is left at bank.bin_place[n + f].

    With re and im exchanged it is n times the inverse.  Radix 4, decimation in frequency (Van Loan 1992, 1.9).
    """
    size = n
    while size >= 4:
        m = size // 4
        turn = bank.cos.shape[0] // size
        for block in range(0, n, size):
            for p in range(m):
                butterfly(bank, re, im, (block + p) * LANES, m * LANES, p * turn)
        size = m
    if size == 2:
        for i in range(0, n * LANES, 2 * LANES):
            a_re, a_im, b_re, b_im = load(re, i), load(im, i), load(re, i + LANES), load(im, i + LANES)
            store(re, i, a_re + b_re)
            store(im, i, a_im + b_im)
            store(re, i + LANES, a_re - b_re)
            store(im, i + LANES, a_im - b_im)


@kernel
def butterfly(bank: FilterBank, re: LaneArray, im: LaneArray, i: int, m: int, turn: int) -> None:
    """One step of `fft` on the values at i, i + m, i + 2 m, i + 3 m; the results belong to bins 0, 1, 2, 3 modulo 4."""
    a_re, b_re, c_re, d_re = load(re, i), load(re, i + m), load(re, i + 2 * m), load(re, i + 3 * m)
    a_im, b_im, c_im, d_im = load(im, i), load(im, i + m), load(im, i + 2 * m), load(im, i + 3 * m)
    even_re, even_im, odd_re, odd_im = a_re + c_re, a_im + c_im, b_re + d_re, b_im + d_im
    store(re, i, even_re + odd_re)
    store(im, i, even_im + odd_im)
    store_rotated(bank, re, im, i + 2 * m, even_re - odd_re, even_im - odd_im, 2 * turn)
    even_re, even_im, odd_re, odd_im = a_re - c_re, a_im - c_im, b_re - d_re, b_im - d_im
    store_rotated(bank, re, im, i + m, even_re + odd_im, even_im - odd_re, turn)
    store_rotated(bank, re, im, i + 3 * m, even_re - odd_im, even_im + odd_re, 3 * turn)


@kernel
def store_rotated(bank: FilterBank, re: LaneArray, im: LaneArray, i: int, x: Vector, y: Vector, turn: int) -> None:
    """Store (x + i y) exp(-2 pi i turn / padded)."""
    c, s = bank.cos[turn], bank.sin[turn]
    store(re, i, x * c + y * s)
    store(im, i, y * c - x * s)


@kernel
def store_spectra(bank: FilterBank, work: ScatterWork, at: int, level: int) -> None:
    """Store the spectra of the real samples work.u from bin `at` on, by transforms of half the length."""
    half = bank.cos.shape[0] >> level >> 1
    for i in range(half):
        store(work.re, i * LANES, load(work.u, 2 * i * LANES))
        store(work.im, i * LANES, load(work.u, (2 * i + 1) * LANES))
    fft(bank, work.re, work.im, half)
    re, im = load(work.re, 0), load(work.im, 0)
    store(work.spectrum_re, at * LANES, re + im)
    store(work.spectrum_re, (at + half) * LANES, re - im)
    for f in range(1, half):
        split_real_spectrum(bank, work, at, f, half)


@kernel
def split_real_spectrum(bank: FilterBank, work: ScatterWork, at: int, f: int, half: int) -> None:
    """Store bin f of real samples, from the transform of (even sample + i odd sample)."""
    i, j = bank.bin_place[half + f] * LANES, bank.bin_place[2 * half - f] * LANES
    a_re, a_im, b_re, b_im = load(work.re, i), load(work.im, i), load(work.re, j), load(work.im, j)
    one_half, turn = np.float32(0.5), f * (bank.cos.shape[0] // (2 * half))
    x, y = (a_im + b_im) * one_half, (b_re - a_re) * one_half  # bin f of the odd samples
    c, s = bank.cos[turn], bank.sin[turn]
    store(work.spectrum_re, (at + f) * LANES, (a_re + b_re) * one_half + x * c + y * s)
    store(work.spectrum_im, (at + f) * LANES, (a_im - b_im) * one_half + y * c - x * s)


@kernel
def apply_filter(bank: FilterBank, work: ScatterWork, path: int, k: int, windows: int, size: int) -> None:
    """Add the bins of u * psi, folded to `size`, to lanes [k, k + windows); u is the modulus of the parent path."""
    parent, first, tap = bank.parent[path], bank.first_bin[path], bank.tap_start[path]
    bins = bank.cos.shape[0] >> bank.level[parent]
    at, from_lane = locate_spectrum(bank, parent, windows)
    for i in range(bank.tap_start[path + 1] - tap):
        f = (first + i) & (bins - 1)
        to = (f & (size - 1)) * LANES + k
        weight = bank.weight[tap + i]
        mirrored = weight
        # the samples are real: the upper bins are the conjugates of the lower ones
        if f > bins // 2:
            f, mirrored = bins - f, -weight
        source = (at + f) * LANES + from_lane
        if windows == 1:
            work.re[to] += work.spectrum_re[source] * weight
            work.im[to] += work.spectrum_im[source] * mirrored
        else:
            store(work.re, to, load(work.re, to) + load(work.spectrum_re, source) * weight)
            store(work.im, to, load(work.im, to) + load(work.spectrum_im, source) * mirrored)


@kernel
def locate_spectrum(bank: FilterBank, path: int, windows: int) -> tuple[int, int]:
    """(bin 0, first lane) of the stored spectrum of a path of order 0 or 1."""
    if path == 0:
        return 0, 0
    first = bank.path_of_lane[bank.level_lanes[bank.level[path] + 1, 0]]
    k = (path - first) % (LANES // windows)
    return bank.spectrum_start[path - k], k * windows


@kernel
def wavelet_moduli(bank: FilterBank, work: ScatterWork, lane: int, stop: int, windows: int, level: int) -> None:
    """Write into work.u the moduli |u * psi| of the paths bank.path_of_lane[lane:stop], all at `level`."""
    size = bank.cos.shape[0] >> level
    for i in range(size * LANES):
        work.re[i], work.im[i] = np.float32(0.0), np.float32(0.0)
    for i in range(lane, stop):
        apply_filter(bank, work, bank.path_of_lane[i], (i - lane) * windows, windows, size)
    fft(bank, work.im, work.re, size)
    for i in range(size):
        at = bank.bin_place[size + i] * LANES
        re, im = load(work.re, at), load(work.im, at)
        store(work.u, i * LANES, sqrt(re * re + im * im))


@kernel
def write_lanes(
    out: NDArray[np.float32], p: int, bank: FilterBank, work: ScatterWork, lane: int, first: int, stop: int
) -> None:
    """Write position p of paths bank.path_of_lane[first:stop] from work.total, whose first lane is that of `lane`."""
    windows = out.shape[0]
    stride = 1 if windows == 1 else LANES
    for i in range(first, stop):
        for w in range(windows):
            out[w, bank.path_of_lane[i], p] = work.total[(i - lane) * stride + w]


@kernel
def low_pass_samples(
    out: NDArray[np.float32], bank: FilterBank, work: ScatterWork, lane: int, first: int, stop: int, level: int
) -> None:
    """Write work.u * phi of paths bank.path_of_lane[first:stop] into out [n, paths, positions]."""
    for p in range(out.shape[2]):
        total = load(work.u, 0) * bank.low_pass[p, 0]
        for i in range(1, bank.cos.shape[0] >> level):
            total = total + load(work.u, i * LANES) * bank.low_pass[p, i << level]
        store(work.total, 0, total)
        write_lanes(out, p, bank, work, lane, first, stop)


@kernel
def low_pass_spectra(
    out: NDArray[np.float32], bank: FilterBank, work: ScatterWork, lane: int, stop: int, at: int
) -> None:
    """Write u * phi of paths bank.path_of_lane[lane:stop] into out [n, paths, positions], from their spectra at `at`.

    phi has fewer bins than samples, so this is faster than `low_pass_samples`.
    """
    for p in range(out.shape[2]):
        total = load(work.spectrum_re, at * LANES) * bank.low_pass_re[p, 0]
        for f in range(1, bank.low_pass_re.shape[1]):
            i = (at + f) * LANES
            total = total + load(work.spectrum_re, i) * bank.low_pass_re[p, f]
            total = total + load(work.spectrum_im, i) * bank.low_pass_im[p, f]
        store(work.total, 0, total)
        write_lanes(out, p, bank, work, lane, lane, stop)


@kernel
def scatter(out: NDArray[np.float32], bank: FilterBank, x: FloatArray, work: ScatterWork) -> None:
    """Write into out [n, paths, positions] the scattering of n <= LANES windows x [n, length]."""
    windows = x.shape[0]
    for i in range(bank.padding_index.shape[0]):
        for w in range(windows):
            work.u[i * LANES + w] = x[w, bank.padding_index[i]]
    stride = 1 if windows == 1 else LANES  # lanes of a path
    for stage in range(bank.level_lanes.shape[0]):
        level = max(stage - 1, 0)
        first, second, end = (bank.level_lanes[stage, 0], bank.level_lanes[stage, 1], bank.level_lanes[stage, 2])
        for lane in range(first, end, LANES // stride):
            stop = min(lane + LANES // stride, end)
            if stage > 0:
                wavelet_moduli(bank, work, lane, stop, stride, level)
            if stop > second:
                low_pass_samples(out, bank, work, lane, max(lane, second), stop, level)
            if lane < second:
                at = bank.spectrum_start[bank.path_of_lane[lane]]
                store_spectra(bank, work, at, level)
                low_pass_spectra(out, bank, work, lane, min(stop, second), at)
