"""The units of `bench enhancements`: what one configuration costs, and how soon it learns a known market.

Each runs in a process of its own, which its parent watches.  Figures of one thread are CPU time.
"""

from __future__ import annotations

import hashlib
import json
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from host.artifact.manifest import save_agent
from host.bench.process import Row, Work, clock, fill, medians
from host.bench.search import networks_of, ready
from host.config import Config
from host.evaluation.backtest import trade_bars
from host.evaluation.exam import LENGTH, measure, new_exam, selftest_config
from host.evaluation.synthetic import INTERVAL_NS, MADE, Options, Synthetic, make_market
from host.live.live_agent import new_trader
from host.machine import memory_mb
from host.training.dataset import new_dataset
from host.training.run_dir import KEEP, open_run
from host.training.trainer import Trainer
from kernels.jit import program_digest
from kernels.search.planner import TALLY, Planner, plan
from kernels.search.progressive_widening import tree_bytes as wide_bytes

MARKETS = ("planted", "planted-hard", "close")
COST, LEARN = "cost", "learn"  # kinds of units
ENOUGH = 0.9  # of the optimum
REGRET = 0.1  # of closing, in `close`, which must also earn HALF: who enters nothing has nothing to close
HALF = 0.5
SAMPLE_EVERY_S = 0.1  # of the memory of the process
HOST = Path(__file__).parents[1]
TABLE = "enhancements.py"  # changes no figure


class Effort(NamedTuple):
    """How much is spent on a unit; the defaults are those of a published figure."""

    minutes: float = 2.0  # of training
    threads: int = 1
    length: int = LENGTH  # bars of the market
    every: int = 2  # cycles between two looks at unseen bars
    glance: int = 4096  # unseen bars of a look; who does well there is measured on all
    cycles: int = 4  # of the training whose weights are compared
    rounds: int = 5
    decisions: int = 256
    settings: tuple[str, ...] = ()  # of every variant


class Unit(NamedTuple):
    """One process and one file."""

    kind: str  # COST or LEARN
    market: str
    seed: int
    settings: tuple[str, ...]
    effort: Effort


Beat = Callable[[float], object]  # told the share of the budget that is used up


def config_of(unit: Unit) -> Config:
    """The resolved configuration; raises ConfigError on a setting that does not exist."""
    return selftest_config([*unit.effort.settings, *unit.settings, f"train.seed={unit.seed}"])


def key_of(unit: Unit) -> str:
    """Name of the unit's file: equal for settings that resolve to the same configuration."""
    what = [unit.kind, unit.market, config_of(unit).as_dict(), unit.effort, version()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]


def version() -> str:
    """Hash of the text of the whole program but for the table of enhancements."""
    texts = hashlib.sha256(program_digest().encode())
    for path in sorted(HOST.rglob("*.py")):
        if path.name != TABLE:
            texts.update(path.relative_to(HOST).as_posix().encode() + path.read_bytes())
    return texts.hexdigest()[:16]


def new_trainer(unit: Unit) -> tuple[Trainer, Synthetic]:
    """A trainer at its beginning, and the market."""
    config, effort = config_of(unit), unit.effort
    market = make_market(unit.market, Options(length=effort.length, seed=unit.seed))
    data = new_dataset(market.bars, market.extra, config, MADE, INTERVAL_NS, effort.threads)
    return Trainer(data, config, effort.threads), market


def cost(unit: Unit, beat: Beat) -> Row:
    """What a training of a few cycles costs, and a decision of its agent."""
    (trainer, _), effort = new_trainer(unit), unit.effort
    for cycle in range(effort.cycles):
        beat(cycle / effort.cycles)
        trainer.run_cycle()
    digest = hashlib.sha256(trainer.learner.params.tobytes()).hexdigest()
    with threadpool_limits(1, "blas"):
        (seconds,) = medians([trainer.learn], effort.rounds, clock(effort.threads))
    return {
        **decision(trainer, effort),
        "ms_per_step": seconds * 1e3 / trainer.config.train.steps,
        "parameters_mb": trainer.learner.params.nbytes / 2**20,
        "storage_mb": storage_mb(trainer),
        "weights_sha256": digest,
    }


def decision(trainer: Trainer, effort: Effort) -> Row:
    """A search alone and among those of a block, with and without its network calls."""
    t, data = trainer.config.train, trainer.data
    agent = trainer.agent()
    trader = new_trader(agent, data.setting, trainer.acting_search())
    trade_bars(trader, data.bars, data.extra, data.test_first, data.test_first + 1 + effort.decisions)
    block = agent.planner(t.block, trainer.search_config(t.simulations))
    fill((block.model.root.x, block.noise, block.outlook.move), t.seed)
    tally = dict(zip(TALLY, trader.planner.tally.tolist(), strict=True))
    one, selection = search_us(trader.planner, effort.rounds)
    each, selection_each = search_us(block, effort.rounds)
    return {
        "tree_kb": tree_bytes(trader.planner) / 1024,
        "us_per_decision": one,
        "selection_us": selection,
        "us_per_decision_block": each,
        "selection_us_block": selection_each,
        "rows_per_decision": tally["rows"] / tally["searches"],
    }


