"""`with_reading_flags`: the flags that say how a file of bars is read, on every command that reads one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

READING_FLAGS = {  # how a file is read: a flag for each field of ReadOptions that a person sets
    "symbol": typer.Option(help="The instrument, as EURUSD; by default from a column or from the file name."),
    "side": typer.Option(help="Side of the prices: bid, ask or mid."),
    "timezone": typer.Option(
        help="Clock of the time stamps: UTC, Europe/Athens, UTC+2h; auto (not in act): by the weekly opens."
    ),
    "label": typer.Option(help="What a time stamp marks: open or close of its bar."),
    "spread_pips": typer.Option("--spread", help="Spread in pips, instead of the file's."),
    "spread_unit": typer.Option(help="Unit of the file's spread column: price, pips or points."),
    "pip": typer.Option(help="Price of a pip, for example 0.0001."),
    "point": typer.Option(help="Price of a point, where the file counts prices in points."),
    "dates": typer.Option(help="Order of ambiguous dates: dmy or mdy."),
    "drop_bad": typer.Option("--drop-bad", help="Drop bad rows if few and irregular."),
}


def with_reading_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add READING_FLAGS to `command`, whose argument `reading` becomes ReadOptions of their values."""

    def run(**arguments: Any) -> None:
        from host.data.formats import ReadOptions

        command(reading=ReadOptions(**{name: arguments.pop(name) for name in READING_FLAGS}), **arguments)

    kinds: dict[str, Any] = {"drop_bad": bool, **dict.fromkeys(("spread_pips", "pip", "point"), float | None)}
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "reading"]
    flags = []
    for name, option in READING_FLAGS.items():
        hint: Any = Annotated[kinds.get(name, str | None), option]
        default = False if name == "drop_bad" else None
        flags.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
    return run
