"""Record time: which records, and which whole batches, lie in a span of milliseconds.

Both ends are inclusive, as in point-in-time recovery: "until 12:00:00.000" keeps a record of that very
millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from kafka_backup.records.batch import BatchHeader
from kafka_backup.records.codec import Record


class Decision(Enum):
    """What a header alone can say about the records of its batch."""

    ALL = "all"
    NONE = "none"
    SCAN = "scan"


def filter_by_timestamp(records: Sequence[Record], from_ms: int | None, until_ms: int | None) -> list[Record]:
    """Returns the records whose timestamps lie in ``[from_ms, until_ms]``, in the order given.

    None leaves that end open. Timestamps need not be sorted; -1 (none) is an ordinary value.
    """
    return [
        record
        for record in records
        if (from_ms is None or record.timestamp >= from_ms)
        and (until_ms is None or record.timestamp <= until_ms)
    ]


def decide(header: BatchHeader, from_ms: int | None, until_ms: int | None) -> Decision:
    """Judges a batch by its header: take it whole, skip it whole, or look at each record.

    Only the maximum timestamp is a bound. The base timestamp is the first record's, not a minimum, and may
    be a delete horizon.

    Args:
        header: of the batch.
        from_ms: earliest timestamp to keep, or None.
        until_ms: latest timestamp to keep, or None.
    """
    if from_ms is None and until_ms is None:
        return Decision.ALL
    latest = header.max_timestamp
    if from_ms is not None and latest < from_ms:
        return Decision.NONE
    ends_before = until_ms is None or latest <= until_ms
    if header.is_log_append_time:
        return Decision.ALL if ends_before else Decision.NONE
    if from_ms is None and ends_before:
        return Decision.ALL
    return Decision.SCAN
