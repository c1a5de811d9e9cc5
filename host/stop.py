"""Signals that end the process, none of which is lost.

Python throws away what a signal handler raises inside a finalizer or a callback of the garbage collector.  The hook for
such exceptions sees that and sends the signal again; and a handler writes down what came, for loops that ask.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from typing import Any

AGAIN_S = 0.01  # until a finalizer that swallowed a signal is over
_came = 0  # number of the last signal
_hooking = False  # the hook is at work, and what is raised in it is lost as well
_owed = False  # a signal was swallowed and not yet sent again


def catch_signals() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, and SIGTERM ends the process with 143."""
    sys.unraisablehook = _unraisable
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _note)


def stop_if_asked() -> None:
    """Raise what the handler raised, if it did: between two steps of a loop, where it cannot be swallowed."""
    if _came == signal.SIGINT:
        raise KeyboardInterrupt
    if _came:
        raise SystemExit(128 + _came)


def _note(number: int, _: Any) -> None:
    global _came, _owed
    _came = number
    if _hooking:
        _owed = True
    else:
        stop_if_asked()


def _unraisable(unraisable: Any) -> None:
    global _hooking, _owed
    _hooking = True
    if _came and issubclass(unraisable.exc_type, KeyboardInterrupt | SystemExit):
        _owed = True
    else:
        sys.__unraisablehook__(unraisable)
    if _owed:
        _owed = False
        threading.Thread(target=_send, args=(_came,), daemon=True).start()
    _hooking = False


def _send(number: int) -> None:
    """Signal the main thread, so that a read it waits for ends too; on Windows it takes notice when that is over."""
    time.sleep(AGAIN_S)
    while _hooking:
        time.sleep(AGAIN_S)
    if sys.platform == "win32":
        _thread.interrupt_main(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)
