"""`train`: from files of bars to a run directory with checkpoints, a model, and a report on unseen bars.

The run directory is made after every check.  A checkpoint holds everything that determines the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from host.atomic import WriteError
from host.cluster.cluster import ClusterError, open_cluster, ray_mb
from host.cluster.search import ClusterSearchPool
from host.commands.backtest import SAMPLE_CSV, log_source
from host.commands.train_report import (
    MODEL_SO_FAR,
    begin_trials,
    export_best,
    finish_training,
    print_results,
    write_model,
)
from host.commands.training_spec import (
    InstrumentData,
    TrainingSpec,
    check_origin,
    new_training_spec,
    stored_training_spec,
    training_origin,
    write_run_settings,
)
from host.config import Config, check_minutes
from host.console import ProgressCallback, compiling, log, program_command
from host.data.formats import ReadOptions, Source
from host.data.history import read_histories
from host.evaluation.backtest import new_backtest_policy, run_backtest
from host.evaluation.validation import NO_BEST, BestAgent
from host.machine import trim_heap
from host.panel import training_panel
from host.training.checkpoint import Checkpoint
from host.training.dataset import Dataset, DatasetError, new_dataset
from host.training.domain import MemoryRoom
from host.training.memory_plan import parse_memory, plan_memory
from host.training.metrics import Row, check_tensorboard, tensorboard
from host.training.run_dir import RUNS_FOLDER, RunDir, create_next_run, has_run, open_run_dir
from host.training.trainer import Budget, Trainer, run_first_iteration, train_for
from kernels.market.bars import SECOND_NS

DEFAULT_MINUTES = 2.5


class TrainingError(RuntimeError):
    """Training stopped: a number is not finite, or the memory does not suffice."""

    exit_code = 1


class TrainOptions(NamedTuple):
    """What `train` is asked for, beside files and settings."""

    out: Path | None = None  # by default a new run
    budget: Budget = Budget()  # by default DEFAULT_MINUTES
    resume: bool = False
    threads: int = 1
    tensorboard: bool = False
    patience: int | None = None  # validations without a better one that end the training
    memory: str | None = None  # to keep within, as 4GB
    ray: str | None = None  # cluster that searches: auto or host:port
    actors: int | None = None  # workers there, at most
    env: str | None = None  # an environment, which is learnt instead of bars


def train_files(files: list[Path], reading: ReadOptions, config: Config, options: TrainOptions) -> dict[str, Any]:
    """Train into a run directory; the out-of-sample report with the model's path."""
    out, budget, resume = options.out, options.budget, options.resume
    check_minutes(budget.minutes)
    check_tensorboard(options.tensorboard)
    spec = TrainingSpec(files, reading, config)
    if resume and not (out and has_run(out)):
        log(f"no run at {out or RUNS_FOLDER} to resume: starting from the beginning")
        resume = False
    spec = stored_training_spec(spec, out) if resume and out else new_training_spec(spec, out)
    run: RunDir | None = None
    with resume_hint_on_stop(lambda: resume_hint(run, options)), ExitStack() as stack:
        with compiling("getting ready") as report:
            instruments = prepare_data(spec, out if resume else None, options.threads, report)
            sources, datasets = [source for _, source in instruments], [data for data, _ in instruments]
            room = plan_room(options, spec.config, datasets)
            trainer = Trainer(datasets, spec.config, options.threads, room)
            use_cluster(trainer, options, stack)
            origin, untrained = training_origin(spec, instruments), trainer.export_networks()
            if resume and out:
                check_origin(out, origin)
            run = stack.enter_context(open_run_dir(out or create_next_run(), resume))
            trials = begin_trials(run, origin, instruments)
            best = BestAgent(trainer, options.patience)
            trainer.load_checkpoint = partial(load_checkpoint, run, best)
            restore_checkpoint(trainer, best, run) if resume else write_run_settings(run, spec, instruments)
            report(0.0, "first iteration")
            board = stack.enter_context(tensorboard(run.path / "tensorboard", trainer.episodes, options.tensorboard))
            on_iteration = iteration_recorder(trainer, best, run, origin, board)
            stack.enter_context(model_so_far_on_stop(run, trainer, sources))
            if not best.is_final:
                run_first_iteration(trainer, budget, on_iteration)
            warm_up(trainer)
        train_in_panel(trainer, best, run, budget, on_iteration)
        if best.is_final and (checkpoint := run.load_best()):
            trainer.restore(checkpoint.arrays, checkpoint.state)
        document = finish_training(run, trainer, untrained, sources, trials)
        if not best.is_final:
            export_best(run, trainer, sources)
    print_results(spec, document, run.path, instruments)
    return document


