"""Times and windows as people write them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import ConfigurationError
from kafka_backup.times import format_time, parse_time, parse_window

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)
LAST = (datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-31T12:00:00Z", 1_769_860_800_000),
        ("2026-01-31t12:00:00z", 1_769_860_800_000),
        ("2026-01-31 13:00:00.25+01:00", 1_769_860_800_250),
        ("2026-01-31T06:30:00.007-05:30", 1_769_860_800_007),
        ("2026-01-31T12:00:00.123000000Z", 1_769_860_800_123),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2024-02-29T00:00:00+00:00", 1_709_164_800_000),
        ("0", 0),
        ("-1", -1),
        ("1769860800250", 1_769_860_800_250),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_times_are_read_to_the_millisecond(text: str, milliseconds: int) -> None:
    """Reads RFC 3339 with any offset, and plain milliseconds, also before 1970.

    A time bound decides which records come back: one millisecond off is a lost or a foreign record.
    Floats would lose the last digits, an offset with minutes could be added with the wrong sign.
    """
    assert parse_time(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-01-31T12:00:00", "does not say its offset"),
        ("2026-01-31 12:00:00.5", "does not say its offset"),
        ("2026-01-31T12:00:00.0001Z", "finer than a millisecond"),
        ("2026-01-31", "not a time"),
        ("2026-02-30T00:00:00Z", "not a time"),
        ("2026-01-31T24:00:00Z", "not a time"),
        ("2026-01-31T12:00:60Z", "not a time"),
        ("2026-01-31T12:00:00+24:00", "not a time"),
        ("2026-01-31T12:00:00+0100", "not a time"),
        ("0000-01-01T00:00:00Z", "not a time"),
        ("yesterday", "not a time"),
        ("1.5", "not a time"),
        ("1e3", "not a time"),
        ("+5", "not a time"),
        (" 5", "not a time"),
        ("٣", "not a time"),
        ("", "not a time"),
        ("9223372036854775808", "64 bits"),
    ],
)
def test_a_doubtful_time_is_refused(text: str, message: str) -> None:
    """Refuses a time without an offset, finer than a millisecond, impossible, or malformed.

    Guessing the time zone of "12:00" in a recovery restores the wrong hours, and nobody notices.
    The local zone of the machine could be assumed, or digits cut off, without a word.
    """
    with pytest.raises(ConfigurationError, match=message) as caught:
        parse_time(text)
    assert text in str(caught.value)


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(FIRST, LAST))
def test_a_formatted_time_reads_back(milliseconds: int) -> None:
    """Formats any 64-bit time so that reading it gives the same number.

    Times in answers are pasted into --from and --until; what comes back must be what was shown.
    Rounding through floats, or years that datetime cannot hold, would change or crash it.
    """
    assert parse_time(format_time(milliseconds)) == milliseconds


@given(st.integers(FIRST, LAST), st.integers(-23 * 60 - 59, 23 * 60 + 59))
def test_any_offset_names_the_same_instant(milliseconds: int, minutes: int) -> None:
    """Reads an instant written in any offset as Python's own datetime writes it.

    People write times in their own zone; each must mean the instant that they see on their clock.
    The sign or the minutes of an offset are easily lost, in the zones nobody on the team lives in.
    """
    moment = EPOCH + timedelta(milliseconds=milliseconds)
    try:
        local = (moment.replace(tzinfo=None) + timedelta(minutes=minutes)).isoformat(timespec="milliseconds")
    except OverflowError:
        return
    sign = "-" if minutes < 0 else "+"
    hours, rest = divmod(abs(minutes), 60)
    assert parse_time(f"{local}{sign}{hours:02}:{rest:02}") == milliseconds


def test_formatted_times_are_utc_with_milliseconds() -> None:
    """Formats as RFC 3339 in UTC, always with three digits, and far years as numbers.

    One form sorts as text and can be compared by eye between captures, commits and logs.
    Python leaves the fraction out when it is zero, and cannot write the year 292 million.
    """
    assert format_time(1_769_860_800_000) == "2026-01-31T12:00:00.000Z"
    assert format_time(-1) == "1969-12-31T23:59:59.999Z"
    assert format_time(2**63 - 1) == "9223372036854775807"


def test_a_window_is_two_times() -> None:
    """Reads START/END, in either form of a time, as a half-open window.

    Dagster's partitions and the command line label captures by it.
    A mixed or offset pair could be compared as text instead of as instants.
    """
    window = parse_window("2026-01-31T13:00:00+01:00/1769864400000")
    assert (window.start, window.end) == (1_769_860_800_000, 1_769_864_400_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-01-31T12:00:00Z", "START/END"),
        ("5/5", "end after it starts"),
        ("6/5", "end after it starts"),
        ("/5", "not a time"),
        ("5/", "not a time"),
        ("1/2/3", "not a time"),
        ("2026-01-31T12:00:00/2026-01-31T13:00:00Z", "offset"),
    ],
)
def test_a_wrong_window_is_refused(text: str, message: str) -> None:
    """Refuses a window that is empty, reversed or not two times.

    A window names what a scheduled run has saved; a wrong one would mark hours as saved.
    An empty window would be "complete" at once.
    """
    with pytest.raises(ConfigurationError, match=message):
        parse_window(text)
