"""How many connections a capture and a restore open on real brokers."""

from pathlib import Path

from kafka_backup import Engine
from tests.support.engine import capture, open_engine, restore, restored_as
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce, read_topic

WORKERS = 2
ADMIN_CLIENT = 2
"""confluent-kafka's own to each broker: one for the bootstrap, one for the broker."""


def seen(kafka: KafkaCluster) -> dict[int, int]:
    """Connections that each broker's proxy has accepted so far."""
    return {broker: proxy.connections for broker, proxy in kafka.proxies.items()}


def test_connections_are_shared_by_partitions_topics_and_tasks(kafka3: KafkaCluster, tmp_path: Path) -> None:
    """What: 24 partitions on three brokers by two workers: captured, captured again, restored and verified.

    Why: with TLS and SASL a connection costs 10 to 100 ms of CPU on both sides; brokers limit their number.
    Risk: one connection for each of thousands of partitions, for nothing.
    """
    topic = new_topic(kafka3, 24)
    for partition in range(24):
        produce(kafka3.bootstrap_servers, topic, [NewRecord(b"%d" % partition)] * 5, partition=partition)
    before = seen(kafka3)

    def opened() -> dict[int, int]:
        return {broker: count - before[broker] for broker, count in seen(kafka3).items()}

    with _engine(kafka3, tmp_path) as engine:
        capture(engine, topic)
        first = opened()
        # Each worker has one, and one more where it asks a question besides.
        assert all(count <= 2 * WORKERS + ADMIN_CLIENT for count in first.values()), first
        produce(kafka3.bootstrap_servers, topic, [NewRecord(b"more")] * 5)
        between = seen(kafka3)
        capture(engine, topic)
        restore(engine, "r1", topic)
        more = {broker: count - between[broker] for broker, count in seen(kafka3).items()}
        assert sum(more.values()) <= 3 * WORKERS, more
    assert read_topic(kafka3.bootstrap_servers, f"restored-{topic}") == restored_as(kafka3, topic)


def _engine(kafka: KafkaCluster, folder: Path) -> Engine:
    return open_engine(kafka, folder, max_concurrent_partitions=WORKERS)
