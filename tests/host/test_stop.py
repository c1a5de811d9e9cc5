"""No signal is lost, wherever it hits: in a finalizer, in a callback of the garbage collector, in C that waits."""

import os
import signal
import subprocess
import sys

import pytest

from host.processes import ReportProgress, Row, watch_process
from host.stop import STOP_SIGNALS, hint_on_stop
from tests.fixtures.paths import ROOT
from tests.fixtures.runs import printed

TRIES = int(os.environ.get("SWT_TRIES", "40"))
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once")
HEAD = """
import gc, os, signal, sys, threading, time, weakref
from host import stop
from host.stop import install_signal_handlers, raise_if_signalled
install_signal_handlers()
"""
SWALLOWED = {  # where Python throws away what a handler raises
    "finalizer": """
class Loud:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(1000): pass
Loud()
""",
    "collector": """
gc.callbacks.append(lambda phase, info: os.kill(os.getpid(), NUMBER) if phase == "start" else None)
gc.collect()
gc.callbacks.clear()
""",
    "weak reference": """
class Mute: pass
mute = Mute()
watch = weakref.ref(mute, lambda _: os.kill(os.getpid(), NUMBER))
del mute
""",
    "nothing": "os.kill(os.getpid(), NUMBER)\n",
}
WAITS = {
    "a loop that asks": "while True: raise_if_signalled()\n",
    "a sleep": "time.sleep(30)\n",
    "a read": "os.read(os.pipe()[0], 1)\n",
}
STORM = """
class Garbage:
    def __init__(self): self.me = self
    def __del__(self): sum(range(30))
lost = 0
threading.Thread(target=lambda: [time.sleep(0.05), print("ready", flush=True)], daemon=True).start()
while True:
    [Garbage() for _ in range(20)]
"""


def ended(program: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", HEAD + program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    return done.returncode, done.stderr


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("place", SWALLOWED)
def test_what_is_swallowed_comes_again(place: str, wait: str, number: int) -> None:
    code, said = ended(SWALLOWED[place].replace("NUMBER", str(number)) + WAITS[wait])
    if number == signal.SIGTERM:
        assert (code, said) == (143, "")
    else:
        assert code == -signal.SIGINT  # Python's own end after KeyboardInterrupt; swt.py makes it 130
        assert "Exception ignored" not in said


@POSIX
def test_no_signal_is_lost_among_finalizers() -> None:
    """A process whose time goes into finalizers, again and again."""
    for _ in range(TRIES):
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD + STORM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (143, "")


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("place", SWALLOWED)
def test_a_command_that_goes_on_exits_with_75(place: str, number: int) -> None:
    program = SWALLOWED[place].replace("NUMBER", str(number)) + WAITS["a loop that asks"]
    assert ended(f"install_signal_handlers(75)\n{program}") == (75, "")


@POSIX
def test_what_no_command_goes_on_from_is_as_ever() -> None:
    """SIGUSR1 is left to the system in `act`; a system without it has SIGTERM."""
    assert ended("os.kill(os.getpid(), signal.SIGUSR1)") == (-signal.SIGUSR1, "")
    windows = HEAD.replace("from host import stop", "del signal.SIGUSR1\nfrom host import stop", 1)
    program = "install_signal_handlers(75)\nos.kill(os.getpid(), signal.SIGTERM)\n"
    done = subprocess.run([sys.executable, "-c", windows + program], cwd=ROOT, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr) == (75, b"")


def signals_itself(number: int, report: ReportProgress) -> Row:
    signal.raise_signal(number)
    return {"number": number}


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_job_leaves_signals_to_its_parent(number: int) -> None:
    """SLURM signals every process of a task; a job that ended by itself would look like a fault."""
    assert watch_process(signals_itself, int(number), lambda _: None)["number"] == number


def test_other_exceptions_in_finalizers_are_still_told() -> None:
    code, said = ended("class Bad:\n    def __del__(self): 1 / 0\nBad()\n")
    assert code == 0
    assert "ZeroDivisionError" in said


@pytest.mark.parametrize(("error", "said"), [(KeyboardInterrupt(), "stopped"), (LookupError("no node"), "no node")])
def test_what_ends_a_command_names_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["swt.py", "walkforward", "two words.csv"])
    with pytest.raises(type(error)) as raised, hint_on_stop(LookupError):
        raise error
    assert str(raised.value).startswith(f"{said}; what is finished is kept; go on: ")
    assert printed(str(raised.value)) == [["walkforward", "two words.csv"]]
    with pytest.raises(ArithmeticError, match=r"^why$"), hint_on_stop(LookupError):
        raise ArithmeticError("why")
