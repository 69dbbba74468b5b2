"""Three topics such as people have, with all that is hard to keep when a topic is copied."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.support.kafka_cluster import KafkaCluster
from tests.support.records import NewRecord, decode_batches
from tests.support.topics import fetch_log, new_topic, produce
from tests.support.waiting import wait_for

ORDERS, EVENTS, CUSTOMERS = "shop.orders", "app_events", "customers"
NAMES = (ORDERS, EVENTS, CUSTOMERS)

# The broker cleans as soon as there is something to clean.
BROKER_CONFIG = {"log.cleaner.backoff.ms": 200}

HOUR = 3_600_000
_CITIES = ["Amsterdam", "Zürich", "São Paulo", "Kraków", "Århus", "東京", "Αθήνα", "Reykjavík"]
_PRODUCTS = ["espresso machine", "grinder", "kettle", "scale", "filter papers", "cup", "tamper", "milk jug"]


@dataclass(frozen=True)
class Size:
    """How many records."""

    orders: int = 200_000
    events: int = 50_000
    customers: int = 20_000
    updates: int = 4


def write_all(kafka: KafkaCluster, size: Size, say: Callable[[str], None]) -> None:
    """Creates the three topics and fills them; always with the same records, but for the time of day."""
    now = int(time.time() * 1000)
    say(f"writing {ORDERS}: {size.orders:,} orders, JSON, compressed with zstd by the producer")
    _write_orders(kafka, size.orders, now)
    say(f"writing {EVENTS}: {size.events:,} binary events, with nulls, headers and times out of order")
    _write_events(kafka, size.events, now)
    say(f"writing {CUSTOMERS}: {size.customers:,} keys, {size.updates} times, until the broker has compacted")
    _write_customers(kafka, size.customers, size.updates, now)


def _write_orders(kafka: KafkaCluster, count: int, now: int) -> None:
    new_topic(kafka, 3, name=ORDERS, config={"retention.ms": 30 * 24 * HOUR})
    dice = random.Random(1)

    def orders(partition: int) -> Iterator[NewRecord]:
        for number in range(partition, count, 3):
            order = {
                "order_id": f"O-{number:08d}",
                "customer": f"C-{dice.randrange(20_000):06d}",
                "placed_at": now - 24 * HOUR + number,
                "city": dice.choice(_CITIES),
                "lines": [
                    {
                        "product": dice.choice(_PRODUCTS),
                        "quantity": dice.randint(1, 5),
                        "price": dice.randint(100, 99_999) / 100,
                    }
                    for _ in range(dice.randint(1, 4))
                ],
                "paid": dice.random() < 0.9,
            }
            value = json.dumps(order, ensure_ascii=False).encode()
            headers = [(b"content-type", b"application/json"), (b"trace", dice.randbytes(8))]
            yield NewRecord(value, str(order["customer"]).encode(), headers, now - 24 * HOUR + number)

    for partition in range(3):
        produce(kafka.bootstrap_servers, ORDERS, orders(partition), partition=partition, codec="zstd")


def _write_events(kafka: KafkaCluster, count: int, now: int) -> None:
    new_topic(kafka, 2, name=EVENTS)
    dice = random.Random(2)
    headers: list[list[tuple[bytes, bytes | None]]] = [
        [],
        [(b"source", b"sensor")],
        [(b"tag", b"a"), (b"tag", b"b"), (b"tag", b"a")],
        [(b"nothing", None), (b"empty", b"")],
        [(b"", b"a header without a name"), ("größe".encode(), b"\x00\xff")],
    ]

    def event(number: int) -> NewRecord:
        key = dice.choice([None, None, b"", dice.randbytes(8)])
        value = dice.choice([None, b"", dice.randbytes(20), dice.randbytes(dice.randint(1, 600))])
        # Up to an hour early or late, to the millisecond.
        timestamp = now - 12 * HOUR + number * 7 + dice.randint(-HOUR, HOUR)
        return NewRecord(value, key, dice.choice(headers), timestamp)

    # Every codec that Kafka has, one after the other, as a topic gets them in the course of the years.
    fifth = count // 10
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        for partition in range(2):
            events = (event(number) for number in range(fifth))
            produce(kafka.bootstrap_servers, EVENTS, events, partition=partition, codec=codec)


def _write_customers(kafka: KafkaCluster, keys: int, updates: int, now: int) -> None:
    # A segment holds at most 10 minutes of record time and the rounds are an hour apart, so each round begins
    # a new segment; and all but the last one are the cleaner's.
    new_topic(
        kafka,
        2,
        name=CUSTOMERS,
        config={
            "cleanup.policy": "compact",
            "segment.ms": HOUR // 6,
            "min.cleanable.dirty.ratio": "0.001",
            "min.compaction.lag.ms": 0,
            "delete.retention.ms": 7 * 24 * HOUR,
        },
    )
    dice = random.Random(3)
    kept: dict[int, set[bytes]] = {0: set(), 1: set()}
    last: dict[int, int] = {0: 0, 1: 0}
    for update in range(updates):
        is_last = update == updates - 1
        for partition in range(2):
            # Each round changes most customers, but not all: gaps of all sizes. Some are deleted.
            chosen = [
                number for number in range(partition, keys, 2) if dice.random() < (0.1 if is_last else 0.7)
            ]
            records = []
            for at, number in enumerate(chosen):
                key = f"C-{number:06d}".encode()
                customer = {
                    "id": number,
                    "version": update,
                    "city": dice.choice(_CITIES),
                    "points": dice.randrange(999),
                }
                value = None if dice.random() < 0.02 else json.dumps(customer, ensure_ascii=False).encode()
                records.append(NewRecord(value, key, [], now - (updates - update) * HOUR + at))
            produce(kafka.bootstrap_servers, CUSTOMERS, records, partition=partition, codec="lz4")
            if is_last:
                last[partition] = len(records)
            else:
                kept[partition] |= {record.key for record in records if record.key}

    def compacted() -> bool:
        # Exactly what must be left: the last record of each key, and the segment that is being written to.
        # Then the cleaner has nothing more to do, and the topic stands still while it is backed up and
        # compared.
        for partition in range(2):
            batches = decode_batches(fetch_log(kafka.bootstrap_servers, CUSTOMERS, partition))
            if sum(batch.count for batch in batches) != len(kept[partition]) + last[partition]:
                return False
        return True

    wait_for(compacted, 60, f"the broker to compact {CUSTOMERS}", interval=0.3)
