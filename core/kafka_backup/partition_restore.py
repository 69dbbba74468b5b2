"""Restore one partition: produce what the plan says, once, in order, and prove it.

Three things make it exact. What is to be written is a pure function of the repository and the plan
(`expected_batches`), so any run can compute it again. Every acknowledgement must name the offset
that was expected (`produce_pipeline`). And after any doubt the target's own log, not memory, says
where to go on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import DamagedError, UnreachableError
from kafka_backup.expected_batches import DamagedSourceError, PartitionTarget, expected_batches
from kafka_backup.kafka.cluster import LATEST, OffsetAnswer
from kafka_backup.log_comparison import Found, LogComparison
from kafka_backup.offset_mapping import OffsetMap
from kafka_backup.produce_pipeline import ProduceLane, ProducePipeline
from kafka_backup.progress import Deadline, StopToken
from kafka_backup.records.convert import TargetBatch
from kafka_backup.repository.buffers import Buffers
from kafka_backup.repository.segments import SegmentProofs
from kafka_backup.restore_context import LogEnds, RestoreContext


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
    """Brings one target partition to the state that the plan says; see `produce`.

    Attributes:
        target: the partition.
    """

    def __init__(self, target: PartitionTarget, context: RestoreContext, *, stop: StopToken) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            target: what to write where.
            context: shared by all partitions.
            stop: ends the work with CancelledError.
        """
        self.target = target
        self._context = context
        self._cluster = context.cluster
        self._stop = stop
        self._earlier_ends = context.earlier_ends
        self._resumed = context.earlier_ends is not None
        self._initial_end = target.partition.initial_end
        self._proofs: SegmentProofs = {}
        self._buffers = Buffers()
        self._writes = False

    def pipeline(self) -> ProducePipeline:
        """Compare what the target holds already; return what writes the rest.

        Raises:
            DamagedError: the target holds something else than the plan says.
            DamagedSourceError: the repository's part of what it holds is damaged.
            UnreachableError: no progress for `retry_seconds`.
        """
        # Of what the target holds already nothing may be left out any more.
        self._writes = False
        comparison = self._compare(self._initial_end, self._expected())
        end = self._quiet_end(self._earlier_ends) if self._resumed else self._settled_end()
        for found in comparison.run(end):
            self._context.on_records("produce", found.record_count, found.size)
        # If it comes to a second time, an election lost acknowledged batches: what is left says where to go on.
        self._resumed, self._earlier_ends = True, None
        self._writes = True
        return ProducePipeline(
            self.target,
            self._context,
            batches=comparison.rest(),
            position=comparison.position,
            stop=self._stop,
            quiet_end=self._quiet_end,
            compare=self._compare,
            on_acknowledged=lambda records, size: self._context.on_records("produce", records, size),
        )

    def verify(self) -> Outcome:
        """Compare the whole target range with the repository, batch by batch.

        Raises:
            DamagedError: naming the first offset that differs.
        """
        outcome = Outcome(offset_map=OffsetMap(target_start=self._initial_end))
        self._writes = False
        digest = hashlib.sha256()
        comparison = self._compare(self._initial_end, self._expected(check_crc=False))
        end = self._settled_end()
        for found in comparison.run(end):
            outcome.note(found)
            digest.update(found.content)
            self._context.on_records("verify", found.record_count, found.size)
        if (missing := next(comparison.rest(), None)) is not None:
            raise DamagedError(
                f"{self.target.name} ends at offset {end}, but source offsets from "
                f"{missing.first_source_offset} on should follow; run the restore again to continue it"
            )
        outcome.digest = digest.hexdigest()
        return outcome

    def _expected(self, *, check_crc: bool = True) -> Iterator[TargetBatch]:
        return expected_batches(
            self.target,
            self._context.store,
            before_segment=self._context.before_segment,
            check_crc=check_crc,
            proofs=self._proofs,
            buffers=self._buffers,
            skips=self._context.skips,
            may_skip=self._may_skip,
        )

    def _may_skip(self) -> bool:
        return self._writes and self._context.skips is not None and self._context.skips.allowed

    def _compare(self, start: int, expected: Iterator[TargetBatch]) -> LogComparison:
        return LogComparison(
            self.target,
            self._cluster,
            expected,
            start=start,
            retry_seconds=self._context.retry_seconds,
            stop=self._stop,
            fetch_bytes=self._context.fetch_bytes,
            pace=self._context.read_pace,
        )

    def _settled_end(self) -> int:
        """The log's end, once everything in it is replicated.

        The high watermark must equal the leader's own log end: a record above it may yet appear to
        readers or vanish, and both would make the comparison lie.
        """
        key = (self.target.topic.target, self.target.partition.partition)
        deadline = Deadline(self._context.retry_seconds)
        while True:
            self._stop.check()
            answer = self._cluster.list_offsets(
                {key: LATEST}, isolation="read_uncommitted", deadline=max(deadline.left, 1.0)
            )[key]
            if not isinstance(answer, OffsetAnswer):
                raise UnreachableError(
                    f"{self.target.name}: the end could not be asked: {answer}"
                ) from answer
            own = self._cluster.log_ends([key], deadline=max(deadline.left, 1.0))[key]
            if not isinstance(own, OffsetAnswer):
                raise UnreachableError(f"{self.target.name}: the log end could not be asked: {own}") from own
            if own.offset == answer.offset:
                return own.offset
            if deadline.passed:
                raise UnreachableError(
                    f"{self.target.name}: offsets [{answer.offset}, {own.offset}) are not replicated after "
                    f"{self._context.retry_seconds:g} s; run the restore again when its replicas are in sync"
                )
            self._stop.wait(0.1)

    def _quiet_end(self, earlier: LogEnds | None = None) -> int:
        """The settled end, twice the same: a request that was still on its way has landed by then.

        In between lies the time for which a produce request may wait at the broker.

        Args:
            earlier: a first reading, if there was one.
        """
        key = (self.target.topic.target, self.target.partition.partition)
        if earlier is not None and key in earlier.ends:
            end, read_at = earlier.ends[key], earlier.read_at
        else:
            end, read_at = self._settled_end(), time.monotonic()
        while True:
            self._stop.wait(max(0.0, read_at + self._cluster.settings.request_timeout - time.monotonic()))
            again = self._settled_end()
            if again == end:
                return end
            end, read_at = again, time.monotonic()


def produce(
    restores: Sequence[PartitionRestore], context: RestoreContext, *, stop: StopToken
) -> Mapping[PartitionRestore, DamagedSourceError]:
    """Write what the targets, partitions of one topic, do not hold yet.

    Returns:
        Those whose part of the repository is damaged; what comes before the damage was written.

    Raises:
        DamagedError: a target holds something else than the plan says.
        RefusedError: the tripwire: an acknowledgement named another offset than expected.
        WriterConflictError: a newer run of this restore writes.
        UnreachableError: no progress for `retry_seconds`.
    """
    damage: dict[PartitionRestore, DamagedSourceError] = {}
    waiting = list(restores)
    while waiting:
        pipelines: dict[PartitionRestore, ProducePipeline] = {}
        for restore in waiting:
            try:
                pipelines[restore] = restore.pipeline()
            except DamagedSourceError as error:
                damage[restore] = error
        if pipelines:
            ProduceLane(list(pipelines.values()), context, stop=stop).run()
        for restore, pipeline in pipelines.items():
            if pipeline.damage is not None:
                damage[restore] = pipeline.damage
        waiting = [restore for restore, pipeline in pipelines.items() if pipeline.cut_back]
    return damage
