"""Read single records out of a repository; needs no cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kafka_backup.errors import ConfigurationError, RefusedError
from kafka_backup.records.codec import Record, decode_batch
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.segments import SegmentReader
from kafka_backup.repository.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecord:
    """A record as it is stored, and whose clock its timestamp is."""

    record: Record
    timestamp_type: Literal["CreateTime", "LogAppendTime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPartition:
    """One partition of a topic in a repository.

    Attributes:
        start: first offset that the repository holds, or accounts for; `end`: exclusive.
        log: of the incarnation, in `store`.
    """

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int
    log: CommitLog
    store: Store

    def records(self, offset: int = 0) -> Iterator[StoredRecord]:
        """Yield all records from an offset on, in order; aborted ones and markers are not stored.

        Raises:
            DamagedError: a segment is not what its commit says.
        """
        for segment in self.log.segments(self.partition):
            if segment.end <= offset:
                continue
            for data, header in SegmentReader(self.store, segment).batches(check_crc=True):
                if header.is_control or header.last_offset < max(offset, segment.start):
                    continue
                kind: Literal["CreateTime", "LogAppendTime"] = (
                    "LogAppendTime" if header.is_log_append_time else "CreateTime"
                )
                for record in decode_batch(data):
                    if max(offset, segment.start) <= record.offset < segment.end:
                        yield StoredRecord(record=record, timestamp_type=kind)


def stored_partition(
    repository: Repository, topic: str, partition: int, *, incarnation: str | None
) -> StoredPartition:
    """Find a partition of a topic; see `Engine.stored_partition`.

    Raises:
        ConfigurationError: the repository holds no such topic, partition or incarnation.
        RefusedError: the topic was deleted and re-created, and only the caller can know which is meant.
    """
    logs = [log for log in repository.commit_logs(topic) if log.head is not None]
    if incarnation is not None:
        logs = [log for log in logs if log.topic_id == incarnation]
        if not logs:
            raise ConfigurationError(f"the repository holds no incarnation {incarnation!r} of {topic}")
    if not logs:
        raise ConfigurationError(
            f"the first capture of {topic} was interrupted; nothing of it is in the repository"
        )
    if len(logs) > 1:
        held = {log.topic_id: sum(map(log.records, log.partitions)) for log in logs}
        older = [topic_id for topic_id in list(held)[:-1] if held[topic_id]]
        if older:
            listed = ", ".join(f"{topic_id} ({count} records)" for topic_id, count in held.items())
            raise RefusedError(
                f"{topic} was deleted and re-created; say which one with --incarnation: {listed}"
            )
    log = logs[-1]
    ranges = log.ranges(partition)
    if not ranges:
        raise ConfigurationError(f"the repository holds no partition {partition} of {topic}")
    return StoredPartition(
        topic=topic,
        topic_id=log.topic_id,
        partition=partition,
        start=max(min(part.start for part in ranges), log.whole_from(partition)),
        end=ranges[-1].end,
        log=log,
        store=repository.store,
    )
