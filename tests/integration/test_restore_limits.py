"""How fast a restore may go, and how long its records stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kafka_backup import RefusedError, RestoreLimits, RestoreRequest
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import alter_config, delete_topic, ends, new_topic, produce, read_topic
from tests.support.waiting import wait_for

NOW = int(time.time() * 1000)
DAY = 86_400_000


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (RestoreLimits(max_bytes_per_second=800_000), 1.5),
        (RestoreLimits(max_records_per_second=2000), 1.2),
        (RestoreLimits(max_bytes_per_second=10**9, max_records_per_second=10**9), 0.0),
    ],
    ids=str,
)
def test_limits_hold_for_all_partitions_together(
    kafka: KafkaCluster, tmp_path: Path, limits: RestoreLimits, seconds: float
) -> None:
    """Tests 1.2 MB and 2,400 records over three partitions: writing takes at least what the limit demands.

    It matters because a restore at full speed starves everybody else on the cluster.
    A limit for each partition, or with a burst at the start, lets through many times as much.
    """
    topic = new_topic(kafka, 3)
    for partition in range(3):
        records = [NewRecord(bytes(500), timestamp=NOW + i) for i in range(800)]
        produce(kafka.bootstrap_servers, topic, records, partition=partition, config={"batch.size": 20_000})
    with open_engine(kafka, tmp_path) as engine:
        capture(engine, topic)
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="restored-"))
        report = engine.restore(plan, limits=limits)
    # A lower bound alone: a busy machine makes it slower, never faster.
    assert max(part.produce_seconds for part in report.topics[0].partitions) >= seconds
    if limits.max_bytes_per_second is not None:
        assert max(part.verify_seconds for part in report.topics[0].partitions) >= seconds / 3
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)


@pytest.fixture(scope="module")
def cleaning() -> Iterator[KafkaCluster]:
    """A broker that looks for old records twice a second, not every five minutes."""
    with KafkaCluster(1, config={"log.retention.check.interval.ms": 500}) as cluster:
        yield cluster


def test_old_records_stay_until_retention_is_released(cleaning: KafkaCluster, tmp_path: Path) -> None:
    """Tests month-old records in a topic with one day of retention, while the broker deletes those of others.

    It matters because a broker deletes by the records' own times, minutes after they were written.
    The restore is verified, and an hour later the topic is empty.
    """
    old = [NewRecord(b"old%d" % i, timestamp=NOW - 30 * DAY + i) for i in range(50)]
    topic = new_topic(cleaning)
    produce(cleaning.bootstrap_servers, topic, old)

    def others_are_deleted() -> None:
        control = new_topic(cleaning, config={"retention.ms": DAY, "retention.bytes": -1})
        produce(cleaning.bootstrap_servers, control, old)
        wait_for(lambda: ends(cleaning.bootstrap_servers, control)[0][0] == 50, 60, "the broker to delete")

    with open_engine(cleaning, tmp_path) as engine:
        capture(engine, topic)
        before = restored_as(cleaning, topic)
        alter_config(cleaning, topic, **{"retention.ms": DAY})
        capture(engine, topic)
        report = restore(engine, "r", topic)
        assert report.topics[0].retention_held
        for _ in range(2):
            others_are_deleted()
            assert read_topic(cleaning.bootstrap_servers, f"restored-{topic}") == before
        assert engine.verify_restore("r").status == "verified"
        assert engine.release_retention("r") == [f"restored-{topic}"]
        wait_for(
            lambda: ends(cleaning.bootstrap_servers, f"restored-{topic}")[0][0] == 50,
            60,
            "the saved retention",
        )


def test_retention_is_released_for_what_was_restored_only(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests a target that was deleted and made again: its retention is not touched, with a refusal.

    It matters because releasing deletes records for good.
    By name alone, another topic's records would be deleted.
    """
    topic = new_topic(kafka, config={"retention.ms": 400 * DAY})
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"old", timestamp=NOW - 30 * DAY)])
    with open_engine(kafka, tmp_path) as engine:
        alter_config(kafka, topic, **{"retention.ms": DAY})
        capture(engine, topic)
        assert restore(engine, "r", topic).topics[0].retention_held
        delete_topic(kafka, f"restored-{topic}")
        new_topic(kafka, name=f"restored-{topic}")
        with pytest.raises(RefusedError, match=f"restored-{topic}"):
            engine.release_retention("r")
