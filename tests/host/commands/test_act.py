"""`act` decides what `backtest` decides, wherever its feed starts, however it arrives, and never from a later bar."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.artifact.manifest import load_model, reading_options
from host.artifact.model_file import ADDED_KEYS, ModelError, read_model, write_model
from host.artifact.onnx_check import layout_of
from host.commands.act import act_on_feed, print_decisions
from host.commands.train import TrainOptions, train_files
from host.config import load_config
from host.data.feed import Bar, feed_bars
from host.data.formats import ReadOptions
from host.live.live_agent import DECISION_COLUMNS, BarRing, DecisionError, DecisionPrinter, LiveAgent
from host.training.trainer import Budget, Trainer
from kernels.market.features import HISTORY, compute_features, normalise_rows
from kernels.market.position import ACTIONS
from kernels.ort import OrtError, Session
from tests.fixtures.paths import ROOT, SAMPLE
from tests.fixtures.trained import DECIDED, HEADER, ROWS, TINY, Trained, backtest_rows, by_time, feed_of, opinionated


def acted(model: Path, feed: Path, as_json: bool = False) -> str:
    out = io.StringIO()
    act_on_feed(str(feed), model, ReadOptions(), False, out, as_json)
    return out.getvalue()


def test_the_decisions_are_worth_comparing(trained: Trained) -> None:
    rows = list(trained.decisions.values())
    assert len({row[1] for row in rows}) >= 3
    assert len({row[3] for row in rows}) > len(rows) / 2


@pytest.mark.parametrize("first", [0, 1, 700, 3000])
def test_act_makes_the_decisions_of_a_backtest_from_the_same_bar(trained: Trained, first: int, tmp_path: Path) -> None:
    """Wherever the feed starts: both start flat; from row 0 the ring of bars wraps three times."""
    stop = len(ROWS) if first == 0 else first + 900
    got = by_time(acted(trained.path, feed_of(ROWS[first:stop], tmp_path / "feed.csv")))
    assert len(got) == stop - first - HISTORY + 1
    start = next(iter(got))
    expected = trained.decisions if first == 0 else backtest_rows(SAMPLE, trained.path, start)
    assert start == next(iter(expected))
    compared = [time for time in got if time in expected]
    assert len(compared) >= len(got) - 1  # a backtest does not decide at the last bar
    for time in compared:
        assert got[time] == expected[time]
    if first == 0:
        assert len(got) > 2 * 8 * HISTORY


def test_a_feed_of_shorter_bars_is_decided_upon_alike(trained: Trained, tmp_path: Path) -> None:
    """Quarters of an hour: the first opens, one has the high, one the low, the last closes."""
    lines = ["time,open,high,low,close,volume\n"]
    for row in ROWS[: HISTORY + 40]:
        stamp, *prices, volume = row.strip().split(",")
        o, h, low, c = prices
        for i, quarter in enumerate([(o, o, o, o), (o, h, o, h), (h, h, low, low), (low, c, low, c)]):
            time = f"{stamp[6:10]}-{stamp[3:5]}-{stamp[:2]} {stamp[11:13]}:{15 * i:02}:00"
            lines.append(",".join((time, *quarter, repr(float(volume) / 4))) + "\n")
    feed = tmp_path / "quarters_ASK.csv"
    feed.write_text("".join(lines))
    got = by_time(acted(trained.path, feed))
    assert len(got) == 41
    assert {time: trained.decisions[time] for time in got} == got
    assert backtest_rows(feed, trained.path, None) == dict(list(got.items())[:-1])


def test_the_first_decision_comes_with_the_last_bar_of_the_warm_up(trained: Trained, tmp_path: Path) -> None:
    for count, decisions in ((HISTORY - 1, 0), (HISTORY, 1), (HISTORY + 1, 2)):
        assert len(by_time(acted(trained.path, feed_of(ROWS[:count], tmp_path / "feed.csv")))) == decisions


def test_json_lines_say_what_csv_lines_say(trained: Trained, tmp_path: Path) -> None:
    feed = feed_of(ROWS[: HISTORY + 40], tmp_path / "feed.csv")
    rows = by_time(acted(trained.path, feed))
    records = [json.loads(line) for line in acted(trained.path, feed, as_json=True).splitlines()]
    assert [tuple(record) for record in records] == [DECISION_COLUMNS] * len(rows)
    for record, row in zip(records, rows.values(), strict=True):
        assert [record["time"], record["action"]] == row[:2]
        assert [record[name] for name in DECIDED[2:]] == [float(text) for text in row[2:]]
        assert isinstance(record["target"], int)
        assert record["p_hold"] + record["p_buy"] + record["p_sell"] + record["p_close"] == pytest.approx(1)


def test_bars_after_t_change_no_line_up_to_t(trained: Trained, tmp_path: Path) -> None:
    """The feed cut, and the feed with other bars behind t."""
    whole = acted(trained.path, feed_of(ROWS[: HISTORY + 80], tmp_path / "whole.csv"))
    lines = list(by_time(whole).values())
    cut = by_time(acted(trained.path, feed_of(ROWS[: HISTORY + 30], tmp_path / "cut.csv")))
    assert list(cut.values()) == lines[:31]
    shifted = [*ROWS[: HISTORY + 30], *(moved(row) for row in ROWS[HISTORY + 30 : HISTORY + 80])]
    other = list(by_time(acted(trained.path, feed_of(shifted, tmp_path / "other.csv"))).values())
    assert other[:31] == lines[:31]
    assert other[31] != lines[31]


def moved(row: str) -> str:
    """A row at prices a little higher."""
    time, *prices, volume = row.rstrip("\n").split(",")
    return ",".join([time, *(f"{float(p) + 0.01:.5f}" for p in prices), volume]) + "\n"


class Enough(Exception):  # noqa: N818
    """The writer of a growing feed has nothing more to write."""


def grow_by(path: Path, pieces: list[str]) -> Callable[[], None]:
    """What a follower's `wait` does here: the next piece is appended, until there is none."""
    todo = iter(pieces)

    def wait() -> None:
        piece = next(todo, None)
        if piece is None:
            raise Enough
        with path.open("a") as file:
            file.write(piece)

    return wait


