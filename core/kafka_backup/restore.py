"""Carry out a restore: make the topics safe, produce, verify, and only then configure.

The order is the safety. The plan is stored before anything is written; the target keeps everything
(no retention, no compaction, the producer's timestamps) until the last batch is verified; the saved
configuration comes last. Whatever interrupts a restore, the same command goes on: the highest
attempt owns it, and the target's log says how far it came.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from kafka_backup.errors import ConfigurationError, RefusedError, WriterConflictError
from kafka_backup.expected_batches import PartitionTarget, partition_targets
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.offset_mapping import OffsetMap
from kafka_backup.parallel import Work, in_parallel
from kafka_backup.partition_restore import PartitionRestore
from kafka_backup.progress import RestoreProgress, StopToken
from kafka_backup.repository.documents import sha256_of
from kafka_backup.repository.expiry import pinned
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    AttemptTarget,
    RestoreAttempt,
    RestorePlan,
    RestoreReport,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore_attempt import Attempt
from kafka_backup.restore_context import RestoreContext, RestoreLimits
from kafka_backup.restore_findings import refusal
from kafka_backup.restore_group_plan import has_expired as groups_have_expired
from kafka_backup.restore_in_place import captured_plan
from kafka_backup.restore_plan import make_plan, refuse_if_abandoned
from kafka_backup.restore_topics import release_retention as release
from kafka_backup.rights import check_verify
from kafka_backup.segment_skips import SegmentSkips


def run(
    plan: RestorePlan,
    *,
    repository: Repository,
    cluster: Cluster,
    admin: TopicAdmin,
    retry_seconds: float,
    threads: int,
    limits: RestoreLimits,
    skip_damaged: bool,
    capture: Callable[[Sequence[str], StopToken], None],
    stop: StopToken,
    on_progress: Callable[[RestoreProgress], None] | None,
) -> RestoreReport:
    """Carry out a plan; see `Engine.restore`.

    `capture` saves topics of the target to their ends, before they are deleted, and raises if anything of them
    is not saved.
    """
    if skip_damaged and plan.request.replace:
        raise ConfigurationError(
            "a restore in place cannot leave damaged segments out: what is damaged in the repository may be sound in the "
            "topic, and would be deleted. Restore under another name"
        )
    if (refused := refusal(plan)) is not None:
        raise refused
    folder = repository.restore_folder(plan.request.restore_id)
    if (done := folder.report()) is not None:
        _check_still_there(done, cluster)
        return done
    refuse_if_abandoned(folder)
    stop = StopToken(stop)
    if plan.request.replace and folder.newest_attempt() is None:
        plan = captured_plan(
            plan,
            repository=repository,
            folder=folder,
            cluster=cluster,
            admin=admin,
            capture=lambda topics: capture(topics, stop),
        )
    return Attempt(
        _pinned(
            plan,
            repository=repository,
            folder=folder,
            cluster=cluster,
            admin=admin,
            skip_damaged=skip_damaged,
        ),
        repository=repository,
        folder=folder,
        cluster=cluster.stoppable(stop.check),
        admin=admin,
        retry_seconds=retry_seconds,
        threads=threads,
        limits=limits,
        skip_damaged=skip_damaged,
        stop=stop,
        on_progress=on_progress,
    ).run()


def _pinned(
    plan: RestorePlan,
    *,
    repository: Repository,
    folder: RestoreFolder,
    cluster: Cluster,
    admin: TopicAdmin,
    skip_damaged: bool = False,
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
            plan.request,
            repository=repository,
            cluster=cluster,
            admin=admin,
            number=plan.number + 1,
            captured=plan.request.replace,
            skip_damaged=skip_damaged,
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
    return groups_have_expired(plan, repository)


def _check_still_there(done: RestoreReport, cluster: Cluster) -> None:
    """A finished restore counts only while what it wrote is there: an id must not vouch for another topic."""
    now = cluster.survey([topic.target for topic in done.topics])
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
        for target in partition_targets(plan, planned[topic.target], topic.target_topic_id, repository)
    ]

    context = RestoreContext(
        cluster=cluster,
        store=repository.store,
        retry_seconds=retry_seconds,
        before_segment=stop.check,
        skips=SegmentSkips(repository.restore_folder(restore_id), allowed=False),
    )

    def verify_one(target: PartitionTarget, stop: StopToken) -> Sequence[Work]:
        PartitionRestore(target, context, stop=stop).verify()
        return ()

    works = [partial(verify_one, target) for target in targets]
    in_parallel(works, threads=threads, stop=StopToken(stop))
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


def release_retention(
    restore_id: str, *, repository: Repository, cluster: Cluster, admin: TopicAdmin
) -> Sequence[str]:
    """Put the saved retention in force that a restore held back; see `Engine.release_retention`."""
    report = _finished(restore_id, repository)
    _check_still_there(report, cluster)
    return release(admin, report.topics)


def offset_map(
    restore_id: str, topic: str, partition: int, *, of_target: bool, repository: Repository
) -> OffsetMap:
    """Read the offset map of one partition of a finished restore; see `Engine.offset_map`."""
    report = _finished(restore_id, repository)
    by_source = {one.source: one.source for one in report.topics}
    by_target = {one.target: one.source for one in report.topics}
    # One topic may have got the name of another.
    sources = by_source | by_target if of_target else by_target | by_source
    if topic not in sources:
        raise ConfigurationError(f"restore {restore_id} did not restore the topic {topic!r}")
    document = repository.restore_folder(restore_id).offset_map(sources[topic], partition)
    if document is None:
        raise ConfigurationError(f"restore {restore_id} did not restore {topic} [{partition}]")
    return OffsetMap.from_document(document)


def _finished(restore_id: str, repository: Repository) -> RestoreReport:
    folder = repository.restore_folder(restore_id)
    report = folder.report()
    if report is None:
        state = "is not finished" if folder.plan() else "does not exist"
        raise ConfigurationError(f"restore {restore_id} {state}")
    return report
