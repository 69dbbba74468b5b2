"""Send record batches to partitions of one topic, and receive what became of them.

Produce v9 is framed by hand, so that a batch goes from the segment's memory to the socket without a copy.
Exactly one batch per request and partition: brokers refuse two (``ProduceRequest.validateRecords``). But a request
may hold one for each of several partitions, and brokers work less on it than on several requests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kafka_backup.errors import KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import Cluster, broker_error
from kafka_backup.kafka.fetch import read_varint, skip_tags, varint
from kafka_backup.kafka.settings import Address
from kafka_backup.records import Buffer

_PRODUCE, _VERSION = 0, 9
_ACKS_ALL = -1
_PREFIX = struct.Struct(">hi")
_INT = struct.Struct(">i")
_NO_TAGS = b"\0"
_NOTHING_TO_SAY = b"\1\0\0"
"""No errors of single records, no message, no tagged fields."""
_RESULT = struct.Struct(">ihqqq")


class ProduceResult(NamedTuple):
    """What the broker says of one batch.

    Attributes:
        error_code: 0, or Kafka's error code.
        base_offset: offset of the batch's first record; -1 after an error.
        error_message: the broker's own words, with the error.
    """

    error_code: int
    base_offset: int
    error_message: str = ""

    def to_error(self, what: str) -> KafkaBackupError:
        """The error that `error_code` stands for; `what` names the partition."""
        said = f" ({self.error_message})" if self.error_message else ""
        return broker_error(self.error_code, f"writing to {what}{said}")


def produce_request(
    topic: str, batches: Sequence[tuple[int, Buffer]], *, timeout_seconds: float
) -> Sequence[Buffer]:
    """Frame a Produce v9 request as buffers to be sent one after the other.

    Args:
        topic: where to.
        batches: (partition, one sealed batch) of partitions that are all led by one broker.
        timeout_seconds: how long the broker may wait for its replicas.
    """
    name = topic.encode()
    buffers: list[Buffer] = [
        b"".join(
            (
                b"\0",  # no transactional id
                _PREFIX.pack(_ACKS_ALL, int(timeout_seconds * 1000)),
                b"\2",
                varint(len(name) + 1),
                name,
                varint(len(batches) + 1),
            )
        )
    ]
    for partition, batch in batches:
        buffers += (_INT.pack(partition) + varint(len(batch) + 1), batch, _NO_TAGS)
    buffers.append(_NO_TAGS + _NO_TAGS)  # of topic and request
    return buffers


def parse_produce_response(frame: memoryview) -> tuple[Mapping[int, ProduceResult], int]:
    """Read a Produce v9 response for one topic, correlation id and header tags included.

    Returns:
        The results by partition, and how many ms the broker will not read our next request; a quota's doing.

    Raises:
        IndexError, struct.error: it is cut off or no such response.
    """
    results = {}
    position = skip_tags(frame, 4)
    _topics, position = read_varint(frame, position)
    size, position = read_varint(frame, position)
    partitions, position = read_varint(frame, position + size - 1)
    for _ in range(partitions - 1):
        number, error_code, base_offset, _append_time, _log_start = _RESULT.unpack_from(frame, position)
        position += _RESULT.size
        if frame[position : position + len(_NOTHING_TO_SAY)] == _NOTHING_TO_SAY:
            results[number] = ProduceResult(error_code, base_offset)
            position += len(_NOTHING_TO_SAY)
            continue
        count, position = read_varint(frame, position)
        details = []
        for _ in range(count - 1):
            text, position = _read_text(frame, position + _INT.size)
            position = skip_tags(frame, position)
            details.append(text)
        message, position = _read_text(frame, position)
        position = skip_tags(frame, position)
        results[number] = ProduceResult(error_code, base_offset, "; ".join(filter(None, [message, *details])))
    position = skip_tags(frame, position)
    (throttle_ms,) = _INT.unpack_from(frame, position)
    return results, throttle_ms


def _read_text(frame: memoryview, position: int) -> tuple[str, int]:
    """Read a compact nullable string; returns it (null as ``""``) and the position after it."""
    size, position = read_varint(frame, position)
    end = position + max(0, size - 1)
    return bytes(frame[position:end]).decode(errors="replace"), end


class TopicProducer:
    """A connection to one broker that sends batches to partitions which it leads.

    Results are received in the order of the requests.
    """

    def __init__(self, cluster: Cluster, topic: str, address: Address) -> None:
        """Connect.

        Raises:
            UnreachableError: the broker does not answer.
        """
        self._pool = cluster.connections
        self._timeout_seconds = cluster.settings.request_timeout
        self._connection = self._pool.take(address)
        self._topic = topic

    def send(self, batches: Sequence[tuple[int, Buffer]]) -> None:
        """Send one sealed batch to each of some partitions, in one request.

        The memory must stay as it is until their results are received.
        """
        request = produce_request(self._topic, batches, timeout_seconds=self._timeout_seconds)
        self._connection.send(_PRODUCE, _VERSION, *request)

    def receive(self, *, check_stop: Callable[[], None] | None = None) -> Mapping[int, ProduceResult]:
        """Wait for the results, by partition, of the oldest request that has none yet.

        Raises:
            UnreachableError: none came; whether the batches were written is unknown.
        """
        frame = self._connection.receive(check_stop=check_stop)
        try:
            results, throttle_ms = parse_produce_response(frame)
        except (IndexError, struct.error) as error:
            self._connection.close()
            raise UnreachableError(
                f"{self._topic}: broker {self._connection.address} sent an answer that cannot be read: {error}"
            ) from error
        self._connection.throttle(throttle_ms)
        return results

    def close(self) -> None:
        """Let go of the connection; the outcome of batches without a result is unknown."""
        self._pool.give_back(self._connection)
