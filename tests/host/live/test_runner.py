"""Acting into a folder: every limit through the files, and a restart at any byte goes on as if nothing had happened."""

import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.artifact.model_file import ModelError
from host.artifact.onnx_check import layout_of
from host.atomic import LockedError, locked
from host.commands.act import act_on_feed, feed_symbol, new_live_options, run_live, watch_limits
from host.commands.replay import replay_journal
from host.config import ConfigError, RiskConfig
from host.data.feed import Bar
from host.data.formats import DataError, ReadOptions
from host.live import runner as module
from host.live.event_log import ReplayError
from host.live.journal import Journal, JournalError, read_cache, read_journal, write_cache
from host.live.live_agent import DecisionPrinter, LiveAgent, format_decision
from host.live.runner import HaltedError, LiveOptions, LiveRunner, StaleFeedError
from host.live.target_file import PositionRow, format_position, parse_target
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import DAY_NS, HOUR_NS
from kernels.market.features import HISTORY
from kernels.ort import OrtError, Session
from tests.fixtures.acting import acting, bars, outcomes
from tests.fixtures.paths import ROOT
from tests.fixtures.trained import HEADER, ROWS, Trained, feed_of

__all__ = ["acting", "bars"]  # fixtures


def test_without_limits_the_target_is_the_agents(acting: Any, bars: list[Bar], trained: Trained) -> None:
    live = acting()
    rows = live.feed(bars)
    wanted = [float(trained.decisions[row[0]][2]) for row in (r["row"] for r in outcomes(live.folder))]
    assert [row.target for row in rows] == wanted
    assert len(set(wanted)) > 1
    assert [row.seq for row in rows] == list(range(1, 202))
    assert {row.reason for row in rows} == {"active agent"}
    assert all(row.valid_until_ns == row.bar_close_ns + 2 * HOUR_NS for row in rows)
    assert rows[-1].model == trained.loaded.sha256[:16]
    beat = json.loads((live.folder / "heartbeat.json").read_text())
    assert (beat["state"], beat["seq"], beat["target"]) == ("ACTIVE", 201, wanted[-1])
    assert {path.name for path in live.folder.iterdir()} == {
        "target.csv",
        "heartbeat.json",
        "state.json",
        "journal.jsonl",
        ".target.reserve",
    }


def test_a_dry_run_says_so_and_lives_in_the_feeds_time(acting: Any, bars: list[Bar]) -> None:
    dry = acting(live=False, daily_loss=200.0, drawdown=500.0, model_age_days=400.0, clock_skew_s=5.0)
    rows = dry.feed(bars, after_ns=9 * 365 * DAY_NS)
    assert {row.reason for row in rows} == {"dry-run active agent"}
    assert all(row.decided_ns == row.bar_close_ns for row in rows)


HALTS: list[tuple[str, dict[str, Any], int]] = [
    ("daily-loss", {"daily_loss": 1.0}, SECOND_NS),
    ("drawdown", {"drawdown": 1.0}, SECOND_NS),
    ("losing-streak", {"losing_streak": 1}, SECOND_NS),
    ("model-age", {"model_age_days": 400.0}, 900 * DAY_NS),
    ("clock-skew", {"clock_skew_s": 5.0}, -6 * SECOND_NS),
]


@pytest.mark.parametrize(("reason", "guard", "after_ns"), HALTS, ids=[halt[0] for halt in HALTS])
def test_a_limit_that_halts_leaves_a_flat_target_and_ends_with_7(
    acting: Any, bars: list[Bar], reason: str, guard: dict[str, Any], after_ns: int
) -> None:
    live = acting(**guard)
    with pytest.raises(HaltedError, match=reason) as halt:
        live.feed(bars, after_ns)
    assert halt.value.exit_code == 7
    row = live.row()
    assert (row.target, row.reason) == (0.0, f"halted {reason}")
    assert row.valid_until_ns > live.now
    last = live.start()._engine.last_bar
    with pytest.raises(HaltedError, match=reason):  # nor does a restart trade
        live.runner.on_bar(last._replace(time=last.time + 1))


def test_a_dry_run_goes_on_where_a_live_one_would_halt(acting: Any, bars: list[Bar]) -> None:
    rows = acting(live=False, drawdown=1.0).feed(bars)
    assert len(rows) == 201
    assert (rows[-1].target, rows[-1].reason) == (0.0, "dry-run halted drawdown")


