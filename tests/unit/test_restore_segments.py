"""What a restore would produce, computed from segments in a repository without any broker."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import pytest

from kafka_backup.expected_batches import PartitionTarget, expected_batches
from kafka_backup.records.batch import walk
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.repository import proven_object, segments
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Incarnation, Ledger, PartitionRange
from kafka_backup.repository.restore_documents import PlannedPartition, PlannedTopic, RestoreRequest
from kafka_backup.repository.segments import SegmentWriter
from kafka_backup.repository.store import Store
from kafka_backup.repository.stores import open_store

TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAQ"


def _store() -> Store:
    return open_store(f"memory://{secrets.token_hex(8)}")


def _log(
    store: Store, commits: Sequence[Sequence[Sequence[Record]]], *, per_batch: int | None = None
) -> CommitLog:
    """A commit log with the given commits, each a list of segments, each a list of records."""
    log = CommitLog.open(store, "orders", TOPIC_ID)
    for number, its_segments in enumerate(commits):
        entries = []
        for index, records in enumerate(its_segments):
            writer = SegmentWriter(
                store,
                topic="orders",
                topic_id=TOPIC_ID,
                partition=0,
                capture_id=f"capture-{number}",
                index=index,
                first_offset=records[0].offset,
                compression="zstd",
            )
            size = per_batch or len(records)
            data = b"".join(encode_batch(records[i : i + size]) for i in range(0, len(records), size))
            writer.add(memoryview(data), [header for _, header in walk(data)])
            entries.append(writer.finish())
        start = log.end_of(0) or 0
        end = entries[-1].last_offset + 1 if entries else start
        count = sum(entry.records for entry in entries)
        log.append(
            nonce=secrets.token_hex(8),
            capture_id=f"capture-{number}",
            window=None,
            committed_at=number,
            incarnation=Incarnation(
                topic="orders",
                topic_id=TOPIC_ID,
                partition_count=1,
                replication_factor=1,
                configuration={},
            ),
            partitions=[
                PartitionRange(
                    partition=0,
                    start=start,
                    end=end,
                    log_start_offset=0,
                    leader_epoch=0,
                    last_stable_offset=end,
                    high_watermark=end,
                    ledger=Ledger(records=count, compacted=end - start - count),
                    segments=tuple(entries),
                )
            ],
        )
    return log


def _restored(store: Store, log: CommitLog, **request: int) -> list[Record]:
    """The records of the expected batches, each with its source offset put back."""
    assert log.head is not None
    partition = PlannedPartition(
        partition=0, source_start=0, source_end=log.end_of(0) or 0, segments=0, raw_bytes=0, batches=0,
        reencoded_batches=0, records=0,
    )  # fmt: skip
    topic = PlannedTopic(
        source="orders", source_topic_id=TOPIC_ID, target="again", target_topic_id=None, target_configuration={},
        head=log.head, head_sha256=log.sha256_of(log.head), partition_count=1, replication_factor=1,
        configuration={}, not_applied={}, retention_ms=-1, retention_bytes=-1, max_batch_bytes=1 << 20, merge_bytes=1 << 18,
        partitions=(partition,),
    )  # fmt: skip
    target = PartitionTarget(
        request=RestoreRequest(restore_id="r", **request),
        topic=topic,
        partition=partition,
        target_topic_id=TOPIC_ID,
        log=log,
    )
    records = []
    for batch in expected_batches(target, store, before_segment=lambda: None):
        offsets = [start + i for start, count in batch.runs for i in range(count)]
        decoded = decode_batch(batch.data) if batch.reencoded else decode_batch(bytes(batch.data))
        for offset, record in zip(offsets, decoded, strict=True):
            records.append(
                Record(
                    offset=offset,
                    timestamp=record.timestamp,
                    key=record.key,
                    value=record.value,
                    headers=record.headers,
                )
            )
    return records


def _records(*offsets: int) -> list[Record]:
    return [
        Record(offset=offset, timestamp=1000 + offset, key=None, value=b"%d" % offset) for offset in offsets
    ]


def test_restore_empty_backup_succeeds() -> None:
    """Tests that a commit without a segment restores to nothing, without an error.

    It matters because empty topics are part of a cluster.
    Code that takes the first segment for granted fails the whole restore on one of them.
    """
    store = _store()
    assert _restored(store, _log(store, [[]])) == []


def test_restore_single_message_backup_succeeds() -> None:
    """Tests that a backup of one record restores to that record.

    It matters because the first is also the last here.
    Half-open ranges that are off by one lose it.
    """
    store = _store()
    assert _restored(store, _log(store, [[_records(0)]])) == _records(0)


def test_restored_messages_per_partition_are_sorted_by_offset() -> None:
    """Tests that segments of several commits come in offset order, gaps included.

    It matters because a partition's order is the one promise that Kafka makes.
    Object stores list keys, not history; two captures must not be mixed up.
    """
    store = _store()
    log = _log(store, [[_records(0, 1, 2), _records(3, 5)], [], [_records(6), _records(10, 11, 12)]])
    assert [record.offset for record in _restored(store, log)] == [0, 1, 2, 3, 5, 6, 10, 11, 12]
    assert _restored(store, log) == _records(0, 1, 2, 3, 5, 6, 10, 11, 12)


def test_segments_before_the_time_bound_are_not_read() -> None:
    """Tests that a segment whose largest timestamp is too early is skipped, and records are filtered.

    It matters because a restore of one hour out of a year must not read the year.
    Skipping by anything but the maximum would lose records that are out of order.
    """
    store = _store()
    log = _log(store, [[_records(0, 1, 2), _records(3, 4, 5)]])
    first = log.segments(0)[0]
    store.delete(first.key)
    assert [record.offset for record in _restored(store, log, from_ms=1004)] == [4, 5]


@pytest.mark.parametrize("piece", [70, 100, 333, 5000])
def test_tiny_batches_are_merged_however_a_segment_is_read(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a segment of single-record batches that is read in pieces which cut them anywhere.

    It matters because tiny batches are merged piece by piece, so that a large segment needs little memory.
    A record at the end of a piece could be lost, doubled, or merged out of order.
    """
    for module in (proven_object, segments):
        monkeypatch.setattr(module, "PIECE_BYTES", piece)
    store = _store()
    wanted = _records(*range(7, 60), *range(75, 90))
    log = _log(store, [[wanted]], per_batch=1)
    assert _restored(store, log) == wanted
    assert _restored(store, log, from_ms=1020, until_ms=1080) == [
        record for record in wanted if 1020 <= record.timestamp <= 1080
    ]
