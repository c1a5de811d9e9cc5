"""Wavelet scattering of a window of N samples: what `Scattering1D(J, N, Q)` of kymatio 0.3 computes, in one kernel.

S0 = x * phi, S1 = |x * psi1| * phi, S2 = ||x * psi1| * psi2| * phi (Anden and Mallat 2014, Deep Scattering Spectrum),
with Morlet wavelets psi and a Gaussian phi of width 2^J.  Here L is the padded length, P the paths, T' = N / 2^J
the positions at which a path is read; at level j one sample in 2^j is kept.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels._jit import kernel

SIGMA_0 = 0.1  # width of phi at J = 0, cycles per sample
OVERLAP = math.sqrt(0.5)  # height at which neighbouring wavelets meet
ALIASING = 5.0  # a wavelet ends this many widths above its centre
HIGHEST_CENTRE = 0.35  # of the first wavelet, cycles per sample, or more where Q asks for it
EDGE = 1e-3  # mass of phi that padding may miss
NEGLIGIBLE = 1e-8  # bins below this share of a filter's peak are not multiplied
PERIODS = 5  # at most this many periods of a filter are folded into one

Array = NDArray[np.float64]
Index = NDArray[np.int64]


class Bank(NamedTuple):
    """Filters and tables of one (J, Q, N).  Path 0 is order 0, then come orders 1 and 2, coarser filters later."""

    J: int
    Q: int
    mirror: Index  # [L] sample of the window behind each sample of the padded window
    cos: Array  # [L] cos(2 pi k / L)
    sin: Array  # [L] sin(2 pi k / L)
    smooth: Array  # [T', L] phi: weight of padded sample l in output position p
    low_re: Array  # [T', K] the same of the real parts of the lowest K bins of a spectrum, at whatever level
    low_im: Array  # [T', K] and of the imaginary parts
    order: Index  # [P]
    level: Index  # [P] at which the path's modulus is sampled
    parent: Index  # [P] path whose modulus is filtered; 0 for the window
    spectrum: Index  # [P] where the spectrum of path 0 or of a path of order 1 is kept
    first: Index  # [P] first bin that the path's filter takes of its parent's spectrum
    tap: Index  # [P + 1] its weights are [tap[p], tap[p + 1])
    weight: Array  # [taps] of all filters, the inverse transform's 1 / length included
    lane: Index  # [P - 1] paths above order 0 by level, those of order 1 first
    group: Index  # [levels, 3] first lane of a level, first of order 2, end


class ScatterWork(NamedTuple):
    """Scratch of one window.  Paths of a level are its lanes, side by side: sample i of lane k is at i * lanes + k."""

    u: Array  # [S] samples of the running level
    re: Array  # [S] a transform, in place
    im: Array  # [S]
    spare_re: Array  # [S] its other half of the time
    spare_im: Array  # [S]
    spectrum_re: Array  # [spectra] of the padded window and of each path of order 1, one after the other
    spectrum_im: Array  # [spectra]
    total: Array  # [lanes]


def new_scatter_work(bank: Bank) -> ScatterWork:
    """Scratch for one thread."""
    L = len(bank.mirror)
    lanes = bank.group[:, 2] - bank.group[:, 0]
    S = max(L, int(max(n * (L >> v) for v, n in enumerate(lanes))))
    u, re, im, spare_re, spare_im = np.zeros((5, S))
    spectrum_re, spectrum_im = np.zeros((2, int(np.sum(L >> bank.level[bank.order < 2]))))
    return ScatterWork(u, re, im, spare_re, spare_im, spectrum_re, spectrum_im, np.zeros(int(lanes.max())))


def morlet(length: int, centre: float, width: float) -> Array:
    """Spectrum [length] of a Morlet wavelet, or of a Gaussian if `centre` is 0: zero mean, its modulus of sum 1."""
    periods = min(math.ceil(math.sqrt(-2 * width**2 * math.log(1e-7)) + 1), PERIODS)
    if periods == 1:
        raise ValueError("the narrowest filter is narrower than a bin")
    f = np.arange((1 - periods) * length, periods * length) / length

    def bump(at: float) -> Array:
        folded = np.exp(-((f - at) ** 2) / (2 * width**2)).reshape(2 * periods - 1, length)
        return np.asarray(folded.mean(axis=0))

    low = bump(0.0)
    spectrum = low
    if centre > 0:
        band = bump(centre)
        spectrum = band - band[0] / low[0] * low
    return np.asarray(spectrum / np.abs(np.fft.ifft(spectrum)).sum())


def wavelets(J: int, Q: int) -> list[tuple[float, float, int]]:
    """(centre, width, level) of Q wavelets an octave: geometric down to the width of phi, then Q - 1 of that width."""
    step = 2 ** (1 / Q)
    narrowest = SIGMA_0 / 2**J
    centre = max(1 / (1 + 2 ** (3 / Q)), HIGHEST_CENTRE)
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
    """Largest j such that one sample in 2^j still holds a wavelet, ALIASING widths above its centre included."""
    return math.floor(-math.log2(min(centre + ALIASING * width, 0.5))) - 1


def padded_length(J: int, length: int) -> int:
    """Power of two that leaves three half-widths of phi at each end, or what reflection can fill."""
    phi = np.abs(np.fft.ifft(morlet(length, 0.0, SIGMA_0 / 2**J)))[: length // 2]
    missed = np.cumsum(phi[::-1])[::-1]
    enough = np.flatnonzero(missed <= EDGE)
    margin = 3 * (int(enough[0]) + 1 if len(enough) else length // 2)
    wanted = math.ceil(math.log2(length + 2 * margin))
    return int(2 ** min(wanted, math.floor(math.log2(3 * length - 2))))


def support(spectrum: Array) -> tuple[int, int]:
    """First bin and number of bins outside the longest negligible stretch, around the circle."""
    L = len(spectrum)
    kept = np.flatnonzero(np.abs(spectrum) > NEGLIGIBLE * np.abs(spectrum).max())
    hole = np.diff(kept, append=kept[0] + L)
    last = int(np.argmax(hole))
    return int(kept[(last + 1) % len(kept)]), L + 1 - int(hole[last])


def new_bank(J: int, Q: int, length: int = 256) -> Bank:
    """Filters for windows of `length` samples, Q wavelets an octave in order 1 and one in order 2."""
    L = padded_length(J, length)
    left = (L - length) // 2
    first, stop = (-(-edge // 2**J) for edge in (left, left + length))
    read = 2**J * np.arange(first, stop)[:, None]
    low_pass = morlet(L, 0.0, SIGMA_0 / 2**J)
    bins = np.flatnonzero(low_pass[: L // 2] > NEGLIGIBLE * low_pass[0])
    low = np.where(bins, 2, 1) * low_pass[bins] / L * np.exp(2j * np.pi * read * bins / L)
    turn = 2 * np.pi * np.arange(L) / L
    order, level, parent, weight, first_bin = new_paths(J, Q, L)
    size = np.where(order < 2, L >> level, 0)
    lane = 1 + np.lexsort((order[1:], level[1:]))
    key = 2 * level[lane] + order[lane] - 1
    edges = 2 * np.arange(level.max() + 1)[:, None] + np.arange(3)
    return Bank(
        J=J,
        Q=Q,
        mirror=np.pad(np.arange(length), (left, L - length - left), mode="reflect"),
        cos=np.cos(turn),
        sin=np.sin(turn),
        smooth=np.fft.ifft(low_pass).real[(read - np.arange(L)) % L],
        low_re=low.real.copy(),
        low_im=-low.imag,
        order=order,
        level=level,
        parent=parent,
        spectrum=np.cumsum(size) - size,
        first=first_bin,
        tap=np.cumsum([0, *map(len, weight)]),
        weight=np.concatenate(weight),
        lane=lane,
        group=np.searchsorted(key, edges),
    )


def new_paths(J: int, Q: int, L: int) -> tuple[Index, Index, Index, list[Array], Index]:
    """Order, level, parent, filter and the filter's first bin of each path."""
    ones, twos = wavelets(J, Q), wavelets(J, 1)
    edges = [(1, 0, one) for one in ones]
    edges += [(2, n, two) for n, one in enumerate(ones, 1) for two in twos if two[2] > one[2]]
    order, level, parent, weight, first = [0], [0], [0], [np.zeros(0)], [0]
    for rank, n, (centre, width, j) in edges:
        # Kymatio's decimated filters are the mean, not the sum, of the folded periods: kept, so that scales agree.
        folded = morlet(L, centre, width).reshape(2 ** level[n], -1).mean(axis=0)
        start, count = support(folded)
        weight.append(np.roll(folded, -start)[:count] / len(folded))
        order, level, parent, first = [*order, rank], [*level, j], [*parent, n], [*first, start]
    return np.array(order), np.array(level), np.array(parent), weight, np.array(first)