def train_in_panel(
    trainer: Trainer, best: BestAgent, run: RunDir, budget: Budget, on_iteration: Callable[[Row], None]
) -> None:
    """Train until the budget is used up, by default DEFAULT_MINUTES, or the patience; and show it."""
    budget = Budget(DEFAULT_MINUTES) if budget == Budget() else budget
    with training_panel("training", trainer.config, budget.minutes) as show:
        train_for(trainer, budget, on_iteration, lambda share, _: show(share, run.newest_row), lambda: best.is_final)
    if best.is_final:
        log(f"stopped early: {best.patience} validations in a row were not better than iteration {best.iteration}")


def iteration_recorder(
    trainer: Trainer, best: BestAgent, run: RunDir, origin: dict[str, Any], board: Callable[[Row], None]
) -> Callable[[Row], None]:
    """What is done after each iteration: validate, append its metrics, write them to `board`, save a checkpoint."""

    def record(row: Row) -> None:
        is_best, found = best.validate()
        run.append_metrics(row | found)
        board(row | found)
        arrays, state = trainer.snapshot()
        run.save_checkpoint(trainer.iteration, arrays, {**state, "origin": origin, "best": best.state()}, is_best)

    return record


def load_checkpoint(run: RunDir, best: BestAgent) -> Checkpoint | None:
    """The newest whole checkpoint, to go on from, or None; `best` is again as it was then."""
    checkpoint = run.load_checkpoint()
    best.restore(checkpoint.state["best"] if checkpoint else NO_BEST)
    return checkpoint


def restore_checkpoint(trainer: Trainer, best: BestAgent, run: RunDir) -> None:
    """Restore the newest whole checkpoint."""
    checkpoint = load_checkpoint(run, best)
    if checkpoint is None:
        log(f"{run.path} has no checkpoint yet: starting from the beginning")
    else:
        trainer.restore(checkpoint.arrays, checkpoint.state)
        log(f"resuming after iteration {trainer.iteration}, {trainer.episodes} episodes: {run.path}")


def plan_room(options: TrainOptions, config: Config, datasets: list[Dataset]) -> MemoryRoom:
    """The room of a training within so much memory, whose plan is logged; the default one without a limit."""
    if options.memory is None:
        return MemoryRoom()
    limit_mb, bars = parse_memory(options.memory), [len(data.bars.time) for data in datasets]
    of_ray = ray_mb(options.ray, limit_mb) if options.ray else 0.0
    plan = plan_memory(config, bars, options.threads, limit_mb, of_ray)
    log("\n".join([f"memory within {options.memory}:", *plan.lines()]))
    return plan.room


def use_cluster(trainer: Trainer, options: TrainOptions, stack: ExitStack) -> None:
    """Let a cluster do the searches of `trainer` until `stack` closes, if that is asked for."""
    if options.ray:
        limit_mb = parse_memory(options.memory) if options.memory else None
        cluster = stack.enter_context(open_cluster(options.ray, options.actors, limit_mb))
        trainer.pool = ClusterSearchPool(cluster, trainer.markets, options.threads)


def log_market(data: Dataset) -> None:
    """Log the costs of trading, in pips and beside the mean bar, so that a wrong scale is seen."""
    market, profile = data.market_spec.market, data.market_spec.profile
    pip = market.pip_px
    log(
        f"  bars of {market.range_px / pip:.1f} pips in the mean; spread {profile.spread_px / pip:.2f} pips = "
        f"{profile.spread_px / market.range_px:.1%} of a bar, slippage {market.slippage_px / pip:.2f} pips, "
        f"swap {market.swap_long_px / pip:.2f} long and {market.swap_short_px / pip:.2f} short a night"
    )
    if profile.symbol == "-":
        log("  no symbol: name it with --symbol; without, act refuses another instrument by its price scale only")


