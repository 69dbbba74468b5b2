"""Damaged segments that a restore leaves out, because it was told to.

Each decision is stored before anything beyond the segment is written: a resumed run, verification and
the offset map all leave out the same segments, also if one of them can be read again later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from kafka_backup.errors import DamagedError, WriterConflictError
from kafka_backup.repository.restore_documents import SkippedSegment
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.segments import StoredSegment

_Key = tuple[str, int, int, int]


class SegmentSkips:
    """The segments that one restore leaves out. Safe for many threads.

    Attributes:
        allowed: whether further ones may be left out.
    """

    def __init__(
        self, folder: RestoreFolder, *, allowed: bool, before_decision: Callable[[], None] = lambda: None
    ) -> None:
        """Read the decisions that were taken before.

        Args:
            folder: of the restore. A run that writes reads it once the restore is its own: what an older
                run decided before that holds, and it decides nothing after.
            allowed: whether further ones may be left out.
            before_decision: raises where the restore is not ours any more.
        """
        self.allowed = allowed
        self._folder = folder
        self._before_decision = before_decision
        self._lock = threading.Lock()
        self._skipped: dict[_Key, SkippedSegment] = {
            (skip.source, skip.partition, skip.commit, skip.index): skip for skip in folder.skipped()
        }

    def covers(self, topic: str, segment: StoredSegment) -> bool:
        """Whether a segment is left out."""
        return _key(topic, segment) in self._skipped

    def add(self, topic: str, segment: StoredSegment, damage: DamagedError) -> None:
        """Leave a segment out from now on; what `damage` says is wrong with it is stored with the decision."""
        skip = SkippedSegment(
            restore_id=self._folder.restore_id,
            source=topic,
            partition=segment.partition,
            commit=segment.commit,
            index=segment.entry.index,
            start=segment.start,
            end=segment.end,
            records=segment.entry.records,
            segment=segment.key,
            damage=str(damage),
        )
        self._before_decision()
        try:
            self._folder.put_skipped(skip)
        except WriterConflictError:
            # An earlier attempt found the same segment damaged in other words; its decision is as good.
            skip = next(each for each in self._folder.skipped() if _key_of(each) == _key_of(skip))
        with self._lock:
            self._skipped[_key_of(skip)] = skip

    def of(self, topic: str, partition: int) -> Sequence[SkippedSegment]:
        """What is left out of a partition, in the order of its offsets."""
        with self._lock:
            found = [
                skip for skip in self._skipped.values() if (skip.source, skip.partition) == (topic, partition)
            ]
        return sorted(found, key=lambda skip: skip.start)


def _key(topic: str, segment: StoredSegment) -> _Key:
    return topic, segment.partition, segment.commit, segment.entry.index


def _key_of(skip: SkippedSegment) -> _Key:
    return skip.source, skip.partition, skip.commit, skip.index
