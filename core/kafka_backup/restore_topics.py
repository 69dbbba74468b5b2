"""The target topics of a restore: found or made, safe while they are written, configured in the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from kafka_backup.errors import RefusedError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import TopicMetadata
from kafka_backup.kafka.topics import TopicAdmin, TopicExistsError, wait_for_leaders
from kafka_backup.progress import StopToken
from kafka_backup.repository.restore_documents import (
    PlannedTopic,
    RestoreAttempt,
    RestoredTopic,
    RestorePlan,
    VerifiedTopic,
)
from kafka_backup.restore_in_place import delete_replaced, is_doomed
from kafka_backup.restore_target import offset_bounds, safe_configuration

_RETENTION = ("retention.ms", "retention.bytes")


class RestoreTopics:
    """Looks after the targets of one plan."""

    def __init__(self, plan: RestorePlan, *, cluster: Cluster, admin: TopicAdmin, stop: StopToken) -> None:
        self._plan = plan
        self._cluster = cluster
        self._admin = admin
        self._stop = stop

    def check_cluster(self) -> None:
        """Refuse another cluster than the one that the plan was made for."""
        found = self._cluster.metadata(None).cluster_id
        if found != self._plan.target_cluster_id:
            raise RefusedError(
                f"restore {self._plan.request.restore_id} was planned for cluster {self._plan.target_cluster_id}, "
                f"the configured target is {found}; plan a new restore"
            )

    def prepare(self, previous: Sequence[RestoreAttempt]) -> dict[str, str]:
        """Make sure that every target exists, is ours to write, and keeps all that it gets.

        Nothing is changed before all of them were looked at.

        Args:
            previous: the attempts before this one.

        Returns:
            The topic id of each target.

        Raises:
            RefusedError: a target is not what the plan or an earlier attempt says.
        """
        existing = self._existing(
            {entry.topic: entry.topic_id for entry in previous[-1].targets} if previous else {}
        )
        doomed = {topic.target for topic in self._plan.topics if is_doomed(topic, existing)}
        existing = {name: found for name, found in existing.items() if name not in doomed}
        if not previous:
            self._check_untouched(existing)
        if doomed:
            delete_replaced(self._plan, cluster=self._cluster, stop=self._stop)
        topic_ids = {}
        for topic in self._plan.topics:
            self._stop.check()
            found = existing.get(topic.target)
            # Without a claim it may be the topic of an attempt that died before its claim.
            topic_ids[topic.target] = found.topic_id if found is not None else self._create(topic)
            known = self._admin.describe_configs([topic.target], check_stop=self._stop.check)[topic.target]
            safe = safe_configuration(known, max_batch_bytes=topic.max_batch_bytes)
            self._admin.alter_configs(topic.target, set=safe, delete=(), check_stop=self._stop.check)
        return topic_ids

    def check(self, topic_ids: Mapping[str, str]) -> None:
        """Refuse targets that are not these topics any more."""
        self._existing(topic_ids)

    def _existing(self, claimed: Mapping[str, str]) -> Mapping[str, TopicMetadata]:
        existing = self._cluster.survey([topic.target for topic in self._plan.topics]).topics
        for topic in self._plan.topics:
            expected = claimed.get(topic.target, topic.target_topic_id)
            self._check_target(topic, existing.get(topic.target), expected)
        return existing

    def _check_target(self, topic: PlannedTopic, found: TopicMetadata | None, expected: str | None) -> None:
        restore_id = self._plan.request.restore_id
        replaced = topic.replaces.topic_id if topic.replaces is not None else None
        if expected is None and found is not None and found.topic_id == replaced:
            return
        if found is not None and len(found.partitions) != topic.partition_count:
            raise RefusedError(
                f"{topic.target} has {len(found.partitions)} partitions, the plan says "
                f"{topic.partition_count}; somebody else created or changed it. Plan a new restore"
            )
        if expected is None or (found is not None and found.topic_id == expected):
            return
        happened = "deleted" if found is None else "deleted and re-created"
        raise RefusedError(
            f"{topic.target} was {happened} since restore {restore_id} was planned or begun; plan a new "
            "restore with another id"
        )

    def _check_untouched(self, existing: Mapping[str, TopicMetadata]) -> None:
        """Before our first write the targets must be as the plan found them: empty."""
        keys = [(name, partition) for name, topic in existing.items() for partition in topic.partitions]
        planned = {
            (topic.target, part.partition): part.initial_end
            for topic in self._plan.topics
            for part in topic.partitions
        }
        filled = [
            f"{name} [{partition}] (offsets [{start}, {end}))"
            for (name, partition), (start, end) in offset_bounds(self._cluster, keys).items()
            if end != planned.get((name, partition), start)
        ]
        if filled:
            raise RefusedError(
                f"records appeared in {', '.join(filled)} since restore {self._plan.request.restore_id} was "
                "planned; nothing was written. Restore under another name with another id"
            )

    def _create(self, topic: PlannedTopic) -> str:
        is_new = True
        try:
            self._admin.create_topic(
                topic.target,
                partitions=topic.partition_count,
                replication_factor=topic.replication_factor,
                configs=safe_configuration({}, max_batch_bytes=topic.max_batch_bytes),
            )
        except TopicExistsError:
            # Brokers tell late of one that an attempt made just before it died, or by a request whose answer was lost.
            is_new = False
        topic_id = wait_for_leaders(
            self._cluster,
            topic.target,
            partitions=topic.partition_count,
            other_than=topic.replaces.topic_id if topic.replaces is not None else None,
        )
        if not is_new:
            self._check_untouched(self._cluster.survey([topic.target]).topics)
        return topic_id

    def configure(self, topic: PlannedTopic, verified: VerifiedTopic) -> RestoredTopic:
        """Put the saved configuration in force, but hold retention back where it would delete at once."""
        held = _retention_would_delete(topic, verified)
        wanted = {
            name: value for name, value in topic.configuration.items() if not (held and name in _RETENTION)
        }
        current = self._admin.describe_configs([topic.target], check_stop=self._stop.check)[topic.target]
        overridden = [name for name, value in current.items() if value.source == "DYNAMIC_TOPIC_CONFIG"]
        self._admin.alter_configs(
            topic.target,
            set=wanted,
            delete=[n for n in overridden if n not in wanted and not (held and n in _RETENTION)],
            check_stop=self._stop.check,
        )
        return RestoredTopic(
            source=topic.source,
            target=topic.target,
            target_topic_id=verified.target_topic_id,
            partitions=verified.partitions,
            configuration=topic.configuration,
            not_applied=topic.not_applied,
            retention_held=held,
            replaced_topic_id=topic.replaces.topic_id if topic.replaces is not None else None,
        )


def release_retention(admin: TopicAdmin, topics: Sequence[RestoredTopic]) -> Sequence[str]:
    """Put the saved retention in force where it was held back; returns the targets changed."""
    released = []
    for topic in topics:
        if topic.retention_held:
            saved = {name: topic.configuration[name] for name in _RETENTION if name in topic.configuration}
            admin.alter_configs(
                topic.target, set=saved, delete=[name for name in _RETENTION if name not in saved]
            )
            released.append(topic.target)
    return released


def _retention_would_delete(topic: PlannedTopic, verified: VerifiedTopic) -> bool:
    """Whether the saved retention would delete restored records as soon as it is in force.

    Kafka deletes a log segment when its largest timestamp is too old. A log segment holds at least
    one batch, so if no batch's largest timestamp is too old, no log segment's is.
    """
    if "delete" not in topic.configuration.get("cleanup.policy", "delete").split(","):
        return False
    now = time.time_ns() // 1_000_000
    oldest = min((part.oldest for part in verified.partitions if part.oldest is not None), default=now)
    largest = max((part.raw_bytes for part in verified.partitions), default=0)
    return (topic.retention_ms >= 0 and oldest < now - topic.retention_ms) or (
        0 <= topic.retention_bytes < largest
    )
