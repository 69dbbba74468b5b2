"""The way back: positions saved before a reset, the steps of a reset, and the rollback.

A reset is a state machine whose every step is an object, so that whoever comes after a crash knows
what may have been changed: nothing before ``applying`` is there. ``before.json`` is written before
that, once; a rollback puts back what it says, and removes what it says was not there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import ConfigurationError, DamagedError, KafkaBackupError, RefusedError
from kafka_backup.kafka.cluster import Cluster, Partition
from kafka_backup.kafka.groups import CommittedOffset, GroupClient, GroupOffsets
from kafka_backup.position_mover import (
    MoveResult,
    PositionMove,
    PositionMover,
    active_error,
    active_groups,
    describe,
    is_same,
)
from kafka_backup.progress import StopToken
from kafka_backup.repository.group_documents import (
    GroupBefore,
    MovedPosition,
    PlannedPosition,
    PositionBefore,
    PositionsBefore,
    ResetPlan,
    ResetState,
    ResetStep,
)
from kafka_backup.repository.group_store import ResetFolder

_FOLLOWS: Mapping[str, frozenset[str]] = {
    "snapshotted": frozenset({"applying"}),
    "applying": frozenset({"applying", "applied", "failed", "rolling_back"}),
    "applied": frozenset({"applying", "verified", "failed", "rolling_back"}),
    "verified": frozenset({"rolling_back"}),
    "failed": frozenset({"rolling_back"}),
    "rolling_back": frozenset({"rolling_back", "rolled_back"}),
    "rolled_back": frozenset({"rolling_back"}),
}
"""Which state may come after which. ``planned`` is plan.json, ``snapshotted`` is before.json."""


def may_follow(state: str, following: str) -> bool:
    """Whether a reset may go from one state to another."""
    return following in _FOLLOWS.get(state, frozenset())


class ResetLog:
    """The steps of one reset, as they were when the log was opened, and what we appended."""

    def __init__(self, folder: ResetFolder) -> None:
        """Read the steps.

        Raises:
            DamagedError: a step is missing, unreadable, or cannot follow the one before it.
        """
        self._folder = folder
        self._steps = list(folder.steps())
        state = "snapshotted"
        for step in self._steps:
            if not may_follow(state, step.state) or step.reset_id != folder.reset_id:
                raise DamagedError(
                    f"reset {folder.reset_id}: step {step.number} is {step.state!r}, which cannot follow {state!r}; put "
                    "the steps back from a copy"
                )
            state = step.state

    @property
    def state(self) -> ResetState | None:
        """The last step's; None if nothing can have been changed yet."""
        return self._steps[-1].state if self._steps else None

    @property
    def steps(self) -> Sequence[ResetStep]:
        """All steps."""
        return tuple(self._steps)

    def outcome(self) -> ResetStep | None:
        """The newest step that says what became of each position on the way there."""
        found = [step for step in self._steps if step.state in ("verified", "failed")]
        return found[-1] if found else None

    def advance(self, state: ResetState, positions: Sequence[MovedPosition] = ()) -> None:
        """Write the next step.

        Raises:
            WriterConflictError: another run works on this reset.
            RefusedError: this state cannot come next.
        """
        now = self.state or "snapshotted"
        if not may_follow(now, state):
            raise RefusedError(f"reset {self._folder.reset_id} is {now} and cannot become {state}")
        step = ResetStep(
            reset_id=self._folder.reset_id,
            number=len(self._steps) + 1,
            state=state,
            nonce=secrets.token_hex(16),
            at=time.time_ns() // 1_000_000,
            positions=tuple(positions),
        )
        self._folder.put_step(step)
        self._steps.append(step)


def take_before(client: GroupClient, plan: ResetPlan) -> PositionsBefore:
    """Read every position that a plan names, "there is none" included, and which groups exist.

    Raises:
        KafkaBackupError: of the first group that cannot be read; without its position there is no way back.
    """
    listed = client.list_groups().groups
    wanted = {group.group: [(p.topic, p.partition) for p in group.positions] for group in plan.groups}
    found = client.fetch(wanted)
    groups = []
    for group in plan.groups:
        offsets = found[group.group]
        if isinstance(offsets, KafkaBackupError):
            raise offsets
        state = listed[group.group].state if group.group in listed else None
        groups.append(
            GroupBefore(
                group=group.group,
                state=None if state == "Dead" else state,
                positions=tuple(_before(planned, offsets) for planned in group.positions),
            )
        )
    return PositionsBefore(
        reset_id=plan.reset_id,
        nonce=secrets.token_hex(16),
        taken_at=time.time_ns() // 1_000_000,
        groups=tuple(groups),
    )


