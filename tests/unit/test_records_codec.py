"""The exact record codec, against the tests' independent one."""

from __future__ import annotations

import struct
from dataclasses import replace

import crc32c
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.records.batch import read_header
from kafka_backup.records.codec import (
    ABORT,
    COMMIT,
    NO_CONTROL_RECORD,
    Record,
    decode_batch,
    decode_record,
    encode_batch,
    encode_record,
    read_control_type,
)
from kafka_backup.records.compression import Codec
from kafka_backup.records.varint import INT32_BITS, INT64_BITS, encode_varint, read_varint, wrap_int64
from tests.support import records as plain
from tests.unit.strategies import (
    INT64_MAX,
    INT64_MIN,
    codecs,
    record_lists,
    seen_by_plain_decoder,
    stored_batches,
)

RECORD = Record(offset=7, timestamp=1000, key=b"k", value=b"v", headers=((b"h", None),))


@given(number=st.integers(INT64_MIN, INT64_MAX), before=st.binary(max_size=3), after=st.binary(max_size=3))
@example(number=INT64_MIN, before=b"", after=b"")
@example(number=INT64_MAX, before=b"", after=b"")
def test_varint_round_trip(number: int, before: bytes, after: bytes) -> None:
    """Tests that every 64-bit number comes back from its varint, wherever it stands.

    It matters because lengths, offsets and times of all records are such numbers.
    A sign or a carry lost would move every field behind it.
    """
    encoded = encode_varint(number)
    assert read_varint(before + encoded + after, len(before), INT64_BITS) == (number, len(before + encoded))
    if -(2**31) <= number < 2**31:
        assert read_varint(encoded, 0, INT32_BITS)[0] == number
    else:
        with pytest.raises(DamagedError, match="32 bits"):
            read_varint(encoded, 0, INT32_BITS)


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (b"", 32),
        (b"\x80", 32),
        (b"\xff\xff\xff\xff\x10", 32),
        (b"\x80\x80\x80\x80\x80\x00", 32),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 64),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 64),
    ],
)
def test_varint_that_is_cut_off_or_too_wide_is_damage(data: bytes, bits: int) -> None:
    """Tests that a number without an end, or wider than its type, is refused.

    It matters because damaged bytes most often show as such numbers first.
    Python's unbounded integers would take them without a word, and seek to nowhere.
    """
    with pytest.raises(DamagedError):
        read_varint(data, 0, bits)


def test_varint_longer_than_need_be_is_read_as_kafka_reads_it() -> None:
    """Tests that a padded zero is zero: Java's reader allows it.

    It matters because a consumer could read such a record, so a restore must, too.
    A stricter reader than Kafka's would call good data damaged.
    """
    assert read_varint(b"\x80\x00", 0) == (0, 2)


@given(value=st.integers(-(2**66), 2**66))
def test_wrap_int64_is_two_complement(value: int) -> None:
    """Tests the sum of two Java longs against struct's idea of 64 bits.

    It matters because timestamps far apart have a delta that overflows, in Java as well.
    Without wrapping a time of the year 292 million would fail a whole restore.
    """
    assert wrap_int64(value) == struct.unpack(">q", struct.pack(">Q", value % 2**64))[0]


@given(
    records=record_lists(min_size=1, max_size=1), offset=st.integers(0, 2**31 - 1), time=st.integers(-9, 9)
)
def test_record_round_trip(records: list[Record], offset: int, time: int) -> None:
    """Tests that one record comes back with every field, relative to any base.

    It matters because nulls, empties, duplicate headers and milliseconds are what other tools lose.
    A null key that becomes empty lands on another partition and defeats compaction.
    """
    (record,) = records
    bases = {
        "base_offset": max(0, record.offset - offset),
        "base_timestamp": wrap_int64(record.timestamp - time),
    }
    assert decode_record(encode_record(record, **bases), **bases) == record
    own = {"base_offset": record.offset, "base_timestamp": record.timestamp}
    assert encode_record(record) == encode_record(record, **own)


