"""Which positions of consumer groups a restore will move, and everything that forbids it.

The positions are those of one group snapshot, never of a later moment than the restore's.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from kafka_backup.errors import ConfigurationError, KafkaBackupError, RefusedError, UnreachableError
from kafka_backup.group_snapshot import doubts_of, unproved
from kafka_backup.kafka.cluster import Cluster, Partition
from kafka_backup.kafka.groups import GroupClient
from kafka_backup.kafka.rights import may_write_transactions
from kafka_backup.offset_automation import refuse_open_resets
from kafka_backup.offset_estimate import OffsetEstimate
from kafka_backup.offset_mapping import OffsetState, states_of
from kafka_backup.position_mover import active_in
from kafka_backup.renaming import check_rules, renamed
from kafka_backup.repository import layout
from kafka_backup.repository.group_documents import GroupSnapshot
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import (
    PlannedGroups,
    PlannedMove,
    PlannedTopic,
    RestorePlan,
    RestoreRequest,
)
from kafka_backup.reset_plan import NO_TRANSACTIONS, TRANSACTIONAL_IDS
from kafka_backup.restore_findings import NOT_AUTHORIZED, Findings
from kafka_backup.selection import FilterKind, GroupSelection
from kafka_backup.times import format_time, time_in_id

_TOLD = 10
"""Findings of one kind that are told one by one."""


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
    snapshot_id: str | None = None,
) -> PlannedGroups | None:
    """Choose the group snapshot and say where each position will go; what forbids it is collected.

    Args:
        request: what is asked for.
        topics: what is planned of its topics.
        repository: where group snapshots and commit logs are.
        cluster: the target.
        findings: takes problems and notes.
        snapshot_id: the group snapshot, where it is chosen already.

    Returns:
        None if no groups are asked for, or there are no positions for them.

    Raises:
        ConfigurationError: a group that is named is not in the group snapshot, or a pattern matches none.
    """
    if not request.groups:
        return None
    selection = GroupSelection.parse(request.groups)
    if snapshot_id is None:
        snapshot = _choose_snapshot(request, selection, repository, findings)
    else:
        snapshot = GroupStore(repository.store).snapshot(snapshot_id)
    if snapshot is None:
        return None
    if _is_followed_by_another(request, topics):
        findings.note(
            "positions_of_final_capture",
            None,
            "the final capture saves the positions of consumer groups again, and those are moved, not the ones shown",
        )
    moves = _Moves(request, topics, snapshot, repository, findings).planned(selection)
    if targets := {move.group for move in moves}:
        _refuse_targets(targets, cluster, findings)
        try:
            refuse_open_resets(targets, cluster.metadata([]).cluster_id, GroupStore(repository.store))
        except RefusedError as error:
            findings.problem("reset_open", None, str(error))
    return PlannedGroups(snapshot_id=snapshot.snapshot_id, taken_at=snapshot.taken_at, moves=tuple(moves))


def _is_followed_by_another(request: RestoreRequest, topics: Sequence[PlannedTopic]) -> bool:
    """Whether a newer group snapshot will be taken before the restore, which then is the one to choose."""
    if request.capture is not None or (
        request.until_ms is not None and request.until_ms < time.time() * 1000
    ):
        return False
    return any(topic.replaces is not None and not topic.replaces.captured for topic in topics)


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
        self._estimates: dict[Partition, OffsetEstimate] = {}

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
            self._estimates[key] = OffsetEstimate(self._request, topic, part, log)
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


def _refuse_targets(groups: Collection[str], cluster: Cluster, findings: Findings) -> None:
    """Find what would forbid to move the groups, before hours are spent on the data."""
    client = GroupClient(cluster)
    listing = client.list_groups()
    for reason in unproved(listing):
        findings.problem(NOT_AUTHORIZED, None, reason)
    doubts_of(listing)
    active = active_in(listing, groups)
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
    if not may_write_transactions(cluster, TRANSACTIONAL_IDS):
        findings.problem(NOT_AUTHORIZED, None, NO_TRANSACTIONS)
