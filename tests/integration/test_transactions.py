"""Transactions: what is committed is captured, once; what is open waits, and is named."""

from __future__ import annotations

import random
import secrets
import time
from pathlib import Path

from confluent_kafka import Producer

from tests.support import kafka_wire
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, decode_batches
from tests.support.shell import Shell
from tests.support.topics import new_topic, produce, read_topic


def _producer(kafka: KafkaCluster, **settings: object) -> Producer:
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "transactional.id": secrets.token_hex(4),
            "linger.ms": 0,
            "log_level": 0,
            **{name.replace("_", "."): value for name, value in settings.items()},
        }
    )
    producer.init_transactions(60)
    return producer


def _producer_of(kafka: KafkaCluster, topic: str, offset: int) -> tuple[int, int]:
    """Producer id and epoch of the batch at an offset, as the broker has it."""
    address = kafka_wire.leader_address(kafka.bootstrap_servers, topic, 0)
    fetched = kafka_wire.fetch(address, topic, 0, offset, read_committed=False)
    batch = next(iter(decode_batches(fetched.records)))
    return batch.producer_id, batch.producer_epoch


def test_a_hanging_transaction_is_named_with_its_producer_and_age(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    """What: a producer dies in the middle of a transaction; others go on; then the broker aborts it.

    Why: it holds back everything behind it, and nobody else tells why the backup stands still.
    Risk: a backup that is green and empty for days; or one that waits for the end and never comes back.
    """
    topic = new_topic(kafka)
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"before")] * 3)
    began = time.time()
    opened_at = int((began - 3600) * 1000)
    producer = _producer(kafka)
    producer.begin_transaction()
    for _ in range(5):
        producer.produce(topic, b"open", timestamp=opened_at)
    producer.flush(30)
    produce(kafka.bootstrap_servers, topic, [NewRecord(b"behind")] * 4)
    shell = Shell(tmp_path, kafka.bootstrap_servers, retry_seconds=10)
    for _ in range(2):
        answer = shell.json("backup", "--topic", topic)
        (found,) = answer["open_transactions"]
        producer_id, epoch = _producer_of(kafka, topic, 3)
        assert (found["topic"], found["partition"], found["producer_id"]) == (topic, 0, producer_id)
        assert (found["producer_epoch"], found["first_offset"], found["held_back"]) == (epoch, 3, 9)
        assert 3599 < found["age_seconds"] < 3600 + time.time() - began + 1
    said = shell.run("backup", "--topic", topic).stderr
    assert (
        f"{topic} [0]: producer {producer_id} (epoch {epoch}) has a transaction open since offset 3" in said
    )
    assert shell.json("show", topic)["commits"][-1]["partitions"][0]["end"] == 3
    producer.abort_transaction(60)
    answer = shell.json("backup", "--topic", topic)
    assert answer["open_transactions"] == []
    (part,) = answer["topics"][0]["partitions"]
    assert (part["start"], part["records"], part["aborted"], part["control"]) == (3, 4, 5, 1)


def test_interleaved_transactions_of_many_producers(kafka: KafkaCluster, tmp_path: Path) -> None:
    """What: three transactional producers and a plain one at random on one partition, captured on the way.

    Why: batches of committed and aborted transactions lie between each other, and a producer's next
    transaction follows its aborted one under the same id.
    Risk: aborted records restored as data, or committed ones left out, where captures begin and end.
    """
    topic = new_topic(kafka)
    dice = random.Random(7)
    producers = [_producer(kafka) for _ in range(3)]
    is_open = [False] * 3
    with open_engine(kafka, tmp_path) as engine:
        for step in range(80):
            chosen = dice.randrange(5)
            if chosen == 4:
                capture(engine, topic)
            elif chosen == 3:
                produce(kafka.bootstrap_servers, topic, [NewRecord(b"plain-%d" % step)] * dice.randint(1, 3))
            elif not is_open[chosen]:
                producers[chosen].begin_transaction()
                is_open[chosen] = True
            elif dice.random() < 0.6:
                for number in range(dice.randint(1, 4)):
                    producers[chosen].produce(topic, b"%d-%d-%d" % (chosen, step, number))
                producers[chosen].flush(30)
            else:
                is_open[chosen] = False
                if dice.random() < 0.5:
                    producers[chosen].commit_transaction(60)
                else:
                    producers[chosen].abort_transaction(60)
        for producer, unfinished in zip(producers, is_open, strict=True):
            if unfinished:
                producer.commit_transaction(60)
        capture(engine, topic)
        assert engine.verify(level="data").status == "ok"
        restore(engine, "r", topic)
    assert read_topic(kafka.bootstrap_servers, f"restored-{topic}") == restored_as(kafka, topic)
