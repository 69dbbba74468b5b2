"""Expiry on repositories of a real broker, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from kafka_backup.errors import AuthorizationError
from kafka_backup.repository.store import ObjectWriter
from kafka_backup.repository.stores import open_store
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, renumbered
from tests.support.shell import Shell
from tests.support.topics import delete_topic, new_topic, produce, read_topic


@pytest.fixture
def shell(kafka: KafkaCluster, tmp_path: Path) -> Shell:
    return Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=30, segment_bytes="64KiB")


def records(first: int, count: int) -> list[NewRecord]:
    return [NewRecord(b"value %d " % i + bytes(1000), b"key %d" % i) for i in range(first, first + count)]


def delete_records(kafka: KafkaCluster, topic: str, offset: int) -> None:
    admin = kafka.admin()
    for future in admin.delete_records([TopicPartition(topic, 0, offset)]).values():
        future.result(30)


def test_old_captures_go_and_the_newest_comes_back_whole(kafka: KafkaCluster, shell: Shell) -> None:
    """Tests a topic whose beginning Kafka deleted between captures: the old capture goes, the newest restores exactly.

    It matters because this is what retention of a backup is for, from the first capture to the bad day.
    The newest capture could come back short, or an old one, short, as if it were whole.
    """
    topic = new_topic(kafka)
    for number in range(6):
        produce(kafka.bootstrap_servers, topic, records(number * 50, 50))
    first = shell.json("backup", "--topic", topic)["capture"]
    delete_records(kafka, topic, 200)
    produce(kafka.bootstrap_servers, topic, records(300, 300))
    second = shell.json("backup", "--topic", topic)["capture"]
    before = shell.files()
    stored = {path: path.stat().st_size for path in before}
    assert shell.json("expire")["deleted_objects"] == 0
    assert shell.json("expire", "--keep-captures", "1")["status"] == "planned"
    assert shell.files() == before

    done = shell.json("expire", "--keep-captures", "1", "--execute", spawn=True)
    gone = set(before) - set(shell.files())
    assert (done["status"], done["expired"], done["captures"]) == ("done", 1, [first])
    assert (done["deleted_objects"], done["freed_bytes"]) == (len(gone), sum(stored[path] for path in gone))
    assert sum(".log" in path.name for path in gone) > 1
    assert shell.json("verify", "--level", "data")["status"] == "ok"

    refused = shell.json(
        "restore", "--id", "old", "--topic", topic, "--capture", first, "--prefix", "x-", code=5
    )
    assert [problem["kind"] for problem in refused["problems"]] == ["expired"]
    assert first in refused["problems"][0]["detail"]
    for restore_id, chosen in (("newest", ()), ("named", ("--capture", second))):
        target = f"{restore_id}-{topic}"
        asked = ("restore", "--id", restore_id, "--topic", topic, "--prefix", f"{restore_id}-", *chosen)
        (done_topic,) = shell.json(*asked, "--execute")["topics"]
        held = read_topic(kafka.bootstrap_servers, topic)[0]
        restored = read_topic(kafka.bootstrap_servers, target)[0]
        # What lies below the log start may be there too: as much as shares a segment with what does not.
        assert len(held) == 400
        assert renumbered(restored[-400:]) == renumbered(held)
        assert done_topic["partitions"][0]["records"] == len(restored) < 600
    again = shell.json("backup", "--topic", topic)
    assert [t["status"] for t in again["topics"]] == ["unchanged"]
    produce(kafka.bootstrap_servers, topic, records(600, 50))
    (entry,) = shell.json("backup", "--topic", topic)["topics"]
    assert [(p["start"], p["end"]) for p in entry["partitions"]] == [(600, 650)]
    assert shell.json("verify", "--level", "data")["status"] == "ok"


def test_a_topic_that_was_deleted_stays(kafka: KafkaCluster, shell: Shell) -> None:
    """Tests that a topic's last copy survives every expiry, and comes back.

    It matters because a deleted topic is the commonest bad day.
    The captures after the accident would push out the only one that has it.
    """
    lost, other = new_topic(kafka), new_topic(kafka)
    produce(kafka.bootstrap_servers, lost, records(0, 100))
    produce(kafka.bootstrap_servers, other, records(0, 10))
    expected = renumbered(read_topic(kafka.bootstrap_servers, lost)[0])
    shell.json("backup", "--topic", lost, "--topic", other)
    delete_topic(kafka, lost)
    for number in range(3):
        produce(kafka.bootstrap_servers, other, records(10 + number, 1))
        shell.json("backup", "--topic", other)
    shell.json("expire", "--keep-captures", "1", "--keep-days", "0", "--unfinished", "--execute")
    shell.json("restore", "--id", "r", "--topic", lost, "--execute")
    assert renumbered(read_topic(kafka.bootstrap_servers, lost)[0]) == expected


class _PutGetAndList:
    """A store whose credentials may create, read and list, and nothing else."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)
        self.created: set[str] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def create(self, key: str) -> ObjectWriter:
        assert key not in self.created, f"{key} is written a second time"
        self.created.add(key)
        return self._store.create(key)

    def delete(self, key: str) -> None:
        raise AuthorizationError(f"{key}: no right to delete")


def test_captures_and_restores_need_no_right_to_delete(kafka: KafkaCluster, tmp_path: Path) -> None:
    """Tests captures, a restore and a verification with credentials that can neither delete nor overwrite.

    It matters because whoever steals the credentials of a backup job must not be able to destroy the backups.
    A clean-up somewhere would need the right, or fail on a bucket with Object Lock.
    """
    topic = new_topic(kafka, 2)
    engine = open_engine(kafka, tmp_path, segment_bytes="64KiB")
    engine._store = _PutGetAndList(tmp_path.as_uri())  # type: ignore[assignment]
    for number in range(12):
        produce(kafka.bootstrap_servers, topic, records(number * 10, 10), partition=number % 2)
        capture(engine, topic)
    capture(engine, topic)
    restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)
    assert engine.verify(level="data").status == "ok"