def test_a_halt_is_lifted_by_order(acting: Any, bars: list[Bar]) -> None:
    live = acting(drawdown=1.0)
    with pytest.raises(HaltedError):
        live.feed(bars)
    rest = [bar for bar in bars if bar.time > live.runner._engine.last_bar.time]
    live.start(lift=True)
    assert live.feed(rest[:1])[0].reason.startswith("active")


REDUCES: list[tuple[str, dict[str, Any], int]] = [
    ("spread", {"max_spread": 0.1}, SECOND_NS),
    ("feature-drift", {"feature_drift": 0.01}, SECOND_NS),
    ("late-bar", {}, HOUR_NS + SECOND_NS),
]


@pytest.mark.parametrize(("reason", "guard", "after_ns"), REDUCES, ids=[reduce[0] for reduce in REDUCES])
def test_a_limit_that_reduces_enters_nothing_and_keeps_what_there_is(
    acting: Any, bars: list[Bar], reason: str, guard: dict[str, Any], after_ns: int
) -> None:
    reducing = acting(**guard)
    rows = reducing.feed(bars, after_ns)
    assert {(row.target, row.reason) for row in rows} == {(0.0, f"reducing {reason}")}


def test_features_like_those_of_the_training_do_not_drift(trained: Trained, bars: list[Bar]) -> None:
    """Root mean square over 200 bars of the training part: 1, whatever weight the network gives to a feature."""
    agent = LiveAgent(trained.loaded.networks, trained.loaded.market_spec, trained.loaded.search)
    drift = np.array([agent.feature_drift for bar in bars if agent.on_bar(bar)])
    assert len(drift) > 190
    assert math.sqrt((drift**2).mean()) == pytest.approx(1.0, abs=0.25)


def test_a_halt_file_stops_at_once_even_a_dry_run(acting: Any, bars: list[Bar]) -> None:
    for live in (True, False):
        run = acting(live=live)
        run.feed(bars[: HISTORY + 9])
        (run.folder / "HALT").touch()
        with pytest.raises(HaltedError, match="halt-file"):
            run.runner.check_between_bars()
        assert (run.row().target, run.row().reason.split()[-2:]) == (0.0, ["halted", "halt-file"])
        with pytest.raises(HaltedError, match="halt-file"):
            run.start().on_bar(bars[HISTORY + 9])
        shutil.rmtree(run.folder)


def test_a_halt_file_holds_where_no_bar_is_new(acting: Any, bars: list[Bar], monkeypatch: pytest.MonkeyPatch) -> None:
    run = acting()
    run.feed(bars[: HISTORY + 9])
    run.runner.close()
    (run.folder / "HALT").touch()
    again = run.start()
    with pytest.raises(HaltedError, match="halt-file"):
        run_live(again, bars[: HISTORY + 9])
    assert (run.row().target, run.row().reason) == (0.0, "halted halt-file")


def test_a_silent_feed_ends_with_6_but_not_over_the_weekend(acting: Any, bars: list[Bar]) -> None:
    live = acting(stale_s=600.0)
    friday = next(i for i, (a, b) in enumerate(pairwise(bars)) if i > HISTORY and b.time - a.time > 40 * HOUR_NS)
    live.feed(bars[: friday + 1])
    live.now = bars[friday + 1].time + 300 * SECOND_NS
    live.runner.check_between_bars()
    live.feed(bars[friday + 1 : friday + 2])
    live.now += HOUR_NS + 599 * SECOND_NS
    live.runner.check_between_bars()
    live.now += 2 * SECOND_NS
    with pytest.raises(StaleFeedError) as stale:
        live.runner.check_between_bars()
    assert stale.value.exit_code == 6
    assert (live.row().target, live.row().reason) == (0.0, "halted stale-feed")


