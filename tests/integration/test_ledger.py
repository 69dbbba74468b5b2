"""Each offset that is not in the repository is accounted for, by evidence of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from kafka_backup import CaptureFinished, Engine, PartitionResult, TopicCommitted
from tests.support.engine import capture, committed, in_the_middle, open_engine, restore
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import alter_config, compacted_topic, ends, new_topic, produce, read_topic
from tests.support.waiting import wait_for


def _write(kafka: KafkaCluster, topic: str, count: int, start: int = 0) -> None:
    """In batches of some hundred records."""
    records = [NewRecord(b"value-%d" % number * 20) for number in range(start, start + count)]
    produce(kafka.bootstrap_servers, topic, records, config={"batch.size": 16_384})


def _remove(kafka: KafkaCluster, topic: str, below: int) -> None:
    admin = kafka.admin()
    admin.delete_records([TopicPartition(topic, 0, below)])[TopicPartition(topic, 0)].result(30)


def _lossy(engine: Engine, topic: str) -> list[PartitionResult]:
    """What the commits of a capture say that lost something."""
    events = capture(engine, topic)
    assert isinstance(events[-1], CaptureFinished)
    assert events[-1].status == "lossy"
    return [event.partitions[0] for event in events if isinstance(event, TopicCommitted)]


def _spans(parts: list[PartitionResult]) -> list[tuple[int, int, str]]:
    return [(span.start, span.end, span.reason) for part in parts for span in part.lost_spans]


def _restored(kafka: KafkaCluster, engine: Engine, topic: str) -> list[bytes | None]:
    restore(engine, "r", topic)
    return [record.value for record in read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]]


def test_records_deleted_during_a_capture_are_lost_exactly(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: DeleteRecords in the middle of a capture, to the middle of a batch further on.

    Why: retention overtakes a first capture of hours, and takes what was promised at its start.
    Risk: a jump to the new log start without a word; or the rest of the partition is not saved.
    """
    topic = new_topic(kafka)
    _write(kafka, topic, 5000)
    in_the_middle(monkeypatch, lambda: _remove(kafka, topic, 3333))
    with open_engine(kafka, tmp_path, segment_bytes=1 << 16) as engine:
        parts = _lossy(engine, topic)
        ((start, end, reason),) = _spans(parts)
        assert (end, reason) == (3333, "retention")
        assert 0 < start < 3000
        assert (parts[0].start, parts[-1].end) == (0, 5000)
        assert sum(part.records for part in parts) == 5000 - (end - start)
        assert {problem.kind for problem in engine.verify(level="data").problems} == {"lost"}
        kept = [b"value-%d" % n * 20 for n in (*range(start), *range(end, 5000))]
        assert _restored(kafka, engine, topic) == kept


@pytest.mark.parametrize("during", [False, True])
def test_everything_deleted_before_it_was_read(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: bool
) -> None:
    """What: all records up to the end are deleted, between two captures or in the middle of one.

    Why: the log is empty then, and its start is its end.
    Risk: an endless wait for records that were promised, or an empty range that hides the loss.
    """
    topic = new_topic(kafka)
    with open_engine(kafka, tmp_path, segment_bytes=1 << 16) as engine:
        _write(kafka, topic, 10)
        capture(engine, topic)
        _write(kafka, topic, 5000, 10)
        if during:
            in_the_middle(monkeypatch, lambda: _remove(kafka, topic, 5010))
        else:
            _remove(kafka, topic, 5010)
        parts = _lossy(engine, topic)
        ((start, end, reason),) = _spans(parts)
        assert (end, reason, parts[-1].end) == (5010, "retention", 5010)
        assert (start > 10) == during
        _write(kafka, topic, 5, 5010)
        assert committed(capture(engine, topic), topic).partitions[0].lost == 0
        values = [b"value-%d" % n * 20 for n in (*range(start), *range(5010, 5015))]
        assert _restored(kafka, engine, topic) == values


def test_a_gap_in_a_topic_that_never_compacted_is_lost(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a topic with compaction's gaps whose policy is `delete` when it is first seen.

    Why: nothing that the cluster tells explains these gaps.
    Risk: any gap is called compaction, and a broker that lost records is green.
    """
    topic = compacted_topic(kafka)
    alter_config(kafka, topic, cleanup_policy="delete")
    with open_engine(kafka, tmp_path) as engine:
        (part,) = _lossy(engine, topic)
        assert part.compacted == 0
        assert {span.reason for span in part.lost_spans} == {"unexplained"}
        assert part.records + part.lost == part.end - part.start
        there = {record.offset for record in read_topic(kafka.bootstrap_servers, topic)[0]}
        lost = {n for span in part.lost_spans for n in range(span.start, span.end)}
        assert lost == set(range(part.start, part.end)) - there


def test_a_topic_that_compacted_once_may_have_gaps(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: a topic captured while it compacts, then compacted further, then set back to `delete`.

    Why: a policy changes in a minute, and the gaps that it made stay.
    Risk: each change of a policy is an alarm, and alarms are switched off.
    """
    topic = new_topic(kafka, config={"cleanup.policy": "compact"})
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        alter_config(
            kafka,
            topic,
            segment_ms=100,
            min_cleanable_dirty_ratio="0.01",
            max_compaction_lag_ms=100,
            delete_retention_ms=100,
        )
        for _ in range(3):
            keyed = [NewRecord(b"v" * 50, b"key-%d" % (n % 20)) for n in range(200)]
            produce(kafka.bootstrap_servers, topic, keyed, config={"batch.size": 1000})

        def cleaned() -> bool:
            produce(kafka.bootstrap_servers, topic, [NewRecord(b"roll", b"roll")])
            found = read_topic(kafka.bootstrap_servers, topic)[0]
            return len(found) < found[-1].offset / 2

        wait_for(cleaned, 90, "the cleaner", interval=0.3)
        alter_config(kafka, topic, cleanup_policy="delete")
        (part,) = committed(capture(engine, topic), topic).partitions
        assert part.lost == 0
        assert part.compacted > 300


def test_compaction_during_a_capture(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: the cleaner goes through a topic while a capture is in the middle of it.

    Why: compacted topics are compacted all the time, also between the two looks at a gap.
    Risk: a capture that fails each time, or the newest value of a key that is in no segment.
    """
    topic = new_topic(kafka, config={"cleanup.policy": "compact", "segment.ms": 100})
    records = [NewRecord(b"%d-" % n * 30, b"key-%d" % (n % 700)) for n in range(6000)]
    produce(kafka.bootstrap_servers, topic, records, config={"batch.size": 4000})
    before = ends(kafka.bootstrap_servers, topic)[0][1]

    def compact() -> None:
        alter_config(
            kafka, topic, min_cleanable_dirty_ratio="0.01", max_compaction_lag_ms=100, delete_retention_ms=100
        )

        def cleaned() -> bool:
            produce(kafka.bootstrap_servers, topic, [NewRecord(b"roll", b"roll")])
            return len(read_topic(kafka.bootstrap_servers, topic)[0]) < before / 2

        wait_for(cleaned, 90, "the cleaner", interval=0.3)

    in_the_middle(monkeypatch, compact)
    with open_engine(kafka, tmp_path, segment_bytes=1 << 16) as engine:
        (part,) = committed(capture(engine, topic), topic).partitions
        assert (part.start, part.end, part.lost) == (0, before, 0)
        assert part.compacted > 0
        assert part.records + part.compacted == before
        assert engine.verify(level="data").status == "ok"
        restore(engine, "r", topic)
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
    assert {record.key: record.value for record in restored} == {
        record.key: record.value for record in records
    }
