"""Consumer positions: what `Engine.groups` can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kafka_backup.config import BackupConfig
from kafka_backup.errors import ConfigurationError, RefusedError
from kafka_backup.group_history import GroupHistory, history_at
from kafka_backup.group_snapshot import TakenSnapshot, take_snapshot
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.offset_automation import ResetReport, find_open, run_reset
from kafka_backup.offset_rollback import RollbackPlan, plan_rollback, run_rollback
from kafka_backup.position_mover import MoveResult
from kafka_backup.progress import StopToken
from kafka_backup.renaming import check_rules
from kafka_backup.repository.group_documents import GroupSnapshot, ResetPlan, ResetRequest
from kafka_backup.repository.group_store import GroupStore, ResetFolder
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.reset_plan import make_plan
from kafka_backup.restore_groups import restored_by
from kafka_backup.saved_positions import Restored, SavedPositions, historic_positions, saved_positions
from kafka_backup.selection import GroupSelection, TopicSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedReset:
    """A plan of a reset; `is_continued`: it was begun before, and may have changed something already."""

    plan: ResetPlan
    is_continued: bool


def load_restored(restore_id: str, repository: Repository) -> Restored:
    """Read what a finished restore did, offset maps and all.

    Raises:
        ConfigurationError: there is no such restore, or it is not finished.
        DamagedError: an offset map is missing or unreadable.
    """
    folder = repository.restore_folder(restore_id)
    plan, report = folder.plan(), folder.report()
    if plan is None or report is None:
        raise ConfigurationError(f"restore {restore_id} {'is not finished' if plan else 'does not exist'}")
    return restored_by(plan, report.topics, folder)


class Groups:
    """Saves, finds and moves the positions of consumer groups. Made by `Engine.groups`."""

    def __init__(
        self,
        *,
        source: Callable[[], Cluster],
        target: Callable[[], Cluster],
        store: Store,
        settings: BackupConfig,
    ) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            source: opens the cluster that is backed up.
            target: opens the cluster that restores write to.
            store: where the repository is.
            settings: the configured filters.
        """
        self._source = source
        self._target = target
        self._store = store
        self._settings = settings

    def snapshot(
        self, groups: Sequence[str] | None = None, *, stop: StopToken | None = None
    ) -> TakenSnapshot:
        """Save the positions of groups now, apart from any capture; makes the repository if there is none.

        Args:
            groups: filters instead of the configured ones.
            stop: ends it with CancelledError; nothing is stored then.

        Returns:
            The stored snapshot, and the errors of groups that could not be read.

        Raises:
            ConfigurationError: a filter is malformed, or there is none.
            UnreachableError: not all coordinators answered in time; nothing is stored.
            RefusedError: the repository belongs to another cluster.
        """
        selection = self._settings.group_selection if groups is None else GroupSelection.parse(groups)
        if not selection.include:
            raise ConfigurationError("no groups are wanted: backup.consumer_groups is empty")
        cluster = self._source().stoppable((stop or StopToken()).check)
        cluster_id = cluster.metadata([]).cluster_id
        repository = Repository.open(self._store, cluster_id=cluster_id, create=True)
        taken = take_snapshot(
            cluster, selection, topics=TopicSelection.parse(["*"]), capture_id=None, cluster_id=cluster_id
        )
        there = [group.group for group in taken.snapshot.groups if group.type]
        for name in selection.missing(there):
            raise taken.errors[name]
        GroupStore(repository.store).put_snapshot(taken.snapshot)
        return taken

    def snapshot_ids(self) -> Sequence[str]:
        """The ids of all group snapshots in the repository, oldest first."""
        return self._groups().snapshot_ids()

    def saved(self, snapshot_id: str | None = None) -> GroupSnapshot:
        """Read a group snapshot, by default the newest.

        Raises:
            ConfigurationError: there is none, or none with this id.
            DamagedError: it is unreadable.
        """
        if snapshot_id is None:
            ids = self.snapshot_ids()
            if not ids:
                raise ConfigurationError(f"the repository at {self._store.url} holds no group snapshot yet")
            snapshot_id = ids[-1]
        return self._groups().snapshot(snapshot_id)

    def history(
        self, at_ms: int, groups: Sequence[str] | None = None, *, stop: StopToken | None = None
    ) -> GroupHistory:
        """Say where groups were at a time in the past; needs no cluster.

        Args:
            at_ms: when, by the clock of the group coordinators, ms.
            groups: filters of groups instead of the configured ones.
            stop: ends it with CancelledError.

        Raises:
            ConfigurationError: ``__consumer_offsets`` was not captured, or not up to that time.
            DamagedError: a segment is not what its commit says.
        """
        selection = self._settings.group_selection if groups is None else GroupSelection.parse(groups)
        repository = Repository.open(self._store, cluster_id=None, create=False)
        return history_at(at_ms, selection, repository=repository, stop=stop or StopToken())

    def plan_reset(self, request: ResetRequest, *, stop: StopToken | None = None) -> PlannedReset:
        """Say where a reset would put consumer groups, and everything that forbids it. Changes nothing.

        The groups are those of the cluster that is backed up; through a restore, those of its target. If the
        same request was interrupted after it had begun to change something, its plan is returned as it is.

        Raises:
            ConfigurationError: what is named does not exist: a group, topic, snapshot or restore.
            RefusedError: the snapshot or restore is of another cluster.
            UnreachableError: brokers or store could not be reached in time.
        """
        check_rules(request.rename)
        check = (stop or StopToken()).check
        through_restore = request.restore_id is not None
        cluster = (self._target() if through_restore else self._source()).stoppable(check)
        cluster_id = cluster.metadata([]).cluster_id
        repository = self._repository(cluster_id)
        interrupted = find_open(request, cluster_id, GroupStore(repository.store))
        if interrupted is not None:
            return PlannedReset(plan=interrupted, is_continued=True)
        saved = self._saved_positions(request, repository, cluster_id, stop or StopToken())
        return PlannedReset(plan=make_plan(request, cluster=cluster, saved=saved), is_continued=False)

    def reset(self, plan: ResetPlan, *, stop: StopToken | None = None) -> ResetReport:
        """Carry out a plan, or go on with it: store what is there now, move, read back, compare.

        Raises:
            RefusedError: the plan has problems, a group has members, another reset of the same groups is
                half done; nothing was changed.
            UnreachableError: it is unknown whether everything was changed; run it again.
            CancelledError: somebody asked to stop; run it again.
        """
        token = stop or StopToken()
        cluster = self._target() if plan.request.restore_id is not None else self._source()
        repository = self._repository(plan.cluster_id)
        return run_reset(plan, store=GroupStore(repository.store), cluster=cluster, stop=token)

    def plan_rollback(self, reset_id: str, *, force: bool = False) -> RollbackPlan:
        """Say what the rollback of a reset would do, and what forbids it. Changes nothing.

        Args:
            reset_id: which reset.
            force: also put back positions that a consumer has moved on since.

        Raises:
            ConfigurationError: there is no such reset, or it has changed nothing.
            UnreachableError: brokers or store could not be reached in time.
        """
        folder = self._groups().reset(reset_id)
        return plan_rollback(reset_id, folder=folder, cluster=self._cluster_of(folder), force=force)

    def rollback(self, plan: RollbackPlan, *, stop: StopToken | None = None) -> Sequence[MoveResult]:
        """Put everything back that a reset changed, remove what it added, and verify both ways.

        Raises:
            RefusedError: a consumer has moved on, a topic is another one, a group has members; nothing was
                changed.
            DamagedError: what is there in the end is not what was before.
            UnreachableError: it is unknown whether all is back; run it again.
        """
        folder = self._groups().reset(plan.reset_id)
        return run_rollback(plan, folder=folder, cluster=self._cluster_of(folder), stop=stop or StopToken())

    def _cluster_of(self, folder: ResetFolder) -> Cluster:
        plan = folder.plan()
        return self._source() if plan is None or plan.request.restore_id is None else self._target()

    def _repository(self, cluster_id: str) -> Repository:
        """The repository, whosever it is; made for this cluster if there is none."""
        try:
            return Repository.open(self._store, cluster_id=None, create=False)
        except ConfigurationError:
            return Repository.open(self._store, cluster_id=cluster_id, create=True)

    def _saved_positions(
        self, request: ResetRequest, repository: Repository, cluster_id: str, stop: StopToken
    ) -> SavedPositions | None:
        restored = None if request.restore_id is None else load_restored(request.restore_id, repository)
        if restored is not None and restored.cluster_id != cluster_id:
            raise RefusedError(
                f"restore {request.restore_id} wrote to cluster {restored.cluster_id}, the configured target is "
                f"{cluster_id}"
            )
        if request.at_ms is not None:
            self._refuse_other_cluster(repository, cluster_id, restored)
            selection = GroupSelection.parse(request.groups)
            history = history_at(request.at_ms, selection, repository=repository, stop=stop)
            return historic_positions(history, restored=restored)
        if request.snapshot_id is None:
            return None
        snapshot = GroupStore(repository.store).snapshot(request.snapshot_id)
        if restored is None and snapshot.cluster_id != cluster_id:
            raise RefusedError(
                f"group snapshot {snapshot.snapshot_id} is of cluster {snapshot.cluster_id}, not of {cluster_id}; "
                "its positions mean something else there. After a restore, name it with --restore"
            )
        return saved_positions(snapshot, restored=restored)

    def _refuse_other_cluster(
        self, repository: Repository, cluster_id: str, restored: Restored | None
    ) -> None:
        if restored is None and repository.document.cluster_id != cluster_id:
            raise RefusedError(
                f"the history is of cluster {repository.document.cluster_id}, not of {cluster_id}; its positions mean "
                "something else there. After a restore, name it with --restore"
            )

    def _groups(self) -> GroupStore:
        return GroupStore(Repository.open(self._store, cluster_id=None, create=False).store)
