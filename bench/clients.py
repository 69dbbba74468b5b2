"""The bare client loops and the floor that the engine is held against; each runs as a process of its own.

`python -m bench.clients SIDE ...` moves a topic's records and prints how many bytes that were.
"""

import argparse
import itertools
import random
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tests.support import kafka_wire

_TAKE = 10_000
_PUT = 1_000
_FETCH_BYTES = 8 << 20


def consume(bootstrap_servers: str, topic: str, records: int, config: dict[str, str]) -> int:
    """Consume a topic from its start and drop the messages; returns the bytes of their values."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "bench",  # must be there; nothing is committed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            **config,
        }
    )
    partitions = kafka_wire.partitions_of(bootstrap_servers, topic)
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    size = seen = 0
    while seen < records:
        messages = consumer.consume(min(_TAKE, records - seen), timeout=30)
        if not messages:
            raise TimeoutError(f"{seen} of {records} records came")
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
            size += len(message.value())
        seen += len(messages)
    consumer.close()
    return size


def count(bootstrap_servers: str, topic: str) -> int:
    """Count a topic's records up to its end."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "bench",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    unread = set(kafka_wire.partitions_of(bootstrap_servers, topic))
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in unread])
    records = 0
    while unread:
        for message in consumer.consume(_TAKE, timeout=1):
            error = message.error()
            if error is None:
                records += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
            else:
                raise KafkaException(error)
    consumer.close()
    return records


def produce(
    bootstrap_servers: str,
    topic: str,
    records: int,
    values: Sequence[bytes],
    *,
    partitions: int,
    keys: int,
    config: dict[str, str],
) -> int:
    """Produce records, `_PUT` at a time to each partition in turn; returns the bytes of their values.

    Args:
        bootstrap_servers: the broker.
        topic: where to.
        records: how many.
        values: used again and again.
        partitions: of the topic.
        keys: how many different keys to draw from; 0: no keys.
        config: librdkafka's settings.
    """
    problems: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: object) -> None:
        if error is not None:
            problems.append(error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "acks": "all",
            "delivery.report.only.error": True,
            "on_delivery": delivered,
            **config,
        }
    )
    groups = itertools.cycle(
        [[{"value": value} for value in values[i : i + _PUT]] for i in range(0, len(values), _PUT)]
    )
    draw = random.Random(topic).randrange
    sent = size = 0
    for partition in itertools.cycle(range(partitions)):
        if sent >= records:
            break
        group = next(groups)[: records - sent]
        if keys:
            group = [{**message, "key": b"key-%07d" % draw(keys)} for message in group]
        left = group
        while (queued := producer.produce_batch(topic, left, partition=partition)) < len(left):
            # What the full queue did not take is the end of the list.
            left = [{name: m[name] for name in m if name != "_error"} for m in left[queued:]]
            producer.poll(0.01)
        sent += len(group)
        size += sum(len(message["value"]) for message in group)
        producer.poll(0)
    if (unsent := producer.flush(120)) or problems:
        raise RuntimeError(f"{unsent} records unsent, {len(problems)} failed: {problems[:1]}")
    return size


def fetch(bootstrap_servers: str, topic: str) -> int:
    """The floor: receive a topic on one plain socket per partition and look at nothing; returns the bytes."""
    sizes: list[int] = []
    partitions = kafka_wire.partitions_of(bootstrap_servers, topic)

    def one(partition: int) -> None:
        sizes.append(_discard(bootstrap_servers, topic, partition))

    threads = [threading.Thread(target=one, args=(number,)) for number in partitions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(sizes) != len(partitions):
        raise RuntimeError(f"{len(partitions) - len(sizes)} partitions could not be fetched")
    return sum(sizes)


def _discard(bootstrap_servers: str, topic: str, partition: int) -> int:
    """Fetch v11, one request after the other; of each response only its batches' lengths are read."""
    address = kafka_wire.leader_address(bootstrap_servers, topic, partition)
    end = kafka_wire.list_offset(address, topic, partition)
    name = struct.pack(f">h{len(topic)}s", len(topic), topic.encode())
    header = struct.pack(">hhih", 1, 11, 1, -1)
    limits = struct.pack(">iiiibii", -1, 500, 1, _FETCH_BYTES, 0, 0, -1)
    # Throttle time, error, session; one topic, its name, one partition, its number, error, three offsets.
    error_at = 4 + 10 + 4 + len(name) + 4 + 4
    aborted_at = error_at + 2 + 24
    buffer = bytearray(_FETCH_BYTES + (2 << 20))
    view = memoryview(buffer)
    offset = received = 0
    with socket.create_connection(address, 30) as connection:
        connection.settimeout(None)
        while offset < end:
            one = struct.pack(">iiqqi", partition, -1, offset, -1, _FETCH_BYTES)
            body = (
                header
                + limits
                + struct.pack(">i", 1)
                + name
                + struct.pack(">i", 1)
                + one
                + b"\0" * 4
                + b"\0\0"
            )
            connection.sendall(struct.pack(">i", len(body)) + body)
            connection.recv_into(view, 4, socket.MSG_WAITALL)
            (size,) = struct.unpack_from(">i", buffer)
            if not 0 < size <= len(buffer) or connection.recv_into(view, size, socket.MSG_WAITALL) != size:
                raise ConnectionError(
                    f"{topic} [{partition}]: the broker sent no whole answer of {size} bytes"
                )
            (error,) = struct.unpack_from(">h", buffer, error_at)
            (aborted,) = struct.unpack_from(">i", buffer, aborted_at)
            if error or aborted > 0:
                raise ConnectionError(f"{topic} [{partition}]: error {error}, {aborted} aborted transactions")
            received += size
            position = aborted_at + 4 + 4 + 4
            while size - position >= 61:
                base_offset, length = struct.unpack_from(">qi", buffer, position)
                if position + 12 + length > size:
                    break
                (delta,) = struct.unpack_from(">i", buffer, position + 23)
                offset = base_offset + delta + 1
                position += 12 + length
    return received


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def main() -> None:
    """Run one side."""
    parser = argparse.ArgumentParser(prog="bench.clients")
    parser.add_argument("side", choices=("consume", "count", "produce", "fetch"))
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--records", type=int, default=0)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--keys", type=int, default=0)
    parser.add_argument("--values", type=Path, help="one value after the other, each of --value-size bytes")
    parser.add_argument("--value-size", type=int, default=0)
    parser.add_argument("--config", type=_pair, action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    where = options.bootstrap_servers, options.topic
    if options.side == "consume":
        print(consume(*where, options.records, dict(options.config)))
    elif options.side == "count":
        print(count(*where))
    elif options.side == "fetch":
        print(fetch(*where))
    else:
        data, size = options.values.read_bytes(), options.value_size
        values = [data[i : i + size] for i in range(0, len(data), size)]
        config = dict(options.config)
        shape = {"partitions": options.partitions, "keys": options.keys}
        print(produce(*where, options.records, values, **shape, config=config))


if __name__ == "__main__":
    main()
