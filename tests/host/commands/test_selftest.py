"""The self-test's measurement: the optimum's decisions have all of it, whatever the sizes and the stretch."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import swt
from host.commands import selftest as selftest_command
from host.evaluation import exam as selftest
from host.evaluation.backtest import BacktestResult, new_decision_log
from host.evaluation.exam import EvaluationSet, equity_curves, evaluate_agent, new_evaluation_set, selftest_config
from host.evaluation.optimum import optimal_actions
from host.evaluation.synthetic import INTERVAL_NS, SYNTHETIC_INSTRUMENT, SyntheticOptions, make_market
from host.training.dataset import new_dataset
from host.training.trainer import Trainer
from kernels.market.ledger import NUM_TRADE_FIELDS, new_accounts, step
from kernels.market.position import HOLD

TINY = ["market.episode_length=24", "network.latent=8", "network.hidden=8", "train.num_envs=2",
        "train.batches_per_iteration=1", "train.batch_size=32", "train.replay_capacity=8"]  # fmt: skip


def optimum_in_sizes(exam: EvaluationSet, trainer: Trainer) -> BacktestResult:
    """The best policy's decisions as a trader books them, in the actions of the trainer, at the largest size."""
    market, k = trainer.markets[0].data.market_spec.market, trainer.network_shape.actions // 2 - 1
    actions = np.array([HOLD, k, 2 * k, 2 * k + 1])[optimal_actions(exam.test_market, exam.optimal_policy)][:-1]
    log = new_decision_log(len(actions), trainer.network_shape.actions)
    account, trade, side, equity = new_accounts(1)[0], np.zeros(NUM_TRADE_FIELDS), 0.0, 0.0
    for t, action in enumerate(actions.tolist()):
        equity += step(account, trade, exam.test_market.bars, t, action, market) * market.range_px
        side = {HOLD: side, k: 1.0, 2 * k: -1.0}.get(action, 0.0)
        log.action[t], log.target[t], log.equity[t] = action, side, equity
    return BacktestResult(log, np.zeros((0, NUM_TRADE_FIELDS)), 1.0)


@pytest.mark.parametrize("sizes", ["[1.0]", "[0.25,0.5,1.0]"])
@pytest.mark.parametrize("bars", [None, 300])
def test_the_optimum_has_all_of_it(monkeypatch: pytest.MonkeyPatch, sizes: str, bars: int | None) -> None:
    config = selftest_config([*TINY, f"market.position_sizes={sizes}"])
    market = make_market("close", SyntheticOptions(length=3000))
    data = new_dataset(market.bars, market.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, 1)
    trainer, exam = Trainer([data], config, 1), new_evaluation_set(market, data, bars)
    asked = list[Any]()

    def trade_bars(trader: Any, bars: Any, extra: Any, first: int, stop: int, report: Any) -> BacktestResult:
        asked.append((first, stop))
        return optimum_in_sizes(exam, trainer)

    monkeypatch.setattr(selftest, "run_backtest", trade_bars)
    found = evaluate_agent(exam, trainer)
    curves = equity_curves(exam, optimum_in_sizes(exam, trainer))
    assert len(curves["agent"]) == len(curves["optimum"]) == found["test_bars"] - 1
    np.testing.assert_allclose(curves["agent"][:-1], curves["optimum"][:-1], rtol=1e-9, atol=1e-9)
    assert curves["optimum"][-1] == pytest.approx(found["optimum"], rel=1e-9)
    assert asked == [(data.test_first, data.test_first + (bars or 3000 - data.test_first))]
    assert found["fraction_of_optimum"] == pytest.approx(1.0, abs=0.02)  # but for the last bar's close-out
    assert found["closing_regret"] == 0
    assert found["passed"] == (found["fraction_of_optimum"] <= selftest.MAX_FRACTION)
    assert found["test_bars"] == asked[0][1] - asked[0][0]


def test_what_counts_as_passed() -> None:
    assert selftest.passes("noise", None, 0.01)
    assert not selftest.passes("noise", None, 0.03)
    assert selftest.passes("planted", 0.8, 0.5)
    assert not selftest.passes("planted", 0.79, 0.5)
    assert not selftest.passes("planted", 1.03, 0.5)