@given(batch=stored_batches())
def test_batch_round_trip(batch: tuple[bytes, list[Record]]) -> None:
    """Tests that a batch of any kind comes back record by record, gaps and far timestamps included.

    It matters because verification, the records command and the slow path trust this codec.
    A header flag mistaken would shift all timestamps, a gap closed all offsets.
    """
    raw, records = batch
    assert decode_batch(b"xyz" + raw + b"more", 3) == records
    assert decode_batch(bytearray(raw)) == decode_batch(memoryview(raw)) == records


# The plain decoder does not wrap times at 64 bits as Java does, so it is shown ordinary ones.
@given(records=record_lists(), codec=codecs)
def test_batch_is_read_alike_by_an_independent_decoder(records: list[Record], codec: Codec) -> None:
    """Tests our encoder against the tests' decoder, and the tests' encoder against our decoder.

    It matters because two halves by one author can share one mistake.
    A batch that only we can read is a backup that nobody else can open.
    """
    records = [replace(record, timestamp=record.timestamp % 2**42 - 1) for record in records]
    raw = encode_batch(records, codec=codec)
    assert seen_by_plain_decoder(raw) == records
    (batch,) = plain.decode_batches(raw, partial_end=False)
    assert batch.crc_is_right
    base = records[0].offset
    theirs = plain.encode_batch(
        [
            plain.NewRecord(r.value, r.key, list(r.headers), r.timestamp, offset_delta=r.offset - base)
            for r in records
        ],
        base_offset=base,
        codec=plain.CODECS[codec],
    )
    assert decode_batch(theirs) == records
    if codec is Codec.NONE:
        assert raw == theirs


def test_log_append_time_batch_shows_the_broker_time() -> None:
    """Tests that each record of a LogAppendTime batch has the header's maximum timestamp.

    It matters because that is what every consumer of the source saw.
    The producer's own times, still inside, would come out of a restore instead.
    """
    records = [replace(RECORD, offset=7 + i, timestamp=1000 + i) for i in range(3)]
    assert [r.timestamp for r in decode_batch(encode_batch(records, log_append_time=5555))] == [5555] * 3


def test_delete_horizon_is_the_base_of_the_times() -> None:
    """Tests that record times are right in a batch whose base timestamp is its delete horizon (KIP-534).

    It matters because compacted topics are full of such batches.
    The horizon mistaken for the first record's time would show records in the future.
    """
    records = [replace(RECORD, offset=7 + i, timestamp=1000 + i, value=None) for i in range(3)]
    raw = encode_batch(records, delete_horizon=999_999)
    assert read_header(raw).base_timestamp == 999_999
    assert decode_batch(raw) == records


def test_batch_emptied_by_compaction_has_no_records() -> None:
    """Tests that a batch with a header and nothing else is read as no records, whatever its codec bits say.

    It matters because compaction keeps such batches to remember a producer's last sequence number.
    Decompressing zero bytes would be an error, and good data would be called damaged.
    """
    raw = encode_batch([], base_offset=10, last_offset=12, codec=Codec.ZSTD)
    assert decode_batch(raw) == []
    assert read_header(raw).offset_count == 3


@pytest.mark.parametrize("codec", Codec)
def test_every_cut_and_every_flipped_byte_of_a_batch_is_damage(codec: Codec) -> None:
    """Tests that a batch cut at any byte, or with any covered byte changed, is refused by its base offset.

    It matters because a reader that guesses turns damage into wrong data.
    Half a record returned, or an IndexError, would reach the operator instead of the place.
    """
    raw = encode_batch([replace(RECORD, offset=7 + i) for i in range(3)], codec=codec)
    for size in range(61, len(raw)):
        with pytest.raises(DamagedError, match="offset 7 is damaged"):
            decode_batch(raw[:size])
    for position in range(21, len(raw)):
        with pytest.raises(DamagedError):
            decode_batch(raw[:position] + bytes([raw[position] ^ 0x55]) + raw[position + 1 :])


def _batch_of(body: bytes, *, count: int = 1, last_offset_delta: int | None = None) -> bytes:
    """A batch with a right checksum around any bytes."""
    after = struct.pack(
        ">hiqqqhii", 0, count - 1 if last_offset_delta is None else last_offset_delta, 0, 0, -1, -1, -1, count
    )
    after += body
    return struct.pack(">qiibI", 7, 9 + len(after), -1, 2, crc32c.crc32c(after)) + after


