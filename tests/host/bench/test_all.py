"""Every bench on its smallest size: the keys of its document, and that what is timed is what it says."""

import io
import itertools
import json
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

import swt
from host.artifact.networks import OnnxNetworks, hypothesis_positions
from host.bench import exogenous as bench_exogenous
from host.bench.acting import SMALL_TRAINING, write_m1_csv
from host.bench.all import BENCHES, print_bench, run_bench
from host.bench.kernels import read_sample_bars
from host.bench.learn import random_batch, record_matmuls, run_matmuls
from host.bench.options import SEARCHES, BenchError, BenchOptions
from host.bench.process import NETWORK_SHAPES, TimedCall, Work, measure_in_processes, median_seconds, user_environment
from host.bench.readme import FIGURES, README, rewrite
from host.bench.search import Case, case_shape, market_call_rows, network_calls, new_random_planner, new_searches
from host.data.csv_reader import read_bars
from host.data.formats import ReadOptions
from host.machine import memory_mb
from kernels.ort import check_status
from kernels.search.config import GUMBEL, MARKET, WIDENING, new_search_config
from kernels.search.networks import NetworkShape
from kernels.search.planner import plan
from kernels.search.progressive_widening import NUM_BETA_PARAMS
from models.export import export
from models.learner import Learner
from models.loss import NUM_CHUNKS
from models.params import ModelShape, new_params

TINY_TRAINING = ("market.episode_length=24", "network.hidden=8", "train.num_simulations=2", "search.num_simulations=2")
TINY = BenchOptions(
    rounds=1,
    networks=("default",),
    roots=(2,),
    simulations=(2,),
    thread_counts=(1,),
    threads_and_roots=((1, 2), (2, 2)),
    reanalyze_simulations=(2,),
    iterations=1,
    chains=8,
    windows=8,
    episodes=2,
    length=2000,
    batch_size=8,
    decisions=3,
    bars=700,
    read_bars=700,
    minutes=0.001,
    idle_s=0.1,
    settings=(*SMALL_TRAINING, *TINY_TRAINING),
)
KEYS = {
    "search": {"impl", "search", "net", "B", "n", "threads", "ms", "us_per_decision", "rows", "rss_mb"},
    "features": {"windows_per_s", "single_window_us", "kymatio_windows_per_s"},
    "selfplay": {"market", "n", "episodes_per_minute", "decisions_per_s", "threads", "rss_mb"},
    "learn": {
        "ms_per_step",
        "matmul_ms_per_step",
        "torch_ms_per_step",
        "torch_compile_ms_per_step",
        "threads",
        "rss_mb",
    },
    "act": {"p50_us", "p99_us", "max_us", "loaded", "first_decision_s", "rss_mb", "cpu_percent_idle"},
    "start": {"stage", "cpu_ms", "until_ms", "rss_mb"},
    "phases": {"phase", "threads", "one_thread_ms", "ms", "efficiency", "gain_at_8"},
    "memory": {"rss_anon_mb", "rss_mb", "bars"},
    "widening": {
        *("net", "B", "n", "threads", "trees", "ms", "us_per_decision"),
        *("rows", "bytes_per_tree", "rss_mb"),
    },
    "rezero": {
        *("search", "n", "reuse", "us_per_position", "rows_per_position"),
        *("reuse_share", "policy_distance", "value_bias", "value_rmse"),
    },
    "exogenous": {"search", "allowed", "rows", "regret", "optimal"},
    "read": {"from", "file_mb", "bars", "cpu_s", "rss_anon_mb", "rss_mb"},
    "ort": {"threads", "arena", "session", "rows", "us_per_call"},
}


MAY_BE_0 = {"cpu_percent_idle", "reuse_share", "policy_distance", "value_rmse", "regret"}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.bench.process.MIN_BLOCK_S", 0.0)


@pytest.mark.parametrize("what", KEYS)
def test_documents_have_their_keys_and_positive_figures(what: str) -> None:
    document = json.loads(json.dumps(run_bench(what, TINY)))
    rows: list[dict[str, Any]] = document if isinstance(document, list) else [document]
    for row in rows:
        assert set(row) == KEYS[what]
        figures = {k: v for k, v in row.items() if isinstance(v, float) and k != "value_bias"}
        assert all(v > 0 or (k in MAY_BE_0 and v == 0) for k, v in figures.items()), row
    out = io.StringIO()
    print_bench(what, document, out)
    assert len(out.getvalue().splitlines()) == 1 + len(rows) // (2 if what == "search" else 1)
    if what == "search":
        assert [row["impl"] for row in rows] == ["swt", "network"] * len(SEARCHES)
        assert "ratio" in out.getvalue()
    markdown = io.StringIO()
    print_bench(what, document, markdown, f"python swt.py bench {what}")
    command, blank, *table = markdown.getvalue().splitlines()
    assert (command, blank) == (f"`python swt.py bench {what}`", "")
    assert [line.split() for line in out.getvalue().splitlines()][1:] == [
        line.replace("|", " ").split() for line in table[2:]
    ]
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_at_equal_rows_the_market_search_decides_better() -> None:
    rows = run_bench("exogenous", TINY)
    for standard, market in zip(rows[::2], rows[1::2], strict=True):
        assert (standard["search"], market["search"]) == ("gumbel", "market")
        assert max(market["rows"], standard["rows"]) <= standard["allowed"]
        assert market["regret"] < standard["regret"]
        assert market["optimal"] > standard["optimal"]


