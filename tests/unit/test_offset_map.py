"""The offset map against brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.errors import DamagedError
from kafka_backup.offset_mapping import OffsetMap


def _map_of(offsets: list[int], target_start: int) -> OffsetMap:
    offset_map = OffsetMap(target_start=target_start)
    for offset in offsets:
        offset_map.add(offset, 1)
    return offset_map


@given(offsets=st.sets(st.integers(0, 200)).map(sorted), target_start=st.integers(0, 5))
def test_offset_map_equals_brute_force(offsets: list[int], target_start: int) -> None:
    """Tests that every source offset maps to the first restored record at or after it, and back.

    It matters because a committed position is translated through this map alone.
    An error of one would make a consumer skip a record or read one twice.
    """
    offset_map = _map_of(offsets, target_start)
    for position in range(203):
        expected = target_start + sum(offset < position for offset in offsets)
        assert offset_map.to_target(position) == expected
    for index, offset in enumerate(offsets):
        assert offset_map.to_source(target_start + index) == offset
    assert offset_map.to_source(target_start + len(offsets)) is None
    assert offset_map.to_source(target_start - 1) is None
    assert offset_map.records == len(offsets)


@given(offsets=st.sets(st.integers(0, 2**62)).map(sorted), target_start=st.integers(0, 5))
def test_offset_map_survives_storage(offsets: list[int], target_start: int) -> None:
    """Tests that a map read back from its document answers as before, for 64-bit offsets.

    It matters because positions are translated long after the restore, by another process.
    A map stored with 32-bit or floating-point numbers would move consumers of old topics.
    """
    offset_map = _map_of(offsets, target_start)
    document = offset_map.to_document(restore_id="r", source="a", target="b", partition=0)
    again = OffsetMap.from_document(type(document).from_bytes(document.to_bytes(), key="map"))
    assert again.runs == offset_map.runs
    assert again.target_end == offset_map.target_end
    for offset in offsets:
        assert again.to_target(offset) == offset_map.to_target(offset)


def test_offset_map_joins_consecutive_runs() -> None:
    """Tests that neighbouring runs become one.

    It matters because a topic of a billion records without gaps must be one run, not one per batch.
    A map that grew with the batches would not fit into memory.
    """
    offset_map = OffsetMap()
    for base in range(0, 10_000, 10):
        offset_map.add(base, 10)
    assert offset_map.runs == [(0, 0, 10_000)]


def test_offset_map_refuses_records_out_of_order() -> None:
    """Tests that a run below the last one is refused.

    It matters because a map is also the last check that no record was restored twice.
    Accepting it would hide a doubled or reordered batch.
    """
    offset_map = OffsetMap()
    offset_map.add(10, 5)
    with pytest.raises(DamagedError, match="14"):
        offset_map.add(14, 1)
