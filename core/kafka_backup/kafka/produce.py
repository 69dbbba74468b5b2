"""Send record batches to one partition, and receive what became of them.

Produce v9 is framed by hand, so that a batch goes from the segment's memory to the socket without a copy.
Exactly one batch per request: brokers refuse two (``ProduceRequest.validateRecords``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from kafka_backup.errors import KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import Cluster, broker_error
from kafka_backup.kafka.fetch import read_varint, skip_tags, varint

_PRODUCE, _VERSION = 0, 9
_ACKS_ALL = -1
_TIMEOUT_MS = 10_000
_PREFIX = struct.Struct(">hi")
_INT = struct.Struct(">i")
_RESULT = struct.Struct(">ihqqq")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceResult:
    """What the broker says of one batch.

    Attributes:
        error_code: 0, or Kafka's error code.
        base_offset: offset of the batch's first record; -1 after an error.
        error_message: the broker's own words, with the error.
        throttle_ms: how long the broker will not read our next request; a quota's doing.
    """

    error_code: int
    base_offset: int
    error_message: str = ""
    throttle_ms: int = 0

    def to_error(self, what: str) -> KafkaBackupError:
        """The error that `error_code` stands for; `what` names the partition."""
        said = f" ({self.error_message})" if self.error_message else ""
        return broker_error(self.error_code, f"writing to {what}{said}")


def produce_request_prefix(topic: str, partition: int, batch_size: int) -> bytes:
    """Frame a Produce v9 request up to its record batch, which `PRODUCE_SUFFIX` follows."""
    name = topic.encode()
    return b"".join(
        (
            b"\0",  # no transactional id
            _PREFIX.pack(_ACKS_ALL, _TIMEOUT_MS),
            b"\2",
            varint(len(name) + 1),
            name,
            b"\2",
            _INT.pack(partition),
            varint(batch_size + 1),
        )
    )


PRODUCE_SUFFIX = b"\0\0\0"
"""The empty tagged fields of partition, topic and request."""


def parse_produce_response(frame: memoryview) -> ProduceResult:
    """Read a Produce v9 response for one partition, correlation id and header tags included.

    Raises:
        IndexError, struct.error: it is cut off or no such response.
    """
    position = skip_tags(frame, 4)
    _topics, position = read_varint(frame, position)
    size, position = read_varint(frame, position)
    _partitions, position = read_varint(frame, position + size - 1)
    _number, error_code, base_offset, _append_time, _log_start = _RESULT.unpack_from(frame, position)
    count, position = read_varint(frame, position + _RESULT.size)
    details = []
    for _ in range(count - 1):
        text, position = _read_text(frame, position + _INT.size)
        position = skip_tags(frame, position)
        details.append(text)
    message, position = _read_text(frame, position)
    position = skip_tags(frame, skip_tags(frame, position))
    (throttle_ms,) = _INT.unpack_from(frame, position)
    return ProduceResult(
        error_code=error_code,
        base_offset=base_offset,
        error_message="; ".join(filter(None, [message, *details])),
        throttle_ms=throttle_ms,
    )


def _read_text(frame: memoryview, position: int) -> tuple[str, int]:
    """Read a compact nullable string; returns it (null as ``""``) and the position after it."""
    size, position = read_varint(frame, position)
    end = position + max(0, size - 1)
    return bytes(frame[position:end]).decode(errors="replace"), end


class PartitionProducer:
    """A connection to a partition's leader that sends batches and receives results in the same order."""

    def __init__(self, cluster: Cluster, topic: str, topic_id: str, partition: int) -> None:
        """Connect to the leader of the moment.

        Raises:
            UnreachableError, BrokerError: there is none, or it does not answer.
        """
        address, _epoch = cluster.leader(topic, topic_id, partition)
        self._pool = cluster.connections
        self._connection = self._pool.take(address)
        self._topic = topic
        self._partition = partition

    def send(self, batch: bytearray | memoryview) -> None:
        """Send one sealed batch; the memory must stay as it is until its result is received."""
        prefix = produce_request_prefix(self._topic, self._partition, len(batch))
        self._connection.send(_PRODUCE, _VERSION, prefix, batch, PRODUCE_SUFFIX)

    def receive(self, *, check_stop: Callable[[], None] | None = None) -> ProduceResult:
        """Wait for the result of the oldest batch that has none yet.

        Raises:
            UnreachableError: none came; whether the batch was written is unknown.
        """
        frame = self._connection.receive(check_stop=check_stop)
        try:
            result = parse_produce_response(frame)
        except (IndexError, struct.error) as error:
            self._connection.close()
            raise UnreachableError(
                f"{self._topic} [{self._partition}]: broker {self._connection.address} sent an answer that "
                f"cannot be read: {error}"
            ) from error
        self._connection.throttle(result.throttle_ms)
        return result

    def close(self) -> None:
        """Let go of the connection; the outcome of batches without a result is unknown."""
        self._pool.give_back(self._connection)
