"""The stamps of many lines at once: a file writes all of them in one shape, so that digits stand in columns.

`parse_stamp` of `parsing.py` says what a stamp is.  What is not uniform, or no time of a calendar, goes through it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from host.data.parsing import MAX_STAMP_NS, STAMP_PATTERNS, UNIX_UNIT_NS, BoolArray, IntArray, parse_stamp
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS

MINUTE_NS = 60 * SECOND_NS  # offsets from UTC are whole minutes


def parse_stamps(style: str, texts: NDArray[np.uint8] | list[str], day: str) -> tuple[IntArray, BoolArray]:
    """`parse_stamp` of each text; characters [T, width] that all have the shape of the first are read at once."""
    if not isinstance(texts, list):
        first = texts[0].tobytes().decode("latin-1")
        stamp_ns, is_utc = parse_stamp(style, first, day)
        uniform = parse_uniform_stamps(style, first, texts)
        offset_ns = 0 if uniform is None else stamp_ns - int(uniform[0])
        if uniform is not None and (offset_ns % MINUTE_NS == 0 if is_utc else offset_ns == 0):
            return uniform + offset_ns, np.full(len(texts), is_utc)
        texts = [row.tobytes().decode("latin-1") for row in texts]
    stamps = [parse_stamp(style, text, day) for text in texts]
    return np.array([stamp for stamp, _ in stamps], np.int64), np.array([utc for _, utc in stamps], np.bool_)


def parse_uniform_stamps(style: str, first: str, texts: NDArray[np.uint8]) -> IntArray | None:
    """Nanoseconds from the epoch to the stamps in `texts` [T, width], without regard to their one offset from UTC.

    None unless all have the shape and the offset of the `first`, and are times of a calendar.
    """
    match = next((found for pattern in STAMP_PATTERNS.get(style, ()) if (found := pattern.fullmatch(first))), None)
    unit_ns = UNIX_UNIT_NS.get(len(first)) if first.isdigit() and len(first) != 12 else None
    fixed = np.array([not (c.isdigit() and c.isascii()) for c in first])
    if match is None and unit_ns is None:
        return None
    if match is not None and unit_ns is None:
        if match["n"] or match["p"] or not match["m"].isdigit():
            return None
        if match["z"]:
            fixed[slice(*match.span("z"))] = True
    digit = texts - np.uint8(ord("0"))
    if (digit[:, ~fixed] > 9).any() or (texts[:, fixed] != texts[0, fixed]).any():
        return None
    if unit_ns is not None:
        unix = digits_to_int(digit)
        return unix * unit_ns if unix.max() < MAX_STAMP_NS // unit_ns else None
    return None if match is None else calendar_ns(digit, {part: match.span(part) for part in "ymdHMSf"})


def calendar_ns(digit: NDArray[np.uint8], spans: Mapping[str, tuple[int, int]]) -> IntArray | None:
    """Nanoseconds from the epoch to the times whose digits [T, width] have these spans; None if one does not exist."""
    part = {name: digits_to_int(digit[:, begin:end]) for name, (begin, end) in spans.items()}
    months = (part["y"] - 1970) * 12 + part["m"] - 1
    first_day, next_month = (month.astype("datetime64[M]").astype("datetime64[D]") for month in (months, months + 1))
    days = first_day.astype(np.int64) + part["d"] - 1
    limits = ("y", 1970, 2200), ("m", 1, 12), ("H", 0, 23), ("M", 0, 59), ("S", 0, 59)
    inside = [(part[name] >= least) & (part[name] <= most) for name, least, most in limits]
    inside.append((part["d"] >= 1) & (days < next_month.astype(np.int64)))
    width = spans["f"][1] - spans["f"][0]
    micros = part["f"] * 10 ** (6 - width) if width <= 6 else part["f"] // 10 ** (width - 6)
    seconds = days * (DAY_NS // SECOND_NS) + (part["H"] * 60 + part["M"]) * 60 + part["S"]
    stamp_ns = seconds * SECOND_NS + micros * 1000
    return stamp_ns if np.all(inside) and stamp_ns.max() < MAX_STAMP_NS else None


def digits_to_int(digit: NDArray[np.uint8]) -> IntArray:
    """The numbers with these digits [T, width]; 0 without digits."""
    number = np.zeros(len(digit), np.int64)
    for k in range(digit.shape[1]):
        number = number * 10 + digit[:, k]
    return number
