"""A backtest decides what `decide` does at each bar by itself, though it searches many bars at once."""

from typing import Any

import numpy as np
import pytest

from host.evaluation.backtest import SEARCHES_AHEAD, new_backtest_policy, run_backtest
from host.live.live_agent import new_policy_state
from kernels.live.policy_step import decide
from kernels.market.ledger import ACC_SIDE, NUM_TRADE_FIELDS, new_accounts, step_to_target
from kernels.ort import check_status
from tests.fixtures.trainings import WORLD, trained


@pytest.mark.parametrize(
    ("settings", "c_scale", "roots"),
    [
        ((), 1.0, SEARCHES_AHEAD),
        ((), -1.0, SEARCHES_AHEAD),  # one that is for the worst action trades at once
        ((*WORLD, "market.reverse=true", "market.position_sizes=[0.3, 1.0]"), -1.0, SEARCHES_AHEAD),
        (("market.reward=drawdown_penalised",), -1.0, 1),
    ],
)
def test_every_decision_is_that_of_its_bar_alone(settings: tuple[str, ...], c_scale: float, roots: int) -> None:
    trainer = trained(3, 1, *settings)
    data, networks = trainer.markets[0].data, trainer.export_networks()
    search = trainer.acting_search_config()._replace(c_scale=c_scale)
    first, n = data.test_first, 120
    policy = new_backtest_policy(networks, data.market_spec, search)
    assert len(policy.planner.policy) == roots
    log = run_backtest(policy, data.bars, data.extra_features, first, first + n + 1).log
    alone, account = new_policy_state(networks, data.market_spec, search), new_accounts(1)[0]
    trade = np.zeros(NUM_TRADE_FIELDS)
    for i in range(n):
        check_status(decide(alone, account, data.bars, data.extra_features, first + i))
        step_to_target(account, trade, data.bars, first + i, alone.target[0], alone.market)
        mine: Any = (log.target[i], log.action[i], log.value[i])
        assert mine == (account[ACC_SIDE], alone.planner.action[0], alone.planner.value[0]), i
        np.testing.assert_array_equal(log.policy[i], alone.planner.policy[0])
    assert c_scale > 0 or np.count_nonzero(np.diff(log.target)) > 20
