"""host/live/README.md says what the program does: its tables are compared with the code."""

import ast
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from host.config import RiskConfig
from host.data.feed import Bar
from host.data.parsing import format_utc
from host.live import limits
from host.live.target_file import PositionRow, format_target, parse_position
from kernels.live.risk import (
    ACTIVE,
    HALTED,
    MarketSnapshot,
    RiskDecision,
    RiskLimits,
    RiskState,
    apply_limits,
    check_limits,
    target_reason,
)
from kernels.market.bars import SECOND_NS
from kernels.market.calendar import CLOSED_ON_WEEKENDS, DAY_NS, HOUR_NS, weekly_close
from kernels.market.features import HISTORY
from tests.fixtures.acting import Acting, acting, bars, outcomes
from tests.fixtures.paths import ROOT
from tests.fixtures.targets import NOW, ROW

__all__ = ["acting", "bars"]  # fixtures

README = (ROOT / "host" / "live" / "README.md").read_text()
SATURDAY = 1_716_033_600 * SECOND_NS
# Every limit of 1 is broken here.
BAD = MarketSnapshot(
    now_ns=SATURDAY,
    close_ns=SATURDAY + 2 * SECOND_NS,
    interval_ns=HOUR_NS,
    weekly_close=weekly_close(CLOSED_ON_WEEKENDS),
    trained_ns=SATURDAY - 2 * DAY_NS,
    equity=-2.0,
    trade_profit=-2.0,
    spread=2.0,
    feature_drift=2.0,
    halt_requested=False,
    position_fault="",
)


def table(head: str) -> list[list[str]]:
    """The cells of the rows of the table whose first column is called `head`."""
    lines = README.split(f"\n| {head} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def documented_default(name: str, value: float | None) -> str:
    factor = f"{limits.BACKTEST_FACTOR:g} x the backtest's, at least "
    follows = {
        "changes_per_hour": f"{factor}{limits.MIN_CHANGES_PER_HOUR:g}",
        "daily_loss": f"{factor}{limits.MIN_DAILY_LOSS:g} mean day ranges",
        "drawdown": f"{factor}{limits.MIN_DRAWDOWN:g} mean day ranges",
        "losing_streak": f"{factor}{limits.MIN_LOSING_STREAK:g}",
        "max_spread": f"{limits.SPREAD_FACTOR:g} x the mean or usual spread",
    }
    return follows[name] if value is None else f"{value:g}"


def test_every_limit_is_documented_with_its_default() -> None:
    assert [(words(row[0])[0], row[1]) for row in table("limit")] == [
        (name, documented_default(name, value)) for name, value in asdict(RiskConfig()).items()
    ]


@pytest.mark.parametrize("row", table("limit"), ids=lambda row: row[0].strip("`"))
def test_a_limit_has_the_state_and_the_reason_that_are_documented(row: list[str]) -> None:
    name, state, reason = words(row[0])[0], row[2], words(row[3])[0]
    off = RiskLimits(*[0.0] * len(RiskLimits._fields))._replace(max_target=1.0)
    if name == "max_target":
        half = RiskDecision(ACTIVE, "agent", 0.5)
        decision = half._replace(reason=target_reason(apply_limits(RiskState(), 1.0, half, 0), half))
    elif name == "stale_s":  # seen between two bars: test_runner.py has it happen
        decision = RiskDecision(HALTED, "stale-feed" if "stale-feed" in reasons() else "", 0.0)
    else:
        changed = RiskState(target_changes_ns=(SATURDAY,))
        decision = check_limits(changed, BAD, off._replace(**{name: 1.0}))[1]
    assert (decision.state, decision.reason) == (state, reason)


def reasons() -> set[str]:
    """The hyphenated words in the sources of the reasons, and the plain ones."""
    sources = [ROOT / "kernels" / "live" / "risk.py", ROOT / "host" / "live" / "runner.py"]
    found = {word for path in sources for word in re.findall(r'"([a-z]+(?:-[a-z]+)+)"', path.read_text())}
    return found | {"agent", "changes", "drawdown", "spread", "weekend", "unwritten"}


def test_every_reason_is_documented() -> None:
    listed = {word for row in table("limit") for word in words(row[3])} | {words(row[0])[0] for row in table("reason")}
    assert listed - {"DataError"} == reasons() - {"warm-up"}
    assert "`warm-up`" in README


def exit_codes(folder: Path) -> dict[str, int]:
    """Exit code of every error class in the files of a folder, or of a file."""
    paths = [folder] if folder.suffix else sorted(folder.rglob("*.py"))
    return {
        node.name: int(ast.unparse(assign.value))
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for assign in node.body
        if isinstance(assign, ast.Assign) and ast.unparse(assign.targets[0]) == "exit_code"
    }


def test_every_exit_code_is_documented() -> None:
    documented = {int(row[0]): words(row[1]) for row in table("code")}
    program = {name: code for top in ("host", "kernels", "models") for name, code in exit_codes(ROOT / top).items()}
    ends = {int(code) for code in re.findall(r"(?:exit|Exit)\((\d+)\)", (ROOT / "swt.py").read_text())}
    assert set(program.values()) | ends | {0, 143} == set(documented)
    for code, names in documented.items():
        assert {program[name] for name in names} <= {code}
    of_acting: dict[str, int] = {}
    for part in ("live", "data", "artifact", "atomic.py", "config.py"):
        of_acting |= exit_codes(ROOT / "host" / part)
    assert set(of_acting) == {name for names in documented.values() for name in names}


def test_every_file_of_a_run_is_documented(acting: Any, bars: list[Bar], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.live.runner.ROTATE_BYTES", 1)
    run = acting()
    run.feed(bars[: HISTORY + 9])
    written = {re.sub(r"\d{6}", "000001", path.name) for path in run.folder.iterdir()}
    listed = {words(row[0])[0] for row in table("file") if not words(row[0])[0].endswith(".py")}
    assert listed - written <= {"position.csv", "HALT", "journal.next.jsonl", "state.json", "lock"}
    assert written <= listed


def test_every_module_is_in_the_map() -> None:
    listed = {words(line)[0] for line in README.split("## Modules")[1].splitlines() if line.startswith("| `")}
    assert listed == {path.name for path in (ROOT / "host" / "live").glob("*.py")} - {"__init__.py"}


def test_the_python_bridge_of_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "live-real").mkdir()
    (tmp_path / "live-real" / "target.csv").write_text(format_target(ROW))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("host.live.bridge.Bridge.__init__.__defaults__", (lambda: NOW,))
    block = README.split("```python\n")[1].split("```")[0]
    exec(compile(block, "README.md", "exec"), {"hold": lambda level: level})
    row = parse_position((tmp_path / "live-real" / "position.csv").read_bytes())
    assert row == PositionRow(7, NOW, "EURUSD", -0.5)


def test_the_journal_of_the_document_is_read(
    acting: Callable[..., Acting],
    bars: list[Bar],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its lines are the decisions of the journal, that of a stop included."""
    one = acting(max_target=0.5)
    one.feed(bars[: HISTORY + 5])
    one.runner.stop("stale-feed")
    one.folder.rename(tmp_path / "live-real")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(README.split("## Reading a journal")[1].split("```python\n")[1].split("```")[0], {})
    printed, decided = capsys.readouterr().out.splitlines(), outcomes(tmp_path / "live-real")
    assert len(printed) == len(decided) == 7
    for line, record in zip(printed, decided, strict=True):
        assert line.split()[1:] == [
            format_utc(record["close_ns"]),
            record["row"][2] if record["row"] else "stop",
            str(record["target"]),
            record["state"],
            record["reason"],
        ]
