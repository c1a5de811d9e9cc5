"""Why an agent trades or stays out: the edge that it expects of an entry beside its cost, and whether it may.

It is asked at the closes of many bars, each time without a position, by the step that decides in a backtest.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.analysis.record import Floats
from host.data.parsing import format_utc
from kernels.jit import specialize
from kernels.live.policy_step import PolicyState, decide
from kernels.market.bars import Bars
from kernels.market.chance import NO_LEARNED_CODES, ChanceCodes, fill_realised_codes, log_softmax
from kernels.market.ledger import Market, new_accounts
from kernels.market.position import BUY, HOLD, SELL, action_kind
from kernels.ort import check_status

MAX_BARS = 4_096  # evenly spaced over the stretch
RELIABILITY_BINS = 10
NEAR = 0.5, 1.0  # fractions of the cost of a round trip that an edge reaches
OFTEN = 0.01  # of the bars


def opportunity(
    policy: PolicyState,
    bars: Bars,
    extra: NDArray[np.float32],
    first: int,
    stop: int,
    direction_z: float | None = None,
) -> dict[str, Any]:
    """What `policy` sees at the closes of bars [first, stop - 1), in pips and JSON-ready.

    `direction_z` is the evidence of the validation part that it can tell rises from falls; below 2 there is none.
    """
    ts = np.unique(np.linspace(first, stop - 2, min(stop - 1 - first, MAX_BARS)).astype(np.int64))
    q, logits = ask_flat(policy, bars, extra, ts)
    return {
        "bars": len(ts),
        **expected_edges(q, bars, ts, policy.market),
        "direction_z": direction_z,
        "calibration": chance_calibration(logits, policy.codes, bars, ts),
    }


def ask_flat(
    policy: PolicyState, bars: Bars, extra: NDArray[np.float32], ts: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Q [n, A] in ranges of the actions of a flat position at the bars ts [n], and logits [n, C] of the codes."""
    planner, account = policy.planner, new_accounts(1)[0]
    q, logits = np.zeros((len(ts), planner.q.shape[1])), np.zeros((len(ts), len(policy.codes.centres)))
    step = specialize(decide, policy, account, bars, extra, 0)
    for i, t in enumerate(ts.tolist()):
        check_status(step(policy, account, bars, extra, t))
        q[i] = planner.q[0]
        logits[i] = planner.networks.root.y[0, -logits.shape[1] :]
    return q, logits


def expected_edges(q: Floats, bars: Bars, ts: NDArray[np.int64], market: Market) -> dict[str, Any]:
    """The edge of an entry of the largest size before its costs, beside the cost of a round trip.

    Q(entry) - Q(HOLD) is what an entry gains after its costs; above 0 the search is for it.  "near" are
    the fractions of the bars whose edge reaches NEAR of the cost.  The spreads at which it would enter, at its best
    bar and at OFTEN of the bars, leave Q(HOLD) and the other costs as they are; below 0: at no spread.
    """
    kinds, size = [action_kind(a, q.shape[1]) for a in range(q.shape[1])], max(market.sizes)
    buy, sell = (max(a for a, kind in enumerate(kinds) if kind == side) for side in (BUY, SELL))
    searched = np.isfinite(q[:, [HOLD, buy, sell]]).all(axis=1)
    t, q = ts[searched], q[searched]
    if len(t) == 0:
        return {"best": None}
    gain = (np.maximum(q[:, buy], q[:, sell]) - q[:, HOLD]) * market.range_px / market.pip_px
    spread = (bars.ask_close[t] - bars.close[t]) / market.pip_px
    cost = size * (spread + 2 * (market.slippage_px + market.commission_px) / market.pip_px)
    edge, best = gain + cost, int(np.argmax(gain))
    enters_at = gain / size + spread  # largest spread at which each bar is an entry
    return {
        "best": {
            "time": format_utc(int(bars.time[t[best]])),
            "side": "BUY" if q[best, buy] > q[best, sell] else "SELL",
            "edge_pips": float(edge[best]),
            "cost_pips": float(cost[best]),
        },
        "median_edge_pips": float(np.median(edge)),
        "median_cost_pips": float(np.median(cost)),
        "near": {f"{fraction:.0%}": float(np.mean(edge >= fraction * cost)) for fraction in NEAR},
        "spread_pips": float(np.median(spread)),
        "first_entry_spread_pips": float(enters_at.max()),
        "often_entry_spread_pips": float(np.quantile(enters_at, 1 - OFTEN)),
    }


def chance_calibration(logits: Floats, codes: ChanceCodes, bars: Bars, ts: NDArray[np.int64]) -> dict[str, Any]:
    """Reliability diagram of the chance codes, and their mean negative log-likelihood beside that of no knowledge.

    A bin holds the bars whose predicted probability of a rise lies in a tenth of [0, 1]: that probability, and the
    frequency of rises, in the mean.  A code without a direction and a close that stands still count as half a rise.
    The likelihood is that of the bin of the move, whatever kind a learned code tells.
    """
    log_p = log_softmax(logits)
    predicted = np.exp(log_p) @ half_step(codes.centres)
    rose = half_step(bars.close[ts + 1] - bars.close[ts])
    # a half is a half, whatever its last bit says
    row = np.minimum((predicted * RELIABILITY_BINS + 1e-9).astype(np.int64), RELIABILITY_BINS - 1)
    count = np.bincount(row, minlength=RELIABILITY_BINS)
    mean = [np.bincount(row, x, RELIABILITY_BINS) / np.maximum(count, 1) for x in (predicted, rose)]
    return {
        "bins": [
            {"predicted": float(p) if n else None, "observed": float(o) if n else None, "bars": int(n)}
            for p, o, n in zip(*mean, count, strict=True)
        ],
        "nll": realised_nll(log_p, codes, bars, ts),
        "uniform_nll": math.log(len(codes.edges) + 1),
    }


def realised_nll(log_p: Floats, codes: ChanceCodes, bars: Bars, ts: NDArray[np.int64]) -> float:
    """Mean of -log p of the bins of the moves that came, of log_p [n, C] of the codes, nats."""
    bins = np.zeros(len(ts), np.int64)
    fill_realised_codes(bins, codes._replace(learned_code=NO_LEARNED_CODES), bars, ts)
    p = np.exp(log_p).reshape(len(ts), len(codes.edges) + 1, -1).sum(axis=2)
    return -float(np.log(p[np.arange(len(ts)), bins]).mean())


def half_step(x: Floats) -> Floats:
    """1 above 0, a half at 0, 0 below."""
    return (np.sign(x) + 1) / 2