def _before(planned: PlannedPosition, offsets: GroupOffsets) -> PositionBefore:
    committed = offsets.get((planned.topic, planned.partition))
    return PositionBefore(
        topic=planned.topic,
        topic_id=planned.topic_id,
        partition=planned.partition,
        offset=None if committed is None else committed.offset,
        leader_epoch=-1 if committed is None else committed.leader_epoch,
        metadata="" if committed is None else committed.metadata,
    )


def positions_of(before: PositionsBefore) -> Mapping[tuple[str, Partition], CommittedOffset | None]:
    """Return the saved positions by group and partition."""
    return {
        (group.group, (position.topic, position.partition)): None
        if position.offset is None
        else CommittedOffset(offset=position.offset, metadata=position.metadata)
        for group in before.groups
        for position in group.positions
    }


def goals_of(plan: ResetPlan) -> Mapping[tuple[str, Partition], CommittedOffset | None]:
    """Return the planned positions by group and partition."""
    return {
        (group.group, (position.topic, position.partition)): None
        if position.offset is None
        else CommittedOffset(offset=position.offset, metadata=position.metadata)
        for group in plan.groups
        for position in group.positions
    }


def differences(
    saved: Mapping[tuple[str, Partition], CommittedOffset | None],
    current: Mapping[tuple[str, Partition], CommittedOffset | None],
) -> Sequence[str]:
    """Say, one sentence each, where positions differ from the saved ones, both ways.

    Both ways: what was saved and is missing or elsewhere, and what is there and was not saved.
    """
    said = []
    for key in sorted(saved.keys() | current.keys()):
        group, (topic, partition) = key
        was, now = saved.get(key), current.get(key)
        if not is_same(was, now):
            said.append(f"group {group!r}, {topic} [{partition}]: {describe(now)} instead of {describe(was)}")
    return said


