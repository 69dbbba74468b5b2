"""Tiny batches become larger ones: a topic of single-record batches is restored at a decent rate.

A request for each record would make a restore many times slower than the topic was written by all its
producers at once. Neighbours of the same codec and attributes become one batch; nothing else about
their records changes. What is merged with what depends on the stored bytes and the arguments alone,
so a resumed restore and verification make the same batches again.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from typing import NamedTuple

import crc32c

from kafka_backup.errors import DamagedError
from kafka_backup.records.batch import (
    CODEC_MASK,
    CONTROL_BIT,
    CRC_START,
    HEADER_SIZE,
    LOG_APPEND_TIME_BIT,
    LOG_OVERHEAD,
    read_header,
)
from kafka_backup.records.compression import Codec, decompress
from kafka_backup.records.convert import (
    ANY_TIME,
    DROPPED_BITS,
    ORDINARY_TIME,
    SIGNED,
    SMALLEST_REST,
    VARINTS,
    Bounds,
    TargetBatch,
    build_batch,
    convert,
)
from kafka_backup.records.headers import Stamp
from kafka_backup.records.varint import INT64_BITS, encode_varint, read_varint, wrap_int64

LARGEST_MERGED = 256 * 1024
"""Bytes of records, uncompressed, up to which batches are merged."""

_MOMENTS = tuple(b"\0" + varint for varint in VARINTS)
_MOST_RECORDS = len(VARINTS)
_TINY_BYTES = 8 * 1024
_TINY_RECORDS = 16
_LARGE_BATCH = 16 * 1024
_LARGE_CONTENT = 64 * 1024
_NO_KIND = -1
_FIELDS = struct.Struct(">qi4xbIhiqq14xi")
"""A batch's header without leader epoch and producer."""


class Walked(NamedTuple):
    """What was seen on the way: bytes and number of whole batches, their records, the last offset."""

    size: int
    batches: int
    records: int
    last_offset: int


def worth_merging(*, batches: int, records: int, size: int) -> bool:
    """Whether a segment's batches are so small that requests would cost more than encoding them anew.

    Args:
        batches: in the segment.
        records: in them.
        size: bytes of them.
    """
    return batches > 1 and records <= _TINY_RECORDS * batches and size <= _TINY_BYTES * batches


