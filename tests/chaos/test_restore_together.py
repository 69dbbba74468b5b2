"""Partitions that share their requests while a restore writes them, when the broker fails that leads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kafka_backup.kafka.produce import ProduceResult, TopicProducer
from kafka_backup.records import Buffer
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce, read_topic
from tests.support.waiting import wait_for

PARTITIONS = 7
HEALTHY_REQUESTS = 25
"""Answers after which the leader fails; several requests are on their way then."""


class Fault:
    """Cuts or kills the leader whose answers are counted, once; and sees what is sent together."""

    def __init__(self, kafka: KafkaCluster, kind: str) -> None:
        self.kafka = kafka
        self.kind = kind
        self.answers = 0
        self.broker = 0
        self.most_together = 0

    def strike(self, port: int) -> None:
        """Now."""
        self.broker = next(each for each in self.kafka.ids if self.kafka.ports[each] == port)
        if self.kind == "kill":
            self.kafka.kill(self.broker)
            self.kafka.start(self.broker, wait=False)
        else:
            self.kafka.proxies[self.broker].reset()
            self.kafka.proxies[self.broker].open()


@pytest.mark.parametrize("kind", ["reset", "kill"])
def test_partitions_written_together_survive_their_leader(
    kafka3: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What: the connection of several partitions breaks, or their leader dies, with requests on their way.

    Why: one failure leaves the outcome open for all of them at once.
    Risk: a batch that is written twice or not at all, in a partition that had no trouble of its own.
    """
    topic = new_topic(kafka3, PARTITIONS)
    for partition in range(PARTITIONS):
        records = [NewRecord(b"%d-%07d" % (partition, number) * 10) for number in range(8_000)]
        produce(kafka3.bootstrap_servers, topic, records, partition=partition, config={"batch.size": 16_000})
    before = restored_as(kafka3, topic)
    fault = Fault(kafka3, kind)
    send, receive = TopicProducer.send, TopicProducer.receive

    def watched_send(producer: TopicProducer, batches: Sequence[tuple[int, Buffer]]) -> None:
        fault.most_together = max(fault.most_together, len(batches))
        send(producer, batches)

    def failing_receive(producer: TopicProducer, **wait: Any) -> Mapping[int, ProduceResult]:
        fault.answers += 1
        if fault.answers == HEALTHY_REQUESTS:
            fault.strike(producer._connection.address.port)
        return receive(producer, **wait)

    monkeypatch.setattr(TopicProducer, "send", watched_send)
    monkeypatch.setattr(TopicProducer, "receive", failing_receive)
    with open_engine(kafka3, tmp_path) as engine:
        capture(engine, topic)
        report = restore(engine, "r", topic)
    assert fault.broker
    assert fault.most_together > 1
    (restored,) = report.topics
    assert [part.records for part in restored.partitions] == [8_000] * PARTITIONS
    wait_for(lambda: kafka3.in_sync(topic) == 3, 60, "all brokers in sync")
    assert read_topic(kafka3.bootstrap_servers, f"restored-{topic}") == before
