"""A target partition's log against what it must hold: bytes first, records where the bytes differ.

Batches that we wrote come back with our bytes, the producer's fields aside. Others that hold the same
records are as good: another release of a compression library packs them differently, a resumed
restore cuts them elsewhere, a broker may have built them anew. So where bytes differ, records are
compared one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

import crc32c

from kafka_backup.errors import DamagedError
from kafka_backup.expected_batches import PartitionTarget
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.fetch import FETCH_BYTES, OffsetOutOfRangeError, PartitionFetcher
from kafka_backup.pace import Pace
from kafka_backup.progress import StopToken
from kafka_backup.records.batch import CRC_START, HEADER_SIZE, BatchHeader, crc_is_valid, read_header
from kafka_backup.records.codec import Record, decode_batch
from kafka_backup.records.convert import Bounds, TargetBatch, convert
from kafka_backup.records.rewrite import address, seal

_ALL_OFFSETS = 2**63 - 1
_CONTENT = struct.Struct(">qhqqiI")
"""Of a batch: base offset, attributes, base and max timestamp, record count, CRC-32C of its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Expected records that were found in the log, next to each other.

    Attributes:
        record_count: how many; they take as many target offsets.
        size: bytes of the batches that they are in, counted with the first records of each.
        runs: their source offsets, as in `TargetBatch`.
        reencoded: they did not go as the batch that was stored.
        max_timestamp: of them, ms.
        content: what identifies the batch that they begin, whoever produced it; empty for further records
            of the same batch.
    """

    record_count: int
    size: int
    runs: Sequence[tuple[int, int]]
    reencoded: bool
    max_timestamp: int
    content: bytes


class LogMatcher:
    """Holds the batches of a log, one after the other, against expected ones.

    Attributes:
        position: target offset up to which all is as expected.
    """

    def __init__(self, expected: Iterator[TargetBatch], *, start: int, name: str) -> None:
        """Take what must be in the log from offset `start` on; `name` is the partition's, for messages."""
        self.position = start
        self._expected = expected
        self._name = name
        self._partial: _Partial | None = None

    def match(self, records: memoryview, place: int, header: BatchHeader) -> Iterator[Found]:
        """Yield what the next batch of the log holds of the expected records.

        Args:
            records: fetched bytes.
            place: where the batch begins in them.
            header: its header.

        Raises:
            DamagedError: it is anything else than the next expected records.
        """
        self._check_place(records, place, header)
        if self._partial is None:
            batch = next(self._expected, None)
            if batch is None:
                self._differs(f"{header.record_count} records too many")
            if _equal(batch, records, place, header):
                self.position = header.next_offset
                yield Found(
                    record_count=batch.record_count,
                    size=batch.size,
                    runs=batch.runs,
                    reencoded=batch.reencoded,
                    max_timestamp=batch.max_timestamp,
                    content=_content(records, place, header),
                )
                return
            self._partial = _Partial(batch)
        yield from self._records(decode_batch(records, place), header, _content(records, place, header))

    def rest(self) -> Iterator[TargetBatch]:
        """The expected batches that did not come, to be written next.

        Where the log ends inside an expected batch, the first one holds what is missing of it.
        """
        if (partial := self._partial) is None:
            return self._expected
        return chain(partial.rest(), self._expected)

    def _check_place(self, records: memoryview, place: int, header: BatchHeader) -> None:
        wrong = None
        if header.base_offset != self.position:
            wrong = ""
        elif not crc_is_valid(records, place, header):
            wrong = " whose CRC is wrong"
        elif header.is_control:
            wrong = " of a transaction's markers"
        elif header.is_gapped:
            wrong = f" of only {header.record_count} records"
        if wrong is not None:
            raise DamagedError(
                f"{self._name} is damaged at offset {self.position}: the log holds a batch "
                f"[{header.base_offset}, {header.next_offset}){wrong} there. Delete the topic and restore it again"
            )

    def _records(self, found: Sequence[Record], header: BatchHeader, content: bytes) -> Iterator[Found]:
        size = header.size
        while found:
            if self._partial is None:
                batch = next(self._expected, None)
                if batch is None:
                    self._differs(f"{len(found)} records too many")
                self._partial = _Partial(batch)
            taken = self._partial.take(found)
            if taken.record_count == 0:
                self._differs(self._partial.difference(found[0]))
            self.position += taken.record_count
            yield Found(
                record_count=taken.record_count,
                size=size,
                runs=taken.runs,
                reencoded=True,
                max_timestamp=taken.max_timestamp,
                content=content,
            )
            size, content = 0, b""
            found = found[taken.record_count :]
            if self._partial.is_used_up:
                self._partial = None

    def _differs(self, how: str) -> NoReturn:
        raise DamagedError(
            f"{self._name} is not what the plan says at offset {self.position}: {how}; somebody else wrote "
            "there, or it was changed. Delete the topic and restore it again"
        )


