"""`bench ppo`: the rivals' market is the ledger's, their clock is fair, and an interrupted bench goes on."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from host.bench import ppo as module
from host.bench import ppo_run as run
from host.bench.options import BenchError, BenchOptions
from host.bench.ppo import bench_ppo
from host.bench.ppo_env import backtest_policy, new_decisions, observe
from host.bench.ppo_meter import Meter, Task, new_task
from host.bench.ppo_run import FIGURES, OURS, PACKAGES, TRADED_MARKETS, Job, job_key, measure_job
from host.evaluation.exam import new_evaluation_set, selftest_config
from host.evaluation.optimum import run_ledger
from host.evaluation.synthetic import INTERVAL_NS, PIP, SYNTHETIC_INSTRUMENT, SyntheticOptions, make_market
from host.training.dataset import Dataset, new_dataset
from host.training.feature_store import FeatureStore
from kernels.market.position import BUY, CLOSE, HOLD, SELL

TINY = (
    *("market.episode_length=24", "network.latent=8", "network.hidden=8", "train.num_simulations=2"),
    *("train.num_envs=2", "train.batches_per_iteration=1", "train.updates_per_iteration=2", "train.batch_size=32"),
    *("train.replay_capacity=8", "search.num_simulations=2"),
)


def new_data(name: str, *settings: str) -> Dataset:
    synthetic = make_market(name, SyntheticOptions(length=2000))
    config = selftest_config([*TINY, *settings])
    return new_dataset(synthetic.bars, synthetic.extra, config, SYNTHETIC_INSTRUMENT, INTERVAL_NS, 1)


def test_a_backtest_follows_the_policy_and_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.bench.ppo_env.CHUNK_ROWS", 64)
    data = new_data("planted")
    bars, market, first, stop = data.bars, data.market_spec.market, 1600, 1900
    table = np.random.default_rng(2).integers(0, 4, (len(bars.time), 3))
    decisions, asked = new_decisions(market), list[int]()

    def policy(observations: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.int64]:
        bar, row = observations[:, 0].astype(int), observations[:, 1].astype(int) + 1
        np.testing.assert_array_equal(legal, decisions.legal[row])
        asked.extend(bar)
        return table[bar, row]

    result = backtest_policy(policy, bars, market, first, stop)
    assert asked == [bar for bar in range(first, stop - 1) for _ in range(3)]
    side, actions = 0, []
    for t in range(first, stop):
        action = table[t, side + 1]
        is_legal = action in ((HOLD, BUY, SELL) if side == 0 else (HOLD, CLOSE))
        actions.append(action if is_legal else HOLD)
        side = (side, 1, -1, 0)[actions[-1]]
        if t < stop - 1:
            assert result.target[t - first] == side
    booked = run_ledger(type(bars)(*(column[first:stop] for column in bars)), np.array(actions, np.int8), market)
    assert result.profit_pips == pytest.approx(booked.profit_px / PIP)
    assert result.trades == booked.trades


def test_a_task_has_our_features_and_keeps_validation_apart() -> None:
    data = new_data("leak", "train.validation_fraction=0")
    task = new_task(data, 24, seed=0)
    assert not task.features[: data.test_first].any()
    task.prepare()
    ts = np.concatenate([data.starts, np.arange(data.test_first, len(data.bars.time))])
    store = FeatureStore(data, len(ts), 1)
    store.acquire(ts, 1)
    np.testing.assert_array_equal(task.features[ts], store.X[store.row_of_bar[ts]])
    assert task.validation_first == int(1500 * 0.85)
    seen = [first_bars(task, 4096, validates).max() for validates in (False, True)]
    assert seen == [data.starts.max(), task.validation_first - 25]
    first = first_bars(task, 8, False)
    np.testing.assert_array_equal(first, first_bars(task, 8, False))
    assert (first != first_bars(task._replace(seed=1), 8, False)).any()


def first_bars(task: Task, count: int, validates: bool) -> NDArray[np.float32]:
    episodes = task.episodes(count, validates)
    episodes.begin()
    assert not observe(episodes)[:, 1].any()
    return observe(episodes)[:, 0]


def ticking(*steps: float) -> Callable[[], float]:
    times = itertools.accumulate(steps)
    return lambda: next(times)


def test_evaluations_cost_no_time() -> None:
    """Of the clock's seconds 100 go by in the first evaluation; an iteration that passes two marks fills both."""
    shares = list[float]()
    now = ticking(5.0, 10.0, 6.0, 100.0, 4.0, 50.0, 7.0)
    meter = Meter((15.0, 30.0, 45.0), lambda agent: {"figure": agent}, shares.append, now)
    assert meter.spent() == 0
    meter.start()
    assert meter.read("a", 1)
    assert meter.read("b", 2)
    assert meter.read("c", 3)
    assert not meter.read("d", 4)
    assert meter.curve == [
        {"mark_s": 15.0, "cpu_s": 16.0, "steps": 2, "figure": "b"},
        {"mark_s": 30.0, "cpu_s": 70.0, "steps": 4, "figure": "d"},
        {"mark_s": 45.0, "cpu_s": 70.0, "steps": 4, "figure": "d"},
    ]
    assert shares == [16 / 45, 1.0]


