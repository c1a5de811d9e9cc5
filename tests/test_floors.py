"""The shape of the house: who may import whom, how long a file may be, what stands in the top folder."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (  # a folder imports lower folders only
    "kernels",
    "kernels/market kernels/environments",
    "kernels/search",
    "kernels/learning kernels/live",
    "models",  # with its extensions
    "host",
    "host/data",
    "host/artifact",
    "host/live host/training",
    "host/cluster",
    "host/evaluation",
    "host/analysis host/gym",
    "host/walkforward",
    "host/commands",
    "host/bench",
    ".",
)
FLOOR = {folder: number for number, folders in enumerate(FLOORS) for folder in folders.split()}
SHELVES = {  # lines that each may have
    "core": 10_958,
    "learning": 2_454,  # self-play, one search a bar, targets, the iteration of training
    "runs": 1_678,  # training that survives: its folder, memory, health, settings and what it shows
    "evaluation": 1_189,  # known markets, and what an agent has learnt of them
    "environments": 1_937,  # what is learnt beside the market, and the market for agents of other libraries
    "analysis": 2_507,  # what a backtest is worth, and the report that shows it
    "cluster": 820,  # one training on many machines, or many trainings
    "walkforward": 779,  # training anew for each fold, and the ledger of trials
    "data": 3_930,  # how files of strangers are read, and joined
    "live": 1_750,  # acting beside money, and many decisions at once
    "extensions": 1_641,
    "bench": 1_735,
    "enhancements": 708,  # what every enhancement costs and teaches
    "rivals": 773,  # agents of other libraries beside ours
}
ENHANCEMENTS = ("host/bench/enhancement", "host/bench/curves", "host/bench/rezero")
EXTENSIONS = ("models/extensions/", "kernels/search/progressive_widening", "kernels/learning/prioritized")
RIVALS = ("host/bench/ppo", "host/bench/cartpole_rivals", "host/bench/lightzero")
ENVIRONMENTS = (
    "kernels/environments/",
    "kernels/learning/environment_replay",
    "models/extensions/afterstate",
    "host/training/environment",
    "host/commands/train_env",
    "host/bench/environments",
    "host/evaluation/episodes",
)
WALKFORWARD = ("host/commands/walkforward",)
RUNS = (
    *(f"host/training/{name}" for name in ("run_dir", "checkpoint", "metrics", "memory_plan", "health")),
    *(f"host/commands/{name}" for name in ("train", "plot", "init")),
    *("host/panel", "host/settings"),
)
ANALYSIS = ("kernels/market/statistics", "host/commands/report", "host/commands/check", "host/commands/compare")
ACTING = ("host.commands.act", "host.commands.backtest", "host.commands.doctor")  # a trading machine has no trainer
TOP = {"swt.py", "kernels", "models", "host", "tests", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}


@cache
def modules() -> dict[str, Path]:
    files = [ROOT / "swt.py", *(p for d in ("kernels", "models", "host") for p in sorted((ROOT / d).rglob("*.py")))]
    named = {p.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): p for p in files}
    return {name: path for name, path in named.items() if not name.endswith("__init__")}


def files_of_tests() -> list[Path]:
    return [p for p in sorted((ROOT / "tests").rglob("*.py")) if p.parent.name != "data" or p.name.startswith("test_")]


@cache
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


def folder_of(name: str) -> str:
    folder = modules()[name].parent.relative_to(ROOT).as_posix()
    return folder.removesuffix("/extensions")


def shelf_of(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    shelves = {
        "host/analysis": "analysis",
        "host/bench": "bench",
        "host/cluster": "cluster",
        "host/data": "data",
        "host/evaluation": "evaluation",
        "host/gym": "environments",
        "host/live": "live",
        "host/training": "learning",
        "host/walkforward": "walkforward",
        "kernels/learning": "learning",
        "kernels/live": "live",
    }
    shelf = shelves.get(path.parent.relative_to(ROOT).as_posix(), "core")
    named = {
        "environments": ENVIRONMENTS,
        "extensions": EXTENSIONS,
        "enhancements": ENHANCEMENTS,
        "rivals": RIVALS,
        "analysis": ANALYSIS,
        "walkforward": WALKFORWARD,
        "runs": RUNS,
    }
    return next((own for own, names in named.items() if name.startswith(names)), shelf)


def test_every_folder_has_a_floor() -> None:
    assert {folder_of(name) for name in modules()} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name: str) -> None:
    for other in imports(modules()[name]):
        mine, others = folder_of(name), folder_of(other)
        assert mine == others or FLOOR[others] < FLOOR[mine], f"{name} imports {other}"
    assert name not in needs(name), f"{name} imports itself through another"


def test_tests_share_through_fixtures_and_oracles() -> None:
    for path in files_of_tests():
        assert not re.search(r"^(from|import) tests\.(\w+\.)*test_", path.read_text(), re.M), path


@pytest.mark.parametrize("name", ACTING)
def test_acting_needs_no_models(name: str) -> None:
    assert not [other for other in needs(name) if other.startswith("models.")]


def test_acting_needs_no_pandas() -> None:
    """A trading machine has numpy, numba, onnxruntime and typer."""
    program = (
        "import sys\nsys.modules.update(dict.fromkeys(('pandas', 'onnx', 'threadpoolctl')))\nimport host.commands.act"
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
    for path in [*modules().values(), *files_of_tests()]:
        text = path.read_text()
        lines = len(text.splitlines())
        assert lines <= (700 if "tests" in path.parts else 500), f"{path.name} has {lines} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    assert len(readme.split()) <= 1_100
    assert max(map(len, readme.splitlines())) <= 110


@pytest.mark.parametrize("shelf", SHELVES)
def test_a_shelf_keeps_its_budget(shelf: str) -> None:
    paths = [path for path in modules().values() if shelf_of(path) == shelf]
    assert sum(len(path.read_text().splitlines()) for path in paths) <= SHELVES[shelf]


def test_kernel_imports_are_visible_to_the_cache_key() -> None:
    """The cache reads imports with a regular expression: it must see what Python sees."""
    from kernels import jit

    for name, path in modules().items():
        if name.split(".")[0] in jit.KERNEL_PACKAGES:
            assert needs(name) <= set(jit._import_closure(name)), f"{path.name} hides an import from the cache"
