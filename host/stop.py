"""Signals that end the process; none is lost.

Python drops an exception that a signal handler raises inside a finalizer or inside a callback of the garbage collector.
`sys.unraisablehook` is called for such an exception, and the hook here sends the signal again.  The handler also stores
the signal's number, for `raise_if_signalled`.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from host.console import log, program_command

EX_TEMPFAIL = 75  # of sysexits.h: the same command goes on
SIGUSR1: signal.Signals | None = getattr(signal, "SIGUSR1", None)  # SLURM sends it before a time limit; not on Windows
STOP_SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM, SIGUSR1) if number is not None]
RESEND_DELAY_S = 0.01  # by then the finalizer that swallowed the signal has ended
_received_signal = 0  # number of the last signal, or 0
_exit_code: int | None = None  # of SIGTERM and SIGUSR1 in a command that goes on
_in_hook = False  # the hook runs: an exception raised in it is dropped too
_resend_pending = False  # a signal was swallowed and is to be sent again


def install_signal_handlers(exit_code: int | None = None) -> None:
    """Make Ctrl-C raise KeyboardInterrupt, and SIGTERM SystemExit(143), or with an `exit_code`, as SIGUSR1, that."""
    global _exit_code
    _exit_code, sys.unraisablehook = exit_code, _unraisable_hook
    for number in STOP_SIGNALS:
        if exit_code is not None or number != SIGUSR1:
            signal.signal(number, _handle_signal)


def raise_if_signalled() -> None:
    """Raise the exception of the last signal again, if there was one; a loop calls it between two steps."""
    if _received_signal == signal.SIGINT:
        raise KeyboardInterrupt
    if _received_signal:
        raise SystemExit(128 + _received_signal if _exit_code is None else _exit_code)


@contextmanager
def hint_on_stop(*errors: type[Exception]) -> Iterator[None]:
    """Where a signal or one of `errors` ends the block, which keeps what is finished, add the command that goes on."""
    hint = f"what is finished is kept; go on: {program_command(*sys.argv[1:])}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {hint}") from None
    except SystemExit:
        log(f"stopped; {hint}")
        raise
    except errors as error:
        raise type(error)(f"{error}; {hint}") from error


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
    """Signal the main thread, which ends a read that it waits in; on Windows the read ends first."""
    time.sleep(RESEND_DELAY_S)
    while _in_hook:
        time.sleep(RESEND_DELAY_S)
    if sys.platform == "win32":
        _thread.interrupt_main(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)
