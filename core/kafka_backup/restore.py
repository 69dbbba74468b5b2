"""Carry out a restore: make the topics safe, produce, verify, and only then configure.

The order is the safety. The plan is stored before anything is written; the target keeps everything
(no retention, no compaction, the producer's timestamps) until the last batch is verified; the saved
configuration comes last. Whatever interrupts a restore, the same command goes on: the highest
attempt owns it, and the target's log says how far it came.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Literal

from kafka_backup.errors import ConfigurationError, DamagedError, RefusedError, WriterConflictError
from kafka_backup.expected_batches import PartitionTarget
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, OffsetAnswer
from kafka_backup.kafka.metadata import TopicMetadata
from kafka_backup.kafka.topics import TopicAdmin, wait_for_leaders
from kafka_backup.offset_mapping import OffsetMap
from kafka_backup.partition_restore import Outcome, PartitionRestore
from kafka_backup.progress import RestoreProgress, StopToken
from kafka_backup.records.convert import TargetBatch
from kafka_backup.repository.documents import sha256_of
from kafka_backup.repository.expiry import pinned
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    AttemptTarget,
    PlannedTopic,
    RestoreAttempt,
    RestoredPartition,
    RestoredTopic,
    RestorePlan,
    RestoreReport,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore_findings import refusal
from kafka_backup.restore_plan import make_plan, refuse_if_abandoned
from kafka_backup.restore_target import safe_configuration
from kafka_backup.rights import check_verify

_RETENTION = ("retention.ms", "retention.bytes")
_PROGRESS_SECONDS = 0.5


def run(
    plan: RestorePlan,
    *,
    repository: Repository,
    cluster: Cluster,
    admin: TopicAdmin,
    retry_seconds: float,
    threads: int,
    stop: StopToken,
    on_progress: Callable[[RestoreProgress], None] | None,
) -> RestoreReport:
    """Carry out a plan; see `Engine.restore`."""
    if (refused := refusal(plan)) is not None:
        raise refused
    folder = repository.restore_folder(plan.request.restore_id)
    if (done := folder.report()) is not None:
        _check_still_there(done, cluster)
        return done
    refuse_if_abandoned(folder)
    stop = StopToken(stop)
    return _Restore(
        _pinned(plan, repository=repository, folder=folder, cluster=cluster, admin=admin),
        repository=repository,
        folder=folder,
        cluster=cluster.stoppable(stop.check),
        admin=admin,
        retry_seconds=retry_seconds,
        threads=threads,
        stop=stop,
        on_progress=on_progress,
    ).run()


def _pinned(
    plan: RestorePlan, *, repository: Repository, folder: RestoreFolder, cluster: Cluster, admin: TopicAdmin
) -> RestorePlan:
    """Store the plan, so that expiry keeps what it needs, and make sure that expiry did not come first.

    Expiry commits before it looks for plans, and we store the plan before we look for its commits:
    one of the two always sees the other. Where it came first we plan anew from what is left. Once
    there is an attempt, this was settled before it.
    """
    stored = folder.plan()
    if stored is not None and stored.request == plan.request and stored.number > plan.number:
        plan = stored
    while True:
        folder.put_plan(plan)
        if folder.newest_attempt() is not None or not _has_expired(plan, repository):
            return plan
        plan = make_plan(
            plan.request, repository=repository, cluster=cluster, admin=admin, number=plan.number + 1
        )
        if (refused := refusal(plan)) is not None:
            raise refused


def _has_expired(plan: RestorePlan, repository: Repository) -> bool:
    """Whether something that the plan reads is promised no more."""
    for topic in plan.topics:
        log = repository.commit_log(topic.source, topic.source_topic_id)
        for part in topic.partitions:
            if part.source_start < log.whole_from(part.partition, until_commit=topic.head):
                return True
    return False


def _check_still_there(done: RestoreReport, cluster: Cluster) -> None:
    """A finished restore counts only while what it wrote is there: an id must not vouch for another topic."""
    now = cluster.metadata(None)
    gone = []
    for topic in done.topics:
        found = now.topics.get(topic.target)
        if found is None or found.topic_id != topic.target_topic_id:
            gone.append(topic.target)
    if now.cluster_id != done.target_cluster_id or gone:
        raise RefusedError(
            f"restore {done.restore_id} is finished, but {', '.join(gone) or 'the target cluster'} is not what "
            "it wrote any more; use a new id to restore again"
        )


def verify_restore(
    restore_id: str,
    *,
    repository: Repository,
    cluster: Cluster,
    retry_seconds: float,
    threads: int,
    stop: StopToken,
) -> RestoreReport:
    """Compare a restored target with the repository again; see `Engine.verify_restore`.

    Raises:
        DamagedError: the target is not what the plan says.
        ConfigurationError: no such restore is finished.
        AuthorizationError: naming the topics that we may not read.
    """
    report = _finished(restore_id, repository)
    check_verify(cluster, [topic.target for topic in report.topics])
    plan = repository.restore_folder(restore_id).plan()
    assert plan is not None
    planned = {topic.target: topic for topic in plan.topics}
    for topic in plan.topics:
        log = repository.commit_log(topic.source, topic.source_topic_id)
        if gone := pinned(log, [plan]) & log.swept:
            raise RefusedError(
                f"restore {restore_id} can no longer be compared with the repository: {len(gone)} of the segments of "
                f"{topic.source} that it read have expired since it was finished"
            )
    targets = [
        target
        for topic in report.topics
        for target in _partition_targets(plan, planned[topic.target], topic.target_topic_id, repository)
    ]

    def verify_one(target: PartitionTarget, stop: StopToken) -> None:
        PartitionRestore(
            target,
            cluster=cluster,
            store=repository.store,
            retry_seconds=retry_seconds,
            stop=stop,
            before_segment=stop.check,
            on_batch=lambda _phase, _batch: None,
        ).verify()

    _in_parallel(targets, verify_one, threads=threads, stop=StopToken(stop), tick=lambda: None)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandonment:
    """What `abandon` came to.

    Attributes:
        status: ``finished`` where the restore had ended before and there was nothing to abandon.
        targets: the target topics as the last attempt left them; they may be incomplete.
    """

    restore_id: str
    status: Literal["abandoned", "finished"]
    targets: Sequence[AttemptTarget]


def abandon(restore_id: str, *, repository: Repository) -> Abandonment:
    """Give a restore up for good, so that expiry may remove what it needs; see `Engine.abandon_restore`."""
    folder = repository.restore_folder(restore_id)
    plan = folder.plan()
    if plan is None:
        raise ConfigurationError(f"restore {restore_id} does not exist")
    while True:
        newest = folder.newest_attempt()
        targets = newest.targets if newest is not None else ()
        if folder.report() is not None:
            return Abandonment(restore_id=restore_id, status="finished", targets=targets)
        if newest is not None and newest.action == "abandon":
            return Abandonment(restore_id=restore_id, status="abandoned", targets=targets)
        try:
            folder.put_attempt(
                RestoreAttempt(
                    action="abandon",
                    restore_id=restore_id,
                    attempt=newest.attempt + 1 if newest is not None else 1,
                    nonce=secrets.token_hex(16),
                    started_at=time.time_ns() // 1_000_000,
                    plan_sha256=sha256_of(plan.to_bytes()),
                    targets=targets,
                )
            )
        except WriterConflictError:  # a run took the number: the next one is above it
            continue


def release_retention(restore_id: str, *, repository: Repository, admin: TopicAdmin) -> Sequence[str]:
    """Put the saved retention in force that a restore held back; see `Engine.release_retention`."""
    report = _finished(restore_id, repository)
    released = []
    for topic in report.topics:
        if topic.retention_held:
            saved = {name: topic.configuration[name] for name in _RETENTION if name in topic.configuration}
            admin.alter_configs(
                topic.target, set=saved, delete=[name for name in _RETENTION if name not in saved]
            )
            released.append(topic.target)
    return released


def offset_map(restore_id: str, source_topic: str, partition: int, *, repository: Repository) -> OffsetMap:
    """Read the offset map of one partition of a finished restore; see `Engine.offset_map`."""
    report = _finished(restore_id, repository)
    if source_topic not in {topic.source for topic in report.topics}:
        raise ConfigurationError(f"restore {restore_id} did not restore the topic {source_topic!r}")
    document = repository.restore_folder(restore_id).offset_map(source_topic, partition)
    if document is None:
        raise ConfigurationError(f"restore {restore_id} did not restore {source_topic} [{partition}]")
    return OffsetMap.from_document(document)


def _finished(restore_id: str, repository: Repository) -> RestoreReport:
    folder = repository.restore_folder(restore_id)
    report = folder.report()
    if report is None:
        state = "is not finished" if folder.plan() else "does not exist"
        raise ConfigurationError(f"restore {restore_id} {state}")
    return report


def _partition_targets(
    plan: RestorePlan, topic: PlannedTopic, topic_id: str, repository: Repository
) -> Sequence[PartitionTarget]:
    log = repository.commit_log(topic.source, topic.source_topic_id)
    if log.head is None or log.head < topic.head or log.sha256_of(topic.head) != topic.head_sha256:
        raise RefusedError(
            f"commit {topic.head} of {topic.source} is not the one that restore {plan.request.restore_id} "
            "was planned with; the repository was replaced. Plan a new restore"
        )
    return [
        PartitionTarget(
            request=plan.request, topic=topic, partition=partition, target_topic_id=topic_id, log=log
        )
        for partition in topic.partitions
    ]


def _in_parallel(
    targets: Sequence[PartitionTarget],
    work: Callable[[PartitionTarget, StopToken], None],
    *,
    threads: int,
    stop: StopToken,
    tick: Callable[[], None],
) -> None:
    """Run `work` over all targets; the first error stops the others and is raised.

    This thread wakes every 0.2 s, so that a signal or an interrupt is seen, and calls `tick`.
    """
    with ThreadPoolExecutor(
        max_workers=max(1, min(threads, len(targets))), thread_name_prefix="restore"
    ) as pool:
        futures: set[Future[None]] = {pool.submit(work, target, stop) for target in targets}
        try:
            while futures:
                done, futures = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
                tick()
                for future in done:
                    future.result()
                stop.check()
        except BaseException:
            stop.stop()
            for future in futures:
                future.cancel()
            raise


@dataclass(slots=True)
class _Tally:
    """Progress of one target topic, written by the partition threads."""

    topic: PlannedTopic
    records: dict[str, int] = field(default_factory=lambda: {"produce": 0, "verify": 0})
    raw_bytes: dict[str, int] = field(default_factory=lambda: {"produce": 0, "verify": 0})


class _Restore:
    """One attempt at a planned restore."""

    def __init__(
        self,
        plan: RestorePlan,
        *,
        repository: Repository,
        folder: RestoreFolder,
        cluster: Cluster,
        admin: TopicAdmin,
        retry_seconds: float,
        threads: int,
        stop: StopToken,
        on_progress: Callable[[RestoreProgress], None] | None,
    ) -> None:
        self._plan = plan
        self._repository = repository
        self._folder = folder
        self._cluster = cluster
        self._admin = admin
        self._retry_seconds = retry_seconds
        self._threads = threads
        self._stop = stop
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._started_at = time.time_ns() // 1_000_000
        self._attempt = 0
        self._lock = threading.Lock()
        self._tallies = {topic.target: _Tally(topic) for topic in plan.topics}
        self._outcomes: dict[tuple[str, int], Outcome] = {}
        self._told = 0.0

    def run(self) -> RestoreReport:
        """Carry out the attempt, step by step."""
        self._check_cluster()
        previous = self._folder.attempts()
        self._check_plan(previous)
        topic_ids = self._prepare_topics(previous)
        self._claim(previous, topic_ids)
        targets = [
            target
            for topic in self._plan.topics
            for target in _partition_targets(self._plan, topic, topic_ids[topic.target], self._repository)
        ]
        _in_parallel(
            targets, self._restore_partition, threads=self._threads, stop=self._stop, tick=self._tell
        )
        self._tell(final=True)
        self._still_ours()
        self._store_offset_maps()
        restored = [self._configure(topic, topic_ids[topic.target]) for topic in self._plan.topics]
        return self._report(restored)

    def _check_cluster(self) -> None:
        found = self._cluster.metadata(None).cluster_id
        if found != self._plan.target_cluster_id:
            raise RefusedError(
                f"restore {self._plan.request.restore_id} was planned for cluster {self._plan.target_cluster_id}, "
                f"the configured target is {found}; plan a new restore"
            )

    def _check_plan(self, previous: Sequence[RestoreAttempt]) -> None:
        for attempt in previous:
            if attempt.plan_sha256 != sha256_of(self._plan.to_bytes()):
                raise DamagedError(
                    f"attempt {attempt.attempt} of restore {self._folder.restore_id} was begun with another plan than "
                    "the stored one; put the right plan back from a copy of the repository, or plan a new restore"
                )

    def _prepare_topics(self, previous: Sequence[RestoreAttempt]) -> dict[str, str]:
        """Make sure that every target exists, is ours to write, and keeps all that it gets.

        Nothing is changed before all of them were looked at.
        """
        claimed = {entry.topic: entry.topic_id for entry in previous[-1].targets} if previous else {}
        existing = self._cluster.metadata([topic.target for topic in self._plan.topics]).topics
        for topic in self._plan.topics:
            expected = claimed.get(topic.target, topic.target_topic_id)
            self._check_target(topic, existing.get(topic.target), expected)
        if not previous:
            self._check_untouched(existing)
        topic_ids = {}
        for topic in self._plan.topics:
            self._stop.check()
            found = existing.get(topic.target)
            # Without a claim it may be the topic of an attempt that died before its claim.
            topic_ids[topic.target] = found.topic_id if found is not None else self._create(topic)
            self._make_safe(topic)
        return topic_ids

    def _check_target(self, topic: PlannedTopic, found: TopicMetadata | None, expected: str | None) -> None:
        restore_id = self._plan.request.restore_id
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
        starts = self._cluster.list_offsets(dict.fromkeys(keys, EARLIEST), isolation="read_uncommitted")
        ends = self._cluster.list_offsets(dict.fromkeys(keys, LATEST), isolation="read_uncommitted")
        planned = {
            (topic.target, part.partition): part.initial_end
            for topic in self._plan.topics
            for part in topic.partitions
        }
        filled = []
        for key in keys:
            start, end = starts[key], ends[key]
            if not isinstance(start, OffsetAnswer):
                raise start
            if not isinstance(end, OffsetAnswer):
                raise end
            if end.offset != planned.get(key, start.offset):
                filled.append(f"{key[0]} [{key[1]}] (offsets [{start.offset}, {end.offset}))")
        if filled:
            raise RefusedError(
                f"records appeared in {', '.join(filled)} since restore {self._plan.request.restore_id} was "
                "planned; nothing was written. Restore under another name with another id"
            )

    def _create(self, topic: PlannedTopic) -> str:
        self._admin.create_topic(
            topic.target,
            partitions=topic.partition_count,
            replication_factor=topic.replication_factor,
            configs=safe_configuration({}, max_batch_bytes=topic.max_batch_bytes),
        )
        return wait_for_leaders(self._cluster, topic.target, partitions=topic.partition_count)

    def _make_safe(self, topic: PlannedTopic) -> None:
        known = self._admin.describe_configs([topic.target])[topic.target]
        safe = safe_configuration(known, max_batch_bytes=topic.max_batch_bytes)
        self._admin.alter_configs(topic.target, set=safe, delete=())

    def _claim(self, previous: Sequence[RestoreAttempt], topic_ids: Mapping[str, str]) -> None:
        """Become the owner: whoever has the highest attempt, writes."""
        self._attempt = previous[-1].attempt + 1 if previous else 1
        self._folder.put_attempt(
            RestoreAttempt(
                restore_id=self._folder.restore_id,
                attempt=self._attempt,
                nonce=secrets.token_hex(16),
                started_at=self._started_at,
                plan_sha256=sha256_of(self._plan.to_bytes()),
                targets=tuple(
                    AttemptTarget(topic=topic, topic_id=topic_id)
                    for topic, topic_id in sorted(topic_ids.items())
                ),
            ),
        )

    def _still_ours(self) -> None:
        """Stop when a newer attempt exists: two writers would break each other's offsets."""
        self._stop.check()
        restore_id = self._folder.restore_id
        if (newer := self._folder.attempt(self._attempt + 1)) is None:
            return
        if newer.action == "abandon":
            raise WriterConflictError(f"restore {restore_id} was abandoned; this run stops where it is")
        raise WriterConflictError(
            f"a newer attempt took over restore {restore_id}; this one stops. Wait for the other to end"
        )

    def _restore_partition(self, target: PartitionTarget, stop: StopToken) -> None:
        tally = self._tallies[target.topic.target]

        def on_batch(phase: str, batch: TargetBatch) -> None:
            with self._lock:
                tally.records[phase] += batch.record_count
                tally.raw_bytes[phase] += batch.size

        restore = PartitionRestore(
            target,
            cluster=self._cluster,
            store=self._repository.store,
            retry_seconds=self._retry_seconds,
            stop=stop,
            before_segment=self._still_ours,
            on_batch=on_batch,
            resumed=self._attempt > 1,
        )
        restore.produce()
        outcome = restore.verify()
        with self._lock:
            self._outcomes[target.topic.target, target.partition.partition] = outcome

    def _tell(self, *, final: bool = False) -> None:
        now = time.monotonic()
        if self._on_progress is None or (not final and now - self._told < _PROGRESS_SECONDS):
            return
        self._told = now
        for tally in self._tallies.values():
            with self._lock:
                phase = "verify" if tally.records["verify"] else "produce"
                done, raw_bytes = tally.records[phase], tally.raw_bytes[phase]
            self._on_progress(
                RestoreProgress(
                    phase="verify" if phase == "verify" else "produce",
                    source=tally.topic.source,
                    target=tally.topic.target,
                    records_done=done,
                    records_total=sum(part.records for part in tally.topic.partitions),
                    raw_bytes=raw_bytes,
                    seconds=now - self._began,
                )
            )

    def _configure(self, topic: PlannedTopic, topic_id: str) -> RestoredTopic:
        """Put the saved configuration in force, but hold retention back where it would delete at once."""
        outcomes = [self._outcomes[topic.target, part.partition] for part in topic.partitions]
        held = _retention_would_delete(topic, outcomes)
        wanted = {
            name: value for name, value in topic.configuration.items() if not (held and name in _RETENTION)
        }
        current = self._admin.describe_configs([topic.target])[topic.target]
        overridden = [name for name, value in current.items() if value.source == "DYNAMIC_TOPIC_CONFIG"]
        self._admin.alter_configs(
            topic.target,
            set=wanted,
            delete=[n for n in overridden if n not in wanted and not (held and n in _RETENTION)],
        )
        return RestoredTopic(
            source=topic.source,
            target=topic.target,
            target_topic_id=topic_id,
            partitions=tuple(
                RestoredPartition(
                    partition=part.partition,
                    records=outcome.records,
                    fast_batches=outcome.fast_batches,
                    slow_batches=outcome.slow_batches,
                    raw_bytes=outcome.raw_bytes,
                    target_start=part.initial_end,
                    target_end=outcome.offset_map.target_end,
                    verified=True,
                )
                for part, outcome in zip(topic.partitions, outcomes, strict=True)
            ),
            configuration=topic.configuration,
            not_applied=topic.not_applied,
            retention_held=held,
        )

    def _store_offset_maps(self) -> None:
        for topic in self._plan.topics:
            for part in topic.partitions:
                offsets = self._outcomes[topic.target, part.partition].offset_map
                self._folder.put_offset_map(
                    offsets.to_document(
                        restore_id=self._folder.restore_id,
                        source=topic.source,
                        target=topic.target,
                        partition=part.partition,
                    )
                )

    def _report(self, topics: Sequence[RestoredTopic]) -> RestoreReport:
        report = RestoreReport(
            restore_id=self._plan.request.restore_id,
            attempt=self._attempt,
            status="verified",
            started_at=self._started_at,
            ended_at=time.time_ns() // 1_000_000,
            target_cluster_id=self._plan.target_cluster_id,
            topics=tuple(topics),
            seconds=time.monotonic() - self._began,
        )
        self._folder.put_report(report)
        return report


def _retention_would_delete(topic: PlannedTopic, outcomes: Sequence[Outcome]) -> bool:
    """Whether the saved retention would delete restored records as soon as it is in force.

    Kafka deletes a log segment when its largest timestamp is too old. A log segment holds at least
    one batch, so if no batch's largest timestamp is too old, no log segment's is.
    """
    if "delete" not in topic.configuration.get("cleanup.policy", "delete").split(","):
        return False
    now = time.time_ns() // 1_000_000
    oldest = min((o.oldest_batch for o in outcomes if o.oldest_batch is not None), default=now)
    largest = max((o.raw_bytes for o in outcomes), default=0)
    return (topic.retention_ms >= 0 and oldest < now - topic.retention_ms) or (
        0 <= topic.retention_bytes < largest
    )