def test_following_a_growing_file_waits_for_whole_lines(trained: Trained, tmp_path: Path) -> None:
    feed = feed_of(ROWS[: HISTORY + 2], tmp_path / "feed.csv")
    whole = "".join(ROWS[HISTORY + 2 : HISTORY + 12])
    draw = np.random.default_rng(0)
    cuts = [0, *sorted(draw.choice(len(whole), 25, replace=False).tolist()), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(cuts)]
    half = ROWS[HISTORY + 12][:30]  # never completed: no decision
    out, loaded = io.StringIO(), trained.loaded
    reading = reading_options(loaded, ReadOptions())
    bars = feed_bars(feed, reading, follow=True, wait=grow_by(feed, [*pieces, half]))
    with pytest.raises(Enough):
        print_decisions(
            LiveAgent(loaded.networks, loaded.market_spec, loaded.search), bars, DecisionPrinter(out, False)
        )
    got = by_time(out.getvalue())
    assert len(got) == 13
    assert all(got[time] == trained.decisions[time] for time in got)


def test_a_line_is_out_before_the_next_bar_is_asked_for(trained: Trained, tmp_path: Path) -> None:
    class Flushed(io.StringIO):
        seen = 0

        def flush(self) -> None:
            self.seen = len(self.getvalue().splitlines())

    loaded, out, lines = trained.loaded, Flushed(), list[int]()

    def feed() -> Any:
        path = feed_of(ROWS[: HISTORY + 5], tmp_path / "feed.csv")
        for bar in feed_bars(path, reading_options(loaded, ReadOptions())):
            lines.append(out.seen)
            yield bar

    print_decisions(LiveAgent(loaded.networks, loaded.market_spec, loaded.search), feed(), DecisionPrinter(out, False))
    assert lines[-6:] == [1, 2, 3, 4, 5, 6]


def start_act(model: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "swt.py"), "act", "-", "--model", str(model)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=model.parent, bufsize=0)


def test_stdin_is_a_feed(trained: Trained) -> None:
    with start_act(trained.path) as process:
        out, err = process.communicate((HEADER + "".join(ROWS[: HISTORY + 3])).encode(), timeout=60)
    assert process.returncode == 0, err
    got = by_time(out.decode())
    assert len(got) == 4
    assert all(got[time] == trained.decisions[time] for time in got)


