"""The rows of a feed judged one by one, by the rules of `judging.py` as far as a feed can: it knows no later row."""

from __future__ import annotations

import numpy as np

from host.console import say
from host.data.file_checks import (
    FEW,
    MOST_DROPPED,
    MOVED,
    Spell,
    cell_text,
    change_text,
    check_divides,
    go_on,
    has_weekends,
    interval_of,
    is_another_length,
    is_moved,
    is_still,
    move_text,
    on_saturday,
    order_fault,
    row_faults,
)
from host.data.formats import KINDS, LEARN, DataError, ReadOptions
from host.data.instruments import ALWAYS
from host.data.parsing import DAY, Ints, Rules, check_spread
from host.data.weekly_open import Weekends, clock_doubt, find_weekends
from kernels.market.features import HISTORY

NIGHT = 4.0  # times the mean bar: a spread in the minutes of a night; a wrong unit makes it ten times
UNJUDGED = 1000  # rows after which the share of bad ones is judged


class RowJudge:
    """What one feed has shown so far."""

    def __init__(self, options: ReadOptions, interval_ns: int, name: str, ticks: bool) -> None:
        self.last: tuple[int, float] | None = None  # opening and close of the last bar
        self._options, self._interval_ns, self._name = options, interval_ns, name
        self._has_volume, self._always = ticks, False  # a weekend has had none
        self._rows = self._faults = 0  # and those that are bad, without the filler
        self._before: tuple[int, int] | None = None  # opening and line of the last row good by itself
        self._spell, self._steady = Spell(), False  # steady: two bars have been as far apart as they are long
        self._first: list[tuple[int, float, float]] = []  # opening, spread and range of the first bars
        self._bad: list[tuple[int, str, dict[str, float]]] = []  # since the last bar: line, kind, quote
        self._weekends: list[Weekends] | None = []  # None: the clock was doubted

    def fault(self, quote: dict[str, float], opening: int, line: int, rules: Rules) -> str | None:
        """The kind of fault of a row; DataError where bars of another length have begun."""
        self._has_volume = self._has_volume or quote["volume"] > 0
        unsure = not self._always and has_weekends(rules.instrument) is None
        if unsure and on_saturday(opening, self._interval_ns) and not is_still(quote):
            self._always = True
        always = self._always or rules.instrument.hours == ALWAYS
        for kind, found in row_faults(quote, opening, self._has_volume, always).items():
            if found:
                return kind
        step_ns = 2 * self._interval_ns
        if self._before:
            step_ns = opening - self._before[0]
            self._watch(step_ns, line if rules.label == "close" else self._before[1])
        self._before = opening, line
        last, near = self.last or (None, quote["close"])
        if is_moved(quote, near, step_ns, self._interval_ns, always):
            return "damaged"
        return None if last is None else order_fault(opening - last, self._interval_ns)

    def _watch(self, step_ns: int, line: int) -> None:
        """DataError once the steps from row to row, the last one from `line`, tell of bars of another length."""
        self._spell = go_on(self._spell, step_ns, self._interval_ns, line)
        self._steady = self._steady or self._spell.exact == 0
        if is_another_length(self._spell, self._interval_ns):
            if not self._steady:
                check_divides(self._spell.step_ns, self._interval_ns, self._name)
            text = change_text(self._interval_ns, self._spell.step_ns)
            raise DataError(f"{self._name}: line {self._spell.first}: {text}")

    def keep(self, opening: int, quote: dict[str, float], rules: Rules, local: bool) -> None:
        """Remember a bar; the first ones refuse bars of another length, and an absurd spread before any decision."""
        if self.last and opening - self.last[0] > DAY and self._weekends is not None and not self._always:
            self._doubt(np.array([self.last[0], opening]), rules, local)
        self.last, self._bad = (opening, quote["close"]), []
        self._rows += 1
        if len(self._first) == HISTORY:
            return
        self._first.append((opening, quote["ask_close"] - quote["close"], quote["high"] - quote["low"]))
        if len(self._first) == LEARN:
            interval_of(np.array([first for first, *_ in self._first], np.int64), self._options, self._name)
        if len(self._first) == HISTORY:
            _, spread_px, range_px = np.mean(self._first, axis=0).tolist()
            check_spread(spread_px, range_px, rules, self._name, NIGHT)

    def _doubt(self, opening: Ints, rules: Rules, local: bool) -> None:
        """Doubt the clock aloud, once, if the weekends so far speak against it."""
        assert self._weekends is not None
        self._weekends.append(find_weekends(opening, self._interval_ns))
        seen = Weekends(*map(np.concatenate, zip(*self._weekends, strict=True)))
        doubt = clock_doubt(seen, rules, self._options, local)
        if doubt:
            say(f"{self._name}: {doubt}")
            self._weekends = None

    def refuse(self, kind: str, text: str, line: int, quote: dict[str, float], why: str = "") -> None:
        """Say that a bad row is dropped; DataError if it may not be, or is one of many.  `why` it is no bar."""
        cells = cell_text(kind, quote, self.last[1] if self.last else np.nan) if quote else why
        where = f"{self._name}: line {line}: {KINDS[kind]}{cells}: {text[:160]!r}"
        if not self._options.drop_bad:
            raise DataError(f"{where}; if few rows are so, --drop-bad drops them")
        self._rows += 1
        if kind != "flat":
            self._bad.append((line, kind, quote))
            self._faults += 1
        if len(self._bad) == MOVED:
            first, _, moved = self._bad[0]
            if self.last and self._is_level():
                raise DataError(f"{self._name}: line {first}: {move_text(self.last[1], moved['open'])}")
            raise DataError(f"{where}; so are the rows before it, from line {first} on: these are no slips")
        if self._faults > max(FEW, max(self._rows, UNJUDGED) // MOST_DROPPED):
            raise DataError(
                f"{where}; {self._faults} of {self._rows} rows are bad, more than 1 %: these are no slips"
            )
        say(f"{where}; dropped")

    def _is_level(self) -> bool:
        """Whether the prices of the last bad rows are all near the close of the first of them."""
        near = self._bad[0][2].get("close", np.nan)
        return all(
            kind == "damaged" and not is_moved(quote, near, 2, 1, self._always)
            for _, kind, quote in self._bad
        )