def test_networks_without_noise_give_the_exact_q(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_exogenous, "VALUE_NOISE", 0.0)
    chain = bench_exogenous.new_chain(3)
    agent = bench_exogenous.OnnxNetworks(
        bench_exogenous.chain_graphs(chain), bench_exogenous.NetworkShape(6, 9, 6, 4, 3)
    )
    q = np.where(np.isfinite(chain.q), chain.q, np.nan).reshape(-1, 4)
    market = bench_exogenous.decide_everywhere(agent, bench_exogenous.MARKET, 100)
    np.testing.assert_allclose(market.q, q, atol=1e-5)
    once = bench_exogenous.decide_everywhere(agent, bench_exogenous.GUMBEL, 13)  # flat: each action once
    np.testing.assert_allclose(once.q[::3], q[::3], atol=1e-5)


def test_every_bench_is_tested() -> None:
    assert set(BENCHES) == {*KEYS, "enhancements", "environments", "ppo", "ray"}  # which have tests of their own


def test_an_unknown_bench_is_a_usage_error() -> None:
    with pytest.raises(BenchError, match="search, features"):
        run_bench("nothing", TINY)
    assert BenchError.exit_code == 2


@pytest.mark.parametrize("search", SEARCHES)
def test_the_network_alone_makes_the_calls_of_the_search(search: str) -> None:
    """As many rows, and what it is given to call is what a search of the same roots has called."""
    case = Case("swt", search, "default", 3, 12, 1)
    (work,) = new_searches(case)
    check_status(work())
    planner = work.args[0]  # type: ignore[attr-defined]
    (network,) = new_searches(case._replace(impl="network"))
    *_, roots, calls = network.args  # type: ignore[attr-defined]
    assert roots == 3
    assert roots + calls.sum() == planner.network_rows.sum()
    check_status(network())
    if search == "market":
        assert calls.tolist() == [24, 192, 72]  # 1, 8 and 3 nodes of each root, with 8 codes each
        assert market_call_rows(100, 2, 8).tolist() == [512, 288, 512, 288]  # no call is larger than the cache likes
    else:
        np.testing.assert_array_equal(calls, planner.work.rows_per_call)
        assert (calls.sum(axis=1) == 3).all()
        assert (calls[:, 1] > 0).any() == (search == "stochastic")
    assert case_shape(case).codes == {"gumbel": 4, "stochastic": 32, "market": 8}[search]


@pytest.mark.parametrize("algorithm", [GUMBEL, MARKET, WIDENING])
def test_the_networks_of_a_market_are_called_as_its_search_calls_them(algorithm: int) -> None:
    """`bench enhancements` times them for any algorithm.  It called a graph of MARKET, not bound, for WIDENING."""
    s = NETWORK_SHAPES["default"]._replace(num_beta_params=NUM_BETA_PARAMS if algorithm == WIDENING else 0)
    config = new_search_config(num_simulations=4, algorithm=algorithm)
    shape = NetworkShape(s.features, s.position, s.latent, s.actions, s.codes)
    networks = OnnxNetworks(export(new_params(s, 0), s, *hypothesis_positions(shape, config)), shape)
    planner = new_random_planner(networks, 3, config, seed=0)
    check_status(plan(planner))
    calls = network_calls(planner)
    *_, roots, rows = calls.args  # type: ignore[attr-defined]
    assert roots + rows.sum() == planner.network_rows.sum()
    check_status(calls())


def test_products_are_those_of_a_step() -> None:
    """2 x multiply-adds of forward, gradient of weights and gradient of inputs, by hand for one layer and in all."""
    s, n, K = ModelShape(features=20, latent=8, hidden=16), 4, 2
    learner = Learner(s, n * NUM_CHUNKS, K, 0, 1e-3, 0.0, 100, 1)
    chunks = record_matmuls(learner, random_batch(n * NUM_CHUNKS, K, s), NUM_CHUNKS)
    shapes = [[(a.shape, b.shape) for a, b, _ in chunk] for chunk in chunks]
    assert all(chunk == shapes[0] for chunk in shapes)
    assert ((n, 20), (20, 16)) in shapes[0]  # representation, forward
    assert ((20, n), (n, 16)) in shapes[0]  # and the gradient of its weights
    assert len(shapes[0]) == 13 + 2 * (K - 1) + 13 + 12 + 2 * (K - 1)
    run_matmuls(chunks[0])
    for a, b, out in chunks[0][-1:]:
        np.testing.assert_array_equal(out, a @ b)