def merge(
    data: bytearray,
    bounds: Bounds,
    *,
    max_batch_bytes: int,
    merge_bytes: int,
    stamp: Stamp | None = None,
    check_crc: bool = True,
    last_offset: int = -1,
) -> Generator[TargetBatch, None, Walked]:
    """Yields the target batches for a stretch of a segment as ``convert`` does, tiny neighbours merged.

    A batch that is large, or has no neighbour to be merged with, goes the way of ``convert``. The order
    of offsets is checked here, too.

    Args:
        data: batches, one after the other; the last one may be cut off, and is left for the next stretch.
        bounds: what to keep.
        max_batch_bytes: the target's ``max.message.bytes``.
        merge_bytes: most bytes of records, uncompressed, in a merged batch.
        stamp: headers to add to each record.
        check_crc: check the checksum of each batch.
        last_offset: of the stretch before, after which this one's begin.

    Returns:
        What was seen, for the caller to compare with what the segment must hold.

    Raises:
        DamagedError: a checksum, an order or a record is wrong; names the offset.
        RefusedError: as ``convert``.
    """
    # One loop with everything in it: a function call for each batch would halve the speed.
    view = memoryview(data)
    size = len(data)
    unpack, crc = _FIELDS.unpack_from, crc32c.crc32c
    signed, varints, varints_end, moments = SIGNED, VARINTS, len(VARINTS), _MOMENTS
    first_bound, end_bound = bounds.first_offset, bounds.end_offset
    from_ms, until_ms = bounds.from_ms, bounds.until_ms
    earliest = -ANY_TIME if from_ms is None else from_ms
    newest = ANY_TIME if until_ms is None else until_ms
    timeless = from_ms is None and until_ms is None
    position = batches = records = 0

    def alone(sources: list[int]) -> Iterator[TargetBatch]:
        for source in sources:
            header = read_header(data, source)
            batch = view[source : source + header.size]
            yield from convert([(batch, header)], bounds, max_batch_bytes=max_batch_bytes, stamp=stamp)

    def finish(
        sources: list[int],
        kind: int,
        content: bytearray,
        runs: list[tuple[int, int]],
        kept: int,
        base: int,
        latest: int,
    ) -> Iterator[TargetBatch]:
        if len(sources) > 1:
            target = build_batch(
                kind,
                content,
                record_count=kept,
                runs=_lengths(runs, kept),
                base_timestamp=base,
                max_timestamp=latest,
            )
            if target.size <= max_batch_bytes:
                yield target
                return
        yield from alone(sources)

    # The group that is being merged.
    sources: list[int] = []
    merged = bytearray()
    runs: list[tuple[int, int]] = []
    kind = lone_kind = _NO_KIND
    kept = weight = base = 0
    latest = -ANY_TIME
    following = -1

    while size - position >= HEADER_SIZE:
        base_offset, length, magic, checksum, attributes, last_delta, base_time, max_time, count = unpack(
            data, position
        )
        start, position = position, position + LOG_OVERHEAD + length
        if magic != 2 or length < HEADER_SIZE - LOG_OVERHEAD or not 0 <= count <= last_delta + 1:
            read_header(data, start)
        if position > size:
            position = start
            break
        if base_offset <= last_offset:
            raise DamagedError(f"a batch at offset {base_offset} follows offset {last_offset}")
        if check_crc and crc(view[start + CRC_START : position]) != checksum:
            raise _damaged(base_offset, "it fails its CRC check")
        batches += 1
        records += count
        last_offset = base_offset + last_delta
        if count == 1 and attributes == lone_kind and first_bound <= base_offset < end_bound:
            # A record alone in its batch, next to others like it: what follows, without all that cannot be.
            at = start + HEADER_SIZE
            byte = data[at]
            if byte < 0x80:
                body = at + 1
                end = body + signed[byte]
            else:
                body = at + 2
                end = body + signed[byte & 0x7F | data[at + 1] << 7] if data[at + 1] < 0x80 else 0
            rest = body + 3
            shifted = base_time - base
            if (
                end == position
                and rest + SMALLEST_REST <= end
                and not (data[body] or data[body + 1] or data[body + 2])
                and 0 <= shifted < varints_end
                and 0 < kept < _MOST_RECORDS
                and weight + end - at <= merge_bytes
            ):
                weight += end - at
                if base_offset != following:
                    runs.append((base_offset, kept))
                following = base_offset + 1
                if base_time > latest:
                    latest = base_time
                when, place = moments[shifted], varints[kept]
                length = len(when) + len(place) + end - rest
                head = varints[length] if length < varints_end else encode_varint(length)
                merged += head + when + place
                merged += view[rest:end]
                kept += 1
                sources.append(start)
                continue
        if attributes & CONTROL_BIT:
            raise DamagedError(
                f"the batch at offset {base_offset} is a control batch, which no backup stores"
            )
        if not count or last_offset < first_bound or base_offset >= end_bound:
            continue
        restamp = attributes & LOG_APPEND_TIME_BIT
        timed = False
        if not timeless:
            if max_time < earliest or (restamp and max_time > newest):
                continue
            timed = not restamp and (from_ms is not None or max_time > newest)

        content: bytearray | bytes = data
        at, stop = start + HEADER_SIZE, position
        large = stop - start > _LARGE_BATCH or count > _MOST_RECORDS
        if not large and attributes & CODEC_MASK:
            try:
                content = decompress(Codec.of(attributes & CODEC_MASK), view[at:stop])
            except DamagedError as error:
                raise _damaged(base_offset, error) from error
            at, stop = 0, len(content)
            large = stop > _LARGE_CONTENT
        if (
            large
            or attributes & ~DROPPED_BITS != kind
            or weight + stop - at > merge_bytes
            or kept + count > _MOST_RECORDS
        ):
            if sources:
                yield from finish(sources, kind, merged, runs, kept, base, latest)
            sources, merged, runs = [], bytearray(), []
            kept = weight = 0
            latest = -ANY_TIME
            following = -1
            kind = attributes & ~DROPPED_BITS
            if large:
                kind = lone_kind = _NO_KIND
                yield from alone([start])
                continue
            lone_kind = kind if timeless and stamp is None and not kind & CODEC_MASK else _NO_KIND
        try:
            weight += stop - at
            whole = view if content is data else memoryview(content)
            filtered = timed or first_bound > base_offset or end_bound <= last_offset
            # 0 sends every timestamp to read_varint and wrap_int64.
            short = 0x80 if -ORDINARY_TIME < base_time < ORDINARY_TIME else 0
            before = kept
            previous = -1
            for _ in range(count):
                byte = content[at]
                if byte < 0x80:
                    body = at + 1
                    end = body + signed[byte]
                else:
                    second = content[at + 1]
                    if second < 0x80:
                        body = at + 2
                        end = body + signed[byte & 0x7F | second << 7]
                    else:
                        length, body = read_varint(content, at)
                        end = body + length
                byte = content[body + 1]
                if byte < short:
                    time = base_time + signed[byte]
                    middle = body + 2
                else:
                    delta, middle = read_varint(content, body + 1, INT64_BITS)
                    time = wrap_int64(base_time + delta)
                byte = content[middle]
                if byte < 0x80:
                    delta = signed[byte]
                    rest = middle + 1
                else:
                    delta, rest = read_varint(content, middle)
                # A negative length or delta fails here, too.
                if delta <= previous or rest + SMALLEST_REST > end:
                    raise DamagedError(f"an impossible record at byte {at}")
                previous = delta
                at = end
                if filtered and not (
                    first_bound <= base_offset + delta < end_bound
                    and (not timed or earliest <= time <= newest)
                ):
                    continue
                if restamp:
                    time = max_time
                offset = base_offset + delta
                if offset != following:
                    runs.append((offset, kept))
                following = offset + 1
                if not kept:
                    base = time
                if time > latest:
                    latest = time
                shifted = time - base
                # Record attributes come first: no bit of them has a meaning, and none is ever set.
                if 0 <= shifted < varints_end and not content[body]:
                    when = moments[shifted]
                else:
                    when = bytes(content[body : body + 1]) + encode_varint(wrap_int64(shifted))
                place = varints[kept]
                tail: bytes | memoryview = (
                    whole[rest:end]
                    if stamp is None
                    else stamp.apply(content, rest, end, offset=offset, timestamp=time)
                )
                length = len(when) + len(place) + len(tail)
                head = varints[length] if length < varints_end else encode_varint(length)
                merged += head + when + place
                merged += tail
                kept += 1
            if at != stop or previous > last_delta:
                raise DamagedError("its records do not fill it")
        except IndexError as error:
            raise _damaged(base_offset, "its records are cut off") from error
        except DamagedError as error:
            raise _damaged(base_offset, error) from error
        if kept > before:
            sources.append(start)
    if sources:
        yield from finish(sources, kind, merged, runs, kept, base, latest)
    return Walked(size=position, batches=batches, records=records, last_offset=last_offset)


def _damaged(base_offset: int, what: object) -> DamagedError:
    return DamagedError(f"the batch at offset {base_offset} is damaged: {what}")


def _lengths(runs: list[tuple[int, int]], kept: int) -> tuple[tuple[int, int], ...]:
    """Turns (source offset, place of its first record) into (source offset, number of records)."""
    ends = [place for _, place in runs[1:]] + [kept]
    return tuple((offset, end - place) for (offset, place), end in zip(runs, ends, strict=True))