class LogComparison:
    """Compares one stretch of a target partition with expected batches, once."""

    def __init__(
        self,
        target: PartitionTarget,
        cluster: Cluster,
        expected: Iterator[TargetBatch],
        *,
        start: int,
        retry_seconds: float,
        stop: StopToken,
        fetch_bytes: int = FETCH_BYTES,
        pace: Pace | None = None,
    ) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            target: whose log is read.
            cluster: the target cluster.
            expected: what must be there from `start` on.
            start: target offset of the first expected record.
            retry_seconds: how long there may be no progress.
            stop: ends the work with CancelledError.
            fetch_bytes: of one fetch.
            pace: what holds the rate of bytes read.
        """
        self._matcher = LogMatcher(expected, start=start, name=target.name)
        self._target = target
        self._cluster = cluster
        self._retry_seconds = retry_seconds
        self._stop = stop
        self._fetch_bytes = fetch_bytes
        self._pace = pace

    @property
    def position(self) -> int:
        """Target offset up to which all is as expected."""
        return self._matcher.position

    def run(self, end: int) -> Iterator[Found]:
        """Read up to target offset `end` and yield what is found there, in order.

        Raises:
            DamagedError: the log holds something else, naming the first offset that differs.
        """
        if end <= self.position:
            return
        fetcher = PartitionFetcher(
            self._cluster,
            self._target.topic.target,
            self._target.target_topic_id,
            self._target.partition.partition,
            start=self.position,
            end=end,
            isolation="read_uncommitted",
            retry_seconds=self._retry_seconds,
            check_stop=self._stop.check,
            max_bytes=self._fetch_bytes,
            pace=None if self._pace is None else self._pace.take,
        )
        with fetcher:
            try:
                for fetched in fetcher:
                    for place, header in fetched.batches:
                        if header.base_offset >= end:
                            return
                        yield from self._matcher.match(fetched.records, place, header)
            except OffsetOutOfRangeError as error:
                raise DamagedError(
                    f"{self._target.name}: the records from offset {self.position} on are not in the log any more; "
                    "retention or somebody deleted them"
                ) from error
        if self.position != end:
            raise DamagedError(
                f"{self._target.name}: the log ends at offset {end}, its batches at {self.position}"
            )

    def rest(self) -> Iterator[TargetBatch]:
        """The expected batches that were not found, to be written next. Call it after `run`."""
        return self._matcher.rest()


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


def _content(records: memoryview, place: int, header: BatchHeader) -> bytes:
    checksum = crc32c.crc32c(records[place + HEADER_SIZE : place + header.size])
    return _CONTENT.pack(
        header.base_offset,
        header.attributes,
        header.base_timestamp,
        header.max_timestamp,
        header.record_count,
        checksum,
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    record_count: int
    runs: Sequence[tuple[int, int]]
    max_timestamp: int


class _Partial:
    """An expected batch, of which some records were found already."""

    def __init__(self, batch: TargetBatch) -> None:
        # Comparing its bytes may have voided its checksum.
        seal(batch.data, producer_id=-1, producer_epoch=-1, base_sequence=-1)
        self._batch = batch
        self._records = decode_batch(batch.data)
        self._used = 0

    @property
    def is_used_up(self) -> bool:
        return self._used == self._batch.record_count

    def take(self, found: Sequence[Record]) -> _Taken:
        """Take as many of the found records as are the next expected ones."""
        start = self._used
        expected = self._records[start : start + len(found)]
        count = 0
        for mine, theirs in zip(expected, found, strict=False):
            if not _same(mine, theirs):
                break
            count += 1
        self._used += count
        return _Taken(
            record_count=count,
            runs=_slice(self._batch.runs, start, count),
            max_timestamp=max((record.timestamp for record in expected[:count]), default=-1),
        )

    def difference(self, found: Record) -> str:
        """How a found record differs from the next expected one."""
        mine = self._records[self._used]
        ((source_offset, _),) = _slice(self._batch.runs, self._used, 1)
        fields = [
            name
            for name in ("timestamp", "key", "value", "headers")
            if getattr(mine, name) != getattr(found, name)
        ]
        return (
            f"its record is not that of source offset {source_offset}, it has another {' and '.join(fields)}"
        )

    def rest(self) -> Iterator[TargetBatch]:
        """The batch of the records that were not found yet."""
        batch = self._batch
        header = read_header(batch.data)
        bounds = Bounds(first_offset=self._used, end_offset=_ALL_OFFSETS)
        used = self._used
        for part in convert([(batch.data, header)], bounds, max_batch_bytes=_ALL_OFFSETS):
            yield part._replace(runs=_slice(batch.runs, used, part.record_count))
            used += part.record_count


def _same(one: Record, other: Record) -> bool:
    return (
        one.timestamp == other.timestamp
        and one.key == other.key
        and one.value == other.value
        and one.headers == other.headers
    )


def _slice(runs: Sequence[tuple[int, int]], start: int, count: int) -> tuple[tuple[int, int], ...]:
    """The runs of `count` records from number `start` on."""
    sliced = []
    for offset, length in runs:
        if count <= 0:
            break
        if start >= length:
            start -= length
            continue
        taken = min(length - start, count)
        sliced.append((offset + start, taken))
        count -= taken
        start = 0
    return tuple(sliced)
