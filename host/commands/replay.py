"""`replay`: decide again at every bar of a journal; the decisions must be the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from host.artifact.manifest import load_models
from host.config import RiskConfig
from host.live.event_log import replay_events
from host.live.journal import read_journal
from host.live.limits import resolve_limits
from host.live.live_agent import DecisionPrinter, warm_up
from host.live.risk_engine import RiskEngine


def replay_journal(journal: Path, model: Path, out: IO[str], as_json: bool) -> None:
    """Decide again at every bar of a journal and print as `act` did; ReplayError where a decision differs."""
    models, begin = load_models(model), next(read_journal(journal), (0, {}))[1].get("engine")
    symbol = begin.get("instrument") if isinstance(begin, dict) else None  # `replay_events` refuses such a journal
    loaded = warm_up(next((each for each in models if each.market_spec.profile.symbol == symbol), models[0]))
    engine, printer = RiskEngine(loaded, resolve_limits(RiskConfig(), loaded)), DecisionPrinter(out, as_json)
    decision, is_recorded = None, True
    for decision, is_recorded in replay_events(engine, read_journal(journal)):
        if decision is not None and is_recorded and decision.row:
            printer.print(decision.row)
    if decision is not None and not is_recorded and decision.row:  # the process was killed before it recorded it
        printer.print(decision.row)
