"""Bulk reset of consumer groups: store how they were, move them as planned, look again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from kafka_backup.errors import (
    ConfigurationError,
    KafkaBackupError,
    RefusedError,
    UnreachableError,
    WriterConflictError,
)
from kafka_backup.kafka.cluster import EARLIEST, Cluster, OffsetAnswer, Partition
from kafka_backup.kafka.groups import GroupClient
from kafka_backup.offset_rollback import (
    ResetLog,
    goals_of,
    moved_position,
    positions_of,
    take_before,
)
from kafka_backup.position_mover import (
    MoveResult,
    PositionMove,
    PositionMover,
    active_error,
    active_groups,
    is_same,
    move_at_once,
)
from kafka_backup.progress import StopToken
from kafka_backup.repository.group_documents import PositionsBefore, ResetPlan, ResetRequest
from kafka_backup.repository.group_store import OPEN_STATES, GroupStore, ResetFolder
from kafka_backup.reset_plan import TRANSACTIONAL_IDS, digest_of, error_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetReport:
    """What a reset did.

    Attributes:
        status: ``verified``: every position is where the plan says. ``unchanged``: they were there
            already, and nothing was stored. ``failed``: some are not; see the results.
        reset_id: what `groups rollback` takes; None if there is nothing to roll back.
        results: of every position of the plan.
    """

    status: Literal["verified", "unchanged", "failed"]
    reset_id: str | None
    results: Sequence[MoveResult]


def find_open(request: ResetRequest, cluster_id: str, store: GroupStore) -> ResetPlan | None:
    """Return the plan of a reset by the same request that was interrupted and may have changed something."""
    found = find_reset(request, cluster_id, store, ("applying", "applied"))
    return None if found is None else found[0]


def find_reset(
    request: ResetRequest, cluster_id: str, store: GroupStore, states: Collection[str]
) -> tuple[ResetPlan, str] | None:
    """Return the plan and the state of the newest reset by the same request that is in one of these states."""
    ending = f"-{digest_of(request, cluster_id)}"
    for reset_id, state in sorted(store.resets().items(), reverse=True):
        if reset_id.endswith(ending) and state in states:
            plan = store.reset(reset_id).plan()
            if plan is not None and plan.request == request and plan.cluster_id == cluster_id:
                return plan, state
    return None


class OpenResetError(RefusedError):
    """Another reset of the same groups is half done."""


def refuse_open_resets(
    groups: Collection[str], cluster_id: str, store: GroupStore, *, but: str | None = None
) -> None:
    """Refuse to change groups of which another reset is half done: neither could be rolled back then.

    Args:
        groups: those to change.
        cluster_id: of their cluster.
        store: where resets are.
        but: the id of the reset that may be half done.

    Raises:
        OpenResetError: naming another one.
    """
    for reset_id, state in store.resets().items():
        if state not in OPEN_STATES or reset_id == but:
            continue
        other = store.reset(reset_id).plan()
        shared = {group.group for group in other.groups}.intersection(groups) if other is not None else set()
        if other is not None and other.cluster_id == cluster_id and shared:
            raise OpenResetError(
                f"reset {reset_id} was interrupted while it was {state}, and is about group {min(shared)!r} too: run "
                f"its command again, or 'groups rollback {reset_id} --execute'"
            )


def run_reset(
    plan: ResetPlan,
    *,
    store: GroupStore,
    cluster: Cluster,
    before_moves: Callable[[], None] = lambda: None,
    stop: StopToken,
) -> ResetReport:
    """Carry out a plan, or go on with it; see `Groups.reset`.

    `before_moves` is called when it is stored that something may be moved, and before that; it raises to stop.
    """
    if (error := error_of(plan)) is not None:
        raise error
    refuse_open_resets([group.group for group in plan.groups], plan.cluster_id, store, but=plan.reset_id)
    client = GroupClient(cluster.stoppable(stop.check))
    folder = store.reset(plan.reset_id)
    log = ResetLog(folder)
    before = folder.before()
    if log.state is None:
        before = take_before(client, plan)
        if not _changes(plan, before):
            moves = _moves(plan, before)
            return ResetReport(
                status="unchanged",
                reset_id=None,
                results=[MoveResult(move=move, current=move.goal) for move in moves],
            )
        if active := active_groups(client, _changes(plan, before)):
            raise active_error(client, active)
        plan, folder = _unstarted_twin(plan, before, store) or (plan, folder)
        folder.put_plan(plan)
        stored = folder.before()
        if stored is None:
            folder.put_before(before.model_copy(update={"reset_id": plan.reset_id}))
        log = ResetLog(folder)
    assert before is not None
    reset = _Reset(plan, before, folder=folder, log=log, client=client, before_moves=before_moves, stop=stop)
    return reset.run()


def _unstarted_twin(
    plan: ResetPlan, before: PositionsBefore, store: GroupStore
) -> tuple[ResetPlan, ResetFolder] | None:
    """The same reset, interrupted before it changed anything: its stored positions are still true."""
    ending = f"-{digest_of(plan.request, plan.cluster_id)}"
    for reset_id, state in store.resets().items():
        if not reset_id.endswith(ending) or state != "planned":
            continue
        folder = store.reset(reset_id)
        known, saved = folder.plan(), folder.before()
        if known is None or known.request != plan.request or _targets(known) != _targets(plan):
            continue
        if known.cluster_id == plan.cluster_id and (
            saved is None or positions_of(saved) == positions_of(before)
        ):
            return known, folder
    return None


def _targets(plan: ResetPlan) -> Sequence[tuple[str, str, str, int, int | None, str]]:
    """Where everything goes, without the circumstances of the planning."""
    return [
        (group.group, p.topic, p.topic_id, p.partition, p.offset, p.metadata)
        for group in plan.groups
        for p in group.positions
    ]


def _changes(plan: ResetPlan, before: PositionsBefore) -> set[str]:
    """The groups of which anything is to be changed."""
    return {move.group for move in _moves(plan, before) if not move.changes_nothing}


def _moves(plan: ResetPlan, before: PositionsBefore) -> Sequence[PositionMove]:
    starts = positions_of(before)
    return [
        PositionMove(
            group=group, topic=topic, partition=partition, start=starts[group, (topic, partition)], goal=goal
        )
        for (group, (topic, partition)), goal in goals_of(plan).items()
    ]


class _Reset:
    """One try at a planned reset whose ``before.json`` is stored."""

    def __init__(
        self,
        plan: ResetPlan,
        before: PositionsBefore,
        *,
        folder: ResetFolder,
        log: ResetLog,
        client: GroupClient,
        before_moves: Callable[[], None],
        stop: StopToken,
    ) -> None:
        self._plan = plan
        self._before_moves = before_moves
        self._moves = _moves(plan, before)
        self._folder = folder
        self._log = log
        self._client = client
        self._stop = stop

    def run(self) -> ResetReport:
        """Carry it out, step by step."""
        is_resumed = self._log.state is not None
        self._check_topics()
        self._log.advance("applying")
        try:
            self._before_moves()
        except RefusedError as error:
            self._nothing_moved(error, is_resumed=is_resumed)
            raise
        if self._plan.request.atomic:
            results = self._at_once(is_resumed=is_resumed)
        else:
            mover = PositionMover(self._client, self._moves, force=False, stop=self._stop)
            results = mover.run()
        for result in results:
            result.was_touched = result.was_touched or is_resumed
            if isinstance(result.error, UnreachableError):
                raise result.error
        if any(result.error is not None for result in results):
            return self._failed(results)
        self._log.advance("applied")
        check = PositionMover(self._client, self._moves, force=False, stop=self._stop)
        check.compare()
        for result, earlier in zip(check.results, results, strict=True):
            result.was_touched = earlier.was_touched
            if isinstance(result.error, UnreachableError):
                raise result.error
        if any(result.error is not None for result in check.results):
            return self._failed(check.results)
        self._log.advance("verified", [moved_position(result) for result in check.results])
        return ResetReport(status="verified", reset_id=self._plan.reset_id, results=check.results)

    def _failed(self, results: Sequence[MoveResult]) -> ResetReport:
        self._log.advance("failed", [moved_position(result) for result in results])
        return ResetReport(status="failed", reset_id=self._plan.reset_id, results=results)

    def _at_once(self, *, is_resumed: bool) -> Sequence[MoveResult]:
        """In one transaction; what was refused has changed nothing, so that this reset is over then."""
        try:
            return move_at_once(
                self._client,
                self._moves,
                transactional_id=f"{TRANSACTIONAL_IDS}{self._plan.reset_id}",
                stop=self._stop,
            )
        except WriterConflictError:
            raise
        except (RefusedError, ConfigurationError) as error:
            self._nothing_moved(error, is_resumed=is_resumed)
            raise

    def _nothing_moved(self, error: KafkaBackupError, *, is_resumed: bool) -> None:
        """End the reset: this run has moved nothing."""
        results = [
            MoveResult(move=move, current=move.start, error=error, was_touched=is_resumed)
            for move in self._moves
        ]
        self._log.advance("failed", [moved_position(result) for result in results])

    def _check_topics(self) -> None:
        """The topics must still be those of the plan, and their bounds must hold the goals."""
        wanted = {(p.topic, p.partition): p for group in self._plan.groups for p in group.positions}
        topics = self._client.cluster.survey(sorted({topic for topic, _ in wanted})).topics
        for part, planned in wanted.items():
            found = topics.get(part[0])
            if found is None or found.topic_id != planned.topic_id:
                raise RefusedError(
                    f"topic {part[0]} was deleted"
                    + (" and created again" if found else "")
                    + " since the reset was "
                    "planned; plan it anew"
                )
        self._check_bounds(list(wanted))

    def _check_bounds(self, parts: Sequence[Partition]) -> None:
        cluster = self._client.cluster
        starts = cluster.list_offsets(dict.fromkeys(parts, EARLIEST), isolation="read_uncommitted")
        for move in self._moves:
            start = starts[move.topic, move.partition]
            if not isinstance(start, OffsetAnswer):
                raise UnreachableError(
                    f"{move.topic} [{move.partition}]: the offsets could not be asked: {start}"
                ) from start
            if (
                move.goal is not None
                and move.goal.offset < start.offset
                and not is_same(move.start, move.goal)
            ):
                raise RefusedError(
                    f"group {move.group!r}, {move.topic} [{move.partition}]: offset {move.goal.offset} has fallen below "
                    f"the log start {start.offset} since the reset was planned; plan it anew"
                )