@contextmanager
def resume_hint_on_stop(hint: Callable[[], str]) -> Iterator[None]:
    """Where training is stopped or fails, add what is kept and how to resume to the message."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {hint()}") from None
    except SystemExit:
        log(f"stopped; {hint()}")
        raise
    except WriteError as error:
        raise WriteError(f"{error}; {hint()}") from error
    except ClusterError as error:
        raise ClusterError(f"{error}; {hint()}") from error
    except (FloatingPointError, MemoryError) as error:
        raise TrainingError(f"{error}; {hint()}") from error


@contextmanager
def model_so_far_on_stop(run: RunDir, trainer: Trainer, sources: Sequence[Source]) -> Iterator[None]:
    """Where training is stopped, write the model of the last whole iteration; a second signal ends that at once."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        try:
            if (checkpoint := run.load_checkpoint()) is not None:
                trainer.restore(checkpoint.arrays, checkpoint.state)
                write_model(run.path / MODEL_SO_FAR, trainer, trainer.export_networks(), sources)
        except Exception as error:  # whatever it is, the run was stopped, and its checkpoint is whole
            log(f"no model so far: {error}")
        raise


def resume_hint(run: RunDir | None, options: TrainOptions) -> str:
    """What is kept of a run, and the command that resumes it."""
    if run is None or not has_run(run.path):
        return "no run was begun: give the same command again"
    limits = {**options.budget._asdict(), "early-stopping": options.patience}
    limits |= {"ray": options.ray, "actors": options.actors, "env": options.env}
    flags = [word for name, value in limits.items() if value is not None for word in (f"--{name}", value)]
    again = program_command("train", "--resume", "--out", run.path, *flags)
    if run.saved_step is None:
        return f"no iteration was finished, {run.path} keeps the settings; begin again: {again}"
    model = run.path / MODEL_SO_FAR
    so_far = f", {model} is the model so far" if model.exists() else ""
    return f"{run.path} keeps all up to iteration {run.saved_step}{so_far}; go on: {again}"


def prepare_data(spec: TrainingSpec, run: Path | None, threads: int, report: ProgressCallback) -> list[InstrumentData]:
    """Read the bars, which must be those of a resumed `run`; split them and fit everything that is fitted."""
    paths = spec.files or [SAMPLE_CSV]
    report(0.0, f"reading {', '.join(map(str, paths))}")
    histories = read_histories(paths, spec.reading)
    trim_heap()
    if run is not None:
        check_origin(run, {"data": {source.instrument.symbol: source.sha256 for _, source in histories}})
    report(0.0, "features")
    instruments = list[InstrumentData]()
    for bars, source in histories:
        log_source(source)
        extra, interval_ns = np.zeros((len(bars.time), 0), np.float32), source.interval_s * SECOND_NS
        try:
            data = new_dataset(bars, extra, spec.config, source.instrument, interval_ns, threads)
        except DatasetError as error:
            raise DatasetError(f"{source.path}: {error}" if len(histories) > 1 else str(error)) from None
        log_market(data)
        log_split(data)
        instruments.append(InstrumentData(data, source))
    return instruments


def log_split(data: Dataset) -> None:
    """Log the number of bars on which an episode can start, and why the others cannot."""
    rejects = ", ".join(f"{count} {reason}" for reason, count in data.rejects.items() if count) or "none"
    log(
        f"training part: {data.train_stop} bars, {len(data.starts)} episode starts (rejected: {rejects}); "
        f"validation part: {data.validation_stop - data.train_stop} bars; "
        f"test part: from bar {data.test_first}, {len(data.bars.time) - data.test_first} bars"
    )


def warm_up(trainer: Trainer) -> None:
    """Compile the kernels of acting: make one decision as the trained agent does."""
    data = trainer.markets[0].data
    policy = new_backtest_policy(trainer.export_networks(), data.market_spec, trainer.acting_search_config())
    run_backtest(policy, data.bars, data.extra_features, data.test_first, data.test_first + 2)
