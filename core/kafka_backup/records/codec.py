"""The full record codec: exact, strict and slow. Nothing on the fast path uses it.

Null and empty stay different everywhere, header keys are bytes, headers keep order and duplicates,
offsets and timestamps are 64-bit. Layout: ``org.apache.kafka.common.record.DefaultRecord``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import crc32c

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.records import Buffer
from kafka_backup.records.batch import (
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
    crc_is_valid,
    read_header,
)
from kafka_backup.records.compression import MAX_DECOMPRESSED_BYTES, Codec, compress, decompress
from kafka_backup.records.varint import INT64_BITS, encode_varint, read_varint, wrap_int64

ABORT = 0
COMMIT = 1
NO_CONTROL_RECORD = -1

_MAX_OFFSET_DELTA = 2**31 - 1
_NULL = encode_varint(-1)
_CONTROL_KEY = struct.Struct(">hh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record as consumers see it.

    Attributes:
        offset: absolute, 64-bit.
        timestamp: milliseconds since the epoch; -1 means none.
        key: None is not the same as empty.
        value: None is a tombstone, and not the same as empty.
        headers: in order, duplicates kept; keys are bytes because not all clients write UTF-8.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...] = ()


def encode_record(
    record: Record, *, base_offset: int | None = None, base_timestamp: int | None = None
) -> bytes:
    """Encodes one record, length first, as it stands in a batch.

    Args:
        record: what to encode.
        base_offset: the batch's; default the record's own.
        base_timestamp: the batch's (ms); default the record's own.
    """
    offset_delta = 0 if base_offset is None else record.offset - base_offset
    timestamp_delta = 0 if base_timestamp is None else wrap_int64(record.timestamp - base_timestamp)
    parts = [b"\x00", encode_varint(timestamp_delta), encode_varint(offset_delta)]
    for field in (record.key, record.value):
        _append_field(parts, field)
    parts.append(encode_varint(len(record.headers)))
    for name, value in record.headers:
        _append_field(parts, name)
        _append_field(parts, value)
    body = b"".join(parts)
    return encode_varint(len(body)) + body


def _append_field(parts: list[bytes], field: bytes | None) -> None:
    if field is None:
        parts.append(_NULL)
    else:
        parts.append(encode_varint(len(field)))
        parts.append(field)


def decode_record(data: Buffer, *, base_offset: int, base_timestamp: int) -> Record:
    """Decodes exactly one record, length first.

    Args:
        data: the record's bytes, nothing before or after it.
        base_offset: the batch's.
        base_timestamp: the batch's (ms).

    Raises:
        DamagedError: cut off, impossible, or followed by something else.
    """
    record, end = _decode_record(bytes(data), 0, base_offset, base_timestamp)
    if end != len(data):
        raise DamagedError(f"{len(data) - end} bytes are left after the record at offset {record.offset}")
    return record


def _decode_record(data: bytes, position: int, base_offset: int, base_timestamp: int) -> tuple[Record, int]:
    length, position = read_varint(data, position)
    end = position + length
    if length < 0 or end > len(data):
        raise DamagedError(f"a record of {length} bytes where {len(data) - position} are left")
    position += 1
    timestamp_delta, position = read_varint(data, position, INT64_BITS)
    offset_delta, position = read_varint(data, position)
    key, position = _read_field(data, position, end)
    value, position = _read_field(data, position, end)
    count, position = read_varint(data, position)
    if not 0 <= count <= end - position:
        raise DamagedError(f"a record with {count} headers in {end - position} bytes")
    headers = []
    for _ in range(count):
        name, position = _read_field(data, position, end)
        if name is None:
            raise DamagedError("a header without a name")
        content, position = _read_field(data, position, end)
        headers.append((name, content))
    if position != end:
        raise DamagedError(f"a record that ends at byte {position} instead of {end}")
    record = Record(
        offset=base_offset + offset_delta,
        timestamp=wrap_int64(base_timestamp + timestamp_delta),
        key=key,
        value=value,
        headers=tuple(headers),
    )
    return record, end


def _read_field(data: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    length, position = read_varint(data, position)
    if length == -1:
        return None, position
    if length < 0 or position + length > end:
        raise DamagedError(f"a field of {length} bytes where {end - position} are left")
    return data[position : position + length], position + length


def encode_batch(
    records: Sequence[Record],
    *,
    codec: Codec = Codec.NONE,
    base_offset: int | None = None,
    last_offset: int | None = None,
    log_append_time: int | None = None,
    delete_horizon: int | None = None,
    transactional: bool = False,
    control: bool = False,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    partition_leader_epoch: int = -1,
    level: int | None = None,
) -> bytes:
    """Encodes one whole batch with a valid checksum; offsets, gaps included, stay as they are.

    Args:
        records: in rising order of offsets. May be empty only if both offsets are given: such batches are
            what compaction leaves to remember a producer.
        codec: compression of the records.
        base_offset: the batch's; default the first record's. Compaction keeps it when that record goes.
        last_offset: the batch's (inclusive); default the last record's. Compaction keeps it, too.
        log_append_time: the broker's clock (ms) as every record's timestamp; sets the LogAppendTime bit.
        delete_horizon: sets that bit and is stored as base timestamp (ms, KIP-534).
        transactional: sets the transactional bit.
        control: sets the control bit.
        producer_id: -1 without.
        producer_epoch: -1 without.
        base_sequence: -1 without.
        partition_leader_epoch: -1 if unknown.
        level: as for ``compress``.

    Raises:
        ConfigurationError: offsets do not rise, are outside the batch, or span more than 31 bits.
    """
    if not records and (base_offset is None or last_offset is None):
        raise ConfigurationError("a batch without records needs its base and last offset")
    first = records[0].offset if base_offset is None else base_offset
    last = records[-1].offset if last_offset is None else last_offset
    if not 0 <= first <= last <= first + _MAX_OFFSET_DELTA:
        raise ConfigurationError(f"no batch can span the offsets {first} to {last}")
    base_timestamp = delete_horizon
    if base_timestamp is None:
        base_timestamp = records[0].timestamp if records else -1
    previous = first - 1
    parts = []
    for record in records:
        if not previous < record.offset <= last:
            raise ConfigurationError(
                f"offset {record.offset} after {previous} in a batch that ends at {last}"
            )
        previous = record.offset
        parts.append(encode_record(record, base_offset=first, base_timestamp=base_timestamp))
    max_timestamp = max((record.timestamp for record in records), default=-1)
    attributes = int(codec)
    if log_append_time is not None:
        max_timestamp = log_append_time
        attributes |= LOG_APPEND_TIME_BIT
    attributes |= TRANSACTIONAL_BIT if transactional else 0
    attributes |= CONTROL_BIT if control else 0
    attributes |= DELETE_HORIZON_BIT if delete_horizon is not None else 0
    payload = compress(codec, b"".join(parts), level=level) if records else b""
    batch = bytearray(HEADER_SIZE + len(payload))
    HEADER.pack_into(
        batch,
        0,
        first,
        len(batch) - LOG_OVERHEAD,
        partition_leader_epoch,
        2,
        0,
        attributes,
        last - first,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        len(records),
    )
    batch[HEADER_SIZE:] = payload
    CRC_FIELD.pack_into(batch, CRC_FIELD_START, crc32c.crc32c(memoryview(batch)[CRC_START:]))
    return bytes(batch)


def decode_batch(buffer: Buffer, position: int = 0, *, limit: int = MAX_DECOMPRESSED_BYTES) -> list[Record]:
    """Decodes the batch at ``position`` (bytes) with absolute offsets and timestamps.

    In a LogAppendTime batch every record has the header's maximum timestamp. What follows the batch is not
    looked at. An empty list is what compaction can leave.

    Args:
        buffer: holds at least the whole batch.
        position: where it starts.
        limit: most bytes its decompressed records may have.

    Raises:
        DamagedError: anything not exactly as it must be (checksum, counts, lengths, order of offsets, bytes
            left over); the message names the batch's base offset.
    """
    header = read_header(buffer, position)
    try:
        return _decode_records(buffer, position, header, limit)
    except DamagedError as error:
        raise DamagedError(f"the batch at offset {header.base_offset} is damaged: {error}") from error


def _decode_records(buffer: Buffer, position: int, header: BatchHeader, limit: int) -> list[Record]:
    if len(buffer) < position + header.size:
        raise DamagedError(f"it has {header.size} bytes, and {len(buffer) - position} are there")
    if not crc_is_valid(buffer, position, header):
        raise DamagedError(f"its CRC-32C is not {header.crc:#010x}")
    payload = memoryview(buffer)[position + HEADER_SIZE : position + header.size]
    if header.record_count == 0 and not payload:
        return []
    data = decompress(header.codec, payload, limit=limit)
    records: list[Record] = []
    at = 0
    previous = header.base_offset - 1
    for index in range(header.record_count):
        try:
            record, at = _decode_record(data, at, header.base_offset, header.base_timestamp)
        except DamagedError as error:
            raise DamagedError(f"record {index} of {header.record_count}: {error}") from error
        if not previous < record.offset <= header.last_offset:
            raise DamagedError(f"offset {record.offset} after {previous}, in a batch to {header.last_offset}")
        previous = record.offset
        if header.is_log_append_time:
            record = Record(
                offset=record.offset,
                timestamp=header.max_timestamp,
                key=record.key,
                value=record.value,
                headers=record.headers,
            )
        records.append(record)
    if at != len(data):
        raise DamagedError(f"{len(data) - at} bytes are left after its {header.record_count} records")
    return records


def read_control_type(buffer: Buffer, position: int, header: BatchHeader) -> int:
    """Returns the type of a control batch: 0 ABORT, 1 COMMIT, higher ones as in ``ControlRecordType``.

    -1 where compaction left a control batch without its record.

    Raises:
        DamagedError: not a control batch, or one that cannot be read.
    """
    if not header.is_control:
        raise DamagedError(f"the batch at offset {header.base_offset} is not a control batch")
    records = decode_batch(buffer, position)
    if not records:
        return NO_CONTROL_RECORD
    key = records[0].key
    if key is None or len(key) < _CONTROL_KEY.size:
        raise DamagedError(f"the control batch at offset {header.base_offset} has no readable type")
    _, kind = _CONTROL_KEY.unpack_from(key)
    return int(kind)
