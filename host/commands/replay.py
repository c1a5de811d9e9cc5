"""`replay`: decide again for every bar of a journal; the same bytes must come out."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from host.config import GuardConfig
from host.live.event_log import play
from host.live.journal import read_journal
from host.live.limits import limits_for
from host.live.live_agent import Printer, load_acting
from host.live.risk_engine import Desk


def replay(journal: Path, model: Path, out: IO[str], as_json: bool) -> None:
    """Decide again for every bar of a journal and print what was printed; ReplayError where it differs."""
    loaded = load_acting(model)
    desk, printer = Desk(loaded, limits_for(GuardConfig(), loaded)), Printer(out, as_json)
    outcome, recorded = None, True
    for outcome, recorded in play(desk, read_journal(journal)):
        if outcome is not None and recorded and outcome.row:
            printer.print(outcome.row)
    if outcome is not None and not recorded and outcome.row:  # the process was killed over it
        printer.print(outcome.row)
