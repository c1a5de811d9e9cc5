"""Live decisions beside a backtest: the same bars give the same, and every difference has its cause."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from host.analysis.compare import (
    MISSING,
    POSITION,
    REVISED,
    SPREAD,
    SURPLUS,
    UNEXPLAINED,
    AgentDecision,
    compare_run,
    data_cause,
    read_live_run,
)
from host.commands.compare import compare_journal, print_comparison
from host.data.feed import Bar
from host.data.formats import DataError, ReadOptions
from host.live.event_log import ReplayError
from host.live.journal import JournalError, read_journal
from host.live.live_agent import LiveAgent
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import HOUR_NS
from kernels.market.features import HISTORY
from swt import end_with
from tests.fixtures.acting import Acting, acting, bars
from tests.fixtures.feeds import columns
from tests.fixtures.trained import ROWS, Trained, feed_of

__all__ = ["acting", "bars"]  # fixtures
DECISIONS = 60
AT = HISTORY + 20  # a bar that is changed


@pytest.fixture
def feed(bars: list[Bar]) -> list[Bar]:
    """The bars in which the agent trades most."""
    return bars[140 : 140 + HISTORY - 1 + DECISIONS]


def compared(trained: Trained, live: Acting, file: list[Bar], journal: str = "journal.jsonl") -> dict[str, Any]:
    run = read_live_run(trained.loaded, read_journal(live.folder / journal))
    document = compare_run(trained.loaded, run, columns(file))
    assert UNEXPLAINED not in document["causes"]
    assert document["passed"] == (not document["differences"])
    return document


def wanted(trained: Trained, bars: list[Bar]) -> list[float]:
    """The targets of the agent."""
    agent = LiveAgent(trained.loaded.networks, trained.loaded.market_spec, trained.loaded.search)
    return [agent.target for bar in bars if agent.on_bar(bar)]


def revised(bars: list[Bar], **change: float) -> list[Bar]:
    bar = bars[AT]
    change = {name: getattr(bar, name) + by for name, by in change.items()}
    return [*bars[:AT], bar._replace(**change), *bars[AT + 1 :]]


def test_the_same_bars_give_the_same_decisions(acting: Any, trained: Trained, feed: list[Bar]) -> None:
    live = acting()
    live.feed(feed)
    document = compared(trained, live, revised(feed, volume=5.0))  # no decision depends on a volume
    assert document["passed"]
    assert (document["decisions"], document["not_compared"], document["changed_bars"]) == (DECISIONS, 0, {})
    assert len(set(document["net_pips"].values())) == 1
    assert document["net_pips"]["backtest"] != 0


FILES: list[tuple[str, Callable[[list[Bar]], list[Bar]]]] = [
    (REVISED, lambda bars: revised(bars, close=0.01, ask_close=0.01)),
    (SPREAD, lambda bars: revised(bars, ask_close=0.002)),
    (SURPLUS, lambda bars: [*bars[:AT], *bars[AT + 1 :]]),
]


@pytest.mark.parametrize(("cause", "change"), FILES, ids=[cause for cause, _ in FILES])
def test_another_bar_in_the_file_is_the_cause(
    cause: str, change: Callable[[list[Bar]], list[Bar]], acting: Any, trained: Trained, feed: list[Bar]
) -> None:
    live = acting()
    live.feed(feed)
    document = compared(trained, live, change(feed))
    assert document["changed_bars"] == {cause: 1}
    first = document["differences"][0]
    assert first["cause"] == cause
    assert document["causes"].keys() <= {cause, POSITION}
    if cause != SPREAD:  # it is read once; the others stay in the window
        assert document["causes"][cause]["decisions"] == DECISIONS - (AT - HISTORY + 1)
    if cause == REVISED:
        assert document["causes"][cause]["other_targets"] > 0
        assert document["net_pips"]["backtest"] != document["net_pips"]["published"]


def test_a_bar_that_the_feed_lacked_is_the_cause(acting: Any, trained: Trained, feed: list[Bar]) -> None:
    live = acting()
    live.feed([*feed[:AT], *feed[AT + 1 :]])
    document = compared(trained, live, feed)
    assert document["changed_bars"] == {MISSING: 1}
    assert document["causes"].keys() == {MISSING}
    first = document["differences"][0]
    assert (first["live"], first["published"]) == (None, None)
    assert first["backtest"] is not None


LIMITS: list[tuple[dict[str, Any], int, set[str]]] = [
    ({"max_spread": 0.1}, SECOND_NS, {"limit spread"}),
    ({}, HOUR_NS + SECOND_NS, {"limit late-bar"}),
    ({"drawdown": 1.0}, SECOND_NS, {"limit drawdown"}),
]


@pytest.mark.parametrize(("guard", "after_ns", "causes"), LIMITS, ids=[next(iter(row[2])) for row in LIMITS])
def test_a_limit_is_the_cause(
    guard: dict[str, Any], after_ns: int, causes: set[str], acting: Any, trained: Trained, feed: list[Bar]
) -> None:
    live = acting(live="drawdown" not in guard, **guard)
    live.feed(feed, after_ns)
    document = compared(trained, live, feed)
    assert document["causes"].keys() == causes
    assert document["changed_bars"] == {}
    assert all(row["live"] == row["backtest"] != row["published"] for row in document["differences"])
    assert document["net_pips"]["agent live"] == document["net_pips"]["backtest"] != document["net_pips"]["published"]


def test_a_late_bar_explains_the_wait_after_it(acting: Any, trained: Trained, feed: list[Bar]) -> None:
    live, targets = acting(), wanted(trained, feed)
    entry = next(i for i, target in enumerate(targets) if target)
    assert targets[entry + 1] == targets[entry]
    late = HISTORY - 1 + entry
    live.feed(feed[:late])
    live.feed(feed[late : late + 1], HOUR_NS + SECOND_NS)
    live.feed(feed[late + 1 :])
    causes = compared(trained, live, feed)["causes"]
    assert causes.keys() == {"limit late-bar", "limit waits-for-entry after late-bar"}
    assert causes["limit late-bar"]["decisions"] == 1


def test_a_halt_between_two_bars_is_the_cause(acting: Any, trained: Trained, feed: list[Bar]) -> None:
    live = acting()
    last = next(i for i, target in enumerate(wanted(trained, feed)) if target)
    live.feed(feed[: HISTORY + last])
    live.runner.stop("stale-feed")
    document = compared(trained, live, feed)
    assert [(row["cause"], row["published"]) for row in document["differences"]] == [("limit stale-feed", 0.0)]


def test_a_part_of_a_journal_begins_with_its_own_position(
    acting: Any, trained: Trained, feed: list[Bar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.live.runner.ROTATE_BYTES", 60_000)
    live = acting()
    live.feed(feed)
    assert (live.folder / "journal-000001.jsonl").exists()
    document = compared(trained, live, feed)
    assert document["passed"]
    assert 0 < document["decisions"] < DECISIONS
    with pytest.raises(DataError, match="bring a file that has them"):
        compared(trained, live, feed[HISTORY:])


def test_what_cannot_be_compared_is_said(acting: Any, trained: Trained, feed: list[Bar]) -> None:
    live = acting()
    live.feed(feed[: HISTORY - 1])
    with pytest.raises(JournalError, match="no decision yet"):
        compared(trained, live, feed)
    live.feed(feed[HISTORY - 1 :])
    assert compared(trained, live, feed[:-7])["not_compared"] == 7
    for file in (feed[1:], feed[:1]):
        with pytest.raises(DataError, match="the journal has bars from"):
            compared(trained, live, file)
    path = live.folder / "journal.jsonl"
    path.write_text(path.read_text().replace(',"HOLD","', ',"BUY","', 1).replace('"target":1.0', '"target":-1.0', 1))
    with pytest.raises(ReplayError, match="journal line"):
        compared(trained, live, feed)


def test_a_difference_without_a_cause_is_called_so() -> None:
    live, backtest = AgentDecision(["a"], [0.0]), AgentDecision(["b"], [0.0])
    window = list(range(HISTORY))
    assert data_cause(live, backtest, {}, window) == UNEXPLAINED
    assert data_cause(live, backtest, {0: SPREAD}, window) == UNEXPLAINED  # too old to be read
    assert data_cause(live, backtest._replace(position=[1.0]), {}, window) == POSITION
    assert data_cause(live, backtest, {HISTORY - 1: SPREAD, 0: REVISED}, window) == REVISED


def test_the_command_reads_the_file_and_prints_the_causes(
    acting: Any, trained: Trained, feed: list[Bar], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    live, file = acting(max_spread=0.1), feed_of(ROWS[: HISTORY + 250], tmp_path / "EURUSD_H1.csv")
    live.feed(feed)
    document = compare_journal(live.folder / "journal.jsonl", file, trained.path, ReadOptions(), False)
    assert not document["passed"]
    end_with({**document, "passed": True}, print_comparison, False)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{DECISIONS} live decisions on {len(feed)} bars; bars: none changed\nlimit spread: ")
    assert np.isfinite(list(document["net_pips"].values())).all()
