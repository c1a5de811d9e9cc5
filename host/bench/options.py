"""How much a bench measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from host.bench.enhancement_run import Budget
from host.bench.process import NETWORK_SHAPES
from host.bench.search import SEARCHES


class BenchError(ValueError):
    """There is nothing of this name to measure."""

    exit_code = 2


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
    episodes: int = 32
    chains: int = 100  # of `exogenous`
    windows: int = 2048
    length: int = 60_000  # bars of the market of `selfplay`
    reanalyze_simulations: tuple[int, ...] = (4, 8, 16)  # simulations of `rezero`
    iterations: int = 8  # that the agent of `rezero` has learnt
    batch_size: int = 256
    decisions: int = 10_000  # of `act`
    bars: int = 1_300_000
    minutes: float = 1.0
    idle_s: float = 10.0
    settings: tuple[str, ...] = ()  # of the training in `memory`
    seeds: int = 5  # of `enhancements`
    only: str | None = None  # one of them
    out: Path = Path("runs/enhancements")
    budget: Budget = field(default_factory=Budget)
