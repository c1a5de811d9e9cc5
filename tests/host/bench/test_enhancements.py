"""`bench enhancements`: what is kept outlives a kill, equal variants are measured once, null is the worst."""

import io
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.atomic import OutputPathError
from host.bench import enhancement_run as run
from host.bench import enhancements as module
from host.bench.all import print_bench
from host.bench.enhancement_run import (
    LEARNED_MARKETS,
    Job,
    is_learnt,
    job_config,
    job_key,
    program_version,
)
from host.bench.enhancements import (
    ENHANCEMENTS,
    Enhancement,
    all_jobs,
    bench_enhancements,
    median,
    run_jobs,
    select,
    value_range,
)
from host.bench.options import BenchError, BenchOptions, Budget
from host.bench.picture import PANELS, render_svg
from host.bench.process import ReportProgress
from host.config import ConfigError
from tests.fixtures.paths import ROOT

KEYS = {
    *("rss_anon_mb", "rss_mb", "tree_kb", "us_per_decision", "selection_us", "rows_per_decision", "reuse_share"),
    *("ms_per_step", "parameters_mb", "storage_mb", "episodes_to_90", "seconds_to_90", "seeds", "weights_sha256"),
}
TINY = Budget(
    minutes=0.001,
    length=2000,
    eval_interval=1,
    quick_eval_bars=32,
    iterations=1,
    rounds=1,
    decisions=4,
    settings=(
        *("market.episode_length=24", "network.latent=8", "network.hidden=8", "train.num_simulations=2"),
        *(
            "train.num_envs=2",
            "train.batches_per_iteration=1",
            "train.updates_per_iteration=2",
            "train.batch_size=32",
            "train.replay_capacity=8",
        ),
        "search.num_simulations=2",
    ),
)
LEARNS_IN = {"planted": 320, "planted-hard": None, "close": 96}


