"""`selftest`: does the agent find what is there and leave alone what is worthless, on synthetic markets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from host.config import Config, ConfigError, Range, load_config
from host.console import Report, silent
from host.evaluation.backtest import trade_bars
from host.evaluation.optimum import Optimum, closing_regret, find_optimum, play_optimum
from host.evaluation.synthetic import INTERVAL_NS, MADE, PIP, Options, Synthetic, make_market
from host.live.live_agent import new_trader
from host.training.dataset import Dataset, DatasetError, new_dataset
from host.training.trainer import Trainer
from kernels.market.bars import take
from kernels.market.position import kind_of

LENGTH = 164_000  # bars, of which the last quarter is the test
DEFAULT = ("noise", "planted", "leak")  # the others are harder, and asked for by name
MINUTES = {"noise": 1.0, "planted": 1.5, "leak": 1.0, "planted-hard": 2.5, "close": 1.0}
MOST_SHARE = 0.02  # of the bars that `noise` may be held
LEAST = {"planted": 0.80, "leak": 0.95, "planted-hard": 0.80, "close": 0.80}  # fraction of the optimum
MOST = 1.02  # more is a fault of the measurement
LIMITS = {
    "half_life": Range(0.1, 10_000),
    "noise": Range(0.01, 1000),
    "cost": Range(0, 1000),
    "length": Range(1000, 100_000_000),
}
FREE = ["market.slippage=0", "market.swap_long=0", "market.swap_short=0", "market.commission=0"]


def selftest_config(settings: list[str]) -> Config:
    """The defaults in a market that costs the spread only."""
    return load_config(None, [*FREE, *settings])


class SelftestRefused(ValueError):  # noqa: N818
    """There is no such market, or none of these options."""

    exit_code = 2


class Exam(NamedTuple):
    """Unseen bars of a known market, and what is best on them."""

    market: Synthetic  # all bars
    first: int  # decision
    part: Synthetic  # the bars from `first` on that count
    best: Optimum
    optimum: float  # profit, pips


def new_exam(synthetic: Synthetic, data: Dataset, bars: int | None = None) -> Exam:
    """The first `bars` of the test part, or all of it."""
    first, stop = data.test_first, len(synthetic.bars.time)
    stop = stop if bars is None else min(first + bars, stop)
    part = synthetic._replace(bars=take(synthetic.bars, first, stop), state=synthetic.state[first:stop])
    market = data.setting.market
    profit = play_optimum(part, market).profit_px / PIP
    return Exam(synthetic, first, part, find_optimum(part, market), profit)


def set_exam(name: str, options: Options, config: Config, threads: int) -> tuple[Exam, Dataset]:
    """A known market with its optimum, and its training part; raises SelftestRefused where there is none."""
    try:
        synthetic = make_market(name, options)
        data = new_dataset(synthetic.bars, synthetic.extra, config, MADE, INTERVAL_NS, threads)
        return new_exam(synthetic, data), data
    except DatasetError as error:
        raise SelftestRefused(f"{name}: --length {options.length}: {error}") from None
    except ConfigError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise SelftestRefused(f"{name}: {error}") from None


def measure(exam: Exam, trainer: Trainer, report: Report = silent) -> dict[str, Any]:
    """Agent and optimum over the same unseen bars, both from flat, through the same ledger."""
    synthetic, name, bars = exam.market, exam.market.name, len(exam.part.bars.time)
    trader = new_trader(trainer.agent(), trainer.data.setting, trainer.acting_search())
    result = trade_bars(trader, synthetic.bars, synthetic.extra, exam.first, exam.first + bars, report)
    profit = float(result.log.equity[-1]) / PIP
    share = float((result.log.target != 0).mean())
    actions = trainer.sizes.actions
    kinds = np.array([kind_of(action, actions) for action in range(actions)], np.int8)[result.log.action]
    fraction = profit / exam.optimum if name in LEAST and exam.optimum > 0 else None
    return {
        "passed": passes(name, fraction, share),
        "fraction_of_optimum": fraction,
        "profit": profit,
        "optimum": exam.optimum,
        "share_in_market": share,
        "closing_regret": closing_regret(exam.part, exam.best, result.log.target, kinds),
        "trades": len(result.trades),
        "sessions": trainer.sessions,
        "test_bars": bars,
        "parameters": {**synthetic.options._asdict(), "spread_pips": synthetic.spread_px / PIP},
    }


def passes(name: str, fraction: float | None, share: float) -> bool:
    """The bar that each market sets; a fraction above the optimum fails too."""
    if fraction is None:
        return share < MOST_SHARE
    return LEAST[name] <= fraction <= MOST
