"""The topics that are copied: what is in them, and how they are made."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.broker import Broker
from bench.measure import run
from bench.payloads import ValuesFiles, value_size

PARTITIONS = 8
_CLEANED_SECONDS = 180
_SETTLED_SECONDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicKind:
    """A kind of topic.

    Attributes:
        name: short, for file names and the command line.
        title: for people.
        values: which values it holds (`payloads`).
        records: how many are written.
        codec: how the producers compress.
        batch_bytes: uncompressed size at which a producer closes a batch; 0: one record in each.
        compacted: records have keys, and the broker's cleaner has run over the topic.
        compression: how the engine stores segments of it.
    """

    name: str
    title: str
    values: str
    records: int
    codec: str = "none"
    batch_bytes: int = 1_000_000
    compacted: bool = False
    compression: str = "auto"

    def librdkafka_config(self) -> Mapping[str, str]:
        """Settings of the producer loop: large queues, and batches that are full."""
        batches = {"batch.size": str(self.batch_bytes)} if self.batch_bytes else {"batch.num.messages": "1"}
        return {
            "compression.type": self.codec,
            "linger.ms": "20" if self.batch_bytes else "0",
            "queue.buffering.max.messages": "1000000",
            "queue.buffering.max.kbytes": "262144",
            **batches,
        }

    def java_config(self) -> Mapping[str, str]:
        """The same of Kafka's own producer."""
        return {
            "acks": "all",
            "compression.type": self.codec,
            "linger.ms": "20" if self.batch_bytes else "0",
            "batch.size": str(self.batch_bytes or 1),
            "buffer.memory": str(256 << 20),
        }

    def topic_config(self) -> Mapping[str, str]:
        """The topic's own settings."""
        if not self.compacted:
            return {}
        size = self.records * value_size(self.values) // PARTITIONS
        return {
            "cleanup.policy": "compact",
            # Several in each partition, because the newest one is never cleaned; Kafka's smallest is 1 MiB.
            "segment.bytes": str(max(1 << 20, size // 16)),
            "min.cleanable.dirty.ratio": "0.01",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic that has been made; `logical_bytes` are its values'."""

    name: str
    kind: TopicKind
    records: int
    stored_bytes: int

    @property
    def logical_bytes(self) -> int:
        """What a consumer gets to see of it."""
        return self.records * value_size(self.kind.values)


def produce_command(
    broker: Broker, topic: str, kind: TopicKind, values: ValuesFiles, *, records: int
) -> Sequence[str]:
    """The command line of the producer loop."""
    command = [sys.executable, "-m", "bench.clients", "produce"]
    command += ["--bootstrap-servers", broker.bootstrap_servers, "--topic", topic]
    command += ["--records", str(records), "--partitions", str(PARTITIONS)]
    command += ["--values", str(values.plain), "--value-size", str(values.size)]
    if kind.compacted:
        command += ["--keys", str(records // PARTITIONS // 2)]
    for name, value in kind.librdkafka_config().items():
        command += ["--config", f"{name}={value}"]
    return command


def make(broker: Broker, kind: TopicKind, values: ValuesFiles) -> Topic:
    """Create and fill a topic of a kind."""
    broker.create_topic(kind.name, PARTITIONS, **kind.topic_config())
    records = kind.records
    run(produce_command(broker, kind.name, kind, values, records=records))
    if kind.compacted:
        _wait_until_cleaned(broker, kind.name)
        records = _count(broker, kind.name)
    return Topic(name=kind.name, kind=kind, records=records, stored_bytes=broker.stored_bytes(kind.name))


def _wait_until_cleaned(broker: Broker, topic: str) -> None:
    """Wait until the cleaner has nothing left to do, then forbid it to begin again."""
    full = size = broker.stored_bytes(topic)
    since = began = time.monotonic()
    while size == full or time.monotonic() - since < _SETTLED_SECONDS:
        if time.monotonic() - began > _CLEANED_SECONDS:
            raise TimeoutError(f"the cleaner did not finish {topic}")
        time.sleep(0.2)
        now = broker.stored_bytes(topic)
        if now != size:
            size, since = now, time.monotonic()
    broker.alter_topic(topic, {"min.compaction.lag.ms": str(2**62), "min.cleanable.dirty.ratio": "1"})


def _count(broker: Broker, topic: str) -> int:
    """A topic's records, counted by an independent client."""
    where = ["--bootstrap-servers", broker.bootstrap_servers, "--topic", topic]
    _, printed = run([sys.executable, "-m", "bench.clients", "count", *where])
    return int(printed)