def test_nothing_is_minus_zero(
    acting: Any, bars: list[Bar], capsys: pytest.CaptureFixture[str], trained: Trained
) -> None:
    """A limit of 0 cuts a short position to what a float calls -0."""
    live = acting(max_target=0.0)
    live.feed(bars[: HISTORY + 40])
    assert any(row[2].startswith("-") for row in (outcome["row"] for outcome in outcomes(live.folder)))
    live.runner._write_heartbeat()
    texts = [path.read_text() for path in live.folder.iterdir()]
    assert not any(re.search(r"-0(\.0*)?(?![.\d])", text.replace("e-0", "")) for text in (*texts, live.out.getvalue()))
    assert "target -0" not in capsys.readouterr().err
    shares = np.zeros(4)
    assert format_decision(0, 0, -0.0, 0.0, shares, 1)[2] == "0"
    assert "-0.0000" not in format_position(PositionRow(1, 0, "EURUSD", -0.0))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"position": 0.25}, "position-mismatch"),
        ({"seq": -1}, "position-behind"),
        ({"symbol": "GBPUSD"}, "position-of-another-symbol"),
        (None, "position-unreadable"),
        ({}, ""),
    ],
)
def test_a_bridge_that_holds_something_else_means_reducing(
    acting: Any, bars: list[Bar], fault: dict[str, Any] | None, reason: str
) -> None:
    live = acting()
    row = live.feed(bars[: HISTORY + 20])[-1]
    position = PositionRow(row.seq, live.now, "EURUSD", row.target)
    if fault is not None:
        fault = {**fault, "seq": row.seq - 1} if "seq" in fault else fault
        text = format_position(position._replace(**fault))
    else:
        text = format_position(position)[:-3]
    (live.folder / "position.csv").write_text(text)
    after = live.feed(bars[HISTORY + 20 : HISTORY + 21])[-1]
    assert after.reason == (f"reducing {reason}" if reason else "active agent")


def test_an_unreadable_position_is_not_a_missing_one(acting: Any, bars: list[Bar]) -> None:
    live = acting()
    live.feed(bars[: HISTORY + 20])
    (live.folder / "position.csv").symlink_to("position.csv")  # a loop
    after = live.feed(bars[HISTORY + 20 : HISTORY + 21])[-1]
    assert after.reason == "reducing position-unreadable"


def test_a_fault_of_the_feed_goes_flat_first(trained: Trained, tmp_path: Path) -> None:
    feed = tmp_path / "EURUSD.csv"
    feed.write_text(HEADER + "".join(ROWS[: HISTORY + 5]) + "rubbish\n" + "".join(ROWS[HISTORY + 5 :]))
    options = new_live_options(str(feed), tmp_path / "out", False, None, False, None, None)
    with pytest.raises(DataError, match="rubbish"):
        act_on_feed(str(feed), trained.path, ReadOptions(), False, io.StringIO(), False, options)
    row = parse_target((tmp_path / "out" / "target.csv").read_bytes())
    assert (row.seq, row.target, row.reason) == (7, 0.0, "dry-run halted DataError")


def test_a_decision_that_fails_goes_flat_and_can_be_made_after_a_restart(
    trained: Trained, bars: list[Bar], whole: Path, tmp_path: Path
) -> None:
    act_dry(trained, tmp_path / "out", bars[:-3])
    options = LiveOptions(tmp_path / "out", False, False, "EURUSD", RiskConfig())
    runner = LiveRunner(trained.loaded, options, DecisionPrinter(io.StringIO(), False))
    policy = runner._engine.agent._policy
    graph = policy.planner.networks.market
    onnx = trained.loaded.networks.graphs["market"]
    layout = layout_of(onnx)
    broken = Session(onnx).bind(layout._replace(width_in=layout.width_in + 1), [1, len(graph.x)])
    networks = policy.planner.networks._replace(market=broken)
    runner._engine.agent._policy = policy._replace(planner=policy.planner._replace(networks=networks))
    with pytest.raises(OrtError):
        run_live(runner, iter(bars))
    row = parse_target((tmp_path / "out" / "target.csv").read_bytes())
    assert (row.target, row.reason) == (0.0, "dry-run halted OrtError")
    beat = json.loads((tmp_path / "out" / "heartbeat.json").read_text())
    assert (beat["state"], beat["seq"]) == ("HALTED", row.seq)
    act_dry(trained, tmp_path / "out", bars)
    decided = [outcome["row"] for outcome in outcomes(tmp_path / "out") if outcome["row"]]
    assert decided == [outcome["row"] for outcome in outcomes(whole)]


