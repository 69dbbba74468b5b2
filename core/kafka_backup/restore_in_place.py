"""Restores in place: what is deleted was captured to its end and proved before, and nobody wrote since.

Whatever dies in between, the cluster itself says which step comes next: a topic that is to be deleted is there
under the id that the plan names, or it is deleted already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from kafka_backup.errors import RefusedError
from kafka_backup.expected_batches import PartitionTarget, expected_batches, partition_targets
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.metadata import TopicMetadata
from kafka_backup.kafka.topics import TopicAdmin, delete_topic
from kafka_backup.parallel import Work, in_parallel
from kafka_backup.progress import StopToken
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import PlannedTopic, RestorePlan
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.repository.segments import SegmentReader
from kafka_backup.repository.store import Store
from kafka_backup.restore_findings import refusal
from kafka_backup.restore_plan import make_plan
from kafka_backup.restore_target import offset_bounds


def captured_plan(
    plan: RestorePlan,
    *,
    repository: Repository,
    folder: RestoreFolder,
    cluster: Cluster,
    admin: TopicAdmin,
    capture: Callable[[Sequence[str]], None],
) -> RestorePlan:
    """Return the plan of a restore in place, made after a capture that holds all that will be deleted.

    What was written before the point in time, and after the last scheduled capture, is in the final capture
    alone: so the plan in force is made after it. One that is stored already counts as long as the topics
    that it deletes are as their final capture left them, or are gone.

    Args:
        plan: as it was made without the final capture, or stored by an earlier run.
        repository: where captures are.
        folder: of the restore, which has no attempt yet.
        cluster: the target.
        admin: for its topics.
        capture: saves topics to their ends, and raises if anything of them is not saved.

    Raises:
        RefusedError: something would be lost with the topics, or forbids the restore otherwise.
    """
    stored = folder.plan()
    if stored is not None and stored.request == plan.request:
        plan = stored
    replaced = [topic for topic in plan.topics if topic.replaces is not None]
    existing = _existing(replaced, cluster)
    changed = [topic for topic in replaced if _must_be_captured(topic, existing, cluster)]
    if not changed:
        return plan
    capture([topic.target for topic in changed])
    # With a topic its positions go: another group snapshot would not hold them any more.
    deleted = {topic.target: topic.replaces for topic in replaced if not is_doomed(topic, existing)}
    made = make_plan(
        plan.request,
        repository=repository,
        cluster=cluster,
        admin=admin,
        number=plan.number + (stored is not None),
        captured=True,
        group_snapshot=plan.groups.snapshot_id if deleted and plan.groups is not None else None,
    )
    if (refused := refusal(made)) is not None:
        raise refused
    topics = [
        topic.model_copy(update={"replaces": topic.replaces or deleted.get(topic.target)})
        for topic in made.topics
    ]
    return made.model_copy(update={"topics": tuple(topics)})


def _must_be_captured(topic: PlannedTopic, existing: Mapping[str, TopicMetadata], cluster: Cluster) -> bool:
    assert topic.replaces is not None
    if not topic.replaces.captured:
        return True
    return is_doomed(topic, existing) and _ends(existing[topic.target], cluster) != topic.replaces.ends


def _existing(topics: Iterable[PlannedTopic], cluster: Cluster) -> Mapping[str, TopicMetadata]:
    return cluster.survey([topic.target for topic in topics]).topics


def _ends(topic: TopicMetadata, cluster: Cluster) -> tuple[int, ...]:
    """The end of each partition that the topic has by now."""
    keys = [(topic.name, partition) for partition in sorted(topic.partitions)]
    bounds = offset_bounds(cluster, keys)
    return tuple(bounds[key][1] for key in keys)


def is_doomed(topic: PlannedTopic, existing: Mapping[str, TopicMetadata]) -> bool:
    """Whether the topic that the plan says to delete is still there."""
    found = existing.get(topic.target)
    return topic.replaces is not None and found is not None and found.topic_id == topic.replaces.topic_id


def prove(
    plan: RestorePlan, *, repository: Repository, cluster: Cluster, threads: int, stop: StopToken
) -> None:
    """Before anything is deleted: read back all that its restore needs, and all that it holds.

    Raises:
        DamagedError: a segment is damaged; found later, it would have been deleted for good.
    """
    existing = _existing(plan.topics, cluster)
    works: list[Work] = []
    for topic in plan.topics:
        if topic.replaces is None or not is_doomed(topic, existing):
            continue
        log = repository.commit_log(topic.target, topic.replaces.topic_id)
        works += [
            partial(_prove_captured, log, number, repository.store)
            for number in range(len(topic.replaces.ends))
        ]
        targets = partition_targets(plan, topic, topic.replaces.topic_id, repository)
        works += [partial(_prove_needed, target, repository.store) for target in targets]
    in_parallel(works, threads=threads, stop=stop)


def _prove_captured(log: CommitLog, partition: int, store: Store, stop: StopToken) -> Sequence[Work]:
    for segment in log.segments(partition):
        for _ in SegmentReader(store, segment).batches(check_crc=True):
            stop.check()
    return ()


def _prove_needed(target: PartitionTarget, store: Store, stop: StopToken) -> Sequence[Work]:
    for _ in expected_batches(target, store, before_segment=stop.check):
        stop.check()
    return ()


def delete_replaced(plan: RestorePlan, *, cluster: Cluster, stop: StopToken) -> None:
    """Delete what the plan replaces, unless somebody wrote into any of it since its final capture.

    Raises:
        RefusedError: naming the topic that is still written.
    """
    existing = _existing(plan.topics, cluster)
    doomed = [topic for topic in plan.topics if is_doomed(topic, existing)]
    for topic in doomed:
        _refuse_if_written(topic, existing[topic.target], cluster, deleted=())
    deleted: list[str] = []
    for topic in doomed:
        stop.check()
        now = _existing([topic], cluster)
        if not is_doomed(topic, now):
            continue
        _refuse_if_written(topic, now[topic.target], cluster, deleted)
        delete_topic(cluster, topic.target, now[topic.target].topic_id)
        deleted.append(topic.target)


def _refuse_if_written(
    topic: PlannedTopic, found: TopicMetadata, cluster: Cluster, deleted: Sequence[str]
) -> None:
    assert topic.replaces is not None
    if (ends := _ends(found, cluster)) != topic.replaces.ends:
        done = f"{', '.join(deleted)} is deleted already" if deleted else "nothing was deleted"
        raise RefusedError(
            f"{topic.target} is still written: its partitions end at {list(ends)}, and at {list(topic.replaces.ends)} in "
            f"its final capture; {done}. Stop whoever writes into it, and run the same restore again"
        )
