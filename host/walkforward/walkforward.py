"""A training for every fold and seed, each in a process of its own, and what those of a market give together."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from host.analysis.baselines import without_search
from host.analysis.opportunity import opportunity
from host.analysis.record import TradingRecord, daily_returns, trade_targets
from host.artifact.manifest import ModelMarket, save_model
from host.artifact.networks import OnnxNetworks
from host.atomic import add_path_to_errors, atomic_write, locked
from host.config import Config
from host.data.bar_cache import load_bars, shared_file
from host.data.instruments import Instrument
from host.data.parsing import format_utc
from host.evaluation.backtest import new_backtest_policy, run_backtest
from host.evaluation.rehearsal import backtest_record
from host.live.live_agent import new_policy_state
from host.processes import ReportProgress, Row, watch_process
from host.training.dataset import Dataset, new_dataset
from host.training.trainer import Budget, Trainer, run_first_iteration, train_for
from host.walkforward.folds import Fold, fold_config
from kernels.market.bars import Bars, slice_bars
from kernels.market.ledger import new_market
from kernels.market.statistics import compute_statistics
from kernels.search.config import SearchConfig

JobRunner = Callable[["FoldJob", ReportProgress], Row]
READY = 0.02  # share of a job that getting ready takes, and its test
AGENT, RIVALS = "agent", ("policy head", "untrained")  # the trained one, without its search, before training
FILES = "files"  # of a result that was made elsewhere
BOOKED = ("net_pips", "trades", "exposure", "max_drawdown_pips")


class Series(NamedTuple):
    """The bars of one file, and what is known of them."""

    name: str  # of its folder
    bars: Bars
    instrument: Instrument
    interval_ns: int
    origin: dict[str, Any]  # what a model says of the bars it was trained on


class FoldJob(NamedTuple):
    """A training and its test."""

    folder: Path  # its files: FoldJob.result has no part of the test before it is whole
    series: Series  # without bars: the process maps them from the file
    fold: Fold
    config: Config
    minutes: float | None
    episodes: int | None
    bars: Path = Path()  # of `save_bars`, while it runs

    @property
    def result(self) -> Path:
        """The file that says that the job has ended; a job without it is begun again."""
        return self.folder / "result.json"


@contextmanager
def locked_job(job: FoldJob) -> Iterator[Callable[[], None]]:
    """Hold the folder of a job in the block, as `locked` does."""
    with add_path_to_errors(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / "lock") as check_held:
        yield check_held


def run_alone(runner: JobRunner, job: FoldJob, report: ReportProgress) -> Row:
    """Run a job, unless another process has: its result, which is written while the job is locked."""
    with locked_job(job) as check_held:
        if job.result.exists():
            return read_result(job)
        begin = time.monotonic()
        row = runner(job, report)
        row |= {"wall_s": round(time.monotonic() - begin, 1)}
        check_held()
        with add_path_to_errors(job.result), atomic_write(job.result) as file:
            file.write(json.dumps(row, indent=1, allow_nan=False).encode())
    return row


def run_fold(job: FoldJob, report: ReportProgress) -> Row:
    """`train_fold` in a fresh process, with the peak of its memory."""
    return watch_process(train_fold, job, report)


def train_fold_elsewhere(job: FoldJob, report: ReportProgress, key: str, matrix: NDArray[np.int64]) -> Row:
    """`train_fold` where the folder of the job is not: it is given the bars, and FILES of its row are its files.

    `matrix` is of `bars_matrix`, and `key` of `bars_key`.
    """
    with tempfile.TemporaryDirectory() as folder:
        row = train_fold(job._replace(folder=Path(folder), bars=shared_file(key, lambda: matrix)), report)
        return {**row, FILES: {path.name: path.read_bytes() for path in Path(folder).iterdir()}}


def keep_files(job: FoldJob, row: Row) -> Row:
    """Write the files of `train_fold_elsewhere` into the folder of a job; the row without them."""
    with add_path_to_errors(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        for name, content in row[FILES].items():
            with atomic_write(job.folder / name) as file:
                file.write(content)
    return {name: value for name, value in row.items() if name != FILES}


def train_fold(job: FoldJob, report: ReportProgress) -> Row:
    """Train on the training part of a fold and trade its test; every file but the result is written.

    Bars behind the test are not even looked at.  The last decision is flat, so that tests in a row are one record.
    """
    begin, rows = time.perf_counter(), list[Row]()
    report(READY / 2)
    bars = slice_bars(load_bars(job.bars), job.fold.first, job.fold.test_stop + 1)
    extra, config = np.zeros((len(bars.time), 0), np.float32), fold_config(job.fold, job.config)
    data = new_dataset(bars, extra, config, job.series.instrument, job.series.interval_ns, threads=1)
    trainer = Trainer([data], config, threads=1)
    budget, untrained = Budget(job.minutes, job.episodes), trainer.export_networks()
    run_first_iteration(trainer, budget, rows.append)

    def report_training(share: float, _: str) -> None:
        report(READY + (1 - 2 * READY) * share)

    train_for(trainer, budget, rows.append, report_training)
    networks, search, data = trainer.export_networks(), trainer.acting_search_config(), trainer.markets[0].data
    policy = new_policy_state(networks, data.market_spec, search)
    agents = (networks, search), (networks, without_search(search)), (untrained, search)
    records = {name: trade_test(data, *agent) for name, agent in zip((AGENT, *RIVALS), agents, strict=True)}
    record = records[AGENT]
    direction_z = trainer.calibration.direction_z if trainer.calibration else None
    seen = opportunity(policy, bars, extra, data.test_first, len(bars.time), direction_z)
    write_files(job, trainer, records, rows)
    figures, stamp = compute_statistics(record.equity, record.trades, record.market.pip_px), bars.time
    return {
        "fold": job.fold.name,
        "seed": config.train.seed,
        "train": [format_utc(stamp[0]), format_utc(stamp[data.validation_stop - 1])],
        "test": [format_utc(stamp[data.test_first]), format_utc(stamp[-1])],
        "trained_bars": data.train_stop,
        "validated_bars": data.validation_stop - data.train_stop,
        "test_bars": len(record.target),
        "iterations": trainer.iteration,
        "episodes": trainer.episodes,
        **{name: figures[name] for name in BOOKED},
        "direction_z": direction_z,
        "opportunity": seen,
        "seconds": round(time.perf_counter() - begin, 1),
        "costs": record.market._asdict(),
    }


def trade_test(data: Dataset, networks: OnnxNetworks, search: SearchConfig) -> TradingRecord:
    """What an agent does on the test part; its last decision is flat."""
    policy = new_backtest_policy(networks, data.market_spec, search)
    stretch = data.bars, data.extra_features, data.test_first, len(data.bars.time)
    target = run_backtest(policy, *stretch).log.target
    target[-1] = 0.0
    return trade_targets(slice_bars(data.bars, *stretch[2:]), target, data.market_spec.market)


def write_files(job: FoldJob, trainer: Trainer, records: dict[str, TradingRecord], rows: list[Row]) -> None:
    """Write model.swt, the targets of each agent, daily.csv and metrics.jsonl into the folder of a job."""
    record = records[AGENT]
    day, returns = daily_returns(record)
    days = day.astype("datetime64[D]").astype(str)
    texts = {
        "daily.csv": "day,return\n" + "".join(f"{d},{r!r}\n" for d, r in zip(days, returns.tolist(), strict=True)),
        "metrics.jsonl": "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows),
    }
    with add_path_to_errors(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with atomic_write(job.folder / name) as file:
                file.write(text.encode())
        for name, traded in records.items():
            with atomic_write(job.folder / f"{name}.npy") as file:
                np.save(file, traded.target)
        data = trainer.markets[0].data
        spec = data.market_spec
        *span, test_first = (format_utc(data.bars.time[i]) for i in (0, data.validation_stop - 1, data.test_first))
        about = {**job.series.origin, "span": span, "test_first": test_first}
        stats = backtest_record(record.target, record.bars, 0, record.market)[0]
        settings = trainer.acting_search_config(), trainer.config.as_dict()
        save_model(job.folder / "model.swt", trainer.export_networks(), [ModelMarket(spec, about, stats)], *settings)


def read_result(job: FoldJob) -> Row:
    """The result of a job that has ended."""
    with add_path_to_errors(job.result):
        row: Row = json.loads(job.result.read_text(encoding="utf-8"))
    return row


def most_hopeful(results: list[Row]) -> Row | None:
    """What the agent saw in the fold in which it expected most of an entry, for what an entry costs; with its name."""
    asked = [{**result["opportunity"], "fold": result["fold"]} for result in results if result["opportunity"]["best"]]
    return max(asked, key=lambda seen: seen["best"]["edge_pips"] / seen["best"]["cost_pips"], default=None)


def fold_records(jobs: list[FoldJob], bars: Bars, agent: str = AGENT) -> list[TradingRecord]:
    """The records of an agent of jobs that have ended, each at the costs of its own fold."""
    records = []
    for job in jobs:
        costs, target = read_result(job)["costs"], np.load(job.folder / f"{agent}.npy")
        stretch = slice_bars(bars, job.fold.test_first, job.fold.test_stop + 1)
        records.append(trade_targets(stretch, target, new_market(**{**costs, "sizes": tuple(costs["sizes"])})))
    return records


def median_seed(net_pips: dict[int, float]) -> int:
    """The seed whose profit is the median, of two in the middle the lower: nobody picks the best."""
    return sorted(net_pips, key=lambda seed: (net_pips[seed], seed))[(len(net_pips) - 1) // 2]
