"""Repositories with known contents, made by the engine's own writers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from kafka_backup.records.batch import walk
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.records.compression import Codec
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import (
    Capture,
    CapturedTopic,
    Commit,
    Incarnation,
    Ledger,
    LostSpan,
    OffsetSpan,
    PartitionRange,
    SegmentEntry,
)
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.segments import Compression, SegmentReader, SegmentWriter
from kafka_backup.repository.store import Store
from tests.unit.plain_store import PlainStore

TOPIC = "orders"
TOPIC_ID = "AbCdEfGhIjKlMnOpQrStUv"
CLUSTER = "cluster-1"
CAPTURE = "20260102T030405006Z-0a1b2c3d"
NONCE = "5f2d"

_names = itertools.count()


def memory_store() -> PlainStore:
    """A store of its own."""
    return PlainStore(f"memory://test-{next(_names)}")


def copy_of(store: PlainStore) -> PlainStore:
    """Another store with the same objects."""
    return store.copy(f"memory://test-{next(_names)}")


def batch(first: int, count: int, *, codec: Codec = Codec.NONE, value: bytes = b"value") -> bytes:
    """One batch of `count` records from offset `first` on; record n has timestamp 1,000 + n."""
    return encode_batch(
        [
            Record(offset=offset, timestamp=1000 + offset, key=b"%d" % offset, value=value)
            for offset in range(first, first + count)
        ],
        codec=codec,
    )


def incarnation(*, topic: str = TOPIC, topic_id: str = TOPIC_ID, partitions: int = 2) -> Incarnation:
    return Incarnation(
        topic=topic, topic_id=topic_id, partition_count=partitions, replication_factor=1, configuration={}
    )


def write_segment(
    store: Store,
    data: bytes,
    *,
    topic: str = TOPIC,
    topic_id: str = TOPIC_ID,
    partition: int = 0,
    capture_id: str = CAPTURE,
    index: int = 0,
    compression: Compression = "none",
) -> SegmentEntry:
    """Store whole batches as one segment."""
    headers = [header for _, header in walk(data)]
    writer = SegmentWriter(
        store,
        topic=topic,
        topic_id=topic_id,
        partition=partition,
        capture_id=capture_id,
        index=index,
        first_offset=headers[0].base_offset,
        compression=compression,
    )
    try:
        writer.add(memoryview(data), headers)
        return writer.finish()
    finally:
        writer.abort()


def part(
    start: int,
    end: int,
    *,
    partition: int = 0,
    segments: Sequence[SegmentEntry] = (),
    lost: Sequence[LostSpan] = (),
    truncated_to: int | None = None,
    not_captured: OffsetSpan | None = None,
) -> PartitionRange:
    """A range in which every offset that was not lost is a record."""
    gone = sum(span.end - span.start for span in lost)
    return PartitionRange(
        partition=partition,
        start=start,
        end=end,
        log_start_offset=0,
        leader_epoch=0,
        last_stable_offset=end,
        high_watermark=end,
        ledger=Ledger(records=end - start - gone, lost=gone),
        lost=tuple(lost),
        segments=tuple(segments),
        truncated_to=truncated_to,
        not_captured=not_captured,
    )


def append(
    log: CommitLog,
    *parts: PartitionRange,
    capture_id: str = CAPTURE,
    nonce: str = NONCE,
    committed_at: int = 1,
) -> Commit:
    return log.append(
        nonce=nonce,
        capture_id=capture_id,
        window=None,
        committed_at=committed_at,
        incarnation=incarnation(topic=log.topic, topic_id=log.topic_id),
        partitions=parts,
    )


def capture(
    store: Store,
    partitions: Mapping[int, Sequence[bytes]],
    *,
    capture_id: str = CAPTURE,
    topic: str = TOPIC,
    topic_id: str = TOPIC_ID,
    compression: Compression = "none",
    started_at: int = 1,
    nonce: str = NONCE,
) -> CommitLog:
    """One capture of one topic, in the order of a real one: segments, commit, capture object.

    Args:
        partitions: by number, the raw batches of each new segment.
    """
    repository = Repository.open(store, cluster_id=CLUSTER, create=True)
    log = repository.commit_log(topic, topic_id)
    parts = []
    for partition, segments in partitions.items():
        entries = [
            write_segment(
                store,
                data,
                topic=topic,
                topic_id=topic_id,
                partition=partition,
                capture_id=capture_id,
                index=index,
                compression=compression,
            )
            for index, data in enumerate(segments)
        ]
        start = log.end_of(partition) or 0
        end = entries[-1].last_offset + 1 if entries else start
        parts.append(part(start, end, partition=partition, segments=entries))
    append(log, *parts, capture_id=capture_id, nonce=nonce, committed_at=started_at)
    head, sha256 = log.head, log.head_sha256
    assert head is not None
    assert sha256 is not None
    repository.put_capture(
        Capture(
            capture_id=capture_id,
            nonce=nonce,
            started_at=started_at,
            ended_at=started_at + 1,
            window=None,
            status="complete",
            topics=(
                CapturedTopic(topic=topic, topic_id=topic_id, head=head, head_sha256=sha256, changed=True),
            ),
        )
    )
    return log


def live_records(store: Store, log: CommitLog, partition: int = 0, **state: int) -> Iterator[Record]:
    """The records of a partition as a restore would read them."""
    for segment in log.segments(partition, **state):
        for data, _ in SegmentReader(store, segment).batches(check_crc=True):
            for record in decode_batch(data):
                if segment.start <= record.offset < segment.end:
                    yield record


def replace_object(store: Store, key: str, data: bytes) -> None:
    """Do what a repository never does."""
    store.delete(key)
    with store.create(key) as writer:
        writer.write(data)
        writer.commit()
