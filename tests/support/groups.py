"""Real consumers in consumer groups, and what brokers say of groups, by confluent-kafka."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)

from kafka_backup import Engine
from kafka_backup.groups import PlannedReset
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.groups import CommittedOffset, GroupClient
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.offset_automation import ResetReport
from kafka_backup.repository.group_documents import ResetRequest
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord
from tests.support.topics import new_topic, produce
from tests.support.waiting import wait_for

Positions = dict[tuple[str, int], int]


def consumer(
    bootstrap_servers: str, group: str, *, protocol: str = "classic", **config: str | int | bool
) -> Consumer:
    """A consumer that reads from the beginning where its group has no position, and commits when told.

    Args:
        bootstrap_servers: Where.
        group: Its group.
        protocol: classic, or consumer (KIP-848).
        config: More of librdkafka's settings; ``_`` stands for ``.``.
    """
    settings: dict[str, str | int | bool] = {
        "bootstrap.servers": bootstrap_servers,
        "group.id": group,
        "group.protocol": protocol,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 200,
        "log_level": 0,
    }
    if protocol == "classic":
        settings |= {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
    return Consumer(settings | {name.replace("_", "."): value for name, value in config.items()})


def poll(client: Consumer, count: int, *, timeout: float = 60) -> list[tuple[str, int, int, bytes]]:
    """Reads `count` records: topic, partition, offset, value."""
    found: list[tuple[str, int, int, bytes]] = []
    end = time.monotonic() + timeout
    while len(found) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{len(found)} of {count} records after {timeout:g} s")
        message = client.poll(0.2)
        if message is None:
            continue
        error = message.error()
        if error is None:
            topic, value = message.topic(), message.value()
            assert topic is not None
            found.append((topic, message.partition() or 0, message.offset() or 0, value or b""))
        elif error.code() != KafkaError._PARTITION_EOF and not error.retriable():
            raise KafkaException(error)
    return found


@contextlib.contextmanager
def reading(
    bootstrap_servers: str, group: str, *topics: str, protocol: str = "classic"
) -> Iterator[Consumer]:
    """A member of the group that has joined and was given partitions; it leaves at the end of the block."""
    client = consumer(bootstrap_servers, group, protocol=protocol)
    try:
        client.subscribe(list(topics))
        wait_for(lambda: [client.poll(0.05)] and client.assignment(), 60, f"{group} joined", interval=0)
        yield client
    finally:
        client.close()


def read_and_commit(
    bootstrap_servers: str, group: str, topic: str, count: int, *, protocol: str = "classic"
) -> list[bytes]:
    """Joins, reads `count` records, commits after the last of them, leaves; returns their values."""
    client = consumer(bootstrap_servers, group, protocol=protocol)
    try:
        client.subscribe([topic])
        found = poll(client, count)
        client.commit(asynchronous=False)
    finally:
        client.close()
    return [value for _, _, _, value in found]


def read_on(
    bootstrap_servers: str, group: str, topic: str, *, protocol: str = "classic", timeout: float = 90
) -> dict[int, list[bytes]]:
    """Joins, reads to the end of every partition from where the group is, and leaves without a commit."""
    client = consumer(bootstrap_servers, group, protocol=protocol, isolation_level="read_committed")
    try:
        partitions = client.list_topics(topic, timeout=30).topics[topic].partitions
        found: dict[int, list[bytes]] = {partition: [] for partition in sorted(partitions)}
        client.subscribe([topic])
        unread = set(found)
        end = time.monotonic() + timeout
        while unread:
            if time.monotonic() > end:
                raise TimeoutError(f"{group}: {topic} {sorted(unread)} not read to the end")
            message = client.poll(0.2)
            if message is None:
                continue
            error, partition = message.error(), message.partition() or 0
            if error is None:
                found[partition].append(message.value() or b"")
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(partition)
            elif not error.retriable():
                raise KafkaException(error)
        return found
    finally:
        client.close()


def commit(bootstrap_servers: str, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
    """Commits offsets from outside of the group, which makes a simple group if there is none."""
    client = consumer(bootstrap_servers, group)
    try:
        parts = [TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()]
        wait_for(lambda: committed(client, *parts), 30, f"a commit of {group}")
    finally:
        client.close()


def committed(client: Consumer, *parts: TopicPartition) -> bool:
    """Commits; False while the coordinator is still loading."""
    try:
        done = client.commit(offsets=list(parts), asynchronous=False)
    except KafkaException as error:
        if error.args[0].retriable() or error.args[0].code() == KafkaError._WAIT_COORD:
            return False
        raise
    return all(part.error is None for part in done or ())


def positions(kafka: KafkaCluster, group: str) -> Positions:
    """The group's committed offsets, as the brokers tell confluent-kafka."""
    admin = kafka.admin()
    question = [ConsumerGroupTopicPartitions(group)]
    found = admin.list_consumer_group_offsets(question, require_stable=True)[group].result(30)
    assert found.topic_partitions is not None
    return {(part.topic, part.partition): part.offset for part in found.topic_partitions}