def test_a_closed_pipe_ends_it_quietly(trained: Trained) -> None:
    with start_act(trained.path) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write((HEADER + "".join(ROWS[:HISTORY])).encode())
        assert process.stdout.readline().decode().strip() == ",".join(DECISION_COLUMNS)
        assert process.stdout.readline().decode().startswith(next(iter(trained.decisions)))
        process.stdout.close()
        process.stdin.write("".join(ROWS[HISTORY : HISTORY + 3]).encode())
        assert process.wait(60) == 0
        err = process.stderr.read().decode()
    assert "Traceback" not in err
    assert "Error" not in err


def test_history_keeps_what_a_decision_needs_however_often_it_wraps() -> None:
    history = BarRing(capacity=HISTORY + 3)
    for i in range(3 * HISTORY):
        history.append(Bar(i, *(float(i + k) for k in range(7))))
        n = len(history.bars.time)
        assert n >= min(i + 1, HISTORY)
        assert history.bars.time.tolist() == list(range(i - n + 1, i + 1))
        assert history.bars.close[-1] == i + 3


def test_a_decision_that_is_not_a_number_is_none(trained: Trained, tmp_path: Path) -> None:
    loaded, out = trained.loaded, io.StringIO()
    actor = LiveAgent(loaded.networks, loaded.market_spec, loaded.search)
    shift = np.full_like(loaded.market_spec.normaliser.shift, np.nan)
    shift.flags.writeable = False  # as a model's arrays are: another type would be compiled for
    actor._policy = actor._policy._replace(normaliser=loaded.market_spec.normaliser._replace(shift=shift))
    feed = feed_bars(feed_of(ROWS[: HISTORY + 5], tmp_path / "feed.csv"), reading_options(loaded, ReadOptions()))
    with pytest.raises(DecisionError, match="not a finite number"):
        print_decisions(actor, feed, DecisionPrinter(out, False))
    assert out.getvalue() == ",".join(DECISION_COLUMNS) + "\n"


def test_a_failing_network_ends_acting_with_an_error(trained: Trained, tmp_path: Path) -> None:
    loaded, out = trained.loaded, io.StringIO()
    actor = LiveAgent(loaded.networks, loaded.market_spec, loaded.search)
    planner = actor._policy.planner
    net = planner.networks.market
    graph = loaded.networks.graphs["market"]
    layout = layout_of(graph)
    broken = Session(graph).bind(layout._replace(width_in=layout.width_in + 1), [1, len(net.x)])
    model = planner.networks._replace(market=broken)
    actor._policy = actor._policy._replace(planner=planner._replace(networks=model))
    feed = feed_bars(feed_of(ROWS[: HISTORY + 5], tmp_path / "feed.csv"), reading_options(loaded, ReadOptions()))
    with pytest.raises(OrtError):
        print_decisions(actor, feed, DecisionPrinter(out, False))
    assert out.getvalue() == ",".join(DECISION_COLUMNS) + "\n"


