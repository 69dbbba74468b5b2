"""What is not captured yet and when the broker deletes it, asked of a real broker."""

import time
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from kafka_backup import PartitionLag, RefusedError
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.stores import open_store
from tests.support.engine import capture, open_engine
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce

MINUTE = 60_000
HOUR = 60 * MINUTE


def write(kafka: KafkaCluster, topic: str, *, age_ms: int, count: int = 10, partition: int = 0) -> int:
    """Records of that age; returns their timestamp."""
    at = int(time.time() * 1000) - age_ms
    produce(
        kafka.bootstrap_servers, topic, [NewRecord(b"x" * 100, None, [], at)] * count, partition=partition
    )
    return at


def test_time_to_loss_by_age(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests records of several ages in a topic that keeps an hour, captured and not.

    An alarm must come before the loss, and name the partition that is first.
    Could go wrong: the age of captured records counts, or the topic's setting is not read.
    """
    topic = new_topic(kafka, 3, config={"retention.ms": HOUR})
    written = write(kafka, topic, age_ms=40 * MINUTE, partition=0)
    write(kafka, topic, age_ms=0, partition=1)
    with open_engine(kafka, tmp_path) as engine:
        never = {lag.partition: lag for lag in engine.lags([topic], horizon_seconds=50 * 60)}
        capture(engine, topic)
        after = {lag.partition: lag for lag in engine.lags([topic])}
        later = write(kafka, topic, age_ms=10 * MINUTE, partition=0, count=3)
        (again, *_) = engine.lags([topic])

    assert never[0].cause == "retention.ms"
    assert never[0].loss_at == pytest.approx(written + HOUR, abs=10_000)
    assert (never[0].captured, never[0].waiting) == (0, 10)
    assert never[1].loss_at is None
    assert (never[1].waiting, never[2].waiting) == (10, 0)
    assert [lag.waiting for lag in after.values()] == [0, 0, 0]
    assert after[0].loss_at is None
    assert (again.captured, again.waiting, again.lost) == (10, 3, 0)
    # The captured ones are in the same segment, and are older: what counts is the first waiting one.
    assert again.loss_at == pytest.approx(later + HOUR, abs=10_000)


def test_time_to_loss_by_size(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a topic that keeps 100,000 bytes, with a little and with too much waiting.

    Such topics are the ones that lose data in a peak.
    Could go wrong: sizes of another partition or replica, or a loss that is never seen.
    """
    topic = new_topic(kafka, config={"retention.bytes": 100_000, "segment.bytes": 1 << 20})
    write(kafka, topic, age_ms=0, count=50)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        write(kafka, topic, age_ms=0, count=50)
        (some,) = engine.lags([topic])
        write(kafka, topic, age_ms=0, count=2000)
        (much,) = engine.lags([topic])

    assert some.cause == "retention.bytes"
    assert some.loss_at is not None
    assert some.loss_at > time.time() * 1000
    assert some.unknown is None
    assert much.loss_at is not None
    assert much.loss_at <= time.time() * 1000


def test_compacted_topic_loses_nothing_by_retention(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests old records in a topic that is only compacted, and a topic that the filters leave out.

    An alarm for nothing is switched off, and the next one with it.
    Could go wrong: the broker's default retention is taken for the topic's.
    """
    topic = new_topic(kafka, config={"cleanup.policy": "compact", "retention.ms": HOUR})
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"v", b"k", [], int(time.time() * 1000) - 2 * HOUR)])
    other = new_topic(kafka)
    with open_engine(kafka, tmp_path) as engine:
        (lag,) = engine.lags([topic])
        assert {topic, other} <= set(engine.cluster_topics())
        assert "__consumer_offsets" not in engine.cluster_topics()

    assert isinstance(lag, PartitionLag)
    assert (lag.waiting, lag.loss_at) == (1, None)


def test_deleted_before_the_capture_is_lost(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a log start that has passed what was captured.

    It is too late then, and must not look like an empty queue.
    Could go wrong: the lost offsets are taken for captured ones.
    """
    topic = new_topic(kafka)
    write(kafka, topic, age_ms=0, count=10)
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        write(kafka, topic, age_ms=0, count=10)
        admin, place = kafka.admin(), TopicPartition(topic, 0, 15)
        admin.delete_records([place])[place].result(30)
        (lag,) = engine.lags([topic])

    assert (lag.captured, lag.log_start, lag.end) == (10, 15, 20)
    assert (lag.lost, lag.waiting) == (5, 5)


def test_repository_of_another_cluster_is_refused(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a repository that belongs to somebody else.

    Its offsets mean nothing here.
    Could go wrong: everything looks captured, and nobody is warned.
    """
    Repository.open(open_store(f"file://{tmp_path}", {}), cluster_id="another", create=True)
    with open_engine(kafka, tmp_path) as engine, pytest.raises(RefusedError, match="another"):
        engine.lags(["*"])
