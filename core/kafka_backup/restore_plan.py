"""Plan a restore: what goes where, and everything that forbids it, before anything is written."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence

from kafka_backup.errors import BrokerError, ConfigurationError, RefusedError
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, OffsetAnswer
from kafka_backup.kafka.metadata import ClusterMetadata
from kafka_backup.kafka.topics import TopicAdmin, validate_topic
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Commit
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    PlannedPartition,
    PlannedTopic,
    Problem,
    RestorePlan,
    RestoreRequest,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.segments import StoredSegment
from kafka_backup.selection import TopicSelection

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_LARGEST_REQUEST = 100 * 1024 * 1024
"""Default of the brokers' ``socket.request.max.bytes``."""
_BATCH_HEADROOM = 64 * 1024
"""A batch that is compressed again may come out a little larger than it was."""
_DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
NAMES_BROKERS = frozenset(
    {"leader.replication.throttled.replicas", "follower.replication.throttled.replicas"}
)
"""Topic settings whose values are broker ids of the old cluster."""


def source_segments(
    log: CommitLog, *, head: int, partition: int, from_ms: int | None
) -> Sequence[StoredSegment]:
    """Return the live segments of a partition as of commit `head`, in offset order.

    Segments whose largest timestamp lies before `from_ms` are left out: none of their records can be
    wanted.
    """
    return [
        segment
        for segment in log.segments(partition, until_commit=head)
        if from_ms is None or segment.entry.max_timestamp >= from_ms
    ]


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


def refuse_problems(plan: RestorePlan) -> None:
    """Raise RefusedError if the plan cannot be carried out, with everything that forbids it."""
    if plan.problems:
        listed = "; ".join(problem.detail for problem in plan.problems)
        raise RefusedError(f"restore {plan.request.restore_id} cannot be carried out: {listed}")


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
    planner = _Planner(request, repository, cluster, admin, metadata)
    topics = planner.topics()
    return RestorePlan(
        number=number,
        request=request,
        nonce=secrets.token_hex(16),
        planned_at=time.time_ns() // 1_000_000,
        repository_id=repository.document.repository_id,
        target_cluster_id=metadata.cluster_id,
        topics=tuple(topics),
        problems=tuple(planner.problems),
    )


def _check(request: RestoreRequest) -> None:
    if request.from_ms is not None and request.until_ms is not None and request.from_ms > request.until_ms:
        raise ConfigurationError(
            f"the restore's time bounds are empty: from {request.from_ms} is after until {request.until_ms}"
        )
    for rule in request.rename:
        try:
            re.sub(f"(?:{rule.pattern})?", rule.replacement, "")
        except (re.error, IndexError) as error:
            raise ConfigurationError(
                f"rename {rule.pattern}={rule.replacement}: not a valid pattern or replacement ({error})"
            ) from error


def rename(request: RestoreRequest, topic: str) -> str:
    """The target's name: the first rule that matches the whole name, then the prefix."""
    for rule in request.rename:
        if match := re.fullmatch(rule.pattern, topic):
            return request.prefix + match.expand(rule.replacement)
    return request.prefix + topic


