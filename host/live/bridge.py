"""The reader of `target.csv` in Python; `swt_bridge.mq5` is the same reader inside MetaTrader 5.

`poll` may be called at any rate: it returns a level only for a new row that may be traded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from host.atomic import write_atomic
from host.live.target_file import (
    DRY_RUN_PREFIX,
    PositionRow,
    RowError,
    TargetRow,
    format_position,
    parse_target,
    read_row_file,
)
from kernels.market.bars import SECOND_NS

MAX_CLOCK_AHEAD_S = 5.0  # a decision that lies further in the future proves that one of the two clocks is wrong


class Bridge:
    """A reader of the `target.csv` in one folder; `refusal` is why the last poll returned None."""

    def __init__(self, folder: Path, symbol: str, max_target: float, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._target_path, self._position_path = folder / "target.csv", folder / "position.csv"
        self._symbol, self._max_target, self._now_ns = symbol, max_target, now_ns
        self.seq = 0  # of the last accepted row
        self.refusal = ""

    def poll(self) -> float | None:
        """The level to hold from now on, signed and in units of the target; None: hold what is held."""
        try:
            row = parse_target(read_row_file(self._target_path))
        except (OSError, RowError) as error:
            self.refusal = f"unreadable: {error}"
            return None
        self.refusal = self._refusal_of(row)
        if self.refusal:
            return None
        self.seq = row.seq
        return row.target

    def report_position(self, position: float) -> None:
        """Write the held `position`, in units of the target, to `position.csv`, which the agent compares."""
        row = PositionRow(self.seq, self._now_ns(), self._symbol, position)
        write_atomic(self._position_path, format_position(row))

    def _refusal_of(self, row: TargetRow) -> str:
        """Why the row may not be traded, or ""."""
        now, max_ahead_ns = self._now_ns(), MAX_CLOCK_AHEAD_S * SECOND_NS
        if row.reason.startswith(DRY_RUN_PREFIX):
            return "dry-run"
        if row.symbol != self._symbol:
            return f"symbol {row.symbol}, not {self._symbol}"
        if row.seq <= self.seq:
            return "repeated"
        if now >= row.valid_until_ns:
            return "expired"
        if row.decided_ns > now + max_ahead_ns or row.bar_close_ns > row.decided_ns + max_ahead_ns:
            return "from the future"
        if abs(row.target) > self._max_target:
            return f"above the maximum of {self._max_target:g}"
        return ""
