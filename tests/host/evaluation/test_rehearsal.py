"""The guards over a backtest are those of acting, and their limits begin with what the model is known to do."""

import io
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.artifact.manifest import LoadedModel, reading_options
from host.artifact.networks import BacktestStats
from host.commands.backtest import backtest_csv
from host.config import RiskConfig
from host.data.csv_reader import read_bars
from host.data.feed import feed_bars
from host.data.formats import ReadOptions
from host.evaluation.rehearsal import (
    backtest_record,
    count_late_bars,
    longest_losing_streak,
    print_risk_report,
    run_risk_engine,
)
from host.live.journal import read_journal
from host.live.limits import describe_limits, resolve_limits
from host.live.live_agent import DecisionPrinter, LiveAgent
from host.live.runner import LiveOptions, LiveRunner
from kernels.market.bars import SECOND_NS, Bars
from kernels.market.calendar import CLOSED_DAILY, HOUR_NS
from kernels.market.features import HISTORY
from kernels.market.ledger import new_market
from tests.fixtures.paths import ROOT
from tests.fixtures.trained import ROWS, Trained, feed_of

OFF = dict.fromkeys(asdict(RiskConfig()), 0) | {"max_target": 1.0}


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return feed_of(ROWS[: HISTORY + 400], tmp_path_factory.mktemp("feed") / "EURUSD_H1.csv")


def rehearsed(trained: Trained, feed: Path, **guard: Any) -> dict[str, Any]:
    config = RiskConfig(**{**OFF, **guard})
    found: dict[str, Any] = backtest_csv(feed, trained.path, ReadOptions(), None, None, True, guard=config)["guards"]
    return found


def test_a_model_too_old_is_said_before_it_is_live(trained: Trained, feed: Path) -> None:
    bars, _ = read_bars(feed, reading_options(trained.loaded, ReadOptions()))
    old = trained.loaded._replace(trained_ns=int(bars.time[HISTORY]))
    limits = resolve_limits(RiskConfig(**{**OFF, "model_age_days": 2.0}), old)
    found = run_risk_engine(old, limits, np.zeros(300), bars, HISTORY)
    assert [halt["reason"] for halt in found["halts"]] == ["model-age"]


def test_without_limits_nothing_is_cut(trained: Trained, feed: Path) -> None:
    found = rehearsed(trained, feed)
    assert (found["cut"], found["halts"], found["decisions"]) == ({}, [], 400)
    assert found["net_pips"] == pytest.approx(found["net_pips_unguarded"], abs=1e-9)


@pytest.mark.parametrize("guard", [{"daily_loss": 20.0}, {"drawdown": 30.0}, {"losing_streak": 2}, {"max_spread": 0.1}])
def test_guards_cut_as_they_do_in_a_dry_run(
    trained: Trained, feed: Path, tmp_path: Path, guard: dict[str, Any]
) -> None:
    """Decision by decision what the journal of `act` has."""
    found = rehearsed(trained, feed, **guard)
    config = RiskConfig(**{**OFF, **guard})
    (tmp_path / "out").mkdir()
    office = LiveRunner(
        trained.loaded, LiveOptions(tmp_path / "out", False, False, "-", config), DecisionPrinter(io.StringIO(), False)
    )
    actor, cut = (
        LiveAgent(trained.loaded.networks, trained.loaded.market_spec, trained.loaded.search),
        dict[str, int](),
    )
    bars = list(feed_bars(feed, reading_options(trained.loaded, ReadOptions())))
    wanted = []
    for bar in bars[:-1]:
        office.on_bar(bar)
        wanted += [actor.target] if actor.on_bar(bar) else []
    office.close()
    records = [r for _, r in read_journal(tmp_path / "out" / "journal.jsonl") if "seq" in r]
    for record, target in zip(records, wanted, strict=True):
        if record["target"] != target:
            cut[record["reason"]] = cut.get(record["reason"], 0) + 1
    assert cut == found["cut"]
    assert sum(cut.values()) > 0
    assert [halt["reason"] for halt in found["halts"][:1]] == [
        r for r in cut if r != "waits-for-entry" and r != "spread"
    ]
    assert all(halt["time"] in {r["row"][0] for r in records} for halt in found["halts"])


def test_by_default_the_guards_leave_the_backtest_of_the_model_alone(trained: Trained, feed: Path) -> None:
    """Gold with a drawdown of 500 pips halted 529 of 644 decisions of a model whose backtest had ten times that."""
    found: dict[str, Any] = backtest_csv(feed, trained.path, ReadOptions(), None, None, True, guard=RiskConfig())[
        "guards"
    ]
    assert set(found["cut"]) <= {"spread", "feature-drift", "waits-for-entry"}
    assert found["halts"] == []


