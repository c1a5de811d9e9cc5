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

RESEND_DELAY_S = 0.01  # until a finalizer that swallowed a signal is over
_received_signal = 0  # number of the last signal
_in_hook = False  # the hook is at work, and what is raised in it is lost as well
_resend_pending = False  # a signal was swallowed and not yet sent again


def install_signal_handlers() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, and SIGTERM ends the process with 143."""
    sys.unraisablehook = _unraisable_hook
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle_signal)


def raise_if_signalled() -> None:
    """Raise what the handler raised, if it did: between two steps of a loop, where it cannot be swallowed."""
    if _received_signal == signal.SIGINT:
        raise KeyboardInterrupt
    if _received_signal:
        raise SystemExit(128 + _received_signal)


def _handle_signal(number: int, _: Any) -> None:
    global _received_signal, _resend_pending
    _received_signal = number
    if _in_hook:
        _resend_pending = True
    else:
        raise_if_signalled()


def _unraisable_hook(unraisable: Any) -> None:
    global _in_hook, _resend_pending
    _in_hook = True
    if _received_signal and issubclass(unraisable.exc_type, KeyboardInterrupt | SystemExit):
        _resend_pending = True
    else:
        sys.__unraisablehook__(unraisable)
    if _resend_pending:
        _resend_pending = False
        threading.Thread(target=_resend_signal, args=(_received_signal,), daemon=True).start()
    _in_hook = False


def _resend_signal(number: int) -> None:
    """Signal the main thread, so that a read it waits for ends too; on Windows it takes notice when that is over."""
    time.sleep(RESEND_DELAY_S)
    while _in_hook:
        time.sleep(RESEND_DELAY_S)
    if sys.platform == "win32":
        _thread.interrupt_main(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)
