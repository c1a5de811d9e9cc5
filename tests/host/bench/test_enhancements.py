"""`bench enhancements`: what is kept outlives a kill, equal variants are measured once, null is the worst."""

import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.atomic import OutputPathError, read_lines
from host.bench import enhancement_run as run
from host.bench import enhancements as module
from host.bench.all import print_bench
from host.bench.curves import AXES, COLOURS, crossing, median, render_curves, summarize_curves, value_range
from host.bench.enhancement_run import (
    LEARNED_MARKETS,
    Job,
    is_plateau,
    job_config,
    job_key,
    new_trainer,
    program_version,
)
from host.bench.enhancements import (
    ENHANCEMENTS,
    FIRST,
    RESULTS,
    Enhancement,
    all_jobs,
    bench_enhancements,
    enhancement_table,
    how_far,
    read_measured,
    run_jobs,
    select,
    variant_jobs,
)
from host.bench.job_results import add_result, read_results
from host.bench.options import BenchError, BenchOptions, Budget
from host.config import ConfigError
from host.processes import MEMORY_FIELDS, ReportProgress, watch_process
from host.training.trainer import Trainer
from tests.fixtures.clusters import RayNodes
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import printed
from tests.fixtures.trainings import trained

TINY = Budget(
    episodes=8,
    length=2000,
    eval_interval=2,
    eval_bars=32,
    iterations=1,
    rounds=1,
    decisions=4,
    settings=(
        *("market.episode_length=24", "network.latent=8", "network.hidden=8", "train.num_simulations=2"),
        *("train.num_envs=2", "train.batches_per_iteration=1", "train.updates_per_iteration=2"),
        *("train.batch_size=32", "train.replay_capacity=8", "search.num_simulations=2"),
    ),
)
END = {"fraction_of_optimum": 0.7, "expected_fraction": 0.8, "q_slope": 0.5, "q_correlation": 0.9, "exposure": 0.3}
ON_OFF = Enhancement("a", "", on=("search.algorithm=gumbel",), off=())
OF_MACHINE = "seconds", "wall_s", "ms_per_episode", "rss"  # how names of figures begin
SVG = "{http://www.w3.org/2000/svg}"


def pretended_curve(level: float) -> dict[str, list[float]]:
    """Four evaluations that rise to `level`."""
    return {"episodes": [64.0, 128, 192, 256], "expected_fraction": [0.0, level / 2, level, level]}


