"""`replay_journal`: decide again for every bar of a journal; the same bytes must come out."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from host.config import RiskConfig
from host.live.event_log import replay_events
from host.live.journal import read_journal
from host.live.limits import resolve_limits
from host.live.live_agent import DecisionPrinter, load_live_model
from host.live.risk_engine import RiskEngine


def replay_journal(journal: Path, model: Path, out: IO[str], as_json: bool) -> None:
    """Decide again for every bar of a journal and print what was printed; ReplayError where it differs."""
    loaded = load_live_model(model)
    desk, printer = RiskEngine(loaded, resolve_limits(RiskConfig(), loaded)), DecisionPrinter(out, as_json)
    outcome, recorded = None, True
    for outcome, recorded in replay_events(desk, read_journal(journal)):
        if outcome is not None and recorded and outcome.row:
            printer.print(outcome.row)
    if outcome is not None and not recorded and outcome.row:  # the process was killed over it
        printer.print(outcome.row)
