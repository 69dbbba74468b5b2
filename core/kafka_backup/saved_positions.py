"""Positions to go to: those of a group snapshot, or of a time in the past, through a restore or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.group_history import GroupHistory
from kafka_backup.kafka.cluster import Partition
from kafka_backup.offset_mapping import OffsetState, RestoredPartition, states_of
from kafka_backup.repository.group_documents import GroupSnapshot
from kafka_backup.times import format_time


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPositions:
    """Positions to go to, and what is known of their completeness.

    Attributes:
        where: what they are from, for messages: ``group snapshot X``.
        groups: the groups in it; one without positions had none.
        states: their positions.
        topics: every topic that was visible then, with its id: on these, no position means none.
        unreadable: groups whose positions are not known, and why.
        share: share groups, which have none.
        incomplete: why groups or topics may be missing.
        restored: where a restore put each source partition; None without one.
    """

    where: str
    groups: frozenset[str]
    states: Sequence[OffsetState]
    topics: Mapping[str, str]
    unreadable: Mapping[str, str]
    share: frozenset[str]
    incomplete: Sequence[str]
    restored: Restored | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a finished restore did.

    Attributes:
        restore_id: its id.
        cluster_id: where it wrote.
        sources: topic id of each source topic that it read.
        targets: target topic of each, and its topic id.
        partitions: each restored partition by source topic and number.
    """

    restore_id: str
    cluster_id: str
    sources: Mapping[str, str]
    targets: Mapping[str, tuple[str, str]]
    partitions: Mapping[Partition, RestoredPartition]


def saved_positions(snapshot: GroupSnapshot, *, restored: Restored | None = None) -> SavedPositions:
    """Return the positions of a group snapshot as a reset wants them."""
    return SavedPositions(
        where=f"group snapshot {snapshot.snapshot_id}",
        groups=frozenset(group.group for group in snapshot.groups),
        states=states_of(snapshot),
        topics=snapshot.topics,
        unreadable={group.group: group.detail or "" for group in snapshot.failed},
        share=frozenset(group.group for group in snapshot.groups if group.status == "unsupported"),
        incomplete=snapshot.incomplete,
        restored=restored,
    )


def historic_positions(history: GroupHistory, *, restored: Restored | None = None) -> SavedPositions:
    """Return the positions of a time in the past as a reset wants them; a doubtful one cannot be gone to."""
    return SavedPositions(
        where=f"the history at {format_time(history.at_ms)}",
        groups=frozenset(history.groups),
        states=[position.state for found in history.groups.values() for position in found],
        topics=history.topics,
        unreadable={
            group: position.doubt
            for group, found in history.groups.items()
            for position in found
            if position.doubt is not None
        },
        share=frozenset(),
        incomplete=history.doubts,
        restored=restored,
    )
