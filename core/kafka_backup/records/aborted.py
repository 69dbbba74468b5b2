"""Which batches of a fetch response belong to aborted transactions."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from kafka_backup.records import Buffer
from kafka_backup.records.batch import BatchHeader
from kafka_backup.records.codec import ABORT, read_control_type


class AbortedFilter:
    """Judges the batches of one fetch response for one partition, in order.

    A producer id is aborted from the first offset of its aborted transaction to its next abort marker;
    a later transaction of the same id is judged by its own entry, and a non-transactional batch is never
    aborted. Same rules as the consumer's (``CompletedFetch.nextFetchedRecord``).
    """

    def __init__(self, aborted: Sequence[tuple[int, int]]) -> None:
        """Takes the response's list of (producer id, first offset), in any order."""
        self._pending = [(first_offset, producer_id) for producer_id, first_offset in aborted]
        heapq.heapify(self._pending)
        self._open: set[int] = set()

    def is_aborted(self, position: int, header: BatchHeader, buffer: Buffer) -> bool:
        """Whether the batch at ``position`` (bytes) is data of an aborted transaction.

        Control batches are not (they are counted as control), but must be shown too: an abort marker
        ends its producer's aborted span. Only such markers are decoded.

        Raises:
            DamagedError: a control batch cannot be read.
        """
        while self._pending and self._pending[0][0] <= header.last_offset:
            self._open.add(heapq.heappop(self._pending)[1])
        if header.producer_id not in self._open:
            return False
        if header.is_control:
            if read_control_type(buffer, position, header) == ABORT:
                self._open.discard(header.producer_id)
            return False
        return header.is_transactional
