"""Edges and reliability by hand; the agent is asked by the step that decides in a backtest."""

import json
import math

import numpy as np
import pytest

from host.analysis.opportunity import ask_flat, chance_calibration, expected_edges, opportunity
from host.data.parsing import format_utc
from host.evaluation.backtest import run_backtest
from host.live.live_agent import new_policy_state
from host.training.chance_diagnostics import chance_logits
from host.training.feature_store import FeatureStore
from kernels.market.bars import SECOND_NS
from kernels.market.chance import ChanceCodes
from kernels.market.ledger import new_market
from tests.fixtures.trainings import trained
from tests.oracles.naive import wandering_bars

HOUR, PIP = 3600 * SECOND_NS, 1e-4
MARKET = new_market(range_px=5e-4, pip_px=PIP, interval_ns=HOUR, slippage_px=1e-5, commission_px=4e-5)
BARS = wandering_bars(0, 20, 60)
BARS = BARS._replace(ask_close=BARS.close + PIP)  # a round trip costs 1 + 2 (0.1 + 0.4) = 2 pips


def test_edges_by_hand() -> None:
    """A range is 5 pips: entries gain -1.5, -0.5 and 1 pips after costs of 2."""
    q = np.array([[0.1, -0.2, -0.4, np.nan], [0.0, -0.3, -0.1, np.nan], [-0.1, 0.1, -1.0, np.nan]])
    found = expected_edges(q, BARS, np.array([3, 5, 7]), MARKET)
    best = {"time": format_utc(int(BARS.time[7])), "side": "BUY"}
    assert {k: found["best"][k] for k in best} == best
    assert found["best"]["edge_pips"] == pytest.approx(3)
    assert found["best"]["cost_pips"] == pytest.approx(2)
    assert found["median_edge_pips"] == pytest.approx(1.5)
    assert found["median_cost_pips"] == pytest.approx(2)
    assert found["near"] == {"50%": pytest.approx(2 / 3), "100%": pytest.approx(1 / 3)}
    assert found["spread_pips"] == pytest.approx(1)
    assert found["first_entry_spread_pips"] == pytest.approx(2)
    assert found["often_entry_spread_pips"] == pytest.approx(np.quantile([-0.5, 0.5, 2], 0.99))
    assert expected_edges(-q, BARS, np.array([3, 5, 7]), MARKET)["best"]["side"] == "SELL"


def test_sizes_scale_edge_and_cost() -> None:
    """The entry of the largest size counts; at half the size a gain of half a pip is one of a full position."""
    q = np.array([[0.0, 9.0, 0.1, 9.0, -0.1, np.nan]])
    found = expected_edges(q, BARS, np.array([3]), MARKET._replace(sizes=(0.25, 0.5, 0.0, 0.0, 0.0)))
    assert found["best"]["edge_pips"] == pytest.approx(0.5 + 1)
    assert found["best"]["cost_pips"] == pytest.approx(1)
    assert found["first_entry_spread_pips"] == pytest.approx(1 + 1)


def test_roots_without_a_search_of_an_entry_do_not_count() -> None:
    q = np.array([[0.0, np.nan, 9.0, np.nan], [0.0, -0.1, -0.2, np.nan]])
    assert expected_edges(q, BARS, np.array([3, 4]), MARKET)["best"]["edge_pips"] == pytest.approx(1.5)
    assert expected_edges(q[:1], BARS, np.array([3]), MARKET) == {"best": None}


def test_reliability_by_hand() -> None:
    """Three codes: down, neither, up.  Rises are foreseen with 0.92 twice, of which one comes, and with a half."""
    close = np.cumsum([1.0, 0.1, -0.1, 0.0])
    bars = wandering_bars(0, 4, 60)._replace(close=close)
    codes = ChanceCodes(np.array([-0.5, 0.5]), np.array([-1.0, 0.0, 1.0]))
    p = np.array([[0.04, 0.08, 0.88], [0.04, 0.08, 0.88], [0.05, 0.9, 0.05]])  # the sum of the last is below a half
    found = chance_calibration(np.log(p) + 7.0, codes, bars, np.arange(3))
    seen = {i: row for i, row in enumerate(found["bins"]) if row["bars"]}
    assert [row["bars"] for row in seen.values()] == [1, 2]
    assert seen[5] == {"predicted": pytest.approx(0.5), "observed": 0.5, "bars": 1}
    assert seen[9] == {"predicted": pytest.approx(0.92), "observed": 0.5, "bars": 2}
    assert found["bins"][0] == {"predicted": None, "observed": None, "bars": 0}
    realised = p[[0, 1, 2], [2, 0, 1]]  # the moves are 0.1, -0.1 and 0
    assert found["nll"] == pytest.approx(-np.log(realised).mean())
    assert found["uniform_nll"] == math.log(3)
    # two kinds of each bin share its probability
    learned = codes._replace(centres=np.repeat(codes.centres, 2), learned_code=np.zeros(4, np.int16))
    of_kinds = np.repeat(p, 2, axis=1) * ([0.3, 0.7] * 3)
    assert chance_calibration(np.log(of_kinds), learned, bars, np.arange(3)) == {
        **found,
        "nll": pytest.approx(found["nll"]),
        "bins": [{k: pytest.approx(v) for k, v in row.items()} for row in found["bins"]],
    }


def test_the_agent_is_asked_what_the_backtest_asks() -> None:
    trainer = trained()
    data, networks = trainer.markets[0].data, trainer.export_networks()
    policy = new_policy_state(networks, data.market_spec, trainer.acting_search_config())
    first, stop = data.test_first, data.test_first + 60
    ts = np.arange(first, stop - 1)
    q, logits = ask_flat(policy, data.bars, data.extra_features, ts)
    log = run_backtest(policy, data.bars, data.extra_features, first, stop).log
    idle = np.append(0.0, log.target[:-1]) == 0
    assert idle.sum() > 5
    assert all(value in row for value, row in zip(log.value[idle], q[idle], strict=True))
    store = FeatureStore(data, 128, 1)
    store.acquire(ts[:1], len(ts))
    np.testing.assert_allclose(logits, chance_logits(networks, store, ts), atol=1e-5)
    found = opportunity(policy, data.bars, data.extra_features, first, stop, 1.5)
    assert found["bars"] == sum(row["bars"] for row in found["calibration"]["bins"]) == len(ts)
    assert found["direction_z"] == 1.5
    assert json.loads(json.dumps(found, allow_nan=False)) == found
