"""Writes the CSV files beside it: 40 synthetic bars of an hour over a weekend on which European clocks change.

Every file tells the same bars in another format, but the one-minute one, and those of a day (`daily_`), which tell
40 days over the other change of the clocks.
"""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

HERE = Path(__file__).parent
Row = tuple[datetime, list[float], int]
OHLCV = "open,high,low,close,volume"


def bars(first: datetime, step: timedelta, count: int) -> list[Row]:
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


def write(name: str, lines: list[str], end: str = "\n", encoding: str = "utf-8") -> None:
    (HERE / name).write_bytes("".join(line + end for line in lines).encode(encoding))


def write_hourly(rows: list[Row], px: list[list[str]], ask: list[list[str]], server: list[datetime]) -> None:
    """The formats that `main` has not written; `server`: the stamps by the clock of a MetaTrader server."""
    n = range(len(rows))
    utc, ticks = [stamp for stamp, _, _ in rows], [v for _, _, v in rows]
    mid = [[f"{p + 4e-5:.6f}" for p in prices] for _, prices, _ in rows]
    oanda = [f"{utc[i]:%Y-%m-%dT%H:%M:%S},True,{','.join(mid[i])},{ticks[i]}" for i in n]
    early = f"{utc[20]:%Y-%m-%dT%H:%M:%S},False,1.1,1.3,1.0,1.2,3"  # a bar that was not closed yet
    write("oanda.csv", [*oanda[:20], early, *oanda[20:]])
    candles = [
        {
            "complete": True,
            "volume": ticks[i],
            "time": f"{utc[i]:%Y-%m-%dT%H:%M:%S}.000000000Z",
            **{side: dict(zip("ohlc", p, strict=True)) for side, p in (("bid", px[i]), ("ask", ask[i]))},
        }
        for i in n
    ]
    document = {"instrument": "EUR_USD", "granularity": "H1", "candles": candles}
    write("oanda.json", [json.dumps(document)])
    tabbed = ["\t".join((*px[i], str(ticks[i]))) for i in n]
    write("no_header.csv", [f"{utc[i]:%Y-%m-%d %H:%M}\t{tabbed[i]}" for i in n], "\r\n")
    names = "Timestamp\tOpen\tHigh\tLow\tClose\tVolume\t"
    short = ["\t".join(p.rstrip("0") for p in px[i]) for i in n]  # so that no row tells the digits
    timed = [f"{utc[i]:%Y-%m-%d %H:%M:%S}\t{short[i]}\t{ticks[i]}\t8" for i in n]
    write("nameless_spread.csv", [names, *timed])
    comma = [f"{','.join(px[i])},{ticks[i]}" for i in n]
    write(
        "pandas.csv",
        [",Open,High,Low,Close,Volume", *(f"{utc[i]:%Y-%m-%d %H:%M:%S},{comma[i]}" for i in n)],
    )
    moved = [f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in utc[:20]]
    moved += [f"{t + timedelta(hours=7):%Y-%m-%dT%H:%M:%S+07:00}" for t in utc[20:]]
    charted = [f"{moved[i]},{','.join(px[i])},0.5,,{ticks[i]},0.5" for i in n]
    write("tradingview.csv", ["time,open,high,low,close,Shapes,Spread,Volume,Close", *charted], "\r\n")
    local = [f"{t + timedelta(hours=7):%d.%m.%Y %H:%M:%S}.000 GMT+0700" for t in utc]
    write(
        "dukascopy_local.csv",
        ["Local time,Open,High,Low,Close,Volume", *(f"{local[i]},{comma[i]}" for i in n)],
    )
    both = [f"{utc[i]:%m/%d/%Y %H:%M:%S}.000,{','.join(px[i])},{','.join(ask[i])},{ticks[i]}" for i in n]
    sides = ",".join(f"{side}{name}" for side in ("Bid", "Ask") for name in ("Open", "High", "Low", "Close"))
    write("fxcm_candles.csv", [f"DateTime,{sides},TickQty", *both])
    api = [f"{t.replace(tzinfo=UTC).timestamp():.0f}" for t in server]
    names = "time,open,high,low,close,tick_volume,spread,real_volume"
    write("metatrader5_api.csv", [names, *(f"{api[i]},{comma[i]},8,0" for i in n)])


def write_daily() -> None:
    """The formats of daily bars."""
    rows = [
        (datetime(2021, 10, 4, tzinfo=UTC) + timedelta(days=7 * (i // 5) + i % 5), prices, ticks)
        for i, (_, prices, ticks) in enumerate(
            bars(datetime(2021, 10, 4, tzinfo=UTC), timedelta(hours=1), 40)
        )
    ]
    n = range(len(rows))
    day, px = [stamp for stamp, _, _ in rows], [[f"{p:.5f}" for p in prices] for _, prices, _ in rows]
    ohlc = [",".join(p) for p in px]
    write("daily_canonical.csv", ["time,open,high,low,close", *(f"{day[i]:%Y-%m-%d},{ohlc[i]}" for i in n)])
    polish = "Data,Otwarcie,Najwyzszy,Najnizszy,Zamkniecie"
    write("daily_stooq.csv", [polish, *(f"{day[i]:%Y-%m-%d},{ohlc[i]}" for i in n)], "\r\n")
    write("daily_dated.csv", ["Date,Open,High,Low,Close", *(f"{day[i]:%Y-%m-%d},{ohlc[i]}" for i in n)])
    japanese = ["日付,始値,高値,安値,終値", *(f"{day[i]:%Y/%m/%d},{ohlc[i]}" for i in n)]
    write("daily_japanese.csv", japanese)
    write("daily_japanese_sjis.csv", japanese, encoding="cp932")
    yahoo = [f"{day[i]:%Y-%m-%d},{ohlc[i]},{px[i][3]},0" for i in n]
    write("daily_yahoo.csv", ["Date,Open,High,Low,Close,Adj Close,Volume", *yahoo], "\r\n")
    heads = ["Price,Close,High,Low,Open,Volume", "Ticker" + ",EURUSD=X" * 5, "Date,,,,,"]
    write(
        "daily_yfinance.csv",
        [*heads, *(f"{day[i]:%Y-%m-%d},{px[i][3]},{px[i][1]},{px[i][2]},{px[i][0]},0" for i in n)],
    )
    head = '"Date","Price","Open","High","Low","Vol.","Change %"'
    quoted = [
        f'"{day[i]:%b %d, %Y}","{px[i][3]}","{px[i][0]}","{px[i][1]}","{px[i][2]}","","0.1%"' for i in n
    ]
    write("daily_investing.csv", [head, *quoted[::-1]], encoding="utf-8-sig")
    titled = [f"{day[i]:%m/%d/%Y %H:%M},{ohlc[i]},-1,-0.01," for i in n]
    names = "Date,Open,High,Low,Close,Change(Pips),Change(%)"
    write("daily_myfxbook.csv", ["EURUSD Historical Data", names, *titled[::-1]])
    names = "<DATE>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
    tabbed = [f"{day[i]:%Y.%m.%d}\t" + "\t".join(px[i]) + "\t7\t0\t8" for i in n]
    write("daily_metatrader5.csv", [names, *tabbed], "\r\n")


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
    write_hourly(rows, px, ask, server)
    write_daily()
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
