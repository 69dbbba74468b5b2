"""Plan and run a capture.

Every capture runs from where the last one ended to the last stable offset; a window is only a label.
The steps are those of `_Capture.run`, in that order. This cannot lose data silently, because a
commit is written only for segments that are durable, begins exactly where the last one ended, and
its ledger must add up to its range, or the document refuses to exist.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from kafka_backup.capture_plan import PartitionPlan, Question, Verdict, plan_partitions
from kafka_backup.config import BackupConfig
from kafka_backup.errors import (
    AuthorizationError,
    CancelledError,
    ConfigurationError,
    DamagedError,
    KafkaBackupError,
    UnreachableError,
    WriterConflictError,
)
from kafka_backup.group_snapshot import take_snapshot
from kafka_backup.held_back import held_back
from kafka_backup.kafka.cluster import Cluster, Partition
from kafka_backup.kafka.epochs import CommonEnd
from kafka_backup.kafka.fetch import FETCH_BYTES
from kafka_backup.kafka.metadata import INTERNAL_TOPICS, TopicMetadata
from kafka_backup.kafka.topics import TopicAdmin
from kafka_backup.missing_topics import missing_topics
from kafka_backup.pace import Pace
from kafka_backup.partition_capture import (
    CapturedRange,
    LogCutBackError,
    PartitionCapture,
    PartitionWork,
)
from kafka_backup.progress import (
    BackupEvent,
    BackupProgress,
    CaptureFinished,
    GroupFailed,
    GroupSnapshotTaken,
    StopToken,
    TopicCommitted,
    TopicFailed,
    TopicMissing,
    TopicRecreated,
    TopicUnchanged,
)
from kafka_backup.repository.acceptances import accepted_heads
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import (
    Capture,
    CapturedGroups,
    CapturedTopic,
    CaptureFailure,
    ConfigurationValue,
    Incarnation,
    Window,
)
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.segments import Compression, SegmentWriter
from kafka_backup.repository.store import Store
from kafka_backup.rights import check_capture
from kafka_backup.selection import TopicSelection
from kafka_backup.times import format_time, time_in_id
from kafka_backup.topic_capture import PartitionState, Stage, TopicState

_log = logging.getLogger(__name__)

COMMIT_BYTES = 8 << 30
"""Raw bytes of a topic after which its finished segments are committed."""
COMMIT_SECONDS = 300.0
"""Seconds after which they are."""
_FIRST_ANSWER_SECONDS = 2.0
"""How long partitions without a leader may hold up all others before fetching begins."""
_ANSWER_SECONDS = 5.0
_PATIENCE_SECONDS = 5.0
"""How long one fetch may make no progress before its place is given to another partition."""
_SMALLEST_FETCH = 64 << 10
_SLICE_SECONDS = 0.2
_ROUND_SECONDS = 0.5


def run(
    *,
    cluster: Cluster,
    admin: TopicAdmin,
    store: Store,
    selection: TopicSelection,
    settings: BackupConfig,
    retry_seconds: float,
    window: Window | None,
    accept_missing: bool,
    stop: StopToken,
) -> Generator[BackupEvent, None, None]:
    """Run one capture; see `Engine.backup`. Closing the iterator stops the work."""
    started_at = time.time_ns() // 1_000_000
    if window is not None and window.end > started_at:
        raise ConfigurationError(
            f"the window ends in the future ({format_time(window.end)}): a capture now could not hold all of it"
        )
    if settings.start is not None and settings.start > started_at:
        raise ConfigurationError(
            f"backup.start is in the future ({format_time(settings.start)}): everything that is there now would be left out"
        )
    stop = StopToken(stop)
    cluster = cluster.stoppable(stop.check)
    metadata = cluster.survey(None)
    check_capture(cluster, selection, metadata)
    repository = Repository.find(store, cluster_id=metadata.cluster_id)
    stored = frozenset(repository.topic_names()) if repository is not None else frozenset[str]()
    vanished = {
        name
        for name in stored - set(metadata.topics) - metadata.disputed
        if selection.includes(name, internal=name in INTERNAL_TOPICS)
    }
    existing = {*metadata.topics, *metadata.disputed, *vanished}
    internal = {name for name, topic in metadata.topics.items() if topic.is_internal} | INTERNAL_TOPICS
    selected = selection.select(existing, internal=internal, where=f"cluster {metadata.cluster_id}")
    if not selected:
        raise ConfigurationError("no topic of the cluster matches the selection; nothing to back up")
    for idle in selection.idle(existing, internal=internal):
        _log.warning("no topic of the cluster matches the filter %s", idle)
    topics = [name for name in selected if name in metadata.topics]
    if repository is None:
        repository = Repository.open(store, cluster_id=metadata.cluster_id, create=True)
    if window is not None and (holder := _holder(window, topics, repository, now=started_at)):
        yield CaptureFinished(
            capture=holder.capture_id,
            status="held",
            window=window,
            recovery_point=holder.started_at,
            seconds=0.0,
        )
        return
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
    yield from capture.find_missing(sorted(vanished), accept=accept_missing)
    yield from capture.note_disputed([name for name in selected if name in metadata.disputed])
    yield from capture.run({name: metadata.topics[name] for name in topics}, stored=stored)


def _holder(window: Window, topics: Sequence[str], repository: Repository, *, now: int) -> Capture | None:
    """The oldest capture of a newer window that holds everything of `window`, if there is one.

    One that began in the future began by a wrong clock: what it holds nobody can tell by times.
    """
    wanted = set(topics)
    holder: Capture | None = None
    for capture in repository.newest_captures():
        if capture.started_at < window.end:  # neither this one nor any before it
            break
        if (
            capture.started_at <= now
            and capture.window is not None
            and capture.window.end > window.end
            and capture.status != "partial"
            and wanted <= {topic.topic for topic in capture.topics}
        ):
            holder = capture
    return holder


def _new_capture_id(started_at: int) -> str:
    return f"{time_in_id(started_at)}-{secrets.token_hex(4)}"


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
    next_index: int


@dataclass(frozen=True, slots=True)
class _Answered:
    verdicts: Mapping[Partition, Verdict]


@dataclass(frozen=True, slots=True)
class _Crash:
    error: BaseException


_Message = _Piece | _Done | _Answered | _Crash


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
        self._topics: dict[str, TopicState] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._is_asking = False
        self._pace: Pace | None = None
        self._fetch_bytes = FETCH_BYTES
        if settings.max_bytes_per_second is not None:
            # Small enough that all threads together ask for no more than about a second's worth.
            share = settings.max_bytes_per_second // settings.max_concurrent_partitions
            self._pace = Pace(settings.max_bytes_per_second, stop=stop)
            self._fetch_bytes = max(_SMALLEST_FETCH, min(FETCH_BYTES, share))
        self._captured: list[CapturedTopic] = []
        self._captured_groups: CapturedGroups | None = None
        self._failures: list[CaptureFailure] = []
        self._lossy = False
        self._accepted_heads = accepted_heads(repository.store)

    def find_missing(self, names: Sequence[str], *, accept: bool) -> Iterator[TopicFailed | TopicMissing]:
        """Report topics that only the repository knows, unless somebody accepted that they are gone."""
        found = missing_topics(
            self._repository,
            names,
            accepted=self._accepted_heads,
            accept=accept,
            capture_id=self.id,
            nonce=self._nonce,
        )
        for missing in found:
            if missing.error is not None:
                yield self._failure(missing.topic, None, missing.error)
            elif missing.topic_id is not None:
                yield TopicMissing(capture=self.id, topic=missing.topic, topic_id=missing.topic_id)

    def note_disputed(self, names: Sequence[str]) -> Iterator[TopicFailed]:
        """Report topics on which the brokers do not agree."""
        for name in names:
            yield self._failure(
                name,
                None,
                UnreachableError(
                    f"topic {name}: the brokers do not agree whether it exists, or under which id; it is being "
                    "created or deleted, or a broker is cut off. Run again"
                ),
            )

    def run(self, topics: Mapping[str, TopicMetadata], *, stored: frozenset[str]) -> Iterator[BackupEvent]:
        """Carry out the capture, step by step; `stored` are the topics that the repository has."""
        yield from self._save_groups()
        yield from self._open_topics(topics, stored)
        yield from self._ask_ends()
        yield from held_back(
            self._cluster, self._topics.values(), capture_id=self.id, deadline=_FIRST_ANSWER_SECONDS
        )
        yield from self._fetch_and_commit()
        yield self._finish()

    def _open_topics(
        self, topics: Mapping[str, TopicMetadata], stored: frozenset[str]
    ) -> Iterator[TopicFailed | TopicRecreated]:
        """Read settings and commit logs; a topic without either fails alone."""
        configurations = self._admin.describe_each(list(topics), check_stop=self._stop.check)
        logs = self._repository.logs_to_append([(name, topic.topic_id) for name, topic in topics.items()])
        for topic, log in zip(topics.values(), logs, strict=True):
            described = configurations[topic.name]
            problem = next((each for each in (log, described) if isinstance(each, KafkaBackupError)), None)
            if problem is not None:
                yield self._failure(topic.name, None, problem)
                continue
            assert isinstance(log, CommitLog)
            assert isinstance(described, Mapping)
            incarnation = Incarnation(
                topic=topic.name,
                topic_id=topic.topic_id,
                partition_count=len(topic.partitions),
                replication_factor=max(len(part.replicas) for part in topic.partitions.values()),
                configuration={
                    name: ConfigurationValue(value=value.value, source=value.source)
                    for name, value in described.items()
                },
            )
            was_gone = log.head in self._accepted_heads.get((topic.name, topic.topic_id), ())
            self._topics[topic.name] = TopicState.open(
                incarnation, log, list(topic.partitions), was_gone=was_gone
            )
            if log.head is None and topic.name in stored:
                yield from self._note_recreated(topic)

    def _note_recreated(self, topic: TopicMetadata) -> Iterator[TopicFailed | TopicRecreated]:
        try:
            logs = self._repository.commit_logs(topic.name)
        except DamagedError as error:  # of an older incarnation: nothing of it is needed now
            yield self._failure(topic.name, None, error)
            return
        before = [log.topic_id for log in logs if log.head is not None and log.topic_id != topic.topic_id]
        if before:
            yield TopicRecreated(
                capture=self.id, topic=topic.name, topic_id=topic.topic_id, previous_topic_id=before[-1]
            )

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

    def _ask_ends(self) -> Iterator[BackupEvent]:
        """Ask for the ends of all partitions; who has no answer soon is asked again while others are fetched."""
        questions: dict[Partition, Question] = {}
        for topic in self._topics.values():
            questions |= topic.questions(list(topic.partitions.values()))
        yield from self._take_verdicts(self._plan(questions, deadline=_FIRST_ANSWER_SECONDS))

    def _plan(
        self, questions: Mapping[Partition, Question], *, deadline: float
    ) -> Mapping[Partition, Verdict]:
        return plan_partitions(self._cluster, questions, start_at=self._settings.start, deadline=deadline)

    def _take_verdicts(self, verdicts: Mapping[Partition, Verdict]) -> Iterator[BackupEvent]:
        """Let partitions be fetched whose range is known; settle topics that wait for nothing any more."""
        touched = {}
        for (name, number), verdict in verdicts.items():
            topic = touched[name] = self._topics[name]
            state = topic.partitions[number]
            if isinstance(verdict, PartitionPlan):
                yield from self._begin(topic, state, verdict)
                continue
            if isinstance(verdict, CommonEnd):
                state.suspected = verdict
                verdict = LogCutBackError(
                    f"{name} [{number}]: the log of its leader (epoch {verdict.leader_epoch}) is another one from "
                    f"offset {verdict.offset} on; it is asked again before that is believed"
                )
            yield from self._postpone(topic, state, verdict)
        for topic in touched.values():
            yield from self._settle(topic)

    def _begin(self, topic: TopicState, state: PartitionState, plan: PartitionPlan) -> Iterator[BackupEvent]:
        if plan.truncated is not None and state.has_news:
            yield from self._commit(topic, final=False)
        state.accept(plan)
        if state.stage is Stage.FETCHING:
            self._jobs.put(partial(self._fetch, state, topic.work(state)))

    def _postpone(
        self, topic: TopicState, state: PartitionState, error: KafkaBackupError
    ) -> Iterator[TopicFailed]:
        """Ask again later, unless that is hopeless or the time for it has passed."""
        if error.retriable or isinstance(error, LogCutBackError):
            if state.postpone() < self._retry_seconds:
                fields = {"topic": topic.name, "partition": state.number, "attempt": state.attempts}
                _log.info("a partition is tried again: %s", error, extra={"fields": fields})
                return
            place = f"{topic.name} [{state.number}]"
            reached = "" if state.known is None else f" at offset {state.known.end}"
            why = str(error).removeprefix(f"{place}: ")
            message = f"{place}: no progress{reached} for {self._retry_seconds:g} s: {why}"
            error = DamagedError(message) if isinstance(error, LogCutBackError) else UnreachableError(message)
        state.stage = Stage.FAILED
        yield self._failure(topic.name, state.number, error)

    def _settle(self, topic: TopicState) -> Iterator[BackupEvent]:
        """Commit a topic that is finished, or whose other partitions have nobody to be fetched from."""
        if topic.is_finished:
            if not topic.is_unchanged:
                yield from self._commit(topic, final=True)
            elif not topic.head_is_ours:
                yield self._unchanged(topic)
        elif not any(topic.at(Stage.FETCHING)):
            yield from self._commit(topic, final=False)

    def _unchanged(self, topic: TopicState) -> TopicUnchanged:
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

    def _fetch_and_commit(self) -> Iterator[BackupEvent]:
        """Let the workers fetch, and commit each topic when it is due."""
        unfinished = sum(not topic.is_finished for topic in self._topics.values())
        if not unfinished:
            return
        threads = [
            threading.Thread(target=self._worker, name=f"capture-{number}", daemon=True)
            for number in range(self._settings.max_concurrent_partitions)
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._collect()
        finally:
            self._stop.stop()
            for _ in threads:  # wake those that wait for a job
                self._jobs.put(lambda: None)
            for thread in threads:
                thread.join()

    def _collect(self) -> Iterator[BackupEvent]:
        """Take in what the workers tell, message by message; look after all topics twice a second."""
        open_topics = {name: topic for name, topic in self._topics.items() if not topic.is_finished}
        next_round = 0.0
        while open_topics:
            self._stop.check()
            try:
                message = self._messages.get(timeout=_SLICE_SECONDS)
            except queue.Empty:
                message = None
            match message:
                case _Crash(error):
                    raise error
                case _Piece(name, partition, piece):
                    topic = self._topics[name]
                    topic.partitions[partition].take(piece)
                    if topic.pending_bytes >= COMMIT_BYTES:
                        yield from self._commit(topic, final=False)
                case _Done(name):
                    topic = self._topics[name]
                    yield from self._fetched(topic, message)
                    if topic.is_finished:
                        yield self._progress(open_topics.pop(name))
                case _Answered(verdicts):
                    self._is_asking = False
                    yield from self._take_verdicts(verdicts)
            if time.monotonic() >= next_round:
                yield from self._look_after(open_topics)
                next_round = time.monotonic() + _ROUND_SECONDS

    def _look_after(self, open_topics: dict[str, TopicState]) -> Iterator[BackupEvent]:
        """Commit what has waited long enough, ask again what is due, tell how far all are."""
        for name, topic in list(open_topics.items()):
            if topic.is_finished:
                del open_topics[name]
            elif time.monotonic() - topic.last_commit >= COMMIT_SECONDS:
                yield from self._commit(topic, final=False)
            if topic.offsets_done:
                yield self._progress(topic)
        self._ask_again(open_topics.values())

    def _fetched(self, topic: TopicState, done: _Done) -> Iterator[BackupEvent]:
        state = topic.partitions[done.partition]
        state.next_index = done.next_index
        if done.error is None:
            state.stage = Stage.DONE
        else:
            yield from self._postpone(topic, state, done.error)
        yield from self._settle(topic)

    def _ask_again(self, topics: Iterable[TopicState]) -> None:
        """Let a worker ask once more for partitions that could not be asked, or not be fetched further."""
        if self._is_asking:
            return
        now = time.monotonic()
        questions: dict[Partition, Question] = {}
        for topic in topics:
            questions |= topic.questions([state for state in topic.at(Stage.ASKING) if state.ask_at <= now])
        if questions:
            self._is_asking = True
            self._jobs.put(partial(self._survey_and_plan, questions))

    def _survey_and_plan(self, questions: Mapping[Partition, Question]) -> None:
        verdicts: dict[Partition, Verdict] = {}
        try:
            names = sorted({name for name, _ in questions})
            self._cluster.survey(names, deadline=_ANSWER_SECONDS)
            verdicts |= self._plan(questions, deadline=0.0)
        except CancelledError:
            raise
        except KafkaBackupError as error:
            verdicts |= dict.fromkeys(questions, error)
        self._messages.put(_Answered(verdicts))

    def _worker(self) -> None:
        """Do jobs until the capture ends; whatever happens becomes a message."""
        while not self._stop.stopped:
            try:
                job = self._jobs.get(timeout=_SLICE_SECONDS)
            except queue.Empty:
                continue
            try:
                job()
            except CancelledError:
                return
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
                self._messages.put(_Crash(error))

    def _fetch(self, state: PartitionState, work: PartitionWork) -> None:
        """Fetch and store one partition as far as its leader lets us."""

        def on_response(position: int, records: int, raw_bytes: int) -> None:
            state.position = position
            state.records += records
            state.raw_bytes += raw_bytes

        capture = PartitionCapture(
            work,
            cluster=self._cluster,
            open_writer=self._open_writer,
            compression=self._settings.compression,
            segment_bytes=self._settings.segment_bytes,
            retry_seconds=min(self._retry_seconds, _PATIENCE_SECONDS),
            stop=self._stop,
            on_response=on_response,
            pace=self._pace,
            fetch_bytes=self._fetch_bytes,
        )
        error: KafkaBackupError | None = None
        try:
            for piece in capture.pieces():
                self._messages.put(_Piece(work.topic, work.partition, piece))
        except (CancelledError, WriterConflictError):
            raise
        except KafkaBackupError as caught:
            error = caught
        self._messages.put(_Done(work.topic, work.partition, error, capture.next_index))

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

    def _commit(self, topic: TopicState, *, final: bool) -> Iterator[TopicCommitted]:
        """Write commit n+1 over what of the topic is durable by now, if it is due."""
        topic.last_commit = time.monotonic()
        states = topic.due(final=final)
        if not states:
            return
        commit = topic.log.append(
            nonce=self._nonce,
            capture_id=self.id,
            window=self._window,
            committed_at=time.time_ns() // 1_000_000,
            incarnation=topic.incarnation,
            partitions=[state.to_range() for state in states],
        )
        results = [state.to_result() for state in states]
        for state in states:
            state.committed()
        topic.head_is_ours = True
        self._lossy = self._lossy or any(part.lost or part.truncated for part in results)
        sha256 = topic.log.head_sha256
        assert sha256 is not None
        self._note_captured(topic, commit.number, sha256, changed=True)
        segments = [segment for part in commit.partitions for segment in part.segments]
        yield TopicCommitted(
            capture=self.id,
            topic=topic.name,
            topic_id=topic.incarnation.topic_id,
            commit=commit.number,
            commit_sha256=sha256,
            records=sum(part.records for part in results),
            stored_bytes=sum(segment.stored_size for segment in segments),
            raw_bytes=sum(segment.raw_size for segment in segments),
            segments=len(segments),
            partitions=tuple(results),
            object_uri=topic.log.uri(commit.number),
            seconds=time.monotonic() - topic.began,
        )

    def _progress(self, topic: TopicState) -> BackupProgress:
        return BackupProgress(
            capture=self.id,
            topic=topic.name,
            offsets_done=topic.offsets_done,
            offsets_total=topic.offsets_total,
            records=topic.records,
            raw_bytes=topic.raw_bytes,
            seconds=time.monotonic() - topic.began,
        )

    def _failure(self, topic: str, partition: int | None, error: KafkaBackupError) -> TopicFailed:
        self._failures.append(CaptureFailure(topic=topic, partition=partition, message=str(error)))
        return TopicFailed(capture=self.id, topic=topic, partition=partition, error=error)

    def _note_captured(self, topic: TopicState, head: int, sha256: str, *, changed: bool) -> None:
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
