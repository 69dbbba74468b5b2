"""The tests' own codec of record batches: a judge must be right himself."""

import crc32c
import pytest

from tests.support.records import (
    CODECS,
    Codec,
    NewRecord,
    Record,
    decode_batches,
    decode_records,
    encode_batch,
)

pytestmark = pytest.mark.unit

RECORDS = [
    NewRecord(b"value", b"key", [(b"h", b"1"), (b"h", None), (b"\xff\xfe", b"")], 1_700_000_000_123),
    NewRecord(None, None, [], 0),
    NewRecord(b"", b"", [(b"", b"")], -1),
    NewRecord(b"x" * 100_000, None, [], 1_600_000_000_001, offset_delta=2_000_000),
]


@pytest.mark.parametrize("codec", CODECS)
def test_the_plain_codec_reads_what_it_wrote(codec: Codec) -> None:
    """What: batches from the tests' encoder, read by the tests' decoder, for each compression.

    Why: integration tests compare the engine with this codec.
    Risk: nulls that become empty, lost milliseconds or 32-bit offsets here would hide the same fault in the
        engine.
    """
    raw = encode_batch(RECORDS, base_offset=1 << 40, codec=codec)
    (batch,) = decode_batches(raw, partial_end=False)
    assert batch.crc_is_right
    assert batch.codec == codec
    assert batch.max_timestamp == 1_700_000_000_123
    assert batch.records() == [
        Record((1 << 40) + delta, 1, each.timestamp, each.key, each.value, list(each.headers))
        for each, delta in zip(RECORDS, [0, 1, 2, 2_000_000], strict=True)
    ]


def test_the_plain_decoder_stops_at_a_batch_that_is_cut_short() -> None:
    """What: a fetch response that ends inside a batch.

    Why: brokers cut responses at a number of bytes, not at a batch.
    Risk: half a batch is taken for data, or for damage.
    """
    raw = encode_batch(RECORDS)
    assert [batch.base_offset for batch in decode_batches(raw + raw[:70])] == [0]
    with pytest.raises(ValueError, match="cut short"):
        list(decode_batches(raw + raw[:70], partial_end=False))


def test_the_plain_decoder_leaves_out_aborted_transactions_only() -> None:
    """What: an aborted transaction, its marker, then a committed one of the same producer.

    Why: a reader sees the second, and never the first.
    Risk: a producer id that is aborted once is taken as aborted for ever.
    """
    producer = {"producer_id": 7, "producer_epoch": 0, "attributes": 16}
    aborted = encode_batch([NewRecord(b"aborted", timestamp=1)], base_offset=0, **producer)
    marker = encode_batch(
        [NewRecord(b"\0" * 6, b"\0\0\0\0", timestamp=1)],
        base_offset=1,
        producer_id=7,
        producer_epoch=0,
        attributes=16 | 32,
    )
    committed = encode_batch([NewRecord(b"committed", timestamp=1)], base_offset=2, **producer)
    records = decode_records(aborted + marker + committed, aborted=[(7, 0)])
    assert [(record.offset, record.value) for record in records] == [(2, b"committed")]


def test_the_checksum_is_castagnoli() -> None:
    """What: the CRC of "123456789".

    Why: Kafka uses CRC-32C, zlib has another one.
    Risk: a decoder that finds every batch damaged, or none.
    """
    assert crc32c.crc32c(b"123456789") == 0xE3069283
