"""Times as people write them: RFC 3339 with an offset, or milliseconds since the epoch.

The engine counts in integer milliseconds, as Kafka does. Nothing here rounds: a time that a
millisecond cannot hold is refused, and so is one that does not say its offset from UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from kafka_backup.errors import ConfigurationError
from kafka_backup.repository.documents import Window

_MILLISECONDS = re.compile(r"-?[0-9]{1,19}")
_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_EXAMPLE = "write 2026-01-31T12:00:00Z, 2026-01-31T13:00:00.250+01:00 or milliseconds since the epoch"


def _offset(text: str) -> timezone:
    if text in "Zz":
        return UTC
    hours, minutes = int(text[1:3]), int(text[4:6])
    if hours > 23 or minutes > 59:
        raise ValueError(f"{text} is not an offset from UTC")
    span = timedelta(hours=hours, minutes=minutes)
    return timezone(-span if text[0] == "-" else span)


def parse_time(text: str) -> int:
    """Return a time in ms since the epoch.

    Args:
        text: RFC 3339 with ``Z`` or an offset (RFC 3339, section 5.6), or integer milliseconds,
            which may be negative.

    Raises:
        ConfigurationError: the text is neither, names no offset, or is finer than a millisecond.
    """
    if _MILLISECONDS.fullmatch(text):
        milliseconds = int(text)
        if not -(2**63) <= milliseconds < 2**63:
            raise ConfigurationError(f"the time {text} does not fit 64 bits of milliseconds")
        return milliseconds
    if not (match := _RFC3339.fullmatch(text)):
        raise ConfigurationError(f"not a time: {text!r} ({_EXAMPLE})")
    *fields, fraction, offset = match.groups()
    if offset is None:
        raise ConfigurationError(f"the time {text!r} does not say its offset from UTC: add Z or +hh:mm")
    fraction = fraction or ""
    if fraction[3:].strip("0"):
        raise ConfigurationError(f"the time {text!r} is finer than a millisecond, which Kafka cannot hold")
    try:
        moment = datetime(*map(int, fields), tzinfo=_offset(offset))  # type: ignore[misc,arg-type]
    except ValueError as error:
        raise ConfigurationError(f"not a time: {text!r} ({error})") from error
    return (moment - _EPOCH) // _MILLISECOND + int(fraction[:3].ljust(3, "0"))


def format_time(milliseconds: int) -> str:
    """Return a time in ms as RFC 3339 in UTC, such as ``2026-01-31T12:00:00.000Z``.

    `parse_time` gives back the same number. A time outside of the years 1 to 9999, which RFC 3339
    cannot write, stays a number.
    """
    try:
        moment = _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return str(milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_window(text: str) -> Window:
    """Return the half-open window written ``START/END``, each a time as `parse_time` reads it.

    Raises:
        ConfigurationError: not two times, or the end is not after the start.
    """
    start, slash, end = text.partition("/")
    if not slash:
        raise ConfigurationError(f"not a window: {text!r} (write START/END)")
    start_ms, end_ms = parse_time(start), parse_time(end)
    if start_ms >= end_ms:
        raise ConfigurationError(f"the window {text!r} must end after it starts")
    return Window(start=start_ms, end=end_ms)


def time_in_id(milliseconds: int) -> str:
    """Return a time (ms) as ids begin with it: in UTC, so that they sort by time."""
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return f"{moment:%Y%m%dT%H%M%S}{milliseconds % 1000:03d}Z"
