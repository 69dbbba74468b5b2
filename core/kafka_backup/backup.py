"""Plan and run a capture.

Every capture runs from where the last one ended to the last stable offset; a window is only a label.
The steps are those of `_Capture.run`, in that order. This cannot lose data silently, because a
commit is written only for segments that are durable, begins exactly where the last one ended, and
its ledger must add up to its range, or the document refuses to exist.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from kafka_backup.config import BackupConfig
from kafka_backup.errors import (
    AuthorizationError,
    CancelledError,
    ConfigurationError,
    DamagedError,
    KafkaBackupError,
    WriterConflictError,
)
from kafka_backup.group_snapshot import take_snapshot
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, OffsetAnswer
from kafka_backup.kafka.metadata import TopicMetadata
from kafka_backup.kafka.topics import ConfigValue, TopicAdmin
from kafka_backup.partition_capture import CapturedRange, PartitionCapture, PartitionWork
from kafka_backup.progress import (
    BackupEvent,
    BackupProgress,
    CaptureFinished,
    GroupFailed,
    GroupSnapshotTaken,
    PartitionResult,
    StopToken,
    TopicCommitted,
    TopicFailed,
    TopicUnchanged,
)
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import (
    Capture,
    CapturedGroups,
    CapturedTopic,
    CaptureFailure,
    Commit,
    ConfigurationValue,
    Incarnation,
    LeaderEpoch,
    Ledger,
    PartitionRange,
    Window,
)
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.segments import Compression, SegmentWriter
from kafka_backup.repository.store import Store
from kafka_backup.rights import check_capture
from kafka_backup.selection import TopicSelection

COMMIT_BYTES = 8 << 30
"""Raw bytes of a topic after which its finished segments are committed."""
COMMIT_SECONDS = 300.0
"""Seconds after which they are."""
_SLICE_SECONDS = 0.2
_PROGRESS_SECONDS = 0.5


def run(
    *,
    cluster: Cluster,
    admin: TopicAdmin,
    store: Store,
    selection: TopicSelection,
    settings: BackupConfig,
    retry_seconds: float,
    window: Window | None,
    stop: StopToken,
) -> Generator[BackupEvent, None, None]:
    """Run one capture; see `Engine.backup`. Closing the iterator stops the work."""
    started_at = time.time_ns() // 1_000_000
    if window is not None and window.end > started_at:
        raise ConfigurationError(
            f"the window ends in the future ({_utc(window.end)}): a capture now could not hold all of it"
        )
    stop = StopToken(stop)
    cluster = cluster.stoppable(stop.check)
    metadata = cluster.survey(None)
    check_capture(cluster, selection, metadata)
    topics = selection.select(
        metadata.topics,
        internal=[name for name, topic in metadata.topics.items() if topic.is_internal],
        where=f"cluster {metadata.cluster_id}",
    )
    if not topics:
        raise ConfigurationError("no topic of the cluster matches the selection; nothing to back up")
    repository = Repository.open(store, cluster_id=metadata.cluster_id, create=True)
    if window is not None and (holder := _holder(window, topics, repository)):
        yield CaptureFinished(
            capture=holder.capture_id,
            status="held",
            window=window,
            recovery_point=holder.started_at,
            seconds=0.0,
        )
        return
    gone = sorted(
        {
            name
            for name, _ in repository.topics()
            if name not in metadata.topics and selection.includes(name, internal=name.startswith("__"))
        }
    )
    capture = _Capture(
        cluster=cluster,
        admin=admin,
        repository=repository,
        selection=selection,
        settings=settings,
        retry_seconds=retry_seconds,
        window=window,
        started_at=started_at,
        stop=stop,
    )
    yield from capture.run({name: metadata.topics[name] for name in topics}, gone=gone)


def _holder(window: Window, topics: Sequence[str], repository: Repository) -> Capture | None:
    """The oldest capture of a newer window that holds everything of `window`, if there is one."""
    wanted = set(topics)
    for capture in repository.captures():
        if (
            capture.window is not None
            and capture.window.end > window.end
            and capture.started_at >= window.end
            and capture.status != "partial"
            and wanted <= {topic.topic for topic in capture.topics}
        ):
            return capture
    return None


def _utc(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _new_capture_id(started_at: int) -> str:
    moment = datetime.fromtimestamp(started_at / 1000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{started_at % 1000:03d}Z-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """What the brokers said of one partition before the capture: all offsets of one instant."""

    log_start_offset: int
    last_stable_offset: int
    high_watermark: int
    leader_epoch: int


@dataclass(slots=True, kw_only=True)
class _TopicRun:
    """One topic of a running capture."""

    name: str
    incarnation: Incarnation
    log: CommitLog
    ends: dict[int, _Ends]
    work: list[PartitionWork]
    ranges: dict[int, CapturedRange] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    failed: bool = False
    began: float = field(default_factory=time.monotonic)
    last_commit: float = field(default_factory=time.monotonic)
    pending_bytes: int = 0
    offsets_done: int = 0
    offsets_total: int = 0
    raw_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    topic: str
    partition: int
    piece: CapturedRange


@dataclass(frozen=True, slots=True)
class _Done:
    topic: str
    partition: int
    error: KafkaBackupError | None


@dataclass(frozen=True, slots=True)
class _Crash:
    error: BaseException


_Message = _Piece | _Done | _Crash


class _Capture:
    """One run over some topics: worker threads fetch partitions, this thread commits topics."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        admin: TopicAdmin,
        repository: Repository,
        selection: TopicSelection,
        settings: BackupConfig,
        retry_seconds: float,
        window: Window | None,
        started_at: int,
        stop: StopToken,
    ) -> None:
        self.id = _new_capture_id(started_at)
        self._cluster = cluster
        self._admin = admin
        self._repository = repository
        self._selection = selection
        self._settings = settings
        self._retry_seconds = retry_seconds
        self._window = window
        self._started_at = started_at
        self._began = time.monotonic()
        self._stop = stop
        self._nonce = secrets.token_hex(16)
        self._messages: queue.Queue[_Message] = queue.Queue()
        self._lock = threading.Lock()
        self._captured: list[CapturedTopic] = []
        self._captured_groups: CapturedGroups | None = None
        self._failures: list[CaptureFailure] = []
        self._lossy = False

    def run(self, topics: Mapping[str, TopicMetadata], *, gone: Sequence[str]) -> Iterator[BackupEvent]:
        """Carry out the capture, step by step; `gone` are topics that only the repository knows."""
        for name in gone:
            yield self._failure(
                name,
                None,
                DamagedError(
                    f"topic {name} was captured before and the cluster does not show it any more: it was deleted, "
                    "or the right to describe it is missing. If it is meant to be gone, exclude it"
                ),
            )
        yield from self._save_groups()
        configurations = self._admin.describe_configs(list(topics))
        opened = self._repository.logs_to_append([(name, topic.topic_id) for name, topic in topics.items()])
        logs = dict(zip(topics, opened, strict=True))
        ends = self._ask_ends(topics)
        runs: dict[str, _TopicRun] = {}
        for name, topic in topics.items():
            topic_run, failures = self._plan(topic, configurations[name], logs[name], ends)
            yield from failures
            if not topic_run.failed and self._is_unchanged(topic_run):
                yield self._unchanged(topic_run)
            else:
                runs[name] = topic_run
        yield from self._work_through(runs)
        yield self._finish()

    def _save_groups(self) -> Iterator[GroupSnapshotTaken | GroupFailed]:
        """Save the positions of consumer groups; first of all, so that none lies beyond the ends.

        Whatever goes wrong here, the topics are captured all the same.
        """
        groups = self._settings.group_selection
        if not groups.include:
            return
        began = time.monotonic()
        try:
            taken = take_snapshot(
                self._cluster,
                groups,
                topics=self._selection,
                capture_id=self.id,
                cluster_id=self._repository.document.cluster_id,
            )
            snapshot = taken.snapshot
            uri, sha256 = GroupStore(self._repository.store).put_snapshot(snapshot)
        except CancelledError:
            raise
        except KafkaBackupError as error:
            yield self._group_failure(None, error)
            return
        self._captured_groups = CapturedGroups(snapshot_id=snapshot.snapshot_id, sha256=sha256)
        yield GroupSnapshotTaken(
            capture=self.id,
            snapshot=snapshot.snapshot_id,
            groups=len(snapshot.groups),
            positions=sum(len(group.positions) for group in snapshot.groups),
            object_uri=uri,
            seconds=time.monotonic() - began,
        )
        for name, problem in sorted(taken.errors.items()):
            yield self._group_failure(name, problem)
        for reason in snapshot.incomplete:
            yield self._group_failure(
                None,
                AuthorizationError(
                    f"{reason}; grant it, or name in backup.consumer_groups the groups that must be saved"
                ),
            )

    def _group_failure(self, group: str | None, error: KafkaBackupError) -> GroupFailed:
        self._failures.append(CaptureFailure(group=group, message=str(error)))
        return GroupFailed(capture=self.id, group=group, error=error)

    def _ask_ends(
        self, topics: Mapping[str, TopicMetadata]
    ) -> dict[tuple[str, int], _Ends | KafkaBackupError]:
        """Ask log starts, last stable offsets and high watermarks: one request per broker each.

        The log start is asked first: whatever it is, the end that is asked later cannot be below it.
        """
        keys = [(name, partition) for name, topic in topics.items() for partition in topic.partitions]

        def ask(timestamp: int, isolation: str) -> Mapping[tuple[str, int], OffsetAnswer | KafkaBackupError]:
            self._stop.check()
            return self._cluster.list_offsets(
                dict.fromkeys(keys, timestamp), isolation=isolation, deadline=self._retry_seconds
            )

        starts = ask(EARLIEST, "read_uncommitted")
        stable = ask(LATEST, "read_committed")
        high = ask(LATEST, "read_uncommitted")
        ends: dict[tuple[str, int], _Ends | KafkaBackupError] = {}
        for key in keys:
            answers = (starts[key], stable[key], high[key])
            error = next((answer for answer in answers if isinstance(answer, KafkaBackupError)), None)
            if error is not None:
                ends[key] = error
                continue
            log_start, last_stable, high_watermark = answers
            assert isinstance(log_start, OffsetAnswer)
            assert isinstance(last_stable, OffsetAnswer)
            assert isinstance(high_watermark, OffsetAnswer)
            ends[key] = _Ends(
                log_start_offset=log_start.offset,
                last_stable_offset=last_stable.offset,
                high_watermark=high_watermark.offset,
                leader_epoch=high_watermark.leader_epoch,
            )
        return ends

    def _plan(
        self,
        topic: TopicMetadata,
        configuration: Mapping[str, ConfigValue],
        log: CommitLog,
        ends: Mapping[tuple[str, int], _Ends | KafkaBackupError],
    ) -> tuple[_TopicRun, list[TopicFailed]]:
        """Decide from where to where each partition is captured."""
        incarnation = Incarnation(
            topic=topic.name,
            topic_id=topic.topic_id,
            partition_count=len(topic.partitions),
            replication_factor=max(len(p.replicas) for p in topic.partitions.values()),
            configuration={
                name: ConfigurationValue(value=value.value, source=value.source)
                for name, value in configuration.items()
            },
        )
        compacts = incarnation.compacts or log.compacts
        result = _TopicRun(name=topic.name, incarnation=incarnation, log=log, ends={}, work=[])
        failures = []
        for partition in sorted(topic.partitions):
            known = ends[topic.name, partition]
            try:
                if isinstance(known, KafkaBackupError):
                    raise known
                work = self._plan_partition(result, partition, known, compacts=compacts)
            except KafkaBackupError as error:
                result.failed = True
                failures.append(self._failure(topic.name, partition, error))
                continue
            result.ends[partition] = known
            result.work.append(work)
            result.offsets_total += work.end - work.start
        return result, failures

    def _plan_partition(
        self, topic: _TopicRun, partition: int, ends: _Ends, *, compacts: bool
    ) -> PartitionWork:
        known_end = topic.log.end_of(partition)
        start = ends.log_start_offset if known_end is None else known_end
        if ends.last_stable_offset < start:
            raise DamagedError(
                f"{topic.name} [{partition}] ends at offset {ends.last_stable_offset}, but offsets up to {start} "
                "were captured before: the log was cut back (unclean leader election), or a broker that was "
                "cut off still answers; if it stays so, the records above the end are in the repository only"
            )
        return PartitionWork(
            topic=topic.name,
            topic_id=topic.incarnation.topic_id,
            partition=partition,
            start=start,
            end=ends.last_stable_offset,
            compacts=compacts,
        )

    def _is_unchanged(self, topic: _TopicRun) -> bool:
        """Whether the last commit already says everything there is to say of the topic."""
        log = topic.log
        return log.incarnation == topic.incarnation and all(
            log.end_of(partition) == ends.last_stable_offset
            and log.log_start_of(partition) == ends.log_start_offset
            and _last_epoch(log, partition) == ends.leader_epoch
            for partition, ends in topic.ends.items()
        )

    def _unchanged(self, topic: _TopicRun) -> TopicUnchanged:
        head, sha256 = topic.log.head, topic.log.head_sha256
        assert head is not None
        assert sha256 is not None
        self._note_captured(topic, head, sha256, changed=False)
        return TopicUnchanged(
            capture=self.id,
            topic=topic.name,
            topic_id=topic.incarnation.topic_id,
            commit=head,
            commit_sha256=sha256,
        )

    def _work_through(self, topics: dict[str, _TopicRun]) -> Iterator[BackupEvent]:
        """Let the workers fetch, and commit each topic when it is due."""
        jobs: queue.SimpleQueue[tuple[_TopicRun, PartitionWork]] = queue.SimpleQueue()
        count = 0
        for topic in topics.values():
            topic.began = topic.last_commit = time.monotonic()
            for work in topic.work:
                topic.ranges[work.partition] = CapturedRange(start=work.start, end=work.start)
                if work.end > work.start:
                    topic.waiting.add(work.partition)
                    jobs.put((topic, work))
                    count += 1
            if not topic.waiting:
                yield from self._commit(topic)
        threads = [
            threading.Thread(target=self._worker, args=(jobs,), name=f"capture-{i}", daemon=True)
            for i in range(min(count, self._settings.max_concurrent_partitions))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._collect(topics)
        finally:
            self._stop.stop()
            for thread in threads:
                thread.join()

    def _collect(self, topics: dict[str, _TopicRun]) -> Iterator[BackupEvent]:
        told = 0.0
        while any(topic.waiting for topic in topics.values()):
            self._stop.check()
            try:
                message = self._messages.get(timeout=_SLICE_SECONDS)
            except queue.Empty:
                message = None
            match message:
                case _Crash(error):
                    raise error
                case _Piece(name, partition, piece):
                    topic = topics[name]
                    topic.ranges[partition].extend(piece)
                    topic.pending_bytes += sum(segment.raw_size for segment in piece.segments)
                    age = time.monotonic() - topic.last_commit
                    if topic.pending_bytes >= COMMIT_BYTES or age >= COMMIT_SECONDS:
                        yield from self._commit(topic)
                case _Done(name, partition, problem):
                    topic = topics[name]
                    topic.waiting.discard(partition)
                    if problem is not None:
                        topic.failed = True
                        yield self._failure(name, partition, problem)
                    if not topic.waiting:
                        yield self._progress(topic)
                        yield from self._commit(topic)
            if time.monotonic() - told >= _PROGRESS_SECONDS:
                told = time.monotonic()
                for topic in topics.values():
                    if topic.waiting and topic.offsets_done:
                        yield self._progress(topic)

    def _worker(self, jobs: queue.SimpleQueue[tuple[_TopicRun, PartitionWork]]) -> None:
        """Take partitions until none is left; whatever happens becomes a message."""
        try:
            while not self._stop.stopped:
                try:
                    topic, work = jobs.get_nowait()
                except queue.Empty:
                    return
                error: KafkaBackupError | None = None
                try:
                    self._capture_partition(topic, work)
                except WriterConflictError:
                    raise
                except CancelledError:
                    return
                except KafkaBackupError as caught:
                    error = caught
                self._messages.put(_Done(work.topic, work.partition, error))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
            self._messages.put(_Crash(error))

    def _capture_partition(self, topic: _TopicRun, work: PartitionWork) -> None:
        position = work.start

        def on_bytes(now: int, raw_bytes: int) -> None:
            nonlocal position
            with self._lock:
                topic.offsets_done += now - position
                topic.raw_bytes += raw_bytes
            position = now

        capture = PartitionCapture(
            work,
            cluster=self._cluster,
            open_writer=self._open_writer,
            compression=self._settings.compression,
            segment_bytes=self._settings.segment_bytes,
            retry_seconds=self._retry_seconds,
            stop=self._stop,
            on_bytes=on_bytes,
        )
        for piece in capture.pieces():
            self._messages.put(_Piece(work.topic, work.partition, piece))

    def _open_writer(
        self, work: PartitionWork, index: int, first_offset: int, compression: Compression
    ) -> SegmentWriter:
        return SegmentWriter(
            self._repository.store,
            topic=work.topic,
            topic_id=work.topic_id,
            partition=work.partition,
            capture_id=self.id,
            index=index,
            first_offset=first_offset,
            compression=compression,
        )

    def _commit(self, topic: _TopicRun) -> Iterator[TopicCommitted]:
        """Write commit n+1 over everything of the topic that is durable by now."""
        final = not topic.waiting
        partitions = [
            self._partition_range(topic, partition, captured)
            for partition, captured in sorted(topic.ranges.items())
            if final or captured.end > captured.start
        ]
        if topic.failed and not any(part.end > part.start for part in partitions):
            return
        commit = topic.log.append(
            nonce=self._nonce,
            capture_id=self.id,
            window=self._window,
            committed_at=time.time_ns() // 1_000_000,
            incarnation=topic.incarnation,
            partitions=partitions,
        )
        for captured in topic.ranges.values():
            captured.start = captured.end
            captured.ledger = Ledger()
            captured.lost, captured.epochs, captured.segments = [], [], []
        topic.last_commit = time.monotonic()
        topic.pending_bytes = 0
        self._lossy = self._lossy or any(part.lost for part in partitions)
        sha256 = topic.log.head_sha256
        assert sha256 is not None
        self._note_captured(topic, commit.number, sha256, changed=True)
        yield self._committed(topic, commit, sha256)

    def _partition_range(self, topic: _TopicRun, partition: int, captured: CapturedRange) -> PartitionRange:
        ends = topic.ends[partition]
        known = _last_epoch(topic.log, partition)
        epochs = _new_epochs(known, captured.epochs)
        is_last = captured.end == ends.last_stable_offset
        if is_last and ends.leader_epoch > (epochs[-1].epoch if epochs else known):
            epochs.append(LeaderEpoch(epoch=ends.leader_epoch, start_offset=captured.end))
        return PartitionRange(
            partition=partition,
            start=captured.start,
            end=captured.end,
            log_start_offset=ends.log_start_offset,
            last_stable_offset=ends.last_stable_offset,
            high_watermark=ends.high_watermark,
            leader_epochs=tuple(epochs),
            ledger=captured.ledger,
            lost=tuple(captured.lost),
            segments=tuple(captured.segments),
        )

    def _committed(self, topic: _TopicRun, commit: Commit, sha256: str) -> TopicCommitted:
        segments = [segment for part in commit.partitions for segment in part.segments]
        return TopicCommitted(
            capture=self.id,
            topic=topic.name,
            topic_id=topic.incarnation.topic_id,
            commit=commit.number,
            commit_sha256=sha256,
            records=sum(part.ledger.records for part in commit.partitions),
            stored_bytes=sum(segment.stored_size for segment in segments),
            raw_bytes=sum(segment.raw_size for segment in segments),
            segments=len(segments),
            partitions=tuple(
                PartitionResult(
                    partition=part.partition,
                    start=part.start,
                    end=part.end,
                    records=part.ledger.records,
                    control=part.ledger.control,
                    aborted=part.ledger.aborted,
                    compacted=part.ledger.compacted,
                    lost=part.ledger.lost,
                    lost_spans=part.lost,
                )
                for part in commit.partitions
            ),
            object_uri=topic.log.uri(commit.number),
            seconds=time.monotonic() - topic.began,
        )

    def _progress(self, topic: _TopicRun) -> BackupProgress:
        with self._lock:
            return BackupProgress(
                topic=topic.name,
                offsets_done=topic.offsets_done,
                offsets_total=topic.offsets_total,
                raw_bytes=topic.raw_bytes,
                seconds=time.monotonic() - topic.began,
            )

    def _failure(self, topic: str, partition: int | None, error: KafkaBackupError) -> TopicFailed:
        self._failures.append(CaptureFailure(topic=topic, partition=partition, message=str(error)))
        return TopicFailed(capture=self.id, topic=topic, partition=partition, error=error)

    def _note_captured(self, topic: _TopicRun, head: int, sha256: str, *, changed: bool) -> None:
        self._captured = [known for known in self._captured if known.topic != topic.name]
        self._captured.append(
            CapturedTopic(
                topic=topic.name,
                topic_id=topic.incarnation.topic_id,
                head=head,
                head_sha256=sha256,
                changed=changed,
            )
        )

    def _finish(self) -> CaptureFinished:
        """Write the capture object: from now on the capture can be named."""
        status: Literal["complete", "partial", "lossy"] = (
            "partial" if self._failures else "lossy" if self._lossy else "complete"
        )
        self._repository.put_capture(
            Capture(
                capture_id=self.id,
                nonce=self._nonce,
                started_at=self._started_at,
                ended_at=time.time_ns() // 1_000_000,
                window=self._window,
                status=status,
                topics=tuple(sorted(self._captured, key=lambda topic: topic.topic)),
                groups=self._captured_groups,
                failures=tuple(self._failures),
            )
        )
        return CaptureFinished(
            capture=self.id,
            status=status,
            window=self._window,
            recovery_point=self._started_at,
            seconds=time.monotonic() - self._began,
        )


def _last_epoch(log: CommitLog, partition: int) -> int:
    return max((entry.epoch for entry in log.leader_epochs(partition)), default=-1)


def _new_epochs(known: int, found: Sequence[LeaderEpoch]) -> list[LeaderEpoch]:
    """The epochs above the newest `known` one, ascending."""
    epochs: list[LeaderEpoch] = []
    for entry in found:
        if entry.epoch > known:
            epochs.append(entry)
            known = entry.epoch
    return epochs
