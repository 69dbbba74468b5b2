"""Where a source offset will be in a restored topic, as far as commits alone tell it."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.restore_documents import PlannedPartition, PlannedTopic, RestoreRequest
from kafka_backup.restore_source import source_segments


class OffsetEstimate:
    """Of one partition; no data is read."""

    def __init__(
        self, request: RestoreRequest, topic: PlannedTopic, part: PlannedPartition, log: CommitLog
    ) -> None:
        self._part = part
        self._is_bounded = request.from_ms is not None or request.until_ms is not None
        self._segments = [
            segment
            for segment in source_segments(
                log,
                head=topic.head,
                partition=part.partition,
                start=part.source_start,
                from_ms=request.from_ms,
            )
            if segment.end > segment.start
        ]
        self._ends = [segment.end for segment in self._segments]
        counts = [self._count(i, part.source_start) for i in range(len(self._segments))]
        self._after = [*accumulate((count for count, _ in reversed(counts)), initial=0)][::-1]
        self._is_exact = [*accumulate((exact for _, exact in reversed(counts)), min, initial=True)][::-1]

    def _count(self, i: int, start: int) -> tuple[int, bool]:
        """Records of one segment from an offset on, and whether that is exact or the most that it can be."""
        segment, entry = self._segments[i], self._segments[i].entry
        first = max(start, segment.start)
        end = min(segment.end, entry.last_offset + 1)
        span = max(0, end - first)
        if entry.records == entry.last_offset + 1 - entry.first_offset:
            return span, True
        is_whole = first <= entry.first_offset and end == entry.last_offset + 1
        return min(span, entry.records), is_whole or span == 0

    def of(self, position: int) -> tuple[int | None, int]:
        """Return the target offset, None where only the records tell it, and how many are to be read from it."""
        i = bisect_right(self._ends, position)
        if i == len(self._segments):
            remaining, exact = 0, True
        else:
            count, exact = self._count(i, max(position, self._part.source_start))
            remaining, exact = count + self._after[i + 1], exact and self._is_exact[i + 1]
        if not self._segments or position <= max(self._part.source_start, self._segments[0].start):
            return self._part.initial_end, min(remaining, self._part.records)
        if self._is_bounded or not (exact and self._is_exact[0]):
            return None, remaining
        return self._part.initial_end + self._after[0] - remaining, remaining
