"""Stored batches become batches that a broker accepts from a producer.

The same batches and bounds always give the same target batches: a restore produces them, a resumed restore
and verification make them again and compare, and the offset map is read off them.

Most batches pass through as they are, the same memory, and need only ``rewrite.seal``. Where the broker's
rules or the bounds demand another batch, records are renumbered, but not decoded: of each record only the
length and the two deltas in front are read, keys, values and headers are copied as they stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import crc32c

from kafka_backup.errors import DamagedError, RefusedError
from kafka_backup.records.batch import (
    CODEC_MASK,
    CONTROL_BIT,
    CRC_FIELD,
    CRC_FIELD_START,
    CRC_START,
    DELETE_HORIZON_BIT,
    HEADER,
    HEADER_SIZE,
    LOG_APPEND_TIME_BIT,
    LOG_OVERHEAD,
    TRANSACTIONAL_BIT,
    BatchHeader,
)
from kafka_backup.records.compression import MAX_DECOMPRESSED_BYTES, Codec, compress, decompress
from kafka_backup.records.headers import Stamp
from kafka_backup.records.rewrite import needs_reencoding
from kafka_backup.records.time_filter import Decision, decide
from kafka_backup.records.varint import INT64_BITS, encode_varint, read_varint, wrap_int64

DROPPED_BITS = LOG_APPEND_TIME_BIT | TRANSACTIONAL_BIT | CONTROL_BIT | DELETE_HORIZON_BIT
# Every number whose varint has one or two bytes, and is not negative.
VARINTS = tuple(encode_varint(number) for number in range(1 << 13))
VARINTS_END = len(VARINTS)
# The number behind each zigzag form of one or two bytes.
SIGNED = tuple(zigzag >> 1 ^ -(zigzag & 1) for zigzag in range(1 << 14))

ANY_TIME = 1 << 66
# Within this, base timestamp plus a delta of one or two bytes cannot leave 64 bits.
ORDINARY_TIME = (1 << 63) - (1 << 14)
# Key length, value length, number of headers: one byte each at least.
SMALLEST_REST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What of a partition to keep.

    Attributes:
        first_offset: records below are cut.
        end_offset: records at or above are cut.
        from_ms: earliest record time to keep (inclusive, ms), or None.
        until_ms: latest record time to keep (inclusive, ms), or None.
    """

    first_offset: int
    end_offset: int
    from_ms: int | None = None
    until_ms: int | None = None


class TargetBatch(NamedTuple):
    """One whole v2 batch for the target; ``rewrite.seal`` it before sending or comparing it.

    Attributes:
        data: exactly the batch, writable; the source's own memory unless ``reencoded``.
        record_count: records in it, at least 1; they take as many consecutive target offsets.
        reencoded: whether it had to be built anew.
        runs: (source offset, count) of each maximal run of consecutive source offsets, in order.
        max_timestamp: of its records (ms).
    """

    data: bytearray | memoryview
    record_count: int
    reencoded: bool
    runs: Sequence[tuple[int, int]]
    max_timestamp: int

    @property
    def size(self) -> int:
        """Bytes of the batch."""
        return len(self.data)

    @property
    def first_source_offset(self) -> int:
        """Source offset of its first record."""
        return self.runs[0][0]

    @property
    def last_source_offset(self) -> int:
        """Source offset of its last record (inclusive)."""
        first, count = self.runs[-1]
        return first + count - 1


def convert(
    batches: Iterable[tuple[bytearray | memoryview, BatchHeader]],
    bounds: Bounds,
    *,
    max_batch_bytes: int,
    stamp: Stamp | None = None,
) -> Iterator[TargetBatch]:
    """Yields the target batches for one partition's stored batches, in order.

    A batch passes unchanged if all its records are to be kept, it fits, and ``needs_reencoding`` does not object.
    Every other one is built anew with the same codec: records renumbered from 0, records outside the bounds
    left out, base timestamp that of the first record kept, maximum recomputed, split where it is too large.
    Records of LogAppendTime batches get the broker's time as their own, so that a CreateTime target shows
    it. Batches without a record to keep yield nothing.

    Args:
        batches: each whole batch, writable, with its header; neither control nor aborted ones. Checksums
            are the caller's to check.
        bounds: what to keep.
        max_batch_bytes: the target's ``max.message.bytes``.
        stamp: headers to add to each record; then no batch passes unchanged.

    Raises:
        DamagedError: a control batch, an unknown codec, or records that cannot be read; names the offset.
        RefusedError: one record alone does not fit; names its offset and both sizes.
    """
    for batch, header in batches:
        if header.is_control:
            raise DamagedError(
                f"the batch at offset {header.base_offset} is a control batch, which no backup stores: "
                "the segment is not what its commit says. Verify the repository"
            )
        first = header.base_offset
        last = first + header.last_offset_delta
        if header.record_count == 0 or last < bounds.first_offset or first >= bounds.end_offset:
            continue
        decision = decide(header, bounds.from_ms, bounds.until_ms)
        if decision is Decision.NONE:
            continue
        may_pass = (
            first >= bounds.first_offset
            and last < bounds.end_offset
            and not needs_reencoding(header)
            and header.size <= max_batch_bytes
            and stamp is None
        )
        if may_pass and decision is Decision.ALL:
            yield _unchanged(batch, header)
        else:
            yield from _reencode(batch, header, bounds, decision, max_batch_bytes, stamp, may_pass=may_pass)


