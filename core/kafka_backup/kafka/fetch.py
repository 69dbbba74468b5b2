"""Fetch one partition's record batches without ever copying them.

The messages of Fetch v13 are framed by hand: records are views into the receive buffer. The next fetch
is on its way before the last one is handed out, so the network works while the caller hashes and stores.
"""

from __future__ import annotations

import base64
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kafka_backup.errors import BrokerError, DamagedError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import Cluster, broker_error
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.settings import Address
from kafka_backup.records.batch import BatchHeader, walk

FETCH_BYTES = 8 << 20
_FETCH, _VERSION = 1, 13
_MAX_WAIT_MS = 500
_ISOLATION = {"read_uncommitted": 0, "read_committed": 1}
_REQUEST = struct.Struct(">iiiibii")
_PARTITION = struct.Struct(">iiqiqi")
_RESPONSE = struct.Struct(">ihi")
_INT = struct.Struct(">i")
_FETCHED = struct.Struct(">ihqqq")
_ABORTED = struct.Struct(">qq")
_OFFSET_OUT_OF_RANGE = 1
_NEARBY_SECONDS = 5.0
"""How long a nearby replica may have nothing before the leader is asked again."""
_TOPIC_IS_ANOTHER = frozenset({100, 103})
"""UNKNOWN_TOPIC_ID and INCONSISTENT_TOPIC_ID."""


