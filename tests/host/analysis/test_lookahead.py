"""An honest model depends on no bar that it must not see, and every kind of planted leak is found."""

from typing import Any

import numpy as np
import pytest
import typer

from host.analysis import lookahead as module
from host.analysis.lookahead import (
    Observed,
    change_future,
    draw_bars,
    find_fit_lookahead,
    find_lookahead,
    find_short_warmup,
    list_differences,
    observe_features,
)
from host.commands.check_lookahead import check_model, print_check
from host.data.formats import DataError, ReadOptions
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT
from kernels.market.bars import Bars
from kernels.market.features import HISTORY, compute_features, new_feature_spec
from swt import end_with
from tests.fixtures.trained import ROWS, Trained, feed_of
from tests.fixtures.trainings import BARS, tiny

SPEC = new_feature_spec(interval_ns=INTERVAL_NS)
CHANGES = {"later bars changed", "later bars cut off"}


def with_next_close(bars: Bars) -> Bars:
    """Each close is that of the next bar: what a centred filter or a shift in the wrong direction does."""
    return bars._replace(close=np.append(bars.close[1:], bars.close[-1]))


def checked(trained: Trained, warmup: bool = False, csv: Any = None) -> dict[str, Any]:
    return check_model(csv, trained.path, ReadOptions(), checks=3, seed=1, insist=False, warmup=warmup)


def test_an_honest_model_passes(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    document = checked(trained)
    assert document["passed"]
    assert {name: part["count"] for name, part in document["parts"].items()} == {
        "features": 0,
        "decisions": 0,
        "fit": 0,
    }
    assert "NOT" not in document["parts"]["fit"]["checked"]
    warmup = checked(trained, warmup=True)
    assert warmup["passed"]
    assert list(warmup["parts"]) == ["features", "decisions"]
    end_with(warmup, print_check, False)
    assert "decisions: no differences; 3 bars" in capsys.readouterr().out


def test_a_leak_in_features_is_found(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leaking(spec: Any, bars: Bars, *rest: Any) -> Any:
        return compute_features(spec, with_next_close(bars), *rest)

    monkeypatch.setattr(module, "compute_features", leaking)
    document = checked(trained)
    assert document["parts"]["features"]["count"] > 3
    assert document["parts"]["decisions"]["count"] == 0  # they call the kernel, not this function
    with pytest.raises(typer.Exit) as end:
        end_with(document, print_check, False)
    assert end.value.exit_code == 9
    assert "Z +-scatter_0_0: " in capsys.readouterr().out


def test_a_leak_in_decisions_is_found(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module.run_backtest
    monkeypatch.setattr(
        module, "run_backtest", lambda policy, bars, *rest: honest(policy, with_next_close(bars), *rest)
    )
    part = checked(trained)["parts"]["decisions"]
    assert part["count"] > 0
    assert {row["change"] for row in part["differences"]} == CHANGES
    assert {row["column"] for row in part["differences"]} >= {"value"}


def test_the_sign_of_the_next_move_is_found_at_every_bar() -> None:
    def next_sign(bars: Bars, first: int, stop: int) -> Any:
        return np.sign(np.diff(bars.close))[first:stop, None]

    observed = Observed(["sign"], HISTORY, next_sign, lambda bars, first, stop: next_sign(BARS, first, stop))
    for t in draw_bars(len(BARS.time), HISTORY, 20, 0):
        found = find_lookahead(observed, BARS, t)
        assert [(d.bar, d.column, d.change) for d in found] == [(t, "sign", "later bars changed")]


def test_a_mean_over_the_file_is_found_by_both_checks_and_one_over_the_past_by_the_warm_up() -> None:
    def of_file(bars: Bars, first: int, stop: int) -> Any:
        return compute_features(SPEC, bars, np.arange(first, stop), 1) + bars.close.mean()

    def of_past(bars: Bars, first: int, stop: int) -> Any:
        return (np.cumsum(bars.close) / np.arange(1, len(bars.time) + 1))[first:stop, None]

    honest, t = observe_features(SPEC), HISTORY + 50
    file, past = honest._replace(observe=of_file, observe_past=of_file), Observed(["mean"], HISTORY, of_past, of_past)
    assert {d.change for d in find_lookahead(file, BARS, t)} == CHANGES
    assert find_short_warmup(file, BARS, t)
    assert not find_lookahead(past, BARS, t)
    assert find_short_warmup(past, BARS, t)
    assert not find_lookahead(honest, BARS, t)
    assert not find_short_warmup(honest, BARS, len(BARS.time) - 2)


def test_a_fit_that_sees_the_test_part_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = BARS, tiny(), SYNTHETIC_INSTRUMENT, INTERVAL_NS
    assert find_fit_lookahead(*arguments) == []
    honest = module.new_dataset

    def leaking(bars: Bars, *rest: Any) -> Any:
        data = honest(bars, *rest)
        market = data.market_spec.market._replace(range_px=float(np.mean(bars.high - bars.low)))
        return data._replace(market_spec=data.market_spec._replace(market=market))

    monkeypatch.setattr(module, "new_dataset", leaking)
    assert [d.column for d in find_fit_lookahead(*arguments)] == ["range_px"]


def test_another_future_is_one_of_bars() -> None:
    t = 300
    changed = change_future(BARS, t)
    for name, before, after in zip(Bars._fields, BARS, changed, strict=True):
        assert np.array_equal(before[: t + 1], after[: t + 1]), name
        assert (before[t + 1 :] != after[t + 1 :]).mean() > 0.99, name  # a price equal to the last close stays
    assert (np.diff(changed.time) > 0).all()
    assert (changed.low <= np.minimum(changed.open, changed.close)).all()
    assert (changed.high >= np.maximum(changed.open, changed.close)).all()
    assert (changed.ask_open >= changed.open).all()
    assert (changed.ask_close >= changed.close).all()


def test_numbers_are_compared_bit_for_bit_and_nan_is_nan() -> None:
    observed = Observed(["a", "b"], 1, lambda *_: None, lambda *_: None)
    before, after = np.array([[np.nan, 1.0], [np.nan, 0.1]]), np.array([[np.nan, np.nextafter(1.0, 2.0)], [1.0, 0.1]])
    found = list_differences(observed, 7, before, "cut", after)
    assert [(d.bar, d.column) for d in found] == [(7, "b"), (8, "a")]


def test_few_bars_are_refused_or_leave_the_fit_unchecked(trained: Trained, tmp_path: Any) -> None:
    assert draw_bars(HISTORY, HISTORY, 9, 0) == []
    assert draw_bars(HISTORY + 3, HISTORY, 9, 0) == [HISTORY - 1, HISTORY, HISTORY + 1]
    with pytest.raises(DataError, match="257 bars; bring more than the 257"):
        checked(trained, csv=feed_of(ROWS[:HISTORY], tmp_path / "EURUSD_H1.csv"))
    document = checked(trained, csv=feed_of(ROWS[: HISTORY + 9], tmp_path / "EURUSD_H1.csv"))
    assert document["passed"]
    assert document["parts"]["fit"]["checked"].startswith("NOT CHECKED: 266 bars")
