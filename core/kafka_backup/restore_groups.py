"""Consumer positions as part of a restore: planned with the data, moved last, when the data is proved.

The positions are those of one group snapshot, never of a later moment than the restore's. They are moved by a
reset through the offset map of this restore, in one transaction wherever that can be: until it is committed
every position is as before. The reset is a state machine of stored steps, so a run that takes over finds what
an earlier one has begun, or finished, and never moves a position twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate

from kafka_backup.errors import (
    AuthorizationError,
    ConfigurationError,
    DamagedError,
    KafkaBackupError,
    RefusedError,
    UnreachableError,
    WriterConflictError,
)
from kafka_backup.kafka.cluster import Cluster, Partition
from kafka_backup.kafka.groups import GroupClient
from kafka_backup.offset_automation import (
    CANNOT_DELETE_ATOMICALLY,
    ResetReport,
    Restored,
    error_of,
    find_reset,
    make_plan,
    refuse_open_resets,
    run_reset,
    saved_positions,
)
from kafka_backup.offset_mapping import OffsetMap, OffsetState, RestoredPartition, states_of
from kafka_backup.offset_rollback import ResetLog, plan_rollback, run_rollback
from kafka_backup.position_mover import active_groups
from kafka_backup.progress import StopToken
from kafka_backup.renaming import check_rules, renamed
from kafka_backup.repository import layout
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.group_documents import GroupSnapshot, ResetPlan, ResetRequest
from kafka_backup.repository.group_store import OPEN_STATES, GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    PlannedGroups,
    PlannedMove,
    PlannedPartition,
    PlannedTopic,
    RestoredGroups,
    RestoredPosition,
    RestoredTopic,
    RestorePlan,
    RestoreRequest,
    VerifiedTopic,
)
from kafka_backup.repository.restore_folder import RestoreFolder
from kafka_backup.restore_findings import NOT_AUTHORIZED, Findings
from kafka_backup.restore_source import source_segments
from kafka_backup.selection import FilterKind, GroupSelection
from kafka_backup.times import format_time, time_in_id

_TOLD = 10
"""Findings of one kind that are told one by one."""


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


# --- the plan


def check_groups(request: RestoreRequest) -> None:
    """Make sure that what a request says of groups can be meant.

    Raises:
        ConfigurationError: a filter or a rule is malformed, or there are new names for no groups.
    """
    GroupSelection.parse(request.groups)
    check_rules(request.rename_groups)
    if request.rename_groups and not request.groups:
        raise ConfigurationError("new names of groups (rename_groups), but no groups: name those to restore")


def plan_groups(
    request: RestoreRequest,
    topics: Sequence[PlannedTopic],
    *,
    repository: Repository,
    cluster: Cluster,
    findings: Findings,
) -> PlannedGroups | None:
    """Choose the group snapshot and say where each position will go; what forbids it is collected.

    Args:
        request: what is asked for.
        topics: what is planned of its topics.
        repository: where group snapshots and commit logs are.
        cluster: the target.
        findings: takes problems and notes.

    Returns:
        None if no groups are asked for, or there are no positions for them.

    Raises:
        ConfigurationError: a group that is named is not in the group snapshot, or a pattern matches none.
    """
    if not request.groups:
        return None
    selection = GroupSelection.parse(request.groups)
    snapshot = _choose_snapshot(request, selection, repository, findings)
    if snapshot is None:
        return None
    moves = _Moves(request, topics, snapshot, repository, findings).planned(selection)
    if targets := {move.group for move in moves}:
        _refuse_targets(targets, cluster, findings)
        try:
            refuse_open_resets(targets, cluster.metadata([]).cluster_id, GroupStore(repository.store))
        except RefusedError as error:
            findings.problem("reset_open", None, str(error))
    return PlannedGroups(snapshot_id=snapshot.snapshot_id, taken_at=snapshot.taken_at, moves=tuple(moves))


def has_expired(plan: RestorePlan, repository: Repository) -> bool:
    """Whether the group snapshot of a plan is promised no more."""
    return plan.groups is not None and plan.groups.snapshot_id in _expired(repository)


def _expired(repository: Repository) -> set[str]:
    return {name for expiry in repository.expiries() for name in expiry.group_snapshots}


def _choose_snapshot(
    request: RestoreRequest, selection: GroupSelection, repository: Repository, findings: Findings
) -> GroupSnapshot | None:
    """The capture's own, or the newest that is not later than the restore's moment."""
    store = GroupStore(repository.store)
    expired = _expired(repository)
    candidates = [snapshot_id for snapshot_id in store.snapshot_ids() if snapshot_id not in expired]
    own = None
    if request.capture is not None:
        own = _own_snapshot(request.capture, repository, findings)
        if own is None:
            return None
        candidates = [*(snapshot_id for snapshot_id in candidates if snapshot_id < own), own]
    if request.until_ms is not None:
        last = time_in_id(request.until_ms)
        candidates = [snapshot_id for snapshot_id in candidates if snapshot_id[: len(last)] <= last]
    for snapshot_id in reversed(candidates):
        snapshot = store.snapshot(snapshot_id)
        if request.until_ms is not None and snapshot.ended_at > request.until_ms:
            continue
        if snapshot_id == own or _was_asked_for(selection, snapshot):
            _note_filters(selection, snapshot, findings)
            return snapshot
    bounds = [
        f"not later than {format_time(request.until_ms)}" if request.until_ms is not None else "",
        f"not later than capture {request.capture}" if own is not None else "",
    ]
    findings.problem(
        "no_group_snapshot",
        None,
        f"the repository holds no positions of the groups {', '.join(request.groups)} "
        + " and ".join(filter(None, bounds))
        + "; leave out --groups, or choose a later moment ('groups list' shows what there is)",
    )
    return None


def _own_snapshot(capture_id: str, repository: Repository, findings: Findings) -> str | None:
    capture = repository.capture(capture_id)
    if capture.groups is None:
        findings.problem(
            "no_group_snapshot",
            None,
            f"capture {capture_id} saved no positions of consumer groups; leave out --groups, or name another capture",
        )
        return None
    snapshot_id = capture.groups.snapshot_id
    if snapshot_id in _expired(repository):
        findings.problem("expired", None, f"the positions that capture {capture_id} saved have expired")
        return None
    if repository.store.size(layout.group_snapshot_key(snapshot_id)) is None:
        findings.problem(
            "missing_object",
            None,
            f"group snapshot {snapshot_id} of capture {capture_id} is missing; put it back from a copy of the repository",
        )
        return None
    return snapshot_id


def _was_asked_for(selection: GroupSelection, snapshot: GroupSnapshot) -> bool:
    """Whether a snapshot was to hold all that is selected: one of a capture, or with filters as wide."""
    if snapshot.capture_id is not None:
        return True
    taken = GroupSelection.parse(snapshot.include, snapshot.exclude)
    return all(
        taken.includes(each.text) if each.kind is FilterKind.EXACT else _covers(snapshot, each.text)
        for each in selection.include
    )


def _covers(snapshot: GroupSnapshot, pattern: str) -> bool:
    return not snapshot.exclude and bool({"*", pattern} & set(snapshot.include))


def _note_filters(selection: GroupSelection, snapshot: GroupSnapshot, findings: Findings) -> None:
    patterns = [each.text for each in selection.include if each.kind is not FilterKind.EXACT]
    if any(not _covers(snapshot, pattern) for pattern in patterns):
        excluded = f", except {', '.join(snapshot.exclude)}" if snapshot.exclude else ""
        findings.note(
            "partial_snapshot",
            None,
            f"group snapshot {snapshot.snapshot_id} was taken of the groups {', '.join(snapshot.include)}{excluded} only",
        )


class _Moves:
    """Plans the moves of one snapshot's positions."""

    def __init__(
        self,
        request: RestoreRequest,
        topics: Sequence[PlannedTopic],
        snapshot: GroupSnapshot,
        repository: Repository,
        findings: Findings,
    ) -> None:
        self._request = request
        self._topics = {topic.source: topic for topic in topics}
        self._snapshot = snapshot
        self._repository = repository
        self._findings = findings
        self._estimates: dict[Partition, Estimate] = {}

    def planned(self, selection: GroupSelection) -> list[PlannedMove]:
        """Plan the moves of the selected groups; what forbids them is collected."""
        groups = {group.group: group for group in self._snapshot.groups}
        where = f"group snapshot {self._snapshot.snapshot_id}"
        if missing := selection.missing(groups):
            raise ConfigurationError(f"group {missing[0]!r} is not in {where}")
        for each in selection.include:
            if each.text != "*" and not any(map(each.matches, groups)):
                raise ConfigurationError(f"no group in {where} matches {each.text}")
        exact = {each.text for each in selection.include if each.kind is FilterKind.EXACT}
        if exact != {each.text for each in selection.include}:
            for reason in self._snapshot.incomplete:
                self._findings.problem(
                    "incomplete_snapshot",
                    None,
                    f"{where} may lack groups or positions ({reason}); name the groups exactly to go on with those",
                )
        wanted = []
        for name in selection.select(groups):
            if groups[name].status == "read":
                wanted.append(name)
            elif groups[name].status == "failed" or name in exact:
                self._findings.problem(
                    "unreadable_group",
                    None,
                    f"group {name!r}: {where} does not hold it: {groups[name].detail}",
                )
        names = self._new_names(wanted)
        moves = [
            move
            for state in states_of(self._snapshot)
            if state.group_id in names and (move := self._move(state, names[state.group_id])) is not None
        ]
        if not moves:
            self._findings.note(
                "no_positions", None, f"the groups have no positions on the restored topics in {where}"
            )
        return moves

    def _new_names(self, names: Sequence[str]) -> dict[str, str]:
        new_names: dict[str, str] = {}
        taken: dict[str, str] = {}
        for name in names:
            new = renamed(self._request.rename_groups, name)
            if new in taken or not new:
                self._findings.problem(
                    "same_group" if new else "bad_group_name",
                    None,
                    f"groups {taken[new]!r} and {name!r} would both become {new!r}"
                    if new
                    else f"group {name!r} would have no name",
                )
                continue
            taken[new] = name
            new_names[name] = new
        return new_names

    def _move(self, state: OffsetState, group: str) -> PlannedMove | None:
        topic = self._topics.get(state.topic)
        if topic is None:
            return None
        if state.topic_id != topic.source_topic_id:
            self._findings.problem(
                "another_incarnation",
                state.topic,
                f"group {state.group_id!r}: the position {state.committed_offset} in group snapshot "
                f"{self._snapshot.snapshot_id} is of "
                + (f"topic id {state.topic_id}" if state.topic_id else "a topic that was not visible then")
                + f", and what is restored is {topic.source_topic_id}; choose a moment (--until, --capture) when it was "
                "the topic",
                state.partition,
            )
            return None
        part = next((each for each in topic.partitions if each.partition == state.partition), None)
        if part is None:
            return None
        key = topic.source, part.partition
        if key not in self._estimates:
            log = self._repository.commit_log(topic.source, topic.source_topic_id)
            self._estimates[key] = Estimate(self._request, topic, part, log)
        offset, remaining = self._estimates[key].of(state.committed_offset)
        return PlannedMove(
            group=group,
            source_group=state.group_id,
            topic=topic.target,
            partition=part.partition,
            source_topic=topic.source,
            source_offset=state.committed_offset,
            offset=offset,
            remaining=remaining,
            is_beyond=state.committed_offset > part.source_end,
        )