def test_sizes_of_an_entry_from_training_to_acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve actions: the manifest names them, `target` is a signed size, and p_buy is the sum over the sizes."""
    monkeypatch.setattr(Trainer, "export_graphs", opinionated)
    sizes = [0.1, 0.25, 0.5, 0.75, 1.0]
    config = load_config(
        None, [*TINY, f"market.position_sizes={sizes}", "search.max_considered_actions=12", "search.num_simulations=12"]
    )
    train_files([], ReadOptions(), config, TrainOptions(tmp_path / "run", Budget(episodes=16), False, 2))
    model = tmp_path / "run" / "model.swt"
    actions = load_model(model).manifest["actions"]
    assert len(actions) == 12
    assert actions[1:3] == ["BUY 0.1", "BUY 0.25"]
    feed = feed_of(ROWS[: HISTORY + 600], tmp_path / "feed.csv")
    got, expected = by_time(acted(model, feed)), backtest_rows(feed, model, None)
    assert all(got[time] == row for time, row in expected.items())
    targets = {row[2] for row in expected.values()}
    assert targets <= {"0", *(f"{sign}{size:g}" for sign in ("", "-") for size in sizes)}
    assert len(targets) > 2
    for before, row in pairwise(expected.values()):
        assert sum(float(p) for p in row[4:8]) == pytest.approx(1)
        held, target = float(before[2]), float(row[2])
        kinds = {"HOLD": target == held, "BUY": held == 0 < target, "SELL": target < 0 == held}
        assert kinds.get(row[1], held != 0 == target), "no resizing"


def test_any_size_of_an_entry_from_training_to_acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widening: four kinds of action, `target` is any signed size, the same in `print_decisions` and `backtest`."""
    monkeypatch.setattr(Trainer, "export_graphs", opinionated)
    config = load_config(None, [*TINY, "search.algorithm=widening", "train.value_prefix=true"])
    train_files([], ReadOptions(), config, TrainOptions(tmp_path / "run", Budget(episodes=16), False, 2))
    model = tmp_path / "run" / "model.swt"
    loaded = load_model(model)
    assert loaded.manifest["actions"] == list(ACTIONS)
    assert loaded.networks.graphs.keys() == {"root", "afterstate", "dynamics"}
    feed = feed_of(ROWS[: HISTORY + 600], tmp_path / "feed.csv")
    got, expected = by_time(acted(model, feed)), backtest_rows(feed, model, None)
    assert all(got[time] == row for time, row in expected.items())
    targets = {abs(float(row[2])) for row in expected.values()}
    assert len(targets) > 10
    assert max(targets) <= 1
    for before, row in pairwise(expected.values()):
        assert sum(float(p) for p in row[4:8]) == pytest.approx(1)
        held, target = float(before[2]), float(row[2])
        kinds = {"HOLD": target == held, "BUY": held == 0 < target, "SELL": target < 0 == held}
        assert kinds.get(row[1], held != 0 == target), "no resizing"


def test_a_transformer_acts_as_it_trades_in_a_backtest_and_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three bars at once: its first decision needs two more than another's."""
    monkeypatch.setattr(Trainer, "export_graphs", opinionated)
    world = ["network.dynamics=transformer", "network.num_heads=2", "network.context=3"]
    train_files(
        [],
        ReadOptions(),
        load_config(None, [*TINY, *world]),
        TrainOptions(tmp_path / "run", Budget(episodes=8), False, 2),
    )
    model, feed = tmp_path / "run" / "model.swt", feed_of(ROWS[: HISTORY + 200], tmp_path / "feed.csv")
    loaded, rows = load_model(model), by_time(acted(model, feed))
    expected = backtest_rows(feed, model, None)
    assert len(rows) == 200 - 2 + 1
    assert all(rows[time] == row for time, row in expected.items())
    assert len({row[3] for row in rows.values()}) > 100
    bars, parts = (list(feed_bars(feed, reading_options(loaded, ReadOptions()))), (loaded.market_spec, loaded.search))
    first, second = (LiveAgent(loaded.networks, *parts) for _ in range(2))
    decided = [first.on_bar(bar) for bar in bars[:-20]]
    assert decided.index(True) == HISTORY + 1
    trader, F = first._policy, loaded.networks.shape.features
    x = compute_features(trader.feature_spec, first.bars, len(first.bars.time) - np.arange(3, 0, -1), 1)
    normalise_rows(x, np.arange(3, dtype=np.int32), trader.normaliser)
    np.testing.assert_array_equal(trader.planner.networks.root.x[0, : 3 * F].reshape(3, F), x)
    second.restore(first.state(), bars[:-20])
    for bar in bars[-20:]:
        assert second.on_bar(bar)
        assert second.decision_row(bar, 0)[:-1] in list(rows.values())


def test_a_model_of_impossible_sizes_is_refused(trained: Trained, tmp_path: Path) -> None:
    model, path = read_model(trained.path), tmp_path / "model.swt"
    manifest = {key: value for key, value in model.manifest.items() if key not in ADDED_KEYS}
    for sizes, reason in (([2.0], "sizes .* are not ascending"), ([0.5], "its actions")):
        (market,) = manifest["markets"]
        market = {**market, "costs": {**market["costs"], "sizes": sizes}}
        write_model(path, {**manifest, "markets": [market]}, model.graphs, model.arrays)
        with pytest.raises(ModelError, match=reason):
            load_model(path)
