"""Headers that tell a restored record's offset and time in the source topic."""

from __future__ import annotations

from typing import NamedTuple

from kafka_backup.errors import DamagedError
from kafka_backup.records.varint import encode_varint, read_varint

ORIGINAL_OFFSET = b"x-original-offset"
ORIGINAL_TIMESTAMP = b"x-original-timestamp"


class Stamp(NamedTuple):
    """Which headers each record gets; both hold decimal digits.

    All other headers stay, in order. Headers of that name from an earlier restore are replaced by the one
    new header, at the end.

    Attributes:
        offset: ``x-original-offset``, the record's offset in the source topic.
        timestamp: ``x-original-timestamp``, its time there (ms).
    """

    offset: bool
    timestamp: bool

    def apply(
        self, data: bytes | bytearray, position: int, end: int, *, offset: int, timestamp: int
    ) -> bytes:
        """Returns the rest of a record, from its key's length on, with the headers in it.

        Args:
            data: where the record stands.
            position: of its key's length.
            end: of the record.
            offset: its source offset.
            timestamp: its own time (ms), as consumers see it.

        Raises:
            DamagedError: it cannot be read.
        """
        at = position
        for _ in range(2):  # the key, the value
            length, at = read_varint(data, at)
            at += max(length, 0)
        fields_end = at
        count, at = read_varint(data, at)
        headers = []
        if self.offset:
            headers.append(_header(ORIGINAL_OFFSET, offset))
        if self.timestamp:
            headers.append(_header(ORIGINAL_TIMESTAMP, timestamp))
        others = data[at:end]
        if count:
            kept = [
                data[start:stop]
                for name, start, stop in _headers(data, at, end, count)
                if not (self.offset and name == ORIGINAL_OFFSET)
                and not (self.timestamp and name == ORIGINAL_TIMESTAMP)
            ]
            count = len(kept)
            others = b"".join(kept)
        elif at != end:
            raise DamagedError(f"{end - at} bytes are left after a record without headers")
        return b"".join((data[position:fields_end], encode_varint(count + len(headers)), others, *headers))


def _header(name: bytes, number: int) -> bytes:
    digits = b"%d" % number
    return encode_varint(len(name)) + name + encode_varint(len(digits)) + digits


def _headers(data: bytes | bytearray, position: int, end: int, count: int) -> list[tuple[bytes, int, int]]:
    """The name, start and end of each header."""
    found = []
    for _ in range(count):
        start = position
        length, position = read_varint(data, position)
        name = bytes(data[position : position + length])
        if length < 0 or len(name) != length:
            raise DamagedError("a header's name is cut off")
        size, position = read_varint(data, position + length)
        position += max(size, 0)
        if position > end:
            raise DamagedError("a header is cut off")
        found.append((name, start, position))
    if position != end:
        raise DamagedError(f"{end - position} bytes are left after a record's headers")
    return found
