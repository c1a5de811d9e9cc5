"""`walkforward`: train anew for every fold and seed, trade what follows, and judge all of it together.

The same command goes on with a folder: a job whose result is whole is not run again.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

from host import VERSION
from host.analysis.record import DailyReturns, TradingRecord, daily_returns, pool_returns
from host.analysis.report import ReportContext, build_report, join_records, write_report
from host.analysis.significance import judge_pool
from host.analysis.statistics import sharpe
from host.analysis.summary import EVIDENCE_Z, explain_opportunity, print_verdict
from host.atomic import add_path_to_errors, atomic_write, check_writable, create_file, locked
from host.cluster.cluster import ClusterError, open_cluster
from host.cluster.jobs import ClusterJobs
from host.commands.backtest import SAMPLE_CSV, log_source, sample_reading
from host.commands.train_report import model_origin
from host.config import Config, check_minutes, flatten
from host.console import log, progress_panel
from host.data.bar_cache import bars_key, bars_matrix, load_bars, save_bars
from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from host.data.history import expand_paths
from host.data.parsing import format_utc
from host.processes import ReportProgress, Row, run_at_once
from host.stop import hint_on_stop
from host.training.run_dir import RunError
from host.walkforward.folds import HOLDOUT, Fold, check_folds, new_folds
from host.walkforward.trials import (
    BEGIN,
    END,
    Span,
    Trials,
    append_trial,
    is_open,
    ledger_of,
    open_holdout,
    span_of,
    trials_of,
)
from host.walkforward.walkforward import (
    BOOKED,
    RIVALS,
    FoldJob,
    JobRunner,
    Series,
    fold_records,
    keep_files,
    locked_job,
    median_seed,
    most_hopeful,
    read_result,
    run_alone,
    run_fold,
    train_fold_elsewhere,
)
from kernels.jit import program_digest
from kernels.market.bars import SECOND_NS, Bars, slice_bars
from kernels.market.statistics import compute_statistics

SCHEMA = 1  # of walkforward.json
DEFAULT_MINUTES = 20.0  # of all trainings together


class WalkOptions(NamedTuple):
    """What `walkforward` is asked for, beside files and settings."""

    out: Path
    folds: int = 6
    seeds: int = 3
    minutes: float | None = None  # of all trainings together
    episodes: int | None = None  # of each training
    rolling: bool = False
    open_holdout: bool = False
    processes: int = 1
    ray: str | None = None  # cluster on which the trainings run: auto or host:port
    actors: int | None = None  # trainings at once there, at most
    task: int | None = None  # of so many, from 0, that share the jobs and the folder; none of them judges
    tasks: int = 1


class Walk(NamedTuple):
    """A market of a walk-forward."""

    series: Series
    folds: list[Fold]  # the last is the holdout

    def tests(self, holdout: bool) -> list[Fold]:
        """The folds, or the holdout."""
        return self.folds[-1:] if holdout else self.folds[:-1]

    def span(self, holdout: bool) -> Span:
        """The time that the tests take, of the folds or of the holdout."""
        tests = self.tests(holdout)
        symbol, sha256 = self.series.instrument.symbol, self.series.origin["sha256"]
        return span_of(symbol, sha256, self.series.bars.time, tests[0].test_first, tests[-1].test_stop)


@hint_on_stop(ClusterError)
def walkforward_csv(
    files: list[Path], reading: ReadOptions, config: Config, options: WalkOptions, runner: JobRunner = run_fold
) -> Row:
    """The document of `walkforward --json`, written to walkforward.json in `options.out` too; of a task, how far it is.

    A task runs its jobs of the folds only, beside the other tasks, which may be on other machines.
    """
    check_minutes(options.minutes)
    check_writable(options.out, folder=True)
    walks = read_walks(files, reading, config, options)
    with ExitStack() as stack, add_path_to_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        if options.task is None:
            stack.enter_context(locked(options.out / "lock"))
        nodes: ClusterJobs | None = None
        if options.ray:
            nodes = ClusterJobs(stack.enter_context(open_cluster(options.ray, options.actors)), train_fold_elsewhere)
            options, runner = options._replace(processes=nodes.room()), cluster_runner(nodes)
        settings = begin_or_go_on(walks, reading, config, options)
        jobs = run_jobs(walks, settings, config, options, False, runner, nodes)
        if options.task is not None:
            ended = sum(job.result.exists() for job in jobs.values())
            log(f"{ended} of {len(jobs)} trainings are done; the same command without --task and --tasks judges them")
            return {"schema": SCHEMA, "trial": settings["trial"], "trainings": len(jobs), "ended": ended}
        if options.open_holdout or is_open(ledger_of(options.out), settings["trial"]):
            for walk in walks:
                open_holdout(ledger_of(options.out), settings["trial"], walk.span(True), run=str(options.out.resolve()))
            jobs |= run_jobs(walks, settings, config, options, True, runner, nodes)
        document = new_document(walks, [*jobs.values()], settings, options)
        with atomic_write(options.out / "walkforward.json") as file:
            file.write(json.dumps(document, indent=1, allow_nan=False).encode())
    return document


def cluster_runner(jobs: ClusterJobs) -> JobRunner:
    """Runs jobs on nodes.  These get the bars of a market once, without those of a holdout that is closed."""
    given = dict[tuple[str, bool], tuple[str, Any]]()

    def run(job: FoldJob, report: ReportProgress) -> Row:
        name = str(job.bars), job.fold.name == HOLDOUT
        with lock:
            if name not in given:
                bars = load_bars(job.bars)
                given[name] = bars_key(bars), jobs.cluster.ray.put(bars_matrix(bars))
        return keep_files(job, jobs.run(job, report, *given[name]))

    lock = threading.Lock()
    return run


def read_walks(files: list[Path], reading: ReadOptions, config: Config, options: WalkOptions) -> list[Walk]:
    """Read every file, none for the bundled bars, and split it; DatasetError where a fold has too few bars."""
    walks, names = list[Walk](), set[str]()
    for path in expand_paths(files) or [SAMPLE_CSV]:
        bars, source = read_bars(path, reading if files else sample_reading(reading))
        log_source(source)
        name = path.stem
        while name in names:
            name = f"{name}-{len(names) + 1}"
        names.add(name)
        interval_ns, embargo = source.interval_s * SECOND_NS, config.market.episode_length
        folds = new_folds(len(bars.time), options.folds, embargo, options.rolling)
        check_folds(folds, bars.time, config, source.instrument, interval_ns)
        series = Series(name, bars, source.instrument, interval_ns, model_origin(source))
        walks.append(Walk(series, folds))
        held = folds[-1]
        log(
            f"{name}: {options.folds} tests from {format_utc(bars.time[folds[0].test_first])}; holdout: the last "
            f"{held.test_stop - held.test_first} bars, from {format_utc(bars.time[held.test_first])}"
        )
    return walks


def begin_or_go_on(walks: list[Walk], reading: ReadOptions, config: Config, options: WalkOptions) -> Row:
    """The settings of the run in `options.out`, which begins if there is none; RunError where it has others.

    Of several tasks one begins it, and notes the trial.
    """
    path, asked = options.out / "settings.json", options._asdict()
    jobs = len(walks) * options.folds * options.seeds
    minutes = options.minutes or (None if options.episodes else DEFAULT_MINUTES)
    origin: Row = {
        **{name: asked[name] for name in ("folds", "seeds", "minutes", "episodes", "rolling")},
        "files": {walk.series.name: walk.series.origin["sha256"] for walk in walks},
        "reading": reading.explicit(),
        "config": config.as_dict(),
        "program": program_digest(),
    }
    origin = json.loads(json.dumps(origin))
    rounds = math.ceil(jobs / (options.processes * options.tasks))
    ours = {"trial": uuid.uuid4().hex, "training_minutes": minutes and minutes / rounds, "origin": origin}
    with suppress(FileExistsError):
        if not path.exists():
            create_file(path, json.dumps(ours, indent=1).encode())
    settings: Row = json.loads(path.read_text(encoding="utf-8"))
    then, now = (dict(flatten(table)) for table in (settings["origin"], origin))
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            raise RunError(
                f"{options.out}: {name}: the run has {then.get(name)}, asked for is {now.get(name)}; it goes on as "
                "it began: give the same command, or another --out"
            )
    file, trial = ledger_of(options.out), settings["trial"]
    for walk in walks if options.task is None or trial == ours["trial"] else []:
        append_trial(file, BEGIN, trial, walk.span(False), run=str(options.out.resolve()))
    return settings


def run_jobs(
    walks: list[Walk],
    settings: Row,
    config: Config,
    options: WalkOptions,
    holdout: bool,
    runner: JobRunner,
    nodes: ClusterJobs | None,
) -> dict[str, FoldJob]:
    """Run the jobs of the folds, or of the holdout, that are this task's and have no result; all of them by name."""
    jobs = {name: job for walk in walks for name, job in walk_jobs(walk, settings, config, options, holdout).items()}
    mine = [*jobs.items()][options.task or 0 :: options.tasks]
    left = {name: job for name, job in mine if not job.result.exists()}
    for job in left.values():  # another process that runs one is met before any begins
        with locked_job(job):
            pass
    if not left:
        return jobs
    log(f"{len(left)} trainings, {options.processes} at once" + (f", of {len(jobs)}" if len(left) < len(jobs) else ""))
    with TemporaryDirectory(prefix="swt-", ignore_cleanup_errors=True) as folder, progress_panel("walkforward") as show:
        files = {name: Path(folder, f"{name}.npy") for name in {job.series.name for job in left.values()}}
        for walk in walks:  # the bars of the holdout are not in the file before it is opened
            if walk.series.name in files:
                stop = walk.tests(holdout)[-1].test_stop + 1
                save_bars(files[walk.series.name], slice_bars(walk.series.bars, 0, stop))
        left = {name: job._replace(bars=files[job.series.name]) for name, job in left.items()}
        room = nodes.room if nodes else lambda: options.processes
        run_at_once(left, room, partial(run_alone, runner), lambda *_: None, show)
    return jobs


