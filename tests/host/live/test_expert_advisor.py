"""The MetaTrader 5 bridge, compiled as C++ against a small terminal, takes and refuses what host/live/bridge.py does.

`tests/fixtures/mql5` is that terminal.  MQL5 is nearly C++: `as_cpp` has all that it takes to compile one as the other.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host.live.bridge import Bridge
from host.live.target_file import (
    TARGET_HEADER,
    PositionRow,
    TargetRow,
    format_target,
    parse_position,
    parse_target,
    with_crc,
)
from kernels.market.bars import SECOND_NS
from tests.fixtures.paths import ROOT
from tests.fixtures.targets import FAULTS, GOOD, NOW, ROW

EXPERT = ROOT / "host" / "live" / "swt_bridge.mq5"
MAGIC = 20240229


def as_cpp(source: str) -> str:
    """The expert as C++ reads it, inside of a class."""
    # a string is an object, of characters of two bytes
    source = re.sub(r'"(?:\\.|[^"\\\n])*"', r"u\g<0>s", source)
    # an input is what somebody set, or else its default
    source = re.sub(r"^input +(\w+) +(\w+) *= *([^;]+);", r'\1 \2 = input("\2", \3);', source, flags=re.M)
    # a dynamic array has its brackets behind its name
    arrays = r"\b(uchar|string) (\w+\[\](?:, \w+\[\])*);"
    return re.sub(arrays, lambda m: f"Array<{m[1]}> {m[2].replace('[]', '')};", source)


def compiled(source: str, folder: Path) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("the expert advisor needs a C++ compiler: neither g++ nor clang++ is there")
    folder.joinpath("expert.inc").write_text(as_cpp(source))
    program, terminal = folder / "expert", ROOT / "tests" / "fixtures" / "mql5"
    flags = ["-std=c++17", "-O0", "-Werror=return-type", "-Werror=uninitialized"]
    paths = [f"-I{folder}", f"-I{terminal}", str(terminal / "main.cpp")]
    subprocess.run([compiler, *flags, *paths, "-o", str(program)], check=True)
    return program


class Terminal:
    """One process of the compiled expert, as often a new terminal as `start` is called."""

    def __init__(self, program: Path, data: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._data = data
        self.logged = ""

    def start(
        self, step: float = 0.01, least: float = 0.01, most: float = 100.0, hedging: bool = True, **inputs: object
    ) -> None:
        """A new terminal; the expert is put on its EURUSD chart."""
        shutil.rmtree(self._data, ignore_errors=True)
        self.files = self._data / "Files" / "swt"
        self.files.mkdir(parents=True)
        self.now = self.quote = NOW // SECOND_NS
        self.tell(f"terminal {self._data} {step} {least} {most} {hedging:d}")
        for name, value in inputs.items():
            self.tell(f"input {name} {value}")
        self.attach()

    def attach(self) -> None:
        self.tell("attach")
        assert self._answer() == "0"

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def publish(self, row: TargetRow | bytes | None) -> None:
        """Let `target.csv` be this."""
        data = format_target(row).encode() if isinstance(row, TargetRow) else row
        if data is None:
            (self.files / "target.csv").unlink(missing_ok=True)
        else:
            (self.files / "target.csv").write_bytes(data)

    def wait(self, seconds: int = 1, quotes: bool = True) -> dict[str, float]:
        """Let the timer ring every second; the lots of every symbol and magic number in the end."""
        self.logged = ""
        for _ in range(seconds):
            self.now, self.quote = self.now + 1, self.quote + quotes
            self.tell(f"timer {self.now} {self.quote}")
            logged, *held = self._answer().split("\t")
            self.logged += logged.replace("swt: ", "").removesuffix(";")
        lots: dict[str, float] = {}
        for symbol, magic, volume in map(str.split, held):
            key = symbol if int(magic) == MAGIC else f"{symbol} of {magic}"
            lots[key] = round(lots.get(key, 0) + float(volume), 8)
        return lots

    def position(self) -> PositionRow:
        return parse_position((self.files / "position.csv").read_bytes())

    def stop(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.endswith("\n"), "the expert is gone"
        return line.removesuffix("\n")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(EXPERT.read_text(), tmp_path_factory.mktemp("expert"))


@pytest.fixture(scope="module")
def terminal(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    running = Terminal(program, tmp_path_factory.mktemp("terminal"))
    yield running
    running.stop()


def kind(logged: str) -> str:
    """The kind of a refusal, which the two bridges word in different ways."""
    if logged in ("torn", "bad crc") or logged.startswith("unreadable"):
        return "unreadable"
    return re.sub(r",.*| of .*", "", logged)


def test_a_good_row_is_taken_once(terminal: Terminal) -> None:
    terminal.start()
    terminal.publish(ROW)
    assert terminal.wait() == {"EURUSD": -0.05}
    assert terminal.logged == "row accepted"
    assert terminal.wait(5) == {"EURUSD": -0.05}
    assert terminal.logged == ""


@pytest.mark.parametrize("reason", FAULTS)
def test_every_fault_is_refused_by_name(terminal: Terminal, reason: str) -> None:
    terminal.start()
    terminal.publish(FAULTS[reason])
    if reason == "from the future":
        terminal.now -= 1  # which the timer adds
    assert terminal.wait() == {}
    assert kind(terminal.logged or "repeated") == kind(re.sub(" +", " ", reason))
    assert terminal.position() == PositionRow(0, terminal.now * SECOND_NS, "EURUSD", 0.0)


def test_a_file_that_is_being_written_is_not_taken_before_its_end(terminal: Terminal) -> None:
    terminal.start()
    for size in range(len(GOOD)):
        terminal.publish(GOOD[:size])
        assert terminal.wait() == {}
    terminal.publish(ROW._replace(valid_until_ns=terminal.now * SECOND_NS + 9 * SECOND_NS))
    assert terminal.wait() == {"EURUSD": -0.05}


def test_a_file_with_ends_of_lines_of_windows_is_taken(terminal: Terminal) -> None:
    terminal.start()
    terminal.publish(GOOD.replace(b"\n", b"\r\n"))
    assert terminal.wait() == {"EURUSD": -0.05}


def test_only_the_model_asked_for_is_followed(terminal: Terminal) -> None:
    terminal.start(InpModel=ROW.model)
    terminal.publish(ROW._replace(model="another"))
    assert terminal.wait() == {}
    assert terminal.logged == "model another"
    terminal.publish(ROW)
    assert terminal.wait() == {"EURUSD": -0.05}


def test_a_target_is_a_level(terminal: Terminal) -> None:
    terminal.start(InpLots=0.1)
    for seq, target, held in (
        (1, 1.0, [{"EURUSD": 0.1}] * 2),
        (2, 1.0, [{"EURUSD": 0.1}] * 2),  # the same again changes nothing
        (3, 0.5, [{}, {"EURUSD": 0.05}]),
        (4, 0.8, [{"EURUSD": 0.08}] * 2),
        (5, -0.9, [{}, {"EURUSD": -0.09}]),
        (6, -0.3, [{}, {"EURUSD": -0.03}]),
        (7, -0.35, [{"EURUSD": -0.03}] * 2),  # 0.035 lots are 3 whole steps
        (8, 0.0, [{}] * 2),
        (9, 0.09, [{}] * 2),  # 0.009 lots are none
        (10, 0.29, [{"EURUSD": 0.02}] * 2),
    ):
        terminal.publish(ROW._replace(seq=seq, target=target))
        assert [terminal.wait(), terminal.wait()] == held
        assert "refused" not in terminal.logged
        assert terminal.position() == PositionRow(seq, terminal.now * SECOND_NS, "EURUSD", target)


@settings(deadline=None, max_examples=40)
@given(
    rules=st.sampled_from([(0.01, 0.01, 100.0), (0.1, 0.1, 0.5), (0.01, 0.06, 0.25), (0.001, 0.003, 50.0)]),
    hedging=st.booleans(),
    targets=st.lists(st.floats(-1, 1).map(lambda x: round(x, 4)), min_size=1, max_size=5),
)
@example(rules=(0.01, 0.06, 0.25), hedging=True, targets=[0.25, 0.3])  # 0.02 lots more are no order
def test_every_level_is_reached_in_whole_steps_without_a_refused_order(
    terminal: Terminal, rules: tuple[float, float, float], hedging: bool, targets: list[float]
) -> None:
    step, least, most = rules
    terminal.start(step, least, most, hedging, InpLots=0.4)
    for seq, target in enumerate(targets, 1):
        terminal.publish(ROW._replace(seq=seq, target=target))
        held = terminal.wait(3).get("EURUSD", 0.0)
        wanted = min(abs(target) * 0.4, most)
        assert "refused" not in terminal.logged
        assert held * target >= 0
        assert wanted - step - 1e-9 < abs(held) < wanted + 1e-9 or (held == 0 and wanted < least)
        assert terminal.position().position == target


def test_what_others_hold_is_left_alone(terminal: Terminal) -> None:
    others = {"GBPUSD": 0.3, "EURUSD of 1": -0.2}
    terminal.start()
    terminal.tell(f"hold GBPUSD {MAGIC} 0.3")
    terminal.tell("hold EURUSD 1 -0.2")
    for seq, target in enumerate((1.0, -0.5, 0.0), 1):
        terminal.publish(ROW._replace(seq=seq, target=target))
        assert terminal.wait(3) == {**others, **({"EURUSD": target / 10} if target else {})}
        assert terminal.position().position == target


def test_a_broker_who_does_not_answer_is_asked_again_until_the_row_expires(terminal: Terminal) -> None:
    terminal.start()
    terminal.tell("broker 0")
    terminal.publish(ROW)
    assert terminal.wait(10) == {}
    assert terminal.logged.count("order refused") == 10
    assert terminal.position() == PositionRow(7, terminal.now * SECOND_NS, "EURUSD", 0.0)
    terminal.tell("broker 1")
    assert terminal.wait() == {"EURUSD": -0.05}
    terminal.tell("broker 0")
    terminal.publish(ROW._replace(seq=8, target=0.0))
    terminal.wait(60)
    assert terminal.position().position == -0.5  # so the agent sees that it is not flat
    terminal.tell("broker 1")
    assert terminal.wait(10) == {"EURUSD": -0.05}  # the row has expired


def test_silence_closes_once_the_market_has_been_open_that_long(terminal: Terminal) -> None:
    terminal.start(InpSilentMin=1)
    terminal.publish(ROW._replace(valid_until_ns=NOW + 3600 * SECOND_NS))
    assert terminal.wait(60) == {"EURUSD": -0.05}
    assert terminal.wait(600, quotes=False) == {"EURUSD": -0.05}  # a weekend is no silence
    assert terminal.wait(2) == {}
    assert terminal.position() == PositionRow(7, terminal.now * SECOND_NS, "EURUSD", 0.0)
    terminal.publish(ROW._replace(seq=8, target=1.0, valid_until_ns=NOW + 3600 * SECOND_NS))
    assert terminal.wait() == {"EURUSD": 0.1}


def test_an_expert_started_again_finds_its_position_and_its_row(terminal: Terminal) -> None:
    terminal.start()
    terminal.publish(ROW)
    terminal.wait()
    terminal.attach()
    assert terminal.wait(2) == {"EURUSD": -0.05}
    assert terminal.position().seq == 7
    terminal.publish(None)
    terminal.attach()
    assert terminal.wait(2) == {"EURUSD": -0.05}
    assert terminal.position() == PositionRow(0, terminal.now * SECOND_NS, "EURUSD", -0.5)


def test_the_common_folder_is_another(terminal: Terminal) -> None:
    terminal.start(InpCommon=1)
    terminal.publish(ROW)
    assert terminal.wait() == {}
    assert terminal.logged == "unreadable"
    terminal.files = terminal.files.parents[1] / "Common" / "swt"
    terminal.publish(ROW)
    assert terminal.wait() == {"EURUSD": -0.05}
    assert terminal.position().position == -0.5


NUMBERS = "| |-|nan|inf|abc|1e-1|0x1|+0.5000|0.5|.5000|0.5000 |0.5000x|1_0|%s|é"
STAMPS = "2024-05-15|12:01:00|2024-02-31T00:00:00Z|2024-5-15T12:00:00Z|2024-05-15T12:01:00"
ODD = [*NUMBERS.split("|"), *STAMPS.split("|")]


def signed_file(fields: list[str]) -> bytes:
    return f"{TARGET_HEADER}\n{with_crc(','.join(fields))}\n".encode()


def damaged() -> st.SearchStrategy[bytes]:
    """Files with bytes gone or changed, and files in order with fields that are not."""
    cut = st.tuples(st.integers(0, len(GOOD)), st.integers(0, 9), st.binary(max_size=9))
    bytes_changed = cut.map(lambda c: GOOD[: c[0]] + c[2] + GOOD[c[0] + c[1] :])
    fields = GOOD.decode().split("\n")[1].split(",")[:-1]
    replaced = st.tuples(st.integers(0, len(fields) - 1), st.sampled_from(ODD + fields))
    fields_changed = replaced.map(lambda r: signed_file([*fields[: r[0]], r[1], *fields[r[0] + 1 :]]))
    rows = st.builds(
        TargetRow,
        st.integers(-1, 2**62),
        *[st.integers(-9, 9).map(lambda s: NOW + s * SECOND_NS)] * 2,
        st.integers(-9, 99).map(lambda s: NOW + s * SECOND_NS),
        st.sampled_from(["EURUSD"] * 9 + ["GBPUSD", "eurusd", "EURUSD.m"]),
        st.floats(-1.2, 1.2),
        st.sampled_from(["active agent", "reducing spread", "dry-run active agent", "a dry-run"]),
        st.just("0123456789abcdef"),
    )
    return bytes_changed | fields_changed | rows.map(lambda row: format_target(row).encode())


@settings(deadline=None, max_examples=300)
@given(data=damaged())
@example(GOOD.replace(b"\n", b"\r\n"))
@example(GOOD + GOOD.split(b"\n")[1] + b"\n")
@example(GOOD + b"\0\n")
@example(format_target(ROW._replace(target=-1e-9)).encode())
def test_both_bridges_accept_and_refuse_the_same(terminal: Terminal, data: bytes) -> None:
    terminal.start(InpLots=100.0)
    terminal.now -= 1  # which the timer adds
    terminal.publish(data)
    reader = Bridge(terminal.files, "EURUSD", 1.0, lambda: NOW)
    level, expected = reader.poll(), kind(reader.refusal or "row accepted")
    if expected != "unreadable" and format_target(parse_target(data)) != data.decode().replace("\r\n", "\n"):
        level, expected = None, "unreadable"  # Python takes "1e-1" for what it means
    held = terminal.wait()
    assert kind(terminal.logged or "repeated") == expected
    assert held == ({"EURUSD": round(level * 100, 2)} if level else {})
