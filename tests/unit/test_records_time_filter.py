"""Record time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.records.batch import read_header
from kafka_backup.records.codec import Record, encode_batch
from kafka_backup.records.time_filter import Decision, decide, filter_by_timestamp
from tests.unit.strategies import stored_batches, timestamps

bounds = st.none() | timestamps


@given(batch=stored_batches(), from_ms=bounds, until_ms=bounds)
def test_decision_by_header_never_contradicts_the_records(
    batch: tuple[bytes, list[Record]], from_ms: int | None, until_ms: int | None
) -> None:
    """Tests that a batch taken whole has only records inside the span, and one skipped has none.

    It matters because most batches are judged by their header alone.
    The base timestamp taken for a minimum would drop records older than the first.
    """
    raw, records = batch
    kept = filter_by_timestamp(records, from_ms, until_ms)
    decision = decide(read_header(raw), from_ms, until_ms)
    if decision is Decision.ALL:
        assert kept == records
    if decision is Decision.NONE:
        assert kept == []
    if from_ms is None and until_ms is None:
        assert decision is Decision.ALL


def test_timestamp_filtering_preserves_millisecond_accuracy() -> None:
    """Tests records one millisecond apart around both ends of the span.

    It matters because point-in-time recovery is only as exact as this.
    Seconds instead of milliseconds would put records on the wrong side of the moment.
    """
    records = [
        Record(offset=i, timestamp=1_672_531_200_000 + i, key=None, value=b"v") for i in range(1000, 1010)
    ]
    kept = filter_by_timestamp(records, 1_672_531_201_003, 1_672_531_201_006)
    assert [record.offset for record in kept] == [1003, 1004, 1005, 1006]


@given(time=timestamps, from_is_bound=st.booleans())
def test_a_batch_of_broker_times_on_the_bound_is_taken(time: int, from_is_bound: bool) -> None:
    """Tests LogAppendTime batches whose one time is exactly the start or the end of the span.

    It matters because all records of such a batch have this time, and both ends are inclusive.
    A strict comparison would leave out the whole batch of the last millisecond.
    """
    batch = encode_batch([Record(offset=5, timestamp=1, key=None, value=b"v")], log_append_time=time)
    header = read_header(batch)
    bound = (time, None) if from_is_bound else (None, time)
    assert decide(header, *bound) is Decision.ALL
    assert decide(header, time, time) is Decision.ALL
