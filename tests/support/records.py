"""A slow, plain decoder and encoder of record batches (magic 2), from the Kafka protocol documentation.

Independent on purpose: it shares no line with `kafka_backup`, so that the two can only agree by both being
right.

A batch, big-endian: base offset i64, length i32 of what follows, partition leader epoch i32, magic i8,
CRC-32C u32 of what follows, attributes i16, last offset delta i32, base timestamp i64, max timestamp i64,
producer id i64, producer epoch i16, base sequence i32, number of records i32, records (compressed together).
A record: varint length of what follows, attributes i8, varint timestamp delta, varint offset delta, varint
key length (-1: null), key, varint value length (-1: null), value, varint number of headers, headers: varint
key length, key, varint value length (-1: null), value. Varints are zigzag.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import cramjam
import crc32c
import lz4.frame
import zstandard

CREATE_TIME, LOG_APPEND_TIME = 1, 2  # confluent-kafka's numbers

Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]
CODECS: tuple[Codec, ...] = ("none", "gzip", "snappy", "lz4", "zstd")

Headers = list[tuple[bytes, bytes | None]]

_HEADER = struct.Struct(">qiibIhiqqqhii")
_CRC_STARTS = 21  # at the attributes


class Record(NamedTuple):
    """A record as a reader gets it. Milliseconds; the header keys are bytes."""

    offset: int
    timestamp_type: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True)
class NewRecord:
    """A record to write. `timestamp` None: the time of writing."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp: int | None = None
    offset_delta: int | None = None
    """For hand-made batches with gaps; None: one more than the record before."""


@dataclass(frozen=True)
class Batch:
    """A decoded record batch; `raw` is the whole of it."""

    base_offset: int
    partition_leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int
    raw: bytes = field(repr=False)

    @property
    def codec(self) -> Codec:
        """Compression of the records."""
        return CODECS[self.attributes & 7]

    @property
    def timestamp_type(self) -> int:
        """CREATE_TIME or LOG_APPEND_TIME."""
        return LOG_APPEND_TIME if self.attributes & 8 else CREATE_TIME

    @property
    def is_transactional(self) -> bool:
        """Part of a transaction."""
        return bool(self.attributes & 16)

    @property
    def is_control(self) -> bool:
        """A transaction marker, or another record that is not data."""
        return bool(self.attributes & 32)

    @property
    def has_delete_horizon(self) -> bool:
        """Then the base timestamp is not a record's time, but when tombstones may go."""
        return bool(self.attributes & 64)

    @property
    def crc_is_right(self) -> bool:
        """Whether the CRC-32C fits the bytes."""
        return int(crc32c.crc32c(self.raw[_CRC_STARTS:])) == self.crc

    @property
    def last_offset(self) -> int:
        """Offset of the last record that was in it when it was written."""
        return self.base_offset + self.last_offset_delta

    def records(self) -> list[Record]:
        """The records, decompressed and decoded."""
        data = _decompress(self.codec, self.raw[_HEADER.size :])
        reader = _Reader(data)
        records = [self._record(reader) for _ in range(self.count)]
        if reader.at != len(data):
            raise ValueError(f"{len(data) - reader.at} bytes left after the last record")
        return records

    def _record(self, reader: "_Reader") -> Record:
        length = reader.varint()
        end = reader.at + length
        reader.take(1)  # attributes: none are defined
        timestamp = self.base_timestamp + reader.varint()
        offset = self.base_offset + reader.varint()
        key, value = reader.nullable(), reader.nullable()
        headers: Headers = []
        for _ in range(reader.varint()):
            header_key = reader.nullable()
            if header_key is None:
                raise ValueError("a header key cannot be null")
            headers.append((header_key, reader.nullable()))
        if reader.at != end:
            raise ValueError(f"record at offset {offset} should end at byte {end}, ends at {reader.at}")
        if self.timestamp_type == LOG_APPEND_TIME:
            timestamp = self.max_timestamp
        return Record(offset, self.timestamp_type, timestamp, key, value, headers)


def decode_batches(data: bytes, *, partial_end: bool = True) -> Iterator[Batch]:
    """The batches in raw fetched bytes, or in a `.log` file.

    Args:
        data: Whole batches, one after the other.
        partial_end: A fetch may end inside a batch, which is then left out; False: that is a ValueError.
    """
    at = 0
    while at < len(data):
        if at + 12 > len(data) or at + 12 + (size := struct.unpack_from(">i", data, at + 8)[0]) > len(data):
            if partial_end:
                return
            raise ValueError(f"the batch at byte {at} is cut short")
        raw = bytes(data[at : at + 12 + size])
        base, _size, epoch, magic, crc, *rest = _HEADER.unpack_from(raw)
        if magic != 2:
            raise ValueError(f"the batch at byte {at} has magic {magic}")
        yield Batch(base, epoch, magic, crc, *rest, raw=raw)
        at += 12 + size


def decode_records(
    data: bytes, *, aborted: Sequence[tuple[int, int]] = (), keep_control: bool = False
) -> Iterator[Record]:
    """The records in raw bytes, control records and those of aborted transactions left out.

    Args:
        data: Whole batches.
        aborted: `(producer id, first offset)` of aborted transactions, as a fetch response lists them.
        keep_control: Also transaction markers.
    """
    pending = sorted(aborted, key=lambda each: each[1])
    aborting: set[int] = set()
    for batch in decode_batches(data):
        while pending and pending[0][1] <= batch.last_offset:
            aborting.add(pending.pop(0)[0])
        if batch.is_control:
            aborting.discard(batch.producer_id)
            if keep_control:
                yield from batch.records()
        elif not (batch.is_transactional and batch.producer_id in aborting):
            yield from batch.records()


