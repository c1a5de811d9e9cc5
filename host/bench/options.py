"""How much a bench measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from host.bench.enhancement_run import Effort
from host.bench.process import NETS
from host.bench.search import SEARCHES


class BenchError(ValueError):
    """There is nothing of this name to measure."""

    exit_code = 2


@dataclass(frozen=True)
class Size:
    """How much to measure; the defaults are those of a published figure."""

    threads: int = 1
    rounds: int = 7
    searches: tuple[str, ...] = SEARCHES
    nets: tuple[str, ...] = tuple(NETS)
    roots: tuple[int, ...] = (1, 8, 64, 256)
    simulations: tuple[int, ...] = (16, 32, 50)
    threads_tried: tuple[int, ...] = (1, 2)  # of `search`
    forests: tuple[tuple[int, int], ...] = ((1, 1), (1, 64), (8, 64))  # threads and roots of `widening`
    sessions: int = 32
    chains: int = 100  # of `exogenous`
    windows: int = 2048
    length: int = 60_000  # bars of the market of `selfplay`
    sweeps: tuple[int, ...] = (4, 8, 16)  # simulations of `rezero`
    cycles: int = 8  # that the agent of `rezero` has learnt
    batch: int = 256
    decisions: int = 10_000  # of `act`
    bars: int = 1_300_000
    minutes: float = 1.0
    idle_s: float = 10.0
    settings: tuple[str, ...] = ()  # of the training in `memory`
    seeds: int = 5  # of `enhancements`
    only: str | None = None  # one of them
    out: Path = Path("runs/enhancements")
    effort: Effort = field(default_factory=Effort)
