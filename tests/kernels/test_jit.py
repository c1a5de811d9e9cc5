"""The cache of machine code."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALL_KERNEL = """
import sys
from kernels.rng import uniform
value, cached = uniform(1, 2, 3), sum(uniform.stats.cache_hits.values())
print(value, cached, "numba.np.arraymath" in sys.modules)
uniform.py_func.__globals__["bits"].compile("(int64, int64, int32)")
"""


def call_kernel(cache: Path) -> list[str]:
    """Call a kernel in a process of its own: its result, its hits of the cache, whether numba's declarations came."""
    arguments = [sys.executable, "-c", CALL_KERNEL]
    environment = {**os.environ, "SWT_CACHE_DIR": str(cache)}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_machine_code_loads_without_what_only_the_compiler_reads(tmp_path: Path) -> None:
    """The second process loads what the first one compiled; then it can still compile another version."""
    value, *cold = call_kernel(tmp_path)
    assert cold == ["0", "True"]
    assert call_kernel(tmp_path) == [value, "1", "False"]
