"""Plan a restore: what goes where, and everything that forbids it, before anything is written.

What is taken is chosen in `restore_source`, what is found at the target in `restore_target`; here
both become the plan, which is all that carrying it out goes by.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from kafka_backup.errors import ConfigurationError, RefusedError
from kafka_backup.expected_batches import stamp_of
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import ClusterMetadata
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.records.merge import LARGEST_MERGED, worth_merging
from kafka_backup.renaming import check_rules, renamed
from kafka_backup.repository.documents import SegmentEntry
from kafka_backup.repository.layout import is_topic_name
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    PlannedPartition,
    PlannedTopic,
    RestorePlan,
    RestoreRequest,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.segments import StoredSegment
from kafka_backup.restore_findings import Findings
from kafka_backup.restore_groups import check_groups, plan_groups
from kafka_backup.restore_source import (
    INTERNAL_TOPICS,
    SourceTopic,
    check_objects,
    find_sources,
    source_segments,
)
from kafka_backup.restore_target import TargetPreflight

_BATCH_HEADROOM = 64 * 1024
"""A batch that is compressed again may come out a little larger than it was."""
_DEFAULT_MAX_MESSAGE_BYTES = 1_048_588


def plan(
    request: RestoreRequest, *, repository: Repository, cluster: Cluster, admin: TopicAdmin
) -> RestorePlan:
    """Return the stored plan of a restore, or make one; see `Engine.plan_restore`.

    Raises:
        ConfigurationError: the request contradicts itself, or names what the repository lacks.
        RefusedError: the restore id was used for another request, or abandoned.
    """
    _check(request)
    folder = repository.restore_folder(request.restore_id)
    stored = folder.plan()
    if stored is None:
        return make_plan(request, repository=repository, cluster=cluster, admin=admin, number=1)
    if stored.request != request:
        raise RefusedError(
            f"restore {request.restore_id} was planned with another request; use the same request to "
            "continue it, or a new --id for a new restore"
        )
    refuse_if_abandoned(folder)
    return stored


def refuse_if_abandoned(folder: RestoreFolder) -> None:
    """Raise RefusedError if the restore was given up: what it needs may be gone."""
    newest = folder.newest_attempt()
    if newest is not None and newest.action == "abandon":
        raise RefusedError(f"restore {folder.restore_id} was abandoned; use a new --id to restore again")


def make_plan(
    request: RestoreRequest, *, repository: Repository, cluster: Cluster, admin: TopicAdmin, number: int
) -> RestorePlan:
    """Make a plan from what repository and target are now; stores nothing.

    Args:
        request: what is asked for.
        repository: where the backups are.
        cluster: the target.
        admin: for the target's topics.
        number: of the plan; 1 unless an earlier one is to be replaced.

    Raises:
        ConfigurationError: the request names what the repository lacks.
    """
    metadata = cluster.metadata(None)
    findings = Findings()
    topics = _Planner(request, repository, cluster, admin, metadata, findings).topics()
    groups = plan_groups(request, topics, repository=repository, cluster=cluster, findings=findings)
    return RestorePlan(
        number=number,
        request=request,
        nonce=secrets.token_hex(16),
        planned_at=time.time_ns() // 1_000_000,
        repository_id=repository.document.repository_id,
        target_cluster_id=metadata.cluster_id,
        topics=tuple(topics),
        groups=groups,
        problems=tuple(findings.problems),
        notes=tuple(findings.notes),
    )


def _check(request: RestoreRequest) -> None:
    if request.from_ms is not None and request.until_ms is not None and request.from_ms > request.until_ms:
        raise ConfigurationError(
            f"the restore's time bounds are empty: from {request.from_ms} is after until {request.until_ms}"
        )
    check_rules(request.rename)
    check_groups(request)


def rename(request: RestoreRequest, topic: str) -> str:
    """The target's name: the first rule that matches the whole name, then the prefix."""
    return request.prefix + renamed(request.rename, topic)


