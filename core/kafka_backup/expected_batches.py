"""What a target partition must hold, computed from the plan and the repository alone.

Producing, resuming and verifying all walk this one sequence, so that what should be there is never
remembered, always recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from kafka_backup.errors import DamagedError, RefusedError
from kafka_backup.records.convert import Bounds, TargetBatch, convert
from kafka_backup.records.headers import Stamp
from kafka_backup.records.merge import Walked, merge, worth_merging
from kafka_backup.repository.buffers import Buffers
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import SegmentEntry
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    PlannedPartition,
    PlannedTopic,
    RestorePlan,
    RestoreRequest,
)
from kafka_backup.repository.segments import SegmentProofs, SegmentReader, StoredSegment, following
from kafka_backup.repository.store import Store
from kafka_backup.restore_source import source_segments
from kafka_backup.segment_skips import SegmentSkips


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTarget:
    """One partition of a plan with everything needed to write and to check it."""

    request: RestoreRequest
    topic: PlannedTopic
    partition: PlannedPartition
    target_topic_id: str
    log: CommitLog

    @property
    def name(self) -> str:
        """The target partition, for messages."""
        return f"{self.topic.target} [{self.partition.partition}]"


def partition_targets(
    plan: RestorePlan, topic: PlannedTopic, topic_id: str, repository: Repository
) -> Sequence[PartitionTarget]:
    """The partitions of one planned topic, with the commit log that they are read by.

    Raises:
        RefusedError: the repository does not hold the commit that the plan names.
    """
    log = repository.commit_log(topic.source, topic.source_topic_id)
    if log.head is None or log.head < topic.head or log.sha256_of(topic.head) != topic.head_sha256:
        raise RefusedError(
            f"commit {topic.head} of {topic.source} is not the one that restore {plan.request.restore_id} "
            "was planned with; the repository was replaced. Plan a new restore"
        )
    return [
        PartitionTarget(
            request=plan.request, topic=topic, partition=partition, target_topic_id=topic_id, log=log
        )
        for partition in topic.partitions
    ]


class DamagedSourceError(DamagedError):
    """A segment of the repository is not what its commit says; nothing is wrong with the target."""


def stamp_of(request: RestoreRequest) -> Stamp | None:
    """The headers that a restore adds to each record; None if it adds none."""
    stamp = Stamp(offset=request.original_offset_header, timestamp=request.original_timestamp_header)
    return stamp if any(stamp) else None


def merges(entry: SegmentEntry, topic: PlannedTopic) -> bool:
    """Whether a segment's batches are merged, because they are tiny."""
    return topic.merge_bytes > 0 and worth_merging(
        batches=entry.batches, records=entry.records, size=entry.raw_size
    )


def expected_batches(
    target: PartitionTarget,
    store: Store,
    *,
    before_segment: Callable[[], None],
    check_crc: bool = True,
    proofs: SegmentProofs | None = None,
    buffers: Buffers | None = None,
    skips: SegmentSkips | None = None,
    may_skip: Callable[[], bool] = lambda: False,
) -> Iterator[TargetBatch]:
    """Yield the batches that the target partition must hold, in order; the same on every call.

    Args:
        target: the planned partition.
        store: where the segments are.
        before_segment: called before each segment is opened, and after it was read; raises to stop.
        check_crc: check the checksum of each stored batch. Its SHA-256 is always checked, and proves
            that it is what was stored.
        proofs: of the segments that were read before, which are not hashed again; new ones are added.
        buffers: to read segments into.
        skips: the damaged segments that are left out.
        may_skip: whether a further one may be left out now, because nothing of it is in the target.

    Raises:
        DamagedSourceError: a segment is not what its commit says, naming it; before its first batch is
            yielded.
        RefusedError: a record does not fit into the target.
    """
    segments = source_segments(
        target.log,
        head=target.topic.head,
        partition=target.partition.partition,
        start=target.partition.source_start,
        from_ms=target.request.from_ms,
    )
    topic = target.topic.source
    for segment in segments:
        before_segment()
        if skips is not None and skips.covers(topic, segment):
            continue
        # What is left out stays left out, so it is read once more before that.
        for last_try in (False, True):
            batches = _segment_batches(
                target,
                segment,
                SegmentReader(store, segment, proofs=proofs, buffers=buffers),
                before_segment,
                check_crc,
            )
            try:
                first = next(batches, None)
                if first is not None:
                    yield first
            except DamagedError as error:
                damage = _damage(topic, segment, error)
                if skips is None or not may_skip():
                    raise damage from error
                if last_try:
                    skips.add(topic, segment, error)
                continue
            try:
                yield from batches
            except DamagedError as error:
                raise _damage(topic, segment, error) from error
            break


def _damage(topic: str, segment: StoredSegment, error: DamagedError) -> DamagedSourceError:
    detail = str(error) if segment.key in str(error) else f"segment {segment.key} is damaged: {error}"
    return DamagedSourceError(f"{topic} [{segment.partition}]: {detail}")


def _segment_batches(
    target: PartitionTarget,
    segment: StoredSegment,
    reader: SegmentReader,
    before_segment: Callable[[], None],
    check_crc: bool,
) -> Iterator[TargetBatch]:
    request, topic = target.request, target.topic
    bounds = Bounds(
        first_offset=segment.start,
        end_offset=segment.end,
        from_ms=request.from_ms,
        until_ms=request.until_ms,
    )
    stamp = stamp_of(request)
    if merges(segment.entry, topic):
        windows = reader.windows()
        window = next(windows, None)
        before_segment()
        seen = Walked(size=0, batches=0, records=0, last_offset=-1)
        while window is not None:
            walked = yield from merge(
                bytearray(window),
                bounds,
                max_batch_bytes=topic.max_batch_bytes,
                merge_bytes=topic.merge_bytes,
                stamp=stamp,
                check_crc=check_crc,
                last_offset=seen.last_offset,
            )
            seen = Walked(
                size=seen.size + walked.size,
                batches=seen.batches + walked.batches,
                records=seen.records + walked.records,
                last_offset=walked.last_offset,
            )
            window = following(windows, walked.size)
        reader.check_totals(**seen._asdict())
        return
    batches = reader.batches(check_crc=check_crc)
    first = next(batches, None)  # reads and proves the object, which may take long
    before_segment()
    if first is not None:
        yield from convert(
            chain((first,), batches), bounds, max_batch_bytes=topic.max_batch_bytes, stamp=stamp
        )