@kernel
def fft(bank: Bank, re: Array, im: Array, spare_re: Array, spare_im: Array, n: int, lanes: int) -> None:
    """Forward transforms of n = 2^k values in place; with re and im exchanged, n times the inverse ones.

    Stockham's self-sorting radix 4 (Van Loan 1992, 1.7): no pass permutes, the inner loop is contiguous over the lanes.
    """
    size, stride = n, lanes
    in_place = True
    while size > 1:
        if in_place:
            size, stride = fft_pass(bank, spare_re, spare_im, re, im, size, stride)
        else:
            size, stride = fft_pass(bank, re, im, spare_re, spare_im, size, stride)
        in_place = not in_place
    if not in_place:
        for i in range(n * lanes):
            re[i], im[i] = spare_re[i], spare_im[i]


@kernel
def fft_pass(
    bank: Bank, out_re: Array, out_im: Array, re: Array, im: Array, size: int, stride: int
) -> tuple[int, int]:
    """One pass, of radix 4 where `size` allows: the new (size, stride)."""
    if size == 2:
        radix_2(out_re, out_im, re, im, stride)
        return 1, 2 * stride
    radix_4(bank, out_re, out_im, re, im, size // 4, stride)
    return size // 4, 4 * stride


@kernel
def radix_2(out_re: Array, out_im: Array, re: Array, im: Array, s: int) -> None:
    """The last pass, over s pairs."""
    for q in range(s):
        out_re[q], out_im[q] = re[q] + re[q + s], im[q] + im[q + s]
        out_re[q + s], out_im[q + s] = re[q] - re[q + s], im[q] - im[q + s]


@kernel
def radix_4(bank: Bank, out_re: Array, out_im: Array, re: Array, im: Array, m: int, s: int) -> None:
    """m turns of s butterflies: from i, i + ms, i + 2ms, i + 3ms to 4 stretches of s."""
    turn = bank.cos.shape[0] // (4 * m)
    for p in range(m):
        c1, s1 = bank.cos[p * turn], bank.sin[p * turn]
        c2, s2 = bank.cos[2 * p * turn], bank.sin[2 * p * turn]
        c3, s3 = bank.cos[3 * p * turn], bank.sin[3 * p * turn]
        # Slices, because numba wraps an index it cannot prove positive, and that stops the vectoriser.
        i, o, step = s * p, 4 * s * p, m * s
        x0_re, x0_im = re[i:][:s], im[i:][:s]
        x1_re, x1_im = re[i + step :][:s], im[i + step :][:s]
        x2_re, x2_im = re[i + 2 * step :][:s], im[i + 2 * step :][:s]
        x3_re, x3_im = re[i + 3 * step :][:s], im[i + 3 * step :][:s]
        y0_re, y0_im = out_re[o:][:s], out_im[o:][:s]
        y1_re, y1_im = out_re[o + s :][:s], out_im[o + s :][:s]
        y2_re, y2_im = out_re[o + 2 * s :][:s], out_im[o + 2 * s :][:s]
        y3_re, y3_im = out_re[o + 3 * s :][:s], out_im[o + 3 * s :][:s]
        for q in range(s):
            a_re, a_im = x0_re[q], x0_im[q]
            b_re, b_im = x1_re[q], x1_im[q]
            c_re, c_im = x2_re[q], x2_im[q]
            d_re, d_im = x3_re[q], x3_im[q]
            even_re, even_im, odd_re, odd_im = a_re + c_re, a_im + c_im, b_re + d_re, b_im + d_im
            y0_re[q], y0_im[q] = even_re + odd_re, even_im + odd_im
            x, y = even_re - odd_re, even_im - odd_im
            y2_re[q], y2_im[q] = x * c2 + y * s2, y * c2 - x * s2
            even_re, even_im, odd_re, odd_im = a_re - c_re, a_im - c_im, b_re - d_re, b_im - d_im
            x, y = even_re + odd_im, even_im - odd_re
            y1_re[q], y1_im[q] = x * c1 + y * s1, y * c1 - x * s1
            x, y = even_re - odd_im, even_im + odd_re
            y3_re[q], y3_im[q] = x * c3 + y * s3, y * c3 - x * s3


@kernel
def keep_spectra(bank: Bank, work: ScatterWork, first: int, parents: int, lanes: int, n: int) -> None:
    """Spectra of the first `parents` of the lanes of n real samples, by complex transforms of half the length.

    Their paths are first, first + 1, ..: kept for their children.
    """
    half = n // 2
    for i in range(half):
        for k in range(parents):
            work.re[i * parents + k] = work.u[2 * i * lanes + k]
            work.im[i * parents + k] = work.u[(2 * i + 1) * lanes + k]
    fft(bank, work.re, work.im, work.spare_re, work.spare_im, half, parents)
    for k in range(parents):
        at = bank.spectrum[first + k]
        untangle(work.spectrum_re[at:], work.spectrum_im[at:], bank, work, k, parents, half)


@kernel
def untangle(
    out_re: Array, out_im: Array, bank: Bank, work: ScatterWork, k: int, lanes: int, half: int
) -> None:
    """All 2 * half bins of real samples, from the transform of (even sample + i odd sample) in lane k."""
    turn = bank.cos.shape[0] // (2 * half)
    out_re[0], out_im[0] = work.re[k] + work.im[k], 0.0
    out_re[half], out_im[half] = work.re[k] - work.im[k], 0.0
    for f in range(1, half):
        a_re, a_im = work.re[f * lanes + k], work.im[f * lanes + k]
        b_re, b_im = work.re[(half - f) * lanes + k], -work.im[(half - f) * lanes + k]
        x, y = 0.5 * (a_im - b_im), 0.5 * (b_re - a_re)  # of the odd samples
        c, s = bank.cos[f * turn], bank.sin[f * turn]
        out_re[f] = 0.5 * (a_re + b_re) + x * c + y * s
        out_im[f] = 0.5 * (a_im + b_im) + y * c - x * s
        out_re[2 * half - f], out_im[2 * half - f] = out_re[f], -out_im[f]


@kernel
def apply_filter(bank: Bank, work: ScatterWork, path: int, k: int, lanes: int, size: int) -> None:
    """Add the bins of u * psi, folded to `size`, to lane k of work.re, work.im; u is the parent's modulus."""
    at, tap, parent = bank.spectrum[bank.parent[path]], bank.tap[path], bank.parent[path]
    bins = bank.cos.shape[0] >> bank.level[parent]
    for i in range(bank.tap[path + 1] - tap):
        f = (bank.first[path] + i) & (bins - 1)
        to = (f & (size - 1)) * lanes + k
        work.re[to] += work.spectrum_re[at + f] * bank.weight[tap + i]
        work.im[to] += work.spectrum_im[at + f] * bank.weight[tap + i]


@kernel
def wavelet_moduli(bank: Bank, work: ScatterWork, lane: int, lanes: int, size: int) -> None:
    """work.u = |u * psi| of the paths bank.lane[lane .. lane + lanes), `size` samples each."""
    for i in range(size * lanes):
        work.re[i], work.im[i] = 0.0, 0.0
    for k in range(lanes):
        apply_filter(bank, work, bank.lane[lane + k], k, lanes, size)
    fft(bank, work.im, work.re, work.spare_im, work.spare_re, size, lanes)
    for i in range(size * lanes):
        work.u[i] = math.sqrt(work.re[i] * work.re[i] + work.im[i] * work.im[i])


@kernel
def smooth_lanes(
    out: NDArray[np.float32], bank: Bank, work: ScatterWork, lane: int, lanes: int, level: int
) -> None:
    """Rows of out [P, T'] of the paths of order 2 at `level`, the last lanes: work.u * phi at the output positions."""
    parents = bank.group[level, 1] - lane
    total = work.total[: lanes - parents]
    for p in range(out.shape[1]):
        for k in range(total.shape[0]):
            total[k] = 0.0
        for i in range(bank.cos.shape[0] >> level):
            weight = bank.smooth[p, i << level]
            u = work.u[i * lanes + parents :][: total.shape[0]]
            for k in range(total.shape[0]):
                total[k] += weight * u[k]
        for k in range(total.shape[0]):
            out[bank.lane[lane + parents + k], p] = total[k]


@kernel
def smooth_spectrum(out: NDArray[np.float32], bank: Bank, re: Array, im: Array) -> None:
    """out [T'] = u * phi at the output positions, from the spectrum of u: phi has few bins and many samples."""
    for p in range(out.shape[0]):
        total = 0.0
        for f in range(bank.low_re.shape[1]):
            total += re[f] * bank.low_re[p, f] + im[f] * bank.low_im[p, f]
        out[p] = total


@kernel
def scatter(out: NDArray[np.float32], bank: Bank, x: Array, work: ScatterWork) -> None:
    """out [P, T'] of the window x [N]."""
    L = bank.mirror.shape[0]
    for i in range(L):
        work.u[i] = x[bank.mirror[i]]
    keep_spectra(bank, work, 0, 1, 1, L)
    for level in range(bank.group.shape[0]):
        lane, size = bank.group[level, 0], L >> level
        parents, lanes = bank.group[level, 1] - lane, bank.group[level, 2] - lane
        wavelet_moduli(bank, work, lane, lanes, size)
        if lanes > parents:
            smooth_lanes(out, bank, work, lane, lanes, level)
        if parents > 0:
            keep_spectra(bank, work, bank.lane[lane], parents, lanes, size)
    for path in range(out.shape[0]):
        if bank.order[path] < 2:
            at = bank.spectrum[path]
            smooth_spectrum(out[path], bank, work.spectrum_re[at:], work.spectrum_im[at:])
