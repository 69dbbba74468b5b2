"""What a backup rests on: records, timestamps, compression, order."""

from __future__ import annotations

import random

import pytest

from kafka_backup.errors import DamagedError
from kafka_backup.records.batch import read_header, walk
from kafka_backup.records.codec import Record, decode_batch, decode_record, encode_batch, encode_record
from kafka_backup.records.compression import compress_zstd, decompress_zstd
from kafka_backup.records.time_filter import filter_by_timestamp


def _record(*, offset: int = 0, timestamp: int = 1_672_531_200_000) -> Record:
    return Record(offset=offset, timestamp=timestamp, key=b"key", value=b"value")


def _round_trip(record: Record) -> Record:
    return decode_record(encode_record(record), base_offset=record.offset, base_timestamp=record.timestamp)


def test_encode_decode_kafka_record_preserves_all_fields() -> None:
    """Tests one record with every field set, there and back.

    It matters because a backup that changes any field is not a backup.
    Milliseconds, header order or an offset beyond 32 bits could be lost on the way.
    """
    original = Record(
        offset=12345,
        timestamp=1_672_531_200_123,
        key=b"order-123",
        value=b"{'id':123,'amount':99.99}",
        headers=((b"x-original-offset", b"12345"), (b"trace", b"\x00\xff"), (b"trace", None), (b"", b"")),
    )
    decoded = _round_trip(original)
    assert decoded.offset == original.offset
    assert decoded.timestamp == original.timestamp
    assert decoded.key == original.key
    assert decoded.value == original.value
    assert decoded.headers == original.headers


def test_encode_record_with_null_key_preserves_semantics() -> None:
    """Tests a null key and a null value, next to empty ones.

    It matters because null decides partitioning and compaction: a null value deletes, an empty one does not.
    Null that becomes empty would bring deleted things back to life.
    """
    for key, value in ((None, b"event_data"), (b"", None), (None, None), (b"", b"")):
        record = Record(offset=100, timestamp=1_672_531_200_000, key=key, value=value)
        assert _round_trip(record).key == key
        assert _round_trip(record).value == value


def test_encode_record_with_large_headers_does_not_truncate() -> None:
    """Tests a header value of 100 KiB.

    It matters because Kafka sets no limit on a header but the batch's.
    A length kept in too few bits would cut it.
    """
    large = random.Random(1).randbytes(1024 * 100)
    record = Record(
        offset=200,
        timestamp=1_672_531_200_000,
        key=None,
        value=b"log_entry",
        headers=((b"big-header", large),),
    )
    assert _round_trip(record).headers == ((b"big-header", large),)


def test_timestamp_mapping_preserves_millisecond_precision() -> None:
    """Tests timestamps one millisecond apart, alone and together in a batch.

    It matters because point-in-time recovery is asked for in milliseconds.
    Rounding to seconds would put records on the wrong side of the moment.
    """
    timestamps = [1_672_531_200_001, 1_672_531_200_002, 1_672_531_200_003, -1, 4_102_444_800_999]
    for timestamp in timestamps:
        assert _round_trip(_record(timestamp=timestamp)).timestamp == timestamp
    batch = encode_batch([_record(offset=i, timestamp=t) for i, t in enumerate(timestamps)])
    assert [record.timestamp for record in decode_batch(batch)] == timestamps


def test_timestamp_filtering_matches_boundary_conditions() -> None:
    """Tests records just inside and just outside both ends.

    It matters because "until 12:00" must include 12:00:00.000, as in standard point-in-time recovery.
    An end left out would lose the very record that was asked for.
    """
    records = [_record(timestamp=timestamp) for timestamp in (1000, 1001, 1999, 2000, 2001)]
    filtered = filter_by_timestamp(records, 1000, 2000)
    assert [record.timestamp for record in filtered] == [1000, 1001, 1999, 2000]


def test_timestamp_filtering_handles_no_matches() -> None:
    """Tests a span in which there is nothing.

    It matters because an empty answer is an answer.
    An error, or everything, would be the wrong one.
    """
    records = [_record(timestamp=1000), _record(timestamp=2000)]
    assert filter_by_timestamp(records, 3000, 4000) == []


def test_compression_zstd_roundtrip_small_message() -> None:
    """Tests some bytes there and back.

    It matters because segments are stored as zstd.
    What does not come back is lost.
    """
    data = b"small message"
    assert decompress_zstd(compress_zstd(data)) == data


def test_compression_zstd_roundtrip_large_message() -> None:
    """Tests 10 MiB there and back.

    It matters because a segment has up to 32 MiB.
    Anything that works in one block only would stop at 128 KiB.
    """
    data = bytes(1024 * 1024 * 10)
    assert decompress_zstd(compress_zstd(data)) == data


def test_compression_zstd_compresses_repetitive_data() -> None:
    """Tests that repetition shrinks to less than a tenth.

    It matters because storage is paid by size.
    A level or a context set wrong would store everything in full.
    """
    repetitive = b"aaaa" * 10_000
    assert len(compress_zstd(repetitive)) < len(repetitive) / 10


def test_compression_zstd_does_not_compress_random_data() -> None:
    """Tests that random bytes grow by a few bytes at most.

    It matters because producers often compress already.
    A codec that blows such data up would cost more than it saves.
    """
    noise = random.Random(2).randbytes(1024)
    assert len(compress_zstd(noise)) <= len(noise) + 100


def test_decompression_corrupted_data_returns_error() -> None:
    """Tests bytes that are not zstd, and zstd with a flipped bit.

    It matters because damage must be seen before a record is restored.
    Partial output taken for whole would be silent loss.
    """
    with pytest.raises(DamagedError):
        decompress_zstd(b"not valid compressed data")
    packed = bytearray(compress_zstd(b"valid data " * 100))
    packed[-6] ^= 1
    with pytest.raises(DamagedError):
        decompress_zstd(packed)


def test_records_maintain_offset_order_within_partition() -> None:
    """Tests that batches one after the other give their records in order.

    It matters because order within a partition is what Kafka promises.
    Consumers that rely on it would apply changes backwards.
    """
    log = b"".join(
        encode_batch([_record(offset=offset), _record(offset=offset + 1)]) for offset in (100, 102, 104)
    )
    offsets = [record.offset for position, _ in walk(log) for record in decode_batch(log, position)]
    assert offsets == [100, 101, 102, 103, 104, 105]


def test_offset_gaps_are_preserved() -> None:
    """Tests that the offsets of a compacted batch stay as they are.

    It matters because committed positions point at them, and the ledger counts the gaps.
    Renumbered at backup, every position after a gap would point at another record.
    """
    batch = encode_batch([_record(offset=offset) for offset in (100, 105, 110)])
    assert [record.offset for record in decode_batch(batch)] == [100, 105, 110]
    header = read_header(batch)
    assert (header.record_count, header.offset_count, header.is_gapped) == (3, 11, True)
