"""Consumer positions: what `Engine.groups` can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kafka_backup.config import BackupConfig
from kafka_backup.errors import ConfigurationError
from kafka_backup.group_snapshot import TakenSnapshot, take_snapshot
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.progress import StopToken
from kafka_backup.repository.group_documents import GroupSnapshot
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.selection import GroupSelection, TopicSelection


class Groups:
    """Saves, finds and moves the positions of consumer groups. Made by `Engine.groups`."""

    def __init__(self, *, source: Callable[[], Cluster], store: Store, settings: BackupConfig) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            source: opens the cluster that is backed up.
            store: where the repository is.
            settings: the configured filters.
        """
        self._source = source
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

    def _groups(self) -> GroupStore:
        return GroupStore(Repository.open(self._store, cluster_id=None, create=False).store)