class _Planner:
    def __init__(
        self,
        request: RestoreRequest,
        repository: Repository,
        cluster: Cluster,
        admin: TopicAdmin,
        metadata: ClusterMetadata,
    ) -> None:
        self._request = request
        self._repository = repository
        self._cluster = cluster
        self._admin = admin
        self._metadata = metadata
        self.problems: list[Problem] = []

    def topics(self) -> list[PlannedTopic]:
        """Plan every selected topic; what forbids the restore is collected in `problems`."""
        sources = self._sources()
        planned = []
        targets: dict[str, str] = {}
        for topic, (log, head) in sources.items():
            target = rename(self._request, topic)
            if other := targets.get(target):
                self._problem("same_target", topic, f"{topic} and {other} would both become {target}")
                continue
            targets[target] = topic
            if (one := self._topic(topic, target, log, head)) is not None:
                planned.append(one)
        return planned

    def _problem(self, kind: str, topic: str | None, detail: str, partition: int | None = None) -> None:
        self.problems.append(Problem(kind=kind, topic=topic, partition=partition, detail=detail))

    def _sources(self) -> dict[str, tuple[CommitLog, int]]:
        """The commit log and head of each selected topic's incarnation."""
        repository = self._repository
        if self._request.capture is not None:
            capture = repository.capture(self._request.capture)
            heads = {entry.topic: (entry.topic_id, entry.head) for entry in capture.topics}
            names = self._select(heads, f"capture {capture.capture_id}")
            return {name: (repository.commit_log(name, heads[name][0]), heads[name][1]) for name in names}
        known = repository.topics()
        names = self._select({topic for topic, _ in known}, "the repository")
        sources = {}
        for name in names:
            if (log := self._incarnation(name)) is not None and log.head is not None:
                sources[name] = (log, log.head)
        return sources

    def _select(self, names: Mapping[str, object] | set[str], where: str) -> Sequence[str]:
        selected = TopicSelection.parse(self._request.topics or ("*",)).select(names, where=where)
        if not selected:
            raise ConfigurationError(f"no topic of {where} matches the selection; nothing to restore")
        return selected

    def _incarnation(self, topic: str) -> CommitLog | None:
        """The one incarnation meant; where a name stands for several that hold data, ask which."""
        logs = [log for log in self._repository.commit_logs(topic) if log.head is not None]
        wanted = self._request.incarnation
        if wanted is not None:
            found = next((log for log in logs if log.topic_id == wanted), None)
            if found is None:
                self._problem(
                    "no_such_incarnation", topic, f"the repository has no incarnation {wanted} of it"
                )
            return found
        with_data = [log for log in logs if _records(log)]
        newest = logs[-1] if logs else None
        if len(with_data) > 1 or (with_data and newest is not with_data[-1]):
            described = ", ".join(f"{log.topic_id} ({_records(log)} records)" for log in logs)
            self._problem(
                "several_incarnations",
                topic,
                f"the topic was deleted and re-created; say which with --incarnation: {described}",
            )
            return None
        return newest

    def _topic(self, topic: str, target: str, log: CommitLog, head: int) -> PlannedTopic | None:
        request = self._request
        commit = log.commits[head]
        incarnation = commit.incarnation
        if topic.startswith("__"):
            self._problem("internal_topic", topic, "topics internal to Kafka can be captured, not restored")
            return None
        if not _TOPIC_NAME.fullmatch(target) or target in (".", ".."):
            self._problem("bad_target_name", topic, f"{target!r} is not a possible topic name")
            return None
        wanted = sorted(set(request.partitions)) or range(incarnation.partition_count)
        if missing := [p for p in wanted if p >= incarnation.partition_count]:
            self._problem(
                "no_such_partition", topic, f"it has {incarnation.partition_count} partitions, not {missing}"
            )
            return None
        initial_ends, target_id, known_configuration = self._target(topic, target, commit)
        if known_configuration is None:
            return None
        saved = {
            name: value.value
            for name, value in incarnation.configuration.items()
            if value.source == "DYNAMIC_TOPIC_CONFIG" and value.value is not None
        }
        configuration = {
            name: value
            for name, value in saved.items()
            if name in known_configuration and name not in NAMES_BROKERS
        }
        probe = target if target_id is None else f"{target[:200]}.defaults"
        self._validate(topic, probe, commit, configuration)
        partitions = []
        largest = 0
        for partition in wanted:
            segments = source_segments(log, head=head, partition=partition, from_ms=request.from_ms)
            largest = max([largest, *(segment.entry.largest_batch for segment in segments)])
            self._check_objects(topic, segments)
            planned = self._partition(topic, log, head, partition, segments)
            partitions.append(planned.model_copy(update={"initial_end": initial_ends.get(partition, 0)}))
        if largest + _BATCH_HEADROOM > _LARGEST_REQUEST:
            self._problem(
                "batch_too_large",
                topic,
                f"a batch of {largest} bytes exceeds what brokers take in one request",
            )
        final = {**known_configuration, **configuration}
        return PlannedTopic(
            source=topic,
            source_topic_id=incarnation.topic_id,
            target=target,
            target_topic_id=target_id,
            target_configuration=self._own_configuration(target) if target_id is not None else {},
            head=head,
            head_sha256=log.sha256_of(head),
            partition_count=incarnation.partition_count,
            replication_factor=incarnation.replication_factor,
            configuration=configuration,
            not_applied={name: value for name, value in saved.items() if name not in configuration},
            retention_ms=int(final.get("retention.ms", "-1")),
            retention_bytes=int(final.get("retention.bytes", "-1")),
            max_batch_bytes=max(
                largest + _BATCH_HEADROOM,
                int(final.get("max.message.bytes", "0")),
                _DEFAULT_MAX_MESSAGE_BYTES,
            ),
            partitions=tuple(partitions),
        )

    def _partition(
        self, topic: str, log: CommitLog, head: int, partition: int, segments: Sequence[StoredSegment]
    ) -> PlannedPartition:
        ranges = [
            part
            for commit in log.commits[: head + 1]
            for part in commit.partitions
            if part.partition == partition
        ]
        if not ranges:
            self._problem(
                "not_captured",
                topic,
                "no capture has saved this partition yet (it failed each time); leave it out with --partition",
                partition,
            )
        bounded = self._request.from_ms is not None or self._request.until_ms is not None
        return PlannedPartition(
            partition=partition,
            source_start=min((part.start for part in ranges), default=0),
            source_end=ranges[-1].end if ranges else 0,
            segments=len(segments),
            raw_bytes=sum(segment.entry.raw_size for segment in segments),
            batches=sum(segment.entry.batches for segment in segments),
            reencoded_batches=sum(segment.entry.reencoded_batches for segment in segments),
            records=sum(segment.entry.records for segment in segments)
            if bounded
            else log.records(partition, until_commit=head),
        )

    def _target(
        self, topic: str, target: str, commit: Commit
    ) -> tuple[dict[int, int], str | None, dict[str, str] | None]:
        """Look at the target: initial ends, topic id if it exists, its settings in force.

        The settings are those that a topic without any of its own has there; None after a problem.
        """
        existing = self._metadata.topics.get(target)
        count = commit.incarnation.partition_count
        if existing is None:
            try:
                defaults = validate_topic(
                    self._cluster,
                    target,
                    partitions=count,
                    replication_factor=commit.incarnation.replication_factor,
                )
            except BrokerError as error:
                self._problem("cannot_create", topic, f"{target} cannot be created: {error}")
                return {}, None, None
            return {}, None, defaults
        if len(existing.partitions) != count:
            self._problem(
                "partition_count",
                topic,
                f"{target} exists with {len(existing.partitions)} partitions, the source has {count}; records "
                "cannot be spread over another number of partitions and keep their order",
            )
            return {}, existing.topic_id, None
        keys = [(target, partition) for partition in existing.partitions]
        starts = self._cluster.list_offsets(dict.fromkeys(keys, EARLIEST), isolation="read_uncommitted")
        ends = self._cluster.list_offsets(dict.fromkeys(keys, LATEST), isolation="read_uncommitted")
        initial: dict[int, int] = {}
        for key in keys:
            start, end = starts[key], ends[key]
            if not isinstance(start, OffsetAnswer) or not isinstance(end, OffsetAnswer):
                self._problem(
                    "unreachable", topic, f"{target} [{key[1]}]: the offsets could not be asked", key[1]
                )
                continue
            if end.offset > start.offset:
                self._problem(
                    "target_not_empty",
                    topic,
                    f"{target} [{key[1]}] holds offsets [{start.offset}, {end.offset}); restore under another "
                    "name (--rename, --prefix) or delete the topic first",
                    key[1],
                )
            initial[key[1]] = end.offset
        described = self._admin.describe_configs([target])[target]
        known = {
            name: value.value or ""
            for name, value in described.items()
            if value.source != "DYNAMIC_TOPIC_CONFIG"
        }
        own = {name: "" for name, value in described.items() if value.source == "DYNAMIC_TOPIC_CONFIG"}
        if own:
            defaults = validate_topic(
                self._cluster, f"{target[:200]}.defaults", partitions=1, replication_factor=1
            )
            known |= {name: defaults.get(name, "") for name in own}
        return initial, existing.topic_id, known

    def _own_configuration(self, target: str) -> dict[str, str]:
        return {
            name: value.value
            for name, value in self._admin.describe_configs([target])[target].items()
            if value.source == "DYNAMIC_TOPIC_CONFIG" and value.value is not None
        }

    def _validate(self, topic: str, target: str, commit: Commit, configuration: Mapping[str, str]) -> None:
        try:
            validate_topic(
                self._cluster,
                target,
                partitions=commit.incarnation.partition_count,
                replication_factor=commit.incarnation.replication_factor,
                configuration=configuration,
            )
        except BrokerError as error:
            self._problem("configuration", topic, f"{target} does not take the saved configuration: {error}")

    def _check_objects(self, topic: str, segments: Sequence[StoredSegment]) -> None:
        """Every object must be there with its size; their contents are checked when they are read."""
        for segment in segments:
            key = segment.key
            size = self._repository.store.size(key)
            if size is None:
                self._problem("missing_object", topic, f"the object {key} is missing", segment.partition)
            elif size != segment.entry.stored_size:
                self._problem(
                    "damaged_object",
                    topic,
                    f"the object {key} has {size} bytes instead of {segment.entry.stored_size}",
                    segment.partition,
                )


def _records(log: CommitLog) -> int:
    return sum(log.records(partition) for partition in range(log.commits[-1].incarnation.partition_count))
