"""A feed that is late, rewritten or torn apart while nobody looked: people are told, and what is held is right."""

from itertools import pairwise
from typing import Any

import pytest

from host.data.feed import Bar
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import ALWAYS_OPEN, HOUR_NS
from kernels.market.features import HISTORY
from tests.fixtures.acting import acting, bars, outcomes

__all__ = ["acting", "bars"]  # fixtures


@pytest.mark.parametrize("given", [HISTORY + 5, 9])
def test_a_late_feed_is_flat_and_says_so_until_it_is_in_time(
    given: int, acting: Any, bars: list[Bar], capsys: pytest.CaptureFixture[str]
) -> None:
    """Five hours behind, from the first bar on, in the warm-up too; not before its end is reached."""
    live = acting()
    assert live.feed(bars[:given], after_ns=5 * HOUR_NS) == []
    live.runner.check_between_bars()
    assert not (live.folder / "target.csv").exists(), "there may be more bars at once"
    live.now += 2 * SECOND_NS
    for _ in range(3):
        live.runner.check_between_bars()
    row = live.row()
    assert (row.target, row.reason) == (0.0, "halted late-feed")
    assert row.valid_until_ns > live.now
    err = capsys.readouterr().err
    assert err.count("the feed is late: its last bar closed at ") == 1
    assert ", 5.0 h ago" in err
    assert err.count("target 0: halted late-feed") == 1
    rows = live.feed(bars[given : HISTORY + 30])
    assert rows[-1].reason.startswith("active")
    live.runner.check_between_bars()
    assert live.row() == rows[-1]
    assert "late" not in capsys.readouterr().err


def test_a_feed_that_ends_late_is_logged_at_the_end(
    acting: Any, bars: list[Bar], capsys: pytest.CaptureFixture[str]
) -> None:
    live = acting()
    live.feed(bars[: HISTORY + 5], after_ns=5 * HOUR_NS)
    live.runner.close()
    assert (live.row().target, live.row().reason) == (0.0, "halted late-feed")
    live.start()
    live.feed(bars[HISTORY + 4 : HISTORY + 5], after_ns=5 * HOUR_NS)
    live.runner.close()
    assert capsys.readouterr().err.count("the feed is late") == 2, "a restart says so too"


def test_over_the_weekend_a_bar_is_old_and_not_late(
    acting: Any, bars: list[Bar], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is held stays, but in a market that is always open."""
    friday = next(i for i, (a, b) in enumerate(pairwise(bars)) if i > HISTORY and b.time - a.time > 40 * HOUR_NS)
    live = acting()
    rows = live.feed(bars[: friday + 1])
    live.start()
    live.now += 9 * HOUR_NS
    live.runner.on_bar(bars[friday])
    live.now += 2 * SECOND_NS
    live.runner.check_between_bars()
    assert live.row() == rows[-1]
    assert ", 9.0 h ago: the market is closed" in capsys.readouterr().err
    live.runner._hours = ALWAYS_OPEN
    live.feed([bars[friday]._replace(time=bars[friday].time + 20 * HOUR_NS)], after_ns=5 * HOUR_NS)
    live.now += 2 * SECOND_NS
    live.runner.check_between_bars()
    assert live.row().reason == "halted late-feed"


def test_a_first_start_at_a_weekend_publishes_flat(acting: Any, bars: list[Bar]) -> None:
    """There is nothing that could be held."""
    friday = next(i for i, (a, b) in enumerate(pairwise(bars)) if i > HISTORY and b.time - a.time > 40 * HOUR_NS)
    live = acting()
    for bar in bars[: friday + 1]:
        live.now = bars[friday].time + 9 * HOUR_NS
        (live.runner or live.start()).on_bar(bar)
    live.runner.close()
    assert (live.row().target, live.row().reason) == (0.0, "halted late-feed")


def test_catching_up_is_not_late(acting: Any, bars: list[Bar]) -> None:
    """After a restart the bars that were missed come at once, the last of them in time."""
    live = acting()
    rows = live.feed(bars[: HISTORY + 20])
    runner = live.start()
    live.now = bars[HISTORY + 29].time + SECOND_NS
    for bar in bars[: HISTORY + 30]:
        runner.on_bar(bar)
        runner.check_between_bars()
    assert live.row().seq == rows[-1].seq + 10
    assert not any(outcome["reason"] == "late-feed" for outcome in outcomes(live.folder))


@pytest.mark.parametrize("live", [True, False])
def test_a_bar_that_was_rewritten_between_two_starts_is_logged(
    live: bool, acting: Any, bars: list[Bar], capsys: pytest.CaptureFixture[str]
) -> None:
    run = acting(live=live)
    run.feed(bars[: HISTORY + 5])
    run.start()
    changed = bars[HISTORY]._replace(close=1.5)
    run.feed([*bars[HISTORY - 9 : HISTORY], changed, *bars[HISTORY + 1 : HISTORY + 9]])
    lines = [line for line in capsys.readouterr().err.splitlines() if "rewritten" in line]
    assert len(lines) == 1
    assert f"/{bars[HISTORY].close:.10g}, now " in lines[0]
    assert "/1.5;" in lines[0]


def test_bars_that_were_missed_between_two_starts_are_logged(
    acting: Any, bars: list[Bar], capsys: pytest.CaptureFixture[str]
) -> None:
    run = acting()
    run.feed(bars[: HISTORY + 5])
    run.start()
    run.feed(bars[HISTORY + 9 : HISTORY + 12])
    assert "never read" in capsys.readouterr().err
