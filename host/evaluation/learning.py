"""What an agent has learnt of a synthetic market, measured against its true state.

Realised profit contains the noise of the market, and an agent earns nothing before it trades.  The expected profit of
its positions contains no noise, and the Q of its decisions shows what it knows long before its first trade.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from host.evaluation.exam import EvaluationSet, compare_with_optimum, trade_unseen_bars
from host.evaluation.optimum import discounted_q, expected_moves, optimal_actions
from host.evaluation.synthetic import PIP, Floats
from host.training.chance_diagnostics import calibration, chance_logits
from host.training.feature_store import FeatureStore
from host.training.trainer import Trainer
from kernels.learning.flat_roots import search_flat_roots
from kernels.market.chance import NO_LEARNED_CODES, fill_realised_codes
from kernels.market.position import BUY, NUM_POSITION_FIELDS, SELL, action_kind
from kernels.ort import check_status

NUM_ROOTS = 2_048  # unseen bars whose Q is compared with that of the optimum
ROOT_BATCH = 64  # roots that are searched together
FLAT = 1  # row of a flat position among the sides of the optimum


def measure_agent(evaluation: EvaluationSet, trainer: Trainer) -> dict[str, Any]:
    """The document of `compare_with_optimum`, and what the agent has learnt, measured without the market's noise.

    `expected_fraction` is the expected profit as a fraction of the optimum's, or the certainty equivalent under a risk
    term, whose Q has no optimum here (`q_slope` compares with that of profit); `measure_roots` has the other measures.
    A measure is None where the market does not have it.
    """
    result = trade_unseen_bars(evaluation, trainer)
    document = compare_with_optimum(evaluation, trainer, result)
    expected = expected_profit(evaluation, result.log.target, document["profit"])
    best = optimal_expected_profit(evaluation)
    document["expected_fraction"] = expected / best if best > 0 else None
    if evaluation.optimum_certainty is not None:  # expected values too
        document["expected_fraction"] = document["fraction_of_optimum"]
    return document | measure_roots(evaluation, trainer)


def expected_profit(evaluation: EvaluationSet, target: Floats, profit_pips: float) -> float:
    """Profit in pips of the positions `target` [T - 1] if each bar had moved as its true state lets expect.

    `profit_pips` is their profit in the ledger, which has their costs.
    """
    synthetic = evaluation.test_market
    surprise_px = np.diff(synthetic.bars.close) - expected_moves(synthetic)[:-1]
    return profit_pips - float(target @ surprise_px) / PIP


def optimal_expected_profit(evaluation: EvaluationSet) -> float:
    """Expected profit of the optimal policy on the unseen bars, pips."""
    side, sides = 0, list[int]()
    for action in optimal_actions(evaluation.test_market, evaluation.optimal_policy)[:-1].tolist():
        side = (side, 1, -1, 0)[action]
        sides.append(side)
    return expected_profit(evaluation, np.array(sides, np.float64), evaluation.optimum_pips)


def measure_roots(evaluation: EvaluationSet, trainer: Trainer) -> dict[str, float | None]:
    """What the agent knows at bars where it holds nothing, whatever it does.

    `q_slope` and `q_correlation` compare Q(BUY) - Q(SELL) with the exact discounted optimum of the largest size.
    `chance_nll` is the mean negative log-likelihood of the bins of the moves; the kinds of a bin are summed.  A prior
    that knows nothing has the log of the number of bins.
    """
    count = min(NUM_ROOTS, len(evaluation.test_market.bars.time) - 1)
    data, networks = trainer.markets[evaluation.instrument].data, trainer.export_networks()
    ts = evaluation.first + np.arange(count)
    store = FeatureStore(data, count + 1 + networks.shape.context, 1, 0, networks.shape.context - 1)
    store.acquire(ts[:1], count + 1)
    q, flat = np.zeros((count, networks.shape.actions)), np.zeros(NUM_POSITION_FIELDS, np.float32)
    planner = networks.planner(ROOT_BATCH, trainer.acting_search_config())
    check_status(search_flat_roots(q, planner, store.market_data, ts, flat))
    bins, codes = np.zeros(count, np.int64), data.market_spec.codes._replace(learned_code=NO_LEARNED_CODES)
    fill_realised_codes(bins, codes, data.bars, ts)
    kinds = chance_logits(networks, store, ts).reshape(count, len(codes.edges) + 1, -1)
    chance_nll = calibration(np.logaddexp.reduce(kinds, axis=2), bins)["chance_nll"]
    return {**compare_q(evaluation, trainer, q), "chance_nll": chance_nll}


def compare_q(evaluation: EvaluationSet, trainer: Trainer, q: Floats) -> dict[str, float | None]:
    """Slope and correlation of Q(BUY) - Q(SELL) of q [n, A] against that of the optimum on the first n bars.

    The optimum's is discounted as the agent's is.  Bars count where a search has visited both actions.
    """
    market = trainer.markets[evaluation.instrument].data.market_spec.market
    kinds = [action_kind(a, q.shape[1]) for a in range(q.shape[1])]
    buy, sell = (max(a for a, kind in enumerate(kinds) if kind == side) for side in (BUY, SELL))  # of the largest size
    discount = trainer.config.search.discount
    exact = discounted_q(evaluation.test_market, market, evaluation.optimal_policy, discount)[FLAT, :, : len(q)]
    x, y = (exact[BUY] - exact[SELL]) / market.range_px, q[:, buy] - q[:, sell]
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    known, spread = len(x) > 1 and float(x.std()) > 0, float(y.std()) if len(y) else 0.0
    return {
        "q_slope": float(np.cov(x, y)[0, 1] / x.var(ddof=1)) if known else None,
        "q_correlation": float(np.corrcoef(x, y)[0, 1]) if known and spread > 0 else None,
    }
