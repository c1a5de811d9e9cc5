"""Every kind of instrument trains from bars of its own scale, at a cost that a trader finds plausible.

`SWT_TRIES=20` trains all of them.
"""

import io
import os
from pathlib import Path

import pytest

from host.artifact.manifest import load_model
from host.commands.act import act_on_feed
from host.commands.backtest import backtest_csv
from host.commands.train import TrainOptions, train_files
from host.config import RiskConfig, load_config
from host.data.formats import ReadOptions
from host.training.trainer import Budget
from tests.fixtures.markets import KINDS, write_bars
from tests.fixtures.trained import TINY

TRIES = int(os.environ.get("SWT_TRIES", "3"))
ORDER = sorted(KINDS, key=["XAUUSD", "USDSEK", "BTCUSD", *KINDS].index)[:TRIES]


@pytest.mark.parametrize("symbol", ORDER)
def test_it_trains_and_acts(symbol: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kind = KINDS[symbol]
    feed = write_bars(tmp_path / f"{symbol}.m_{kind.minutes}.csv", symbol, kind, 1500 if kind.minutes > 5 else 5000)
    train_files(
        [feed], ReadOptions(), load_config(None, TINY), TrainOptions(tmp_path / "run", Budget(episodes=16), False, 2)
    )
    said = next(line for line in capfd.readouterr().err.splitlines() if f"{symbol}, pip" in line)
    loaded = load_model(tmp_path / "run" / "model.swt")
    market, profile = loaded.market_spec.market, loaded.market_spec.profile
    print(said)
    assert profile.symbol == symbol
    assert 0.003 < profile.spread_px / market.range_px < 0.8
    assert 0 < market.slippage_px < profile.spread_px / 4
    model = tmp_path / "run" / "model.swt"
    guards = backtest_csv(feed, model, ReadOptions(), None, None, True, risk=RiskConfig())["guards"]
    assert guards["halts"] == []
    assert 0.002 < guards["limits"]["drawdown"] * market.pip_px / profile.price < 0.9
    assert guards["late"] == 0
    out = io.StringIO()
    act_on_feed(str(feed), model, ReadOptions(), False, out, False)
    assert len(out.getvalue().splitlines()) > 1000
