"""The fast path of a restore: a stored batch becomes one that a producer may send, in place."""

from __future__ import annotations

import struct

import crc32c

from kafka_backup.errors import KafkaBackupError
from kafka_backup.records.batch import (
    ATTRIBUTES_START,
    CONTROL_BIT,
    CRC_FIELD,
    CRC_FIELD_START,
    CRC_START,
    DELETE_HORIZON_BIT,
    LOG_APPEND_TIME_BIT,
    TRANSACTIONAL_BIT,
    BatchHeader,
)

_BASE_OFFSET = struct.Struct(">q")
_EPOCH_START = 12
_EPOCH = struct.Struct(">i")
_ATTRIBUTES = struct.Struct(">h")
_PRODUCER_START = 43
_PRODUCER = struct.Struct(">qhi")

_UNKNOWN_EPOCH = -1
REENCODED_BITS = LOG_APPEND_TIME_BIT | DELETE_HORIZON_BIT
"""Attributes with which a batch has to be built anew; see `needs_reencoding`."""

_CLEARED = ~(TRANSACTIONAL_BIT | DELETE_HORIZON_BIT)


def seal(batch: bytearray | memoryview, *, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
    """Makes one whole batch ready to send, in place, at the cost of one checksum over it.

    `address`, then the CRC-32C recomputed. Records are not touched.

    Args, Raises: as `address`.
    """
    address(batch, producer_id=producer_id, producer_epoch=producer_epoch, base_sequence=base_sequence)
    CRC_FIELD.pack_into(batch, CRC_FIELD_START, crc32c.crc32c(memoryview(batch)[CRC_START:]))


def address(
    batch: bytearray | memoryview, *, producer_id: int, producer_epoch: int, base_sequence: int
) -> None:
    """Writes a producer's fields into the header of one whole batch, in place; its checksum is void then.

    Base offset 0, leader epoch -1, transactional and delete-horizon bits cleared, the given producer
    fields (-1, -1, -1 without an idempotent producer).

    Args:
        batch: exactly one batch, writable.
        producer_id: from InitProducerId, or -1.
        producer_epoch: from InitProducerId, or -1.
        base_sequence: sequence number of the first record in this producer's partition, or -1.

    Raises:
        KafkaBackupError: a LogAppendTime or control batch; ``convert`` re-encodes the first and
            refuses the second, so this is a bug of the caller. A broker would accept a LogAppendTime batch
            into a CreateTime topic and silently change its timestamps.
    """
    (attributes,) = _ATTRIBUTES.unpack_from(batch, ATTRIBUTES_START)
    if attributes & (LOG_APPEND_TIME_BIT | CONTROL_BIT):
        raise KafkaBackupError(
            f"a batch with attributes {attributes:#06x} cannot be sealed: convert it first"
        )
    _BASE_OFFSET.pack_into(batch, 0, 0)
    _EPOCH.pack_into(batch, _EPOCH_START, _UNKNOWN_EPOCH)
    _ATTRIBUTES.pack_into(batch, ATTRIBUTES_START, attributes & _CLEARED)
    _PRODUCER.pack_into(batch, _PRODUCER_START, producer_id, producer_epoch, base_sequence)


def needs_reencoding(header: BatchHeader) -> bool:
    """Whether a broker would refuse, or silently change, this batch if only its header were rewritten.

    True for a gap left by compaction, LogAppendTime and a delete horizon; see
    ``LogValidator.validateBatch``. A transactional batch alone only needs its bit cleared.
    """
    return header.record_count != header.last_offset_delta + 1 or header.attributes & REENCODED_BITS != 0
