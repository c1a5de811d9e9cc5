"""The panel of a training: its figures on any terminal or pipe, and an estimate of the end that comes true."""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import pytest
from rich.console import Console

from host import panel
from host.config import load_config
from host.panel import Mark, TrainingClock, TrainingPanel, training_panel
from kernels import jit

# Seconds of iterations of a training of the bundled bars on two shared cores; the first one compiles.
RECORDED = """
53.2 .61 .61 .58 .57 .67 .70 .67 .61 .63 .63 .61 .59 .60 .61 .62 .63 .73 .65 .60 .59 .59 .60 .58 .58 .72 .74 .76 .77
.74 .74 .73 .74 .72 .72 .74 .74 .74 .75 .75 .66 .60 .63 .64 .59 .60 .60 .61 .61 .60 .60 .60 .60 .62 .62 .64 .62 .62 .63
.61 .60 .61 .59 .60 .60 .62 .65 .67 .74 .74 .73 .73 .75 .75 .76 .67 .58 .59 .58 .57 .57 .58 .56 .57 .58 .58 .57 .58 .58
"""
SECONDS = [float(word) for word in RECORDED.split()]
TYPICAL_S, BATCH = 0.62, 32
FIGURES = {"iteration": 3, "episodes": 96, "updates": 240, "policy": 0.5123, "value": 1.49, "chance": 2.0085}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(panel, "time", clock)
    return clock


def growing(count: int, capacity: int, factor: float) -> list[float]:
    """Iterations of the recorded jitter whose reanalysis grows until the replay buffer is full."""
    jitter = [seconds / TYPICAL_S for seconds in SECONDS[1:]]
    stored = [min(BATCH * (i + 1) / capacity, 1.0) for i in range(count)]
    return [0.5 * (1 + factor * share) * jitter[i % len(jitter)] for i, share in enumerate(stored)]


def estimates(
    clock: Clock, seconds: list[float], capacity: int, minutes: float | None, episodes: int | None
) -> Iterator[tuple[float, float | None, float]]:
    """(seconds since the begin, estimate, truth) at each report of `train_for`."""
    times, found = [0.0, *accumulate(seconds)], list[tuple[float, float | None]]()
    training = TrainingClock(capacity, minutes)
    for i, clock.now in enumerate(times):
        last = clock.now - times[i - 1] if i else 0.0
        fractions = [BATCH * i / episodes] if episodes else []
        if minutes:
            fractions.append(1.0 if clock.now + last >= 60 * minutes else clock.now / (60 * minutes))
        training.add(Mark(clock.now, min(max(fractions), 1.0), BATCH * i, 80 * i))
        found.append((clock.now, training.left_s()))
        if max(fractions) >= 1:
            break
    return ((now, left, clock.now - now) for now, left in found)


@pytest.mark.parametrize(
    ("seconds", "capacity", "minutes", "episodes"),
    [
        (SECONDS[1:], 96, None, BATCH * 88),
        (SECONDS, 96, None, BATCH * 89),
        (SECONDS[1:], 96, 0.8, None),
        (SECONDS, 96, 1.5, None),
        (growing(200, 3200, 3.0), 3200, None, BATCH * 200),
        (growing(300, 960, 2.0), 960, None, BATCH * 300),
        (growing(300, 960, 3.0), 960, 3.0, BATCH * 300),  # at first the episodes seem to be the nearer end
        (growing(300, 960, 2.0), 960, 9.0, BATCH * 300),
    ],
    ids=["episodes", "slow start", "minutes", "minutes, slow start", "filling", "filled", "both", "both, episodes"],
)
def test_the_end_is_foreseen_within_30_percent_after_20_seconds(
    clock: Clock, seconds: list[float], capacity: int, minutes: float | None, episodes: int | None
) -> None:
    slow = 60.0 if seconds is SECONDS and not minutes else 20.0  # while the first iteration lasts nothing is known
    late = [row for row in estimates(clock, seconds, capacity, minutes, episodes) if row[0] >= slow and row[2] > 3]
    assert len(late) > 10 or seconds is SECONDS
    for now, left, truth in late:
        assert left == pytest.approx(truth, rel=0.3), f"after {now:.0f} s"


