"""Slopes by differences, and targets of HL-Gauss in full."""

import numpy as np

from models import layers


def slope(f, x: np.ndarray, direction: np.ndarray, h: float = 1e-6) -> float:  # type: ignore[no-untyped-def]
    """Central difference of the scalar f at x along a direction."""
    return (f(x + h * direction) - f(x - h * direction)) / (2 * h)


def dense_target(x: float, limit: float, bins: int) -> np.ndarray:
    """[bins] the whole categorical target of x."""
    target, mass = np.zeros(bins), np.empty(min(bins, layers.HL_GAUSS_BINS))
    first = layers.hl_gauss(mass, x, limit, bins)
    target[first : first + len(mass)] = mass
    return target