def test_medians_are_of_the_rounds_and_in_turns() -> None:
    order = list[str]()
    ticks = iter([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 1, 0, 2, 0, 9, 0, 4, 0, 3, 0, 6])
    works: list[TimedCall] = [lambda: order.append("a"), lambda: order.append("b")]
    assert median_seconds(works, 3, lambda: next(ticks)) == [3, 4]
    assert order[4:] == ["a", "b"] * 3


def slow_work(sleeps: int, now: float) -> Work:
    ticks = itertools.count(0.0, now)
    return Work([lambda: None] * sleeps, lambda: next(ticks), {"sleeps": sleeps})


def test_processes_give_the_seconds_of_a_call_and_their_figures() -> None:
    results = measure_in_processes([partial(slow_work, 1, 0.5), partial(slow_work, 1, 2.0)], rounds=3)
    assert [result.seconds for result in results] == [0.5, 2.0]
    assert [result.figures for result in results] == [{"sleeps": 1}] * 2
    assert all(1 < result.peak_mb < 1000 for result in results)


def test_a_step_that_fails_leaves_numpy_as_it_is() -> None:
    class FailingLearner:
        def learn(self, batch: object) -> None:
            np.matmul(np.eye(2), np.eye(2), out=np.zeros((2, 2)))
            raise ValueError("a step that fails")

    matmul = np.matmul
    with pytest.raises(ValueError, match="a step that fails"):
        record_matmuls(FailingLearner(), None, NUM_CHUNKS)  # type: ignore[arg-type]
    assert np.matmul is matmul


def test_figures_are_written_under_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*command: str) -> str:
        ran.append(command)
        return "abc\n" if command[0] == "git" else f"ran {command[3]}\n"

    ran = list[tuple[str, ...]]()
    monkeypatch.setattr("host.bench.readme.capture", capture)
    path = tmp_path / "README.md"
    first, second = ("<!-- python swt.py bench ort -->\n", "<!-- python swt.py selftest 'a b' -->\n")
    path.write_text(f"head\n{first}old\n<!-- end -->\nbetween\n{second}<!-- end -->\ntail\n")
    rewrite(path, ["selftest"])
    text = "```\n$ python swt.py selftest 'a b'\nran a b\n```\n\nCommit abc.\n"
    assert path.read_text() == f"head\n{first}old\n<!-- end -->\nbetween\n{second}{text}<!-- end -->\ntail\n"
    rewrite(path, [])
    assert f"{first}ran ort\n\nCommit abc.\n<!-- end -->\nbetween\n{second}{text}<!-- end -->" in path.read_text()
    assert [command[1:] for command in ran[-2:]] == [
        ("swt.py", "bench", "ort", "--markdown"),
        ("swt.py", "selftest", "a b"),
    ]


def test_every_bench_has_its_figures_and_every_command_exists() -> None:
    commands = [match[1] for match in FIGURES.finditer(README.read_text())]
    assert len(commands) == README.read_text().count("<!-- end -->")
    words = [shlex.split(command) for command in commands]
    assert {line[2] for line in words if line[1] == "bench"} == set(BENCHES)
    root = typer.main.get_command(swt.app)
    for line in words:
        command = root.commands[line[1]]  # type: ignore[attr-defined]
        command.make_context(line[1], line[2:], resilient_parsing=False)


def test_minutes_are_a_file_that_training_reads(tmp_path: Path) -> None:
    path = tmp_path / "EURUSD_M1.csv"
    write_m1_csv(path, read_sample_bars(), 3000)
    bars, source = read_bars(path, ReadOptions())
    assert (source.interval_s, source.rows, source.problems) == (60, 3000, [])
    hours = read_sample_bars()
    ratio = np.diff(np.log(bars.close)).std() / np.log(hours.close / hours.open).std()
    assert ratio == pytest.approx(60**-0.5, rel=0.1)
    first = path.read_bytes()
    write_m1_csv(path, hours, 3000)
    assert path.read_bytes() == first


def test_memory_is_that_of_the_process_asked_for() -> None:
    before = memory_mb("RssAnon")
    held = np.ones(40 << 20, np.uint8)
    assert memory_mb("RssAnon") - before == pytest.approx(held.nbytes / 2**20, abs=8)
    waits = [sys.executable, "-c", "print(1, flush=True); input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        assert 1 < memory_mb("VmHWM", child.pid) < memory_mb("VmHWM")
        child.kill()


def test_a_child_keeps_bytecode_as_for_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert os.environ.items() - user_environment().items() == {("PYTHONDONTWRITEBYTECODE", "1")}
