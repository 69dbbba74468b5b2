"""Captures one after another: nothing twice, nothing left out, nothing unexplained."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from kafka_backup import (
    CaptureFinished,
    ConfigurationError,
    RefusedError,
    TopicCommitted,
    TopicFailed,
    TopicUnchanged,
    UnreachableError,
    Window,
    parse_config,
)
from kafka_backup.engine import Engine
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Commit
from tests.support.engine import capture, committed, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import delete_topic, new_topic, produce, read_topic


def _records(count: int, start: int = 0) -> list[NewRecord]:
    return [NewRecord(f"value-{i}".encode() * 10, f"key-{i}".encode()) for i in range(start, start + count)]


def test_empty_partition_backup_succeeds(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests an empty topic: its first sight is committed, without segments.

    It matters because an empty topic is part of the cluster's state too.
    A tool that waits for a record of an empty partition hangs for ever.
    """
    topic = new_topic(kafka, 2)
    with open_engine(kafka, tmp_path) as engine:
        event = committed(capture(engine, topic), topic)
        assert (event.records, event.segments) == (0, 0)
        assert [(p.start, p.end) for p in event.partitions] == [(0, 0), (0, 0)]
        report = restore(engine, "r", topic)
    assert [part.records for part in report.topics[0].partitions] == [0, 0]
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == {0: [], 1: []}


def test_single_message_partition_backup_succeeds(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic of one record.

    It matters because the first and the last record are the same here.
    Loops that stop "at high watermark minus one" miss it.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, _records(1))
    with open_engine(kafka, tmp_path) as engine:
        assert committed(capture(engine, topic), topic).records == 1
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_captures_are_contiguous(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that each capture begins where the last ended, and that an idle topic gets no commit.

    It matters because the sum of all captures must be the topic: no hole, no double.
    An end taken from the clock or from the high watermark leaves either.
    """
    topic = new_topic(kafka, 2)
    with open_engine(kafka, tmp_path) as engine:
        ends = [0, 0]
        for round_ in range(4):
            for partition in range(2):
                produce(
                    kafka.bootstrap_servers, topic, _records(100 + round_, 1000 * round_), partition=partition
                )
            event = committed(capture(engine, topic), topic)
            assert event.commit == round_
            assert [part.start for part in event.partitions] == ends
            ends = [part.end for part in event.partitions]
            (unchanged,) = [e for e in capture(engine, topic) if isinstance(e, TopicUnchanged)]
            assert unchanged.commit == round_
        assert engine.verify(level="data").status == "ok"
        assert len(engine.captures()) == 8
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_restore_as_of_an_older_capture(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a restore of a capture holds what was there then, and nothing later.

    It matters because the newest state may be the one that went wrong.
    Restoring everything would bring the mistake back.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, _records(10))
    with open_engine(kafka, tmp_path) as engine:
        first = committed(capture(engine, topic), topic)
        produce(kafka.bootstrap_servers, topic, _records(10, 10))
        capture(engine, topic)
        restore(engine, "r", topic, capture=first.capture)
    assert len(read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]) == 10


def test_window_is_a_label(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that the newest window captures what is new, and an older one names the capture that holds it.

    It matters because schedules run late, twice and out of order.
    Filtering records by the window would lose those with old timestamps.
    """
    topic = new_topic(kafka)
    now = int(time.time() * 1000)
    older, newer = Window(start=now - 120_000, end=now - 60_000), Window(start=now - 60_000, end=now)
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"old", timestamp=now - 90 * 86_400_000)])
    with open_engine(kafka, tmp_path) as engine:
        event = committed(capture(engine, topic, window=newer), topic)
        assert event.records == 1
        produce(kafka.bootstrap_servers, topic, _records(3))
        (held,) = capture(engine, topic, window=older)
        assert isinstance(held, CaptureFinished)
        assert (held.status, held.capture) == ("held", event.capture)
        assert committed(capture(engine, topic, window=newer), topic).records == 3
        with pytest.raises(ConfigurationError, match="future"):
            capture(engine, topic, window=Window(start=now, end=now + 3_600_000))


