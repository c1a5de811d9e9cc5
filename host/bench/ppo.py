"""`bench ppo`: PPO and DQN of Stable-Baselines3 beside our agent, on the same bars, features, costs and CPU time.

A job is an agent, a market and a seed (host/bench/ppo_run.py); a line of RESULTS keeps it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np

from host.atomic import atomic_write, check_writable
from host.bench.job_results import add_result, read_results
from host.bench.options import BenchError, BenchOptions
from host.bench.ppo_run import FIGURES, OURS, PACKAGES, TRADED_MARKETS, Job, job_key, run_job
from host.bench.process import BenchRow
from host.console import log, progress
from host.evaluation.synthetic import Floats
from host.processes import ReportProgress
from host.stop import hint_on_stop
from host.svg import line_charts

RESULTS = "ppo.jsonl"
TABLE_MARKS_S = (15, 30, 60, 180)


def selected_jobs(options: BenchOptions) -> list[Job]:
    """Every job, a seed after the other; raises BenchError where `options.only` names nothing."""
    agents, only = (OURS, *PACKAGES), options.only
    if only not in (None, *agents, *TRADED_MARKETS):
        raise BenchError(f"--only {only}: there is {', '.join((*agents, *TRADED_MARKETS))}")
    missing = [agent for agent, package in PACKAGES.items() if not find_spec(package.replace("-", "_"))]
    if missing:
        log(f"without {', '.join(missing)}: pip install {' '.join(dict.fromkeys(PACKAGES.values()))}")
    size = options.rival_minutes, options.budget.length, options.budget.settings
    return [
        Job(agent, market, seed, *size)
        for seed, market, agent in product(range(options.seeds), TRADED_MARKETS, agents)
        if agent not in missing and only in (None, agent, market)
    ]


@hint_on_stop()
def bench_ppo(options: BenchOptions, runner: Callable[[Job, ReportProgress], BenchRow] = run_job) -> list[BenchRow]:
    """The document of `bench ppo`; after every job also in `options.out`, with a table and a picture of it."""
    jobs, document, out = selected_jobs(options), list[BenchRow](), options.out
    results = out / RESULTS
    check_writable(out, folder=True)
    out.mkdir(parents=True, exist_ok=True)
    measured = read_results(results)
    with progress("bench ppo") as report:
        for i, job in enumerate(jobs):
            text, key = f"{job.agent} {job.market} seed {job.seed}", job_key(job)
            is_new = key not in measured
            if is_new:
                row = runner(job, lambda share, i=i, text=text: report((i + share) / len(jobs), text))  # type: ignore[misc]
                add_result(results, key, {**job._asdict(), **row})
                measured = read_results(results)
            row = measured[key]
            document.append({key: row[key] for key in ("agent", "market", "seed", "curve")})
            if is_new or len(document) == len(jobs):
                publish(document, out)
    log(f"{out}: ppo.json, ppo.md, ppo.svg")
    return document


def publish(document: list[BenchRow], out: Path) -> None:
    """Write a document, its table and its picture."""
    table = rival_table(document)
    lines = [[*table[0]], ["---"] * len(table[0]), *([*row.values()] for row in table)]
    write_text(out / "ppo.json", json.dumps(document, indent=1))
    write_text(out / "ppo.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    write_text(out / "ppo.svg", curves(document))


def write_text(path: Path, text: str) -> None:
    """Write a whole file."""
    with atomic_write(path) as file:
        file.write(text.encode())


def percentages(document: list[BenchRow], figure: str) -> dict[tuple[str, str], dict[float, list[float]]]:
    """By market and agent, and by mark: `figure` of every seed in percent; of `noise` the bars with a position."""
    groups = dict[tuple[str, str], dict[float, list[float]]]()
    for row in sorted(document, key=lambda row: [*TRADED_MARKETS].index(row["market"])):
        marks = groups.setdefault((row["market"], row["agent"]), {})
        for point in row["curve"]:
            value = point["exposure"] if point[figure] is None else point[figure]
            marks.setdefault(point["mark_s"], []).append(100 * value)
    return groups


def rival_table(document: list[BenchRow]) -> list[BenchRow]:
    """A line for each market and agent: medians over the seeds, and ranges, at some marks; the last one twice."""
    realised, expected = (percentages(document, figure) for figure in FIGURES[:2])
    last = max(mark for marks in realised.values() for mark in marks)
    shown = [*(mark for mark in TABLE_MARKS_S if mark < last), last]
    return [
        {"market": market, "agent": agent, "seeds": str(len(marks[last]))}
        | {f"{mark:g} s": spread_text(marks[mark]) for mark in shown}
        | {f"expected, {last:g} s": spread_text(expected[market, agent][last])}
        for (market, agent), marks in realised.items()
    ]


def spread_text(values: list[float]) -> str:
    """Median and range in percent."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:z.0f} %" if len(values) == 1 else f"{middle:z.0f} % [{low:z.0f} to {high:z.0f}]"


def curves(document: list[BenchRow]) -> str:
    """The medians over CPU seconds as an SVG, a chart for each market."""
    charts = dict[str, dict[str, Floats]]()
    for (market, agent), marks in percentages(document, FIGURES[0]).items():
        at, values = [0.0, *marks], [0.0, *map(statistics.median, marks.values())]
        charts.setdefault(market, {})[agent] = np.interp(np.arange(at[-1] + 1), at, values)
    unit = "% of the optimum on unseen bars; of noise: % of the bars with a position"
    return line_charts(charts, unit, "{:,} CPU seconds")