def _record_of(body: bytes) -> bytes:
    return encode_varint(len(body)) + body


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b"", 1),
        (_record_of(b"\0\0\0\1\1\0") + b"x", 1),
        (_record_of(b"\0\0\0\1\1\0") * 2, 1),
        (_record_of(b"\0\0\0\1\1\0") * 2, 2),
        (_record_of(b"\0\0\x02\1\1\0"), 1),
        (_record_of(b"\0\0\x01\1\1\0"), 1),
        (_record_of(b"\0\0\0\1\1\x01"), 1),
        (_record_of(b"\0\0\0\1\1\x02"), 1),
        (_record_of(b"\0\0\0\1\1\x02\1\1"), 1),
        (_record_of(b"\0\0\0\x03\1\0"), 1),
        (_record_of(b"\0\0\0\1\x20ab\0"), 1),
        (_record_of(b"\0\0\0\1\1\0\0"), 1),
        (b"\x08\0\0\0\1\1\0", 1),
        (b"\x40\0\0\0\1\1\0", 1),
        (b"\x01\0\0\0\1\1\0", 1),
    ],
    ids=[
        "no record",
        "a byte left over",
        "a record left over",
        "two records with one offset",
        "offset past the end",
        "negative offset delta",
        "negative header count",
        "a header missing",
        "a header without a name",
        "key length below null",
        "value past the end",
        "bytes left in the record",
        "length too short",
        "length too long",
        "negative length",
    ],
)
def test_inconsistent_records_are_damage(body: bytes, count: int) -> None:
    """Tests records that contradict themselves, under a valid checksum.

    It matters because a client's bug is stored by the broker with a checksum that fits.
    A lenient reader would shift every following record by some bytes.
    """
    with pytest.raises(DamagedError, match="offset 7 is damaged"):
        decode_batch(_batch_of(body, count=count))


def test_decode_record_refuses_bytes_left_over() -> None:
    """Tests that one record means one record.

    It matters because the caller hands over a slice it measured itself.
    A slice too long would hide that the lengths disagree.
    """
    with pytest.raises(DamagedError, match="1 bytes are left"):
        decode_record(encode_record(RECORD) + b"x", base_offset=7, base_timestamp=1000)


@pytest.mark.parametrize(
    ("offsets", "base", "last"),
    [
        ([], None, None),
        ([5, 5], None, None),
        ([6, 5], None, None),
        ([5], 6, None),
        ([5], None, 4),
        ([0, 2**31], None, None),
    ],
)
def test_encoder_refuses_offsets_that_no_batch_can_have(
    offsets: list[int], base: int | None, last: int | None
) -> None:
    """Tests that offsets which do not rise, lie outside the batch or span too far are refused.

    It matters because a broker takes an uncompressed batch with wrong inner offsets without a word.
    The log would then hold records that no consumer can find.
    """
    records = [replace(RECORD, offset=offset) for offset in offsets]
    with pytest.raises(ConfigurationError):
        encode_batch(records, base_offset=base, last_offset=last)


@pytest.mark.parametrize("kind", [ABORT, COMMIT, 2])
def test_control_type_is_read_from_the_key(kind: int) -> None:
    """Tests that a transaction marker's type is found.

    It matters because an abort marker ends the span of records to leave out.
    A commit taken for an abort would bring back records that were never committed.
    """
    marker = Record(offset=9, timestamp=1, key=struct.pack(">hh", 0, kind), value=b"\0\0\0\0\0\0")
    raw = encode_batch([marker], control=True, transactional=True, producer_id=4)
    assert read_control_type(raw, 0, read_header(raw)) == kind


def test_control_type_of_other_batches() -> None:
    """Tests an emptied control batch, a control batch without a readable key, and a data batch.

    It matters because compaction leaves the first, and the others mean damage or a bug.
    A type made up for them would abort or commit the wrong records.
    """
    empty = encode_batch([], base_offset=9, last_offset=9, control=True)
    assert read_control_type(empty, 0, read_header(empty)) == NO_CONTROL_RECORD
    bad = encode_batch([RECORD], control=True)
    with pytest.raises(DamagedError, match="no readable type"):
        read_control_type(bad, 0, read_header(bad))
    data = encode_batch([RECORD])
    with pytest.raises(DamagedError, match="not a control batch"):
        read_control_type(data, 0, read_header(data))