def positions_of(kafka: KafkaCluster, groups: Iterable[str]) -> dict[str, Positions]:
    """The committed offsets of several groups, as the brokers tell confluent-kafka."""
    return {group: positions(kafka, group) for group in groups}


@contextlib.contextmanager
def group_client(kafka: KafkaCluster) -> Iterator[GroupClient]:
    """Our own client, for what confluent-kafka cannot do or does slowly."""
    client = GroupClient(
        Cluster(ConnectionSettings.from_properties(kafka.bootstrap_servers, {}), retry_seconds=30)
    )
    try:
        yield client
    finally:
        client.cluster.close()


def set_positions(kafka: KafkaCluster, groups: Mapping[str, Positions]) -> None:
    """Commits offsets of many groups."""
    wanted = {
        group: {part: CommittedOffset(offset=offset) for part, offset in offsets.items()}
        for group, offsets in groups.items()
    }
    with group_client(kafka) as client:
        wait_for(lambda: not any(client.commit(wanted).values()), 60, "all commits", interval=0.2)


def states(kafka: KafkaCluster) -> dict[str, str]:
    """The state of every group, as the brokers tell confluent-kafka."""
    admin = kafka.admin()
    found = admin.list_consumer_groups().result(30)
    assert not found.errors, found.errors
    return {each.group_id: each.state.name for each in found.valid if each.state is not None}


@contextlib.contextmanager
def open_offsets_transaction(
    bootstrap_servers: str, group: str, offsets: Mapping[tuple[str, int], int]
) -> Iterator[Producer]:
    """A transaction that has committed these offsets for the group; the block ends it, or it is aborted."""
    producer = Producer(
        {"bootstrap.servers": bootstrap_servers, "transactional.id": f"tx-{group}", "log_level": 0}
    )
    producer.init_transactions(60)
    producer.begin_transaction()
    client = consumer(bootstrap_servers, group)
    try:
        parts = [TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()]
        producer.send_offsets_to_transaction(parts, client.consumer_group_metadata(), 60)
    finally:
        client.close()
    yield producer
    with contextlib.suppress(KafkaException):  # the block ended it already
        producer.abort_transaction(60)


def filled_topic(kafka: KafkaCluster, partitions: int = 1, records: int = 30) -> str:
    """A topic of this many records in each partition; the values are ``<partition>-<number>``."""
    topic = new_topic(kafka, partitions)
    for partition in range(partitions):
        produce(
            kafka.bootstrap_servers,
            topic,
            [NewRecord(b"%d-%d" % (partition, i)) for i in range(records)],
            partition=partition,
        )
    return topic


def plan_reset(engine: Engine, *groups: str, **request: object) -> PlannedReset:
    """Plans a reset of these groups."""
    return engine.groups.plan_reset(ResetRequest(groups=groups, **request))  # type: ignore[arg-type]


def reset(engine: Engine, *groups: str, **request: object) -> ResetReport:
    """Plans a reset of these groups and carries it out; fails on the first position that failed."""
    report = engine.groups.reset(plan_reset(engine, *groups, **request).plan)
    for result in report.results:
        if result.error is not None:
            raise result.error
    return report
