"""The 61-byte header of a v2 record batch, and the walk from one batch to the next."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import crc32c

from kafka_backup.errors import DamagedError
from kafka_backup.records import Buffer
from kafka_backup.records.compression import Codec

HEADER_SIZE = 61
"""Bytes before the first record."""

LOG_OVERHEAD = 12
"""Bytes (base offset and batch length) that the batch length does not count."""

CRC_START = 21
"""Position of the first byte that the checksum covers: the attributes."""

CRC_FIELD_START = 17
CRC_FIELD = struct.Struct(">I")

ATTRIBUTES_START = CRC_START

CODEC_MASK = 0x07
LOG_APPEND_TIME_BIT = 0x08
TRANSACTIONAL_BIT = 0x10
CONTROL_BIT = 0x20
DELETE_HORIZON_BIT = 0x40

HEADER = struct.Struct(">qiibIhiqqqhii")

_MAGIC_POSITION = 16
_MAGIC_END = _MAGIC_POSITION + 1
_SMALLEST_LENGTH = HEADER_SIZE - LOG_OVERHEAD
_PREFIX = struct.Struct(">qiib")


class UnsupportedMagicError(DamagedError):
    """A batch of another format than v2, as up-converted topics of old clusters hold.

    Attributes:
        base_offset: the first offset field of the batch (v0 and v1 have it in the same place).
        magic: the format version found.
    """

    def __init__(self, *, base_offset: int, magic: int) -> None:
        super().__init__(
            f"the batch at offset {base_offset} has message format version {magic}; only version 2 can be "
            "copied. Rewrite the topic with a current producer, or exclude it"
        )
        self.base_offset = base_offset
        self.magic = magic


class BatchHeader(NamedTuple):
    """The header of one batch, field by field as ``DefaultRecordBatch`` lays it out.

    Offsets are 64-bit and inclusive where they are called "last"; timestamps are milliseconds.
    ``base_timestamp`` is the first record's timestamp, never a minimum, and is the delete horizon
    where that bit is set (KIP-534); record timestamps are ``base_timestamp`` plus their delta in both cases.
    """

    base_offset: int
    batch_length: int
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
    record_count: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch, header included."""
        return LOG_OVERHEAD + self.batch_length

    @property
    def last_offset(self) -> int:
        """The last offset that the batch accounts for (inclusive), even if that record was compacted away."""
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        """The first offset after this batch."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def offset_count(self) -> int:
        """How many offsets the batch accounts for; more than ``record_count`` after compaction."""
        return self.last_offset_delta + 1

    @property
    def codec(self) -> Codec:
        """The compression of the records.

        Raises:
            DamagedError: the codec's number is none that Kafka knows.
        """
        return Codec.of(self.attributes & CODEC_MASK)

    @property
    def is_log_append_time(self) -> bool:
        """Whether every record's timestamp is ``max_timestamp``, the broker's clock."""
        return bool(self.attributes & LOG_APPEND_TIME_BIT)

    @property
    def is_transactional(self) -> bool:
        """Whether the batch is part of a transaction."""
        return bool(self.attributes & TRANSACTIONAL_BIT)

    @property
    def is_control(self) -> bool:
        """Whether the batch holds a control record, such as a transaction marker."""
        return bool(self.attributes & CONTROL_BIT)

    @property
    def has_delete_horizon(self) -> bool:
        """Whether ``base_timestamp`` is the time from which tombstones may be removed (KIP-534)."""
        return bool(self.attributes & DELETE_HORIZON_BIT)

    @property
    def is_gapped(self) -> bool:
        """Whether compaction removed records from this batch."""
        return self.record_count != self.last_offset_delta + 1


def read_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """Reads the header at ``position``; the records need not be in the buffer.

    Raises:
        UnsupportedMagicError: the batch is not of format v2.
        DamagedError: fewer than 61 bytes are left, or a length or count is impossible.
    """
    available = len(buffer) - position
    if available >= _MAGIC_END:
        base_offset, _, _, magic = _PREFIX.unpack_from(buffer, position)
        if magic != 2:
            raise UnsupportedMagicError(base_offset=base_offset, magic=magic)
    if available < HEADER_SIZE:
        raise DamagedError(
            f"a batch header needs {HEADER_SIZE} bytes and {available} are left at byte {position}: "
            "the data is cut off there"
        )
    header = BatchHeader._make(HEADER.unpack_from(buffer, position))
    _check(header, position)
    return header


def _check(header: BatchHeader, position: int) -> None:
    if (
        header.batch_length < _SMALLEST_LENGTH
        or header.base_offset < 0
        or header.last_offset_delta < 0
        or not 0 <= header.record_count <= header.last_offset_delta + 1
    ):
        raise DamagedError(
            f"the batch header at byte {position} is impossible: base offset {header.base_offset}, "
            f"length {header.batch_length}, last offset delta {header.last_offset_delta}, "
            f"{header.record_count} records. Read the data again; if it stays so, it is damaged at its source"
        )


def walk(buffer: Buffer, start: int = 0) -> Iterator[tuple[int, BatchHeader]]:
    """Yields position (bytes) and header of each whole batch, in order.

    An incomplete batch at the end, as fetch responses have, ends the walk; ``complete_size`` tells
    where. No record and no checksum is looked at.

    Raises:
        UnsupportedMagicError: a batch is not of format v2 (seen even if only its start is there).
        DamagedError: a length or count is impossible.
    """
    size = len(buffer)
    position = start
    unpack = HEADER.unpack_from
    make = BatchHeader._make
    while size - position >= HEADER_SIZE:
        header = make(unpack(buffer, position))
        base_offset, length, _, magic, _, _, last_delta, _, _, _, _, _, count = header
        if magic != 2:
            raise UnsupportedMagicError(base_offset=base_offset, magic=magic)
        if length < _SMALLEST_LENGTH or base_offset < 0 or not 0 <= count <= last_delta + 1 or last_delta < 0:
            _check(header, position)
        following = position + LOG_OVERHEAD + length
        if following > size:
            return
        yield position, header
        position = following
    if size - position >= _MAGIC_END:
        base_offset, _, _, magic = _PREFIX.unpack_from(buffer, position)
        if magic != 2:
            raise UnsupportedMagicError(base_offset=base_offset, magic=magic)


def complete_size(buffer: Buffer, start: int = 0) -> int:
    """Returns the position (bytes) after the last whole batch; what follows is an incomplete one.

    Raises:
        UnsupportedMagicError, DamagedError: as ``walk``.
    """
    end = start
    for position, header in walk(buffer, start):
        end = position + header.size
    return end


def crc_is_valid(buffer: Buffer, position: int, header: BatchHeader) -> bool:
    """Whether the CRC-32C in the header is that of the bytes from the attributes to the end.

    Base offset, length, leader epoch and magic are not covered (``DefaultRecordBatch.isValid``). False
    also where the buffer ends before the batch does.
    """
    end = position + header.size
    if len(buffer) < end:
        return False
    return bool(crc32c.crc32c(memoryview(buffer)[position + CRC_START : end]) == header.crc)