def pretend(job: Job, report_progress: Callable[[float], object]) -> dict[str, Any]:
    report_progress(0.5)
    level = (0.9 if job.agent == OURS else 0.7) + 0.02 * job.seed
    fraction = None if job.market == "noise" else level
    figures = {
        "fraction_of_optimum": fraction,
        "expected_fraction": fraction and fraction - 0.1,
        "exposure": level,
        "trades": 3,
    }
    return {"curve": [{"mark_s": mark, "cpu_s": mark + 1.0, "steps": 9, **figures} for mark in (15, 30, 60.0)]}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda package: package)
    monkeypatch.setattr(run, "version", lambda package: "1")


@pytest.mark.usefixtures("installed")
def test_the_bench_goes_on_and_writes_its_table_and_picture(tmp_path: Path) -> None:
    options = BenchOptions(seeds=3, out=tmp_path, only="noise")
    done = list[Job]()

    def fails(job: Job, report_progress: Callable[[float], object]) -> dict[str, Any]:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(job)
        return pretend(job, report_progress)

    with pytest.raises(KeyboardInterrupt):
        bench_ppo(options, fails)
    assert len(json.loads((tmp_path / "ppo.json").read_text())) == 5
    again = list[Job]()
    document = bench_ppo(options, lambda job, report: again.append(job) or pretend(job, report))
    assert [(job.seed, job.agent) for job in done + again] == [*itertools.product(range(3), (OURS, *PACKAGES))]
    assert json.loads((tmp_path / "ppo.json").read_text()) == document
    assert [row["seed"] for row in document] == [0] * 4 + [1] * 4 + [2] * 4
    head, _, ours, *_ = (tmp_path / "ppo.md").read_text().splitlines()
    assert head == "| market | agent | seeds | 15 s | 30 s | 60 s | expected, 60 s |"
    assert ours == "| noise | ours | 3 |" + " 92 % [90 to 94] |" * 4
    assert len(bench_ppo(BenchOptions(seeds=1, out=tmp_path), pretend)) == 4 * len(TRADED_MARKETS)
    assert "| planted | PPO | 1 | 70 % | 70 % | 70 % | 60 % |" in (tmp_path / "ppo.md").read_text()
    assert module.spread_text([-4.2, -0.1, 0.2]) == "0 % [-4 to 0]"
    lines = ElementTree.parse(tmp_path / "ppo.svg").findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4 * len(TRADED_MARKETS)


def test_without_the_packages_ours_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    document = bench_ppo(BenchOptions(seeds=1, out=tmp_path), pretend)
    assert [(row["agent"], row["market"]) for row in document] == [(OURS, market) for market in TRADED_MARKETS]
    assert "without PPO, masked PPO, DQN: pip install stable-baselines3 sb3-contrib" in capsys.readouterr().err


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(BenchError, match="masked PPO, DQN, noise"):
        bench_ppo(BenchOptions(only="A2C"), pretend)


