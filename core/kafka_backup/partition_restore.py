"""Restore one partition: produce what the plan says, once, in order, and prove it.

Three things make it exact. What is to be written is a pure function of the repository and the plan
(`expected_batches`), so any run can compute it again. Every acknowledgement must name the offset
that was expected (the tripwire): a duplicate, a loss or another writer shows at once. And after any
doubt the target's own log, not memory, says where to go on.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kafka_backup.errors import BrokerError, DamagedError, KafkaBackupError, RefusedError, UnreachableError
from kafka_backup.expected_batches import PartitionTarget, expected_batches
from kafka_backup.kafka.cluster import LATEST, Cluster, OffsetAnswer
from kafka_backup.kafka.produce import PartitionProducer, ProduceResult
from kafka_backup.log_comparison import Found, LogComparison
from kafka_backup.offset_mapping import OffsetMap
from kafka_backup.progress import Deadline, StopToken
from kafka_backup.records.convert import TargetBatch
from kafka_backup.records.rewrite import seal
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
    """What a partition's restore came to, from what its target was seen to hold.

    Attributes:
        oldest: the smallest max timestamp of its batches, ms; None without records.
        newest: the largest.
        digest: SHA-256 over all batches in the log, whoever produced them.
        produce_seconds: how long writing took in this attempt; `verify_seconds`: reading back.
    """

    offset_map: OffsetMap
    records: int = 0
    fast_batches: int = 0
    slow_batches: int = 0
    raw_bytes: int = 0
    oldest: int | None = None
    newest: int | None = None
    digest: str = ""
    produce_seconds: float = 0.0
    verify_seconds: float = 0.0

    def note(self, found: Found) -> None:
        """Count records that the target was seen to hold."""
        self.records += found.record_count
        self.raw_bytes += found.size
        if found.content:
            self.slow_batches += found.reencoded
            self.fast_batches += not found.reencoded
        for source_offset, count in found.runs:
            self.offset_map.add(source_offset, count)
        self.oldest = min(
            found.max_timestamp, self.oldest if self.oldest is not None else found.max_timestamp
        )
        self.newest = max(
            found.max_timestamp, self.newest if self.newest is not None else found.max_timestamp
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
        on_records: Callable[[str, int, int], None],
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
            on_records: told the records and bytes acknowledged (``produce``) and compared (``verify``).
            resumed: another attempt came before, whose last requests may still be on their way.
        """
        self._resumed = resumed
        self._target = target
        self._cluster = cluster
        self._store = store
        self._retry_seconds = retry_seconds
        self._stop = stop
        self._before_segment = before_segment
        self._on_records = on_records
        self._initial_end = target.partition.initial_end
        self._proofs: SegmentProofs = {}

    def run(self) -> Outcome:
        """Write what the target does not hold yet, and compare all of it with the repository.

        Raises:
            As `produce` and `verify`.
        """
        began = time.monotonic()
        self.produce()
        produced = time.monotonic()
        outcome = self.verify()
        outcome.produce_seconds = produced - began
        outcome.verify_seconds = time.monotonic() - produced
        return outcome

    def produce(self) -> None:
        """Write what the target does not hold yet.

        Raises:
            DamagedSourceError: the repository's part is damaged; what comes before it was written.
            DamagedError: the target holds something else than the plan says.
            RefusedError: the tripwire: an acknowledgement named another offset than expected.
            UnreachableError: no progress for `retry_seconds`.
        """
        while True:
            comparison = self._compare(self._initial_end, self._expected())
            for found in comparison.run(self._quiet_end() if self._resumed else self._settled_end()):
                self._on_records("produce", found.record_count, found.size)
            try:
                self._pipeline(comparison).run()
            except _LogCutBack:
                # An unclean leader election lost acknowledged batches: what is left says where to go on.
                self._resumed = True
                continue
            return

    def _pipeline(self, comparison: LogComparison) -> _Pipeline:
        return _Pipeline(
            self._target,
            cluster=self._cluster,
            batches=comparison.rest(),
            position=comparison.position,
            retry_seconds=self._retry_seconds,
            stop=self._stop,
            quiet_end=self._quiet_end,
            compare=self._compare,
            on_acknowledged=lambda records, size: self._on_records("produce", records, size),
        )

    def verify(self) -> Outcome:
        """Compare the whole target range with the repository, batch by batch.

        Raises:
            DamagedError: naming the first offset that differs.
        """
        outcome = Outcome(offset_map=OffsetMap(target_start=self._initial_end))
        digest = hashlib.sha256()
        comparison = self._compare(self._initial_end, self._expected(check_crc=False))
        end = self._settled_end()
        for found in comparison.run(end):
            outcome.note(found)
            digest.update(found.content)
            self._on_records("verify", found.record_count, found.size)
        if (missing := next(comparison.rest(), None)) is not None:
            raise DamagedError(
                f"{self._target.name} ends at offset {end}, but source offsets from "
                f"{missing.first_source_offset} on should follow; run the restore again to continue it"
            )
        outcome.digest = digest.hexdigest()
        return outcome

    def _expected(self, *, check_crc: bool = True) -> Iterator[TargetBatch]:
        return expected_batches(
            self._target,
            self._store,
            before_segment=self._before_segment,
            check_crc=check_crc,
            proofs=self._proofs,
        )

    def _compare(self, start: int, expected: Iterator[TargetBatch]) -> LogComparison:
        return LogComparison(
            self._target,
            self._cluster,
            expected,
            start=start,
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


class _LogCutBack(Exception):
    """The target's log ends below what was acknowledged."""


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
        compare: Callable[[int, Iterator[TargetBatch]], LogComparison],
        on_acknowledged: Callable[[int, int], None],
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

    def run(self) -> None:
        """Send everything."""
        try:
            while True:
                self._stop.check()
                try:
                    if not self._step():
                        return
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
        self._on_acknowledged(batch.record_count, batch.size)

    def _recover(self, error: KafkaBackupError) -> None:
        """After an unknown outcome: look at the log, take what arrived, send the rest anew.

        Nothing is ever just sent again: the broker forgets producers of old records (it judges by
        their timestamps), so a repeated batch could be appended twice.
        """
        self._close()
        self._window = 1
        waiting = tuple(self._in_flight + self._unsent)
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
                self._unsent = self._not_arrived(self._quiet_end(), waiting)
            except (UnreachableError, BrokerError) as again:
                if not again.retriable:
                    raise
                error = again
                continue
            return

    def _not_arrived(self, end: int, waiting: Sequence[TargetBatch]) -> deque[TargetBatch]:
        """Of the batches in doubt those that the log does not hold; the others count as acknowledged."""
        if end < self._position:
            raise _LogCutBack
        comparison = self._compare(self._position, iter(waiting))
        arrived = list(comparison.run(end))
        self._position = comparison.position
        for found in arrived:
            self._on_acknowledged(found.record_count, found.size)
        return deque(comparison.rest())

    def _close(self) -> None:
        if self._producer is not None:
            self._producer.close()
            self._producer = None
