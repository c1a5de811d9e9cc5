"""The examination of `selftest`: an agent beside the optimum on unseen bars of a synthetic market."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from host.config import Config, ConfigError, Range, load_config
from host.console import ProgressCallback, no_progress
from host.evaluation.backtest import BacktestResult, new_backtest_policy, run_backtest
from host.evaluation.certainty_equivalent import (
    certainty_equivalent,
    follow_policy,
    has_sized_optimum,
    solve_sized_policy,
    target_equity,
)
from host.evaluation.optimum import OptimalPolicy, closing_regret, run_optimal_policy, solve_optimal_policy
from host.evaluation.synthetic import (
    INTERVAL_NS,
    MARKETS,
    PIP,
    SYNTHETIC_INSTRUMENT,
    Floats,
    SyntheticMarket,
    SyntheticOptions,
    make_market,
)
from host.training.dataset import Dataset, DatasetError, new_dataset
from host.training.trainer import Trainer
from kernels.market.bars import slice_bars
from kernels.market.ledger import Market
from kernels.market.position import action_kind

NUM_BARS = 164_000  # the last quarter of them is the test
DEFAULT_MARKETS = ("noise", "planted", "leak")  # the others are harder: a user names them
NUM_TEST_BARS = 41_000  # of a market with another number of training bars
TRAINING_MINUTES = dict.fromkeys(MARKETS, 0.5) | {"planted-hard": 1.0}
MAX_EXPOSURE = 0.02  # where the optimum is to stay flat
MIN_FRACTION = dict.fromkeys(MARKETS, 0.80) | {"leak": 0.95}  # fraction of the optimum
MAX_FRACTION = 1.02  # a larger fraction is a fault of the measurement
OPTION_RANGES = {
    "half_life": Range(0.1, 10_000),
    "noise": Range(0.01, 1000),
    "cost": Range(0, 1000),
    "length": Range(1000, 100_000_000),
}
NO_COSTS = ["market.slippage=0", "market.swap_long=0", "market.swap_short=0", "market.commission=0"]


def selftest_config(settings: list[str], name: str = "noise") -> Config:
    """The default configuration with those of the market `name` and `settings`; the only cost is the spread."""
    return load_config(None, [*NO_COSTS, *MARKETS[name].settings, *settings])


class SelftestError(ValueError):
    """A synthetic market that does not exist, or options that it cannot have."""

    exit_code = 2


class EvaluationSet(NamedTuple):
    """Unseen bars of a synthetic market, and the best policy on them."""

    market: SyntheticMarket  # all bars
    first: int  # bar of the first decision
    test_market: SyntheticMarket  # the unseen bars [T], from `first` on
    optimal_policy: OptimalPolicy
    optimum_pips: float  # profit of the optimal policy, or of the sized one under a risk term
    optimum_equity: Floats  # [T - 1] pips
    optimum_certainty: float | None  # certainty equivalent of the sized policy, ranges a bar; None: no risk term
    rules: Market  # of the optimum, by which a certainty equivalent is judged
    instrument: int = 0  # its number in the training


def new_evaluation_set(
    synthetic: SyntheticMarket, data: Dataset, bars: int | None = None, instrument: int = 0
) -> EvaluationSet:
    """The first `bars` bars of the test part, or all of them."""
    first, stop = data.test_first, len(synthetic.bars.time)
    stop = stop if bars is None else min(first + bars, stop)
    part = synthetic._replace(bars=slice_bars(synthetic.bars, first, stop), state=synthetic.state[first:stop])
    market = data.market_spec.market
    certainty = None
    if has_sized_optimum(part, market):
        target = follow_policy(part, solve_sized_policy(part, market))
        certainty, equity = certainty_equivalent(part, market, target), target_equity(part, market, target) / PIP
    else:
        equity = np.cumsum(run_optimal_policy(part, market).rewards) * market.range_px / PIP
    best = solve_optimal_policy(part, market), float(equity[-1]), equity, certainty
    return EvaluationSet(synthetic, first, part, *best, market, instrument)


def prepare_evaluation(
    name: str, options: SyntheticOptions, config: Config, threads: int, instrument: int = 0
) -> tuple[EvaluationSet, Dataset]:
    """The market `name` with its optimum, and its data set; SelftestError where the market cannot be made."""
    try:
        synthetic = make_market(name, options._replace(train_fraction=config.train.train_fraction))
        data = new_dataset(synthetic.bars, synthetic.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, threads)
        return new_evaluation_set(synthetic, data, instrument=instrument), data
    except DatasetError as error:
        raise SelftestError(f"{name}: --length {options.length}: {error}") from None
    except ConfigError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise SelftestError(f"{name}: {error}") from None


def evaluate_agent(
    evaluation: EvaluationSet, trainer: Trainer, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """The figures of the agent beside those of the optimum, over the same unseen bars."""
    return compare_with_optimum(evaluation, trainer, trade_unseen_bars(evaluation, trainer, report))


def trade_unseen_bars(
    evaluation: EvaluationSet, trainer: Trainer, report: ProgressCallback = no_progress
) -> BacktestResult:
    """The agent's decisions over the unseen bars, from flat, booked by the ledger that books the optimum's."""
    synthetic, stop = evaluation.market, evaluation.first + len(evaluation.test_market.bars.time)
    spec = trainer.markets[evaluation.instrument].data.market_spec
    policy = new_backtest_policy(trainer.export_networks(), spec, trainer.acting_search_config())
    return run_backtest(policy, synthetic.bars, synthetic.extra, evaluation.first, stop, report)


def equity_curves(evaluation: EvaluationSet, result: BacktestResult) -> dict[str, Floats]:
    """Equity [T - 1] of the agent and of the optimum at the closes of the unseen bars, in pips."""
    return {"agent": result.log.equity / PIP, "optimum": evaluation.optimum_equity}


def compare_with_optimum(evaluation: EvaluationSet, trainer: Trainer, result: BacktestResult) -> dict[str, Any]:
    """The document of one market of `selftest --json`."""
    synthetic, name = evaluation.market, evaluation.market.name
    profit = float(result.log.equity[-1]) / PIP
    exposure = float((result.log.target != 0).mean())
    actions = trainer.network_shape.actions
    kinds = np.array([action_kind(action, actions) for action in range(actions)], np.int8)[result.log.action]
    fraction, regret = certainty_fraction(evaluation, result.log.target), None
    if fraction is None:
        regret = closing_regret(evaluation.test_market, evaluation.optimal_policy, result.log.target, kinds)
        fraction = profit / evaluation.optimum_pips if evaluation.optimum_pips > 0 else None
    return {
        "passed": passes(name, fraction, exposure),
        "fraction_of_optimum": fraction,
        "profit": profit,
        "optimum": evaluation.optimum_pips,
        "exposure": exposure,
        "closing_regret": regret,
        "trades": len(result.trades),
        "episodes": trainer.episodes,
        "test_bars": len(evaluation.test_market.bars.time),
        "parameters": {**synthetic.options._asdict(), "spread_pips": synthetic.spread_px / PIP},
    }


def certainty_fraction(evaluation: EvaluationSet, target: Floats) -> float | None:
    """Certainty equivalent of the positions `target` [T - 1] over the optimum's; None without a risk term."""
    if not evaluation.optimum_certainty:
        return None
    return certainty_equivalent(evaluation.test_market, evaluation.rules, target) / evaluation.optimum_certainty


def passes(name: str, fraction: float | None, exposure: float) -> bool:
    """Whether an agent passes on the market `name`: a fraction above the optimum's fails too.

    `fraction` is None where the optimum is to stay flat: there the exposure decides.
    """
    if fraction is None:
        return exposure < MAX_EXPOSURE
    return MIN_FRACTION[name] <= fraction <= MAX_FRACTION
