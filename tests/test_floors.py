"""The shape of the house: who may import whom, how long a file may be, what stands in the top folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # a module imports lower floors only
    ["kernels._jit"],
    ["kernels.bars", "kernels.position", "kernels.rng", "kernels.simd"],
    ["kernels.hours"],
    ["kernels.ort", "kernels.tree", "kernels.scatter", "kernels.market"],
    [
        "kernels.features",
        "kernels.stats",
        "kernels.guard",
        "kernels.gumbel",
        "kernels.replay",
        "kernels.outlook",
    ],
    ["kernels.search", "kernels.market_tree", "kernels.priority"],
    ["kernels.widening"],
    ["kernels.planner"],
    ["kernels.selfplay", "kernels.reanalyze", "kernels.trader"],
    ["models.layers", "models.adam"],
    ["models.net", "models.graph"],
    ["models.encoder"],
    ["models.consistency", "models.transformer", "models.codes", "models.beta", "models.prefix"],
    ["models.joint", "models.token_graph"],
    ["models.unroll", "models.export"],
    ["host.instruments", "host.onnx_shapes", "host.progress"],
    [
        "host.config",
        "host.machine",
        "host.stop",
        "host.durable",
        "host.onnx_check",
        "host.formats",
    ],
    ["host.parsing", "host.containers"],
    ["host.resample", "host.follow", "host.judging"],
    ["host.weekly_open"],
    ["host.row_judge"],
    ["host.bars", "host.feed", "host.model_file", "host.run", "host.journal", "host.target"],
    ["host.agent"],
    ["host.actor", "host.bridge", "host.dataset", "host.limits", "host.market_check"],
    ["host.desk", "host.data_check"],
    ["host.office", "host.rehearsal"],
    ["host.synthetic", "host.backtest"],
    ["host.codebook"],
    ["host.trainer", "host.act", "host.doctor", "host.pack"],
    ["host.bench_mctx", "host.bench_torch", "host.bench_picture", "host.selftest"],
    ["host.bench_search"],
    ["host.enhancement_run"],
    ["host.bench_widening", "host.bench_rezero", "host.bench_exogenous", "host.bench_enhancements"],
    ["host.train", "host.bench"],
    ["swt"],
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
ACTING = ("host.act", "host.backtest", "host.doctor")  # a trading machine has no trainer
TOP = {
    "swt.py",
    "kernels",
    "models",
    "host",
    "tests",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
}


def modules() -> dict[str, Path]:
    files = [
        ROOT / "swt.py",
        *(p for d in ("kernels", "models", "host") for p in sorted((ROOT / d).glob("*.py"))),
    ]
    named = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in files}
    return {name: path for name, path in named.items() if not name.endswith("__init__")}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules())


def needs(name: str) -> set[str]:
    """Everything that importing `name` brings in."""
    todo, seen = [name], set()
    while todo:
        new = imports(modules()[todo.pop()]) - seen
        seen |= new
        todo += new
    return seen


def test_every_module_has_a_floor() -> None:
    assert set(modules()) == set(FLOOR)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_imports_go_down(name: str) -> None:
    for other in imports(modules()[name]):
        assert FLOOR[other] < FLOOR[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", ACTING)
def test_acting_needs_no_models(name: str) -> None:
    assert not [other for other in needs(name) if other.startswith("models.")]


def test_acting_needs_no_pandas() -> None:
    """A trading machine has numpy, numba, onnxruntime and typer."""
    program = (
        "import sys\nsys.modules.update(dict.fromkeys(('pandas', 'onnx', 'threadpoolctl')))\nimport host.act"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_help_needs_no_compiler() -> None:
    """It takes twice as long with numba."""
    program = (
        "import sys\nimport swt\nsys.argv = ['swt.py', '--help']\n"
        "try:\n    swt.main()\nfinally:\n    assert not {'numba', 'numpy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_top_folder_is_closed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0] for line in listed.splitlines() if not line.startswith(".")} <= TOP


def test_files_and_functions_are_short() -> None:
    total = 0
    for path in [*modules().values(), *sorted((ROOT / "tests").glob("*.py"))]:
        text = path.read_text()
        lines = len(text.splitlines())
        assert lines <= 700, f"{path.name} has {lines} lines"
        total += lines if path.parent.name != "tests" else 0
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"
    assert total <= 19_850
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_kernel_imports_are_visible_to_the_cache_key() -> None:
    """The cache reads imports with a regular expression: it must see what Python sees."""
    from kernels import _jit

    for name, path in modules().items():
        if name.split(".")[0] in _jit.PACKAGES:
            assert needs(name) <= set(_jit._closure(name)), f"{path.name} hides an import from the cache"
