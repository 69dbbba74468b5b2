"""Plan a restore: what goes where, and everything that forbids it, before anything is written.

What is taken is chosen in `restore_source`, what is found at the target in `restore_target`; here
both become the plan, which is all that carrying it out goes by.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence

from kafka_backup.errors import ConfigurationError, RefusedError
from kafka_backup.expected_batches import stamp_of
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import ClusterMetadata
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.records.merge import LARGEST_MERGED, worth_merging
from kafka_backup.renaming import check_rules, renamed
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import OffsetSpan, SegmentEntry
from kafka_backup.repository.layout import is_topic_name
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    PlannedPartition,
    PlannedReplacement,
    PlannedStep,
    PlannedTopic,
    RestorePlan,
    RestoreRequest,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.segments import StoredSegment
from kafka_backup.restore_findings import Findings
from kafka_backup.restore_group_plan import check_groups, plan_groups
from kafka_backup.restore_source import (
    INTERNAL_TOPICS,
    SourceTopic,
    check_objects,
    find_sources,
    source_segments,
)
from kafka_backup.restore_target import TargetPreflight, TargetTopic, offset_bounds

_BATCH_HEADROOM = 64 * 1024
"""A batch that is compressed again may come out a little larger than it was."""
_DEFAULT_MAX_MESSAGE_BYTES = 1_048_588


def plan(
    request: RestoreRequest,
    *,
    repository: Repository,
    cluster: Cluster,
    admin: TopicAdmin,
    skip_damaged: bool = False,
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
        return make_plan(
            request,
            repository=repository,
            cluster=cluster,
            admin=admin,
            number=1,
            skip_damaged=skip_damaged,
        )
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
    request: RestoreRequest,
    *,
    repository: Repository,
    cluster: Cluster,
    admin: TopicAdmin,
    number: int,
    captured: bool = False,
    skip_damaged: bool = False,
    group_snapshot: str | None = None,
) -> RestorePlan:
    """Make a plan from what repository and target are now; stores nothing.

    Args:
        request: what is asked for.
        repository: where the backups are.
        cluster: the target.
        admin: for the target's topics.
        number: of the plan; 1 unless an earlier one is to be replaced.
        captured: the final capture of what is replaced is done; whatever it does not hold is a problem.
        skip_damaged: missing and damaged objects are noted, and no problem.
        group_snapshot: whose positions the groups get; by default it is chosen.

    Raises:
        ConfigurationError: the request names what the repository lacks.
    """
    metadata = cluster.survey(None)
    findings = Findings()
    planner = _Planner(
        request, repository, cluster, admin, metadata, findings, captured=captured, skip_damaged=skip_damaged
    )
    topics = planner.topics()
    groups = plan_groups(
        request,
        topics,
        repository=repository,
        cluster=cluster,
        findings=findings,
        snapshot_id=group_snapshot,
    )
    return RestorePlan(
        number=number,
        request=request,
        nonce=secrets.token_hex(16),
        planned_at=time.time_ns() // 1_000_000,
        repository_id=repository.document.repository_id,
        target_cluster_id=metadata.cluster_id,
        topics=tuple(topics),
        groups=groups,
        steps=tuple(_steps(topics)),
        problems=tuple(findings.problems),
        notes=tuple(findings.notes),
    )


def _steps(topics: Sequence[PlannedTopic]) -> Iterator[PlannedStep]:
    """What changes something, in order."""
    replaced = [topic.target for topic in topics if topic.replaces is not None]
    created = [topic.target for topic in topics if topic.target_topic_id is None]
    targets = [topic.target for topic in topics]
    for action, names in (
        ("capture", replaced),
        ("prove", replaced),
        ("delete", replaced),
        ("create", created),
        ("write", targets),
        ("configure", targets),
    ):
        for name in names:
            yield PlannedStep(action=action, topic=name)  # type: ignore[arg-type] # a Literal each


def _not_kept(log: CommitLog, partition: int, start: int) -> Iterator[OffsetSpan]:
    """The spans from offset `start` on that a broker still has, and the repository on purpose not."""
    for part in log.ranges(partition):
        skipped = part.not_captured
        if skipped is not None and skipped.end > start:
            yield OffsetSpan(start=max(start, skipped.start), end=skipped.end)
    if log.whole_from(partition) > start:
        yield OffsetSpan(start=start, end=log.whole_from(partition))


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
        *,
        captured: bool,
        skip_damaged: bool,
    ) -> None:
        self._request = request
        self._repository = repository
        self._cluster = cluster
        self._metadata = metadata
        self._captured = captured
        self._skip_damaged = skip_damaged
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
            self._findings.note if self._skip_damaged else self._findings.problem,
        )
        partitions = [self._partition(source, partition, each) for partition, each in segments.items()]
        if not is_topic_name(target) or target in INTERNAL_TOPICS:
            self._findings.problem("bad_target_name", topic, f"{target!r} is not a possible name of a topic")
            return None
        copies = self._preflight.replication_factor(
            topic, target, self._request.replication_factor or incarnation.replication_factor
        )
        found = self._preflight.look(
            topic,
            target,
            partition_count=incarnation.partition_count,
            replication_factor=copies,
            replace=self._request.replace,
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
            replaces=None
            if found.replaces is None
            else self._replacement(topic, target, found.replaces, found),
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
                part
                if found.topic_id is None
                else part.model_copy(update={"initial_end": found.bounds[part.partition][1]})
                for part in partitions
                if found.topic_id is None or part.partition in found.bounds
            ),
        )

    def _replacement(self, topic: str, target: str, topic_id: str, found: TargetTopic) -> PlannedReplacement:
        """What is known of a topic that is to be deleted; whatever would be lost with it is a problem."""
        bounds = [found.bounds[partition] for partition in sorted(found.bounds)]
        self._findings.note(
            "replaced",
            topic,
            f"{target} ({topic_id}) with offsets "
            + ", ".join(f"[{start}, {end})" for start, end in bounds)
            + " is captured to its end and deleted, and with it the positions of all consumer groups in it",
        )
        if self._metadata.cluster_id != self._repository.document.cluster_id:
            self._findings.problem(
                "replace_elsewhere",
                topic,
                f"{target} cannot be replaced: the repository holds backups of cluster "
                f"{self._repository.document.cluster_id}, so what would be deleted cannot be captured into it",
            )
            return PlannedReplacement(topic_id=topic_id, ends=tuple(end for _, end in bounds), captured=False)
        if self._request.partitions:
            self._findings.problem(
                "replace_partitions", topic, f"{target} is replaced as a whole: leave out --partition"
            )
        log = self._repository.commit_log(target, topic_id)
        stable = offset_bounds(
            self._cluster, [(target, partition) for partition in found.bounds], isolation="read_committed"
        )
        for partition, (start, end) in found.bounds.items():
            if stable[target, partition][1] < end:
                self._findings.problem(
                    "open_transaction",
                    topic,
                    f"{target} [{partition}] has an open transaction from offset {stable[target, partition][1]} on, "
                    "which no capture can hold; end it first",
                    partition,
                )
            elif self._captured and (log.end_of(partition) or 0) != end:
                self._findings.problem(
                    "still_written",
                    topic,
                    f"{target} [{partition}] ends at {end} and its final capture at {log.end_of(partition)}; stop "
                    "whoever writes into it, and run the same restore again",
                    partition,
                )
            for span in _not_kept(log, partition, start):
                self._findings.problem(
                    "not_captured",
                    topic,
                    f"{target} [{partition}] still holds offsets [{span.start}, {span.end}), and no capture does; they "
                    "would be lost",
                    partition,
                )
        return PlannedReplacement(
            topic_id=topic_id, ends=tuple(end for _, end in bounds), captured=self._captured
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