class Estimate:
    """What commits alone tell of where a source offset will be in the target; no data is read."""

    def __init__(
        self, request: RestoreRequest, topic: PlannedTopic, part: PlannedPartition, log: CommitLog
    ) -> None:
        self._part = part
        self._is_bounded = request.from_ms is not None or request.until_ms is not None
        self._segments = [
            segment
            for segment in source_segments(
                log,
                head=topic.head,
                partition=part.partition,
                start=part.source_start,
                from_ms=request.from_ms,
            )
            if segment.end > segment.start
        ]
        self._ends = [segment.end for segment in self._segments]
        counts = [self._count(i, part.source_start) for i in range(len(self._segments))]
        self._after = [*accumulate((count for count, _ in reversed(counts)), initial=0)][::-1]
        self._is_exact = [*accumulate((exact for _, exact in reversed(counts)), min, initial=True)][::-1]

    def _count(self, i: int, start: int) -> tuple[int, bool]:
        """Records of one segment from an offset on, and whether that is exact or the most that it can be."""
        segment, entry = self._segments[i], self._segments[i].entry
        first = max(start, segment.start)
        end = min(segment.end, entry.last_offset + 1)
        span = max(0, end - first)
        if entry.records == entry.last_offset + 1 - entry.first_offset:
            return span, True
        is_whole = first <= entry.first_offset and end == entry.last_offset + 1
        return min(span, entry.records), is_whole or span == 0

    def of(self, position: int) -> tuple[int | None, int]:
        """Return the target offset, None where only the records tell it, and how many are to be read from it."""
        i = bisect_right(self._ends, position)
        if i == len(self._segments):
            remaining, exact = 0, True
        else:
            count, exact = self._count(i, max(position, self._part.source_start))
            remaining, exact = count + self._after[i + 1], exact and self._is_exact[i + 1]
        if not self._segments or position <= max(self._part.source_start, self._segments[0].start):
            return self._part.initial_end, min(remaining, self._part.records)
        if self._is_bounded or not (exact and self._is_exact[0]):
            return None, remaining
        return self._part.initial_end + self._after[0] - remaining, remaining


def _refuse_targets(groups: Collection[str], cluster: Cluster, findings: Findings) -> None:
    """Find what would forbid to move the groups, before hours are spent on the data."""
    client = GroupClient(cluster)
    active = active_groups(client, groups)
    for each in active[:_TOLD]:
        findings.problem(
            "group_active",
            None,
            f"group {each.group!r} is {each.state}, and nobody can move a group that has members; stop its consumers, or "
            "give it another name (--rename-groups)",
        )
    if len(active) > _TOLD:
        findings.problem("group_active", None, f"and {len(active) - _TOLD} more groups are active")
    for group, held in client.rights(sorted(groups)).items():
        if isinstance(held, UnreachableError):
            raise held
        if isinstance(held, KafkaBackupError):
            findings.problem(NOT_AUTHORIZED, None, str(held))
        elif "READ" not in held:
            findings.problem(NOT_AUTHORIZED, None, f"the right READ on group {group!r} is missing")


# --- carrying it out


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
    assert plan.groups is not None
    store = GroupStore(repository.store)
    with _explained(plan.request.restore_id):
        known = _known_reset(plan, store)
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
