"""Writes the CSV files beside it: 40 synthetic bars of an hour over a weekend on which European clocks change.

Every file but the one-minute one tells the same bars in another format.
"""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

HERE = Path(__file__).parent
OHLCV = "open,high,low,close,volume"


def bars(first: datetime, step: timedelta, count: int) -> list[tuple[datetime, list[float], int]]:
    """Stamp (open, UTC), prices and ticks of bars that stop on Friday 21:00 and go on Sunday 21:00."""
    rng, level, stamp, rows = random.Random(7), 1.18, first, []
    while len(rows) < count:
        if stamp.weekday() == 4 and stamp.hour >= 21:
            stamp += timedelta(days=2)
        path = [level] + [level := level + rng.gauss(0, 4e-4) for _ in range(8)]
        prices = [round(p, 5) for p in (path[0], max(path), min(path), path[-1])]
        rows.append((stamp, prices, rng.randrange(50, 900)))
        stamp += step
    return rows


def write(name: str, lines: list[str], end: str = "\n") -> None:
    (HERE / name).write_bytes("".join(line + end for line in lines).encode())


def main() -> None:
    rows = bars(datetime(2021, 3, 26, 3, tzinfo=UTC), timedelta(hours=1), 40)
    px = [[f"{p:.5f}" for p in prices] for _, prices, _ in rows]
    ask = [[f"{p + 8e-5:.5f}" for p in prices] for _, prices, _ in rows]
    utc = [stamp for stamp, _, _ in rows]
    summer = [t >= datetime(2021, 3, 28, 1, tzinfo=UTC) for t in utc]
    server = [t + timedelta(hours=3 if s else 2) for t, s in zip(utc, summer, strict=True)]
    vendor = [t - timedelta(hours=7) for t in server]
    ticks = [v for _, _, v in rows]
    n = range(len(rows))
    spread = [
        f"{t:%Y-%m-%dT%H:%M:%SZ},{','.join(p)},{v},0.00008" for t, p, v in zip(utc, px, ticks, strict=True)
    ]
    write("canonical_spread.csv", [f"time,{OHLCV},spread", *spread])
    write(
        "canonical_unix_s.csv",
        [f"time,{OHLCV}", *(f"{t.timestamp():.0f},{','.join(px[i])},{ticks[i]}" for i, t in enumerate(utc))],
    )
    write(
        "canonical_unix_ms.csv",
        [
            f"timestamp,{OHLCV}",
            *(f"{t.timestamp():.0f}000,{','.join(px[i])},{ticks[i]}" for i, t in enumerate(utc)),
        ],
    )
    offset = timedelta(hours=7)
    write(
        "canonical_offset.csv",
        [
            f"time,{OHLCV}",
            *(f"{utc[i] + offset:%Y-%m-%d %H:%M}:00+07:00,{','.join(px[i])},{ticks[i]}" for i in n),
        ],
    )
    write("histdata_ascii.csv", [f"{vendor[i]:%Y%m%d %H%M%S};{';'.join(px[i])};0" for i in n])
    write("histdata_metatrader.csv", [f"{vendor[i]:%Y.%m.%d,%H:%M},{','.join(px[i])},0" for i in n])
    write("metatrader4.csv", [f"{server[i]:%Y.%m.%d,%H:%M},{','.join(px[i])},{ticks[i]}" for i in n], "\r\n")
    head = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
    tabbed = [
        f"{server[i]:%Y.%m.%d%t%H:%M:%S}\t".replace("%t", "\t") + "\t".join(px[i]) + f"\t{ticks[i]}\t0\t8"
        for i in n
    ]
    write("metatrader5.csv", [head, *tabbed], "\r\n")
    names = ",Open,High,Low,Close,Volume"
    write(
        "dukascopy.csv",
        [f"Gmt time{names}", *(f"{utc[i]:%d.%m.%Y %H:%M}:00.000,{','.join(px[i])},{ticks[i]}" for i in n)],
    )
    write(
        "dukascopy_ASK.csv",
        [f"Time{names}", *(f"{utc[i]:%d.%m.%Y %H:%M}:00.000,{','.join(ask[i])},{ticks[i]}" for i in n)],
        "\r\n",
    )
    write("lean.csv", [f"{utc[i]:%Y%m%d %H:%M},{','.join(px[i])},0,{','.join(ask[i])},0" for i in n])
    minutes = bars(datetime(2021, 3, 26, tzinfo=UTC), timedelta(minutes=1), 30)
    write(
        "20210326_lean.csv",
        [
            f"{i * 60_000},{','.join(f'{p:.5f}' for p in prices)},0,{','.join(f'{p + 8e-5:.5f}' for p in prices)},0"
            for i, (_, prices, _) in enumerate(minutes)
        ],
    )


if __name__ == "__main__":
    main()