def search_us(planner: Planner, rounds: int) -> tuple[float, float]:
    """Microseconds of CPU time a root: the search, and what of it is not the networks."""
    works: list[Work] = [ready(plan, planner), networks_of(planner)]
    whole, networks = medians(works, rounds, time.thread_time)
    us = 1e6 / len(planner.action)
    return whole * us, (whole - networks) * us


def tree_bytes(planner: Planner) -> int:
    """Bytes of one tree; they are all there from the start."""
    if planner.wide is not None:
        return wide_bytes(planner.wide)
    trees = [tree for tree in (planner.tree, planner.market) if tree is not None]
    arrays = [array for tree in trees for array in tree if isinstance(array, np.ndarray)]
    return sum(array.nbytes for array in arrays) // len(planner.action)


def storage_mb(trainer: Trainer) -> float:
    """What `train` would leave on the disk: the checkpoints that it keeps and the model."""
    with tempfile.TemporaryDirectory() as folder:
        with open_run(Path(folder), resume=False) as run:
            for step in range(KEEP):
                run.save_checkpoint(step, *trainer.snapshot())
        setting, search = trainer.data.setting, trainer.acting_search()
        about = {"span": ["", ""], "sha256": ""}
        save_agent(run.path / "model.swt", trainer.agent(), setting, search, trainer.config.as_dict(), about)
        return sum(path.stat().st_size for path in Path(folder).rglob("*")) / 2**20


def learn(unit: Unit, beat: Beat) -> Row:
    """Train until the market is learnt or the budget is used up; looking at unseen bars costs no time."""
    (trainer, market), effort = new_trainer(unit), unit.effort
    glance, whole = new_exam(market, trainer.data, effort.glance), new_exam(market, trainer.data)
    now, spent, swept, reused = clock(effort.threads), 0.0, 0, 0
    found: Row | None = None  # on all unseen bars
    while spent < 60 * effort.minutes and not (found and is_learnt(unit.market, found)):
        beat(spent / (60 * effort.minutes))
        begin = now()
        row = trainer.run_cycle()
        spent += now() - begin
        swept, reused = swept + row["swept"], reused + row["reused"]
        looks = trainer.cycle % effort.every == 0 and is_learnt(unit.market, measure(glance, trainer))
        found = measure(whole, trainer) if looks else None
    beat(1.0)
    found = found or measure(whole, trainer)
    reached = is_learnt(unit.market, found)
    return {
        "sessions_to_90": trainer.sessions if reached else None,
        "seconds_to_90": spent if reached else None,
        "ms_per_session": spent * 1e3 / trainer.sessions,
        "reuse_share": reused / swept if swept else 0.0,
        **{name: found[name] for name in ("fraction_of_optimum", "closing_regret", "sessions", "trades")},
    }


def is_learnt(market: str, found: Row) -> bool:
    """Whether a measurement says 90 % of the optimum, or of `close` that positions are closed in time."""
    fraction, regret = found["fraction_of_optimum"], found["closing_regret"]
    if market == "close":
        return regret is not None and regret < REGRET and fraction >= HALF
    return bool(fraction >= ENOUGH)


KINDS = {COST: cost, LEARN: learn}


def answer(pipe: Connection, unit: Unit) -> None:
    """All of a unit's process: it says how far it is, and at last what it found; nobody to tell ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    pipe.send(KINDS[unit.kind](unit, pipe.send))


def measured(unit: Unit, beat: Beat) -> Row:
    """A unit in a fresh process, with its peak memory while it trains."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(theirs, unit), daemon=True)
    process.start()
    theirs.close()
    said: Any = None
    peaks = {"rss_anon_mb": 0.0, "rss_mb": 0.0}
    try:
        while not isinstance(said, dict):
            if ours.poll(SAMPLE_EVERY_S):
                said = ours.recv()
            if isinstance(said, float) and said < 1:
                beat(said)
                for name, field in (("rss_anon_mb", "RssAnon"), ("rss_mb", "VmRSS")):
                    peaks[name] = max(peaks[name], memory_mb(field, process.pid or 0))
    except EOFError:
        process.join()
        raise RuntimeError(f"{unit}: its process ended with {process.exitcode}") from None
    process.join()
    return {**said, **peaks}