def walk_jobs(walk: Walk, settings: Row, config: Config, options: WalkOptions, holdout: bool) -> dict[str, FoldJob]:
    """The jobs of a market by name, a fold after the other."""
    series, folder, jobs = walk.series, options.out / walk.series.name, dict[str, FoldJob]()
    no_bars = series._replace(bars=slice_bars(series.bars, 0, 0))
    for fold, number in product(walk.tests(holdout), range(options.seeds)):
        seed = config.train.seed + number
        own, name = replace(config, train=replace(config.train, seed=seed)), f"{fold.name}-{seed}"
        budget = settings["training_minutes"], options.episodes
        jobs[f"{series.name} {name}"] = FoldJob(folder / name, no_bars, fold, own, *budget)
    return jobs


def new_document(walks: list[Walk], jobs: list[FoldJob], settings: Row, options: WalkOptions) -> Row:
    """What walkforward.json holds: every training, and by market what the tests of the median seed say together."""
    markets, pooled, counts = list[Row](), list[DailyReturns](), list[Trials]()
    for walk in walks:
        own = [job for job in jobs if job.series.name == walk.series.name]
        tests, held = ([job for job in own if (job.fold.name == HOLDOUT) == is_held] for is_held in (False, True))
        records, folder = seed_records(tests, walk.series.bars), options.out / walk.series.name
        joined = {seed: join_records(parts) for seed, parts in records.items()}
        chosen = median_seed({seed: float(record.equity[-1]) for seed, record in joined.items()})
        ratio, span, file = sharpe(daily_returns(joined[chosen])[1]), walk.span(False), ledger_of(options.out)
        append_trial(file, END, settings["trial"], span, sharpe=ratio)
        counts.append(trials_of(file, span))
        pooled.append(daily_returns(joined[chosen]))
        held_trials = trials_of(file, walk.span(True))
        source = {"title": f"{walk.series.name}, walk-forward, seed {chosen}", "version": VERSION}
        markets.append(
            {
                "name": walk.series.name,
                "symbol": walk.series.instrument.symbol,
                "sha256": walk.series.origin["sha256"],
                "runs": [{**read_result(job), "folder": job.folder.relative_to(options.out).as_posix()} for job in own],
                "seeds": [{"seed": seed, **booked(record)} for seed, record in joined.items()],
                "median_seed": chosen,
                "joined": report_test(folder, of_seed(tests, chosen), walk, counts[-1], source),
                "holdout": report_test(folder / HOLDOUT, of_seed(held, chosen), walk, held_trials, source)
                if held
                else None,
            }
        )
    most = max(counts, key=lambda trials: trials.number)
    pool = judge_pool(*pool_returns(pooled), most.number, most.sharpe_variance()) if len(walks) > 1 else None
    origin = settings["origin"]
    about = {name: origin[name] for name in ("folds", "seeds", "rolling", "minutes", "episodes")}
    return {"schema": SCHEMA, "trial": settings["trial"], **about, "markets": markets, "pool": pool}


