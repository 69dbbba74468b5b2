"""What a plan tells of positions before any record is read, against a slow model that reads them all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.offset_estimate import OffsetEstimate
from kafka_backup.records.codec import Record, encode_batch
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Ledger
from kafka_backup.repository.restore_documents import PlannedPartition, PlannedTopic, RestoreRequest
from tests.unit.repositories import (
    CAPTURE,
    NONCE,
    TOPIC,
    TOPIC_ID,
    incarnation,
    memory_store,
    part,
    write_segment,
)


def captured(offsets: Sequence[int], cuts: Sequence[int]) -> CommitLog:
    """A log that holds these offsets in one commit; a segment ends at each cut; record n is of time n."""
    store = memory_store()
    log = CommitLog.open(store, TOPIC, TOPIC_ID)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(offsets)}), len(offsets)]
    segments = [
        write_segment(
            store,
            encode_batch([Record(offset=o, timestamp=o, key=b"k", value=b"v") for o in offsets[first:last]]),
            index=index,
        )
        for index, (first, last) in enumerate(pairwise(bounds))
        if first < last
    ]
    end = offsets[-1] + 1 if offsets else 0
    gaps = end - len(offsets)
    whole = part(0, end, segments=segments)
    log.append(
        nonce=NONCE,
        capture_id=CAPTURE,
        window=None,
        committed_at=1,
        incarnation=incarnation(),
        partitions=[whole.model_copy(update={"ledger": Ledger(records=len(offsets), compacted=gaps)})],
    )
    return log


def planned(
    log: CommitLog, *, start: int, initial_end: int, count: int
) -> tuple[PlannedTopic, PlannedPartition]:
    partition = PlannedPartition(
        partition=0, source_start=start, source_end=log.end_of(0) or 0, segments=1, raw_bytes=1, batches=1,
        reencoded_batches=0, records=count, initial_end=initial_end,
    )  # fmt: skip
    topic = PlannedTopic(
        source=TOPIC, source_topic_id=TOPIC_ID, target="again", target_topic_id=None, target_configuration={},
        head=0, head_sha256=log.sha256_of(0), partition_count=2, replication_factor=1, configuration={},
        not_applied={}, retention_ms=-1, retention_bytes=-1, max_batch_bytes=1 << 20, partitions=(partition,),
    )  # fmt: skip
    return topic, partition


@given(
    offsets=st.lists(st.integers(0, 40), unique=True).map(sorted),
    cuts=st.lists(st.integers(1, 30), max_size=4),
    start=st.integers(0, 20),
    initial_end=st.sampled_from([0, 7]),
    bounds=st.tuples(*[st.none() | st.integers(0, 40)] * 2),
)
def test_an_estimate_is_exact_or_says_that_it_is_not(
    offsets: list[int], cuts: list[int], start: int, initial_end: int, bounds: tuple[int | None, int | None]
) -> None:
    """What: every position of logs with gaps, cut into segments, with and without bounds of time.

    Why: the plan is what somebody looks at before saying yes, and it must come true.
    Risk: a number that is wrong by one, or "at most" a number that is too small.
    """
    from_ms, until_ms = bounds
    log = captured(offsets, cuts)
    request = RestoreRequest(restore_id="r", from_ms=from_ms, until_ms=until_ms)
    kept = [
        o
        for o in offsets
        if o >= start and (from_ms is None or o >= from_ms) and (until_ms is None or o <= until_ms)
    ]
    estimate = OffsetEstimate(
        request, *planned(log, start=start, initial_end=initial_end, count=len(kept)), log
    )
    is_dense = len(offsets) == (offsets[-1] + 1 - offsets[0] if offsets else 0)
    for position in range(45):
        offset, remaining = estimate.of(position)
        truly = sum(o >= position for o in kept)
        assert remaining >= truly
        if offset is not None:
            assert offset == initial_end + len(kept) - truly
        if bounds == (None, None):
            assert (offset is None) or remaining == truly
            assert offset is not None or not is_dense