def pretend(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
    """A measurement that takes no time; odd seeds learn nothing."""
    report_progress(0.5)
    if job.kind == run.COST:
        return {**dict.fromkeys(module.COST_KEYS, 1.5 + job.seed), "weights_sha256": f"sha {job.seed}"}
    episodes = None if job.seed % 2 else LEARNS_IN[job.market]
    learnt = {"episodes_to_90": episodes, "seconds_to_90": episodes and episodes / 20}
    return {**dict.fromkeys(module.TRAINING_KEYS, 100.0), **learnt, "fraction_of_optimum": 0.7, "closing_regret": None}


def test_the_document_has_its_keys_and_the_picture_is_xml(tmp_path: Path) -> None:
    size = BenchOptions(seeds=3, out=tmp_path, budget=TINY)
    document = bench_enhancements(size, pretend)
    assert json.loads((tmp_path / "enhancements.json").read_text()) == document
    assert [row["enhancement"] for row in document] == [e.name for e in ENHANCEMENTS]
    for row in document:
        assert {"enhancement", "claim", "recommended", "on", "off"} == set(row)
        for side in (row["on"], row["off"]):
            assert set(side) >= KEYS
            assert (side["seeds"], side["episodes_to_90"], side["seconds_to_90"]) == (3, 320, 16)
            assert set(side["markets"]) == set(LEARNED_MARKETS)
            assert side["markets"]["planted"]["episodes_to_90_range"] == [320, None]
            assert side["markets"]["planted-hard"]["episodes_to_90"] is None
            assert (side["tree_kb"], side["weights_sha256"]) == (1.5, "sha 0")
    image = ElementTree.parse(tmp_path / "enhancements.svg")
    bars = image.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 2 * len(PANELS) * len(document)
    assert all(0 <= float(bar.get("width", "-1")) <= 66 for bar in bars)
    assert sum(text == "not reached" for text in image.getroot().itertext()) == 2 * len(document)
    out = io.StringIO()
    print_bench("enhancements", document, out)
    assert len(out.getvalue().splitlines()) >= 1 + 3 * len(document)
    assert "planted 320 (320 to -; 16 s), planted-hard - (- to -; came to 70%)" in out.getvalue()


def test_words_of_a_picture_are_escaped() -> None:
    side = {**dict.fromkeys(PANELS, -1.0), "markets": {m: {"episodes_to_90": None} for m in LEARNED_MARKETS}}
    ElementTree.fromstring(render_svg([{"enhancement": "a < b & c", "on": side, "off": side}]))


def test_equal_variants_are_measured_once() -> None:
    rows = [
        Enhancement("a", "", on=("train.reanalyze=true",), off=("train.reanalyze=false",)),
        Enhancement("b", "", on=("search.algorithm=gumbel",)),  # its other side is the first one's
    ]
    jobs = all_jobs(rows, 2, TINY)
    assert len(jobs) == 3 * (1 + 2 * len(LEARNED_MARKETS))  # costs once, not once a seed
    assert [job.seed for job in jobs.values()] == [0] * 12 + [1] * 9
    assert {job.settings for job in jobs.values()} == {rows[0].on, rows[0].off, rows[1].on}


def test_a_key_names_all_that_decides() -> None:
    job = Job(run.LEARN, "planted", 0, (), TINY)
    others = [
        job._replace(kind=run.COST),
        job._replace(market="close"),
        job._replace(seed=1),
        job._replace(settings=("train.learning_rate=0.5",)),
        job._replace(budget=TINY._replace(minutes=1.0)),
        job._replace(budget=TINY._replace(threads=2)),
    ]
    assert len({job_key(one) for one in (job, *others)}) == 7
    assert job_key(job._replace(settings=("train.learning_rate=0.001",))) == job_key(job)
    assert job_config(others[2]).train.seed == 1


def test_another_program_measures_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = program_version()
    for name in ("trainer.py", run.ENHANCEMENTS_FILE):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(run, "HOST_FOLDER", tmp_path)
    here = program_version()
    assert here != before
    (tmp_path / run.ENHANCEMENTS_FILE).write_text("a line more")
    assert program_version() == here
    (tmp_path / "trainer.py").write_text("a line more")
    assert program_version() != here


def test_an_interrupted_bench_goes_on(tmp_path: Path) -> None:
    jobs = all_jobs([Enhancement("a", "", on=("search.algorithm=gumbel",))], 2, TINY)
    done = list[Job]()

    def fails_at_the_sixth(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(job)
        return pretend(job, report_progress)

    def report(share: float, text: str) -> None:
        assert 0 <= share <= 1

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, tmp_path, report, fails_at_the_sixth)
    assert len(list(tmp_path.glob("*.json"))) == 5
    again = list[Job]()
    results = run_jobs(jobs, tmp_path, report, lambda job, report: again.append(job) or pretend(job, report))
    assert done + again == list(jobs.values())
    whole = run_jobs(jobs, tmp_path / "other", report, pretend)
    assert results == whole


def test_a_kill_loses_the_running_job_at_most(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from tests.host.bench.test_enhancements import *\n"
        "def slow(job, report_progress):\n    time.sleep(0.3)\n    return pretend(job, report_progress)\n"
        "run_jobs(all_jobs([Enhancement('a', '')], 9, TINY), pathlib.Path(sys.argv[1]), lambda *_: None, slow)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT) as child:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert 2 <= len(kept) < 9 * (1 + len(LEARNED_MARKETS))
    jobs = all_jobs([Enhancement("a", "")], 9, TINY)
    count = [0]

    def counted(job: Job, report_progress: ReportProgress) -> dict[str, Any]:
        count[0] += 1
        return pretend(job, report_progress)

    run_jobs(jobs, tmp_path, lambda *_: None, counted)
    assert count[0] == len(jobs) - len(kept)
    assert all(path.read_bytes() == text for path, text in kept.items())


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
    for e in ENHANCEMENTS:
        on, off = (job_config(Job(run.COST, "planted", 0, side, Budget())) for side in (e.on, e.off))
        assert on != off, e.name


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


@pytest.mark.parametrize(
    ("market", "fraction", "regret", "learnt"),
    [
        ("planted", 0.9, None, True),
        ("planted-hard", 0.89, 0.0, False),
        ("close", 0.6, 0.09, True),
        ("close", 0.6, 0.11, False),
        ("close", 0.1, 0.0, False),  # it hardly enters
        ("close", 0.0, None, False),
    ],
)
def test_learnt_is_the_optimum_or_closing_in_time(
    market: str, fraction: float, regret: float | None, learnt: bool
) -> None:
    assert is_learnt(market, {"fraction_of_optimum": fraction, "closing_regret": regret}) is learnt


def test_jobs_measure_in_processes_of_their_own() -> None:
    """The real thing on its smallest size; equal weights are visible."""
    job, shares = Job(run.COST, "planted", 0, ("train.off_policy_correction=0.5",), TINY), list[float]()
    costs = run.run_job(job, shares.append)
    assert set(costs) == {*module.COST_KEYS, "weights_sha256", "rss_anon_mb", "rss_mb"}
    timed = [name for name in module.COST_KEYS if not name.startswith("selection")]  # which is a difference of two
    assert all(costs[name] > 0 for name in timed)
    assert costs["selection_us"] < costs["us_per_decision"]
    other = run.measure_cost(job._replace(settings=()), lambda share: None)
    assert other["weights_sha256"] == costs["weights_sha256"]  # in one cycle nothing is old
    learnt = run.run_job(job._replace(kind=run.LEARN), shares.append)
    assert set(learnt) >= {*module.TRAINING_KEYS, *module.LEARNING_KEYS}
    assert 40 < learnt["rss_anon_mb"] < learnt["rss_mb"] < 600
    assert learnt["ms_per_episode"] > 0
    assert 0 in shares


def test_a_process_that_fails_fails_the_bench() -> None:
    """Names what it was measuring; nothing is skipped."""
    with pytest.raises(RuntimeError, match=r"train\.batch_size=33.*ended with 1"):
        run.run_job(Job(run.COST, "planted", 0, ("train.batch_size=33",), TINY), lambda share: None)
