"""Captures of many partitions that have nothing new."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kafka_backup import TopicUnchanged
from kafka_backup.kafka.connection import Connection
from tests.support.engine import capture, open_engine
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce

LIST_OFFSETS, FETCH = 2, 1


def test_an_idle_capture_asks_each_broker_once_for_all_partitions(
    kafka: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests the requests of a capture that finds nothing new: in 1 partition, and in 151 of four topics.

    It matters because a cluster has thousands of partitions, most of them idle, and is captured every few minutes.
    A request for each of them would take minutes, and be felt by the cluster's own clients.
    """
    asked: Counter[int] = Counter()
    send = Connection._send

    def counted(connection: Connection, api_key: int, *args: object, **kwargs: object) -> None:
        asked[api_key] += 1
        send(connection, api_key, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "_send", counted)
    few = [new_topic(kafka)]
    many = [*few, *(new_topic(kafka, 50) for _ in range(3))]
    for topic in many:
        produce(kafka.bootstrap_servers, topic, [NewRecord(b"value")])
    counts = []
    for topics in (few, many):
        with open_engine(kafka, tmp_path / str(len(topics)), consumer_groups=[]) as engine:
            capture(engine, *topics)
            asked.clear()
            events = capture(engine, *topics)
        assert sum(isinstance(event, TopicUnchanged) for event in events) == len(topics)
        counts.append(Counter(asked))
    assert counts[0][FETCH] == counts[1][FETCH] == 0
    # Log starts, last stable offsets, high watermarks: for all partitions at once.
    assert counts[0][LIST_OFFSETS] == counts[1][LIST_OFFSETS] == 3
