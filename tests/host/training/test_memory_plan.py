"""A training takes what its plan says, fits what it is given, and neither grows nor slows down; the weights are equal.

SWT_TRIES=5000 soaks so many iterations; the default is small.
"""

import os
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import swt
from host.config import ConfigError
from host.machine import memory_mb
from host.training.domain import MemoryRoom
from host.training.memory_plan import PROGRAM_MB, PartSizes, nbytes, parse_memory, plan_memory, scaled
from host.training.search_pool import PLAY, Searches, SearchPool, batches_of
from host.training.trainer import Trainer
from kernels.search.config import new_search_config
from kernels.search.planner import STATS
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import LINES, TINY
from tests.fixtures.trainings import dataset, model_bytes, tiny, trained

ITERATIONS = max(160, int(os.environ.get("SWT_TRIES", "0")))
MAX_LEAK_MB = 0.02  # an iteration
MAX_SLOWDOWN = 0.5  # over all iterations, as a fraction
CHILD = """
import sys, threading, time
import swt
from host.machine import memory_mb
from kernels.jit import watch_compiler
compiled, peak, sys.argv = [], 0.0, ["swt.py", *sys.argv[1:]]
def sample():
    global peak
    while True:
        peak = max(peak, memory_mb("RssAnon"))
        time.sleep(0.005)
threading.Thread(target=sample, daemon=True).start()
with watch_compiler(lambda *kernel: compiled.append(kernel)):
    swt.main()
print(peak, len(compiled))
"""
SIZES = {
    "small": [],
    "replay": ["market.episode_length=48", "train.replay_capacity=8000", "train.batches_per_iteration=4000",
               "train.reanalyze=false"],
    "networks": ["network.hidden=1024", "network.latent=64", "network.num_chance_codes=8", "train.batch_size=512",
                 "train.updates_per_iteration=1", "train.num_simulations=4", "search.num_simulations=4"],
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not count anonymous memory")
@pytest.mark.parametrize("size", SIZES)
def test_a_training_takes_what_its_plan_says(size: str, tmp_path: Path) -> None:
    """The whole command, with its report."""
    (tmp_path / "bars.csv").write_text("".join(LINES))
    (tmp_path / "tiny.toml").write_text(TINY)
    settings = [word for setting in SIZES[size] for word in ("--set", setting)]
    words = ["bars.csv", "--config", "tiny.toml", "--memory", "4GB", "--threads", "1", "--episodes", "6", *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for out in ("cold", "warm"):  # compiling takes memory too: what was compiled is run again from the cache
        command = [sys.executable, "-c", CHILD, "train", *words, "--out", out]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peak, compiled = map(float, done.stdout.splitlines()[-1].split())
        if compiled == 0:
            break
    planned = float(done.stderr.partition("  sum ")[2].split()[0])
    print(f"\n{size}: {peak:.0f} MB, planned {planned:.0f}")
    assert planned == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize(
    "settings",
    [[], ["search.algorithm=gumbel"], ["search.algorithm=widening"], ["network.dynamics=transformer"],
     ["market.reward=drawdown_penalised"], ["train.chance_codes=learned", "train.consistency_weight=1.0"]],
    ids=lambda s: s[0] if s else "default",
)  # fmt: skip
def test_a_plan_keeps_within_its_limit_and_uses_what_there_is(settings: list[str]) -> None:
    config, bars = tiny(*settings, "train.replay_capacity=3000", "train.instrument_shares=[1, 3]"), [200_000, 40_000]
    with pytest.raises(ConfigError, match="--memory: 10MB do not hold this training: give --memory") as refusal:
        plan_memory(config, bars, 2, 10)
    least = parse_memory(str(refusal.value).split("--memory ")[1].split(",")[0])
    rooms = []
    for limit in (least, 1.05 * least, 2 * least, 100 * least):
        plan = plan_memory(config, bars, 2, limit)
        assert plan.total_mb <= limit
        assert min(plan.parts.values()) > 0
        rooms.append(plan.room)
    with pytest.raises(ConfigError):
        plan_memory(config, bars, 2, least - 2)
    assert rooms == sorted(rooms)
    assert 2 <= rooms[0].max_searches < rooms[2].max_searches
    sizes = PartSizes(config, bars, 2)
    assert rooms[-1].max_searches == sizes.num_searches > 2
    all_features = sizes.plan(MemoryRoom(1e6)).parts["features"]
    assert plan.parts["features"] == all_features > 240_000 * sizes.features * 4 / 2**20
    assert plan.total_mb == pytest.approx(sum(plan.parts.values()))
    assert [line.split()[0] for line in plan.lines()] == [*plan.parts, "sum"]
    assert plan.parts["program"] == PROGRAM_MB
    with_ray = plan_memory(config, bars, 2, 2 * least, 90.0)
    assert with_ray.parts["ray"] == 90.0
    assert with_ray.total_mb <= 2 * least


def test_bytes_are_counted_once_and_extrapolated() -> None:
    one = np.zeros((3, 8))
    assert nbytes([one[1:], (one.T, {"not": one}), np.zeros(2, np.int8)]) == one.nbytes + 2
    assert scaled(lambda n: (np.zeros((n, 3)), np.zeros(5)), 10**9) == 24 * 10**9 + 40


def test_sizes_are_read_as_people_write_them() -> None:
    sizes = {"4GB": 4096, "4 gb": 4096, "1.5GiB": 1536, "800MB": 800, "800m": 800, ".5G": 512}
    assert {text: parse_memory(text) for text in sizes} == sizes
    for text in ("", "4", "GB", "-1GB", "4TB", "1e3MB", "nan"):
        with pytest.raises(ConfigError, match="write it as 4GB or 800MB"):
            parse_memory(text)


def test_little_room_changes_no_weight(tmp_path: Path) -> None:
    settings = ["search.value_reuse=off", "train.num_envs=2", "train.batches_per_iteration=4"]  # in four batches
    config = tiny(*settings)
    trainer = Trainer([dataset(config)], config, 2, MemoryRoom(0.0, 2))
    for _ in range(3):
        trainer.run_iteration()
    assert len(trainer.markets[0].feature_store.X) == 16 * 25 < len(trained(3, 1, *settings).markets[0].feature_store.X)
    assert model_bytes(trainer, tmp_path) == model_bytes(trained(3, 1, *settings), tmp_path)


def test_no_more_searches_than_asked_for_have_memory_at_once() -> None:
    alive, most, seen = weakref.WeakSet[Any](), Counter[str](), list[int]()

    class Networks:
        def planner(self, roots: int, config: Any) -> Any:
            planner = type("P", (), {"stats": np.ones(len(STATS), np.int64)})()
            alive.add(planner)
            return planner

    class Market:
        index = 0

        def run_batch(self, searches: Searches, rows: Any, planner: Any, first: int, batch: Any) -> int:
            most["alive"] = max(most["alive"], len(alive))
            seen.extend(batch)
            return 0

    networks: Any = Networks()
    rows: Any = None
    for limit, expected in ((3, 3), (100, 10)):
        most.clear()
        seen.clear()
        searches = Searches(PLAY, new_search_config(), 2)
        counts = SearchPool(1, limit).search(Market(), searches, rows, networks, batches_of(np.arange(20), 2))
        assert (most["alive"], counts["searches"], seen) == (expected, 10, list(range(20)))


def test_the_command_prints_its_plan_or_refuses_with_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(swt, "install_signal_handlers", lambda *_: None)
    Path("bars.csv").write_text("".join(LINES))
    Path("tiny.toml").write_text(TINY)

    def train(*words: str) -> tuple[int, str]:
        command = ["swt.py", "train", "bars.csv", "--config", "tiny.toml", "--episodes", "2", "--threads", "1", *words]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        code = 0
        try:
            swt.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    for text in ("20MB", "much"):
        code, said = train("--memory", text)
        assert code == 3
        assert said.splitlines()[-1].startswith(f"swt: --memory: {text}")
        assert not Path("runs").exists()
    code, said = train("--memory", "20MB")
    code, said = train(*said.split("give ")[1].split(",")[0].split())
    assert code == 0, said
    table = said[said.index("memory within") :].splitlines()[1:10]
    assert [line.split()[0] for line in table][-2:] == ["program", "sum"]
    parts = [float(line.split()[1]) for line in table]
    assert parts[-1] == pytest.approx(sum(parts[:-1]), abs=0.5)


def slope(y: list[float]) -> float:
    """The median slope of all pairs (Theil 1950, Sen 1968): a third of outliers does not move it far."""
    a, b = np.triu_indices(len(y), 1)
    return float(np.median((np.asarray(y)[b] - np.asarray(y)[a]) / (b - a)))


def fixed_work() -> float:
    """The CPU seconds of a piece of work that stays the same: what slows the machine down slows it down as well."""
    begin = time.process_time()
    sum(i & 7 for i in range(100_000))
    return time.process_time() - begin


def soak(trainer: Trainer, iterations: int, between: Callable[[], object] = lambda: None) -> tuple[float, float]:
    """MB that an iteration adds, and the fraction by which the last one is slower than the first.

    The CPU time of an iteration is divided by that of the fixed work beside it.
    """
    memory, times = list[float](), list[float]()
    for _ in range(iterations):
        begin = time.process_time()
        trainer.run_iteration()
        between()
        times.append((time.process_time() - begin) / fixed_work())
        memory.append(memory_mb("RssAnon"))
    return slope(memory), slope(times) * iterations / float(np.median(times))


def test_a_long_training_neither_grows_nor_slows_down() -> None:
    config = tiny("train.validation_fraction=0.0", "train.updates_per_iteration=1")
    trainer = Trainer([dataset(config)], config, 1)
    for _ in range(10):
        trainer.run_iteration()
    leak, slowdown = soak(trainer, ITERATIONS)
    print(f"\n{ITERATIONS} iterations: {1024 * leak:.1f} kB each, the last one {slowdown:.0%} slower than the first")
    assert leak < MAX_LEAK_MB
    assert slowdown < MAX_SLOWDOWN
    kept, passes = list[bytes](), list[int]()
    if memory_mb("RssAnon") > 0:
        assert soak(trainer, 40, lambda: kept.append(b"x" * 50_000 + bytes([len(kept)])))[0] > MAX_LEAK_MB

    begin = time.process_time()
    for _ in range(5):
        trainer.run_iteration()
    typical = (time.process_time() - begin) / 5

    def work_ever_longer() -> None:
        passes.append(len(passes))
        end = time.process_time() + typical * len(passes) / 8
        while time.process_time() < end:
            pass

    assert soak(trainer, 25, work_ever_longer)[1] > MAX_SLOWDOWN
