"""The instrument that a symbol or the name of a file names, and its pip."""

import pytest

from host.data.instruments import (
    ALIASES,
    PAIR_SPREAD_PIPS,
    QUOTE_SPREAD_PIPS,
    SYMBOL,
    find_instrument,
    guess_instrument,
    lookup_symbol,
    plain_symbol,
    same_instrument,
)

NAMES = [  # name, symbol, pip, point
    ("EURUSD_H1.csv", "EURUSD", 0.0001, 0.00001),
    ("eurusd60.csv", "EURUSD", 0.0001, 0.00001),
    ("EURUSDpro", "EURUSD", 0.0001, 0.00001),
    ("DAT_ASCII_GBPJPY_M1_202101.csv", "GBPJPY", 0.01, 0.001),
    ("EUR/USD", "EURUSD", 0.0001, 0.00001),
    ("USD_SEK.csv", "USDSEK", 0.0001, 0.00001),
    ("EURHUF.a", "EURHUF", 0.01, 0.001),
    ("XAUUSD.m", "XAUUSD", 0.1, 0.01),
    ("XAU_USD-M5.csv", "XAUUSD", 0.1, 0.01),
    ("BTC/USDT", "BTCUSDT", 1.0, 0.01),
    ("GOLDmicro-M5.csv", "GOLD", 0.1, 0.01),
    ("US30.cash", "US30", 1.0, 0.1),
    ("#DE40", "DE40", 1.0, 0.1),
    ("BTCUSDT-1h-2023-01.csv", "BTCUSDT", 1.0, 0.01),
    ("XXBTZUSD_60.csv", "XXBTZUSD", 1.0, 0.01),
]


@pytest.mark.parametrize(("name", "symbol", "pip", "point"), NAMES)
def test_names_that_brokers_give(name: str, symbol: str, pip: float, point: float) -> None:
    found = find_instrument(name)
    assert found is not None
    assert (found.symbol, found.pip, found.point) == (symbol, pip, point)


def test_an_instrument_without_a_row_has_a_symbol_that_a_path_can_hold() -> None:
    for text, symbol in (
        ("BRK/B", "BRK_B"),
        ("../x\n", ".._x_"),
        ("A" * 40, "A" * 32),
        ("mine.m#1+2-3", "mine.m#1+2-3"),
    ):
        assert guess_instrument(text, 100.0, 2).symbol == symbol == plain_symbol(symbol)
        assert SYMBOL.fullmatch(symbol)
        assert same_instrument(text, symbol)


@pytest.mark.parametrize("name", ["bars.csv", "EURUSD_and_GBPUSD.csv", "EURUSDT.csv", "AAPL", "USDUSD", "MYEURUSDX"])
def test_names_that_name_no_instrument(name: str) -> None:
    assert find_instrument(name) is None


def test_every_instrument_finds_itself() -> None:
    crosses = {a + b for a in QUOTE_SPREAD_PIPS for b in QUOTE_SPREAD_PIPS if a != b}
    assert crosses >= PAIR_SPREAD_PIPS.keys()
    for symbol in [*ALIASES, *crosses]:
        found = lookup_symbol(symbol)
        assert found is not None
        assert find_instrument(f"{symbol}.x_M5.csv") == found
        assert found.pip / found.point > 1
        assert found.spread_pips > 0


DIGITS = [(1.08, 5, 0.0001), (1.08, 4, 0.0001), (165.0, 3, 0.01), (165.0, 2, 0.01), (39e3, 1, 1.0), (39e3, 0, 1.0)]
NOISE = [(1.1, 15, 0.0001), (150.0, 13, 0.01), (1.234e-5, 8, 1e-9), (0.0, 5, 0.0001)]


@pytest.mark.parametrize(("price", "digits", "pip"), [*DIGITS, *NOISE])
def test_pips_from_digits(price: float, digits: int, pip: float) -> None:
    assert guess_instrument("-", price, digits).pip == pip