def test_a_day_of_marks_is_bounded_and_a_bar_never_goes_back(clock: Clock) -> None:
    training = TrainingClock(96, None)
    for i in range(4_000):
        clock.now = 4.0 * i
        training.add(Mark(clock.now, i / 8_000, BATCH * i, 80 * i))
        training.add(Mark(clock.now + 1, i / 16_000, BATCH * i, 80 * i))
    assert len(training._marks) <= panel.MAX_MARKS
    assert training.left_s() == pytest.approx(16_000, rel=0.01)
    assert training.rate("updates") == pytest.approx(20)


def test_figures_are_rates_of_the_newest_marks(clock: Clock) -> None:
    shown = TrainingPanel("training", load_config(None, ["market.episode_length=100"]), None)
    for i in range(9):
        clock.now = 2.0 * i
        shown.update(i / 16, {**FIGURES, "episodes": 32 * i, "updates": 80 * i, "rss_mb": 123.4})
    figures = shown.figures()
    assert (figures["episodes a minute"], figures["decisions a second"]) == ("960", "1,600")
    assert (figures["learner steps a second"], figures["policy loss"]) == ("40", "0.512")
    assert (figures["validation, net pips"], figures["memory, MB"]) == ("-", "123")
    assert shown.line().startswith("training:  50% iteration 3; episodes 256; ")
    assert shown.line().endswith("; about 16 s left")
    shown.note_kernel(1, 0, "gumbel.plan")
    assert shown.figures()["compiling"] == "gumbel.plan"
    shown.update(1.0, {**FIGURES, "validation_net_pips": -12.5})
    assert shown.figures()["validation, net pips"] == "-12.5"
    assert "left" not in shown.line()
    assert "compiling" not in shown.line()
    shown.update(1.0, {**FIGURES, "reward_per_decision": 0.5, "mean_return": 21.5})  # of a game
    assert shown.figures()["mean return"] == "21.5"
    assert "validation, net pips" not in shown.figures()


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_the_panel_fits_its_terminal(clock: Clock, width: int, encoding: str) -> None:
    shown = TrainingPanel("training", load_config(), 100.0)
    shown.update(0.3, FIGURES)
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, force_terminal=True, color_system=None, legacy_windows=False).print(shown)
    file.flush()
    lines = file.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert len(lines) == {40: 11, 80: 6, 120: 5}[width]
    assert lines[0].split()[0] == "training"
    assert lines[0].rstrip().endswith("30% about 1.7 h left")
    assert all(name in "\n".join(lines) for name in shown.figures())


def shows(show: Callable[..., Any], clock: Clock) -> None:
    for i in range(11):
        clock.now = 10.0 * i
        show(i / 10, {**FIGURES, "episodes": 32 * i} if i else None)


def test_piped_it_is_a_plain_line_every_30_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with training_panel("training", load_config(), None) as show:
        shows(show, clock)
    lines = capsys.readouterr().err.splitlines()
    assert [line[:14] for line in lines] == [f"training: {share:3}%" for share in (0, 30, 60, 90, 100)]
    assert "learner steps a second" in lines[2]
    assert lines[2].endswith("about 40 s left")
    assert not any(ord(letter) < 32 for letter in "".join(lines))


@pytest.mark.parametrize(("term", "is_live"), [("xterm", True), ("dumb", False)])
def test_a_terminal_gets_a_live_panel_unless_it_is_dumb(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, term: str, is_live: bool
) -> None:
    stream, listeners = Terminal(), list[Callable[..., None]]()
    monkeypatch.setattr(jit, "watch_compiler", lambda report: nullcontext(listeners.append(report)))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(panel, "REFRESH_HZ", 40.0)
    for name, value in {"TERM": term, "COLUMNS": "80", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with training_panel("training", load_config(), None) as show:
        shows(show, clock)
        print("said between", file=sys.stderr)
        time.sleep(0.1)
    text = stream.getvalue()
    assert ("\x1b[1A" in text) == is_live, "the cursor goes up to draw again"
    assert "\x1b[3" not in text, "a colour"
    assert "said between" in text
    assert len(listeners) == is_live
    assert "100%" in "".join(text.splitlines()[-7:])
