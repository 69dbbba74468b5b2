"""Recovery points: up to which time everything of a topic is in the repository."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.kafka.metadata import INTERNAL_TOPICS
from kafka_backup.repository.repository import Repository
from kafka_backup.selection import TopicSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPoint:
    """Everything that was in Kafka before `time` (ms) is in the repository, thanks to `capture`.

    Every capture goes on where the last one ended, so the newest one that took all partitions of a
    topic stands for all before it. Lost offsets are another matter: their ledger says so.
    """

    capture: str
    time: int


def recovery_points(
    repository: Repository, topics: Collection[str], *, before: str | None = None
) -> Mapping[str, RecoveryPoint]:
    """Return the recovery point of each topic; a topic that was never captured whole is left out.

    Reads captures from the newest back until it knows, so a topic that was captured long ago is
    dear and one that never was is dearest: ask only for topics that should be there.

    Args:
        repository: where to look.
        topics: their names.
        before: a capture id; only captures that began before it are looked at.
    """
    wanted = set(topics)
    found: dict[str, RecoveryPoint] = {}
    for capture in repository.newest_captures(before=before) if wanted else ():
        whole = {entry.topic for entry in capture.topics} - {failure.topic for failure in capture.failures}
        for topic in wanted & whole:
            found[topic] = RecoveryPoint(capture=capture.capture_id, time=capture.started_at)
        wanted -= whole
        if not wanted:
            break
    return found


def captured_topics(repository: Repository, selection: TopicSelection) -> Sequence[str]:
    """Return the selected topics of the newest capture that took, or should have taken, any of them.

    That is what is backed up today: topics that were deleted since are in older captures only.
    """
    for capture in repository.newest_captures():
        named = {entry.topic for entry in capture.topics}
        named |= {failure.topic for failure in capture.failures if failure.topic is not None}
        if found := sorted(
            name for name in named if selection.includes(name, internal=name in INTERNAL_TOPICS)
        ):
            return found
    return ()