@pytest.mark.usefixtures("installed")
def test_a_key_names_all_that_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = Job("PPO", "planted", 0, 3.0, 2000, ())
    others = [
        job._replace(agent="masked PPO"), job._replace(market="close"), job._replace(seed=1), job._replace(minutes=1.0),
        job._replace(length=3000), job._replace(settings=("market.episode_length=24",)),
    ]  # fmt: skip
    assert len({job_key(one) for one in (job, *others)}) == 7
    before, ours = job_key(job), job_key(job._replace(agent=OURS))
    monkeypatch.setattr(run, "program_version", lambda: "another learner")
    resolve = run.job_config
    monkeypatch.setattr(run, "job_config", lambda job: resolve(job._replace(settings=("train.batch_size=64",))))
    assert job_key(job) == before
    assert job_key(job._replace(agent=OURS)) != ours
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert job_key(job) != before


def test_our_job_measures_the_default_agent() -> None:
    job = Job(OURS, "planted", 0, 0.001, 2000, TINY)
    (point,) = measure_job(job, lambda share: None)["curve"]
    assert set(point) == {"mark_s", "cpu_s", "steps", *FIGURES}
    assert (point["mark_s"], point["steps"] % 48) == (0.06, 0)
    assert point["cpu_s"] >= 0.06
    assert point["steps"] > 0


def test_stable_baselines_is_told_of_cuts_and_masks() -> None:
    pytest.importorskip("stable_baselines3")
    from host.bench.ppo_agents import LockstepEnv, LookUp, torch

    data = new_data("noise")
    task = new_task(data, 2, seed=0)
    env = LockstepEnv(task.episodes(3, False))
    begin = env.reset()
    _, _, done, infos = env.step(np.array([BUY, HOLD, SELL]))
    assert not done.any()
    assert infos == [{}] * 3
    assert env.has_attr("action_masks")
    masks = [[True, False, False, True], [True, True, True, False], [True, False, False, True]]
    np.testing.assert_array_equal(env.env_method("action_masks"), masks)
    observation, _, done, infos = env.step(np.full(3, HOLD))
    assert done.all()
    assert all(info["TimeLimit.truncated"] for info in infos)
    ends = np.stack([info["terminal_observation"] for info in infos])
    np.testing.assert_array_equal(ends, np.stack([begin[:, 0] + 2, [1, 0, -1]], axis=1))
    assert not observation[:, 1].any()
    task.prepare()
    seen = LookUp(env.observation_space, task.features)(torch.from_numpy(ends)).numpy()
    np.testing.assert_array_equal(seen[:, :-2], task.features[ends[:, 0].astype(int)])
    np.testing.assert_array_equal(seen[:, -2:], [[1, 1], [0, 0], [-1, 1]])


@pytest.mark.parametrize("agent", PACKAGES)
def test_a_rival_is_measured(agent: str) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("sb3_contrib")
    (point,) = measure_job(Job(agent, "leak", 0, 0.01, 4000, TINY), lambda share: None)["curve"]
    assert set(point) == {"mark_s", "cpu_s", "steps", *FIGURES}
    assert point["steps"] > 0
    assert np.isfinite([point[name] for name in FIGURES]).all()


def test_the_optimum_as_a_policy_has_all_of_it() -> None:
    data = new_data("planted")
    synthetic = make_market("planted", SyntheticOptions(length=2000))
    evaluation, task = new_evaluation_set(synthetic, data), new_task(data, 24, 0)
    from host.evaluation.optimum import state_cells

    best = evaluation.optimal_policy.action[:, state_cells(evaluation.test_market, evaluation.optimal_policy)]

    def policy(observations: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.int64]:
        at, row = observations[:, 0].astype(int) - evaluation.first, observations[:, 1].astype(int) + 1
        return best[row, at].astype(np.int64)

    figures = run.measure_rival(evaluation, task, policy)
    assert figures["fraction_of_optimum"] == pytest.approx(1)
    assert figures["expected_fraction"] == pytest.approx(1)


def test_a_rival_may_train_on_our_validation_part_too() -> None:
    for agent, fraction in ((OURS, 0.15), ("DQN", 0.0)):
        assert run.job_config(Job(agent, "planted", 0, 1.0, 2000, ())).train.validation_fraction == fraction
