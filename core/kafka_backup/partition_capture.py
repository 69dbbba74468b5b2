"""Capture one partition: fetch it, account for every offset, store what must be kept.

The account is the point. Whatever lies between the position and the end is a kept record, a control
or aborted record that was read, an offset that the cleaner removed (asked twice), or lost; nothing
is ever computed as "the rest".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import crc32c

from kafka_backup.capture_plan import Known
from kafka_backup.errors import CancelledError, DamagedError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import EARLIEST, Cluster, OffsetAnswer
from kafka_backup.kafka.epochs import common_ends
from kafka_backup.kafka.fetch import (
    FETCH_BYTES,
    FetchedPartition,
    OffsetOutOfRangeError,
    PartitionFetcher,
)
from kafka_backup.kafka.last_commits import OFFSETS_TOPIC
from kafka_backup.pace import Pace
from kafka_backup.progress import StopToken
from kafka_backup.records.aborted import AbortedFilter
from kafka_backup.records.batch import CONTROL_BIT, CRC_START, LOG_OVERHEAD, BatchHeader
from kafka_backup.records.codec import decode_batch
from kafka_backup.repository.documents import LeaderEpoch, Ledger, LostSpan, SegmentEntry
from kafka_backup.repository.segments import Compression, SegmentWriter, choose_compression


class LogCutBackError(DamagedError):
    """The leader's log is not the one that was captured so far: an unclean election cut it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionWork:
    """What to capture of one partition: offsets ``[known.end, end)``, as the ends were asked.

    Attributes:
        compacts: the topic's cleanup policy holds or held ``compact``, so gaps are explained.
        known: what is captured already, and which leader was seen to have all of it.
        first_index: the counter ``k`` of the first segment; each is used once in a capture.
    """

    topic: str
    topic_id: str
    partition: int
    end: int
    compacts: bool
    known: Known
    first_index: int = 0

    @property
    def name(self) -> str:
        """The partition, for messages."""
        return f"{self.topic} [{self.partition}]"


@dataclass(slots=True, kw_only=True)
class CapturedRange:
    """A finished piece of a partition: ``[start, end)`` with its segments stored and durable.

    `epochs` are those that no earlier piece has; `leader_epoch` is that of the leader whose log it is.
    """

    start: int
    end: int
    leader_epoch: int
    ledger: Ledger = field(default_factory=Ledger)
    lost: list[LostSpan] = field(default_factory=list)
    epochs: list[LeaderEpoch] = field(default_factory=list)
    segments: list[SegmentEntry] = field(default_factory=list)

    def extend(self, other: CapturedRange) -> None:
        """Append the piece that follows this one."""
        if other.start != self.end:
            raise ValueError(f"a piece that begins at {other.start} cannot follow offset {self.end}")
        self.end = other.end
        self.leader_epoch = other.leader_epoch
        self.ledger += other.ledger
        self.lost += other.lost
        self.epochs += other.epochs
        self.segments += other.segments


@dataclass(slots=True)
class _Tally:
    """Counters of the piece at hand; a Ledger is only made when the piece ends."""

    records: int = 0
    control: int = 0
    aborted: int = 0
    compacted: int = 0
    lost: list[LostSpan] = field(default_factory=list)
    epochs: list[LeaderEpoch] = field(default_factory=list)

    def ledger(self) -> Ledger:
        return Ledger(
            records=self.records,
            control=self.control,
            aborted=self.aborted,
            compacted=self.compacted,
            lost=sum(span.end - span.start for span in self.lost),
        )


WriterFactory = Callable[[PartitionWork, int, int, Compression], SegmentWriter]
"""Opens the writer of a partition's next segment: (work, counter, first offset, compression)."""