class OffsetOutOfRangeError(BrokerError):
    """The offset is below the log's start or above its end; the caller finds out which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedPartition:
    """One fetch response for one partition.

    Attributes:
        records: the bytes as received, writable; valid until the response after the next is asked for.
        batches: position in `records` and header of each whole batch, in order. The first may begin below
            the offset asked for.
        aborted: (producer id, first offset) of the aborted transactions in it.
        broker: who answered.
    """

    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    aborted: Sequence[tuple[int, int]]
    records: memoryview
    batches: Sequence[tuple[int, BatchHeader]]
    broker: Address


def fetch_request(
    *,
    topic_id: str,
    partition: int,
    offset: int,
    leader_epoch: int,
    isolation: str,
    max_bytes: int,
    rack: str,
) -> bytes:
    """Frame a Fetch v13 request for one partition (FetchRequest.json)."""
    rack_bytes = rack.encode()
    return b"".join(
        (
            _REQUEST.pack(-1, _MAX_WAIT_MS, 1, max_bytes, _ISOLATION[isolation], 0, -1),
            b"\2",
            base64.urlsafe_b64decode(topic_id + "=="),
            b"\2",
            _PARTITION.pack(partition, leader_epoch, offset, -1, -1, max_bytes),
            b"\0\0\1",
            varint(len(rack_bytes) + 1) + rack_bytes,
            b"\0",
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchAnswer:
    """A parsed Fetch v13 response for one partition; `records` may be empty.

    Attributes:
        throttle_ms: how long the broker will not read our next request; a quota's doing.
        preferred_replica: a broker nearer to our rack that we are told to ask instead (KIP-392), or -1.
    """

    throttle_ms: int
    error_code: int
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    aborted: Sequence[tuple[int, int]]
    preferred_replica: int
    records: memoryview


def parse_fetch_response(frame: memoryview) -> FetchAnswer:
    """Read a Fetch v13 response to `fetch_request`, correlation id and header tags included.

    Where the broker left the partition out, as it does while it throttles us, the answer has no records and
    offsets of -1. An error of the whole response is given as the partition's.

    Raises:
        IndexError, struct.error: it is cut off or no such response.
    """
    position = skip_tags(frame, 4)
    throttle_ms, error_code, _session = _RESPONSE.unpack_from(frame, position)
    position += _RESPONSE.size
    topics, position = read_varint(frame, position)
    partitions, position = read_varint(frame, position + 16) if topics > 1 else (0, position)
    if partitions <= 1:
        return FetchAnswer(
            throttle_ms=throttle_ms,
            error_code=error_code,
            high_watermark=-1,
            last_stable_offset=-1,
            log_start_offset=-1,
            aborted=(),
            preferred_replica=-1,
            records=frame[:0],
        )
    _number, partition_error, high, stable, log_start = _FETCHED.unpack_from(frame, position)
    count, position = read_varint(frame, position + _FETCHED.size)
    aborted = []
    for _ in range(count - 1):
        aborted.append(_ABORTED.unpack_from(frame, position))
        position = skip_tags(frame, position + _ABORTED.size)
    (preferred_replica,) = _INT.unpack_from(frame, position)
    size, position = read_varint(frame, position + _INT.size)
    end = position + max(0, size - 1)
    if end > len(frame):
        raise IndexError(f"records up to byte {end} of {len(frame)}")
    return FetchAnswer(
        throttle_ms=throttle_ms,
        error_code=error_code or partition_error,
        high_watermark=high,
        last_stable_offset=stable,
        log_start_offset=log_start,
        aborted=aborted,
        preferred_replica=preferred_replica,
        records=frame[position:end],
    )


def varint(value: int) -> bytes:
    """Encode an unsigned varint (protocol guide, UNSIGNED_VARINT)."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def read_varint(frame: memoryview, position: int) -> tuple[int, int]:
    """Decode an unsigned varint of at most 32 bits; returns it and the position after it.

    Raises:
        IndexError: it is cut off, or longer than any.
    """
    value = shift = 0
    while shift < 35:
        byte = frame[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise IndexError(f"the number that ends at byte {position} has more than 32 bits")


def skip_tags(frame: memoryview, position: int) -> int:
    """Return the position after a section of tagged fields (KIP-482)."""
    count, position = read_varint(frame, position)
    for _ in range(count):
        _tag, position = read_varint(frame, position)
        size, position = read_varint(frame, position)
        position += size
    return position


class PartitionFetcher:
    """Iterates over the fetch responses of one partition, from `start` until `end` is reached.

    An empty or throttled response is not the end. Leader moves, broken connections and retriable errors are
    retried from the next offset until there was no progress for `retry_seconds`.
    """

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        topic_id: str,
        partition: int,
        *,
        start: int,
        end: int,
        isolation: str,
        retry_seconds: float,
        check_stop: Callable[[], None],
        max_bytes: int = FETCH_BYTES,
        check_leader: Callable[[int], None] | None = None,
        check_replica: Callable[[Sequence[BatchHeader]], bool] | None = None,
        pace: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            cluster: where the partition is.
            topic: its name, for finding the leader and for messages.
            topic_id: only this incarnation is read.
            partition: its number.
            start: first offset wanted.
            end: stop when everything below it was yielded; the last response may reach beyond.
            isolation: ``read_committed`` or ``read_uncommitted``.
            retry_seconds: how long there may be no progress.
            check_stop: called between responses; raises to stop.
            max_bytes: of one response; a larger batch comes whole all the same (KIP-74).
            check_leader: called with the epoch of each leader before it is read from, and for each
                connection anew; raises to stop. All that is fetched through the connection is that
                leader's log: another one would refuse the epoch.
            check_replica: called with the batches of each response that a replica near to us sent; says
                whether the leader has them too. Else they are dropped and the leader is read.
            pace: called with the bytes of each response before the next one is asked for; may wait.
        """
        self._cluster = cluster
        self._topic = topic
        self._topic_id = topic_id
        self._partition = partition
        self._offset = start
        self._end = end
        self._isolation = isolation
        self._retry_seconds = retry_seconds
        self._check_stop = check_stop
        self._max_bytes = max_bytes
        self._check_leader = check_leader
        self._check_replica = check_replica
        self._pace = pace
        self._connection: Connection | None = None
        self._leader_epoch = -1
        self._failed = False
        self._buffers = [bytearray(), bytearray()]
        self._throttle_seconds = 0.0
        self._nearby: int | None = None
        self._leader_only = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection; where no response is outstanding, others can use it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._cluster.connections.give_back(connection)

    def _drop(self) -> None:
        """Close the connection: what is wrong with it, others must not meet again."""
        if self._connection is not None:
            self._cluster.connections.discard(self._connection)
            self._connection = None

    def __iter__(self) -> Iterator[FetchedPartition]:
        """Yield the responses that hold at least one whole batch.

        Raises:
            OffsetOutOfRangeError: the log does not hold the next offset.
            BrokerError: another error that no retry mends, such as a deleted topic.
            UnreachableError: no progress for `retry_seconds`; names partition, offset and broker.
            DamagedError: a batch header is impossible, or of an old format.
        """
        last_progress = time.monotonic()
        attempt = 0
        while self._offset < self._end:
            self._check_stop()
            try:
                fetched = self._receive()
            except KafkaBackupError as error:
                self._drop()
                self._failed = True
                if not error.retriable:
                    raise
                if self._nearby is not None:
                    self._to_leader_only()
                    continue
                pause = min(2.0, 0.05 * 2 ** min(attempt, 6)) * random.uniform(0.5, 1.0)
                if time.monotonic() + pause - last_progress > self._retry_seconds:
                    raise UnreachableError(
                        f"{self._name} could not be read at offset {self._offset} for "
                        f"{self._retry_seconds:g} s: {error}"
                    ) from error
                attempt += 1
                self._sleep(pause)
                continue
            attempt = 0
            last_progress += self._throttle_seconds  # a quota is no failure
            silent = time.monotonic() - last_progress
            if fetched is not None:
                last_progress = time.monotonic()
                yield fetched
            elif self._nearby is not None and silent > _NEARBY_SECONDS:
                self._to_leader_only()
            elif silent > self._retry_seconds:
                raise UnreachableError(
                    f"{self._name}: broker {self._address} sent nothing at offset {self._offset} for "
                    f"{self._retry_seconds:g} s, although offsets up to {self._end} were promised"
                )

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check_stop()
            time.sleep(min(left, 0.2))

    def _to_leader_only(self) -> None:
        """Give up on the nearby replica for good: it may lag, and the leader never does."""
        self.close()
        self._nearby = None
        self._leader_only = True

    @property
    def _name(self) -> str:
        return f"{self._topic} [{self._partition}]"

    @property
    def _address(self) -> str:
        return str(self._connection.address) if self._connection is not None else "?"

    def _receive(self) -> FetchedPartition | None:
        """Take the response on its way and ask for the next one; None if it held no whole batch."""
        if self._connection is None:
            self._connection = self._connect()
            self._throttle_seconds = 0.0
            self._ask()
        connection = self._connection
        frame = connection.receive(self._buffers[0], check_stop=self._check_stop)
        # A buffer that one huge batch needed is not kept.
        if isinstance(frame.obj, bytearray) and len(frame.obj) <= 2 * self._max_bytes:
            self._buffers[0] = frame.obj
        self._buffers.reverse()
        try:
            answer = parse_fetch_response(frame)
        except (IndexError, struct.error) as error:
            raise UnreachableError(f"{self._where}: the answer cannot be read: {error}") from error
        self._throttle_seconds = answer.throttle_ms / 1000
        connection.throttle(answer.throttle_ms)
        if answer.error_code:
            raise self._error(answer.error_code)
        if answer.preferred_replica >= 0 and not answer.records:
            self.close()
            self._nearby = answer.preferred_replica
            return None
        try:
            batches = list(walk(answer.records))
        except DamagedError as error:
            raise DamagedError(f"{self._where}: {error}") from error
        progress = bool(batches) and batches[-1][1].next_offset > self._offset
        if progress and not self._may_be_read([header for _, header in batches]):
            self._to_leader_only()
            return None
        if progress:
            self._offset = batches[-1][1].next_offset
        if self._pace is not None:
            self._pace(len(frame))
        if self._offset < self._end:
            try:
                self._ask()
            except UnreachableError:
                # What came before the connection broke counts; the next call connects again.
                self._drop()
        if not progress:
            return None
        return FetchedPartition(
            high_watermark=answer.high_watermark,
            last_stable_offset=answer.last_stable_offset,
            log_start_offset=answer.log_start_offset,
            aborted=answer.aborted,
            records=answer.records,
            batches=batches,
            broker=connection.address,
        )

    def _may_be_read(self, batches: Sequence[BatchHeader]) -> bool:
        if self._nearby is None or self._check_replica is None:
            return True
        return self._check_replica(batches)

    def _connect(self) -> Connection:
        """Connect to the replica that the leader named, else to the leader."""
        address, self._leader_epoch = self._cluster.leader(
            self._topic, self._topic_id, self._partition, fresh=self._failed
        )
        if self._check_leader is not None:
            self._check_leader(self._leader_epoch)
        if self._nearby is not None:
            nearby = self._cluster.metadata([self._topic]).brokers.get(self._nearby)
            if nearby is None:
                self._to_leader_only()
            else:
                address = nearby
        return self._cluster.connections.take(address)

    def _ask(self) -> None:
        assert self._connection is not None
        request = fetch_request(
            topic_id=self._topic_id,
            partition=self._partition,
            offset=self._offset,
            leader_epoch=self._leader_epoch,
            isolation=self._isolation,
            max_bytes=self._max_bytes,
            rack="" if self._leader_only else self._cluster.settings.client_rack,
        )
        self._connection.send(_FETCH, _VERSION, request)

    @property
    def _where(self) -> str:
        return f"{self._name} at offset {self._offset}, broker {self._address}"

    def _error(self, code: int) -> KafkaBackupError:
        if code == _OFFSET_OUT_OF_RANGE:
            # Only the leader knows; a replica may be behind.
            return OffsetOutOfRangeError(
                f"{self._where}: OFFSET_OUT_OF_RANGE",
                code=code,
                name="OFFSET_OUT_OF_RANGE",
                retriable=self._nearby is not None,
            )
        if code in _TOPIC_IS_ANOTHER:
            # Right after its creation a broker may not know the topic yet; the leader lookup tells.
            return BrokerError(
                f"{self._where}: UNKNOWN_TOPIC_ID", code=code, name="UNKNOWN_TOPIC_ID", retriable=True
            )
        return broker_error(code, self._where)