def of_gold(loaded: LoadedModel, **record: Any) -> LoadedModel:
    """A model of gold whose backtest was rough."""
    setting, pip = loaded.market_spec, 0.1
    profile = setting.profile._replace(symbol="XAUUSD", price=2600.0, day_px=30.0, spread_px=0.25, usual_spread_px=0.25)
    market = setting.market._replace(pip_px=pip)
    return loaded._replace(
        market_spec=setting._replace(profile=profile, market=market), backtest_stats=BacktestStats(**record)
    )


def test_limits_follow_the_model_and_the_instrument(trained: Trained) -> None:
    rough = {"drawdown_pips": 5000.0, "worst_day_pips": 900.0, "losing_streak": 30, "changes_per_hour": 18}
    limits = resolve_limits(RiskConfig(), of_gold(trained.loaded, **rough))
    assert (limits.drawdown, limits.daily_loss, limits.losing_streak) == (10_000.0, 1800.0, 60.0)
    assert (limits.changes_per_hour, limits.max_spread) == (36.0, pytest.approx(7.5))
    calm = resolve_limits(RiskConfig(), of_gold(trained.loaded))
    assert (calm.drawdown, calm.daily_loss) == (pytest.approx(1500.0), pytest.approx(600.0)), "days of 30 USD"
    assert (calm.losing_streak, calm.changes_per_hour) == (12.0, 20.0)
    given = resolve_limits(RiskConfig(drawdown=0.0, daily_loss=7.0), of_gold(trained.loaded, **rough))
    assert (given.drawdown, given.daily_loss) == (0.0, 7.0)


def test_a_limit_below_the_backtest_is_said(trained: Trained) -> None:
    gold = of_gold(trained.loaded, drawdown_pips=5000.0)
    said = describe_limits(resolve_limits(RiskConfig(drawdown=500.0), gold), gold)
    assert "drawdown 500 pips = 1.92% of the price" in said[0]
    assert said[1].startswith("risk.drawdown = 500 is not above the backtest's own drawdown of 5000")
    assert len(said) == 2
    assert len(describe_limits(resolve_limits(RiskConfig(), gold), gold)) == 1


def test_the_record_of_a_backtest_by_hand() -> None:
    """Long from bar 1 at 1.00: 1.02, 1.01 | next day 0.98, 1.05; flat; then short, and long within the hour."""
    close = np.array([1.0, 1.02, 1.01, 0.98, 1.05, 1.05, 1.04, 1.06])
    start = np.append(1.0, close[:-1])
    time = 23 * HOUR_NS + HOUR_NS * np.array([-2, -1, 1, 2, 3, 4, 5, 6])
    bars = Bars(time, start, np.maximum(start, close), np.minimum(start, close), close, start, close, close)
    market = new_market(range_px=0.01, pip_px=0.01, interval_ns=HOUR_NS, closes_weekends=False)
    target = np.array([1.0, 1.0, 1.0, 1.0, 0.0, -1.0, -1.0])
    record, equity = backtest_record(target, bars, 0, market)
    np.testing.assert_allclose(equity, [2, 1, -2, 5, 5, 6, 4], atol=1e-9)
    assert record.drawdown_pips == pytest.approx(4.0)
    assert record.worst_day_pips == pytest.approx(4.0), "the day began with 2 and came to -2"
    assert (record.losing_streak, record.changes_per_hour) == (1, 1)


def test_streaks_and_changes_are_counted_as_the_guards_count_them() -> None:
    assert longest_losing_streak(np.array([-1.0, 0.0, -2.0, 3.0, -1.0])) == 2
    close = np.ones(200)
    bars = Bars(60 * SECOND_NS * np.arange(200), *(close for _ in range(7)))
    market = new_market(range_px=0.01, pip_px=0.01, interval_ns=60 * SECOND_NS)
    record, _ = backtest_record(np.arange(190) % 2.0, bars, 0, market)
    assert record.changes_per_hour == 60


def test_bars_that_come_late_are_counted_while_the_market_is_open(trained: Trained) -> None:
    setting = trained.loaded.market_spec
    gold = trained.loaded._replace(market_spec=setting._replace(hours=CLOSED_DAILY))
    noon = 4 * 24 * HOUR_NS + 12 * HOUR_NS  # a Monday
    time = noon + HOUR_NS * np.array([0, 1, 3, 4, 5, 6, 7, 8, 9, 11, 12])  # one late bar, and the daily break
    assert count_late_bars(time, gold, 600.0) == 1
    assert count_late_bars(time, gold, 0.0) == 0


def test_the_command_shows_what_guards_would_do(trained: Trained, feed: Path) -> None:
    command = [sys.executable, ROOT / "swt.py", "backtest", feed, "--model", trained.path, "--set", "risk.drawdown=30"]
    run = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=True)
    document = json.loads(run.stdout)["guards"]
    assert document["limits"]["drawdown"] == 30
    assert document["cut"]["drawdown"] > 0
    assert "risk.drawdown = 30 is not above the backtest's own drawdown" in run.stderr
    out = io.StringIO()
    print_risk_report(document, out)
    assert f"halted {document['halts'][0]['time']}: drawdown" in out.getvalue()
