"""Stamps read at once are those read one by one."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.data import stamps
from host.data.parsing import parse_stamp, to_utc, wall_offset_ns
from host.data.stamps import parse_stamps, parse_uniform_stamps
from kernels.market.bars import SECOND_NS

SHAPES = [  # style of stamps, and how a time is written
    ("iso", "%Y%m%d %H%M%S"),
    ("iso", "%Y.%m.%d %H:%M"),
    ("iso", "%Y-%m-%dT%H:%M:%SZ"),
    ("iso", "%Y-%m-%d %H:%M:%S.%f"),
    ("iso", "%Y-%m-%d %H:%M:%S+00:00"),
    ("iso", "%Y-%m-%d %H:%M:%S -0530"),
    ("iso", "%Y-%m-%dT%H:%M:%S.%f000Z"),
    ("iso", "%Y-%m-%d"),
    ("wall", "%Y-%m-%d %H:%M:%S+00:00"),
    ("dmy", "%d.%m.%Y %H:%M:%S.000"),
    ("mdy", "%m/%d/%Y %H:%M"),
    ("iso", "%s"),
    ("iso", "%s000"),
]
times = st.lists(st.datetimes(datetime(2002, 1, 1), datetime(2190, 1, 1)), min_size=1, max_size=9)


def matrix(texts: Sequence[str]) -> np.ndarray:
    return np.array([list(text.encode("latin-1")) for text in texts], np.uint8)


def written(form: str, time: datetime) -> str:
    return time.strftime(form.replace("%s", f"{(time - datetime(1970, 1, 1)) // timedelta(seconds=1):010}"))


def one_by_one(style: str, texts: Sequence[str]) -> list[tuple[int, bool]]:
    return [parse_stamp(style, text, "") for text in texts]


@pytest.mark.parametrize(("style", "form"), SHAPES)
@given(times=times)
def test_all_at_once_is_one_by_one(style: str, form: str, times: list[datetime]) -> None:
    texts = [written(form, time) for time in times]
    stamp_ns, is_utc = parse_stamps(style, matrix(texts), "")
    assert [*zip(stamp_ns.tolist(), is_utc.tolist(), strict=True)] == one_by_one(style, texts)
    assert parse_uniform_stamps(style, texts[0], matrix(texts)) is not None  # the fast way was taken


@pytest.mark.parametrize(
    "texts",
    [
        ["2021-02-28T00:00:00Z", "2021-02-29T00:00:00Z"],  # no day
        ["2021-02-28T00:00:00Z", "2021-02-28T00:60:00Z"],
        ["2021-02-28T00:00:00Z", "2021-13-28T00:00:00Z"],
        ["2021-02-28T00:00:00Z", "2021-02-00T00:00:00Z"],
        ["2021-02-28T00:00:00Z", "2021-02-2xT00:00:00Z"],
        ["1614470400", "9914470400"],  # after the year 2200
        ["2021-02-28T00:00:00Z", "1921-02-28T00:00:00Z"],
    ],
)
def test_what_is_no_time_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_stamps("iso", matrix(texts), "")


@pytest.mark.parametrize(
    "texts",
    [
        ["2021-02-28T00:00:00+01:00", "2021-02-28T00:00:00+02:00"],  # one offset each
        ["2021-02-28T00:00:00+01:00", "2021-02-28T00:00:00-01:00"],
        ["2021-02-28 01:00 AM", "2021-02-28 01:00 PM"],
        ["Jan 02, 2021", "Feb 02, 2021"],
        ["2021-02-28 01:00 Europe/Berlin", "2021-07-28 01:00 Europe/Berlin"],
        ["2021-02-28 01:00", "2021/02/28 01:00"],
    ],
)
def test_shapes_that_differ_are_read_one_by_one(texts: list[str]) -> None:
    stamp_ns, is_utc = parse_stamps("iso", matrix(texts), "")
    assert [*zip(stamp_ns.tolist(), is_utc.tolist(), strict=True)] == one_by_one("iso", texts)


def test_a_uniform_file_asks_for_its_first_stamp_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(style: str, text: str, day: str) -> tuple[int, bool]:
        asked.append(text)
        return parse_stamp(style, text, day)

    monkeypatch.setattr(stamps, "parse_stamp", spy)
    parse_stamps("iso", matrix([f"20210103 17{minute:02}00" for minute in range(60)]), "")
    assert len(asked) == 1


@pytest.mark.parametrize("clock", ["UTC", "Europe/Athens-7h", "America/New_York", "Australia/Sydney"])
def test_offsets_by_the_day_are_those_by_the_quarter(clock: str) -> None:
    stamp_ns = np.arange(1_600_000_000, 1_650_000_000, 1800) * SECOND_NS
    each = [t - wall_offset_ns(clock, t // (900 * SECOND_NS)) for t in stamp_ns.tolist()]
    assert to_utc(stamp_ns, np.zeros(len(stamp_ns), np.bool_), clock).tolist() == each
    assert to_utc(stamp_ns, np.ones(len(stamp_ns), np.bool_), clock).tolist() == stamp_ns.tolist()
