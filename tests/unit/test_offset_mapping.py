"""Positions of groups as values: kept whole, told apart, and translated through an offset map."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kafka_backup.offset_mapping import (
    OffsetMap,
    OffsetState,
    RestoredPartition,
    deduplicate_by_group,
    group_by_group_id,
    states_of,
    translate,
)
from kafka_backup.repository.group_documents import GroupSnapshot, Position, SavedGroup

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
STATES = st.builds(
    OffsetState,
    group_id=TEXT,
    topic=st.sampled_from(["orders", "a.b_c-D"]),
    partition=st.integers(0, 3),
    committed_offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(-(2**63), 2**63 - 1),
    topic_id=st.none() | st.just("AbCdEfGhIjKlMnOpQrStUv"),
    leader_epoch=st.integers(-1, 2**31 - 1),
    metadata=TEXT,
)


def state(
    group: str = "app1", topic: str = "orders", partition: int = 0, offset: int = 0, timestamp: int = 0
) -> OffsetState:
    return OffsetState(
        group_id=group, topic=topic, partition=partition, committed_offset=offset, timestamp=timestamp
    )


@given(STATES)
def test_offset_state_serialization_preserves_all_fields(original: OffsetState) -> None:
    """What: a state as JSON and back, with any text and the largest numbers.

    Why: states are stored, and sent between programs.
    Risk: an offset beyond 2^53 through a float, a null that became an empty text.
    """
    assert OffsetState.model_validate_json(original.model_dump_json()) == original
    fields = json.loads(original.model_dump_json())
    assert fields["committed_offset"] == original.committed_offset
    assert set(fields) == set(OffsetState.model_fields)


@pytest.mark.parametrize(
    "wrong", [{"committed_offset": -1}, {"topic": "a/b"}, {"extra": 1}, {"partition": "0"}]
)
def test_a_state_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    """What: a negative offset, an impossible topic, an unknown field, a number as text.

    Why: "no commit" is -1 on the wire, and must not become a position.
    Risk: a consumer that is put to offset -1 resets by its own policy.
    """
    with pytest.raises(ValidationError):
        OffsetState.model_validate({**state().model_dump(), **wrong})


def test_offset_mapping_deduplication_keeps_latest() -> None:
    """What: three states of one group at the same time, and states at different times.

    Why: several sources may tell of one position; only one can be set.
    Risk: the last that was mentioned taken for the latest.
    """
    found = deduplicate_by_group([state(offset=100), state(offset=200), state(offset=150)])
    assert [each.committed_offset for each in found] == [200]
    rewound = [state(offset=100, timestamp=1), state(offset=20, timestamp=3), state(offset=90, timestamp=2)]
    assert [each.committed_offset for each in deduplicate_by_group(rewound)] == [20]


@given(st.lists(STATES, max_size=20), st.randoms())
def test_deduplication_does_not_depend_on_the_order(states: list[OffsetState], random: object) -> None:
    """What: any states in any order: one of each position, and always the same.

    Why: answers of several coordinators come in any order.
    Risk: a position that depends on which thread was first.
    """
    shuffled = list(states)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def latest(found: list[OffsetState]) -> dict[tuple[str, str, int], tuple[int, int]]:
        kept = deduplicate_by_group(found)
        positions = {(s.group_id, s.topic, s.partition): (s.timestamp, s.committed_offset) for s in kept}
        assert len(positions) == len(kept)
        return positions

    assert latest(states) == latest(shuffled)
    for each in states:
        assert latest(states)[each.group_id, each.topic, each.partition] >= (
            each.timestamp,
            each.committed_offset,
        )


def test_group_offset_state_groups_correctly() -> None:
    """What: states of two groups on one topic, grouped.

    Why: a group is moved as a whole.
    Risk: a position that lands with another group of the same topic.
    """
    grouped = group_by_group_id(
        [
            state("group1", "topic1", 0, 100),
            state("group1", "topic1", 1, 200),
            state("group2", "topic1", 0, 150),
        ]
    )
    assert {group: [each.committed_offset for each in states] for group, states in grouped.items()} == {
        "group1": [100, 200],
        "group2": [150],
    }


def test_the_states_of_a_snapshot_are_its_positions() -> None:
    """What: a snapshot with a group that could not be read: only what was read becomes states.

    Why: a failed group has no positions that could be set.
    Risk: "unknown" taken for "none", or for the beginning.
    """
    read = SavedGroup(
        group="a",
        type="classic",
        state="Empty",
        protocol_type="",
        status="read",
        positions=(
            Position(topic="orders", topic_id=None, partition=1, offset=7, leader_epoch=3, metadata="m"),
        ),
    )
    failed = read.model_copy(update={"group": "b", "status": "failed", "positions": ()})
    snapshot = GroupSnapshot(
        snapshot_id="x",
        nonce="n",
        capture_id=None,
        cluster_id="c",
        taken_at=5,
        ended_at=6,
        include=("*",),
        exclude=(),
        incomplete=(),
        topics={},
        groups=(read, failed),
    )
    assert states_of(snapshot) == [
        OffsetState(
            group_id="a",
            topic="orders",
            partition=1,
            committed_offset=7,
            timestamp=5,
            topic_id=None,
            leader_epoch=3,
            metadata="m",
        )
    ]


@given(st.sets(st.integers(0, 60), max_size=40), st.integers(0, 70), st.integers(0, 20))
def test_a_translated_position_reads_on_exactly(restored: set[int], position: int, start: int) -> None:
    """What: any records restored out of 60, and any position: the target holds the very records not yet read.

    Why: gaps, aborted records and time bounds leave any set of offsets.
    Risk: a position that is wrong by one is a record that is lost or done twice.
    """
    offsets = OffsetMap(target_start=start)
    for source in sorted(restored):
        offsets.add(source, 1)
    target = dict(enumerate(sorted(restored), start))
    part = RestoredPartition(target="restored-orders", offsets=offsets, captured_end=61)
    (move,), left = translate([state(offset=position)], {("orders", 0): part})
    assert left == []
    still_to_read = [source for offset, source in sorted(target.items()) if offset >= move.target_offset]
    assert still_to_read == [source for source in sorted(restored) if source >= position]
    assert move.remaining == len(still_to_read)
    assert start <= move.target_offset <= start + len(restored)
    assert move.is_beyond == (position > 61)
    assert (move.target, move.state.committed_offset) == ("restored-orders", position)


def test_a_partition_that_was_not_restored_is_left() -> None:
    """What: positions on another partition and another topic than those that were restored.

    Why: a restore may take one partition of many.
    Risk: the map of one partition applied to another.
    """
    part = RestoredPartition(target="t", offsets=OffsetMap(), captured_end=0)
    states = [state(partition=0), state(partition=1), state(topic="other")]
    moves, left = translate(states, {("orders", 0): part})
    assert [move.state for move in moves] == states[:1]
    assert left == states[1:]
