"""The table of instruments: the size of a pip, the last digit of a price, the usual spread, the trading hours.

Pips are those of OANDA and MetaTrader brokers.  A spread is what a retail account usually pays, in round numbers: a
default that is printed, never a measurement.  The digits of its prices show the pip of a symbol without a row.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.market.calendar import ALWAYS_OPEN, CLOSED_DAILY, CLOSED_ON_WEEKENDS, ClosedHours, infer_closed_hours

# Closed over the weekend; closed over the weekend and for an hour a day; never closed.
FX, DAILY_BREAK, ROUND_THE_CLOCK = ("fx", "daily-break", "always")
DEFAULT_HOURS = {FX: CLOSED_ON_WEEKENDS, DAILY_BREAK: CLOSED_DAILY, ROUND_THE_CLOCK: ALWAYS_OPEN}


class Instrument(NamedTuple):
    """What is traded, and how its prices are quoted."""

    symbol: str
    pip: float  # price of a pip
    point: float  # price of the last digit that brokers quote
    spread_pips: float  # usual
    hours: str = FX


QUOTE_SPREAD_PIPS = {  # spread in pips by quote currency, of pairs that USUAL_SPREADS does not list
    **{"USD": 1.5, "EUR": 2.0, "GBP": 2.0, "JPY": 2.5, "CHF": 3.0, "AUD": 3.0, "NZD": 4.0, "CAD": 3.0},
    **{"SEK": 50.0, "NOK": 55.0, "DKK": 12.0, "HKD": 15.0, "CNH": 10.0, "SGD": 5.0, "MXN": 80.0},
    **{"ZAR": 120.0, "TRY": 400.0, "CZK": 80.0, "PLN": 35.0, "HUF": 18.0},
}
QUOTE_PIP = {"JPY": 0.01, "HUF": 0.01}  # by quote currency; 0.0001 for all others
USUAL_SPREADS = (
    "EURUSD 0.8, GBPUSD 1.2, USDJPY 0.9, USDCHF 1.3, AUDUSD 1, NZDUSD 1.5, USDCAD 1.4, EURGBP 1.2, "
    "EURJPY 1.5, EURCHF 1.7, EURAUD 2.2, EURNZD 3.2, EURCAD 2.2, GBPJPY 2.2, GBPCHF 2.8, GBPAUD 3, "
    "GBPNZD 4.5, GBPCAD 3.2, AUDJPY 1.6, AUDCHF 1.9, AUDNZD 2.3, AUDCAD 2, NZDJPY 2.1, NZDCHF 2.4, "
    "NZDCAD 2.4, CADJPY 1.9, CADCHF 2.2, CHFJPY 2.3, USDDKK 10, USDHKD 8, USDCNH 12, USDSGD 3, "
    "USDMXN 60, USDPLN 25, EURPLN 25, USDHUF 20, EURHUF 20, USDZAR 100, USDSEK 45, USDNOK 50"
)
PAIR_SPREAD_PIPS = {pair: float(pips) for pair, pips in (entry.split() for entry in USUAL_SPREADS.split(", "))}
OTHER_INSTRUMENTS = {  # pip, point, spread in pips, hours, other names
    "XAUUSD": (0.1, 0.01, 2.5, DAILY_BREAK, "GOLD XAUEUR"),
    "XAGUSD": (0.01, 0.001, 2.5, DAILY_BREAK, "SILVER"),
    "XPTUSD": (0.1, 0.01, 40.0, DAILY_BREAK, "PLATINUM"),
    "XPDUSD": (0.1, 0.01, 60.0, DAILY_BREAK, "PALLADIUM"),
    "US30": (1.0, 0.1, 2.5, DAILY_BREAK, "US30USD DJ30 DJI30 DJI WS30 DOW30 WALLSTREET30"),
    "US500": (1.0, 0.1, 0.5, DAILY_BREAK, "SPX500 SPX500USD SP500 US500USD SPX SPXUSD"),
    "US100": (1.0, 0.1, 1.5, DAILY_BREAK, "NAS100 NAS100USD USTEC USTECH NDX100 NASDAQ100 NASDAQ NSXUSD"),
    "US2000": (1.0, 0.1, 0.4, DAILY_BREAK, "US2000USD RUSSELL2000 RUS2000"),
    "DE40": (1.0, 0.1, 1.2, DAILY_BREAK, "GER40 DAX40 DE30 DE30EUR GER30 DAX30 DAX DEU40 GRXEUR"),
    "UK100": (1.0, 0.1, 1.0, DAILY_BREAK, "UK100GBP FTSE100 FTSE UKXGBP"),
    "FR40": (1.0, 0.1, 1.2, DAILY_BREAK, "FRA40 CAC40 FR40EUR FRXEUR"),
    "EU50": (1.0, 0.1, 1.5, DAILY_BREAK, "EU50EUR STOXX50 ESTX50 EUSTX50 EUROSTOXX50 ETXEUR"),
    "ES35": (1.0, 0.1, 5.0, DAILY_BREAK, "ESP35 SPA35 IBEX35"),
    "JP225": (1.0, 0.1, 8.0, DAILY_BREAK, "JPN225 JP225USD NIKKEI225 NI225 JPXJPY"),
    "AUS200": (1.0, 0.1, 1.5, DAILY_BREAK, "AU200 AU200AUD ASX200 AUXAUD"),
    "HK50": (1.0, 0.1, 8.0, DAILY_BREAK, "HK33 HK33HKD HSI HKXHKD"),
    "USOIL": (0.01, 0.001, 3.0, DAILY_BREAK, "WTI XTIUSD USCRUDE WTICOUSD WTIUSD"),
    "UKOIL": (0.01, 0.001, 3.0, DAILY_BREAK, "BRENT XBRUSD UKCRUDE BCOUSD"),
    "NATGAS": (0.001, 0.0001, 5.0, DAILY_BREAK, "XNGUSD NGAS NATGASUSD"),
    "BTCUSD": (1.0, 0.01, 15.0, ROUND_THE_CLOCK, "BTCUSDT BTCUSDC BTCEUR XBTUSD XBTEUR XXBTZUSD XXBTZEUR BITCOIN"),
    "ETHUSD": (0.1, 0.01, 12.0, ROUND_THE_CLOCK, "ETHUSDT ETHUSDC ETHEUR XETHZUSD XETHZEUR ETHEREUM"),
}
ALIASES = {alias: symbol for symbol, row in OTHER_INSTRUMENTS.items() for alias in (symbol, *row[4].split())}
DEFAULT_SPREAD_PIPS = 0.8  # of an instrument without a row
MIN_PRICE_PIPS = 300.0  # a price has more pips
SYMBOL = re.compile(r"[\w.#+-]{1,32}", re.ASCII)  # what a symbol is written with; plain_symbol makes one of any text
CURRENCY_PATTERN = "|".join(QUOTE_SPREAD_PIPS)
# What brokers append to a symbol; after a mark, as in XAUUSD.m or US30-cash, anything may follow.
BROKER_SUFFIX = "PRO|ECN|RAW|STP|STD|VIP|PRM|ZERO|CASH|SPOT|MINI|MICRO|[MCIRBZ]"
TIMEFRAME_MINUTES = "1|5|15|30|60|240|1440|10080"  # MetaTrader 4 names its exports so: EURUSD60.csv
LONGEST_FIRST = sorted(ALIASES, key=len, reverse=True)
ALIAS_PATTERNS = [re.sub("(?<=.)(USD[TC]?|EUR)$", r"[/_-]?\1", alias) for alias in LONGEST_FIRST]
SYMBOL_PATTERN = re.compile(
    rf"(?<![A-Z0-9])({'|'.join(ALIAS_PATTERNS)}|(?:{CURRENCY_PATTERN})[/_-]?(?:{CURRENCY_PATTERN}))"
    rf"(?:{BROKER_SUFFIX})?(?:(?<=[A-Z])(?:{TIMEFRAME_MINUTES}))?(?![A-Z0-9])"
)


def hours_of(time: NDArray[np.int64], instrument: Instrument, interval_ns: int) -> ClosedHours:
    """The hours in which the market is closed, as bars closing at `time` [T] show them, or else as usual."""
    return infer_closed_hours(time, interval_ns, DEFAULT_HOURS[instrument.hours])


def find_instrument(text: str) -> Instrument | None:
    """The instrument that a symbol or the name of a file names; None if it names none, or several."""
    symbols = {re.sub("[/_-]", "", match[1]) for match in SYMBOL_PATTERN.finditer(text.upper())}
    instruments = {*map(lookup_symbol, symbols)} - {None}
    return instruments.pop() if len(instruments) == 1 else None


def lookup_symbol(symbol: str) -> Instrument | None:
    """The instrument of a symbol without suffix; None if it is unknown."""
    name = ALIASES.get(symbol)
    if name is not None:
        return Instrument(symbol, *OTHER_INSTRUMENTS[name][:4])
    base, quote = symbol[:3], symbol[3:]
    if base == quote or base not in QUOTE_SPREAD_PIPS or quote not in QUOTE_SPREAD_PIPS:
        return None
    pip = QUOTE_PIP.get(quote, 0.0001)
    return Instrument(symbol, pip, round(pip / 10, 5), PAIR_SPREAD_PIPS.get(symbol, QUOTE_SPREAD_PIPS[quote]))


def plain_symbol(text: str) -> str:
    """The symbol of an instrument without a row, as a CSV or a path can hold it: at most 32 characters of SYMBOL."""
    return re.sub(r"[^\w.#+-]", "_", text[:32], flags=re.ASCII)


def guess_instrument(symbol: str, price: float, digits: int) -> Instrument:
    """An instrument without a row, guessed from its approximate price and the number of digits behind the point.

    Brokers quote a tenth of a pip as the last digit where there are one, three or five of them.  Averages and the noise
    of floats have more digits, rounded numbers have too few for the price: the pip is then 0.01 of prices above 20, and
    0.0001 of others.  A coin that costs less than MIN_PRICE_PIPS of those has a pip of at most 1/10,000 of its price.
    """
    pip, symbol = round(10.0 ** (digits % 2 - digits), 4), plain_symbol(symbol)
    if digits > 5 or pip * MIN_PRICE_PIPS > price:
        pip = 0.01 if price > 20 else 0.0001
        if 0 < price < pip * MIN_PRICE_PIPS:
            pip = 10.0 ** (math.floor(math.log10(price)) - 4)
        return Instrument(symbol, pip, pip / 10, DEFAULT_SPREAD_PIPS)
    return Instrument(symbol, pip, 10.0**-digits, DEFAULT_SPREAD_PIPS)


def canonical_symbol(symbol: str) -> str:
    """The one name of an instrument with several names, without suffix; an instrument in euros keeps EUR."""
    instrument = find_instrument(symbol)
    symbol = instrument.symbol if instrument else plain_symbol(symbol).upper()
    name = ALIASES.get(symbol, symbol)
    return f"{name[:-3]}EUR" if symbol.endswith("EUR") and name.endswith("USD") else name


def same_instrument(a: str, b: str) -> bool:
    """Whether two symbols may name one instrument; "-", an unknown symbol, may name any."""
    return "-" in (a, b) or canonical_symbol(a) == canonical_symbol(b)


def pip_fault(pip: float, symbol: str, price: float, digits: int) -> str:
    """The fault of a pip that a user gives for prices of about `price` with so many digits; empty without a fault.

    A pip is no smaller than the last digit that is quoted, and a price has at least MIN_PRICE_PIPS pips.
    """
    usual = find_instrument(symbol) or guess_instrument(symbol, price, digits)
    if pip < usual.point * 0.999:
        return f"the prices have no digit so small: --pip {usual.pip:g}, for example"
    if pip * MIN_PRICE_PIPS > price:
        return f"that is {price / pip:.3g} pips in a price of {price:g}: --pip {usual.pip:g}, for example"
    return ""
