"""The self-test's measurement: the optimum's decisions have all of it, whatever the sizes and the stretch."""

import sys
from typing import Any

import numpy as np
import pytest

import swt
from host.evaluation import exam as selftest
from host.evaluation.backtest import Result, new_log
from host.evaluation.exam import Exam, measure, new_exam, selftest_config
from host.evaluation.optimum import optimal_actions
from host.evaluation.synthetic import INTERVAL_NS, MADE, Options, make_market
from host.training.dataset import new_dataset
from host.training.trainer import Trainer
from kernels.market.ledger import TRADE, new_accounts, step
from kernels.market.position import HOLD

TINY = ["market.session=24", "network.latent=8", "network.hidden=8", "train.block=2", "train.blocks=1",
        "train.batch=32", "train.replay=8"]  # fmt: skip


def optimum_in_sizes(exam: Exam, trainer: Trainer) -> Result:
    """The best policy's decisions as a trader books them, in the actions of the trainer, at the largest size."""
    market, k = trainer.data.setting.market, trainer.sizes.actions // 2 - 1
    actions = np.array([HOLD, k, 2 * k, 2 * k + 1])[optimal_actions(exam.part, exam.best)][:-1]
    log = new_log(len(actions), trainer.sizes.actions)
    account, trade, side, equity = new_accounts(1)[0], np.zeros(TRADE), 0.0, 0.0
    for t, action in enumerate(actions.tolist()):
        equity += step(account, trade, exam.part.bars, t, action, market) * market.range_px
        side = {HOLD: side, k: 1.0, 2 * k: -1.0}.get(action, 0.0)
        log.action[t], log.target[t], log.equity[t] = action, side, equity
    return Result(log, np.zeros((0, TRADE)), 1.0)


@pytest.mark.parametrize("sizes", ["[1.0]", "[0.25,0.5,1.0]"])
@pytest.mark.parametrize("bars", [None, 300])
def test_the_optimum_has_all_of_it(monkeypatch: pytest.MonkeyPatch, sizes: str, bars: int | None) -> None:
    config = selftest_config([*TINY, f"market.sizes={sizes}"])
    market = make_market("close", Options(length=3000))
    data = new_dataset(market.bars, market.extra, config, MADE, INTERVAL_NS, 1)
    trainer, exam = Trainer(data, config, 1), new_exam(market, data, bars)
    asked = list[Any]()

    def trade_bars(trader: Any, bars: Any, extra: Any, first: int, stop: int, report: Any) -> Result:
        asked.append((first, stop))
        return optimum_in_sizes(exam, trainer)

    monkeypatch.setattr(selftest, "trade_bars", trade_bars)
    found = measure(exam, trainer)
    assert asked == [(data.test_first, data.test_first + (bars or 3000 - data.test_first))]
    assert found["fraction_of_optimum"] == pytest.approx(1.0, abs=0.02)  # but for the last bar's close-out
    assert found["closing_regret"] == 0
    assert found["passed"] == (found["fraction_of_optimum"] <= selftest.MOST)
    assert found["test_bars"] == asked[0][1] - asked[0][0]


def test_what_counts_as_passed() -> None:
    assert selftest.passes("noise", None, 0.01)
    assert not selftest.passes("noise", None, 0.03)
    assert selftest.passes("planted", 0.8, 0.5)
    assert not selftest.passes("planted", 0.79, 0.5)
    assert not selftest.passes("planted", 1.03, 0.5)


@pytest.mark.parametrize(
    ("words", "says"),
    [(["foo"], "no market 'foo': there is noise, planted"), (["noise", "foo"], "no market 'foo'"),
     (["planted", "--half-life", "0"], "--half-life: 0.0 is not a number from 0.1"),
     (["--length", "10"], "--length: 10 is not"), (["--noise", "nan"], "--noise: nan"),
     (["--cost", "-1"], "--cost: -1"),
     (["noise", "--length", "1000"], "1000 bars give no training session"),
     (["noise", "--noise", "1000", "--length", "2000"], "price falls below"),
     (["planted-hard", "--half-life", "9999", "--length", "2000"], "half-life is too long"),
     (["noise", "--set", "train.joint=-1"], "train.joint"), (["--seed", str(2**32)], "train.seed"),
     (["noise", "--minutes", "nan"], "--minutes: nan")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_markets_that_there_are_not_are_one_line(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(swt, "catch_signals", lambda: None)
    monkeypatch.setattr("host.commands.selftest.first_cycle", None)  # refused before anything is learnt
    monkeypatch.setattr(sys, "argv", ["swt.py", "selftest", *words])
    with pytest.raises(SystemExit) as stop:
        swt.main()
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (3 if says.startswith(("train", "--minutes")) else 2, "")
    assert says in said.err.splitlines()[-1]