def seed_records(jobs: list[FoldJob], bars: Bars) -> dict[int, list[TradingRecord]]:
    """For each seed the tests of its jobs."""
    seeds = dict.fromkeys(job.config.train.seed for job in jobs)
    return {seed: fold_records(of_seed(jobs, seed), bars) for seed in seeds}


def of_seed(jobs: list[FoldJob], seed: int) -> list[FoldJob]:
    """The jobs of a seed."""
    return [job for job in jobs if job.config.train.seed == seed]


def booked(record: TradingRecord) -> Row:
    """The figures of a record that a table of seeds has."""
    figures = compute_statistics(record.equity, record.trades, record.market.pip_px)
    return {**{name: figures[name] for name in BOOKED}, "sharpe": sharpe(daily_returns(record)[1])}


def report_test(folder: Path, jobs: list[FoldJob], walk: Walk, trials: Trials, source: dict[str, str]) -> Row:
    """Write the report of the tests of `jobs`, in a row, into `folder`; what walkforward.json says of them."""
    bars = walk.series.bars
    records = fold_records(jobs, bars)
    context = ReportContext(
        source,
        trials=trials.number,
        trial_sharpe_variance=trials.sharpe_variance(),
        opportunity=most_hopeful([read_result(job) for job in jobs]),
        rivals={name: fold_records(jobs, bars, name) for name in RIVALS},
    )
    document = build_report(records, context)
    write_report(folder, document, records)
    found = {name: document[name] for name in ("statistics", "intervals", "verdict", "opportunity")}
    return {**booked(join_records(records)), "days": document["span"]["days"], "trials": trials.number, **found}