@pytest.fixture(scope="module")
def whole(trained: Trained, bars: list[Bar], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted dry run."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    act_dry(trained, folder, bars)
    return folder


def act_dry(trained: Trained, folder: Path, bars: list[Bar]) -> str:
    """Act over all bars into `folder`, from wherever it stands; what was printed."""
    folder.mkdir(exist_ok=True)
    out = io.StringIO()
    runner = LiveRunner(
        trained.loaded, LiveOptions(folder, False, False, "EURUSD", RiskConfig()), DecisionPrinter(out, False)
    )
    for bar in bars:
        runner.on_bar(bar)
    runner.close()
    return out.getvalue()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_restart_at_any_byte_makes_the_same_decisions(
    trained: Trained, bars: list[Bar], whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """A kill leaves a beginning of the journal, a state file of any age before it, and perhaps half a line."""
    journal = (whole / "journal.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    kept = data.draw(st.sampled_from([0, *range(1, len(lines), 7), len(lines) - 2, len(lines) - 1, len(lines)]))
    torn = data.draw(st.sampled_from([0, 1, 50])) if 0 < kept < len(lines) else 0
    cut = sum(map(len, lines[:kept])) + torn
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(journal[:cut])
    state = data.draw(st.sampled_from(["kept", "none", "torn", "flipped"]))
    cache = (whole / "state.json").read_bytes()
    if state != "none":
        flipped = bytes([cache[0] ^ 1]) + cache[1:]
        content = {"kept": cache, "torn": cache[:99], "flipped": flipped}[state]
        (folder / "state.json").write_bytes(content)
    act_dry(trained, folder, bars)
    assert outcomes(folder) == outcomes(whole)
    assert (folder / "target.csv").read_bytes() == (whole / "target.csv").read_bytes()


def test_the_state_file_is_only_a_cache(trained: Trained, bars: list[Bar], whole: Path, tmp_path: Path) -> None:
    """With it a restart replays the rest of the journal, without it all of it; both end in the same state."""
    states = []
    for keep in (True, False):
        folder = tmp_path / str(keep)
        shutil.copytree(whole, folder)
        if not keep:
            (folder / "state.json").unlink()
        runner = LiveRunner(
            trained.loaded,
            LiveOptions(folder, False, False, "EURUSD", RiskConfig()),
            DecisionPrinter(io.StringIO(), False),
        )
        states.append(runner._engine.state())
        runner.close()
    assert states[0]["risk_state"] == states[1]["risk_state"]
    assert states[0]["agent"]["account"][:3] == states[1]["agent"]["account"][:3]
    assert states[0]["last_decision"] == states[1]["last_decision"]


def test_a_decision_that_a_kill_prevented_is_made_at_the_restart(
    trained: Trained, bars: list[Bar], tmp_path: Path
) -> None:
    """The bar is in the journal, its decision is not, and no other bar comes."""
    act_dry(trained, tmp_path / "out", bars)
    path = tmp_path / "out" / "journal.jsonl"
    expected, lines = outcomes(tmp_path / "out"), path.read_bytes().splitlines(keepends=True)
    assert b'"seq"' in lines[-2]
    path.write_bytes(b"".join(lines[:-2]))
    (tmp_path / "out" / "target.csv").unlink()
    printed = act_dry(trained, tmp_path / "out", [])
    assert printed.splitlines()[1].split(",")[:-1] == expected[-1]["row"]
    assert outcomes(tmp_path / "out") == expected
    assert parse_target((tmp_path / "out" / "target.csv").read_bytes()).seq == 201


def test_a_state_file_of_another_journal_is_ignored(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append({"a": 1})
    write_cache(tmp_path / "state.json", journal, {"b": 2})
    journal.close()
    data = (tmp_path / "journal.jsonl").read_bytes()
    assert read_cache(tmp_path / "state.json", data + b"more\n") == (len(data), {"b": 2})
    assert read_cache(tmp_path / "state.json", data.replace(b"1", b"2")) is None
    assert read_cache(tmp_path / "state.json", data[:-1]) is None
    assert read_cache(tmp_path / "none.json", data) is None


@pytest.mark.parametrize("rotate", [module.ROTATE_BYTES, 1])
def test_a_restart_prints_no_decision_twice_and_goes_on(
    rotate: int, trained: Trained, bars: list[Bar], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each journal begins with a snapshot; the last line was printed, and the journal has that."""
    monkeypatch.setattr(module, "ROTATE_BYTES", rotate)
    parts = [act_dry(trained, tmp_path / "out", bars[: HISTORY + n]) for n in (50, 50, 60, 60, 200)]
    untimed = [line.rpartition(",")[0].split(",") for part in parts for line in part.splitlines()[1:]]
    assert untimed == [outcome["row"] for outcome in outcomes(whole)]


@pytest.mark.parametrize("kept", ["decision", "half"])
def test_a_decision_that_may_not_have_been_printed_is_printed(
    kept: str, trained: Trained, bars: list[Bar], tmp_path: Path
) -> None:
    """The kill came before the line was recorded as printed."""
    first = act_dry(trained, tmp_path / "out", bars[: HISTORY + 9]).splitlines()
    path = tmp_path / "out" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"printed": 10}
    path.write_bytes(b"".join(lines[:-1]) + (lines[-1][:5] if kept == "half" else b""))
    assert act_dry(trained, tmp_path / "out", []).splitlines()[1:] == first[-1:]
    assert act_dry(trained, tmp_path / "out", []).splitlines()[1:] == []


def test_a_full_journal_is_rotated_and_each_part_stands_alone(
    trained: Trained, bars: list[Bar], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROTATE_BYTES", 40_000)
    monkeypatch.setattr("host.live.journal.MAX_ROTATED_FILES", 3)
    folder = tmp_path / "out"
    for stop in (HISTORY + 70, HISTORY + 71, len(bars)):  # restarts in between
        act_dry(trained, folder, bars[:stop])
    parts = sorted(folder.glob("journal-*.jsonl"))
    assert len(parts) == 3
    assert int(parts[-1].stem[-6:]) > 3
    expected = outcomes(whole)
    assert outcomes(folder) == expected[-len(outcomes(folder)) :]
    for path in [*parts, folder / "journal.jsonl"]:
        replay_journal(path, trained.path, io.StringIO(), False)


def test_a_kill_between_the_renames_of_a_rotation_loses_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append({"a": 1})
    journal.rotate({"b": 2})
    journal.close()
    assert [record for _, record in read_journal(tmp_path / "journal-000001.jsonl")] == [{"a": 1}]
    (tmp_path / "journal.jsonl").rename(tmp_path / "journal.next.jsonl")
    for half in (b"", b"half"):  # the second time: killed before the first rename
        if half:
            (tmp_path / "journal.next.jsonl").write_bytes(half)
        journal = Journal(tmp_path)
        journal.close()
        assert journal.existing == b'{"b":2}\n'
    assert not (tmp_path / "journal.next.jsonl").exists()


def test_the_last_heartbeat_is_of_the_last_decision(whole: Path) -> None:
    beat = json.loads((whole / "heartbeat.json").read_text())
    row = parse_target((whole / "target.csv").read_bytes())
    assert (beat["seq"], beat["target"], beat["live"]) == (row.seq, row.target, False)


def test_replay_prints_the_same_bytes(trained: Trained, bars: list[Bar], tmp_path: Path) -> None:
    printed, out = act_dry(trained, tmp_path / "out", bars), io.StringIO()
    replay_journal(tmp_path / "out" / "journal.jsonl", trained.path, out, False)
    assert out.getvalue() == printed


def test_replay_finds_what_is_not_this_programs(trained: Trained, whole: Path, tmp_path: Path) -> None:
    lines = (whole / "journal.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path / "journal.jsonl"
    for change, error, says in (
        (('"target":-1.0', '"target":1.0'), ReplayError, "journal line"),
        (('"bar":[', '"bar":["'), JournalError, "damaged"),
        (('"inputs":[', '"inputs":[null,'), JournalError, "not a record"),
        ((f'"model": "{trained.loaded.sha256}"', '"model": "other"'), ModelError, "another model"),
        ((f'"model":"{trained.loaded.sha256}"', '"model":"other"'), ModelError, "another model"),
    ):
        changed = [line.replace(*change) for line in lines]
        if changed == lines:
            continue
        path.write_text("".join(changed))
        with pytest.raises(error, match=says):
            replay_journal(path, trained.path, io.StringIO(), False)
    assert (ReplayError.exit_code, JournalError.exit_code, ModelError.exit_code) == (9, 4, 5)


WRITERS = [(1, "a version before swt"), (3, "a checkout before format 4"), (9, "a later version of swt")]


@pytest.mark.parametrize(("number", "writer"), WRITERS)
def test_a_journal_of_another_format_is_refused_with_what_to_do(
    number: int, writer: str, trained: Trained, bars: list[Bar], whole: Path, tmp_path: Path
) -> None:
    """Before its state.json, whose keys are others, is read; nothing in the folder changes."""
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    journal = folder / "journal.jsonl"
    text = journal.read_text().replace('"format":4', f'"format":{number}').replace('"risk_state"', '"guard"')
    journal.write_text(text.replace('"inputs"', '"world"'))
    _, state = read_cache(folder / "state.json", (whole / "journal.jsonl").read_bytes()) or (0, {})
    opened = Journal(folder)
    write_cache(folder / "state.json", opened, {"guard": state["risk_state"]})
    opened.close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    says = f"the journal has format {number}, written by {writer}.*then begin in another --out$"
    with pytest.raises(JournalError, match=says) as refused:
        act_dry(trained, folder, bars)
    with pytest.raises(JournalError, match=says):
        replay_journal(journal, trained.path, io.StringIO(), False)
    assert refused.value.exit_code == 4
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_belongs_to_one_process(trained: Trained, tmp_path: Path) -> None:
    feed = feed_of(ROWS[:HISTORY], tmp_path / "EURUSD_H1.csv")
    options = new_live_options(str(feed), tmp_path, True, None, False, None, ["risk.max_target=0.5"])
    assert options
    assert (options.symbol, options.risk.max_target) == ("EURUSD", 0.5)
    with locked(tmp_path / "lock"), pytest.raises(LockedError, match=f"in use by process {os.getpid()} on ") as busy:
        act_on_feed(str(feed), trained.path, ReadOptions(), False, io.StringIO(), False, options)
    assert busy.value.exit_code == 8


def test_what_a_dry_run_held_is_not_taken_for_real(trained: Trained, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    out = LiveOptions(tmp_path / "out", True, False, "EURUSD", RiskConfig())
    feed = feed_of(ROWS[:HISTORY], tmp_path / "EURUSD_H1.csv")
    with pytest.raises(ConfigError, match="a folder of their own"):
        act_on_feed(str(feed), trained.path, ReadOptions(), False, io.StringIO(), False, out)


def test_flags_that_make_no_sense_are_refused() -> None:
    for flags in ((None, True, None, False, None, None), (Path("x"), True, "EUR,USD", False, None, None)):
        with pytest.raises(ConfigError):
            new_live_options("feed.csv", *flags)
    with pytest.raises(ConfigError, match="max_targt"):
        new_live_options("feed.csv", None, False, None, False, None, ["risk.max_targt=1"])
    assert [feed_symbol(feed) for feed in ("a/gbpjpy_M1.csv", "-", "sample_data.csv")] == ["GBPJPY", "-", "-"]


def started(trained: Trained, feed: Path, folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, ROOT / "swt.py", "act", feed, "--model", trained.path, "--out", folder]
    return subprocess.Popen([*map(str, command), "--follow"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_killed_processes_leave_what_one_process_leaves(trained: Trained, whole: Path, tmp_path: Path) -> None:
    feed, folder = feed_of(ROWS[: HISTORY + 200], tmp_path / "EURUSD.csv"), tmp_path / "out"
    draw = random.Random(5)
    for goal in sorted(draw.sample(range(30_000, 110_000), 2)):
        with started(trained, feed, folder) as process:
            wait_for(lambda goal=goal: size_of(folder) >= goal)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    with started(trained, feed, folder) as process:
        wait_for(lambda: len(outcomes(folder)) == 201 if size_of(folder) else False)
        (folder / "HALT").touch()  # the feed is silent: the watch must see it
        assert process.wait(20) == 7
        assert b"halted: halt-file" in (process.stderr.read() if process.stderr else b"")
    assert outcomes(folder)[:201] == outcomes(whole)
    assert outcomes(folder)[-1]["target"] == 0.0


@pytest.mark.parametrize(("error", "code"), [(StaleFeedError("no bar"), 6), (OSError("disk full"), 1)])
def test_every_error_of_the_watch_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    class Ended(BaseException):
        pass

    class Faulty:
        failed: list[Exception] = []  # noqa: RUF012

        def check_between_bars(self) -> None:
            raise error

        def fail(self, error: Exception) -> None:
            self.failed.append(error)

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("host.commands.act.WATCH_INTERVAL_S", 0.0)
    monkeypatch.setattr("host.commands.act.os._exit", end)
    with pytest.raises(Ended, match=str(code)):
        watch_limits(Faulty(), threading.Lock(), threading.Event())  # type: ignore[arg-type]
    assert f"swt: {error}" in capsys.readouterr().err
    assert Faulty.failed == [error] * (code == 1), "flat first, unless it is already"


def size_of(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return path.stat().st_size if path.exists() else 0


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)