class PartitionCapture:
    """Runs one PartitionWork and yields it in pieces, each ending with a stored segment."""

    def __init__(
        self,
        work: PartitionWork,
        *,
        cluster: Cluster,
        open_writer: WriterFactory,
        compression: str,
        segment_bytes: int,
        retry_seconds: float,
        stop: StopToken,
        on_response: Callable[[int, int, int], None],
        pace: Pace | None = None,
        fetch_bytes: int = FETCH_BYTES,
    ) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            work: what to capture.
            cluster: where to fetch it.
            open_writer: opens a segment.
            compression: the configured compression (auto, zstd, none).
            segment_bytes: raw bytes at which a segment is closed.
            retry_seconds: how long fetching may make no progress.
            stop: ends the capture with CancelledError.
            on_response: told (position, records kept, their raw bytes) after each response.
            pace: of what is fetched, in bytes.
            fetch_bytes: asked for at a time.
        """
        self._work = work
        self._cluster = cluster
        self._open_writer = open_writer
        self._compression = compression
        self._segment_bytes = segment_bytes
        self._retry_seconds = retry_seconds
        self._stop = stop
        self._on_response = on_response
        self._pace = pace
        self._fetch_bytes = min(fetch_bytes, segment_bytes)
        self._position = work.known.end
        self._piece_start = work.known.end
        self._epochs = list(work.known.epochs)
        self._leader_epoch = work.known.leader_epoch
        self._tally = _Tally()
        self._writer: SegmentWriter | None = None
        self.next_index = work.first_index

    def pieces(self) -> Iterator[CapturedRange]:
        """Capture, yielding each piece as soon as it is durable; the pieces are contiguous.

        Where brokers fail, all that they sent before is yielded first.

        Raises:
            DamagedError: a batch whose CRC is wrong, or a log that contradicts itself.
            LogCutBackError: the log was cut back below what was captured.
            UnreachableError: the retries are used up.
        """
        try:
            with ExitStack() as stack:
                responses = self._responses(stack)
                while self._position < self._work.end:
                    try:
                        fetched = next(responses)
                    except OffsetOutOfRangeError:
                        # The lost span must begin a segment: readers cut a segment's start, never its middle.
                        yield from self._close_piece()
                        self._skip_what_retention_took()
                        responses = self._responses(stack)
                        continue
                    except CancelledError:
                        raise
                    except KafkaBackupError:
                        yield from self._close_piece()
                        raise
                    self._take(fetched)
                    if self._writer is not None and self._writer.raw_size >= self._segment_bytes:
                        yield from self._close_piece()
                yield from self._close_piece()
        finally:
            if self._writer is not None:
                self._writer.abort()

    def _responses(self, stack: ExitStack) -> Iterator[FetchedPartition]:
        """Fetch from the position on."""
        stack.close()
        fetcher = self._fetcher(self._position, self._work.end)
        return iter(stack.enter_context(fetcher))

    def _fetcher(self, start: int, end: int) -> PartitionFetcher:
        work = self._work
        return PartitionFetcher(
            self._cluster,
            work.topic,
            work.topic_id,
            work.partition,
            start=start,
            end=end,
            isolation="read_committed",
            retry_seconds=self._retry_seconds,
            check_stop=self._stop.check,
            max_bytes=self._fetch_bytes,
            check_leader=self._check_leader,
            check_replica=self._check_replica,
            pace=None if self._pace is None else self._pace.take,
        )

    def _check_leader(self, leader_epoch: int) -> None:
        """A new leader must have all that is captured up to here, before anything is read from it."""
        if leader_epoch == self._leader_epoch:
            return
        known = Known(end=self._position, epochs=self._epochs, leader_epoch=self._leader_epoch)
        common = self._common_end(known, leader_epoch)
        if common < self._position:
            raise LogCutBackError(
                f"{self._work.name}: the log of its new leader (epoch {leader_epoch}) is another one from offset "
                f"{common} on, and {self._position} was reached; an unclean leader election cut it back"
            )
        self._leader_epoch = leader_epoch

    def _check_replica(self, batches: Sequence[BatchHeader]) -> bool:
        """The leader must have what a replica sent: after an unclean election one may be slow to cut its log."""
        epochs = list(self._epochs)
        for header in batches:
            epoch = header.partition_leader_epoch
            if epochs and epoch < epochs[-1].epoch:
                return False
            if not epochs or epochs[-1].epoch < epoch:
                epochs.append(LeaderEpoch(epoch=epoch, start_offset=max(header.base_offset, self._position)))
        end = batches[-1].next_offset
        known = Known(end=end, epochs=epochs, leader_epoch=epochs[-1].epoch)
        return self._common_end(known, self._leader_epoch) >= end

    def _common_end(self, known: Known, leader_epoch: int) -> int:
        """Up to which offset the leader of this epoch has what is known."""
        work = self._work
        key = (work.topic, work.partition)
        found = common_ends(self._cluster, {key: known.history}, deadline=self._retry_seconds)[key]
        if isinstance(found, KafkaBackupError):
            raise found
        if found.leader_epoch != leader_epoch:
            raise UnreachableError(f"{work.name}: its leader changed while it was asked")
        return found.offset

    def _take(self, fetched: FetchedPartition) -> None:
        """Account for one fetch response and store what must be kept of it."""
        # Topics of small batches have a million of them per GB: what is so for nearly all is decided on plain
        # numbers, everything else in its own place.
        work, tally, records = self._work, self._tally, fetched.records
        end, epoch = work.end, self._epochs[-1].epoch if self._epochs else -1
        aborted = AbortedFilter(fetched.aborted) if fetched.aborted else None
        gaps: list[tuple[int, int]] = []
        run: list[BatchHeader] = []
        run_start = run_end = kept_bytes = 0
        records_before = self._tally.records
        past_the_end = False
        for position, header in fetched.batches:
            base_offset, length, its_epoch, _, checksum, attributes, last_delta, *_, count = header
            if base_offset >= end:
                past_the_end = True
                break
            next_offset = base_offset + last_delta + 1
            if next_offset <= self._position:
                continue
            after = position + LOG_OVERHEAD + length
            if crc32c.crc32c(records[position + CRC_START : after]) != checksum:
                raise DamagedError(
                    f"{work.name}: the batch at offset {base_offset} fails its CRC check as broker "
                    f"{fetched.broker} sent it; check that broker's log with kafka-dump-log, then run again"
                )
            if next_offset > end:
                raise DamagedError(
                    f"{work.name}: the batch [{base_offset}, {next_offset}) crosses the last stable offset "
                    f"{end}; brokers end it at a batch boundary, so the log changed"
                )
            if (
                base_offset == self._position
                and count == last_delta + 1
                and its_epoch == epoch
                and aborted is None
                and not attributes & CONTROL_BIT
            ):
                tally.records += count
                belongs = True
            else:
                if base_offset > self._position:
                    gaps.append((self._position, base_offset))
                    self._position = base_offset
                self._note_epoch(header)
                epoch = self._epochs[-1].epoch if self._epochs else -1
                belongs = self._account(fetched, position, header, aborted)
            if belongs:
                if run and run_end != position:
                    self._store(fetched, run_start, run_end, run)
                    run = []
                if not run:
                    run_start = position
                run.append(header)
                run_end = after
                kept_bytes += after - position
            self._position = next_offset
        if run:
            self._store(fetched, run_start, run_end, run)
        # What is missing behind the last batch only a batch at or past the end can tell.
        if past_the_end and self._position < work.end:
            gaps.append((self._position, work.end))
            self._position = work.end
        self._explain(gaps, fetched)
        self._on_response(self._position, self._tally.records - records_before, kept_bytes)

    def _account(
        self, fetched: FetchedPartition, position: int, header: BatchHeader, aborted: AbortedFilter | None
    ) -> bool:
        """Count one batch; True if it belongs into the segment."""
        tally = self._tally
        first = max(header.base_offset, self._position)
        is_aborted = aborted is not None and aborted.is_aborted(position, header, fetched.records)
        if header.record_count == header.offset_count:
            present = header.next_offset - first
        else:
            present = self._account_gapped(fetched, position, header, first)
        if header.is_control:
            tally.control += present
            # From a marker's time on, what a transaction committed for groups is true (`group_history`).
            return present > 0 and self._work.topic == OFFSETS_TOPIC
        if is_aborted:
            tally.aborted += present
        else:
            tally.records += present
            return present > 0
        return False

    def _account_gapped(
        self, fetched: FetchedPartition, position: int, header: BatchHeader, first: int
    ) -> int:
        """Count the missing offsets inside a batch that the cleaner thinned out; return the present."""
        missing = header.next_offset - first
        if self._work.compacts and first == header.base_offset:
            self._tally.compacted += missing - header.record_count
            return header.record_count
        offsets = [r.offset for r in decode_batch(fetched.records, position) if r.offset >= first]
        if self._work.compacts:
            self._tally.compacted += missing - len(offsets)
            return len(offsets)
        expected = first
        for offset in [*offsets, header.next_offset]:
            if offset > expected:
                self._tally.lost.append(LostSpan(start=expected, end=offset, reason="unexplained"))
            expected = offset + 1
        return len(offsets)

    def _store(self, fetched: FetchedPartition, start: int, end: int, headers: Sequence[BatchHeader]) -> None:
        if self._writer is None:
            self._writer = self._open_writer(
                self._work,
                self.next_index,
                headers[0].base_offset,
                choose_compression(self._compression, headers[0]),
            )
            self.next_index += 1
        self._writer.add(fetched.records[start:end], headers)

    def _note_epoch(self, header: BatchHeader) -> None:
        epoch = header.partition_leader_epoch
        if epoch >= 0 and (not self._epochs or self._epochs[-1].epoch < epoch):
            entry = LeaderEpoch(epoch=epoch, start_offset=max(header.base_offset, self._piece_start))
            self._epochs.append(entry)
            self._tally.epochs.append(entry)

    def _explain(self, gaps: Sequence[tuple[int, int]], fetched: FetchedPartition) -> None:
        """Find out why offsets are missing, by evidence of their own."""
        if not gaps:
            return
        tally = self._tally
        open_gaps = []
        for start, end in gaps:
            below = min(end, max(start, fetched.log_start_offset))
            if below > start:
                tally.lost.append(LostSpan(start=start, end=below, reason="retention"))
                start = below
            if start < end:
                open_gaps.append((start, end))
        if not open_gaps:
            return
        if not self._work.compacts:
            tally.lost += [LostSpan(start=s, end=e, reason="unexplained") for s, e in open_gaps]
            return
        while open_gaps:
            try:
                self._confirm_compacted(open_gaps)
                break
            except OffsetOutOfRangeError:
                open_gaps = self._without_what_retention_took(open_gaps)
        tally.compacted += sum(end - start for start, end in open_gaps)

    def _without_what_retention_took(self, gaps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The log start moved past a gap before its second look: below it, nothing can be proved any more."""
        log_start = self._ask_log_start()
        if log_start <= gaps[0][0]:
            raise self._out_of_range(gaps[0][0], log_start)
        left = []
        for start, end in gaps:
            below = min(end, max(start, log_start))
            if below > start:
                self._tally.lost.append(LostSpan(start=start, end=below, reason="retention"))
            if below < end:
                left.append((below, end))
        return left

    def _confirm_compacted(self, gaps: Sequence[tuple[int, int]]) -> None:
        """Fetch again from the first gap on: still no batch may lie in any of the gaps."""
        work = self._work
        fetcher = self._fetcher(gaps[0][0], gaps[-1][1])
        pending = list(reversed(gaps))
        with fetcher:
            for fetched in fetcher:
                for _, header in fetched.batches:
                    while pending and pending[-1][1] <= header.base_offset:
                        pending.pop()
                    if not pending:
                        return
                    start, end = pending[-1]
                    if header.base_offset < end and header.last_offset >= start:
                        raise DamagedError(
                            f"{work.name}: a first fetch showed no batch in offsets [{start}, {end}), a second "
                            f"one shows [{header.base_offset}, {header.next_offset}); a broker answers "
                            "inconsistently. Nothing of it was committed; run again"
                        )

    def _skip_what_retention_took(self) -> None:
        """Judge an OFFSET_OUT_OF_RANGE: below log start is lost, above the end is another log."""
        log_start = self._ask_log_start()
        if log_start <= self._position:
            raise self._out_of_range(self._position, log_start)
        until = min(log_start, self._work.end)
        self._tally.lost.append(LostSpan(start=self._position, end=until, reason="retention"))
        self._position = until

    def _out_of_range(self, offset: int, log_start: int) -> LogCutBackError:
        return LogCutBackError(
            f"{self._work.name}: offset {offset} is out of range, and the log starts at {log_start}: it was cut "
            "back (unclean leader election?)"
        )

    def _ask_log_start(self) -> int:
        key = (self._work.topic, self._work.partition)
        answer = self._cluster.list_offsets(
            {key: EARLIEST}, isolation="read_uncommitted", deadline=self._retry_seconds
        )[key]
        if not isinstance(answer, OffsetAnswer):
            raise UnreachableError(
                f"{self._work.name}: the log start could not be asked: {answer}"
            ) from answer
        return answer.offset

    def _close_piece(self) -> Iterator[CapturedRange]:
        """Make the open segment durable and yield the piece that it ends, if there is anything in it."""
        segments = []
        if self._writer is not None:
            segments.append(self._writer.finish())
            self._writer = None
        tally, self._tally = self._tally, _Tally()
        piece = CapturedRange(
            start=self._piece_start,
            end=self._position,
            leader_epoch=self._leader_epoch,
            ledger=tally.ledger(),
            lost=sorted(tally.lost, key=lambda span: span.start),
            epochs=tally.epochs,
            segments=segments,
        )
        self._piece_start = self._position
        if piece.end > piece.start:
            yield piece
