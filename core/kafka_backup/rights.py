"""The rights that each task needs on a cluster, asked for before anything is fetched or written.

Brokers do not say that they hide a topic: whoever may not describe it is shown a cluster without it. So
what a pattern may miss is found out, not assumed. docs/security.md has the rights as a table.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import AuthorizationError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import INTERNAL_TOPICS, ClusterMetadata
from kafka_backup.kafka.rights import topic_rights, topics_on_disk
from kafka_backup.selection import FilterKind, NameFilter, TopicSelection

CAPTURE = ("READ", "DESCRIBE_CONFIGS")
"""On each topic that is captured."""
VERIFY = ("READ",)
"""On each restored topic that is compared with the repository."""
_LONGEST_TOPIC = 249
_LISTED = 20
"""Missing rights that a message names one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """What a selection may miss because brokers do not show it.

    Attributes:
        topics: selected topics that there are and that we may not describe.
        patterns: those that may match topics of which nobody tells us.
    """

    topics: Sequence[str]
    patterns: Sequence[str]


def check_capture(cluster: Cluster, selection: TopicSelection, visible: ClusterMetadata) -> None:
    """Make sure that we may capture all selected topics, and that none is hidden from us.

    One metadata request for all topics; with patterns, one more request per broker.

    Raises:
        AuthorizationError: naming each missing right and its topic.
    """
    hidden = hidden_topics(cluster, selection, visible)
    names = [
        name for name, topic in visible.topics.items() if selection.includes(name, internal=topic.is_internal)
    ]
    _demand({**topic_rights(cluster, names), **dict.fromkeys(hidden.topics, frozenset())}, CAPTURE, "capture")
    if hidden.patterns:
        raise AuthorizationError(
            f"topics that match {', '.join(hidden.patterns)} may be hidden from us. Grant READ and DESCRIBE_CONFIGS on "
            "all that could match (a prefixed or wildcard ACL), or DESCRIBE on the cluster, which shows what is "
            "hidden (docs/security.md, Rights); or name the topics exactly. Nothing was done"
        )


def check_verify(cluster: Cluster, topics: Sequence[str]) -> None:
    """Make sure that we may read these topics.

    Raises:
        AuthorizationError: naming those that we may not.
    """
    _demand(topic_rights(cluster, topics), VERIFY, "verify")


def _demand(held: Mapping[str, frozenset[str]], needed: Sequence[str], task: str) -> None:
    missing = [
        f"{right} on topic {name!r}" for name in sorted(held) for right in needed if right not in held[name]
    ]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise AuthorizationError(
            f"rights are missing to {task} the topics: {', '.join(missing[:_LISTED])}{more}. Grant them "
            "(docs/security.md, Rights), or leave these topics out. Nothing was done"
        )


def hidden_topics(cluster: Cluster, selection: TopicSelection, visible: ClusterMetadata) -> Hidden:
    """Find out what brokers hide from us that the selection means.

    Args:
        cluster: where.
        selection: exact names, and patterns, whose matches only the brokers can tell.
        visible: what they show us, all of it.
    """
    named = {each.text for each in selection.include if each.kind is FilterKind.EXACT}
    unseen = {name for name in named - set(visible.topics) if selection.includes(name)}
    patterns = [each for each in selection.include if each.kind is not FilterKind.EXACT]
    on_disk = topics_on_disk(cluster, visible.brokers.values()) if patterns else frozenset()
    unproved: list[str] = []
    if on_disk is None:
        unproved = [
            pattern.text
            for pattern in patterns
            if not _shown(cluster, [example_of(pattern)[:_LONGEST_TOPIC]])
        ]
    else:
        unseen |= {
            name
            for name in on_disk - set(visible.topics)
            if selection.includes(name, internal=name in INTERNAL_TOPICS)
        }
    # What was deleted or made a moment ago is unseen too, but not denied.
    denied = unseen - _shown(cluster, sorted(unseen))
    return Hidden(topics=sorted(denied), patterns=unproved)


def _shown(cluster: Cluster, topics: Sequence[str]) -> set[str]:
    """Those topics, existing or not, that we may describe."""
    return {name for name, held in topic_rights(cluster, topics).items() if "DESCRIBE" in held}


def example_of(pattern: NameFilter) -> str:
    """A name that a wildcard matches and nobody uses; for a regular expression, any such name.

    Who may describe it holds the right for the pattern, not only for what was shown.
    """
    unused = f"kafka-backup-probe-{secrets.token_hex(8)}"
    if pattern.kind is FilterKind.REGEX:
        return unused
    return pattern.text.replace("*", unused, 1).replace("*", "").replace("?", "x")
