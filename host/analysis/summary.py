"""The document of a report in words: the summary on a terminal, and why an agent traded as seldom as it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

SCHEMA = 1  # of report.json
SUMMARY_WIDTH = 80  # columns
EVIDENCE_Z = 2.0  # standard errors


class ReportError(RuntimeError):
    """A folder without a report that this program can read."""

    exit_code = 3


@contextmanager
def bokeh_needed(page: Path, again: str) -> Iterator[None]:
    """Turn a missing Bokeh into a ReportError that says what `page` takes, and the command to give again."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("bokeh"):
            raise
        raise ReportError(f"no {page}: it takes Bokeh; pip install '.[report]', then {again}") from None


def print_summary(document: dict[str, Any], out: IO[str]) -> None:
    """Print the agent beside its baselines, the statistics with their intervals, and the verdict with its reasons."""
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table

    found, bounds = document["statistics"], document["intervals"]
    console = Console(file=out, width=min(Console(file=out).width, SUMMARY_WIDTH), highlight=False, markup=False)
    policies = Table(title="BACKTESTING REPORT", box=HEAVY_HEAD)
    for name in ("Policy", "Trades", "Net pips", "Max. drawdown", "Sharpe"):
        policies.add_column(name, justify="left" if name == "Policy" else "right")
    agent = {
        "net_pips": found["Net Profit [pips]"],
        "trades": found["# Trades"],
        "max_drawdown_pips": found["Max. Drawdown [pips]"],
        "sharpe": found["Sharpe Ratio"],
    }
    for name, row in {"agent": agent, **document["baselines"]}.items():
        cells = (f"{row['trades']:,}", *(show(row[key]) for key in ("net_pips", "max_drawdown_pips", "sharpe")))
        policies.add_row(name, *cells)
    metrics = Table(title="SUMMARY METRICS", box=HEAVY_HEAD)
    for name in ("Metric", "Value", "95 % interval"):
        metrics.add_column(name, justify="left" if name == "Metric" else "right")
    for name, value in found.items():
        if value is None:
            continue
        low_high = bounds.get(name)
        metrics.add_row(name, show(value), "" if low_high is None else " .. ".join(map(show, low_high)))
    metrics.add_row("Break-even spread [pips]", show(document["costs"]["break_even_spread_pips"]), "")
    console.print(policies)
    console.print(metrics)
    print_verdict(document, out)
    for line in explain_opportunity(document):
        print(line, file=out)


def print_verdict(document: dict[str, Any], out: IO[str]) -> None:
    """Print the verdict of a document, and its reasons."""
    print(f"Verdict: {document['verdict']['verdict']}", file=out)
    for reason in document["verdict"]["reasons"]:
        print(f"  {reason}", file=out)


def explain_opportunity(document: dict[str, Any]) -> list[str]:
    """Why the agent traded as seldom as it did, in sentences: what it saw, beside what an entry costs."""
    found = document["opportunity"]
    if found is None:
        return []
    if found["best"] is None:
        return ["No search compared an entry with staying out: it has too few simulations."]
    best, near, calibration = found["best"], found["near"], found["calibration"]
    first, often = found["first_entry_spread_pips"], found["often_entry_spread_pips"]
    where = f"In test {found['fold']}, the most hopeful one: asked" if found.get("fold") else "Asked"
    sentences = [
        f"{where} at {found['bars']:,} bars without a position, it expected most of a {best['side']} at "
        f"{best['time']}: {best['edge_pips']:.2f} pips, where a round trip cost {best['cost_pips']:.2f}.",
        f"At the median bar it expected {found['median_edge_pips']:.2f} pips against {found['median_cost_pips']:.2f}.",
        " and ".join(f"{share:.1%} of the bars promised {name} of the cost" for name, share in near.items()) + ".",
        f"The spread is {found['spread_pips']:.2f} pips in the median. It would enter at its best bar "
        f"{entry_spread(first)}, and at 1 % of the bars {entry_spread(often)}.",
    ]
    gain = calibration["uniform_nll"] - calibration["nll"]
    worth = "better" if gain > 0 else "worse"
    sentences.append(f"Its forecast of the next bar is {abs(gain):.3f} nats {worth} than no forecast.")
    if found["direction_z"] is not None and found["direction_z"] < EVIDENCE_Z:
        sentences.append(
            f"On the validation bars it could not tell rises from falls ({found['direction_z']:.1f} standard errors; "
            f"{EVIDENCE_Z:g} are evidence)."
        )
    return sentences


def entry_spread(pips: float) -> str:
    """At which spread the agent would have entered."""
    return f"with a spread of {pips:.2f} or less" if pips >= 0 else "at no spread"


def show(value: Any) -> str:
    """A figure as a person reads it; - where there is none."""
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
