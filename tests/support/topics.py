"""Create, write and read topics by confluent-kafka; and by hand what confluent-kafka cannot do."""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
)

from tests.support import kafka_wire
from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import Codec, NewRecord, Record, decode_batches, decode_records, encode_batch
from tests.support.waiting import wait_for


def new_topic(
    kafka: KafkaCluster,
    partitions: int = 1,
    *,
    name: str | None = None,
    replicas: int | None = None,
    assignment: Sequence[Sequence[int]] | None = None,
    config: Mapping[str, str | int] | None = None,
) -> str:
    """Creates a topic, waits until each of its partitions has a leader and a full ISR, and returns its name.

    Args:
        kafka: Where.
        partitions: How many.
        name: None: a new, random one.
        replicas: None: as many as there are brokers, three at most.
        assignment: For each partition its brokers, the preferred leader first.
        config: Kafka's topic settings, such as `{"cleanup.policy": "compact"}`.
    """
    topic = name or f"topic-{secrets.token_hex(4)}"
    copies = replicas or (len(assignment[0]) if assignment else min(3, len(kafka.ids)))
    settings = {key: str(value) for key, value in (config or {}).items()}
    placed: dict[str, Any] = (
        {"replica_assignment": list(map(list, assignment))} if assignment else {"replication_factor": copies}
    )
    admin = kafka.admin()  # a name of its own: futures die with their client
    admin.create_topics([NewTopic(topic, partitions, config=settings, **placed)])[topic].result(30)

    def ready() -> bool:
        return all(len(kafka.partition(topic, each).isr) == copies for each in range(partitions))

    wait_for(ready, 30, f"all leaders of {topic}")
    return topic


def compacted_topic(kafka: KafkaCluster, **settings: str | int) -> str:
    """A topic that the cleaner has been through: gaps inside and between batches."""
    topic = new_topic(
        kafka,
        config={
            "cleanup.policy": "compact",
            "segment.ms": 100,
            "min.cleanable.dirty.ratio": "0.01",
            "max.compaction.lag.ms": 100,
            "delete.retention.ms": 100,
            **{name.replace("_", "."): value for name, value in settings.items()},
        },
    )
    now = int(time.time() * 1000)
    for round_ in range(4):
        records = [
            NewRecord(f"{round_}-{i}".encode(), f"key-{i % (50 + round_)}".encode(), timestamp=now + i)
            for i in range(300)
        ]
        produce(kafka.bootstrap_servers, topic, records, codec="zstd", config={"batch.size": 2_000})

    def cleaned() -> bool:
        # The cleaner leaves the active segment alone: give it a new one each time.
        produce(kafka.bootstrap_servers, topic, [NewRecord(b"roll", b"roll")])
        found = read_topic(kafka.bootstrap_servers, topic)[0]
        return len(found) < found[-1].offset / 4

    wait_for(cleaned, 90, f"the cleaner to compact {topic}", interval=0.3)
    return topic


def delete_topic(kafka: KafkaCluster, topic: str) -> None:
    """Deletes it, and waits until no broker knows it any more."""
    admin = kafka.admin()
    admin.delete_topics([topic])[topic].result(30)
    wait_for(
        lambda: not any(kafka_wire.metadata(port, topic).partitions for port in kafka.ports.values()), 30
    )


def produce(
    bootstrap_servers: str,
    topic: str,
    records: Iterable[NewRecord],
    *,
    partition: int = 0,
    codec: Codec = "none",
    config: Mapping[str, str | int | float | bool] | None = None,
) -> int:
    """Writes records by confluent-kafka, in order, and returns how many; each one was acknowledged.

    librdkafka takes a timestamp of 0 for "now", and header keys must be UTF-8: for others see
    `produce_batch`.

    Raises:
        KafkaException: One was not acknowledged.
    """
    problems: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            problems.append(error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "compression.type": codec,
            "linger.ms": 20,
            "delivery.timeout.ms": 60_000,
            "queue.buffering.max.kbytes": 1 << 18,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
            **(config or {}),
        }
    )
    count = 0
    for record in records:
        if record.timestamp == 0:
            raise ValueError("librdkafka writes the current time instead of 0: use produce_batch")
        extra = {} if record.timestamp is None else {"timestamp": record.timestamp}
        headers = [(key.decode(), value) for key, value in record.headers]
        while True:
            try:
                producer.produce(
                    topic,
                    record.value,
                    record.key,
                    partition,
                    on_delivery=delivered,
                    headers=headers,
                    **extra,
                )
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        if count % 1000 == 0:
            producer.poll(0)
        if problems:
            break
    left = producer.flush(90)
    if problems:
        raise KafkaException(problems[0])
    if left:
        raise TimeoutError(f"{left} of {count} records to {topic} were not acknowledged")
    return count


def produce_batch(bootstrap_servers: str, topic: str, batch: bytes, *, partition: int = 0) -> int:
    """Writes one hand-made record batch, exactly these bytes, and returns the offset that it was given.

    Raises:
        ConnectionError: The broker refused it; with Kafka's error code.
    """
    address = kafka_wire.leader_address(bootstrap_servers, topic, partition)
    answer = kafka_wire.produce_bytes(address, topic, partition, batch)
    if answer.error:
        raise ConnectionError(f"produce to {topic} [{partition}]: error {answer.error}")
    return answer.base_offset


def produce_raw(
    bootstrap_servers: str,
    topic: str,
    records: Sequence[NewRecord],
    *,
    partition: int = 0,
    codec: Codec = "none",
) -> int:
    """Writes records as one batch by our own encoder: header keys may be any bytes, timestamps any number."""
    now = int(time.time() * 1000)
    timed = [
        record if record.timestamp is not None else NewRecord(record.value, record.key, record.headers, now)
        for record in records
    ]
    return produce_batch(bootstrap_servers, topic, encode_batch(timed, codec=codec), partition=partition)


