"""`doctor`: checks, on one screen, whether this machine is fit to act; the kernels of `act` are compiled on the way."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from host.artifact.manifest import LoadedModel, load_models
from host.data.parsing import format_utc
from host.live.live_agent import measure_latencies
from host.machine import load_average, usable_cores
from kernels.jit import cache_root, module_digest
from kernels.market.bars import SECOND_NS

PACKAGES = ("numpy", "numba", "llvmlite", "onnxruntime", "typer")
NUM_DECISIONS = 1000
MAX_P99_US = 20_000  # of a decision; on a machine with a larger p99 something else takes the processor
MAX_CLOCK_DRIFT_S = 2.0  # between the clock, the stamps of the file system and the steady clock


class Check(NamedTuple):
    """One line of the screen."""

    name: str
    passed: bool
    text: str


def doctor(model: Path) -> dict[str, Any]:
    """The document of `doctor --json`; ModelError where the model is refused."""
    begin, wall = time.perf_counter(), time.time()
    models = load_models(model)
    loaded = models[0]  # the networks, and so the latencies, are those of every instrument
    latency = measure_latencies(loaded, 1 + NUM_DECISIONS)
    for other in models[1:]:
        measure_latencies(other, 1)
    steady = time.perf_counter() - begin
    first_s, rest = latency[0] / 1e6, np.array(latency[1:], np.float64)
    p50, p99, longest = np.quantile(rest, (0.5, 0.99, 1.0)).tolist()
    checks = [
        *check_packages(),
        check_cache(),
        check_clock(max(models, key=lambda each: each.trained_ns), wall + steady),
        check_time_zones(),
        check_threads(),
        *(Check("model", True, f"{model}: {each.sha256[:16]}, {describe_model(each)}") for each in models),
        Check("self-test", True, "the graphs return here what they returned where they were trained"),
        Check(
            "latency",
            p99 < MAX_P99_US,
            f"p50 {p50:.0f} us, p99 {p99:.0f}, max {longest:.0f} of {len(rest)} decisions; "
            f"the first one took {first_s:.2f} s, compilation included",
        ),
    ]
    return {
        "passed": all(check.passed for check in checks),
        "program": module_digest("kernels.live.policy_step"),
        "model": loaded.sha256,
        "latency_us": {"p50": p50, "p99": p99, "max": longest},
        "first_decision_s": first_s,
        "checks": [check._asdict() for check in checks],
    }


def print_doctor(document: dict[str, Any], out: IO[str]) -> None:
    """Print one line for each check."""
    print(f"swt {document['program']} on Python {platform.python_version()}, {platform.platform()}", file=out)
    for check in document["checks"]:
        print(f"{'ok' if check['passed'] else 'FAILED':>6}  {check['name']:<11} {check['text']}", file=out)


def check_packages() -> list[Check]:
    """Whether the packages that acting needs are installed."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return [Check("packages", False, f"{name} is not installed: pip install {name}")]
    return [Check("packages", True, ", ".join(versions))]


def check_cache() -> Check:
    """Where compiled kernels are kept, with a hint if a clean-up empties that folder."""
    is_temporary = cache_root().is_relative_to(tempfile.gettempdir()) and "SWT_CACHE_DIR" not in os.environ
    hint = ", which a clean-up empties: then a start takes a minute; set SWT_CACHE_DIR" if is_temporary else ""
    return Check("cache", True, f"{cache_root()}{hint}")


def check_clock(loaded: LoadedModel, expected: float) -> Check:
    """Whether the clock ran evenly, agrees with the file system, and is past the data of the training."""
    now = time.time()
    with tempfile.TemporaryFile() as file:
        stamp = os.fstat(file.fileno()).st_mtime
    faults = [
        text
        for text, is_fault in (
            (f"moved by {now - expected:+.1f} s against the steady clock", abs(now - expected) > MAX_CLOCK_DRIFT_S),
            (f"{now - stamp:+.1f} s from the file system's", abs(now - stamp) > MAX_CLOCK_DRIFT_S),
            ("before the end of the model's training data", now < loaded.trained_ns / SECOND_NS),
        )
        if is_fault
    ]
    return Check("clock", not faults, f"{format_utc(round(now) * SECOND_NS)} {'; '.join(faults)}".rstrip())


def check_time_zones() -> Check:
    """Whether time zones are known, for feeds in local time."""
    try:
        ZoneInfo("Europe/Athens")
    except ZoneInfoNotFoundError:
        return Check("time zones", False, "none known, for feeds whose clock is not UTC: pip install tzdata")
    return Check("time zones", True, "known")


def check_threads() -> Check:
    """The number of cores and their load."""
    count, load = usable_cores(), load_average()
    busy = ": busy, decisions may come late" if load > count else ""
    return Check("threads", True, f"act uses 1 of {count} cores, load average {load:.1f}{busy}")


def describe_model(loaded: LoadedModel) -> str:
    """Interval, instrument, pip and training data of a model."""
    m = loaded.manifest
    pip = m["instrument"]["pip_px"]
    first, last = m["data"]["span"]
    return f"{m['instrument']['symbol']}, bars of {m['interval_s']} s, pip {pip:g}, trained on {first} .. {last}"