def test_deleted_records_are_reported_lost(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests DeleteRecords between two captures, into the middle of a batch: an exact lost span.

    It matters because retention that overtakes the backup is the classic silent loss.
    A tool that jumps to the earliest offset reports success.
    """
    topic = new_topic(kafka)
    with open_engine(kafka, tmp_path) as engine:
        produce(kafka.bootstrap_servers, topic, _records(10))
        capture(engine, topic)
        produce(kafka.bootstrap_servers, topic, _records(100, 10))
        kafka_admin = kafka.admin()
        kafka_admin.delete_records([TopicPartition(topic, 0, 47)])[TopicPartition(topic, 0)].result(30)
        events = capture(engine, topic)
        (part,) = committed(events, topic).partitions
        assert (part.start, part.end, part.lost, part.records) == (10, 110, 37, 63)
        assert [(span.start, span.end, span.reason) for span in part.lost_spans] == [(10, 47, "retention")]
        assert isinstance(events[-1], CaptureFinished)
        assert events[-1].status == "lossy"
        assert engine.verify().status == "lossy"
        restore(engine, "r", topic)
    values = [record.value for record in read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]]
    assert values == [r.value for r in _records(10)] + [r.value for r in _records(63, 47)]


def test_first_capture_starts_at_the_log_start_inside_a_batch(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a log start inside the first batch: the records below it are neither counted nor restored.

    It matters because somebody deleted them on purpose.
    The batch is stored whole, so a reader that forgets the bound brings them back.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, _records(100))
    admin = kafka.admin()
    admin.delete_records([TopicPartition(topic, 0, 7)])[TopicPartition(topic, 0)].result(30)
    with open_engine(kafka, tmp_path) as engine:
        (part,) = committed(capture(engine, topic), topic).partitions
        assert (part.start, part.end, part.records, part.lost) == (7, 100, 93, 0)
        assert engine.verify(level="data").status == "ok"
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_recreated_topic_is_a_new_incarnation(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic deleted and re-created with more records: both are kept, a restore asks which.

    It matters because offsets start again at 0 and mean other records.
    Appended to the old history, the new records below the old end would be skipped.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, _records(5))
    with open_engine(kafka, tmp_path) as engine:
        first = committed(capture(engine, topic), topic)
        delete_topic(kafka, topic)
        new_topic(kafka, name=topic)
        produce(kafka.bootstrap_servers, topic, _records(20, 100))
        second = committed(capture(engine, topic), topic)
        assert second.topic_id != first.topic_id
        assert (second.commit, second.records) == (0, 20)
        with pytest.raises(RefusedError, match=first.topic_id):
            restore(engine, "r", topic)
        restore(engine, "r1", topic, incarnation=first.topic_id)
    restored = read_topic(kafka.bootstrap_servers, f"restored-{topic}")[0]
    assert [record.value for record in restored] == [record.value for record in _records(5)]


def test_segments_are_closed_and_committed_in_pieces(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests small segments and a commit after each: contiguous pieces that restore to the same topic.

    It matters because a kill at hour nine must lose minutes, so a long capture commits on the way.
    A piece that ends elsewhere than the next begins is a hole.
    """
    monkeypatch.setattr("kafka_backup.backup.COMMIT_BYTES", 1)
    topic = new_topic(kafka, 2)
    for partition in range(2):
        produce(
            kafka.bootstrap_servers,
            topic,
            _records(20_000),
            partition=partition,
            config={"batch.size": 10_000},
        )
    with open_engine(kafka, tmp_path, segment_bytes=1 << 17) as engine:
        events = [event for event in capture(engine, topic) if isinstance(event, TopicCommitted)]
        assert len(events) > 5
        assert sum(event.records for event in events) == 40_000
        assert engine.verify(level="data").status == "ok"
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_two_engines_at_once_do_not_harm_each_other(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a second writer between our reading of the head and our commit: we stop, with exit code 5.

    It matters because schedulers start runs twice, and no lock server is there to prevent it.
    Committing after the other would store the same offsets twice.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, _records(100))
    append = CommitLog.append
    with open_engine(kafka, tmp_path) as ours, open_engine(kafka, tmp_path) as other:

        def overtaken(log: CommitLog, **fields: Any) -> Commit:
            monkeypatch.setattr(CommitLog, "append", append)
            capture(other, topic)
            return append(log, **fields)

        monkeypatch.setattr(CommitLog, "append", overtaken)
        with pytest.raises(RefusedError) as refused:
            list(ours.backup([topic]))
        assert refused.value.exit_code == 5
        assert ours.verify(level="data").status == "ok"
        restore(ours, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


def test_a_named_topic_that_does_not_exist_is_an_error(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a missing named topic stops the capture before anything happens.

    It matters because a typo must not become a backup without the topic.
    Skipping it silently would be found on the bad day.
    """
    with open_engine(kafka, tmp_path) as engine:
        with pytest.raises(ConfigurationError, match="no-such-topic"):
            capture(engine, "no-such-topic")
        with pytest.raises(ConfigurationError, match="matches"):
            capture(engine, "no-such-*")
    assert list(tmp_path.iterdir()) == []


def test_broker_that_does_not_answer_is_named_in_time(tmp_path: Path) -> None:
    """Tests a cluster that is not there: an error that names the address, within the retry time.

    It matters because a scheduled run must end, and say why.
    A client that retries for ever looks like a slow backup.
    """
    config = parse_config(
        {
            "cluster": {"bootstrap_servers": "127.0.0.1:1", "retry_seconds": 2},
            "repository": {"url": f"file://{tmp_path}"},
        },
        source="test",
    )
    with Engine.open(config) as engine, pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1"):
        list(engine.backup(["orders"]))


def test_a_topic_that_vanished_fails_the_capture(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests that a captured topic which the cluster no longer shows is named, and the others are saved.

    It matters because brokers leave topics out of a listing, without an error, when a right is missing.
    A capture that takes the listing for the truth goes on without the topic, and says complete.
    """
    stays, goes = new_topic(kafka, name="vanishing-1"), new_topic(kafka, name="vanishing-2")
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, "vanishing-*")
        delete_topic(kafka, goes)
        produce(kafka.bootstrap_servers, stays, _records(3))
        events = list(engine.backup(["vanishing-*"]))
        (failed,) = [event for event in events if isinstance(event, TopicFailed)]
        assert (failed.topic, failed.error.exit_code) == (goes, 4)
        assert committed(events, stays).records == 3
        assert isinstance(events[-1], CaptureFinished)
        assert events[-1].status == "partial"


def test_first_captures_at_once(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: four captures of a topic each begin at the same moment, in a place where there is no repository yet.

    Why: large clusters are captured in parts, and all parts are scheduled for the same minute.
    Risk: each makes a repository of its own, or all but one fail.
    """
    topics = [new_topic(kafka) for _ in range(4)]
    for topic in topics:
        produce(kafka.bootstrap_servers, topic, _records(10))
    together = threading.Barrier(len(topics))

    def one(topic: str) -> int:
        with open_engine(kafka, tmp_path, consumer_groups=[]) as engine:
            together.wait(60)
            return committed(capture(engine, topic), topic).records

    with ThreadPoolExecutor(len(topics)) as pool:
        assert list(pool.map(one, topics)) == [10] * len(topics)
    with open_engine(kafka, tmp_path) as engine:
        assert len(engine.captures()) == len(topics)
        assert engine.verify(level="data").status == "ok"