class _Planner:
    def __init__(
        self,
        request: RestoreRequest,
        repository: Repository,
        cluster: Cluster,
        admin: TopicAdmin,
        metadata: ClusterMetadata,
        findings: Findings,
    ) -> None:
        self._request = request
        self._repository = repository
        self._preflight = TargetPreflight(cluster, admin, metadata, findings)
        self._findings = findings

    def topics(self) -> list[PlannedTopic]:
        """Plan every selected topic; what forbids the restore is collected."""
        planned = []
        targets: dict[str, str] = {}
        for source in find_sources(self._request, self._repository, self._findings):
            target = rename(self._request, source.topic)
            if (other := targets.get(target)) is not None:
                self._findings.problem(
                    "same_target", source.topic, f"{source.topic} and {other} would both become {target}"
                )
            targets[target] = source.topic
            if (one := self._topic(source, target)) is not None:
                planned.append(one)
        self._preflight.check_rights({one.target: one.source for one in planned})
        return planned

    def _topic(self, source: SourceTopic, target: str) -> PlannedTopic | None:
        topic = source.topic
        incarnation = source.commit.incarnation
        if topic in INTERNAL_TOPICS:
            self._findings.problem(
                "internal_topic", topic, "topics internal to Kafka can be captured, not restored"
            )
            return None
        segments = self._segments(source)
        check_objects(
            source,
            [one for each in segments.values() for one in each],
            self._repository.store,
            self._findings,
        )
        partitions = [self._partition(source, partition, each) for partition, each in segments.items()]
        if not is_topic_name(target) or target in INTERNAL_TOPICS:
            self._findings.problem("bad_target_name", topic, f"{target!r} is not a possible name of a topic")
            return None
        copies = self._preflight.replication_factor(
            topic, target, self._request.replication_factor or incarnation.replication_factor
        )
        found = self._preflight.look(
            topic, target, partition_count=incarnation.partition_count, replication_factor=copies
        )
        saved = {
            name: value.value
            for name, value in source.configured.incarnation.configuration.items()
            if value.source == "DYNAMIC_TOPIC_CONFIG" and value.value is not None
        }
        configuration = self._preflight.configuration(
            topic,
            target,
            saved,
            found,
            partition_count=incarnation.partition_count,
            replication_factor=copies,
        )
        final = {**found.defaults, **configuration}
        largest_message = int(final.get("max.message.bytes") or _DEFAULT_MAX_MESSAGE_BYTES)
        return PlannedTopic(
            source=topic,
            source_topic_id=incarnation.topic_id,
            target=target,
            target_topic_id=found.topic_id,
            target_configuration=dict(found.own),
            head=source.head,
            head_sha256=source.log.sha256_of(source.head),
            configured_by=source.configured.number,
            partition_count=incarnation.partition_count,
            replication_factor=copies,
            configuration=configuration,
            not_applied={name: value for name, value in saved.items() if name not in configuration},
            retention_ms=int(final.get("retention.ms") or -1),
            retention_bytes=int(final.get("retention.bytes") or -1),
            max_batch_bytes=self._max_batch_bytes(
                topic,
                max((one.entry.largest_batch for each in segments.values() for one in each), default=0),
                largest_message,
            ),
            # Half, because merged records may take more bytes than they did.
            merge_bytes=min(LARGEST_MERGED, largest_message // 2),
            partitions=tuple(
                part.model_copy(update={"initial_end": found.initial_ends.get(part.partition, 0)})
                for part in partitions
            ),
        )

    def _segments(self, source: SourceTopic) -> dict[int, Sequence[StoredSegment]]:
        """The segments of each wanted partition."""
        count = source.commit.incarnation.partition_count
        wanted = sorted(set(self._request.partitions)) or range(count)
        if missing := [partition for partition in wanted if partition >= count]:
            self._findings.problem(
                "no_such_partition", source.topic, f"it has {count} partitions, no partition {missing}"
            )
        return {
            partition: source_segments(
                source.log,
                head=source.head,
                partition=partition,
                start=source.start_of(partition),
                from_ms=self._request.from_ms,
            )
            for partition in wanted
            if partition < count
        }

    def _max_batch_bytes(self, topic: str, largest: int, configured: int) -> int:
        most = self._preflight.largest_batch
        if largest > most:
            self._findings.note(
                "split_batches",
                topic,
                f"batches of up to {largest} bytes are split, because the target's brokers take requests of "
                f"{most} bytes at most",
            )
        return min(most, max(largest + _BATCH_HEADROOM, configured, _DEFAULT_MAX_MESSAGE_BYTES))

    def _reencoded(self, entry: SegmentEntry) -> int:
        """How many of a segment's batches cannot pass as they are, time bounds aside."""
        tiny = worth_merging(batches=entry.batches, records=entry.records, size=entry.raw_size)
        return entry.batches if tiny or stamp_of(self._request) is not None else entry.reencoded_batches

    def _partition(
        self, source: SourceTopic, partition: int, segments: Sequence[StoredSegment]
    ) -> PlannedPartition:
        ranges = source.ranges.get(partition, ())
        if not ranges:
            self._findings.problem(
                "not_captured",
                source.topic,
                "no capture has saved this partition yet (it failed each time); leave it out with --partition",
                partition,
            )
        if not source.log.is_whole(partition, until_commit=source.head):
            self._findings.problem(
                "expired",
                source.topic,
                f"source offsets below {source.start_of(partition)} have expired, and capture "
                f"{self._request.capture or source.commit.capture_id} needs them from {ranges[-1].log_start_offset} "
                "on; restore a newer capture",
                partition,
            )
        elif source.log.whole_from(partition, until_commit=source.head):
            self._findings.note(
                "expired",
                source.topic,
                f"source offsets below {source.start_of(partition)} have expired; the topic held them no more when "
                "it was captured",
                partition,
            )
        for span in source.lost(partition):
            self._findings.note(
                "lost",
                source.topic,
                f"source offsets [{span.start}, {span.end}) were lost ({span.reason}) before a capture could save "
                "them",
                partition,
            )
        bounded = self._request.from_ms is not None or self._request.until_ms is not None
        return PlannedPartition(
            partition=partition,
            source_start=source.start_of(partition),
            source_end=ranges[-1].end if ranges else 0,
            segments=len(segments),
            raw_bytes=sum(segment.entry.raw_size for segment in segments),
            batches=sum(segment.entry.batches for segment in segments),
            reencoded_batches=sum(self._reencoded(segment.entry) for segment in segments),
            records=sum(segment.entry.records for segment in segments)
            if bounded
            else source.log.records(partition, until_commit=source.head),
            newest=max((segment.entry.max_timestamp for segment in segments), default=None),
        )
