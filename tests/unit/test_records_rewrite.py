"""Sealing: a stored batch becomes one that a producer may send."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from kafka_backup.errors import KafkaBackupError
from kafka_backup.records.batch import crc_is_valid, read_header
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.records.compression import Codec
from kafka_backup.records.rewrite import needs_reencoding, seal
from tests.support import records as plain
from tests.unit.strategies import codecs, record_lists

RECORDS = [Record(offset=50 + i, timestamp=1000 + i, key=None, value=b"v") for i in range(3)]


@given(records=record_lists(), codec=codecs)
def test_seal_changes_the_header_only_and_the_checksum_fits(records: list[Record], codec: Codec) -> None:
    """Tests every header field after sealing with the tests' decoder, and that no other byte changed.

    It matters because this is all that happens to most records between backup and restore.
    A bit left over makes the broker refuse a batch, or worse, take it and drop tombstones early.
    """
    stored = encode_batch(
        records,
        codec=codec,
        transactional=True,
        producer_id=7,
        producer_epoch=1,
        base_sequence=3,
        partition_leader_epoch=12,
        delete_horizon=99,
    )
    sealed = bytearray(stored)
    seal(memoryview(sealed), producer_id=2**40, producer_epoch=5, base_sequence=2**31 - 1)
    (batch,) = plain.decode_batches(bytes(sealed), partial_end=False)
    assert batch.crc_is_right
    assert (batch.base_offset, batch.partition_leader_epoch, batch.attributes) == (0, -1, codec)
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (2**40, 5, 2**31 - 1)
    assert sealed[8:12] == stored[8:12]
    assert sealed[23:43] == stored[23:43]
    assert sealed[57:] == stored[57:]
    first = records[0].offset
    assert decode_batch(sealed) == [replace(r, offset=r.offset - first) for r in records]


def test_seal_twice_is_seal_once() -> None:
    """Tests that a sealed batch can be sealed again, with other producer fields or the same.

    It matters because a resend after a new producer id seals the same memory again.
    Anything that piled up would show as a checksum that does not fit.
    """
    once = bytearray(
        encode_batch(RECORDS, transactional=True, producer_id=1, producer_epoch=0, base_sequence=0)
    )
    seal(once, producer_id=-1, producer_epoch=-1, base_sequence=-1)
    twice = bytearray(once)
    seal(twice, producer_id=9, producer_epoch=1, base_sequence=2)
    assert crc_is_valid(twice, 0, read_header(twice))
    seal(twice, producer_id=-1, producer_epoch=-1, base_sequence=-1)
    assert twice == once


@pytest.mark.parametrize(
    "kind", [{"log_append_time": 5}, {"control": True}], ids=["LogAppendTime", "control"]
)
def test_seal_refuses_what_must_not_pass(kind: dict[str, int]) -> None:
    """Tests that a LogAppendTime or control batch is not sealed, and stays as it was.

    It matters because a broker takes the first into a CreateTime topic and changes all its times.
    The mistake would be silent: only a comparison of times would show it.
    """
    stored = encode_batch(RECORDS, **kind)  # type: ignore[arg-type]
    batch = bytearray(stored)
    with pytest.raises(KafkaBackupError, match="convert it first"):
        seal(batch, producer_id=1, producer_epoch=0, base_sequence=0)
    assert batch == stored


def test_what_needs_reencoding() -> None:
    """Tests each reason for the slow path, and that a transaction alone is none.

    It matters because the broker refuses gaps, and silently spoils the other two.
    One reason forgotten fails a restore or changes data; one too many makes it slow.
    """
    gap = [RECORDS[0], replace(RECORDS[1], offset=52)]
    assert not needs_reencoding(read_header(encode_batch(RECORDS)))
    assert not needs_reencoding(read_header(encode_batch(RECORDS, transactional=True, codec=Codec.ZSTD)))
    assert needs_reencoding(read_header(encode_batch(gap)))
    assert needs_reencoding(read_header(encode_batch(RECORDS, last_offset=53)))
    assert needs_reencoding(read_header(encode_batch(RECORDS, base_offset=49)))
    assert needs_reencoding(read_header(encode_batch(RECORDS, log_append_time=1)))
    assert needs_reencoding(read_header(encode_batch(RECORDS, delete_horizon=1)))
    assert needs_reencoding(read_header(encode_batch([], base_offset=1, last_offset=1)))
