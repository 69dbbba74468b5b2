"""From the first backup to consumers that read on, by the command line alone, with topics that are hard to restore."""

from __future__ import annotations

import json
import random
import secrets
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.support.engine import restored_as
from tests.support.groups import read_and_commit, read_on
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, Record
from tests.support.shell import Shell
from tests.support.topics import (
    alter_config,
    compacted_topic,
    delete_topic,
    new_topic,
    produce,
    read_topic,
    topic_config,
)

MIB = 1 << 20
YEAR = 365 * 86_400_000
EPOCH = 1_700_000_000_000


def _orders(kafka: KafkaCluster) -> str:
    """Committed and aborted transactions, doubled, empty, null and binary headers, an empty partition."""
    topic = new_topic(kafka, 3)
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"tx-{topic}", "log_level": 0}
    )
    producer.init_transactions(60)
    for number in range(12):
        producer.begin_transaction()
        for i in range(5):
            producer.produce(topic, b"%d-%d" % (number, i), b"k%d" % i, partition=0)
        producer.flush(60)
        (producer.abort_transaction if number % 3 == 1 else producer.commit_transaction)(60)
    headers = [
        (b"h", b"1"),
        (b"h", b"2"),
        (b"h", b"1"),
        (b"", b""),
        (b"none", None),
        (b"raw", bytes(range(256))),
    ]
    records = [NewRecord(b"v%d" % i if i % 5 else None, b"" if i % 7 else None, headers) for i in range(200)]
    produce(kafka.bootstrap_servers, topic, records, partition=1, codec="lz4")
    return topic


def _ticks(kafka: KafkaCluster) -> str:
    """Single-record batches whose timestamps are out of order, from 1970 to 2100."""
    any_time = {"message.timestamp.after.max.ms": 2**63 - 1}
    topic = new_topic(kafka, config={"retention.ms": -1, "segment.bytes": MIB, **any_time})
    times = [EPOCH + i for i in range(2000)] + [1, YEAR, 130 * YEAR]
    random.Random(5).shuffle(times)
    records = [NewRecord(b"tick %d" % at, timestamp=at) for at in times]
    produce(kafka.bootstrap_servers, topic, records, config={"batch.num.messages": 1, "linger.ms": 0})
    return topic


def _blobs(kafka: KafkaCluster) -> str:
    """A record of 20 MiB among small ones, in a topic that takes it."""
    topic = new_topic(kafka, config={"max.message.bytes": 21 * MIB})
    blob = random.Random(6).randbytes(20 * MIB)
    large = {"message.max.bytes": 21 * MIB}
    records = [NewRecord(b"before"), NewRecord(blob, b"blob"), NewRecord(b"after")]
    produce(kafka.bootstrap_servers, topic, records, codec="zstd", config=large)
    return topic


@dataclass(frozen=True)
class World:
    """The topics, what a restore of them must hold, and a consumer group that has read a part of the first."""

    topics: dict[str, str]
    expected: dict[str, dict[int, list[Record]]]
    group: str
    seen: list[bytes]


@pytest.fixture(scope="module")
def world(kafka: KafkaCluster) -> World:
    """Made once; nothing is written into them any more."""
    topics = {
        "orders": _orders(kafka),
        "ticks": _ticks(kafka),
        "blobs": _blobs(kafka),
        "state": compacted_topic(kafka),
    }
    alter_config(kafka, topics["orders"], retention_ms=2 * YEAR, max_message_bytes=2 * MIB)
    group = f"billing-{secrets.token_hex(3)}"
    seen = read_and_commit(kafka.bootstrap_servers, group, topics["orders"], 70)
    return World(topics, {name: restored_as(kafka, topic) for name, topic in topics.items()}, group, seen)


def test_full_restore_flow(kafka: KafkaCluster, world: World, tmp_path: Path) -> None:
    """Tests backup, verify, all topics deleted, plan, restore, verify, offset map, groups: each as a person types it.

    It matters because this is what the software is for, and each step takes what the one before left.
    Steps that work alone may not fit: an offset that nobody can translate, a group beside its topic.
    """
    shell = Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=60)
    every = [word for topic in world.topics.values() for word in ("--topic", topic)]
    orders = world.topics["orders"]
    settings = {topic: topic_config(kafka.admin(), topic) for topic in world.topics.values()}

    assert shell.json("backup", *every)["status"] == "complete"
    assert shell.json("backup", *every)["status"] == "complete"  # nothing is new
    assert shell.json("verify", "--level", "data")["status"] == "ok"
    snapshot = shell.json("groups", "list")["snapshots"][0]["snapshot"]

    for topic in world.topics.values():
        delete_topic(kafka, topic)
    command = ("restore", "--id", "the-day", *every)
    plan = shell.json(*command)
    assert plan["status"] == "planned"
    assert plan["problems"] == []
    assert not set(world.topics.values()) & set(kafka.admin().list_topics(timeout=30).topics)

    done = shell.json(*command, "--execute")
    assert done["status"] == "verified"
    assert all(part["verified"] for topic in done["topics"] for part in topic["partitions"])
    for name, topic in world.topics.items():
        assert read_topic(kafka.bootstrap_servers, topic) == world.expected[name], name
    assert shell.json("verify", "--restore", "the-day")["status"] == "ok"
    released = shell.json("restore", "--release-retention", "the-day")
    assert world.topics["ticks"] not in json.dumps(released)  # its own retention is to keep all
    for topic, saved in settings.items():
        assert topic_config(kafka.admin(), topic) == saved
    page = (shell.repository / done["page"]).read_text()
    assert page.startswith("# Restore the-day: verified")
    assert all(topic in page for topic in world.topics.values())

    # Every offset there and back: the aborted records are gaps that lead to the next record.
    count = len(world.expected["orders"][0])
    lookup = ("offset-map", "--restore", "the-day", "--topic", orders, "--partition", "0")
    back = shell.json(*lookup, "--to-source", *map(str, range(count + 1)))["offsets"]
    sources = [entry["source"] for entry in back]
    assert sources[count] is None
    there = shell.json(*lookup, *map(str, sources[:count]))["offsets"]
    assert [(entry["target"], entry["exact"]) for entry in there] == [(i, True) for i in range(count)]

    reset = ("groups", "reset", "--group", world.group, "--snapshot", snapshot, "--restore", "the-day")
    assert shell.json(*reset, "--execute")["status"] == "verified"
    unread = read_on(kafka.bootstrap_servers, world.group, orders)
    everything = [record.value or b"" for part in world.expected["orders"].values() for record in part]
    assert sorted(world.seen + [value for part in unread.values() for value in part]) == sorted(everything)
