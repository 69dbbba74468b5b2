"""Write the batches of partitions, once, in order, several partitions in one request.

Every acknowledgement must name the offset that was expected (the tripwire): a duplicate, a loss or another
writer shows at once. Nothing is ever just sent again after an outcome that is unknown: the broker
forgets producers of old records (it judges by their timestamps), so a repeated batch could be appended
twice. The target's own log says what arrived, and the rest goes out anew under a new producer id.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from kafka_backup.errors import (
    BrokerError,
    KafkaBackupError,
    RefusedError,
    UnreachableError,
    WriterConflictError,
)
from kafka_backup.expected_batches import DamagedSourceError, PartitionTarget
from kafka_backup.kafka.produce import ProduceResult, TopicProducer
from kafka_backup.kafka.settings import Address
from kafka_backup.log_comparison import LogComparison
from kafka_backup.progress import Deadline, StopToken
from kafka_backup.records.convert import TargetBatch
from kafka_backup.records.rewrite import seal
from kafka_backup.restore_context import RestoreContext

_IN_FLIGHT = 5
"""Requests in flight that an idempotent producer may have (KIP-98); the broker keeps five batches."""
_REQUEST_BYTES = 1 << 20
"""A request that holds as much gets no further batch."""
_LANE_PARTITIONS = 4
"""Measured with batches of 8 KB: four to a request take half of a broker's time, eight no less."""
_SMALL_BATCH = 64 << 10
"""Bytes of a batch, on average, from which a request has enough with one: threads of their own are better."""
_MAX_SEQUENCE = 2**31
_FENCED = frozenset({47, 90})
"""INVALID_PRODUCER_EPOCH, PRODUCER_FENCED: a newer run has written into the partition."""
_UNCERTAIN = frozenset({19, 20, 45})
"""NOT_ENOUGH_REPLICAS(_AFTER_APPEND), OUT_OF_ORDER_SEQUENCE_NUMBER: whether it was written is open."""


def lanes(
    targets: Sequence[PartitionTarget], leaders: Mapping[tuple[str, int], int]
) -> Sequence[Sequence[PartitionTarget]]:
    """Say which targets are written together: those with small batches, of one topic and led by one broker.

    Args:
        targets: all of them.
        leaders: the broker of each (topic, partition), as far as known.
    """
    alone, together = [], defaultdict(list)
    for target in targets:
        part = target.partition
        if part.raw_bytes >= _SMALL_BATCH * part.batches:
            alone.append([target])
        else:
            topic = target.topic.target
            together[topic, leaders.get((topic, part.partition))].append(target)
    return alone + [
        found[start : start + _LANE_PARTITIONS]
        for found in together.values()
        for start in range(0, len(found), _LANE_PARTITIONS)
    ]


