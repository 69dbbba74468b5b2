"""Consumer positions as part of a restore: moved last, when the data is proved.

They are moved by a reset through the offset map of this restore, in one transaction wherever that can be: until
it is committed every position is as before. The reset is a state machine of stored steps, so a run that takes
over finds what an earlier one has begun, or finished, and never moves a position twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kafka_backup.errors import (
    AuthorizationError,
    ConfigurationError,
    DamagedError,
    RefusedError,
    WriterConflictError,
)
from kafka_backup.kafka.cluster import Cluster, Partition
from kafka_backup.offset_automation import OpenResetError, ResetReport, find_reset, run_reset
from kafka_backup.offset_mapping import OffsetMap, RestoredPartition
from kafka_backup.offset_rollback import ResetLog, plan_rollback, run_rollback
from kafka_backup.progress import StopToken
from kafka_backup.repository.group_documents import ResetPlan, ResetRequest
from kafka_backup.repository.group_store import OPEN_STATES, GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    RestoredGroups,
    RestoredPosition,
    RestoredTopic,
    RestorePlan,
    VerifiedTopic,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.reset_plan import CANNOT_DELETE_ATOMICALLY, error_of, make_plan
from kafka_backup.saved_positions import Restored, saved_positions


def restored_by(
    plan: RestorePlan, topics: Sequence[VerifiedTopic] | Sequence[RestoredTopic], folder: RestoreFolder
) -> Restored:
    """Read where a restore put each record.

    Args:
        plan: of the restore.
        topics: its target topics, all of them compared with the repository.
        folder: where its offset maps are.

    Raises:
        DamagedError: an offset map is missing or unreadable.
    """
    partitions = {}
    for topic in plan.topics:
        for part in topic.partitions:
            document = folder.offset_map(topic.source, part.partition)
            if document is None:
                raise DamagedError(
                    f"the offset map of {topic.source} [{part.partition}] in restore {folder.restore_id} is missing; put "
                    "it back from a copy of the repository"
                )
            partitions[topic.source, part.partition] = RestoredPartition(
                target=topic.target,
                offsets=OffsetMap.from_document(document),
                captured_end=part.source_end,
            )
    return Restored(
        restore_id=folder.restore_id,
        cluster_id=plan.target_cluster_id,
        sources={topic.source: topic.source_topic_id for topic in plan.topics},
        targets={topic.source: (topic.target, topic.target_topic_id) for topic in topics},
        partitions=partitions,
    )


def move_groups(
    plan: RestorePlan,
    verified: Sequence[VerifiedTopic],
    *,
    repository: Repository,
    cluster: Cluster,
    still_ours: Callable[[], None],
    stop: StopToken,
) -> RestoredGroups:
    """Put the groups of a restore where it put their records: all of them, or none.

    Args:
        plan: of the restore, with groups in it.
        verified: its target topics, all of them compared with the repository.
        repository: where the offset maps are.
        cluster: the target.
        still_ours: raises WriterConflictError when another run has taken over; called when that run can
            find the reset, and before anything is moved.
        stop: ends it with CancelledError.

    Raises:
        RefusedError: a group has members, or something else forbids it; the positions are as before.
        DamagedError: the target does not hold what was verified any more; the positions are as before.
        UnreachableError: it is unknown where they are; the same restore again goes on.
    """
    store = GroupStore(repository.store)
    with _explained(plan.request.restore_id):
        while True:
            still_ours()
            known = _known_reset(plan, store)
            try:
                return _move(
                    plan,
                    verified,
                    known,
                    repository=repository,
                    cluster=cluster,
                    store=store,
                    still_ours=still_ours,
                    stop=stop,
                )
            except (OpenResetError, WriterConflictError):
                # An older run of this restore has begun its reset meanwhile, and stops in the middle of it.
                if _known_reset(plan, store) == known:
                    raise


def _move(
    plan: RestorePlan,
    verified: Sequence[VerifiedTopic],
    known: tuple[ResetPlan, str] | None,
    *,
    repository: Repository,
    cluster: Cluster,
    store: GroupStore,
    still_ours: Callable[[], None],
    stop: StopToken,
) -> RestoredGroups:
    """Go on from the reset that is known, with its state, or from none."""
    if known is not None and known[1] in ("failed", "rolling_back"):
        _roll_back(known[0].reset_id, store=store, cluster=cluster, stop=stop)
        known = None
    if known is not None and known[1] == "verified":
        return _from_log(plan, known[0], store)
    reset = (
        known[0]
        if known is not None
        else _planned_reset(plan, verified, repository=repository, cluster=cluster, store=store)
    )
    report = _run(reset, store=store, cluster=cluster, still_ours=still_ours, stop=stop)
    return _restored(
        plan,
        reset,
        report.reset_id,
        {
            result.move.key: (
                None if result.move.start is None else result.move.start.offset,
                None if result.current is None else result.current.offset,
            )
            for result in report.results
        },
    )


@contextmanager
def _explained(restore_id: str) -> Iterator[None]:
    """Say with an error how far the restore is."""
    try:
        yield
    except WriterConflictError:
        raise
    except (RefusedError, AuthorizationError) as error:
        kind = RefusedError if isinstance(error, RefusedError) else AuthorizationError
        raise kind(
            f"restore {restore_id}: the data is restored and verified, the positions of consumer groups are not: {error}. "
            "Run the same restore again to go on"
        ) from error


def _run(
    reset: ResetPlan,
    *,
    store: GroupStore,
    cluster: Cluster,
    still_ours: Callable[[], None],
    stop: StopToken,
) -> ResetReport:
    """Carry out a reset; if it fails, put back what it has moved."""
    try:
        report = run_reset(reset, store=store, cluster=cluster, before_moves=still_ours, stop=stop)
        if report.status != "failed":
            return report
        failed = "; ".join(dict.fromkeys(str(r.error) for r in report.results if r.error is not None))
    except WriterConflictError:
        raise
    except RefusedError as error:
        if ResetLog(store.reset(reset.reset_id)).state != "failed":
            raise
        failed = str(error)
    try:
        _roll_back(reset.reset_id, store=store, cluster=cluster, stop=stop)
    except (RefusedError, ConfigurationError) as error:
        raise RefusedError(
            f"{failed}. What was moved could not be put back ({error}): stop the consumers, then "
            f"'groups rollback {reset.reset_id} --execute'"
        ) from error
    raise RefusedError(f"{failed}. Nothing stays moved")


def _roll_back(reset_id: str, *, store: GroupStore, cluster: Cluster, stop: StopToken) -> None:
    folder = store.reset(reset_id)
    back = plan_rollback(reset_id, folder=folder, cluster=cluster, force=False)
    for result in run_rollback(back, folder=folder, cluster=cluster, stop=stop):
        if result.error is not None:
            raise result.error


def _request(plan: RestorePlan, *, atomic: bool) -> ResetRequest:
    assert plan.groups is not None
    return ResetRequest(
        groups=plan.request.groups,
        snapshot_id=plan.groups.snapshot_id,
        restore_id=plan.request.restore_id,
        atomic=atomic,
        # Retention may have begun to delete what was restored; the bounds above are checked against the proof.
        clamp=True,
        rename=plan.request.rename_groups,
    )


def _known_reset(plan: RestorePlan, store: GroupStore) -> tuple[ResetPlan, str] | None:
    """The reset that an earlier run has finished, else one that it has begun or failed with.

    One that was rolled back is over.
    """
    for states in (("verified",), (*OPEN_STATES, "failed")):
        known = [
            found
            for atomic in (True, False)
            if (found := find_reset(_request(plan, atomic=atomic), plan.target_cluster_id, store, states))
        ]
        if known:
            return max(known, key=lambda found: found[0].reset_id)
    return None


def _planned_reset(
    plan: RestorePlan,
    verified: Sequence[VerifiedTopic],
    *,
    repository: Repository,
    cluster: Cluster,
    store: GroupStore,
) -> ResetPlan:
    """Plan the reset; in one transaction unless commits are to be removed, which none can do."""
    assert plan.groups is not None
    folder = repository.restore_folder(plan.request.restore_id)
    saved = saved_positions(
        store.snapshot(plan.groups.snapshot_id), restored=restored_by(plan, verified, folder)
    )
    reset = make_plan(_request(plan, atomic=True), cluster=cluster, saved=saved)
    if reset.problems and {problem.kind for problem in reset.problems} == {CANNOT_DELETE_ATOMICALLY}:
        reset = make_plan(_request(plan, atomic=False), cluster=cluster, saved=saved)
    if (error := error_of(reset)) is not None:
        raise error
    _check_ends(reset, verified)
    return reset


def _check_ends(reset: ResetPlan, verified: Sequence[VerifiedTopic]) -> None:
    """What was verified must still be there: a position must not be clamped to the end of a log that was cut."""
    ends = {
        (topic.target, part.partition): part.target_end for topic in verified for part in topic.partitions
    }
    for group in reset.groups:
        for position in group.positions:
            end = ends.get((position.topic, position.partition), 0)
            if position.high_watermark < end:
                raise DamagedError(
                    f"{position.topic} [{position.partition}] ends at {position.high_watermark}, and was verified up to "
                    f"{end}: records were lost since. No position was moved; restore again with a new --id"
                )


def _from_log(plan: RestorePlan, reset: ResetPlan, store: GroupStore) -> RestoredGroups:
    """What an earlier run did, which died before it could report: where consumers are by now is their business."""
    outcome = ResetLog(store.reset(reset.reset_id)).outcome()
    assert outcome is not None
    rows = {(row.group, (row.topic, row.partition)): (row.before, row.after) for row in outcome.positions}
    return _restored(plan, reset, reset.reset_id, rows)


def _restored(
    plan: RestorePlan,
    reset: ResetPlan,
    reset_id: str | None,
    rows: Mapping[tuple[str, Partition], tuple[int | None, int | None]],
) -> RestoredGroups:
    assert plan.groups is not None
    return RestoredGroups(
        snapshot_id=plan.groups.snapshot_id,
        reset_id=reset_id,
        positions=tuple(
            RestoredPosition(
                group=group.group,
                topic=position.topic,
                partition=position.partition,
                source_topic=position.source_topic,
                source_offset=position.source_offset,
                before=rows[group.group, (position.topic, position.partition)][0],
                after=rows[group.group, (position.topic, position.partition)][1],
                remaining=position.remaining,
                clamped_from=position.clamped_from,
            )
            for group in reset.groups
            for position in group.positions
        ),
    )
