"""Restore one partition: produce what the plan says, once, in order, and prove it.

Three things make it exact. What is to be written is a pure function of the repository and the plan
(`expected_batches`), so any run can compute it again. Every acknowledgement must name the offset
that was expected (the tripwire): a duplicate, a loss or another writer shows at once. And after any
doubt the target's own log, not memory, says where to go on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kafka_backup.errors import BrokerError, DamagedError, KafkaBackupError, RefusedError, UnreachableError
from kafka_backup.expected_batches import PartitionTarget, expected_batches
from kafka_backup.kafka.cluster import LATEST, Cluster, OffsetAnswer
from kafka_backup.kafka.fetch import PartitionFetcher
from kafka_backup.kafka.produce import PartitionProducer, ProduceResult
from kafka_backup.offset_mapping import OffsetMap
from kafka_backup.progress import Deadline, StopToken
from kafka_backup.records.batch import CRC_START, BatchHeader, crc_is_valid
from kafka_backup.records.convert import TargetBatch
from kafka_backup.records.rewrite import address, seal
from kafka_backup.repository.segments import SegmentProofs
from kafka_backup.repository.store import Store

_IN_FLIGHT = 5
"""Requests in flight that an idempotent producer may have (KIP-98); the broker keeps five batches."""
_SETTLE_SECONDS = 10.0
"""As long as a produce request may wait at the broker: what was on its way has landed by then."""
_MAX_SEQUENCE = 2**31
_UNCERTAIN = frozenset({19, 20, 45})
"""NOT_ENOUGH_REPLICAS(_AFTER_APPEND), OUT_OF_ORDER_SEQUENCE_NUMBER: whether it was written is open."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a partition's restore came to.

    Attributes:
        oldest_batch: the smallest max timestamp of its batches, ms; None without records.
    """

    offset_map: OffsetMap
    records: int = 0
    fast_batches: int = 0
    slow_batches: int = 0
    raw_bytes: int = 0
    oldest_batch: int | None = None

    def note(self, batch: TargetBatch) -> None:
        """Count a batch that the target was seen to hold."""
        self.records += batch.record_count
        self.raw_bytes += batch.size
        if batch.reencoded:
            self.slow_batches += 1
        else:
            self.fast_batches += 1
        for source_offset, count in batch.runs:
            self.offset_map.add(source_offset, count)
        oldest = self.oldest_batch
        self.oldest_batch = batch.max_timestamp if oldest is None else min(oldest, batch.max_timestamp)


def compare_log(
    target: PartitionTarget,
    cluster: Cluster,
    *,
    start: int,
    end: int,
    expected: Iterator[TargetBatch],
    retry_seconds: float,
    stop: StopToken,
) -> Iterator[TargetBatch]:
    """Read target offsets ``[start, end)`` and yield each expected batch that is found there.

    The bytes are compared: CRC over what was read, base offset and contiguity, then everything from
    the attributes on must equal the expected batch under the found producer fields.

    Raises:
        DamagedError: the log holds something else, or ends inside the expected batches.
    """
    position = start
    if end <= start:
        return
    fetcher = PartitionFetcher(
        cluster,
        target.topic.target,
        target.target_topic_id,
        target.partition.partition,
        start=start,
        end=end,
        isolation="read_uncommitted",
        retry_seconds=retry_seconds,
        check_stop=stop.check,
    )
    with fetcher:
        for fetched in fetcher:
            for place, header in fetched.batches:
                if header.base_offset >= end:
                    return
                if header.base_offset != position or not crc_is_valid(fetched.records, place, header):
                    raise DamagedError(
                        f"{target.name} is damaged at offset {position}: the log holds a batch "
                        f"[{header.base_offset}, {header.next_offset}) there"
                        f"{'' if header.base_offset != position else ' whose CRC is wrong'}; delete the "
                        "topic and restore it again"
                    )
                batch = next(expected, None)
                if batch is None or not _equal(batch, fetched.records, place, header):
                    raise DamagedError(
                        f"{target.name} is not what the plan says at offset {position}: "
                        f"{_difference(batch, header)}; somebody else wrote there, or it was changed. "
                        "Delete the topic and restore it again"
                    )
                position = header.next_offset
                yield batch


def _equal(batch: TargetBatch, records: memoryview, place: int, header: BatchHeader) -> bool:
    """Whether a batch of the target's log is the expected one, its producer fields aside."""
    if header.size != batch.size:
        return False
    address(
        batch.data,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
    )
    # The checksum of what was read is proved, so that of what is expected need not be computed.
    # bytearray compares with memcmp; two memoryviews would be compared item by item.
    return bytearray(memoryview(batch.data)[CRC_START:]) == records[place + CRC_START : place + header.size]


def _difference(batch: TargetBatch | None, header: BatchHeader) -> str:
    if batch is None:
        return f"{header.record_count} records too many"
    if batch.record_count != header.record_count:
        return f"a batch of {header.record_count} records instead of {batch.record_count}"
    return (
        f"the batch of source offsets [{batch.first_source_offset}, {batch.last_source_offset + 1}) "
        "has other bytes"
    )