class _SourceError(Exception):
    """The repository failed: no recovery of the target helps, and the source cannot go on either."""

    def __init__(self, cause: KafkaBackupError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ProducePipeline:
    """One partition on its way: what is sent and not acknowledged yet, and what comes next.

    Attributes:
        damage: the source cannot be read any further; what came before it was sent.
        cut_back: the target's log ends below what was acknowledged; it must be compared from its start.
    """

    def __init__(
        self,
        target: PartitionTarget,
        context: RestoreContext,
        *,
        batches: Iterator[TargetBatch],
        position: int,
        stop: StopToken,
        quiet_end: Callable[[], int],
        compare: Callable[[int, Iterator[TargetBatch]], LogComparison],
        on_acknowledged: Callable[[int, int], None],
    ) -> None:
        """Prepare; nothing is read or sent yet.

        Args:
            target: where to.
            context: shared by all partitions.
            batches: what to write.
            position: the target's end, where the first of them belongs.
            stop: ends waiting with CancelledError.
            quiet_end: finds the target's end once nothing is on its way any more.
            compare: holds the target's log, from an offset on, against batches.
            on_acknowledged: told records and bytes that the target is known to hold.
        """
        self.target = target
        self.partition = target.partition.partition
        self.damage: DamagedSourceError | None = None
        self.cut_back = False
        self._batches = batches
        self._position = position
        self._context = context
        self._stop = stop
        self._quiet_end = quiet_end
        self._compare = compare
        self._on_acknowledged = on_acknowledged
        self._unsent: deque[TargetBatch] = deque()
        self._in_flight: deque[TargetBatch] = deque()
        self._exhausted = False
        self._producer_id, self._producer_epoch, self._sequence = -1, -1, 0
        self._trouble: Deadline | None = None
        self._attempt = 0

    def has_more(self) -> bool:
        """Whether anything is in doubt or left to be sent; reads the next batch to know."""
        if self.cut_back:
            return False
        if not self._in_flight and not self._unsent and (batch := self._next_batch()) is not None:
            self._unsent.append(batch)
        return bool(self._in_flight or self._unsent)

    def begin(self, producer_id: int, producer_epoch: int) -> None:
        """Go on under a new producer id."""
        self._producer_id, self._producer_epoch, self._sequence = producer_id, producer_epoch, 0

    def take(self) -> TargetBatch | None:
        """Return the next batch, sealed and from now on in flight; None if there is none left."""
        batch = self._unsent.popleft() if self._unsent else self._next_batch()
        if batch is None:
            return None
        seal(
            batch.data,
            producer_id=self._producer_id,
            producer_epoch=self._producer_epoch,
            base_sequence=self._sequence,
        )
        self._sequence = (self._sequence + batch.record_count) % _MAX_SEQUENCE
        self._in_flight.append(batch)
        return batch

    def _next_batch(self) -> TargetBatch | None:
        if self._exhausted:
            return None
        try:
            batch = next(self._batches, None)
        except DamagedSourceError as error:
            self.damage = error
            batch = None
        except KafkaBackupError as error:
            raise _SourceError(error) from error
        self._exhausted = batch is None
        return batch

    def acknowledge(self, result: ProduceResult) -> None:
        """Take the result of the batch that is in flight for longest.

        Raises:
            KafkaBackupError: the broker's; whether the batch is in the log is unknown, unless it is final.
            RefusedError: the tripwire: it was written at another offset than expected.
            WriterConflictError: a newer run of this restore has written into the partition.
        """
        if result.error_code in _FENCED:
            self._context.before_segment()  # it says who took over
            raise WriterConflictError(
                f"{self.target.name}: another run of this restore writes into it "
                f"({result.to_error(self.target.name)}); this one stops"
            )
        if result.error_code:
            raise result.to_error(self.target.name)
        batch = self._in_flight.popleft()
        if result.base_offset != self._position:
            raise RefusedError(
                f"{self.target.name}: a batch expected at offset {self._position} was written at "
                f"{result.base_offset}; somebody else writes into the topic. It is not what the plan says any "
                f"more: delete {self.target.topic.target} and restore it again"
            )
        self._position += batch.record_count
        self._trouble = None
        self._attempt = 0
        self._on_acknowledged(batch.record_count, batch.size)

    def recover(self, error: KafkaBackupError) -> None:
        """After an unknown outcome: look at the log, count what arrived, and keep the rest to be sent anew.

        Raises:
            UnreachableError: there was no progress for too long; names `error`.
            DamagedError: the log holds something else.
        """
        waiting = tuple(self._in_flight + self._unsent)
        self._in_flight = deque()
        self._unsent = deque()
        if self._trouble is None:
            self._trouble = Deadline(self._context.retry_seconds)
        while True:
            if self._trouble.passed:
                raise UnreachableError(
                    f"{self.target.name}: no batch could be written at offset {self._position} for "
                    f"{self._trouble.seconds:g} s: {error}; run the same restore again to continue"
                ) from error
            self._attempt += 1
            self._stop.wait(min(5.0, 0.1 * 2 ** min(self._attempt, 6)) * random.uniform(0.5, 1.0))
            try:
                end = self._quiet_end()
                if end < self._position:
                    self.cut_back = True
                    return
                self._unsent = self._not_arrived(end, waiting)
            except (UnreachableError, BrokerError) as again:
                if not again.retriable:
                    raise
                error = again
                continue
            return

    def _not_arrived(self, end: int, waiting: Sequence[TargetBatch]) -> deque[TargetBatch]:
        """Of the batches in doubt those that the log does not hold; the others count as acknowledged."""
        comparison = self._compare(self._position, iter(waiting))
        arrived = list(comparison.run(end))
        self._position = comparison.position
        for found in arrived:
            self._on_acknowledged(found.record_count, found.size)
        return deque(comparison.rest())


_Doubts = dict[ProducePipeline, KafkaBackupError]


class ProduceLane:
    """Empties the pipelines of some partitions of one topic, together where one broker leads them."""

    def __init__(
        self, pipelines: Sequence[ProducePipeline], context: RestoreContext, *, stop: StopToken
    ) -> None:
        assert context.producer_ids is not None
        self._pipelines = pipelines
        self._context = context
        self._producer_ids = context.producer_ids
        self._cluster = context.cluster
        self._stop = stop
        self._target = pipelines[0].target

    def run(self) -> None:
        """Send everything that can be sent; a pipeline says itself if it could not be emptied.

        Raises:
            RefusedError, WriterConflictError, DamagedError: as `ProducePipeline` says.
            UnreachableError: a partition made no progress for too long.
        """
        try:
            while working := [pipeline for pipeline in self._pipelines if pipeline.has_more()]:
                self._stop.check()
                if doubts := self._send(working):
                    self._recover(doubts)
        except _SourceError as failed:
            raise failed.cause from None

    def _recover(self, doubts: _Doubts) -> None:
        """All at once, because each waits until the brokers are quiet."""
        with ThreadPoolExecutor(len(doubts), thread_name_prefix="recover") as pool:
            futures = [pool.submit(pipeline.recover, error) for pipeline, error in doubts.items()]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop.stop()
                raise

    def _send(self, working: Sequence[ProducePipeline]) -> _Doubts:
        """Send until all is acknowledged, or in doubt because of an error."""
        topic = self._target.topic.target
        leaders: dict[Address, list[ProducePipeline]] = {}
        try:
            for pipeline in working:
                leader, _ = self._cluster.leader(topic, self._target.target_topic_id, pipeline.partition)
                leaders.setdefault(leader, []).append(pipeline)
            producer_id, producer_epoch = self._producer_ids.next()
        except (UnreachableError, BrokerError) as error:
            return dict.fromkeys(working, _doubt(error))
        doubts: _Doubts = {}
        for leader, led in leaders.items():
            for pipeline in led:
                pipeline.begin(producer_id, producer_epoch)
            try:
                producer = TopicProducer(self._cluster, topic, leader)
            except UnreachableError as error:
                doubts |= dict.fromkeys(led, error)
                continue
            try:
                doubts |= self._send_to(producer, led)
            except UnreachableError as error:
                doubts |= dict.fromkeys([each for each in led if each.has_more()], error)
            finally:
                producer.close()
        return doubts

    def _send_to(self, producer: TopicProducer, led: Sequence[ProducePipeline]) -> _Doubts:
        """Keep some requests in flight: one only, until each partition has its first acknowledgement."""
        turn = deque(led)
        unproven = set(led)
        requests: deque[Sequence[ProducePipeline]] = deque()
        doubts: _Doubts = {}
        while True:
            while not doubts and len(requests) < (1 if unproven else _IN_FLIGHT):
                batches = self._next_request(turn, unproven)
                if not batches:
                    break
                requests.append(tuple(batches))
                self._pace(batches.values())
                # The last thing before the bytes go: whoever was frozen until now must not send.
                self._context.before_send()
                producer.send([(each.partition, batch.data) for each, batch in batches.items()])
            if not requests:
                return doubts
            self._stop.check()
            results = producer.receive(check_stop=self._stop.check)
            for pipeline in requests.popleft():
                if pipeline in doubts:
                    continue
                if (result := results.get(pipeline.partition)) is None:
                    raise UnreachableError(f"{pipeline.target.name}: the broker's answer does not name it")
                try:
                    pipeline.acknowledge(result)
                except BrokerError as error:
                    doubts[pipeline] = _doubt(error)
                unproven.discard(pipeline)

    def _pace(self, batches: Collection[TargetBatch]) -> None:
        """Wait until the limits allow these batches."""
        context = self._context
        if context.byte_pace is not None:
            context.byte_pace.take(sum(batch.size for batch in batches))
        if context.record_pace is not None:
            context.record_pace.take(sum(batch.record_count for batch in batches))

    def _next_request(
        self, turn: deque[ProducePipeline], unproven: set[ProducePipeline]
    ) -> Mapping[ProducePipeline, TargetBatch]:
        """Take a batch from each pipeline in turn, as long as they fit; forget those that are empty."""
        batches: dict[ProducePipeline, TargetBatch] = {}
        size = 0
        for _ in range(len(turn)):
            if size >= _REQUEST_BYTES:
                break
            pipeline = turn.popleft()
            if (batch := pipeline.take()) is None:
                unproven.discard(pipeline)
                continue
            turn.append(pipeline)
            batches[pipeline] = batch
            size += batch.size
        return batches


def _doubt(error: UnreachableError | BrokerError) -> KafkaBackupError:
    """The error, if it leaves open what happened; a final one is raised."""
    if error.retriable or (isinstance(error, BrokerError) and error.code in _UNCERTAIN):
        return error
    raise error