def encode_batch(
    records: Sequence[NewRecord],
    *,
    base_offset: int = 0,
    codec: Codec = "none",
    attributes: int = 0,
    partition_leader_epoch: int = -1,
    base_timestamp: int | None = None,
    max_timestamp: int | None = None,
    last_offset_delta: int | None = None,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
) -> bytes:
    """One record batch, with everything in it that its fields can say.

    Args:
        records: Their timestamps must be given. May be empty, as compaction leaves batches behind.
        base_offset: Offset of the first record (if its delta is 0).
        codec: Compression of the records.
        attributes: Other bits: 8 log append time, 16 transactional, 32 control, 64 delete horizon.
        partition_leader_epoch: -1 in what a producer sends.
        base_timestamp: None: the first record's, as producers do.
        max_timestamp: None: the greatest of the records'.
        last_offset_delta: None: the last record's.
        producer_id: Of an idempotent producer.
        producer_epoch: Of an idempotent producer.
        base_sequence: Of an idempotent producer.
    """
    times = [_given(record.timestamp) for record in records]
    base = base_timestamp if base_timestamp is not None else times[0] if times else -1
    encoded, delta = bytearray(), -1
    for record, time in zip(records, times, strict=True):
        delta = record.offset_delta if record.offset_delta is not None else delta + 1
        body = b"\0" + _varint(time - base) + _varint(delta) + _nullable(record.key) + _nullable(record.value)
        body += _varint(len(record.headers))
        for key, value in record.headers:
            body += _nullable(key) + _nullable(value)
        encoded += _varint(len(body)) + body
    after_crc = struct.pack(
        ">hiqqqhii",
        attributes | CODECS.index(codec),
        last_offset_delta if last_offset_delta is not None else max(delta, 0),
        base,
        max_timestamp if max_timestamp is not None else max(times, default=-1),
        producer_id,
        producer_epoch,
        base_sequence,
        len(records),
    ) + _compress(codec, bytes(encoded))
    crc = crc32c.crc32c(after_crc)
    return struct.pack(">qiibI", base_offset, 9 + len(after_crc), partition_leader_epoch, 2, crc) + after_crc


def with_right_crc(raw: bytes) -> bytes:
    """The batch with its CRC made right again, after a test has changed some byte of it."""
    return raw[:17] + struct.pack(">I", crc32c.crc32c(raw[_CRC_STARTS:])) + raw[_CRC_STARTS:]


def with_raw_snappy(raw: bytes) -> bytes:
    """An uncompressed batch, compressed by snappy without snappy-java's frames, as some clients do it."""
    packed = bytes(cramjam.snappy.compress_raw(raw[_HEADER.size :]))
    header = bytearray(raw[: _HEADER.size])
    struct.pack_into(">i", header, 8, _HEADER.size - 12 + len(packed))
    struct.pack_into(">h", header, _CRC_STARTS, CODECS.index("snappy"))
    return with_right_crc(bytes(header) + packed)


def renumbered(records: Sequence[Record]) -> list[Record]:
    """The same records at the offsets 0, 1, 2 ...: what a restore makes of gaps."""
    return [record._replace(offset=offset) for offset, record in enumerate(records)]


def _given(timestamp: int | None) -> int:
    if timestamp is None:
        raise ValueError("a hand-made batch needs the timestamp of each record")
    return timestamp


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise ValueError(f"{size} bytes wanted at byte {self.at} of {len(self.data)}")
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number // 2 if number % 2 == 0 else -(number // 2) - 1
            shift += 7
            if shift > 63:
                raise ValueError(f"a varint that does not end, at byte {self.at}")

    def nullable(self) -> bytes | None:
        size = self.varint()
        return None if size == -1 else self.take(size)


def _varint(number: int) -> bytes:
    zigzag = number * 2 if number >= 0 else -number * 2 - 1
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def _nullable(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


_XERIAL = b"\x82SNAPPY\0"  # snappy-java's own frames, which Kafka's Java clients write


def _decompress(codec: Codec, data: bytes) -> bytes:
    match codec:
        case "none":
            return data
        case "gzip":
            return zlib.decompress(data, wbits=31)
        case "snappy" if data.startswith(_XERIAL):
            out, at = bytearray(), 16
            while at < len(data):
                (size,) = struct.unpack_from(">i", data, at)
                out += bytes(cramjam.snappy.decompress_raw(data[at + 4 : at + 4 + size]))
                at += 4 + size
            return bytes(out)
        case "snappy":
            return bytes(cramjam.snappy.decompress_raw(data))
        case "lz4":
            return bytes(lz4.frame.decompress(data))
        case "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def _compress(codec: Codec, data: bytes) -> bytes:
    match codec:
        case "none":
            return data
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "snappy":
            packed = bytes(cramjam.snappy.compress_raw(data))
            return _XERIAL + struct.pack(">ii", 1, 1) + struct.pack(">i", len(packed)) + packed
        case "lz4":
            # The broker refuses blocks that depend on each other.
            return bytes(lz4.frame.compress(data, block_linked=False))
        case "zstd":
            return zstandard.ZstdCompressor().compress(data)