def pretend(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
    """A measurement that takes no time; `planted-hard` and odd seeds learn nothing."""
    report_progress(0.5)
    if job.kind == run.COST:
        costs = {**dict.fromkeys(module.COST_KEYS, 1.5 + job.seed), "weights_sha256": f"sha {job.seed}"}
        return costs | {"ms_per_episode": 50.0 if job.market in LEARNED_MARKETS else 100.0}
    level = 0.1 if job.seed % 2 or job.market == "planted-hard" else 0.95
    end = {**END, "chance_nll": 2.0, "closing_regret": None, "trades": 9}
    return {"curve": pretended_curve(level), "end": end}


def test_the_document_has_its_keys_and_the_pictures_are_xml(tmp_path: Path) -> None:
    size = BenchOptions(seeds=3, out=tmp_path / "new", budget=Budget(), jobs=2)
    tmp_path, document = size.out, bench_enhancements(size, pretend)
    assert json.loads((tmp_path / "enhancements.json").read_text()) == document
    needed_on = {e.name: {e.needed_on} for e in ENHANCEMENTS}
    panels = sum(len(e.markets) for e in ENHANCEMENTS)
    assert panels > len(LEARNED_MARKETS) * len(ENHANCEMENTS)
    assert [row["enhancement"] for row in document] == [e.name for e in ENHANCEMENTS]
    for row in document:
        assert {"enhancement", "claim", "seeds", "on", "off"} == set(row)
        for side in (row["on"], row["off"]):
            assert set(side) == {"settings", *module.COST_KEYS, "weights_sha256", "markets"}
            assert (side["tree_kb"], side["ms_per_episode"], side["weights_sha256"]) == (1.5, 50, "sha 0")
            assert set(side["markets"]) - needed_on[row["enhancement"]] == set(LEARNED_MARKETS)
            assert all(market["seeds"] == 3 for market in side["markets"].values())
            planted = side["markets"]["planted"]
            assert (planted["seeds"], planted["episodes_to_90"], planted["seconds_to_90"]) == (3, 192, 9.6)
            assert planted["episodes_to_90_range"] == [192, None]
            assert (planted["q_slope"], planted["fraction_of_optimum"]) == (0.5, 0.7)
            assert side["markets"]["planted-hard"]["episodes_to_90"] is None
    for axis in AXES:
        image = ElementTree.parse(tmp_path / f"{axis}.svg")
        assert len(image.findall(f"{SVG}polyline")) == len(image.findall(f"{SVG}polygon")) == 2 * panels
    out = io.StringIO()
    print_bench("enhancements", document, out)
    assert len(out.getvalue().splitlines()) == 1 + 3 * len(document)
    assert "192 [192-] episodes, 10 [10-] s; 80% [80% to 80%]  - episodes, - s; 80%" in out.getvalue()
    table = (tmp_path / "enhancements.md").read_text().splitlines()
    assert len(table) == 2 + 3 * len(document)
    assert table[3].startswith("| off | 192 [192-] episodes, 10 [10-] s; 80% [80% to 80%] | - episodes")
    assert len({line.count("|") for line in table if "claimed" not in line}) == 1
    assert "| sparse: 192 [192-] episodes, 19 [19-] s; 80% [80% to 80%] |" in "\n".join(table)


def test_a_partial_table_says_what_it_lacks(tmp_path: Path) -> None:
    """A number of seeds that is not whole, and rows without a measurement; nothing runs after the limit."""
    measured = list[Job]()

    def stop_at(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        measured.append(job)
        if sum(job.kind == run.LEARN and job.market in LEARNED_MARKETS for job in measured) == 8:
            raise KeyboardInterrupt
        return pretend(job, report_progress)

    size = BenchOptions(seeds=5, out=tmp_path, budget=Budget())
    with pytest.raises(KeyboardInterrupt):
        bench_enhancements(size, stop_at)
    nothing_runs = replace(size, limit_minutes=0)
    document = bench_enhancements(nothing_runs, lambda job, report: pytest.fail("begun after the limit"))
    table = enhancement_table(document)
    assert table[0] == f"gumbel; claimed: {FIRST[0].claim}"
    assert isinstance(table[1], dict)
    assert "(1 of 5 seeds)" in table[1]["planted"]
    missing = [e.name for e in ENHANCEMENTS[2:] if not e.needed_on]
    assert table[-1] == f"not measured yet: {'; '.join(missing)}"
    market = table[5]
    assert isinstance(market, dict)
    assert [market[name] for name in LEARNED_MARKETS][1:] == ["not measured yet"] * 2
    assert market["us"] == "1.5"
    results = [
        row[side]["markets"].values() for row in document if row["enhancement"] not in missing for side in COLOURS
    ]
    texts = "".join(ElementTree.parse(tmp_path / "seconds.svg").getroot().itertext())
    assert texts.count("not measured yet") == sum(not result["seeds"] for result in chain(*results)) > 0
    document = bench_enhancements(replace(nothing_runs, only="recommended"), pretend)
    assert enhancement_table(document) == [{"": "not measured yet: recommended"}]
    print_bench("enhancements", document, io.StringIO(), "python swt.py bench enhancements")


def test_a_market_is_learnt_in_the_cpu_time_of_its_own_episodes_and_its_cost_is_asked_for() -> None:
    """An old market has the cost of the first one; without a cost there is no line."""
    (row,) = select("sizes")
    assert len({json.dumps(run.resolve((), market).as_dict()) for market in LEARNED_MARKETS}) == 1
    jobs = variant_jobs(row, row.on, 0, Budget())
    results = {job_key(job): pretend(job, lambda share: None) for job in jobs}
    side = module.summarize_side(row, row.on, BenchOptions(), results)
    assert [side["markets"][market]["seconds_to_90"] for market in ("planted", "close", "risk")] == [9.6, 9.6, 19.2]
    of_planted, of_risk = (job_key(job) for job in jobs if job.kind == run.COST)
    for gone, seeds in ((of_risk, [1, 1, 1, 0]), (of_planted, [0, 0, 0, 1])):
        known = {key: result for key, result in results.items() if key != gone}
        side = module.summarize_side(row, row.on, BenchOptions(), known)
        assert [side["markets"][market]["seeds"] for market in row.markets] == seeds


def test_costs_are_measured_alone_and_first(tmp_path: Path) -> None:
    jobs, running, most = all_jobs([ON_OFF], 1, Budget()), list[Job](), dict[str, int]()

    def together(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        running.append(job)
        time.sleep(0.1)
        most[job.kind] = max(most.get(job.kind, 0), len(running))
        running.remove(job)
        return pretend(job, report_progress)

    run_jobs(jobs, BenchOptions(jobs=2, out=tmp_path), no_report, together)
    assert most == {run.COST: 1, run.LEARN: 2}
    assert [row["kind"] for row in read_results(tmp_path / RESULTS).values()] == sorted(
        [run.COST] * 2 + [run.LEARN] * 6
    )


class Elsewhere:
    """Nodes that have room for two jobs, and remember them."""

    def __init__(self) -> None:
        self.done = list[Job]()

    def room(self) -> int:
        return 2

    def run(self, job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        self.done.append(job)
        return pretend(job, report_progress)


def test_a_cluster_measures_curves_and_this_machine_all_costs(tmp_path: Path) -> None:
    """Nodes differ in speed: costs of two of them are no comparison."""
    jobs, here, nodes = all_jobs([ON_OFF], 1, Budget()), list[Job](), Elsewhere()
    run_jobs(jobs, BenchOptions(out=tmp_path), no_report, lambda *job: here.append(job[0]) or pretend(*job), nodes)  # type: ignore[arg-type]
    assert [job.kind for job in here] == [run.COST] * 2
    assert [job.kind for job in nodes.done] == [run.LEARN] * 6


def test_costs_are_measured_first_then_what_needs_it_then_the_first_rows_and_seed_by_seed() -> None:
    jobs = list(all_jobs(list(ENHANCEMENTS), 2, Budget()).values())
    first = {(settings, market) for e in FIRST for settings in (e.on, e.off) for market in e.markets}
    order = list[tuple[int, int]]()
    for job in jobs:
        turns = job.kind == run.COST, job.market not in LEARNED_MARKETS, (job.settings, job.market) in first, True
        order.append((turns.index(True), job.seed))
    assert order == sorted(order)
    assert {turn for turn, _ in order} == {0, 1, 2, 3}


def test_what_a_market_asks_of_both_sides_is_asked_there_alone() -> None:
    (row,) = select("progressive widening")
    for settings in (row.on, row.off):
        found = {job.market: job.settings for job in variant_jobs(row, settings, 1, Budget())}
        assert row.there
        assert found == dict.fromkeys(LEARNED_MARKETS, settings) | {"risk": (*settings, *row.there)}


def curve_of(*fraction: float) -> dict[str, list[float]]:
    return {"episodes": [64.0 * (i + 1) for i in range(len(fraction))], "expected_fraction": list(fraction)}


@pytest.mark.parametrize(
    ("fraction", "episodes"),
    [
        ((0.1, 0.95, 0.95), 128),
        ((0.91, 0.5, 0.9, 0.9), 192),  # what does not hold does not count
        ((0.1, 0.2, 0.95), None),  # nobody knows whether it holds
        ((0.1, 0.2), None),
        ((), None),
    ],
)
def test_a_level_is_reached_where_it_holds_twice(fraction: tuple[float, ...], episodes: float | None) -> None:
    assert crossing(curve_of(*fraction), "episodes") == episodes


@pytest.mark.parametrize(
    ("fraction", "ends"),
    [
        ((), False),
        ((0.97,), False),
        ((0.9, 0.97), False),
        ((0.97, 0.98), True),
        ((0.3, *[0.45] * 20), False),  # flat, but it may not trade yet
        ((0.6, *[0.6] * 8), True),
        ((0.91, *[0.92] * 7), False),
        ((0.91, *[0.919] * 8), True),
        ((0.91, *[0.8] * 8), True),  # it falls
        ((0.91, *[0.8] * 7, 0.93), False),  # it has risen again
        ((0.49, *[0.499] * 8), False),
    ],
)
def test_a_plateau_ends_a_job(fraction: tuple[float, ...], ends: bool) -> None:
    assert is_plateau(fraction) is ends


def test_a_market_of_which_a_window_shows_less_ends_earlier() -> None:
    assert is_plateau((0.95, 0.96), run.FULL_FRACTION_OF["planted"])
    assert not is_plateau((0.94, 0.96), run.FULL_FRACTION_OF["planted"])
    assert not is_plateau((0.95, 0.96))


@pytest.mark.parametrize(("market", "full"), [("planted", 0.95), ("close", 0.97)])
def test_a_job_asks_for_what_its_market_shows(market: str, full: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[float]()

    def ends_at_the_second(fraction: list[float], full: float = run.FULL_FRACTION) -> bool:
        asked.append(full)
        return len(asked) > 1

    monkeypatch.setattr(run, "is_plateau", ends_at_the_second)
    run.measure_learning(Job(run.LEARN, market, 0, (), TINY), lambda share: None)
    assert asked == [full, full]


def test_a_seed_that_ended_goes_on_as_it_ended() -> None:
    short, long = curve_of(0.0, 1.0), curve_of(0.0, 0.5, 0.5, 0.5)
    line = summarize_curves([short, short, long], "episodes")
    assert (line["x"][0], line["x"][-1]) == (64, 256)
    assert (line["low"][-1], line["median"][-1], line["high"][-1]) == (0.5, 1.0, 1.0)


def test_words_of_a_picture_are_escaped() -> None:
    side = {"markets": {market: {"seeds": 0} for market in LEARNED_MARKETS}}
    ElementTree.fromstring(render_curves([{"enhancement": "a < b & c", "on": side, "off": side}], "episodes"))


def test_equal_variants_are_measured_once() -> None:
    rows = [
        Enhancement("a", "", on=("train.reanalyze=true",), off=("train.reanalyze=false",)),
        Enhancement("b", "", on=("search.algorithm=gumbel",)),  # its other side is the first one's
    ]
    jobs = all_jobs(rows, 2, Budget())
    assert len(jobs) == 3 * (1 + 2 * len(LEARNED_MARKETS))  # costs once, not once a seed
    assert [job.seed for job in jobs.values()] == [0] * 12 + [1] * 9
    assert [job.kind for job in jobs.values()] == [run.COST] * 3 + [run.LEARN] * 18
    assert {job.settings for job in jobs.values()} == {rows[0].on, rows[0].off, rows[1].on}


def test_a_key_names_all_that_decides() -> None:
    job = Job(run.LEARN, "planted", 0, (), TINY)
    others = [
        job._replace(kind=run.COST),
        job._replace(market="close"),
        job._replace(seed=1),
        job._replace(settings=("train.learning_rate=0.5",)),
        job._replace(budget=TINY._replace(episodes=16)),
        job._replace(budget=TINY._replace(threads=2)),
    ]
    assert len({job_key(one) for one in (job, *others)}) == 7
    assert job_key(job._replace(settings=("train.learning_rate=0.003",))) == job_key(job)
    assert job_config(others[2]).train.seed == 1


def test_another_program_measures_anew(tmp_path: Path) -> None:
    """What can change a curve does; a command, what is live, a picture, a comment or a docstring does not."""
    texts = {name: f'"""{name}"""\nx = 1\n' for name in ("other", "host/evaluation/exam.py", "models/extensions/x.py")}
    changes = {
        "host/training/trainer.py": ("x = 2", True),
        "host/evaluation/exam.py": ("x = 2", True),
        "host/artifact/networks.py": ("x = 2", True),
        "host/bench/enhancement_run.py": ("x = 2", True),
        "kernels/search/mcts.py": ("x = 2", True),
        "models/extensions/x.py": ("x = 1.0", True),
        "models/learner.py": ('"""Other words."""\nx = 1  # why\n', False),
        "host/artifact/manifest.py": ("x = 2", False),
        "host/bench/enhancements.py": ("x = 2", False),
        "host/bench/README.md": ("x = 2", False),
        "host/commands/act.py": ("x = 2", False),
        "host/live/agent.py": ("x = 2", False),
        "host/config.py": ("x = 2", False),
    }
    texts = dict.fromkeys(changes, '"""Words."""\n\n\nx = 1\n')
    versions = dict[str, str]()
    for case in ("", *changes):
        for name, text in {**texts, **({case: changes[case][0]} if case else {})}.items():
            path = tmp_path / (case.replace("/", " ") or "unchanged") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        versions[case] = program_version(tmp_path / (case.replace("/", " ") or "unchanged"))
    for case, (_, matters) in changes.items():
        assert (versions[case] != versions[""]) is matters, case
    assert program_version() not in versions.values()


def no_report(share: float, text: str) -> None:
    assert 0 <= share <= 1


def test_an_interrupted_bench_goes_on(tmp_path: Path) -> None:
    jobs, size, done = all_jobs([ON_OFF], 2, Budget()), BenchOptions(out=tmp_path), list[Job]()

    def fails_at_the_sixth(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(job)
        return pretend(job, report_progress)

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, size, no_report, fails_at_the_sixth)
    assert len(read_results(tmp_path / RESULTS)) == 5
    assert how_far(jobs, tmp_path, 1) == "5 of 14 jobs are measured, the others take about 0 minutes"
    again = list[Job]()
    run_jobs(jobs, size, no_report, lambda job, report: again.append(job) or pretend(job, report))
    assert done + again == list(jobs.values())
    (tmp_path / "other").mkdir()
    run_jobs(jobs, replace(size, jobs=2, out=tmp_path / "other"), no_report, pretend)
    one, other = (read_measured(jobs, out) for out in (tmp_path, tmp_path / "other"))
    assert {key: row["result"] for key, row in one.items()} == {key: row["result"] for key, row in other.items()}
    assert {row["program"] for row in other.values()} == {program_version()}
    assert how_far(jobs, tmp_path, 1) == "14 of 14 jobs are measured"


def test_the_rest_takes_as_long_as_what_is_measured(tmp_path: Path) -> None:
    jobs = all_jobs([ON_OFF], 1, Budget())
    for key, job in [*jobs.items()][:3:2]:  # a cost, and a learning curve
        add_result(tmp_path / RESULTS, key, {**job._asdict(), "wall_s": 240 if job.kind == run.LEARN else 60})
    assert how_far(jobs, tmp_path, 2) == "2 of 8 jobs are measured, the others take about 11 minutes"  # 5 x 4 / 2 + 1


def test_jobs_run_at_once_and_a_fault_ends_them_all(tmp_path: Path) -> None:
    """A fault of one job is raised, not the end of the others; no job is begun after it."""
    both, ended = threading.Barrier(2, timeout=30), list[Job]()

    def meets_another(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        both.wait()
        if job.market == "close":
            raise ArithmeticError("a fault")
        try:
            while True:
                time.sleep(0.001)
                report_progress(0.5)
        finally:
            ended.append(job)

    size, jobs = BenchOptions(jobs=2, out=tmp_path), all_jobs([ON_OFF], 1, Budget())
    learning = {key: job for key, job in jobs.items() if job.kind == run.LEARN and job.market != "planted-hard"}
    with pytest.raises(ArithmeticError, match="a fault"):
        run_jobs(learning, size, no_report, meets_another)
    assert [job.market for job in ended] == ["planted"]
    assert not read_results(tmp_path / RESULTS)


def sleep_long(seconds: float, report_progress: ReportProgress) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def test_a_job_that_is_stopped_ends_its_process() -> None:
    """At once, not at its next message."""

    def stop(share: float) -> None:
        raise BenchError("stopped")

    with pytest.raises(BenchError, match="stopped"):
        watch_process(sleep_long, 60.0, stop)
    for process in multiprocessing.active_children():
        process.join(30)
    assert not multiprocessing.active_children()


def test_no_job_begins_after_the_limit(tmp_path: Path) -> None:
    def slow(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        time.sleep(0.2)
        return pretend(job, report_progress)

    size = BenchOptions(limit_minutes=0.1 / 60, out=tmp_path)
    run_jobs(all_jobs([ON_OFF], 1, Budget()), size, no_report, slow)
    assert len(read_results(tmp_path / RESULTS)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_signal_loses_the_running_job_at_most(number: int, tmp_path: Path) -> None:
    program = (
        "import sys\nimport swt\n"
        "from tests.host.bench.test_enhancements import *\n"
        "def slow(job, report_progress):\n    time.sleep(0.3)\n    return pretend(job, report_progress)\n"
        "bench_enhancements.__wrapped__.__defaults__ = (slow,)\n"
        "swt.main()"
    )
    words = ["bench", "enhancements", "--only", "mirrored windows", "--seeds", "2", "--out", str(tmp_path)]
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 60
        while len(read_results(tmp_path / RESULTS)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, number)
        _, said = child.communicate(timeout=30)
    if number == signal.SIGUSR1:
        assert child.returncode == 75
        assert printed(said.splitlines()[-1]) == [words]
    kept = read_lines(tmp_path / RESULTS)
    jobs, again = all_jobs(select("mirrored windows"), 2, Budget()), list[Job]()
    assert 2 <= len(kept) < len(jobs)
    size = BenchOptions(out=tmp_path)
    run_jobs(jobs, size, no_report, lambda job, report: again.append(job) or pretend(job, report))
    assert len(again) == len(jobs) - len(kept)
    assert read_lines(tmp_path / RESULTS)[: len(kept)] == kept


def test_what_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for setting in ("train.nothing=1", "search.algorithm=guess"):
        with pytest.raises(ConfigError):
            all_jobs([Enhancement("a", "", on=(setting,))], 1, TINY)
    with pytest.raises(BenchError, match="rezero"):
        select("nothing")
    assert BenchError.exit_code == 2
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputPathError, match="is no folder"):
        bench_enhancements(BenchOptions(out=tmp_path / "file" / "x"), pretend)
    assert [e.name for e in select("gumbel")] == ["gumbel"]


def test_every_line_of_the_table_resolves_and_its_sides_differ() -> None:
    for e, market in ((row, name) for row in ENHANCEMENTS for name in row.markets):
        on, off = (job_config(Job(run.LEARN, market, 0, side, Budget())) for side in (e.on, e.off))
        assert on != off, (e.name, market)


@pytest.mark.parametrize("name", ["age cut", "bellman priority"])
def test_a_row_whose_networks_are_those_of_the_default_acts(name: str) -> None:
    (row,) = select(name)
    on, off = (trained(3, 1, *side) for side in (row.on, row.off))
    assert not np.array_equal(on.learner.params, off.learner.params)


def test_a_market_has_its_own_settings_and_judges_both_sides_by_them() -> None:
    """A variant without sizes or a risk term is measured by the optimum of the market, which has both."""
    (resizing,) = select("resizing")
    on, off = (job_config(Job(run.LEARN, "risk", 0, side, TINY)) for side in (resizing.on, resizing.off))
    assert on.market.risk_aversion == off.market.risk_aversion == 0.7
    assert (on.market.position_adjustment, off.market.position_adjustment) == (True, False)
    poor = Job(run.LEARN, "risk", 0, ("market.position_sizes=[1.0]", "market.risk_aversion=0"), TINY)
    trainer, _ = run.new_trainer(poor)
    data = trainer.markets[0].data
    rules = run.with_own_rules(data, "risk").market_spec.market
    assert (data.market_spec.market.risk_aversion, data.market_spec.market.sizes[1]) == (0, 0)
    assert (rules.risk_aversion, rules.sizes, rules.position_adjustment) == (0.7, (0.2, 0.4, 0.6, 0.8, 1.0), True)
    assert not run.with_own_rules(data, "planted").market_spec.market.position_adjustment


@given(st.lists(st.none() | st.floats(0, 1e6), min_size=1, max_size=9))
def test_null_is_worse_than_any_number(values: list[float | None]) -> None:
    found, (low, high) = median(values), value_range(values)
    known = [value for value in values if value is not None]
    if 2 * len(known) <= len(values):
        assert found is None
    else:
        worst = max(known) + 1
        expected = statistics.median(worst if value is None else value for value in values)
        assert found is not None
        assert found == pytest.approx(expected, abs=1e-4) or math.isclose(expected, worst)
    assert (low is None) == (not known)
    assert (high is None) == (None in values)


def test_jobs_measure_in_processes_of_their_own() -> None:
    """The real thing on its smallest size; equal weights are visible."""
    job, shares = Job(run.COST, "planted", 0, ("train.off_policy_correction=0.5",), TINY), list[float]()
    costs = run.run_job(job, shares.append)
    assert set(costs) == {*module.COST_KEYS, "weights_sha256", "rss_anon_mb", "rss_mb"}
    some = {*module.COST_KEYS} - {"selection_us", "reuse_share"}
    assert all(costs[name] > 0 for name in some)
    assert costs["selection_us"] < costs["us_per_decision"]
    other = run.measure_cost(job._replace(settings=()), lambda share: None)
    assert other["weights_sha256"] == costs["weights_sha256"]  # in one cycle nothing is old
    assert 40 < costs["rss_anon_mb"] < costs["rss_mb"] < 600
    assert 0 in shares


def test_an_episode_costs_what_a_steady_iteration_takes_and_the_weights_are_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of six iterations of two episodes each the first two take longer, as where kernels are compiled."""
    spent = [0.0]

    class Watched(Trainer):
        def run_iteration(self) -> dict[str, Any]:
            row = super().run_iteration()
            is_steady = self.iteration > 2
            spent[0] += 10 if is_steady else 1000
            return row | {"reanalyzed": 8, "reused": 6 if is_steady else 0}

    job = Job(run.COST, "planted", 0, (), TINY._replace(iterations=6))
    trainer, market = new_trainer(job)
    other = Watched([trainer.markets[0].data], job_config(job), 1)
    monkeypatch.setattr(run, "new_trainer", lambda job: (other, market))
    monkeypatch.setattr(run, "clock", lambda threads: lambda: spent[0] + time.process_time())
    costs = run.measure_cost(job, lambda share: None)
    assert 5000 < costs["ms_per_episode"] < 5500
    assert costs["reuse_share"] == 0.75
    for _ in range(6):
        trainer.run_iteration()
    assert costs["weights_sha256"] == hashlib.sha256(trainer.learner.params.tobytes()).hexdigest()


def test_a_cost_is_of_a_process_that_compiles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler takes 100 MB.  A learning curve has no memory, so nothing is done twice."""
    processes = list[str]()

    def compiles_at_first(measure: Any, job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        processes.append(job.kind)
        folder = tmp_path / "kernels.search-0"
        folder.mkdir(exist_ok=True)
        for suffix in ("nbi", "nbc") if len(processes) in (1, 3) else ():
            (folder / f"plan-{len(processes)}.{suffix}").touch()
        return {"process": len(processes)}

    monkeypatch.setattr(run, "watch_process", compiles_at_first)
    monkeypatch.setattr(run, "cache_root", lambda: tmp_path)
    rows = [run.run_job(Job(kind, "planted", 0, (), TINY), lambda share: None) for kind in (run.COST, run.LEARN)]
    assert rows == [{"process": 2}, {"process": 3}]
    assert processes == [run.COST, run.COST, run.LEARN]


def test_a_curve_has_all_measures() -> None:
    learnt = run.measure_learning(Job(run.LEARN, "planted", 0, (), TINY), lambda share: None)
    assert learnt["curve"]["episodes"] == [4, 8]  # an evaluation every second iteration of two episodes
    assert set(learnt["curve"]) == {"episodes", *run.MEASURES}
    assert set(learnt["end"]) >= {*module.END_KEYS}
    assert set(learnt) == {"curve", "end"}


def test_a_process_that_fails_fails_the_bench() -> None:
    """Names what it was measuring; nothing is skipped."""
    with pytest.raises(RuntimeError, match=r"train\.batch_size=33.*ended with 1"):
        run.run_job(Job(run.COST, "planted", 0, ("train.batch_size=33",), TINY), lambda share: None)


def without_times(value: Any) -> Any:
    """A document without what depends on the machine."""
    if isinstance(value, list):
        return [without_times(v) for v in value]
    if isinstance(value, dict):
        return {name: without_times(v) for name, v in value.items() if not name.startswith(OF_MACHINE)}
    return value


def test_a_cluster_goes_on_to_the_files_of_one_machine(
    ray_cluster: RayNodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what one machine has measured; both sides are one variant here."""
    monkeypatch.setattr(module, "ENHANCEMENTS", (Enhancement("same", "", on=("train.mirror_augmentation=true",)),))
    monkeypatch.setattr(module, "LEARNED_MARKETS", ("planted",))
    alone, shared, size = tmp_path / "alone", tmp_path / "shared", BenchOptions(seeds=1, budget=TINY)
    memory = dict.fromkeys(MEMORY_FIELDS, 1.0)
    bench_enhancements(replace(size, out=alone), lambda job, report: {**run.measure_job(job, report), **memory})
    (cost,) = (line for line in read_lines(alone / RESULTS) if json.loads(line)["kind"] == run.COST)
    shared.mkdir()
    (shared / RESULTS).write_bytes(cost + b"\n")
    bench_enhancements(replace(size, out=shared, ray=ray_cluster.address))
    said = capsys.readouterr()
    assert said.out == ""
    assert "1 of 2 jobs are measured" in said.err
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    assert read_lines(shared / RESULTS)[0] == cost
    one, other = (json.loads((folder / "enhancements.json").read_text()) for folder in (alone, shared))
    assert without_times(one) == without_times(other)
    one, other = (read_results(folder / RESULTS) for folder in (alone, shared))
    assert without_times(one) == without_times(other)