def _unchanged(batch: bytearray | memoryview, header: BatchHeader) -> TargetBatch:
    count = header.record_count
    return TargetBatch(batch, count, False, ((header.base_offset, count),), header.max_timestamp)


def _reencode(
    batch: bytearray | memoryview,
    header: BatchHeader,
    bounds: Bounds,
    decision: Decision,
    max_batch_bytes: int,
    stamp: Stamp | None,
    *,
    may_pass: bool,
) -> Iterator[TargetBatch]:
    try:
        records = decompress(header.codec, memoryview(batch)[HEADER_SIZE:], limit=MAX_DECOMPRESSED_BYTES)
        scan = _Scan(header, records, bounds, decision, stamp)
        cursor = _Cursor(done=0, position=0, delta=-1)
        # The first try takes all records, so everything is checked before anything is yielded.
        at_once = header.record_count
        while cursor.done < header.record_count:
            count = min(at_once, header.record_count - cursor.done)
            piece = scan.piece(cursor, count)
            if may_pass and piece.record_count == header.record_count:
                yield _unchanged(batch, header)
            elif piece.record_count:
                target = build_batch(
                    header.attributes & ~DROPPED_BITS,
                    piece.payload,
                    record_count=piece.record_count,
                    runs=piece.runs,
                    base_timestamp=piece.base_timestamp,
                    max_timestamp=piece.max_timestamp,
                )
                if target.size > max_batch_bytes:
                    if piece.record_count == 1:
                        raise RefusedError(
                            f"the record at offset {target.first_source_offset} needs a batch of "
                            f"{target.size} bytes, and the target takes {max_batch_bytes}: "
                            "raise its max.message.bytes"
                        )
                    at_once = count // 2
                    continue
                yield target
            cursor = piece.cursor
    except DamagedError as error:
        raise DamagedError(f"the batch at offset {header.base_offset} is damaged: {error}") from error


class _Cursor(NamedTuple):
    """A place between two records of a batch: records and bytes before it, and the offset delta before it."""

    done: int
    position: int
    delta: int


class _Piece(NamedTuple):
    """Consecutive records of a batch, filtered and renumbered; ``cursor`` is the place after them."""

    payload: bytes | memoryview
    record_count: int
    runs: Sequence[tuple[int, int]]
    base_timestamp: int
    max_timestamp: int
    cursor: _Cursor


