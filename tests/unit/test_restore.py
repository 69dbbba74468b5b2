"""What a restore rests on: time windows, segments, order, original offsets.

A segment here is what it is in the repository: record batches one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from kafka_backup.records.batch import walk
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.records.compression import Codec, compress_zstd, decompress_zstd
from kafka_backup.records.convert import Bounds, TargetBatch, convert
from kafka_backup.records.headers import Stamp


def _record(*, offset: int = 0, timestamp: int = 1000, value: bytes = b"value") -> Record:
    return Record(offset=offset, timestamp=timestamp, key=b"key", value=value)


def _segments(*timestamps: Sequence[int], codec: Codec = Codec.NONE) -> list[bytes]:
    """One segment of one batch for each list of timestamps; offsets go on from one to the next."""
    segments = []
    offset = 0
    for times in timestamps:
        records = [_record(offset=offset + i, timestamp=t) for i, t in enumerate(times)]
        segments.append(encode_batch(records, codec=codec))
        offset += len(times)
    return segments


def _restored(segments: Sequence[bytes], from_ms: int | None, until_ms: int | None) -> Iterator[TargetBatch]:
    bounds = Bounds(first_offset=0, end_offset=2**63 - 1, from_ms=from_ms, until_ms=until_ms)
    batches = (
        (memoryview(bytearray(segment))[position : position + header.size], header)
        for segment in segments
        for position, header in walk(segment)
    )
    return convert(batches, bounds, max_batch_bytes=1_048_588)


def _timestamps(segments: Sequence[bytes], from_ms: int | None, until_ms: int | None) -> list[int]:
    targets = _restored(segments, from_ms, until_ms)
    return [record.timestamp for target in targets for record in decode_batch(target.data)]


every_codec = pytest.mark.parametrize("codec", Codec)


@every_codec
def test_restore_filters_messages_before_start_time(codec: Codec) -> None:
    """Tests a start between two segments, with an end after both.

    It matters because a restore from a moment must not bring back what was before it.
    Judged by segment alone, a boundary inside one would be missed.
    """
    segments = _segments([100, 200, 300], [400, 500, 600], codec=codec)
    assert _timestamps(segments, 350, 700) == [400, 500, 600]
    assert _timestamps(segments, 250, 700) == [300, 400, 500, 600]


@every_codec
def test_restore_filters_messages_after_end_time(codec: Codec) -> None:
    """Tests an end between two segments, and one inside the first.

    It matters because "as it was before the mistake" is the commonest restore.
    One record too many is the mistake itself.
    """
    segments = _segments([100, 200, 300], [400, 500, 600], codec=codec)
    assert _timestamps(segments, 0, 350) == [100, 200, 300]
    assert _timestamps(segments, None, 250) == [100, 200]


@every_codec
def test_restore_time_filter_boundary_inclusive_on_both_ends(codec: Codec) -> None:
    """Tests records exactly on both ends, and one just after.

    It matters because both ends are inclusive, as users of point-in-time recovery expect.
    A strict comparison would drop the record that was asked for.
    """
    assert _timestamps(_segments([1000, 1001, 1999, 2000, 2001], codec=codec), 1000, 2000) == [
        1000,
        1001,
        1999,
        2000,
    ]


def test_restore_all_messages_within_window() -> None:
    """Tests a window that holds everything.

    It matters because a window must never cost records that are inside it.
    Batches wrongly judged by their header would be missing.
    """
    assert _timestamps(_segments([100], [200], [300]), 50, 350) == [100, 200, 300]


def test_restore_keeps_records_older_than_the_first_of_their_batch() -> None:
    """Tests a batch whose first record is not its oldest.

    It matters because producers set timestamps freely, so batches are not sorted by time.
    The base timestamp taken for a minimum would drop the older records.
    """
    assert _timestamps(_segments([500, 100, 900, 300]), 50, 350) == [100, 300]


def test_restore_with_timestamp_before_all_messages() -> None:
    """Tests a window that ends before the first record.

    It matters because the answer is an empty topic, not an error and not everything.
    An upper bound ignored would restore all.
    """
    assert _timestamps(_segments([1000, 2000, 3000]), 0, 500) == []


def test_restore_with_timestamp_after_all_messages() -> None:
    """Tests a window that begins after the last record.

    It matters because the answer is an empty topic, and no batch may be sent for it.
    A batch without records would be refused by the broker.
    """
    assert list(_restored(_segments([1000, 2000, 3000]), 4000, 5000)) == []


def test_decompress_segment_reads_all_messages() -> None:
    """Tests a compressed segment of several batches, read back record by record.

    It matters because this is the whole way from the store to a record.
    A batch lost at a boundary would be lost for good.
    """
    records = [_record(offset=offset) for offset in range(3)]
    log = encode_batch(records[:2]) + encode_batch(records[2:], codec=Codec.LZ4)
    stored = compress_zstd(log)
    read = decompress_zstd(stored, limit=len(log))
    assert [record for position, _ in walk(read) for record in decode_batch(read, position)] == records


@every_codec
def test_decompress_segment_with_large_messages(codec: Codec) -> None:
    """Tests a record of 1 MiB in a compressed segment, for each codec of the batch inside.

    It matters because large messages are split over many blocks of every codec.
    One block alone would come back.
    """
    record = _record(value=bytes(1024 * 1024))
    segment = encode_batch([record], codec=codec)
    (read,) = decode_batch(decompress_zstd(compress_zstd(segment), limit=len(segment)))
    assert read.value is not None
    assert len(read.value) == 1024 * 1024


def test_decompress_empty_segment_returns_empty_vec() -> None:
    """Tests a segment without a byte, plain and compressed.

    It matters because a partition can be empty.
    Nothing must stay nothing: neither an error nor a record.
    """
    assert list(walk(b"")) == []
    assert list(walk(decompress_zstd(compress_zstd(b""), limit=0))) == []


def test_restored_messages_maintain_partition_order() -> None:
    """Tests that records of consecutive segments come out in their order.

    It matters because order within a partition is what Kafka promises.
    Batches converted out of turn would swap records.
    """
    segments = [
        encode_batch([_record(offset=offset) for offset in offsets])
        for offsets in ((100, 101, 102), (103, 104))
    ]
    runs = [run for target in _restored(segments, None, None) for run in target.runs]
    assert runs == [(100, 3), (103, 2)]


def _stamped(record: Record) -> Record:
    """The record as a restore that adds the header writes it."""
    raw = bytearray(encode_batch([record]))
    bounds = Bounds(first_offset=0, end_offset=2**63 - 1)
    batches = [(memoryview(raw), header) for _, header in walk(raw)]
    (target,) = convert(batches, bounds, max_batch_bytes=1 << 20, stamp=Stamp(offset=True, timestamp=False))
    (restored,) = decode_batch(target.data)
    return restored


def test_apply_offset_mapping_to_record_header() -> None:
    """Tests that the original offset is put into its header, in decimal digits.

    It matters because users who ask for it find the source record by it.
    Another format or offset would lead them to another record.
    """
    assert dict(_stamped(_record(offset=12345)).headers) == {b"x-original-offset": b"12345"}


def test_offset_mapping_preserves_existing_headers() -> None:
    """Tests that other headers stay, in order, duplicates included.

    It matters because headers carry traces, types and routing.
    A dictionary in between would drop duplicates and order.
    """
    headers = ((b"existing-header", b"value"), (b"other", None), (b"existing-header", b""))
    record = Record(offset=7, timestamp=1, key=None, value=None, headers=headers)
    assert _stamped(record).headers == (*headers, (b"x-original-offset", b"7"))
