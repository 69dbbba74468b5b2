"""Batch headers, and the walk from one to the next."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError
from kafka_backup.records.batch import (
    HEADER_SIZE,
    UnsupportedMagicError,
    complete_size,
    crc_is_valid,
    read_header,
    walk,
)
from kafka_backup.records.compression import Codec
from tests.support import records as plain
from tests.unit.strategies import stored_batches

ONE = plain.encode_batch([plain.NewRecord(b"v", b"k", timestamp=5)], base_offset=100)


def _with(batch: bytes, position: int, form: str, value: int) -> bytes:
    changed = bytearray(batch)
    struct.pack_into(form, changed, position, value)
    return bytes(changed)


def test_header_fields_are_those_an_independent_decoder_reads() -> None:
    """Tests that all thirteen fields, and what is derived from them, agree with the tests' plain decoder.

    It matters because everything the engine knows about a batch comes from these 61 bytes.
    A field read at the wrong place or width would put wrong offsets into the commit log.
    """
    raw = plain.encode_batch(
        [
            plain.NewRecord(b"a", timestamp=1_700_000_000_123),
            plain.NewRecord(b"b", timestamp=9, offset_delta=4),
        ],
        base_offset=2**40 + 3,
        codec="lz4",
        attributes=8 | 16 | 64,
        partition_leader_epoch=6,
        producer_id=2**45,
        producer_epoch=17,
        base_sequence=2**31 - 1,
    )
    (expected,) = plain.decode_batches(raw)
    header = read_header(raw)
    assert header == (
        expected.base_offset,
        len(raw) - 12,
        expected.partition_leader_epoch,
        2,
        expected.crc,
        expected.attributes,
        expected.last_offset_delta,
        expected.base_timestamp,
        expected.max_timestamp,
        expected.producer_id,
        expected.producer_epoch,
        expected.base_sequence,
        expected.count,
    )
    assert header.size == len(raw)
    assert header.last_offset == expected.last_offset
    assert header.next_offset == expected.last_offset + 1
    assert (header.offset_count, header.record_count, header.is_gapped) == (5, 2, True)
    assert header.codec is Codec.LZ4
    assert header.is_log_append_time
    assert header.is_transactional
    assert header.has_delete_horizon
    assert not header.is_control
    assert read_header(plain.encode_batch([], attributes=32, last_offset_delta=0)).is_control


@given(batches=st.lists(stored_batches(), min_size=1, max_size=4), cut=st.integers(1, 200))
def test_walk_yields_whole_batches_and_stops_at_an_incomplete_one(
    batches: list[tuple[bytes, object]], cut: int
) -> None:
    """Tests that the walk finds every whole batch at its place, and leaves a cut-off last one alone.

    It matters because a broker cuts a fetch response at a number of bytes, not at a batch.
    Half a batch taken for whole would be stored damaged; a whole one left out would be lost.
    """
    parts = [batch for batch, _ in batches]
    data = b"".join(parts)
    assert [data[at : at + header.size] for at, header in walk(data)] == parts
    assert complete_size(data) == len(data)
    kept = len(data) - len(parts[-1])
    short = memoryview(data)[: len(data) - min(cut, len(parts[-1]))]
    assert [data[at : at + header.size] for at, header in walk(short)] == parts[:-1]
    assert complete_size(short) == kept
    assert [at for at, _ in walk(data, len(parts[0]))] == [at for at, _ in walk(data)][1:]


@pytest.mark.parametrize("magic", [0, 1, 3])
@pytest.mark.parametrize("left", [17, 40, len(ONE)])
def test_another_message_format_is_refused_by_offset_and_version(magic: int, left: int) -> None:
    """Tests that a batch of format 0, 1 or 3 is refused by name, even if only its first bytes are there.

    It matters because old topics hold v0 and v1 messages, whose bytes mean something else after byte 16.
    Read as v2 they would give nonsense offsets; a tail taken for incomplete would make a fetch loop endless.
    """
    raw = ONE + _with(ONE, 16, ">b", magic)[:left]
    walked = walk(raw)
    next(walked)
    with pytest.raises(UnsupportedMagicError) as caught:
        next(walked)
    assert (caught.value.base_offset, caught.value.magic) == (100, magic)
    with pytest.raises(UnsupportedMagicError, match="offset 100"):
        read_header(raw, len(ONE))


@pytest.mark.parametrize(
    ("position", "form", "value"),
    [
        (0, ">q", -1),
        (8, ">i", HEADER_SIZE - 12 - 1),
        (8, ">i", -5),
        (23, ">i", -1),
        (57, ">i", -1),
        (57, ">i", 2),
    ],
    ids=[
        "offset below 0",
        "too short",
        "negative length",
        "negative delta",
        "negative count",
        "too many records",
    ],
)
def test_impossible_headers_are_damage(position: int, form: str, value: int) -> None:
    """Tests that lengths, offsets and counts that no batch can have are refused.

    It matters because the length decides where the next batch begins.
    A negative or tiny length believed would make the walk stand still or run through garbage.
    """
    raw = _with(ONE, position, form, value)
    with pytest.raises(DamagedError, match="impossible"):
        read_header(raw)
    with pytest.raises(DamagedError, match="impossible"):
        list(walk(raw))


@pytest.mark.parametrize("size", [0, 16, 17, HEADER_SIZE - 1])
def test_a_cut_off_header_is_damage(size: int) -> None:
    """Tests that a header of which bytes are missing is refused, at any length.

    It matters because stored segments end at a batch: fewer bytes there are a loss.
    A struct error without a place would leave the operator with nothing to look for.
    """
    with pytest.raises(DamagedError, match="cut off"):
        read_header(ONE[:size])


def test_unknown_codec_is_damage() -> None:
    """Tests that the codec numbers 5, 6 and 7 are refused when asked for, not when walked over.

    It matters because backup copies bytes it need not understand, and decoding must not guess.
    Taken for uncompressed, such records would be read as garbage.
    """
    header = read_header(_with(ONE, 21, ">h", 5))
    assert len(list(walk(_with(ONE, 21, ">h", 5)))) == 1
    with pytest.raises(DamagedError, match="codec 5"):
        _ = header.codec


@given(batch=stored_batches(), data=st.data())
def test_crc_notices_every_flipped_bit_it_covers(batch: tuple[bytes, object], data: st.DataObject) -> None:
    """Tests that a flipped bit from the attributes on makes the checksum wrong, and none before does.

    It matters because the broker's own checksum is what protects the data end to end.
    A range off by some bytes would pass damage, or call good batches damaged.
    """
    raw = b"\0" * 5 + batch[0]
    header = read_header(raw, 5)
    assert crc_is_valid(raw, 5, header)
    assert crc_is_valid(memoryview(raw + b"more"), 5, header)
    assert not crc_is_valid(raw[:-1], 5, header)
    at = data.draw(st.integers(0, len(batch[0]) - 1))
    flipped = bytearray(raw)
    flipped[5 + at] ^= 1 << data.draw(st.integers(0, 7))
    assert crc_is_valid(flipped, 5, header) == (at < 17 or 17 <= at < 21)