def moved_position(result: MoveResult) -> MovedPosition:
    """Return the result of a move as it is stored."""
    move = result.move
    return MovedPosition(
        group=move.group,
        topic=move.topic,
        partition=move.partition,
        before=None if move.start is None else move.start.offset,
        after=None if result.current is None else result.current.offset,
        error=None if result.error is None else str(result.error),
        was_touched=result.was_touched,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlan:
    """What a rollback would do, and everything that forbids it.

    Attributes:
        moves: every position that the reset may have changed, from where it is to where it was.
        deletes: groups that did not exist before.
        errors: of positions that cannot be moved, by group and partition.
    """

    reset_id: str
    state: ResetState
    cluster_id: str
    moves: Sequence[PositionMove]
    deletes: Sequence[str]
    errors: Mapping[tuple[str, Partition], KafkaBackupError]


def plan_rollback(reset_id: str, *, folder: ResetFolder, cluster: Cluster, force: bool) -> RollbackPlan:
    """Look at a reset and at the positions now; changes nothing.

    Args:
        reset_id: which reset.
        folder: what is stored of it.
        cluster: where it was made.
        force: also put back what a consumer has moved on since.

    Raises:
        ConfigurationError: there is no such reset, or it has changed nothing.
        RefusedError: it was made on another cluster.
        UnreachableError: a group cannot be read.
    """
    plan, log = folder.plan(), ResetLog(folder)
    before = folder.before()
    if plan is None:
        raise ConfigurationError(f"there is no reset {reset_id!r}")
    if before is None or log.state is None:
        raise ConfigurationError(f"reset {reset_id} has changed nothing; there is nothing to roll back")
    metadata = cluster.survey(sorted({p.topic for group in plan.groups for p in group.positions}))
    if metadata.cluster_id != plan.cluster_id:
        raise RefusedError(
            f"reset {reset_id} was made on cluster {plan.cluster_id}, the configured one is {metadata.cluster_id}"
        )
    outcome = log.outcome()
    untouched = {
        (row.group, (row.topic, row.partition))
        for row in (outcome.positions if outcome is not None else ())
        if row.error is not None and not row.was_touched
    }
    goals = goals_of(plan)
    saved = {key: value for key, value in positions_of(before).items() if key not in untouched}
    client = GroupClient(cluster)
    current = _current(client, saved)
    ids = {
        (group.group, (p.topic, p.partition)): p.topic_id for group in plan.groups for p in group.positions
    }
    moves, errors = [], {}
    for key, was in saved.items():
        group, (topic, partition) = key
        now = current[key]
        moves.append(PositionMove(group=group, topic=topic, partition=partition, start=now, goal=was))
        found = metadata.topics.get(topic)
        if found is None or found.topic_id != ids[key]:
            errors[key] = RefusedError(
                f"group {group!r}, {topic} [{partition}]: the topic was deleted"
                + (" and created again" if found else "")
                + " since; positions of the old one mean nothing on it"
            )
        elif not force and not is_same(now, was) and not is_same(now, goals[key]):
            errors[key] = RefusedError(
                f"group {group!r}, {topic} [{partition}]: the position is {describe(now)}, neither {describe(was)} as "
                f"before nor {describe(goals[key])} as set; a consumer has moved on. --force puts it back all the same"
            )
    return RollbackPlan(
        reset_id=reset_id,
        state=log.state,
        cluster_id=plan.cluster_id,
        moves=tuple(moves),
        deletes=tuple(
            group.group
            for group in before.groups
            if group.state is None and any(move.group == group.group for move in moves)
        ),
        errors=errors,
    )


def _current(
    client: GroupClient, saved: Mapping[tuple[str, Partition], object]
) -> dict[tuple[str, Partition], CommittedOffset | None]:
    wanted: dict[str, list[Partition]] = {}
    for group, partition in saved:
        wanted.setdefault(group, []).append(partition)
    current: dict[tuple[str, Partition], CommittedOffset | None] = {}
    for group, offsets in client.fetch(wanted).items():
        if isinstance(offsets, KafkaBackupError):
            raise offsets
        current |= {(group, partition): offsets.get(partition) for partition in wanted[group]}
    return current


def run_rollback(
    plan: RollbackPlan, *, folder: ResetFolder, cluster: Cluster, stop: StopToken
) -> Sequence[MoveResult]:
    """Put everything back and verify it, both ways.

    Raises:
        RefusedError: a position has moved on, a topic is another one, or a group has members; nothing was
            changed.
        DamagedError: what is there in the end is not what was before; the message says what differs.
        UnreachableError: it is unknown whether all is back; run it again.
    """
    for error in plan.errors.values():
        raise error
    client = GroupClient(cluster.stoppable(stop.check))
    changing = [move for move in plan.moves if not move.changes_nothing]
    if active := active_groups(client, {move.group for move in changing}):
        raise active_error(client, active)
    log = ResetLog(folder)
    if not changing and log.state == "rolled_back":
        return [MoveResult(move=move, current=move.goal) for move in plan.moves]
    log.advance("rolling_back")
    mover = PositionMover(client, plan.moves, force=False, stop=stop)
    mover.run()
    for result in mover.results:
        if result.error is not None:
            return mover.results
    _delete_groups(client, plan)
    saved = {move.key: move.goal for move in plan.moves}
    if said := differences(saved, _current(client, saved)):
        raise DamagedError(
            f"after the rollback of reset {plan.reset_id} positions differ: {'; '.join(said)}; run it again"
        )
    log.advance("rolled_back", [moved_position(result) for result in mover.results])
    return mover.results


def _delete_groups(client: GroupClient, plan: RollbackPlan) -> None:
    """Delete the groups that did not exist before, unless somebody has begun to use them otherwise."""
    if not plan.deletes:
        return
    listed = client.list_groups().groups
    there = [group for group in plan.deletes if group in listed and listed[group].state != "Dead"]
    empty = []
    for group, offsets in client.fetch(there).items():
        if isinstance(offsets, KafkaBackupError):
            raise offsets
        if not offsets and not listed[group].has_members:
            empty.append(group)
    for error in client.delete_groups(empty).values():
        if error is not None:
            raise error
