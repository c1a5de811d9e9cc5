"""The cache of machine code."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numba import njit

from kernels.rng import gumbel, uniform
from kernels.search.planner import fill_gumbel

ROOT = Path(__file__).parents[2]
# prints the result of a kernel, its hits of the cache, and whether numba's declarations came
CALL_KERNEL = """
import sys
from kernels.rng import uniform
value, cached = uniform(1, 2, 3), sum(uniform.stats.cache_hits.values())
print(value, cached, "numba.np.arraymath" in sys.modules)
uniform.py_func.__globals__["bits"].compile("(int64, int64, int32)")
"""
# prints of a kernel and of an inlined one whether its machine code has an entry for Python
ENTRIES = """
from kernels.market.position import action_kind
from kernels.rng import mix64
for kernel, signature in ((mix64, "(uint64,)"), (action_kind, "(int64, int64)")):
    kernel.compile(signature)
    print("cpython" in next(iter(kernel.overloads.values())).library.get_llvm_str())
"""


def words_of(script: str, cache: Path) -> list[str]:
    """What a script prints in a process of its own."""
    arguments = [sys.executable, "-c", script]
    environment = {**os.environ, "SWT_CACHE_DIR": str(cache)}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_machine_code_loads_without_what_only_the_compiler_reads(tmp_path: Path) -> None:
    """The second process loads what the first one compiled; then it can still compile another version."""
    value, *cold = words_of(CALL_KERNEL, tmp_path)
    assert cold == ["0", "True"]
    assert words_of(CALL_KERNEL, tmp_path) == [value, "1", "False"]


def test_a_constant_is_compiled_as_a_variable_is() -> None:
    @njit
    def draw(n: int) -> float:
        return uniform(n, 2, 3) + uniform(1, 2, n)

    assert draw(4) == uniform(4, 2, 3) + uniform(1, 2, 4)
    assert "Literal" not in str(uniform.signatures)  # type: ignore[attr-defined]


def test_an_inlined_kernel_has_an_entry_where_python_calls_it() -> None:
    noise, again = np.zeros((2, 3), np.float32)
    fill_gumbel(noise, 1, 2, 3)
    njit(lambda out: fill_gumbel(out, 1, 2, 3))(again)
    np.testing.assert_array_equal(noise, np.float32([gumbel(1, 2, 9), gumbel(1, 2, 10), gumbel(1, 2, 11)]))
    np.testing.assert_array_equal(noise, again)
    assert "entry" in vars(fill_gumbel)


def test_an_inlined_kernel_is_compiled_without_an_entry(tmp_path: Path) -> None:
    assert words_of(ENTRIES, tmp_path) == ["True", "False"]
