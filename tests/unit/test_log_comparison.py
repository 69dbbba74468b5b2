"""A target's log against what it must hold: equal bytes, equal records in other batches, and everything else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError
from kafka_backup.log_comparison import Found, LogMatcher
from kafka_backup.records.batch import read_header, walk
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.records.compression import Codec
from kafka_backup.records.convert import TargetBatch
from tests.unit.strategies import codecs, record_lists

START = 3


def _batch(records: Sequence[Record], codec: Codec = Codec.NONE) -> TargetBatch:
    """A target batch of these records, whose offsets are those of the source."""
    data = bytearray(encode_batch([replace(r, offset=place) for place, r in enumerate(records)], codec=codec))
    runs: list[tuple[int, int]] = []
    for record in records:
        if runs and sum(runs[-1]) == record.offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((record.offset, 1))
    return TargetBatch(data, len(records), True, tuple(runs), max(r.timestamp for r in records))


def _log(groups: Sequence[Sequence[Record]], *, codec: Codec = Codec.NONE, producer: int = 7) -> bytes:
    """The batches as the target's log would hold them."""
    log, offset = b"", START
    for records in groups:
        placed = [replace(record, offset=offset + place) for place, record in enumerate(records)]
        log += encode_batch(
            placed,
            codec=codec,
            producer_id=producer,
            producer_epoch=1,
            base_sequence=0,
            partition_leader_epoch=4,
        )
        offset += len(records)
    return log


def _cut(records: Sequence[Record], places: Sequence[int]) -> list[Sequence[Record]]:
    bounds = [0, *sorted(set(places) & set(range(1, len(records)))), len(records)]
    return [records[a:b] for a, b in pairwise(bounds)]


def _match(expected: Sequence[TargetBatch], log: bytes) -> tuple[list[Found], LogMatcher]:
    matcher = LogMatcher(iter(expected), start=START, name="restored [0]")
    data = memoryview(bytearray(log))
    return [found for place, header in walk(data) for found in matcher.match(data, place, header)], matcher


def _source_offsets(runs: Iterator[tuple[int, int]]) -> list[int]:
    return [offset for first, count in runs for offset in range(first, first + count)]


@given(
    records=record_lists(max_size=12),
    cuts=st.lists(st.integers(1, 11)),
    other_cuts=st.lists(st.integers(1, 11)),
    codec=codecs,
    other_codec=codecs,
    arrived=st.integers(0, 12),
)
def test_the_same_records_in_other_batches_are_found(
    records: list[Record],
    cuts: list[int],
    other_cuts: list[int],
    codec: Codec,
    other_codec: Codec,
    arrived: int,
) -> None:
    """Tests records cut into batches in two ways, and any part of them in the log: found, and the rest named.

    It matters because a resume on another machine packs batches with another release of a library.
    Comparing bytes alone calls sound data damaged; going on at a wrong place loses records or doubles them.
    """
    expected = [_batch(each, codec) for each in _cut(records, cuts)]
    groups = _cut(records, other_cuts)
    there: list[Sequence[Record]] = []
    while groups and sum(map(len, there)) + len(groups[0]) <= arrived:
        there.append(groups.pop(0))
    found, matcher = _match(expected, _log(there, codec=other_codec))
    count = sum(map(len, there))
    assert matcher.position == START + count
    assert _source_offsets(run for each in found for run in each.runs) == [r.offset for r in records[:count]]
    assert sum(each.record_count for each in found) == count
    assert sum(bool(each.content) for each in found) == len(there)
    rest = list(matcher.rest())
    assert _source_offsets(run for each in rest for run in each.runs) == [r.offset for r in records[count:]]
    assert [replace(r, offset=0) for each in rest for r in decode_batch(each.data)] == [
        replace(record, offset=0) for record in records[count:]
    ]


def _records(count: int = 6) -> list[Record]:
    return [
        Record(
            offset=10 + 2 * i, timestamp=1000 + i, key=b"k%d" % i, value=b"v", headers=((b"h", b"%d" % i),)
        )
        for i in range(count)
    ]


def test_equal_bytes_are_not_decoded() -> None:
    """Tests that batches which came back as they were sent are compared as bytes, whoever produced them.

    It matters because a verification that decodes is fifteen times slower.
    A producer id is in the checksum, so that a plain comparison of checksums fails always.
    """
    expected = [_batch(_records()[:3], Codec.LZ4), _batch(_records()[3:], Codec.LZ4)]
    found, matcher = _match(expected, _log([_records()[:3], _records()[3:]], codec=Codec.LZ4))
    assert [(each.record_count, each.size) for each in found] == [(3, batch.size) for batch in expected]
    assert list(matcher.rest()) == []
    again, _ = _match(expected, _log([_records()[:3], _records()[3:]], codec=Codec.LZ4, producer=99))
    assert [each.content for each in again] == [each.content for each in found]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"value": b"w"}, "source offset 14, it has another value"),
        ({"value": None}, "source offset 14, it has another value"),
        ({"value": b"", "key": None}, "source offset 14, it has another key and value"),
        ({"timestamp": 1}, "source offset 14, it has another timestamp"),
        ({"headers": ()}, "source offset 14, it has another headers"),
    ],
    ids=str,
)
@pytest.mark.parametrize("split", [False, True])
def test_a_changed_record_is_found_and_named(change: dict[str, object], told: str, split: bool) -> None:
    """Tests one record with another value, key, time or header, in equal and in other batches.

    It matters because comparing records is the second chance that bytes do not get.
    A field left out of it would let a changed record pass as verified.
    """
    changed = _records()
    changed[2] = replace(changed[2], **change)  # type: ignore[arg-type]
    groups = [changed[:1], changed[1:]] if split else [changed]
    with pytest.raises(DamagedError, match=rf"restored \[0\].*offset {START + 2}: .*{told}"):
        _match([_batch(_records())], _log(groups))


def test_records_out_of_place_are_found() -> None:
    """Tests a record too many, one missing, two swapped, one doubled, and a batch at another offset.

    It matters because these are what a second writer or a lost acknowledgement leave behind.
    Any of them can keep all counts right.
    """
    records = _records()
    one = [_batch(records)]
    for groups in (
        [records, records[:1]],
        [[*records, records[-1]]],
        [[records[1], records[0], *records[2:]]],
        [[records[0], *records[2:]]],
        [[records[0], records[0], *records[1:-1]]],
    ):
        with pytest.raises(DamagedError, match="not what the plan says"):
            _match(one, _log(groups))
    log = bytearray(_log([records]))
    log[0:8] = (START + 1).to_bytes(8, "big")
    with pytest.raises(DamagedError, match=f"damaged at offset {START}"):
        _match(one, bytes(log))


@pytest.mark.parametrize("kind", ["crc", "control", "gap"])
def test_what_we_never_write_is_damage(kind: str) -> None:
    """Tests a flipped bit, a transaction's marker and a compacted batch in the target's log.

    It matters because the records around them may all be right.
    A marker takes an offset, so that every position behind it is off by one.
    """
    records = _records(3)
    log = bytearray(_log([records]))
    if kind == "crc":
        log[-1] ^= 1
    elif kind == "control":
        log = bytearray(encode_batch([replace(records[0], offset=START)], control=True, producer_id=1))
    else:
        log = bytearray(encode_batch([replace(records[0], offset=START)], last_offset=START + 2))
    with pytest.raises(DamagedError, match=f"damaged at offset {START}.*Delete the topic"):
        _match([_batch(records)], bytes(log))
    assert read_header(log).base_offset == START