def read_topic(
    bootstrap_servers: str, topic: str, *, isolation: str = "read_committed", timeout: float = 120
) -> dict[int, list[Record]]:
    """All records of a topic, per partition, by confluent-kafka.

    Header keys must be UTF-8: at others confluent-kafka crashes the process; see `read_topic_raw`.

    Raises:
        KafkaException: The topic or a broker is not there.
        TimeoutError: It did not come to an end in time.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": f"read-{secrets.token_hex(4)}",  # must be there; nothing is committed
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": isolation,
            "check.crcs": True,
            "log_level": 0,
        }
    )
    try:
        found = consumer.list_topics(topic, timeout=30).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        records: dict[int, list[Record]] = {partition: [] for partition in sorted(found.partitions)}
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in records])
        unread = set(records)
        end = time.monotonic() + timeout
        while unread:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{topic}: partitions {sorted(unread)} not read to the end after {timeout:g} s"
                )
            for message in consumer.consume(10_000, timeout=0.2):
                partition = message.partition()
                error = message.error()
                if error is None:
                    records[partition].append(_record(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(partition)
                elif not error.retriable() and error.code() != KafkaError._TRANSPORT:
                    raise KafkaException(error)
        return records
    finally:
        consumer.close()


def _record(message: Message) -> Record:
    kind, timestamp = message.timestamp()
    headers = [(key.encode(), value) for key, value in message.headers() or []]
    return Record(message.offset(), kind, timestamp, message.key(), message.value(), headers)


def read_topic_raw(
    bootstrap_servers: str, topic: str, *, isolation: str = "read_committed", timeout: float = 120
) -> dict[int, list[Record]]:
    """As `read_topic`, but by our own Fetch and decoder, for header keys that are not UTF-8. Slow."""
    records: dict[int, list[Record]] = {}
    everything = _fetch_all(bootstrap_servers, topic, isolation == "read_committed", timeout)
    for partition, start, raw, aborted in everything:
        wanted = (each for each in decode_records(raw, aborted=aborted) if each.offset >= start)
        records.setdefault(partition, []).extend(wanted)
    return records


def fetch_log(bootstrap_servers: str, topic: str, partition: int = 0, *, timeout: float = 120) -> bytes:
    """A partition's record batches up to the last stable offset, byte for byte as the broker has them."""
    everything = _fetch_all(bootstrap_servers, topic, True, timeout)
    return b"".join(raw for number, _start, raw, _aborted in everything if number == partition)


def _fetch_all(
    bootstrap_servers: str, topic: str, read_committed: bool, timeout: float
) -> Iterable[tuple[int, int, bytes, list[tuple[int, int]]]]:
    """Partition, offset asked for, whole batches, aborted transactions; at least one for each partition."""
    until = time.monotonic() + timeout
    for partition in kafka_wire.partitions_of(bootstrap_servers, topic):
        yield partition, 0, b"", []
        address = kafka_wire.leader_address(bootstrap_servers, topic, partition)
        offset = kafka_wire.list_offset(address, topic, partition, kafka_wire.EARLIEST)
        end = kafka_wire.list_offset(address, topic, partition, read_committed=read_committed)
        size = 1 << 20
        while offset < end:
            if time.monotonic() > until:
                raise TimeoutError(f"{topic} [{partition}] not read to the end after {timeout:g} s")
            answer = kafka_wire.fetch(
                address, topic, partition, offset, read_committed=read_committed, max_bytes=size
            )
            if answer.error:
                raise ConnectionError(f"fetch of {topic} [{partition}] at {offset}: error {answer.error}")
            whole = [each for each in decode_batches(answer.records) if each.last_offset >= offset]
            if not whole:
                size = min(size * 2, 1 << 28)  # a batch larger than we asked for; or nothing was there yet
                continue
            for batch in whole:
                if not batch.crc_is_right:
                    raise ValueError(f"{topic} [{partition}]: wrong CRC in the batch at {batch.base_offset}")
            yield partition, offset, b"".join(each.raw for each in whole), answer.aborted
            offset = whole[-1].last_offset + 1


def ends(bootstrap_servers: str, topic: str) -> dict[int, tuple[int, int]]:
    """Log start and last stable offset of each partition."""
    found = {}
    for partition in kafka_wire.partitions_of(bootstrap_servers, topic):
        address = kafka_wire.leader_address(bootstrap_servers, topic, partition)
        start = kafka_wire.list_offset(address, topic, partition, kafka_wire.EARLIEST)
        found[partition] = start, kafka_wire.list_offset(address, topic, partition)
    return found


def topic_config(admin: AdminClient, topic: str) -> dict[str, str]:
    """The topic's settings that are its own, not defaults."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    entries = admin.describe_configs([resource])[resource].result(30)
    own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
    return {name: entry.value for name, entry in entries.items() if entry.source == own}


def alter_config(kafka: KafkaCluster, topic: str, **settings: str | int) -> None:
    """Sets some of the topic's settings (`retention_ms` for `retention.ms`), and waits until they are told."""
    wanted = {name.replace("_", "."): str(value) for name, value in settings.items()}
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        for name, value in wanted.items()
    ]
    admin = kafka.admin()
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
    admin.incremental_alter_configs([resource])[resource].result(30)
    wait_for(lambda: topic_config(admin, topic).items() >= wanted.items(), 30, f"{wanted} of {topic}")
