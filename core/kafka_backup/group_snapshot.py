"""Take a snapshot of consumer positions.

A position is a number that means a record only together with a topic incarnation, so the topic ids
are read before and after the positions, and a snapshot during which a topic changed is taken again.
A group that cannot be read stands in it as failed: an empty group is something else.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import AuthorizationError, BrokerError, ConfigurationError, KafkaBackupError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.groups import GroupClient, GroupListing, GroupOffsets, ListedGroup
from kafka_backup.kafka.last_commits import OFFSETS_TOPIC
from kafka_backup.kafka.rights import cluster_rights
from kafka_backup.repository.group_documents import GroupSnapshot, Position, SavedGroup
from kafka_backup.rights import example_of, hidden_topics
from kafka_backup.selection import FilterKind, GroupSelection, TopicSelection
from kafka_backup.times import time_in_id

_log = logging.getLogger(__name__)

_SHARE = "share"
_UNSUPPORTED = "a share group has no committed offsets: brokers keep a state of each record (KIP-932), which cannot be saved"
_UNKNOWN_TOPIC_ID = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenSnapshot:
    """A snapshot and the errors of the groups that failed in it, by name."""

    snapshot: GroupSnapshot
    errors: Mapping[str, KafkaBackupError]


def take_snapshot(
    cluster: Cluster,
    selection: GroupSelection,
    *,
    topics: TopicSelection,
    capture_id: str | None,
    cluster_id: str,
) -> TakenSnapshot:
    """Read the positions of all selected groups.

    Args:
        cluster: where; its stop check ends this too.
        selection: which groups. One that is named exactly and does not exist is a failed group.
        topics: those whose positions must all be there; if the right to see them may be missing, the
            snapshot is marked as incomplete. Positions on other topics are taken too.
        capture_id: the capture that this belongs to.
        cluster_id: of the cluster.

    Raises:
        UnreachableError: not all coordinators answered in time, so that groups may be missing.
    """
    client = GroupClient(cluster)
    taken_at = _now()
    listing = client.list_groups()
    listed = listing.groups
    names = selection.select(listed)
    readable = [name for name in names if listed[name].type != _SHARE]
    offsets, topic_ids = _read(cluster, client, readable)
    errors = {name: answer for name, answer in offsets.items() if isinstance(answer, KafkaBackupError)}
    errors |= {
        name: ConfigurationError(
            f"group {name!r} was named but does not exist, or the right DESCRIBE on it is missing"
        )
        for name in selection.missing(listed)
    }
    groups = [_saved(listed[name], offsets.get(name), topic_ids) for name in names]
    groups += [
        SavedGroup(group=name, type="", state="", protocol_type="", status="failed", detail=str(errors[name]))
        for name in selection.missing(listed)
    ]
    snapshot = GroupSnapshot(
        snapshot_id=f"{time_in_id(taken_at)}-{capture_id or secrets.token_hex(4)}",
        nonce=secrets.token_hex(16),
        capture_id=capture_id,
        cluster_id=cluster_id,
        taken_at=taken_at,
        ended_at=_now(),
        include=tuple(each.text for each in selection.include),
        exclude=tuple(each.text for each in selection.exclude),
        incomplete=tuple(missing_rights(cluster, client, selection, topics, listing)),
        doubts=tuple(doubts_of(listing)),
        topics=dict(topic_ids),
        groups=tuple(sorted(groups, key=lambda group: group.group)),
    )
    return TakenSnapshot(snapshot=snapshot, errors=errors)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _read(
    cluster: Cluster, client: GroupClient, groups: Sequence[str]
) -> tuple[Mapping[str, GroupOffsets | KafkaBackupError], Mapping[str, str]]:
    """Read offsets while no topic that they are about changes; returns them and the topic ids."""

    def ids() -> dict[str, str]:
        return {name: topic.topic_id for name, topic in cluster.survey(None).topics.items()}

    def ask() -> tuple[Mapping[str, GroupOffsets | KafkaBackupError], Mapping[str, str]]:
        before = ids()
        offsets = client.fetch(groups)
        after = ids()
        used = {topic for found in offsets.values() if isinstance(found, Mapping) for topic, _ in found}
        for topic in used:
            if before.get(topic) != after.get(topic):
                raise BrokerError(
                    f"topic {topic} was created, deleted or re-created meanwhile",
                    code=_UNKNOWN_TOPIC_ID,
                    name="UNKNOWN_TOPIC_ID",
                    retriable=True,
                )
        return offsets, after

    return cluster.retry("reading the positions of consumer groups", ask)


def _saved(
    listed: ListedGroup, offsets: GroupOffsets | KafkaBackupError | None, topic_ids: Mapping[str, str]
) -> SavedGroup:
    positions: list[Position] = []
    status, detail = "read", None
    if offsets is None:
        status, detail = "unsupported", _UNSUPPORTED
    elif isinstance(offsets, KafkaBackupError):
        status, detail = "failed", str(offsets)
    else:
        positions = [
            Position(
                topic=topic,
                topic_id=topic_ids.get(topic),
                partition=partition,
                offset=committed.offset,
                leader_epoch=committed.leader_epoch,
                metadata=committed.metadata,
            )
            for (topic, partition), committed in sorted(offsets.items())
        ]
    return SavedGroup(
        group=listed.group,
        type=listed.type,
        state=listed.state,
        protocol_type=listed.protocol_type,
        status=status,  # type: ignore[arg-type]
        detail=detail,
        positions=tuple(positions),
    )


def doubts_of(listing: GroupListing) -> list[str]:
    """Say which last commits may be missing although nothing says that they are, and log it."""
    doubts = [
        f"{OFFSETS_TOPIC} [{partition}]: nothing was written since its coordinator took over, so that the last commits "
        "before may not be shown, and its log does not tell: "
        + (
            f"the right READ on {OFFSETS_TOPIC} is missing"
            if isinstance(error, AuthorizationError)
            else str(error)
        )
        for partition, error in sorted(listing.unread.items())
    ]
    if doubts:
        more = f"; and {len(doubts) - 1} more partitions" if len(doubts) > 1 else ""
        _log.warning("%s%s", doubts[0], more)
    return doubts


def unproved(listing: GroupListing) -> list[str]:
    """Say which right is missing to know that a listing is whole."""
    if listing.is_proved:
        return []
    return [
        f"groups may be missing whose coordinator was moving: the right DESCRIBE on {OFFSETS_TOPIC} is missing"
    ]


def missing_rights(
    cluster: Cluster,
    client: GroupClient,
    groups: GroupSelection,
    topics: TopicSelection,
    listing: GroupListing,
) -> list[str]:
    """Say what of groups and topics the brokers may have left out silently, because a right is missing.

    For each pattern a name is made up that it matches: who may describe that, holds the right for
    the pattern, not only for the groups and topics that were shown.
    """
    reasons = unproved(listing)
    if "DESCRIBE" not in cluster_rights(cluster):
        reasons += [
            f"groups that match {each.text} may be hidden from us: the right DESCRIBE on all of them is missing"
            for each in groups.include
            if each.kind is not FilterKind.EXACT and not client.may_describe(example_of(each))
        ]
    hidden = hidden_topics(cluster, topics, cluster.metadata(None))
    reasons += [
        f"topic {topic} is hidden from us: the right DESCRIBE on it is missing" for topic in hidden.topics
    ]
    reasons += [
        f"topics that match {pattern} may be hidden from us: the right DESCRIBE on all of them is missing"
        for pattern in hidden.patterns
    ]
    return reasons