class PartitionRestore:
    """Brings one target partition to the state that the plan says."""

    def __init__(
        self,
        target: PartitionTarget,
        *,
        cluster: Cluster,
        store: Store,
        retry_seconds: float,
        stop: StopToken,
        before_segment: Callable[[], None],
        on_batch: Callable[[str, TargetBatch], None],
        resumed: bool = False,
    ) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            target: what to write where.
            cluster: the target cluster.
            store: the repository's store.
            retry_seconds: how long there may be no progress.
            stop: ends the work with CancelledError.
            before_segment: called before each segment; raises when a newer attempt took over.
            on_batch: told each batch acknowledged (``produce``) and compared (``verify``).
            resumed: another attempt came before, whose last requests may still be on their way.
        """
        self._resumed = resumed
        self._target = target
        self._cluster = cluster
        self._store = store
        self._retry_seconds = retry_seconds
        self._stop = stop
        self._before_segment = before_segment
        self._on_batch = on_batch
        self._initial_end = target.partition.initial_end
        self._proofs: SegmentProofs = {}

    def produce(self) -> int:
        """Write what the target does not hold yet; return its end offset.

        Raises:
            DamagedError: the target holds something else than the plan says.
            RefusedError: the tripwire: an acknowledgement named another offset than expected.
            UnreachableError: no progress for `retry_seconds`.
        """
        expected = self._expected()
        end = self._quiet_end() if self._resumed else self._settled_end()
        acknowledged = self._initial_end
        for batch in self._compare(acknowledged, end, expected):
            acknowledged += batch.record_count
            self._on_batch("produce", batch)
        if acknowledged != end:
            raise DamagedError(f"{self._target.name}: the log ends at {end}, its batches at {acknowledged}")
        return _Pipeline(
            self._target,
            cluster=self._cluster,
            batches=expected,
            position=acknowledged,
            retry_seconds=self._retry_seconds,
            stop=self._stop,
            quiet_end=self._quiet_end,
            compare=self._compare,
            on_acknowledged=lambda batch: self._on_batch("produce", batch),
        ).run()

    def verify(self) -> Outcome:
        """Compare the whole target range with the repository, batch by batch.

        Raises:
            DamagedError: naming the first offset that differs.
        """
        outcome = Outcome(offset_map=OffsetMap(target_start=self._initial_end))
        expected = self._expected(check_crc=False)
        end = self._settled_end()
        for batch in self._compare(self._initial_end, end, expected):
            outcome.note(batch)
            self._on_batch("verify", batch)
        if (missing := next(expected, None)) is not None:
            raise DamagedError(
                f"{self._target.name} ends at offset {end}, but source offsets from "
                f"{missing.first_source_offset} on should follow; run the restore again to continue it"
            )
        if outcome.offset_map.target_end != end:
            raise DamagedError(
                f"{self._target.name} ends at offset {end} instead of {outcome.offset_map.target_end}"
            )
        return outcome

    def _expected(self, *, check_crc: bool = True) -> Iterator[TargetBatch]:
        return expected_batches(
            self._target,
            self._store,
            before_segment=self._before_segment,
            check_crc=check_crc,
            proofs=self._proofs,
        )

    def _compare(self, start: int, end: int, expected: Iterator[TargetBatch]) -> Iterator[TargetBatch]:
        return compare_log(
            self._target,
            self._cluster,
            start=start,
            end=end,
            expected=expected,
            retry_seconds=self._retry_seconds,
            stop=self._stop,
        )

    def _settled_end(self) -> int:
        """The log's end, once everything in it is replicated.

        The high watermark must equal the leader's own log end: a record above it may yet appear to
        readers or vanish, and both would make the comparison lie.
        """
        key = (self._target.topic.target, self._target.partition.partition)
        deadline = Deadline(self._retry_seconds)
        while True:
            self._stop.check()
            answer = self._cluster.list_offsets(
                {key: LATEST}, isolation="read_uncommitted", deadline=max(deadline.left, 1.0)
            )[key]
            if not isinstance(answer, OffsetAnswer):
                raise UnreachableError(
                    f"{self._target.name}: the end could not be asked: {answer}"
                ) from answer
            own = self._cluster.log_ends([key], deadline=max(deadline.left, 1.0))[key]
            if not isinstance(own, OffsetAnswer):
                raise UnreachableError(f"{self._target.name}: the log end could not be asked: {own}") from own
            if own.offset == answer.offset:
                return own.offset
            if deadline.passed:
                raise UnreachableError(
                    f"{self._target.name}: offsets [{answer.offset}, {own.offset}) are not replicated after "
                    f"{self._retry_seconds:g} s; run the restore again when its replicas are in sync"
                )
            self._stop.wait(0.1)

    def _quiet_end(self) -> int:
        """The settled end, twice the same: a request that was still on its way has landed by then."""
        end = self._settled_end()
        while True:
            self._stop.wait(_SETTLE_SECONDS)
            again = self._settled_end()
            if again == end:
                return end
            end = again


class _SourceError(Exception):
    """The repository failed: no recovery of the target helps, and the source cannot go on either."""

    def __init__(self, cause: KafkaBackupError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Pipeline:
    """Sends batches, a few in flight, and holds each acknowledgement against the tripwire."""

    def __init__(
        self,
        target: PartitionTarget,
        *,
        cluster: Cluster,
        batches: Iterator[TargetBatch],
        position: int,
        retry_seconds: float,
        stop: StopToken,
        quiet_end: Callable[[], int],
        compare: Callable[[int, int, Iterator[TargetBatch]], Iterator[TargetBatch]],
        on_acknowledged: Callable[[TargetBatch], None],
    ) -> None:
        self._target = target
        self._cluster = cluster
        self._batches = batches
        self._position = position
        self._retry_seconds = retry_seconds
        self._stop = stop
        self._quiet_end = quiet_end
        self._compare = compare
        self._on_acknowledged = on_acknowledged
        self._unsent: deque[TargetBatch] = deque()
        self._in_flight: deque[TargetBatch] = deque()
        self._producer: PartitionProducer | None = None
        self._producer_id, self._producer_epoch, self._sequence = -1, -1, 0
        self._window = 1
        self._deadline = Deadline(retry_seconds)
        self._attempt = 0

    def run(self) -> int:
        """Send everything; return the target's end offset."""
        try:
            while True:
                self._stop.check()
                try:
                    if not self._step():
                        return self._position
                except _SourceError as failed:
                    raise failed.cause from None
                except BrokerError as error:
                    if not error.retriable and error.code not in _UNCERTAIN:
                        raise
                    self._recover(error)
                except UnreachableError as error:
                    self._recover(error)
        finally:
            self._close()

    def _step(self) -> bool:
        """Fill the window, then wait for one acknowledgement; False when all is done."""
        while len(self._in_flight) < self._window:
            batch = self._unsent.popleft() if self._unsent else self._next_batch()
            if batch is None:
                break
            self._in_flight.append(batch)
            self._send(batch)
        if not self._in_flight:
            return False
        assert self._producer is not None
        self._acknowledge(self._producer.receive())
        return True

    def _next_batch(self) -> TargetBatch | None:
        try:
            return next(self._batches, None)
        except KafkaBackupError as error:
            raise _SourceError(error) from error

    def _send(self, batch: TargetBatch) -> None:
        if self._producer is None:
            self._producer_id, self._producer_epoch = self._cluster.init_producer_id()
            self._sequence = 0
            self._producer = PartitionProducer(
                self._cluster,
                self._target.topic.target,
                self._target.target_topic_id,
                self._target.partition.partition,
            )
        seal(
            batch.data,
            producer_id=self._producer_id,
            producer_epoch=self._producer_epoch,
            base_sequence=self._sequence,
        )
        self._sequence = (self._sequence + batch.record_count) % _MAX_SEQUENCE
        self._producer.send(batch.data)

    def _acknowledge(self, result: ProduceResult) -> None:
        if result.error_code:
            raise result.to_error(self._target.name)
        batch = self._in_flight.popleft()
        if result.base_offset != self._position:
            raise RefusedError(
                f"{self._target.name}: a batch expected at offset {self._position} was written at "
                f"{result.base_offset}; somebody else writes into the topic. It is not what the plan says any "
                f"more: delete {self._target.topic.target} and restore it again"
            )
        self._position += batch.record_count
        self._window = _IN_FLIGHT
        self._deadline = Deadline(self._retry_seconds)
        self._attempt = 0
        self._on_acknowledged(batch)

    def _recover(self, error: KafkaBackupError) -> None:
        """After an unknown outcome: look at the log, take what arrived, send the rest anew.

        Nothing is ever just sent again: the broker forgets producers of old records (it judges by
        their timestamps), so a repeated batch could be appended twice.
        """
        self._close()
        self._window = 1
        waiting = self._in_flight + self._unsent
        self._in_flight = deque()
        self._unsent = deque()
        while True:
            if self._deadline.passed:
                raise UnreachableError(
                    f"{self._target.name}: no batch could be written at offset {self._position} for "
                    f"{self._retry_seconds:g} s: {error}; run the same restore again to continue"
                ) from error
            self._attempt += 1
            self._stop.wait(min(5.0, 0.1 * 2 ** min(self._attempt, 6)) * random.uniform(0.5, 1.0))
            try:
                end = self._quiet_end()
                for batch in self._compare(self._position, end, iter(tuple(waiting))):
                    waiting.popleft()
                    self._position += batch.record_count
                    self._on_acknowledged(batch)
            except (UnreachableError, BrokerError) as again:
                if not again.retriable:
                    raise
                error = again
                continue
            self._unsent = waiting
            return

    def _close(self) -> None:
        if self._producer is not None:
            self._producer.close()
            self._producer = None
