"""How much a bench measures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from host.bench.process import NETWORK_SHAPES
from host.evaluation.exam import NUM_BARS

SEARCHES = ("gumbel", "stochastic", "market")  # of `search`


class BenchError(ValueError):
    """Nothing of this name can be measured."""

    exit_code = 2


class Budget(NamedTuple):
    """How much `enhancements` spends on a job; the defaults are those of a published figure."""

    episodes: int = 2400  # of a training, unless it comes to a plateau
    threads: int = 1
    length: int = NUM_BARS  # bars of the market
    eval_interval: int = 2  # iterations between two points of a curve
    eval_bars: int = 4096  # unseen bars of a point
    iterations: int = 24  # of a training whose costs are measured
    rounds: int = 15
    decisions: int = 256
    settings: tuple[str, ...] = ()  # of every variant


@dataclass(frozen=True)
class BenchOptions:
    """How much to measure; the defaults are those of a published figure."""

    threads: int = 1
    rounds: int = 7
    searches: tuple[str, ...] = SEARCHES
    networks: tuple[str, ...] = tuple(NETWORK_SHAPES)
    roots: tuple[int, ...] = (1, 8, 64, 256)
    simulations: tuple[int, ...] = (16, 32, 50)
    thread_counts: tuple[int, ...] = (1, 2)  # of `search`
    threads_and_roots: tuple[tuple[int, int], ...] = ((1, 1), (1, 64), (8, 64))  # threads and roots of `widening`
    episodes: int = 32  # of a collection of `selfplay`
    chains: int = 100  # of `exogenous`
    windows: int = 2048  # of `features`
    length: int = 60_000  # bars of the markets of `selfplay` and `rezero`
    reanalyze_simulations: tuple[int, ...] = (4, 16, 48)  # of `rezero`
    iterations: int = 8  # that the agent of `rezero` has learnt
    batch_size: int = 256  # of `learn`
    decisions: int = 10_000  # of `act`
    bars: int = 1_300_000  # of `memory`
    read_bars: int = 3_700_000  # of `read`
    minutes: float = 1.0  # of the training in `memory`
    idle_s: float = 10.0  # of `act`
    settings: tuple[str, ...] = ()  # of the trainings in `memory` and `rezero`
    rival_minutes: float = 3.0  # of CPU time of a job of `ppo`, or of a training of `environments`
    seeds: int = 5  # of `enhancements`, `ppo` and `environments`
    only: str | None = None  # the one enhancement, environment, or agent or market of `ppo`, to measure
    jobs: int = 1  # of `enhancements` at once
    ray: str | None = None  # cluster on which the jobs of `enhancements` run: auto or host:port
    actors: int | None = None  # jobs there at once, at most
    limit_minutes: float | None = None  # after which `enhancements` begins no job
    out: Path = Path("runs/enhancements")
    budget: Budget = field(default_factory=Budget)
