"""A record is what the ledger books, and its daily returns add up to its profit."""

import numpy as np
import pytest

from host.analysis.record import daily_returns, record_of, trade_targets
from host.evaluation.backtest import run_backtest
from host.live.live_agent import new_policy_state
from kernels.market.calendar import DAY_NS
from tests.fixtures.trainings import BARS, dataset, tiny, trained


def test_the_record_of_a_backtest_is_the_agents_own_log() -> None:
    trainer = trained()
    data = trainer.markets[0].data
    policy = new_policy_state(trainer.export_networks(), data.market_spec, trainer.acting_search_config())
    result = run_backtest(policy, data.bars, data.extra_features, data.test_first, data.test_first + 150)
    record = record_of(result, data.bars, data.test_first, data.market_spec.market)
    np.testing.assert_array_equal(record.equity, result.log.equity)
    np.testing.assert_array_equal(record.trades[:, 2:], result.trades[:, 2:])


def test_daily_returns_add_up_and_flat_days_are_zero() -> None:
    market = dataset(tiny()).market_spec.market
    n = len(BARS.time) - 1
    target = np.where(np.arange(n) % 400 < 200, 1.0, 0.0)
    record = trade_targets(BARS, target, market)
    day, returns = daily_returns(record)
    assert (np.diff(day) > 0).all()
    assert len(day) == len(np.unique((BARS.time[1:] - 1) // DAY_NS))
    assert returns.sum() == pytest.approx(record.equity[-1] / BARS.close[0], abs=1e-12)
    assert not daily_returns(trade_targets(BARS, np.zeros(n), market))[1].any()
