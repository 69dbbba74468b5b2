"""Tiny batches merged, and headers added: against decode, filter, stamp and renumber, record by record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError
from kafka_backup.records.batch import crc_is_valid, read_header, walk
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.records.compression import Codec, compress
from kafka_backup.records.convert import DROPPED_BITS, Bounds, TargetBatch, convert
from kafka_backup.records.headers import Stamp
from kafka_backup.records.merge import Walked, merge, worth_merging
from kafka_backup.records.time_filter import filter_by_timestamp
from tests.support import records as plain
from tests.unit.strategies import codecs, record_lists, seen_by_plain_decoder, timestamps

ALL = Bounds(first_offset=0, end_offset=2**63 - 1)
STAMPS = [None, Stamp(True, False), Stamp(False, True), Stamp(True, True)]


def _merge(
    segment: bytes,
    bounds: Bounds = ALL,
    *,
    max_batch_bytes: int = 1 << 30,
    merge_bytes: int = 1 << 18,
    stamp: Stamp | None = None,
) -> tuple[list[TargetBatch], Walked]:
    made: list[TargetBatch] = []
    merging = merge(
        bytearray(segment), bounds, max_batch_bytes=max_batch_bytes, merge_bytes=merge_bytes, stamp=stamp
    )
    while True:
        try:
            made.append(next(merging))
        except StopIteration as end:
            return made, end.value


def _source_offsets(targets: Sequence[TargetBatch]) -> list[int]:
    return [offset for t in targets for first, count in t.runs for offset in range(first, first + count)]


def _stamped(record: Record, stamp: Stamp | None) -> Record:
    """The slow and obvious way to add the headers."""
    wanted = {}
    if stamp is not None and stamp.offset:
        wanted[b"x-original-offset"] = b"%d" % record.offset
    if stamp is not None and stamp.timestamp:
        wanted[b"x-original-timestamp"] = b"%d" % record.timestamp
    others = tuple(header for header in record.headers if header[0] not in wanted)
    return replace(record, headers=(*others, *wanted.items()))


def _wrapped(record: Record) -> Record:
    """The plain decoder does not wrap times at 64 bits as Java does."""
    return replace(record, timestamp=(record.timestamp + 2**63) % 2**64 - 2**63)


@st.composite
def segments(draw: st.DrawFn) -> tuple[bytes, list[Record]]:
    """A segment of batches of every kind, and its records as a consumer sees them."""
    data, everything = bytearray(), []
    offset = draw(st.sampled_from([0, 7, 2**33]))
    kinds = draw(st.lists(st.tuples(codecs, st.sampled_from([0, 0, 0x80])), min_size=1, max_size=2))
    for _ in range(draw(st.integers(1, 8))):
        codec, bits = draw(st.sampled_from(kinds))
        records = draw(record_lists(max_size=draw(st.sampled_from([1, 1, 5]))))
        shift = offset + draw(st.integers(0, 2)) - records[0].offset
        records = [replace(record, offset=record.offset + shift) for record in records]
        append_time = draw(st.sampled_from([None, None, None, -1, 1_700_000_000_000]))
        raw = encode_batch(
            records,
            codec=codec,
            base_offset=draw(st.sampled_from([None, offset])),
            last_offset=records[-1].offset + draw(st.sampled_from([0, 0, 1])),
            log_append_time=append_time,
            delete_horizon=draw(st.sampled_from([None, None, 1_700_000_500_000])),
            transactional=draw(st.booleans()),
        )
        if bits:
            raw = plain.with_right_crc(raw[:22] + bytes([raw[22] | bits]) + raw[23:])
        if append_time is not None:
            records = [replace(record, timestamp=append_time) for record in records]
        data += raw
        everything += records
        offset = read_header(raw).next_offset
    return bytes(data), everything


@given(
    segment=segments(),
    data=st.data(),
    merge_bytes=st.sampled_from([1 << 18, 300, 60]),
    stamp=st.sampled_from(STAMPS),
)
def test_merging_equals_decode_filter_stamp_renumber(
    segment: tuple[bytes, list[Record]], data: st.DataObject, merge_bytes: int, stamp: Stamp | None
) -> None:
    """Tests random segments, bounds, limits and headers against the obvious way to do the same.

    It matters because merged batches are what most records of chatty topics are restored in.
    A record lost or doubled between two batches would be verified against the same mistake.
    """
    raw, everything = segment
    offsets = st.sampled_from([o for r in everything for o in (r.offset, r.offset + 1)])
    times = st.sampled_from([r.timestamp for r in everything]) | timestamps
    bounds = Bounds(
        first_offset=data.draw(st.just(0) | offsets),
        end_offset=data.draw(st.just(2**63 - 1) | offsets),
        from_ms=data.draw(st.none() | times),
        until_ms=data.draw(st.none() | times),
    )
    expected = [
        record
        for record in filter_by_timestamp(everything, bounds.from_ms, bounds.until_ms)
        if bounds.first_offset <= record.offset < bounds.end_offset
    ]
    targets, walked = _merge(raw, bounds, merge_bytes=merge_bytes, stamp=stamp)
    headers = [header for _, header in walk(raw)]
    assert walked == (len(raw), len(headers), len(everything), headers[-1].last_offset)
    assert _source_offsets(targets) == [record.offset for record in expected]
    done = 0
    for target in targets:
        part = expected[done : done + target.record_count]
        done += target.record_count
        header = read_header(target.data)
        # What passed unchanged keeps its producer, offsets and transaction until it is sealed.
        if target.reencoded:
            assert not header.attributes & DROPPED_BITS
            assert (header.base_offset, header.producer_id, header.base_timestamp) == (
                0,
                -1,
                part[0].timestamp,
            )
        assert header.offset_count == header.record_count == target.record_count
        assert header.max_timestamp == target.max_timestamp == max(r.timestamp for r in part)
        assert crc_is_valid(target.data, 0, header)
        assert all(first + count < following for (first, count), (following, _) in pairwise(target.runs))
        stamped = [_stamped(record, stamp) for record in part]
        first = header.base_offset
        renumbered = [replace(record, offset=first + place) for place, record in enumerate(stamped)]
        assert decode_batch(target.data) == renumbered
        assert [_wrapped(record) for record in seen_by_plain_decoder(bytes(target.data))] == renumbered
    again, _ = _merge(raw, bounds, merge_bytes=merge_bytes, stamp=stamp)
    assert [bytes(target.data) for target in again] == [bytes(target.data) for target in targets]


@given(segment=segments(), stamp=st.sampled_from(STAMPS), max_batch_bytes=st.sampled_from([1 << 30, 400]))
def test_converting_one_by_one_gives_the_same_records(
    segment: tuple[bytes, list[Record]], stamp: Stamp | None, max_batch_bytes: int
) -> None:
    """Tests that merged and unmerged restores hold the same records, too large batches included.

    It matters because whether batches are merged is decided by their average size alone.
    A record must not look different because its neighbours are small.
    """
    raw, everything = segment
    if max_batch_bytes < 1 << 30 and any(
        len(encode_batch([_stamped(record, stamp)], codec=codec)) > max_batch_bytes
        for record in everything
        for codec in Codec
    ):
        return
    view = memoryview(bytearray(raw))
    batches = [(view[at : at + header.size], header) for at, header in walk(view)]
    single = list(convert(batches, ALL, max_batch_bytes=max_batch_bytes, stamp=stamp))
    merged, _ = _merge(raw, max_batch_bytes=max_batch_bytes, stamp=stamp)
    assert all(target.size <= max_batch_bytes for target in merged)
    assert _source_offsets(single) == _source_offsets(merged)

    def contents(targets: Sequence[TargetBatch]) -> list[Record]:
        return [replace(record, offset=0) for target in targets for record in decode_batch(target.data)]

    assert contents(single) == contents(merged)


def _single(count: int, *, codec: Codec = Codec.NONE, first: int = 0, size: int = 100) -> bytes:
    return b"".join(
        encode_batch(
            [Record(offset=offset, timestamp=1000 + offset, key=b"k", value=b"v" * size)], codec=codec
        )
        for offset in range(first, first + count)
    )


def test_single_record_batches_become_few() -> None:
    """Tests 20,000 batches of one record: some hundred kilobytes each, no run of offsets torn apart.

    It matters because a request for each record would make the restore take days.
    Limits read wrongly would leave them single, or make batches that a target refuses.
    """
    raw = _single(20_000)
    targets, _ = _merge(raw)
    assert 8 <= len(targets) <= 12
    assert all(target.runs == ((target.first_source_offset, target.record_count),) for target in targets)
    assert max(target.size for target in targets) < 300_000
    targets, _ = _merge(raw, merge_bytes=10_000)
    assert max(target.size for target in targets) < 10_100
    tiny = _single(20_000, size=0)
    assert max(target.record_count for target in _merge(tiny)[0]) == 8192


def test_only_equals_are_merged() -> None:
    """Tests neighbours of another codec or with another unknown bit: they stay apart, in order.

    It matters because one batch has one codec, and bits that we do not know may mean something later.
    Merged all the same, half of the records would change how they are stored.
    """
    strange = b"".join(
        plain.encode_batch([plain.NewRecord(b"v", timestamp=1)], base_offset=offset, attributes=0x80)
        for offset in (6, 7)
    )
    raw = _single(3) + _single(3, codec=Codec.ZSTD, first=3) + strange + _single(2, first=8)
    targets, _ = _merge(raw)
    assert [(read_header(t.data).attributes, t.record_count) for t in targets] == [
        (0, 3),
        (4, 3),
        (0x80, 2),
        (0, 2),
    ]


def test_a_large_batch_between_tiny_ones_passes_unchanged() -> None:
    """Tests a large batch and a lonely tiny one among tiny ones: both keep their own bytes, in their place.

    It matters because the fast path copies nothing and changes nothing.
    A large batch drawn into a group would be decoded for no gain, or overtaken by its neighbours.
    """
    large = encode_batch([Record(offset=3, timestamp=5, key=None, value=bytes(20_000))], codec=Codec.NONE)
    bomb = encode_batch([Record(offset=6, timestamp=5, key=None, value=bytes(100_000))], codec=Codec.ZSTD)
    raw = _single(3) + large + _single(2, first=4) + bomb + _single(1, first=7)
    targets, _ = _merge(raw)
    assert [(t.record_count, t.reencoded, t.first_source_offset) for t in targets] == [
        (3, True, 0),
        (1, False, 3),
        (2, True, 4),
        (1, False, 6),
        (1, False, 7),
    ]
    assert bytes(targets[1].data) == large


@pytest.mark.parametrize(
    ("batches", "records", "size", "expected"),
    [
        (1, 1, 100, False),
        (2, 2, 200, True),
        (1000, 16_000, 1000 * 8192, True),
        (1000, 16_001, 1000, False),
        (1000, 1000, 1000 * 8192 + 1, False),
    ],
)
def test_what_is_worth_merging(batches: int, records: int, size: int, expected: bool) -> None:
    """Tests the average sizes from which on batches are merged.

    It matters because merging costs CPU for each record, and a request costs it for each batch.
    Merging large batches would make the fast path slow for nothing.
    """
    assert worth_merging(batches=batches, records=records, size=size) == expected


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4])
@pytest.mark.parametrize("kind", ["crc", "order", "cut", "count", "control", "magic", "partial"])
def test_damage_is_found_and_named(codec: Codec, kind: str) -> None:
    """Tests flaws of one batch among sound ones: an error that names its offset, or a walk that ends early.

    It matters because merged records carry no checksum of their own any more.
    A flaw passed over here would get a fresh, valid checksum.
    """
    flawed = bytearray(encode_batch([Record(offset=2, timestamp=1, key=b"k", value=b"v" * 50)], codec=codec))
    if kind == "crc":
        flawed[-1] ^= 1
    elif kind == "order":
        flawed[0:8] = (1).to_bytes(8, "big")
    elif kind == "cut":
        inner = compress(codec, b"\x7e" + b"\0" * 40)
        flawed[61:] = inner
        flawed[8:12] = (len(flawed) - 12).to_bytes(4, "big")
        flawed = bytearray(plain.with_right_crc(bytes(flawed)))
    elif kind == "count":
        flawed[57:61] = (2).to_bytes(4, "big")
        flawed[23:27] = (1).to_bytes(4, "big")
        flawed = bytearray(plain.with_right_crc(bytes(flawed)))
    elif kind == "control":
        flawed[22] |= 0x20
        flawed = bytearray(plain.with_right_crc(bytes(flawed)))
    elif kind == "magic":
        flawed[16] = 1
    elif kind == "partial":
        _, walked = _merge(_single(2, codec=codec) + bytes(flawed[:-1]))
        assert (walked.size, walked.batches) == (len(_single(2, codec=codec)), 2)
        return
    after = _single(2, codec=codec, first=3)
    with pytest.raises(DamagedError, match="offset 2" if kind != "order" else "offset 1 follows offset 1"):
        _merge(_single(2, codec=codec) + bytes(flawed) + after)


@given(segment=segments(), data=st.data())
def test_a_second_restore_replaces_its_headers(
    segment: tuple[bytes, list[Record]], data: st.DataObject
) -> None:
    """Tests segments whose records carry the headers of an earlier restore, twice and null among them.

    It matters because restores are restored again.
    Two such headers would leave readers to guess which one counts.
    """
    raw, _ = segment
    names = [b"x-original-offset", b"x-original-timestamp", b"x-original-offse", b"other"]
    own = data.draw(
        st.lists(st.tuples(st.sampled_from(names), st.none() | st.binary(max_size=3)), max_size=5)
    )
    records = [replace(r, headers=tuple(own), offset=i) for i, r in enumerate(decode_batch(raw))]
    stamp = data.draw(st.sampled_from(STAMPS[1:]))
    targets, _ = _merge(encode_batch(records), stamp=stamp)
    seen = [record for target in targets for record in decode_batch(target.data)]
    assert [record.headers for record in seen] == [_stamped(record, stamp).headers for record in records]


@pytest.mark.parametrize(
    "rest",
    [b"\x01\x01\x02", b"\x01\x01\x02\x04ab", b"\x01\x01\x02\x02a\x08b", b"\x01\x01\x00\x00", b"\x01\x05"],
)
def test_garbled_headers_are_damage(rest: bytes) -> None:
    """Tests records whose headers are cut off, or followed by something, where a header is to be added.

    It matters because this is the one place where a restore reads keys, values and headers.
    Garbage would be sealed into a sound batch.
    """
    with pytest.raises(DamagedError):
        Stamp(True, True).apply(rest, 0, len(rest), offset=1, timestamp=2)