class _Scan:
    """Reads the records of one batch, as many at a time as asked for."""

    def __init__(
        self,
        header: BatchHeader,
        records: bytes,
        bounds: Bounds,
        decision: Decision,
        stamp: Stamp | None,
    ) -> None:
        self._header = header
        self._stamp = stamp
        self._records = records
        self._low = bounds.first_offset - header.base_offset
        self._high = bounds.end_offset - header.base_offset
        scans_time = decision is Decision.SCAN
        self._filtered = scans_time or self._low > 0 or self._high <= header.last_offset_delta
        base = header.base_timestamp
        self._since = -ANY_TIME if not scans_time or bounds.from_ms is None else bounds.from_ms - base
        self._until = ANY_TIME if not scans_time or bounds.until_ms is None else bounds.until_ms - base

    def piece(self, cursor: _Cursor, count: int) -> _Piece:
        """Reads the next ``count`` records.

        Raises:
            DamagedError: they cannot be read, or bytes are left after the batch's last record.
        """
        try:
            return self._piece(cursor, count)
        except IndexError as error:
            raise DamagedError("its records are cut off") from error

    def _piece(self, cursor: _Cursor, count: int) -> _Piece:
        # One pass with everything in it: a function call per record would halve the speed. Numbers of one or
        # two bytes are decoded here, the rare longer ones by read_varint. A number that keeps its size is
        # written over in a copy of all records; only a record that changes its length is put together anew.
        data = self._records
        header = self._header
        done, position, previous = cursor
        stamp = self._stamp
        filtered, low, high, since, until = self._filtered, self._low, self._high, self._since, self._until
        signed, varints, varints_end = SIGNED, VARINTS, VARINTS_END
        base = header.base_timestamp
        restamp = header.is_log_append_time
        # 0 sends every timestamp to read_varint and wrap_int64.
        short = 0x80 if -ORDINARY_TIME < base < ORDINARY_TIME else 0
        copy = bytearray(data)
        view = memoryview(copy)
        parts: list[bytes | memoryview] = []
        whole_from = position
        run_starts: list[tuple[int, int]] = []
        kept = 0
        expected = -1
        base_delta = 0
        latest = -ANY_TIME
        time: bytes | None
        for _ in range(count):
            start = position
            byte = data[position]
            position += 1
            if byte < 0x80:
                body = position
                end = position + signed[byte]
            else:
                second = data[position]
                if second < 0x80:
                    body = position + 1
                    end = body + signed[byte & 0x7F | second << 7]
                else:
                    length, body = read_varint(data, start)
                    end = body + length

            time_start = body + 1
            byte = data[time_start]
            middle = time_start + 1
            if byte < short:
                time_delta = signed[byte]
            else:
                second = data[middle]
                if second < short:
                    middle += 1
                    time_delta = signed[byte & 0x7F | second << 7]
                else:
                    time_delta, middle = read_varint(data, time_start, INT64_BITS)
                    time_delta = wrap_int64(base + time_delta) - base

            byte = data[middle]
            position = middle + 1
            if byte < 0x80:
                delta = signed[byte]
            else:
                second = data[position]
                if second < 0x80:
                    position += 1
                    delta = signed[byte & 0x7F | second << 7]
                else:
                    delta, position = read_varint(data, middle)
            # A negative length or delta fails here, too.
            if delta <= previous or position + SMALLEST_REST > end:
                raise DamagedError(f"an impossible record at byte {start}")
            previous = delta

            if filtered and not (low <= delta < high and since <= time_delta <= until):
                if start > whole_from:
                    parts.append(view[whole_from:start])
                whole_from = position = end
                continue
            if delta != expected:
                run_starts.append((delta, kept))
                if not kept and not restamp:
                    base_delta = time_delta
            expected = delta + 1
            if time_delta > latest:
                latest = time_delta

            if restamp or base_delta:
                shifted = 0 if restamp else time_delta - base_delta
                time = varints[shifted] if 0 <= shifted < varints_end else encode_varint(wrap_int64(shifted))
                fits = len(time) == middle - time_start
                if fits:
                    copy[time_start:middle] = time
            else:
                time = None
                fits = True
            if fits:
                # Numbers never grow: a record's place among those kept is at most its old offset delta.
                size = position - middle
                if size == 1:
                    copy[middle] = kept << 1
                elif size == 2 and kept >= 0x40:
                    copy[middle] = kept << 1 & 0x7F | 0x80
                    copy[middle + 1] = kept >> 6
                else:
                    number = encode_varint(kept)
                    fits = len(number) == size
                    if fits:
                        copy[middle:position] = number
            tail: bytes | None = None
            if stamp is not None:
                moment = header.max_timestamp if restamp else base + time_delta
                tail = stamp.apply(data, position, end, offset=header.base_offset + delta, timestamp=moment)
                fits = False
            if not fits:
                if start > whole_from:
                    parts.append(view[whole_from:start])
                if time is None:
                    time = data[time_start:middle]
                number = varints[kept] if kept < varints_end else encode_varint(kept)
                if tail is None:
                    tail = data[position:end]
                length = time_start - body + len(time) + len(number) + len(tail)
                parts += (
                    varints[length] if length < varints_end else encode_varint(length),
                    data[body:time_start],
                    time,
                    number,
                    tail,
                )
                whole_from = end
            kept += 1
            position = end
        if position > len(data) or previous > header.last_offset_delta:
            raise DamagedError("its records reach beyond it")
        if done + count == header.record_count and position < len(data):
            raise DamagedError(
                f"{len(data) - position} bytes are left after its {header.record_count} records"
            )
        parts.append(view[whole_from:position])
        ends = [start for _, start in run_starts[1:]] + [kept]
        first = header.base_offset
        return _Piece(
            payload=b"".join(parts) if len(parts) > 1 else parts[0],
            record_count=kept,
            runs=tuple((first + d, end - start) for (d, start), end in zip(run_starts, ends, strict=False)),
            base_timestamp=header.max_timestamp if restamp else base + base_delta,
            max_timestamp=header.max_timestamp if restamp else base + latest,
            cursor=_Cursor(done=done + count, position=position, delta=previous),
        )


def build_batch(
    attributes: int,
    payload: bytes | bytearray | memoryview,
    *,
    record_count: int,
    runs: Sequence[tuple[int, int]],
    base_timestamp: int,
    max_timestamp: int,
) -> TargetBatch:
    """Makes a batch without a producer from encoded records.

    Args:
        attributes: codec, and bits without a meaning.
        payload: the records, not yet compressed, numbered from 0.
        record_count: their number.
        runs: their source offsets, as in ``TargetBatch``.
        base_timestamp: to which their timestamp deltas refer (ms).
        max_timestamp: the largest (ms).
    """
    codec = Codec.of(attributes & CODEC_MASK)
    compressed = payload if codec is Codec.NONE else compress(codec, payload)
    data = bytearray(HEADER_SIZE + len(compressed))
    HEADER.pack_into(
        data,
        0,
        0,
        len(data) - LOG_OVERHEAD,
        -1,
        2,
        0,
        attributes,
        record_count - 1,
        base_timestamp,
        max_timestamp,
        -1,
        -1,
        -1,
        record_count,
    )
    data[HEADER_SIZE:] = compressed
    CRC_FIELD.pack_into(data, CRC_FIELD_START, crc32c.crc32c(memoryview(data)[CRC_START:]))
    return TargetBatch(data, record_count, True, runs, max_timestamp)