def print_walkforward(document: Row, out: IO[str]) -> None:
    """Print for each market the net pips of every fold and seed, and the verdict."""
    for market in document["markets"]:
        joined = {row["seed"]: row["net_pips"] for row in market["seeds"]}
        print(f"{market['name']}, net pips after costs", file=out)
        print(f"{'fold':>8}  {'test':22}" + "".join(f"{f'seed {seed}':>10}" for seed in joined), file=out)
        rows = dict[tuple[str, str], Row]()
        for run in market["runs"]:
            test = " .. ".join(stamp[:10] for stamp in run["test"])
            rows.setdefault((run["fold"], test), {})[run["seed"]] = run["net_pips"]
        rows["joined", ""] = joined
        for (fold, test), pips in rows.items():
            print(f"{fold:>8}  {test:22}" + "".join(f"{pips[seed]:>10.1f}" for seed in joined), file=out)
        for name in ("joined", "holdout"):
            found = market[name]
            if found:
                text = f"{name}, seed {market['median_seed']} (the median): {found['net_pips']:.1f} pips"
                print(f"{text}, {found['trades']} trades, in the market {found['exposure']:.1%} of the time", file=out)
                print_verdict(found, out)
                for line in explain_opportunity(found):
                    print(f"  {line}", file=out)
        print(evidence_text(market["runs"]), file=out)
    if document["pool"]:
        print(f"all {len(document['markets'])} markets in equal shares, {document['pool']['days']} days", file=out)
        print_verdict(document["pool"], out)


def evidence_text(runs: list[Row]) -> str:
    """How well the agents told rises from falls on their validation parts."""
    z = [run["direction_z"] for run in runs if run["direction_z"] is not None]
    if not z:
        return "no validation part said whether it tells rises from falls"
    enough = sum(value >= EVIDENCE_Z for value in z)
    return f"rises were told from falls in {enough} of {len(z)} validation parts: {max(z):.1f} standard errors at best"
