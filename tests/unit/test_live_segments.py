"""What a partition holds as of each commit, whatever happened to it, against a plain dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kafka_backup.expected_batches import PartitionTarget, expected_batches
from kafka_backup.records.codec import decode_batch
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import LostSpan
from kafka_backup.repository.restore_documents import PlannedPartition, PlannedTopic, RestoreRequest
from kafka_backup.repository.store import Store
from tests.unit.repositories import (
    TOPIC,
    TOPIC_ID,
    append,
    batch,
    live_records,
    memory_store,
    part,
    write_segment,
)


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to a partition between two commits.

    Attributes:
        cut_by: an unclean election takes away so many offsets.
        segments: of the next capture: sizes of the batches in each.
        removed: retention takes so many of the new offsets before the capture could read them.
    """

    cut_by: int
    segments: Sequence[Sequence[int]]
    removed: int


STEPS = st.builds(
    Step,
    cut_by=st.one_of(st.just(0), st.integers(1, 15)),
    segments=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), max_size=3),
    removed=st.one_of(st.just(0), st.integers(1, 12)),
)


def write(store: Store, steps: Sequence[Step]) -> Iterator[Mapping[int, bytes]]:
    """Commit each step; yields what the partition holds after it: the value of each offset."""
    log = CommitLog.open(store, TOPIC, TOPIC_ID)
    holds: dict[int, bytes] = {}
    end = 0
    for number, step in enumerate(steps):
        start = max(0, end - step.cut_by)
        truncated_to = start if start < end else None
        holds = {offset: value for offset, value in holds.items() if offset < start}
        value = b"%d" % number
        end = start + sum(map(sum, step.segments))
        # The first capture may begin at a log start inside a batch; a later one has lost what is below.
        first = min(end, start + step.removed)
        lost = [LostSpan(start=start, end=first, reason="retention")] if log.commits and first > start else []
        entries = []
        position = start
        for index, sizes in enumerate(step.segments):
            batches = []
            for size in sizes:
                if position + size > first:
                    batches.append(batch(position, size, value=value))
                position += size
            if batches:
                capture_id = f"capture-{number}"
                entries.append(write_segment(store, b"".join(batches), capture_id=capture_id, index=index))
        append(
            log,
            part(
                start if log.commits else first, end, segments=entries, lost=lost, truncated_to=truncated_to
            ),
            capture_id=f"capture-{number}",
        )
        holds |= dict.fromkeys(range(first, end), value)
        yield holds


def restored(store: Store, log: CommitLog, *, head: int, **request: int) -> dict[int, bytes]:
    """What a restore of commit `head` would produce: the value of each source offset."""
    partition = PlannedPartition(
        partition=0, source_start=0, source_end=0, segments=0, raw_bytes=0, batches=0, reencoded_batches=0,
        records=0,
    )  # fmt: skip
    topic = PlannedTopic(
        source=TOPIC, source_topic_id=TOPIC_ID, target="again", target_topic_id=None, target_configuration={},
        head=head, head_sha256=log.sha256_of(head), partition_count=1, replication_factor=1, configuration={},
        not_applied={}, retention_ms=-1, retention_bytes=-1, max_batch_bytes=1 << 20, merge_bytes=0,
        partitions=(partition,),
    )  # fmt: skip
    target = PartitionTarget(
        request=RestoreRequest(restore_id="r", **request),
        topic=topic,
        partition=partition,
        target_topic_id=TOPIC_ID,
        log=log,
    )
    found: dict[int, bytes] = {}
    for each in expected_batches(target, store, before_segment=lambda: None):
        offsets = [start + i for start, count in each.runs for i in range(count)]
        assert not found or offsets[0] > max(found)
        for offset, record in zip(offsets, decode_batch(bytes(each.data)), strict=True):
            assert record.value is not None
            found[offset] = record.value
    return found


@given(st.lists(STEPS, max_size=6))
def test_any_history_of_a_partition(steps: list[Step]) -> None:
    """After any history the live records of each commit are those of a plain dictionary.

    It matters because a restore reads nothing else, and truncations, losses and log starts follow each other.
    A record of a lost history could come back to life, or one behind a cut be left out.
    """
    store = memory_store()
    states = [dict(state) for state in write(store, steps)]
    log = CommitLog.open(store, TOPIC, TOPIC_ID)
    for number, state in enumerate(states):
        live = list(live_records(store, log, until_commit=number))
        assert [(record.offset, record.value) for record in live] == sorted(state.items())
        assert log.records(0, until_commit=number) == len(state)


@given(st.lists(STEPS, max_size=5), st.one_of(st.none(), st.integers(0, 60)))
def test_a_restore_produces_exactly_the_live_records(steps: list[Step], from_offset: int | None) -> None:
    """What a restore of any commit would produce is the dictionary's content, also from a time on.

    It matters because a restore is the moment of truth, and it alone brings cut records to a broker.
    Bounds that the restore works out for itself could differ from those of the commit log.
    """
    store = memory_store()
    states = [dict(state) for state in write(store, steps)]
    log = CommitLog.open(store, TOPIC, TOPIC_ID)
    request = {} if from_offset is None else {"from_ms": 1000 + from_offset}
    for number, state in enumerate(states):
        wanted = {offset: value for offset, value in state.items() if offset >= (from_offset or 0)}
        assert restored(store, log, head=number, **request) == wanted
