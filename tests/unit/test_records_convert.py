"""Stored batches become target batches: against decode, filter, renumber, encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError, RefusedError
from kafka_backup.records.batch import crc_is_valid, read_header, walk
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.records.compression import Codec, compress
from kafka_backup.records.convert import Bounds, TargetBatch, convert
from kafka_backup.records.rewrite import seal
from kafka_backup.records.time_filter import filter_by_timestamp
from kafka_backup.records.varint import encode_varint
from tests.support import records as plain
from tests.unit.strategies import seen_by_plain_decoder, stored_batches, timestamps

ALL = Bounds(first_offset=0, end_offset=2**63 - 1)
LARGE = 1 << 30


def _convert(raw: bytes, bounds: Bounds = ALL, *, max_batch_bytes: int = LARGE) -> list[TargetBatch]:
    view = memoryview(bytearray(raw))
    batches = [(view[at : at + header.size], header) for at, header in walk(view)]
    return list(convert(batches, bounds, max_batch_bytes=max_batch_bytes))


def _records(count: int, *, step: int = 1, first: int = 100, size: int = 20) -> list[Record]:
    return [
        Record(offset=first + i * step, timestamp=1000 + i, key=b"k%d" % i, value=b"v" * size)
        for i in range(count)
    ]


def _source_offsets(targets: Sequence[TargetBatch]) -> list[int]:
    return [offset for t in targets for first, count in t.runs for offset in range(first, first + count)]


@given(
    batches=st.lists(stored_batches(), min_size=1, max_size=3),
    data=st.data(),
    max_batch_bytes=st.sampled_from([LARGE, 700, 300]),
)
def test_convert_equals_decode_filter_renumber_encode(
    batches: list[tuple[bytes, list[Record]]], data: st.DataObject, max_batch_bytes: int
) -> None:
    """Tests random batches and bounds against the obvious way to do the same, byte for byte.

    It matters because these are the bytes that a restore writes and verification expects.
    One record too many, too few, or at another place is what a backup tool must never do.
    """
    everything = [record for _, records in batches for record in records]
    offsets = st.sampled_from([o for r in everything for o in (r.offset, r.offset + 1)])
    times = st.sampled_from([r.timestamp for r in everything]) | timestamps
    bounds = Bounds(
        first_offset=data.draw(st.just(0) | offsets),
        end_offset=data.draw(st.just(2**63 - 1) | offsets),
        from_ms=data.draw(st.none() | times),
        until_ms=data.draw(st.none() | times),
    )
    for raw, records in batches:
        codec = read_header(raw).codec
        expected = [
            record
            for record in filter_by_timestamp(records, bounds.from_ms, bounds.until_ms)
            if bounds.first_offset <= record.offset < bounds.end_offset
        ]
        if any(len(encode_batch([record], codec=codec)) > max_batch_bytes for record in expected):
            continue
        targets = _convert(raw, bounds, max_batch_bytes=max_batch_bytes)
        assert _source_offsets(targets) == [record.offset for record in expected]
        sequence = 0
        for target in targets:
            part = expected[sequence : sequence + target.record_count]
            assert (target.first_source_offset, target.last_source_offset) == (
                part[0].offset,
                part[-1].offset,
            )
            assert all(first + count < following for (first, count), (following, _) in pairwise(target.runs))
            assert target.max_timestamp == max(record.timestamp for record in part)
            assert target.size == len(target.data) <= max_batch_bytes
            assert crc_is_valid(target.data, 0, read_header(target.data))
            seal(target.data, producer_id=3, producer_epoch=1, base_sequence=sequence)
            assert bytes(target.data) == encode_batch(
                [replace(record, offset=place) for place, record in enumerate(part)],
                codec=codec,
                producer_id=3,
                producer_epoch=1,
                base_sequence=sequence,
            )
            sequence += target.record_count


@given(batch=stored_batches())
def test_converted_batches_are_read_alike_by_an_independent_decoder(
    batch: tuple[bytes, list[Record]],
) -> None:
    """Tests what the tests' plain decoder reads in a sealed target batch.

    It matters because encoder and decoder of the engine could share one mistake.
    A batch that only we can read would be refused, or worse, stored.
    """
    raw, records = batch
    (target,) = _convert(raw)
    seal(target.data, producer_id=-1, producer_epoch=-1, base_sequence=-1)
    seen = seen_by_plain_decoder(bytes(target.data))
    # The plain decoder does not wrap at 64 bits as Java does.
    wrapped = [replace(r, timestamp=(r.timestamp + 2**63) % 2**64 - 2**63) for r in seen]
    assert wrapped == [replace(record, offset=place) for place, record in enumerate(records)]


def test_a_sound_batch_passes_in_its_own_memory() -> None:
    """Tests that a batch without reason for the slow path is not copied, transactional ones included.

    It matters because this is what makes a restore as fast as the network.
    A hidden copy, or a decode, would cost ten times the CPU.
    """
    raw = encode_batch(_records(5), codec=Codec.GZIP, transactional=True, producer_id=5, producer_epoch=0)
    memory = memoryview(bytearray(raw))
    (target,) = convert([(memory, read_header(memory))], ALL, max_batch_bytes=len(raw))
    assert target.data is memory
    assert (target.reencoded, target.runs, target.record_count) == (False, ((100, 5),), 5)
    assert bytes(memory) == raw


@pytest.mark.parametrize("codec", Codec)
def test_a_batch_that_loses_no_record_to_its_time_bounds_passes(codec: Codec) -> None:
    """Tests a batch whose records had to be looked at one by one, and are all to be kept.

    It matters because a lower time bound makes every batch be looked at, and nearly all keep everything.
    Packing them anew would cost most of the time, and change bytes for nothing.
    """
    raw = encode_batch(_records(5), codec=codec)
    memory = memoryview(bytearray(raw))
    bounds = Bounds(first_offset=100, end_offset=105, from_ms=1000, until_ms=1004)
    (target,) = convert([(memory, read_header(memory))], bounds, max_batch_bytes=len(raw))
    assert target.data is memory
    assert target == (memory, 5, False, ((100, 5),), 1004)
    (cut,) = _convert(raw, replace(bounds, until_ms=1003))
    assert (cut.reencoded, cut.record_count) == (True, 4)


@pytest.mark.parametrize(
    ("changes", "bounds", "max_batch_bytes"),
    [
        ({"last_offset": 110}, ALL, LARGE),
        ({"base_offset": 99}, ALL, LARGE),
        ({"log_append_time": 9999}, ALL, LARGE),
        ({"delete_horizon": 9999}, ALL, LARGE),
        ({}, Bounds(first_offset=101, end_offset=999), LARGE),
        ({}, Bounds(first_offset=0, end_offset=104), LARGE),
        ({}, Bounds(first_offset=0, end_offset=999, from_ms=1001), LARGE),
        ({}, Bounds(first_offset=0, end_offset=999, until_ms=1003), LARGE),
        ({}, ALL, 200),
    ],
    ids=[
        "gap at end",
        "gap at start",
        "append time",
        "horizon",
        "first",
        "end",
        "from",
        "until",
        "too large",
    ],
)
def test_reasons_for_the_slow_path(changes: dict[str, int], bounds: Bounds, max_batch_bytes: int) -> None:
    """Tests that each reason the design names leads to batches built anew, and that they say so.

    It matters because the plan and the report count them for the user.
    A reason overlooked sends the broker a batch that it refuses or spoils.
    """
    raw = encode_batch(_records(5), **changes)  # type: ignore[arg-type]
    targets = _convert(raw, bounds, max_batch_bytes=max_batch_bytes)
    assert targets
    assert all(target.reencoded for target in targets)


def test_log_append_time_becomes_the_records_own_time() -> None:
    """Tests that records of a LogAppendTime batch show the broker's time in a CreateTime batch.

    It matters because a target topic is CreateTime while it is written, and flipped afterwards.
    The producer's times would be shown instead, days or years off, without any error.
    """
    (target,) = _convert(encode_batch(_records(300), log_append_time=77_777, codec=Codec.LZ4))
    header = read_header(target.data)
    assert not header.is_log_append_time
    assert (header.base_timestamp, header.max_timestamp, target.max_timestamp) == (77_777,) * 3
    assert {record.timestamp for record in decode_batch(target.data)} == {77_777}


def test_runs_name_every_gap() -> None:
    """Tests the runs of a batch with gaps of several sizes.

    It matters because the offset map, and with it every consumer's position, is made of them.
    Runs merged over a gap would move positions by the gap's size.
    """
    offsets = [100, 101, 105, 106, 107, 300]
    raw = encode_batch([replace(r, offset=o) for r, o in zip(_records(6), offsets, strict=True)])
    (target,) = _convert(raw)
    assert target.runs == ((100, 2), (105, 3), (300, 1))


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("step", [1, 3])
def test_large_batches_with_all_sizes_of_varints(codec: Codec, step: int) -> None:
    """Tests 9,000 records, so that offset deltas and places take one, two and three bytes.

    It matters because a number that changes its size changes its record's length.
    A length off by one makes the rest of the batch unreadable.
    """
    records = [
        replace(r, timestamp=1000 + i % 97 * 90 - 4000) for i, r in enumerate(_records(9000, step=step))
    ]
    bounds = Bounds(first_offset=103, end_offset=2**62, from_ms=-3900)
    (target,) = _convert(encode_batch(records, codec=codec), bounds)
    kept = [r for r in records if r.offset >= 103 and r.timestamp >= -3900]
    assert decode_batch(target.data) == [replace(r, offset=i) for i, r in enumerate(kept)]


def test_records_of_all_sizes_pass_the_slow_path() -> None:
    """Tests values around the sizes where a length takes another byte, up to a mebibyte.

    It matters because lengths are rewritten, and a changed length can change its own size.
    An error there would only show with one record in a million.
    """
    sizes = [0, 1, 40, *range(50, 62), 100, *range(8170, 8186), 70_000, 1 << 20]
    # The first offset deltas of two bytes shrink to one: every length changes.
    records = [
        Record(offset=(i and 70 + i), timestamp=5, key=None, value=b"v" * size)
        for i, size in enumerate(sizes)
    ]
    (target,) = _convert(encode_batch(records))
    assert decode_batch(target.data) == [replace(r, offset=i) for i, r in enumerate(records)]


@pytest.mark.parametrize("codec", Codec)
def test_too_large_batches_are_split_in_order(codec: Codec) -> None:
    """Tests a batch many times too large, gaps and bounds included.

    It matters because the target's max.message.bytes may be smaller than the source's.
    A lost or repeated record at a split would go unnoticed without this.
    """
    records = [
        replace(r, value=bytes([i % 251]) * 9 + r.value)
        for i, r in enumerate(_records(1000, step=2, size=50))
    ]
    raw = encode_batch(records, codec=codec)
    most = len(raw) // 7
    targets = _convert(raw, Bounds(first_offset=150, end_offset=2**62), max_batch_bytes=most)
    assert len(targets) > 5
    assert all(target.size <= most for target in targets)
    seen = [record for target in targets for record in decode_batch(target.data)]
    kept = [record for record in records if record.offset >= 150]
    assert [(r.value, r.timestamp) for r in seen] == [(r.value, r.timestamp) for r in kept]
    assert _source_offsets(targets) == [record.offset for record in kept]


def test_one_record_too_large_for_the_target_is_refused_by_name() -> None:
    """Tests a record that no split makes small enough.

    It matters because it must not be left out, and the user can raise the limit.
    A loop, or a message without the offset, would leave him without a way on.
    """
    records = [replace(r, value=b"x" * (5000 if r.offset == 103 else 5)) for r in _records(8)]
    with pytest.raises(
        RefusedError, match=r"offset 103 needs a batch of 5\d{3} bytes.*takes 1000.*max\.message"
    ):
        _convert(encode_batch(records), max_batch_bytes=1000)


def test_batches_without_a_record_to_keep_yield_nothing() -> None:
    """Tests batches emptied by compaction, outside the bounds, or emptied by the time filter.

    It matters because a broker refuses a batch without records.
    One such batch would stop the whole restore.
    """
    empty = encode_batch([], base_offset=5, last_offset=9, codec=Codec.LZ4)
    records = [replace(r, timestamp=t) for r, t in zip(_records(3), (10, 30, 50), strict=True)]
    raw = encode_batch(records)
    assert _convert(empty) == []
    for bounds in (
        Bounds(first_offset=103, end_offset=999),
        Bounds(first_offset=0, end_offset=100),
        Bounds(first_offset=0, end_offset=999, from_ms=51),
        Bounds(first_offset=0, end_offset=999, until_ms=9),
        Bounds(first_offset=0, end_offset=999, from_ms=31, until_ms=49),
        Bounds(first_offset=0, end_offset=999, from_ms=60, until_ms=9),
    ):
        assert _convert(raw, bounds) == []


def test_convert_is_deterministic() -> None:
    """Tests that the same input gives the same bytes, and that a sealed batch does not change the next run.

    It matters because resume and verification make the batches again and compare.
    A time or a random number inside would make every resume a mismatch.
    """
    for codec in Codec:
        raw = encode_batch(_records(200, step=2), codec=codec)
        first, second = _convert(raw, max_batch_bytes=2500), _convert(raw, max_batch_bytes=2500)
        assert [bytes(t.data) for t in first] == [bytes(t.data) for t in second]


def test_attribute_bits_without_a_meaning_stay() -> None:
    """Tests that only the bits which must go are cleared when a batch is built anew.

    It matters because a future Kafka may give them a meaning, and brokers store them as they are.
    A restore that dropped them would not be the same data.
    """
    raw = plain.encode_batch(
        [plain.NewRecord(b"v", timestamp=1), plain.NewRecord(b"w", timestamp=2, offset_delta=5)],
        attributes=0x4000 | 0x80 | 64 | 16 | 8,
    )
    (target,) = _convert(raw)
    assert read_header(target.data).attributes == 0x4000 | 0x80


def test_control_batch_is_refused() -> None:
    """Tests that a control batch in a segment is damage.

    It matters because backup leaves them out, and a broker refuses them from clients.
    Its marker would come out as a record.
    """
    with pytest.raises(DamagedError, match="offset 100 is a control batch"):
        _convert(encode_batch(_records(1), control=True))


def test_padded_numbers_are_read_and_written_short() -> None:
    """Tests a record whose numbers are longer than need be, as a careless client may write them.

    It matters because consumers read such records, so a restore must.
    Written over in place by size alone, the padding would survive or garble the number.
    """
    body = b"\0" + b"\x84\x00" + b"\x86\x80\x00" + encode_varint(-1) + encode_varint(1) + b"x" + b"\0"
    inner = bytes([len(body) << 1 | 0x80, 0]) + body
    whole = bytearray(encode_batch([Record(offset=100, timestamp=7, key=None, value=b"x")], last_offset=103))
    whole[61:] = inner
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    raw = plain.with_right_crc(bytes(whole))
    expected = Record(offset=103, timestamp=9, key=None, value=b"x")
    assert decode_batch(raw) == [expected]
    (target,) = _convert(raw)
    assert bytes(target.data) == encode_batch([replace(expected, offset=0)])


@given(
    records=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    codec=st.sampled_from([Codec.NONE, Codec.ZSTD]),
    data=st.data(),
)
def test_damaged_records_never_pass_as_good_ones(
    records: list[int], codec: Codec, data: st.DataObject
) -> None:
    """Tests records cut off, extended or garbled: the slow path refuses them, or reads what the codec reads.

    It matters because the slow path trusts lengths that it did not write.
    An IndexError, an endless loop or records made of garbage would come out of a damaged segment.
    """
    source = [
        Record(offset=100 + 2 * i, timestamp=i, key=None, value=b"v" * n) for i, n in enumerate(records)
    ]
    whole = bytearray(encode_batch(source, last_offset=200))
    inner = bytearray(whole[61:])
    kind = data.draw(st.sampled_from(["cut", "extend", "flip"]))
    if kind == "cut":
        inner = inner[: data.draw(st.integers(0, len(inner) - 1))]
    elif kind == "extend":
        inner += data.draw(st.binary(min_size=1, max_size=5))
    else:
        inner[data.draw(st.integers(0, len(inner) - 1))] ^= data.draw(st.integers(1, 255))
    whole[61:] = compress(codec, inner)
    whole[8:12] = (len(whole) - 12).to_bytes(4, "big")
    whole[22] = codec
    raw = plain.with_right_crc(bytes(whole))
    try:
        expected = decode_batch(raw)
    except DamagedError:
        expected = None
    try:
        targets = _convert(raw)
    except DamagedError as error:
        assert "offset 100 is damaged" in str(error)
        assert expected is None
        return
    # What the slow path does not parse (keys, values, headers) it copies, good or bad.
    if expected is not None:
        assert [r for t in targets for r in decode_batch(t.data)] == [
            replace(r, offset=i) for i, r in enumerate(expected)
        ]
        assert kind == "flip"


def test_a_garbled_codec_names_the_batch() -> None:
    """Tests an unknown codec number, and compressed bytes that are none, in a batch to be built anew.

    It matters because the operator must know which batch of which segment to look at.
    An error without the offset sends him through millions of records.
    """
    raw = bytearray(encode_batch(_records(3), last_offset=110))
    for codec in (5, Codec.LZ4):
        raw[22] = codec
        with pytest.raises(DamagedError, match="batch at offset 100 is damaged"):
            _convert(bytes(raw))
