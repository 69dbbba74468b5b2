"""The header that tells a restored record's offset in the source topic."""

from __future__ import annotations

from dataclasses import replace

from kafka_backup.records.codec import Record

ORIGINAL_OFFSET = b"x-original-offset"


def with_original_offset(record: Record) -> Record:
    """Returns the record with its offset in the header ``x-original-offset``, as decimal digits.

    All other headers stay, in order. Headers of that name from an earlier restore are replaced by the one new
    header, at the end.
    """
    others = tuple(header for header in record.headers if header[0] != ORIGINAL_OFFSET)
    return replace(record, headers=(*others, (ORIGINAL_OFFSET, b"%d" % record.offset)))
