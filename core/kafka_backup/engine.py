"""The engine: one cluster and one repository, and what can be done with them.

What only one of its methods needs is loaded there: a scheduled capture does not wait for restores.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kafka_backup import backup as _backup
from kafka_backup.config import ClusterConfig, EngineConfig
from kafka_backup.errors import DamagedError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.progress import (
    BackupEvent,
    CaptureFinished,
    RestoreProgress,
    StopToken,
    TopicFailed,
    VerifyProgress,
)
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Capture, Window
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.store import Store
from kafka_backup.repository.stores import open_store
from kafka_backup.selection import TopicSelection

if TYPE_CHECKING:
    from kafka_backup.groups import Groups
    from kafka_backup.lag import PartitionLag
    from kafka_backup.losses import Loss
    from kafka_backup.offset_mapping import OffsetMap
    from kafka_backup.recovery_point import RecoveryPoint
    from kafka_backup.repository.drills import DrillReport
    from kafka_backup.repository.restore_documents import RestorePlan, RestoreReport, RestoreRequest
    from kafka_backup.restore import Abandonment
    from kafka_backup.restore_context import RestoreLimits
    from kafka_backup.retention import ExpirePlan, ExpireReport, RetentionPolicy
    from kafka_backup.stored_records import StoredPartition
    from kafka_backup.verify import Level, VerifyReport


class _Side:
    """A cluster with its two clients, opened when first needed."""

    def __init__(self, config: ClusterConfig) -> None:
        self.settings = ConnectionSettings.from_properties(
            config.bootstrap_servers, config.properties, oauth_cb=config.oauth_cb
        )
        self.retry_seconds = config.retry_seconds
        self._cluster: Cluster | None = None
        self._admin: TopicAdmin | None = None

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(self.settings, retry_seconds=self.retry_seconds)
        return self._cluster

    @property
    def admin(self) -> TopicAdmin:
        if self._admin is None:
            self._admin = TopicAdmin(self.cluster)
        return self._admin

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
        if self._admin is not None:
            self._admin.close()


class Engine:
    """Backs up one Kafka cluster into one repository, and restores from it.

    Opening one contacts nothing: brokers and store are reached when first needed. An engine may be
    used by one thread at a time; the threads that make it fast are its own.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._store: Store = open_store(config.repository.url, config.repository.options)
        self._source = _Side(config.cluster)
        self._target = self._source if config.target is None else _Side(config.target)

    @classmethod
    def open(cls, config: EngineConfig) -> Self:
        """Make an engine from a configuration.

        Raises:
            ConfigurationError: an address, property, URL or option is wrong.
        """
        return cls(config)

    def close(self) -> None:
        """Close the connections."""
        self._source.close()
        self._target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def repository(self) -> Repository:
        """The repository, for reading; needs no cluster.

        Raises:
            ConfigurationError: there is none at the configured URL.
        """
        return Repository.open(self._store, cluster_id=None, create=False)

    @property
    def groups(self) -> Groups:
        """Consumer groups: their positions saved, found and moved."""
        from kafka_backup.groups import Groups

        return Groups(
            source=lambda: self._source.cluster,
            target=lambda: self._target.cluster,
            store=self._store,
            settings=self.config.backup,
        )

    def backup(
        self,
        topics: Sequence[str] | None = None,
        *,
        window: Window | None = None,
        accept_missing: bool = False,
        stop: StopToken | None = None,
    ) -> Generator[BackupEvent, None, None]:
        """Run one capture and yield what happens, ending with CaptureFinished.

        Args:
            topics: filters instead of the configured ones.
            window: the label of a scheduled capture, half-open, ms.
            accept_missing: selected topics that were captured before and are gone are meant to be
                gone; that is remembered, so that later captures do not fail for them.
            stop: ends the capture at its next safe point with CancelledError.

        Raises:
            ConfigurationError: a named topic does not exist or is excluded, a filter is malformed.
            UnreachableError: brokers or store could not be reached at all. A single partition that
                cannot be reached is a TopicFailed event instead.
            RefusedError: the repository belongs to another cluster, or another writer interfered.
        """
        backup = self.config.backup
        selection = TopicSelection.instead(topics, backup.exclude) if topics is not None else backup.selection
        return _backup.run(
            cluster=self._source.cluster,
            admin=self._source.admin,
            store=self._store,
            selection=selection,
            settings=backup,
            retry_seconds=self._source.retry_seconds,
            window=window,
            accept_missing=accept_missing,
            stop=stop or StopToken(),
        )

    def plan_restore(self, request: RestoreRequest, *, skip_damaged: bool = False) -> RestorePlan:
        """Say what a restore would do, and everything that forbids it. Changes nothing.

        A stored plan of the same restore id and request is returned as it is.

        Args:
            request: what is asked for.
            skip_damaged: missing and damaged objects forbid nothing; they will be left out.
        """
        from kafka_backup import restore_plan

        return restore_plan.plan(
            request,
            repository=self.repository(),
            cluster=self._target.cluster,
            admin=self._target.admin,
            skip_damaged=skip_damaged,
        )

    def restore(
        self,
        plan: RestorePlan,
        *,
        limits: RestoreLimits | None = None,
        skip_damaged: bool = False,
        stop: StopToken | None = None,
        on_progress: Callable[[RestoreProgress], None] | None = None,
    ) -> RestoreReport:
        """Carry out a plan, or go on with it, verify the result and store the report.

        Args:
            plan: made by `plan_restore`.
            limits: how fast it may go; may differ each time it is continued.
            skip_damaged: leave damaged segments out; the report is ``incomplete`` then, and says which
                source offsets are missing.
            stop: ends it at its next safe point with CancelledError.
            on_progress: told how far it is.

        Raises:
            RefusedError: the plan has problems, another attempt took over, somebody else wrote
                into the target.
            DamagedError: a needed object is not what the commit says, or verification failed.
            UnreachableError: brokers or store could not be reached in time; run it again.
        """
        from kafka_backup import restore
        from kafka_backup.restore_context import RestoreLimits

        return restore.run(
            plan,
            repository=self.repository(),
            cluster=self._target.cluster,
            admin=self._target.admin,
            retry_seconds=self._target.retry_seconds,
            threads=self.config.backup.max_concurrent_partitions,
            limits=limits or RestoreLimits(),
            skip_damaged=skip_damaged,
            capture=self._final_capture,
            stop=stop or StopToken(),
            on_progress=on_progress,
        )

    def _final_capture(self, topics: Sequence[str], stop: StopToken) -> None:
        """Capture topics of the target to their ends, before they are deleted; raise if anything is missing."""
        events = _backup.run(
            cluster=self._target.cluster,
            admin=self._target.admin,
            store=self._store,
            selection=TopicSelection.parse(topics),
            settings=self.config.backup.model_copy(update={"start": None}),
            retry_seconds=self._target.retry_seconds,
            window=None,
            accept_missing=False,
            stop=stop,
        )
        for event in events:
            if isinstance(event, TopicFailed):
                raise event.error
            if isinstance(event, CaptureFinished) and event.status != "complete":
                raise DamagedError(
                    f"the final capture {event.capture} of {', '.join(topics)} is {event.status}; nothing was deleted. "
                    "Look at what it lacks (show, verify), then run the same restore again"
                )

    def abandon_restore(self, restore_id: str) -> Abandonment:
        """Give an unfinished restore up for good, so that expiry may remove what it needs.

        A run of it that is at work stops at its next segment. What it wrote stays in the target.

        Raises:
            ConfigurationError: there is no such restore.
        """
        from kafka_backup import restore

        return restore.abandon(restore_id, repository=self.repository())

    def release_retention(self, restore_id: str) -> Sequence[str]:
        """Apply the saved retention that a restore held back; returns the target topics changed."""
        from kafka_backup import restore

        return restore.release_retention(
            restore_id,
            repository=self.repository(),
            cluster=self._target.cluster,
            admin=self._target.admin,
        )

    def offset_map(
        self, restore_id: str, topic: str, partition: int, *, of_target: bool = False
    ) -> OffsetMap:
        """The offset map of one partition of a finished restore.

        Args:
            restore_id: of the restore.
            topic: the source topic, or the restored one.
            partition: its number.
            of_target: which of them is meant where the restore gave one topic the name of another.
        """
        from kafka_backup import restore

        return restore.offset_map(
            restore_id, topic, partition, of_target=of_target, repository=self.repository()
        )

    def verify(
        self,
        topics: Sequence[str] | None = None,
        *,
        level: Level = "structure",
        stop: StopToken | None = None,
        on_progress: Callable[[VerifyProgress], None] | None = None,
    ) -> VerifyReport:
        """Prove that the repository is what its commits say; see `verify.verify`."""
        from kafka_backup import verify

        selection = TopicSelection.parse(topics) if topics is not None else None
        return verify.verify(
            self.repository(), selection=selection, level=level, stop=stop, on_progress=on_progress
        )

    def plan_expire(
        self,
        policy: RetentionPolicy,
        *,
        unfinished: bool = False,
        stop: StopToken | None = None,
    ) -> ExpirePlan:
        """Say which captures a policy lets go and what can be deleted then. Changes nothing.

        Args:
            policy: which captures stay. Without any setting all stay, and only what interrupted
                captures and expiries left behind is found.
            unfinished: also what captures have stored that neither ended nor were followed by another.
                If one of them still runs, it loses that and stops.
            stop: ends it with CancelledError.

        Raises:
            DamagedError: the repository must be whole before anything is deleted from it.
        """
        from kafka_backup import retention

        return retention.plan(self.repository(), policy, unfinished=unfinished, stop=stop or StopToken())

    def expire(self, plan: ExpirePlan, *, stop: StopToken | None = None) -> ExpireReport:
        """Carry out a plan; what changed meanwhile is looked at again. May be interrupted and repeated.

        Raises:
            WriterConflictError: captures took the places in a commit log again and again; run it again.
            AuthorizationError: the store denies the right to delete.
        """
        from kafka_backup import retention

        return retention.run(plan, repository=self.repository(), stop=stop or StopToken())

    def drill(
        self,
        topics: Sequence[str] | None = None,
        *,
        max_raw_bytes: int | None = None,
        stop: StopToken | None = None,
        on_progress: Callable[[RestoreProgress], None] | None = None,
    ) -> DrillReport:
        """Restore the newest capture, and an older one in turn, into scratch topics; verify and delete them.

        Two drills of one repository at the same time get into each other's way: the later one clears
        away what it takes for left behind.

        Args:
            topics: filters instead of the configured ones.
            max_raw_bytes: restored of each capture at most, unless told otherwise `drill.DRILL_BYTES`; topics
                take turns from drill to drill.
            stop: ends it with CancelledError, after the scratch topics are deleted.
            on_progress: told how far each restore is.

        Returns:
            The evidence, which is stored as well. A restore that failed is in it, and no error.

        Raises:
            ConfigurationError: nothing is captured yet.
            RefusedError: what an earlier drill left behind cannot be deleted.
        """
        from kafka_backup import drill

        backup = self.config.backup
        return drill.run(
            self,
            cluster=self._target.cluster,
            selection=TopicSelection.parse(topics, backup.exclude)
            if topics is not None
            else backup.selection,
            max_raw_bytes=drill.DRILL_BYTES if max_raw_bytes is None else max_raw_bytes,
            stop=stop or StopToken(),
            on_progress=on_progress,
        )

    def last_good_drill(self) -> DrillReport | None:
        """The newest drill that passed, None if there is none."""
        from kafka_backup.repository.drills import DrillStore

        repository = Repository.find(self._store, cluster_id=None)
        reports = () if repository is None else DrillStore(repository.store).newest_first()
        return next((report for report in reports if report.status == "passed"), None)

    def verify_restore(self, restore_id: str, *, stop: StopToken | None = None) -> RestoreReport:
        """Compare a restored target with the repository again, batch by batch."""
        from kafka_backup import restore

        return restore.verify_restore(
            restore_id,
            repository=self.repository(),
            cluster=self._target.cluster,
            retry_seconds=self._target.retry_seconds,
            threads=self.config.backup.max_concurrent_partitions,
            stop=stop or StopToken(),
        )

    def losses(self) -> Sequence[Loss]:
        """All that captures could not save, accepted or not; reads all commits."""
        from kafka_backup import losses

        return losses.find_losses(self.repository())

    def accept_losses(self, capture: str, *, reason: str) -> Sequence[Loss]:
        """Accept what a capture lost up to now, so that verification does not fail for it any more.

        Doing it again does nothing. What the capture loses later, if it still runs, is not accepted.

        Returns:
            All losses of the capture.

        Raises:
            ConfigurationError: there is no such capture, it lost nothing, or no reason is given.
        """
        from kafka_backup import losses

        return losses.accept_losses(self.repository(), capture, reason=reason)

    def stored_partition(
        self, topic: str, partition: int, *, incarnation: str | None = None
    ) -> StoredPartition:
        """One partition of a topic, to read single records of it; needs no cluster.

        Args:
            topic: its name.
            partition: its number.
            incarnation: the topic id, where the topic was deleted and re-created.
        """
        from kafka_backup.stored_records import stored_partition

        return stored_partition(self.repository(), topic, partition, incarnation=incarnation)

    def captures(self) -> Sequence[Capture]:
        """All captures, oldest first."""
        return self.repository().captures()

    def recovery_points(
        self, topics: Collection[str], *, before: str | None = None
    ) -> Mapping[str, RecoveryPoint]:
        """Up to which time everything of each topic is in the repository; see `recovery_points`.

        Without a repository no topic has one.
        """
        from kafka_backup.recovery_point import recovery_points

        repository = Repository.find(self._store, cluster_id=None)
        return {} if repository is None else recovery_points(repository, topics, before=before)

    def captured_topics(self, topics: Sequence[str] | None = None) -> Sequence[str]:
        """Names of the selected topics that are backed up today; see `captured_topics`.

        Args:
            topics: filters instead of the configured ones.
        """
        from kafka_backup.recovery_point import captured_topics

        backup = self.config.backup
        selection = TopicSelection.parse(topics, backup.exclude) if topics is not None else backup.selection
        repository = Repository.find(self._store, cluster_id=None)
        return () if repository is None else captured_topics(repository, selection)

    def restore_requests(self) -> Mapping[str, bytes]:
        """Key and content of the files that ask for restores; empty while there is no repository."""
        repository = Repository.find(self._store, cluster_id=None)
        return {} if repository is None else dict(repository.restore_requests())

    def lags(
        self,
        topics: Sequence[str] | None = None,
        *,
        horizon_seconds: float | None = None,
        stop: StopToken | None = None,
    ) -> Sequence[PartitionLag]:
        """What every partition still has that the repository has not, and when retention deletes it.

        Args:
            topics: filters instead of the configured ones.
            horizon_seconds: how far ahead to look, unless told otherwise `lag.HORIZON_SECONDS`.
            stop: ends it with CancelledError.
        """
        from kafka_backup.lag import HORIZON_SECONDS, partition_lags

        backup = self.config.backup
        selection = TopicSelection.parse(topics, backup.exclude) if topics is not None else backup.selection
        cluster_id = self._source.cluster.metadata([]).cluster_id
        return partition_lags(
            cluster=self._source.cluster,
            admin=self._source.admin,
            repository=Repository.find(self._store, cluster_id=cluster_id),
            selection=selection,
            retry_seconds=self._source.retry_seconds,
            horizon_seconds=HORIZON_SECONDS if horizon_seconds is None else horizon_seconds,
            stop=stop,
        )

    def cluster_topics(self) -> Sequence[str]:
        """Names of all topics of the cluster that are not internal to Kafka, sorted."""
        topics = self._source.cluster.metadata(None).topics
        return sorted(name for name, topic in topics.items() if not topic.is_internal)

    def commit_logs(self, topic: str) -> Sequence[CommitLog]:
        """The commit logs of a topic, one for each of its incarnations.

        Raises:
            ConfigurationError: the repository holds no such topic.
        """
        return self.repository().commit_logs(topic)
