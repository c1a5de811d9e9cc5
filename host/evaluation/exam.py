"""`selftest`: does the agent find what is there and leave alone what is worthless, on synthetic markets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from host.config import Config, ConfigError, Range, load_config
from host.console import ProgressCallback, no_progress
from host.evaluation.backtest import run_backtest
from host.evaluation.optimum import OptimalPolicy, closing_regret, run_optimal_policy, solve_optimal_policy
from host.evaluation.synthetic import (
    INTERVAL_NS,
    PIP,
    SYNTHETIC_INSTRUMENT,
    SyntheticMarket,
    SyntheticOptions,
    make_market,
)
from host.live.live_agent import new_policy_state
from host.training.dataset import Dataset, DatasetError, new_dataset
from host.training.trainer import Trainer
from kernels.market.bars import slice_bars
from kernels.market.position import action_kind

NUM_BARS = 164_000  # bars, of which the last quarter is the test
DEFAULT_MARKETS = ("noise", "planted", "leak")  # the others are harder, and asked for by name
TRAINING_MINUTES = {"noise": 1.0, "planted": 1.5, "leak": 1.0, "planted-hard": 2.5, "close": 1.0}
MAX_EXPOSURE = 0.02  # of the bars that `noise` may be held
MIN_FRACTION = {"planted": 0.80, "leak": 0.95, "planted-hard": 0.80, "close": 0.80}  # fraction of the optimum
MAX_FRACTION = 1.02  # more is a fault of the measurement
OPTION_RANGES = {
    "half_life": Range(0.1, 10_000),
    "noise": Range(0.01, 1000),
    "cost": Range(0, 1000),
    "length": Range(1000, 100_000_000),
}
NO_COSTS = ["market.slippage=0", "market.swap_long=0", "market.swap_short=0", "market.commission=0"]


def selftest_config(settings: list[str]) -> Config:
    """The defaults in a market that costs the spread only."""
    return load_config(None, [*NO_COSTS, *settings])


class SelftestError(ValueError):
    """There is no such market, or none of these options."""

    exit_code = 2


class EvaluationSet(NamedTuple):
    """Unseen bars of a known market, and what is best on them."""

    market: SyntheticMarket  # all bars
    first: int  # decision
    test_market: SyntheticMarket  # the bars from `first` on that count
    optimal_policy: OptimalPolicy
    optimum_pips: float  # profit, pips


def new_evaluation_set(synthetic: SyntheticMarket, data: Dataset, bars: int | None = None) -> EvaluationSet:
    """The first `bars` of the test part, or all of it."""
    first, stop = data.test_first, len(synthetic.bars.time)
    stop = stop if bars is None else min(first + bars, stop)
    part = synthetic._replace(bars=slice_bars(synthetic.bars, first, stop), state=synthetic.state[first:stop])
    market = data.market_spec.market
    profit = run_optimal_policy(part, market).profit_px / PIP
    return EvaluationSet(synthetic, first, part, solve_optimal_policy(part, market), profit)


def prepare_evaluation(
    name: str, options: SyntheticOptions, config: Config, threads: int
) -> tuple[EvaluationSet, Dataset]:
    """A known market with its optimum, and its training part; raises SelftestRefused where there is none."""
    try:
        synthetic = make_market(name, options)
        data = new_dataset(synthetic.bars, synthetic.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, threads)
        return new_evaluation_set(synthetic, data), data
    except DatasetError as error:
        raise SelftestError(f"{name}: --length {options.length}: {error}") from None
    except ConfigError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise SelftestError(f"{name}: {error}") from None


def evaluate_agent(
    evaluation: EvaluationSet, trainer: Trainer, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Agent and optimum over the same unseen bars, both from flat, through the same ledger."""
    synthetic, name, bars = evaluation.market, evaluation.market.name, len(evaluation.test_market.bars.time)
    trader = new_policy_state(trainer.export_networks(), trainer.data.market_spec, trainer.acting_search_config())
    result = run_backtest(trader, synthetic.bars, synthetic.extra, evaluation.first, evaluation.first + bars, report)
    profit = float(result.log.equity[-1]) / PIP
    share = float((result.log.target != 0).mean())
    actions = trainer.network_shape.actions
    kinds = np.array([action_kind(action, actions) for action in range(actions)], np.int8)[result.log.action]
    fraction = profit / evaluation.optimum_pips if name in MIN_FRACTION and evaluation.optimum_pips > 0 else None
    return {
        "passed": passes(name, fraction, share),
        "fraction_of_optimum": fraction,
        "profit": profit,
        "optimum": evaluation.optimum_pips,
        "exposure": share,
        "closing_regret": closing_regret(evaluation.test_market, evaluation.optimal_policy, result.log.target, kinds),
        "trades": len(result.trades),
        "episodes": trainer.episodes,
        "test_bars": bars,
        "parameters": {**synthetic.options._asdict(), "spread_pips": synthetic.spread_px / PIP},
    }


def passes(name: str, fraction: float | None, exposure: float) -> bool:
    """The bar that each market sets; a fraction above the optimum fails too."""
    if fraction is None:
        return exposure < MAX_EXPOSURE
    return MIN_FRACTION[name] <= fraction <= MAX_FRACTION
