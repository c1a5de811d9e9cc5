"""`bench start` and `bench phases`: where the time before the first learning step goes, and what two threads gain."""

import json
import statistics
import subprocess
import sys

from host.bench.options import BenchOptions
from host.bench.process import ROOT, BenchRow, user_environment

MARKING = """
import json, sys, time
from host.machine import memory_mb
rows = []
def mark(stage):
    rows.append([stage, time.process_time() * 1e3, memory_mb("VmRSS")])
"""
STAGES = {  # of a training with the default settings on the bundled bars, each after those before it
    "python": "",
    "typer": "import typer",
    "numpy": "import numpy",
    "numba": "import numba",
    "pandas": "import pandas",
    "program": "from host.commands.train import *; from host.bench.kernels import *",
    "bars": "bars = read_sample_bars()",
    "dataset": (
        "config = load_config(None, sys.argv[1:]); extra = np.empty((len(bars.time), 0), np.float32)\n"
        "data = new_dataset(bars, extra, config, SYNTHETIC_INSTRUMENT, HOUR_NS, 1)"
    ),
    "trainer": "trainer = Trainer([data], config, 1)",
    "first learning step": "trainer.run_iteration()",
}
PHASES = ("collect_s", "reanalyze_s", "learn_s")  # of the metrics of an iteration


def bench_start(options: BenchOptions) -> list[BenchRow]:
    """CPU milliseconds and resident megabytes up to the first learning step, stage by stage, from a warm cache."""
    lines = [MARKING, *(f"{code}\nmark({stage!r})" for stage, code in STAGES.items()), "print(json.dumps(rows))"]
    command = [sys.executable, "-c", "\n".join(lines), *options.settings, "train.updates_per_iteration=1"]
    runs = []
    for _ in range(1 + options.rounds):
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, env=user_environment())
        runs.append(json.loads(run.stdout))
    rows, before = list[BenchRow](), 0.0
    for stage, *figures in zip(STAGES, *runs[1:], strict=True):  # the first run warms the caches
        until_ms, rss_mb = (statistics.median(figure[i] for figure in figures) for i in (1, 2))
        rows.append({"stage": stage, "cpu_ms": round(until_ms - before, 1), "until_ms": round(until_ms, 1)})
        rows[-1]["rss_mb"], before = rss_mb, until_ms
    return rows


def bench_phases(options: BenchOptions) -> list[BenchRow]:
    """Wall seconds of the phases of an iteration on 1 and on more threads, in turns; what Amdahl's law makes of 8.

    The serial share s follows from t(n) = t(1) (s + (1 - s) / n).
    """
    from host.bench.kernels import new_synthetic_trainer
    from host.config import load_config
    from host.evaluation.synthetic import SyntheticOptions

    n = max(2, options.threads)
    config = load_config(None, list(options.settings))
    market = SyntheticOptions(length=options.length)
    trainers = [new_synthetic_trainer("planted", market, config, threads)[0] for threads in (1, n)]
    turns = [[trainer.run_iteration() for trainer in trainers] for _ in range(1 + options.rounds)]
    rows = list[BenchRow]()
    for phase in PHASES:
        one, many = (statistics.median(turn[i][phase] for turn in turns[1:]) for i in (0, 1))
        serial = min(max((n * many / one - 1) / (n - 1), 0.0), 1.0)
        rows.append({"phase": phase, "threads": n, "one_thread_ms": round(one * 1e3, 2), "ms": round(many * 1e3, 2)})
        rows[-1] |= {"efficiency": round(one / (n * many), 3), "gain_at_8": round(1 / (serial + (1 - serial) / 8), 2)}
    return rows
