"""The checks of the rows of a feed, one by one: the rules of `file_checks.py` without knowledge of later rows."""

from __future__ import annotations

import numpy as np

from host.console import log
from host.data.file_checks import (
    LEVEL_SHIFT_ROWS,
    MAX_FREE_DROPS,
    MIN_ROWS_PER_DROP,
    StepRun,
    bad_cells_text,
    check_divides,
    extend_run,
    infer_interval,
    interval_change_text,
    is_flat_bar,
    is_interval_change,
    is_price_jump,
    is_saturday,
    level_shift_text,
    observes_weekends,
    order_fault,
    row_faults,
)
from host.data.formats import PROBLEM_KINDS, DataError, ReadOptions
from host.data.instruments import ROUND_THE_CLOCK
from host.data.layout import SNIFF_LINES
from host.data.parsing import IntArray, ParseRules, check_spread
from host.data.weekly_open import Weekends, clock_warning, find_weekends
from kernels.market.calendar import DAY_NS
from kernels.market.features import HISTORY

# In mean bar ranges.  The spread of a quiet night may reach it; a spread in a wrong unit is at least ten.
MAX_NIGHT_SPREAD = 4.0
MIN_JUDGED_ROWS = 1000  # a feed with fewer rows may have as many bad rows as one of this length


class RowChecker:
    """The state of the checks of one feed."""

    def __init__(self, options: ReadOptions, interval_ns: int, name: str, volume_required: bool) -> None:
        self.last_bar: tuple[int, float] | None = None  # opening and close of the last bar
        self._options, self._interval_ns, self._name = options, interval_ns, name
        self._has_volume, self._trades_weekends = volume_required, False
        self._num_rows = self._num_faults = 0  # rows; bad rows without filler
        self._last_row: tuple[int, int] | None = None  # opening and line of the last row without a fault of its own
        self._step_run, self._interval_confirmed = StepRun(), False  # confirmed by one step as long as a bar
        self._first_bars: list[tuple[int, float, float]] = []  # opening, spread and range of the first bars
        self._bad_rows: list[tuple[int, str, dict[str, float]]] = []  # since the last bar: line, kind, quote
        self._weekends: list[Weekends] | None = []  # None after a warning about the clock

    def find_fault(self, quote: dict[str, float], opening: int, line: int, rules: ParseRules) -> str | None:
        """The kind of fault of a row, or None; DataError where bars of another length have begun."""
        self._has_volume = self._has_volume or quote["volume"] > 0
        unsure = not self._trades_weekends and observes_weekends(rules.instrument) is None
        if unsure and is_saturday(opening, self._interval_ns) and not is_flat_bar(quote):
            self._trades_weekends = True
        always = self._trades_weekends or rules.instrument.hours == ROUND_THE_CLOCK
        for kind, is_faulty in row_faults(quote, opening, self._has_volume, always).items():
            if is_faulty:
                return kind
        step_ns = 2 * self._interval_ns
        if self._last_row:
            step_ns = opening - self._last_row[0]
            self._check_interval(step_ns, line if rules.label == "close" else self._last_row[1])
        self._last_row = opening, line
        last_opening, last_close = self.last_bar or (None, quote["close"])
        if is_price_jump(quote, last_close, step_ns, self._interval_ns, always):
            return "damaged"
        return None if last_opening is None else order_fault(opening - last_opening, self._interval_ns)

    def _check_interval(self, step_ns: int, line: int) -> None:
        """DataError once the steps from row to row prove bars of another length; the last step is from `line`."""
        self._step_run = extend_run(self._step_run, step_ns, self._interval_ns, line)
        self._interval_confirmed = self._interval_confirmed or self._step_run.num_exact == 0
        if is_interval_change(self._step_run, self._interval_ns):
            if not self._interval_confirmed:
                check_divides(self._step_run.step_ns, self._interval_ns, self._name)
            text = interval_change_text(self._interval_ns, self._step_run.step_ns)
            raise DataError(f"{self._name}: line {self._step_run.first_bar}: {text}")

    def accept(self, opening: int, quote: dict[str, float], rules: ParseRules, is_local_time: bool) -> None:
        """Remember a good bar; DataError if the first bars show another length or an absurd spread."""
        checks_clock = self._weekends is not None and not self._trades_weekends
        if self.last_bar and opening - self.last_bar[0] > DAY_NS and checks_clock:
            self._check_clock(np.array([self.last_bar[0], opening]), rules, is_local_time)
        self.last_bar, self._bad_rows = (opening, quote["close"]), []
        self._num_rows += 1
        if len(self._first_bars) == HISTORY:
            return
        self._first_bars.append((opening, quote["ask_close"] - quote["close"], quote["high"] - quote["low"]))
        if len(self._first_bars) == SNIFF_LINES:
            infer_interval(np.array([first for first, *_ in self._first_bars], np.int64), self._options, self._name)
        if len(self._first_bars) == HISTORY:
            _, spread_px, range_px = np.mean(self._first_bars, axis=0).tolist()
            check_spread(spread_px, range_px, rules, self._name, MAX_NIGHT_SPREAD)

    def _check_clock(self, opening: IntArray, rules: ParseRules, is_local_time: bool) -> None:
        """Log a warning, once, if the weekends so far contradict the clock; `opening` [2] of the bars around a gap."""
        assert self._weekends is not None
        self._weekends.append(find_weekends(opening, self._interval_ns))
        weekends = Weekends(*map(np.concatenate, zip(*self._weekends, strict=True)))
        warning = clock_warning(weekends, rules, self._options, is_local_time)
        if warning:
            log(f"{self._name}: {warning}")
            self._weekends = None

    def reject(self, kind: str, text: str, line: int, quote: dict[str, float], why: str = "") -> None:
        """Log that a bad row is dropped; DataError if it may not be dropped.

        `quote` is empty for a row that cannot be parsed, and `why` is the reason.
        """
        cells = bad_cells_text(kind, quote, self.last_bar[1] if self.last_bar else np.nan) if quote else why
        message = f"{self._name}: line {line}: {PROBLEM_KINDS[kind]}{cells}: {text[:160]!r}"
        if not self._options.drop_bad:
            raise DataError(f"{message}; if few rows are so, --drop-bad drops them")
        self._num_rows += 1
        if kind != "flat":
            self._bad_rows.append((line, kind, quote))
            self._num_faults += 1
        if len(self._bad_rows) == LEVEL_SHIFT_ROWS:
            first, _, moved = self._bad_rows[0]
            if self.last_bar and self._is_level_shift():
                raise DataError(f"{self._name}: line {first}: {level_shift_text(self.last_bar[1], moved['open'])}")
            raise DataError(f"{message}; so are the rows before it, from line {first} on: these are no slips")
        if self._num_faults > max(MAX_FREE_DROPS, max(self._num_rows, MIN_JUDGED_ROWS) // MIN_ROWS_PER_DROP):
            share = f"{self._num_faults} of {self._num_rows} rows are bad, more than 1 %"
            raise DataError(f"{message}; {share}: these are no slips")
        log(f"{message}; dropped")

    def _is_level_shift(self) -> bool:
        """Whether the prices of all bad rows since the last bar are near the close of the first of them."""
        first_close = self._bad_rows[0][2].get("close", np.nan)
        return all(
            kind == "damaged" and not is_price_jump(quote, first_close, 2, 1, self._trades_weekends)
            for _, kind, quote in self._bad_rows
        )