def test_the_picture_has_a_chart_for_each_market_and_is_checked_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(swt, "install_signal_handlers", lambda *_: None)
    path = tmp_path / "equity.svg"
    small = ["--length", "1500", "--minutes", "0.001", "--threads", "1", *(w for s in TINY for w in ("--set", s))]
    small += ["--set", "train.updates_per_iteration=1"]
    for picture, code in ((tmp_path / "none" / "x.svg", 2), (path, 9)):
        outputs = "--picture", str(picture), "--out", str(tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["swt.py", "selftest", "leak", "planted", *small, *outputs])
        with pytest.raises(SystemExit) as stop:
            swt.main()
        assert stop.value.code == code, capsys.readouterr().err
    texts = [text.text or "" for text in ElementTree.parse(path).iter() if text.tag.endswith("text")]
    rows = capsys.readouterr().out.splitlines()
    for name, row in zip(("leak", "planted"), rows, strict=True):
        assert f"synthetic market '{name}'" in texts
        profit, optimum = row.split("; ")[2].split(" pips")[0].split(" of ")
        assert {f"agent {int(profit):,}", f"optimum {int(optimum):,}"} <= {text.replace("-0", "0") for text in texts}
        document = json.loads((tmp_path / "out" / name / "report.json").read_text(encoding="utf-8"))
        assert document["source"]["title"] == f"SYNTHETIC market '{name}', unseen bars"
        assert round(document["statistics"]["Net Profit [pips]"]) == int(profit)
    learnt = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(learnt) == 2 * selftest_command.NUM_EVALUATIONS


@pytest.mark.parametrize(
    ("words", "says"),
    [(["foo"], "no market 'foo': there is noise, planted"), (["noise", "foo"], "no market 'foo'"),
     (["planted", "--half-life", "0"], "--half-life: 0.0 is not a number from 0.1"),
     (["--length", "10"], "--length: 10 is not"), (["--noise", "nan"], "--noise: nan"),
     (["--cost", "-1"], "--cost: -1"),
     (["noise", "--length", "1000"], "1000 bars give no training episode"),
     (["noise", "--noise", "1000", "--length", "2000"], "price falls below"),
     (["planted-hard", "--half-life", "9999", "--length", "2000"], "half-life is too long"),
     (["noise", "--set", "train.unizero_weight=-1"], "train.unizero_weight"), (["--seed", str(2**32)], "train.seed"),
     (["noise", "--minutes", "nan"], "--minutes: nan")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_markets_that_there_are_not_are_one_line(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(swt, "install_signal_handlers", lambda *_: None)
    monkeypatch.setattr("host.commands.selftest.run_first_iteration", None)  # refused before anything is learnt
    monkeypatch.setattr(sys, "argv", ["swt.py", "selftest", *words])
    with pytest.raises(SystemExit) as stop:
        swt.main()
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (3 if says.startswith(("train", "--minutes")) else 2, "")
    assert says in said.err.splitlines()[-1]


def test_training_bars_make_the_length_and_split_there() -> None:
    length, settings = selftest_command.split_settings(5000, None)
    assert length == 5000 + selftest.NUM_TEST_BARS
    assert int(length * selftest_config(settings).train.train_fraction) == 5000
    assert selftest_command.split_settings(None, 700) == (700, [])
    for bars, other, told in ((5000, 900, "leave one out"), (5, None, "--train-bars")):
        with pytest.raises(selftest.SelftestError, match=told):
            selftest_command.split_settings(bars, other)


def test_curves_name_each_market_with_its_own_seconds() -> None:
    row = {"expected_fraction": 0.5, "fraction_of_optimum": 0.4, "q_slope": 0.9, "q_correlation": 0.8}
    flat = dict.fromkeys(row)
    rows = [{"market": "planted", "cpu_s": s, **row} for s in (3.0, 7.0)] + [{"market": "noise", "cpu_s": 9.0, **flat}]
    texts = [text.text for text in ElementTree.fromstring(selftest_command.draw_curves(rows)).iter() if text.text]
    assert "'planted', 7 s of CPU: profit, of the optimum" in texts
    assert not [text for text in texts if "noise" in text]  # it has no optimum to be a fraction of
