"""What brokers say of their cluster, and what to believe where they differ.

A broker that was cut off from its peers goes on naming itself leader for a while, also after it is back,
and shows topics that were deleted meanwhile. One answer proves nothing; most of the brokers together do.
"""

from __future__ import annotations

import base64
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kio.schema.errors import ErrorCode
from kio.schema.metadata.v12.response import MetadataResponse, MetadataResponseTopic

from kafka_backup.kafka.settings import Address

INTERNAL_TOPICS = frozenset(
    {"__cluster_metadata", "__consumer_offsets", "__share_group_state", "__transaction_state"}
)
"""Kafka's own topics, for where no broker is at hand to say so."""


def topic_id_text(topic_id: uuid.UUID | None) -> str:
    """Return a topic id as Kafka prints it: 22 characters of URL-safe base64 (Kafka's Uuid)."""
    raw = bytes(16) if topic_id is None else topic_id.bytes
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def topic_uuid(text: str) -> uuid.UUID:
    """Return the topic id that `topic_id_text` wrote."""
    return uuid.UUID(bytes=base64.urlsafe_b64decode(text + "=="))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionMetadata:
    """One partition; `leader` is -1 while there is none."""

    leader: int
    leader_epoch: int
    replicas: Sequence[int]
    isr: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMetadata:
    """One topic as the brokers describe it."""

    name: str
    topic_id: str
    is_internal: bool
    partitions: Mapping[int, PartitionMetadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMetadata:
    """What is known of a cluster: its live brokers, and the topics asked for.

    Attributes:
        errors: protocol error codes of topics that were asked for and could not be described.
        disputed: topics about whose existence or id the brokers do not agree; not in `topics`.
    """

    cluster_id: str
    brokers: Mapping[int, Address]
    topics: Mapping[str, TopicMetadata]
    errors: Mapping[str, int] = field(default_factory=dict)
    disputed: frozenset[str] = frozenset()


def read_metadata(answer: MetadataResponse) -> ClusterMetadata:
    """Read one broker's answer; topics that it does not know are left out."""
    topics, errors = {}, {}
    for topic in answer.topics:
        name = str(topic.name)
        if topic.error_code in (ErrorCode.unknown_topic_or_partition, ErrorCode.unknown_topic_id):
            continue
        if topic.error_code:
            errors[name] = int(topic.error_code)
        else:
            topics[name] = _read_topic(name, topic)
    return ClusterMetadata(
        cluster_id=str(answer.cluster_id),
        brokers={int(b.node_id): Address(b.host, int(b.port)) for b in answer.brokers},
        topics=topics,
        errors=errors,
    )


def _read_topic(name: str, topic: MetadataResponseTopic) -> TopicMetadata:
    return TopicMetadata(
        name=name,
        topic_id=topic_id_text(topic.topic_id),
        is_internal=topic.is_internal,
        partitions={
            int(part.partition_index): PartitionMetadata(
                leader=int(part.leader_id),
                leader_epoch=int(part.leader_epoch),
                replicas=tuple(map(int, part.replica_nodes)),
                isr=tuple(map(int, part.isr_nodes)),
            )
            for part in topic.partitions
        },
    )


def newest(known: TopicMetadata | None, found: TopicMetadata) -> TopicMetadata:
    """Join two views of one topic id: all partitions, each as of its highest leader epoch.

    Leader epochs only grow (KIP-101), so an answer with a lower one is an older one. Of another topic
    id nothing is taken.
    """
    if known is None or known.topic_id != found.topic_id:
        return found
    partitions = dict(known.partitions)
    for number, part in found.partitions.items():
        if number not in partitions or part.leader_epoch >= partitions[number].leader_epoch:
            partitions[number] = part
    return TopicMetadata(
        name=found.name, topic_id=found.topic_id, is_internal=found.is_internal, partitions=partitions
    )


def agreed(answers: Sequence[ClusterMetadata]) -> tuple[ClusterMetadata, bool]:
    """Join the answers of several brokers to the same question.

    A topic exists, and has the id, that more than half of the answers say. Its leaders are those of the
    highest leader epoch that any of them reports.

    Args:
        answers: one of each broker, at least one.

    Returns:
        What to believe, and whether all of them agreed on which topics there are.
    """
    votes: dict[str, Counter[str | int]] = {}
    for answer in answers:
        for name, topic in answer.topics.items():
            votes.setdefault(name, Counter())[topic.topic_id] += 1
        for name, code in answer.errors.items():
            votes.setdefault(name, Counter())[code] += 1
    topics: dict[str, TopicMetadata] = {}
    errors: dict[str, int] = {}
    disputed = set()
    unanimous = True
    for name, counted in votes.items():
        verdict, count = counted.most_common(1)[0]
        unanimous = unanimous and count == len(answers)
        if 2 * count > len(answers):
            if isinstance(verdict, int):
                errors[name] = verdict
            else:
                views = (answer.topics.get(name) for answer in answers)
                for view in views:
                    if view is not None and view.topic_id == verdict:
                        topics[name] = newest(topics.get(name), view)
        elif 2 * counted.total() >= len(answers):  # else more than half say that there is none
            disputed.add(name)
    brokers = {number: address for answer in answers for number, address in answer.brokers.items()}
    known = ClusterMetadata(
        cluster_id=answers[0].cluster_id,
        brokers=brokers,
        topics=topics,
        errors=errors,
        disputed=frozenset(disputed),
    )
    return known, unanimous
