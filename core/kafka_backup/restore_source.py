"""What a restore takes from the repository: which incarnation, as of which commit, which segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.records.batch import HEADER_SIZE, BatchHeader, read_header
from kafka_backup.records.compression import zstd_chunks
from kafka_backup.repository import layout
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Capture, Commit, LostSpan, PartitionRange
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import RestoreRequest
from kafka_backup.repository.segments import StoredSegment
from kafka_backup.repository.store import Store
from kafka_backup.restore_findings import Findings
from kafka_backup.selection import TopicSelection
from kafka_backup.times import format_time

INTERNAL_TOPICS = frozenset(
    {"__cluster_metadata", "__consumer_offsets", "__share_group_state", "__transaction_state"}
)
"""Kafka's own topics: no producer may write into them."""
_ASKED_BY_NAME = 100
"""Objects that a listing lacks and that are asked for by name, in case the listing was stale."""
_BEGINNING = 1 << 16


def source_segments(
    log: CommitLog, *, head: int, partition: int, start: int, from_ms: int | None
) -> Sequence[StoredSegment]:
    """Return the live segments of a partition as of commit `head` that reach above `start`, in offset order.

    A plan says where it starts: what expires later is kept for it, and must not be left out. Segments whose
    largest timestamp lies before `from_ms` are left out: none of their records can be wanted.
    """
    return [
        segment
        for segment in log.segments(partition, until_commit=head, start=start)
        if from_ms is None or segment.entry.max_timestamp >= from_ms
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTopic:
    """One topic to restore.

    Attributes:
        log: of the incarnation.
        head: the commit whose state is restored.
        commit: the head itself.
        configured: the commit whose topic configuration is restored. As of a time it is the newest
            one of that time: a setting changed later is as unwanted as a record written later.
        ranges: what the commits up to the head cover of each partition, oldest first.
    """

    topic: str
    log: CommitLog
    head: int
    commit: Commit
    configured: Commit
    ranges: Mapping[int, Sequence[PartitionRange]]

    @classmethod
    def at(cls, topic: str, log: CommitLog, head: int, *, until_ms: int | None) -> Self:
        """The state of an incarnation as of a commit, with the configuration as of a time."""
        commits = log.commits[: head + 1]
        configured = commits[-1]
        if until_ms is not None:
            then = [commit for commit in commits if commit.committed_at <= until_ms]
            configured = then[-1] if then else commits[0]
        ranges: dict[int, list[PartitionRange]] = {}
        for commit in commits:
            for part in commit.partitions:
                ranges.setdefault(part.partition, []).append(part)
        return cls(topic=topic, log=log, head=head, commit=commits[-1], configured=configured, ranges=ranges)

    def start_of(self, partition: int) -> int:
        """The first source offset that can be restored: where the captures began, or what expired ended."""
        first = min((part.start for part in self.ranges.get(partition, ())), default=0)
        return max(first, self.log.whole_from(partition, until_commit=self.head))

    def lost(self, partition: int) -> Sequence[LostSpan]:
        """The spans of a partition that were gone before a capture could save them."""
        return [span for part in self.ranges.get(partition, ()) for span in part.lost]


def find_sources(
    request: RestoreRequest, repository: Repository, findings: Findings
) -> Sequence[SourceTopic]:
    """Choose the incarnation and the commit of each selected topic.

    Raises:
        ConfigurationError: the request names a topic or capture that the repository lacks, or
            nothing at all.
    """
    return _Sources(request, repository, findings).find()


class _Sources:
    def __init__(self, request: RestoreRequest, repository: Repository, findings: Findings) -> None:
        self._request = request
        self._repository = repository
        self._findings = findings

    def find(self) -> list[SourceTopic]:
        capture: Capture | None = None
        if self._request.capture is not None:
            capture = self._repository.capture(self._request.capture)
            names = self._select({entry.topic for entry in capture.topics}, f"capture {capture.capture_id}")
            self._note_failures(capture, names)
        else:
            names = self._select({topic for topic, _ in self._repository.topics()}, "the repository")
        logs = {name: self._logs(name) for name in names}
        self._check_incarnation(logs)
        found = []
        for name in names:
            if logs[name] and (source := self._source(name, logs[name], capture)) is not None:
                found.append(source)
        return found

    def _select(self, names: set[str], where: str) -> Sequence[str]:
        selection = TopicSelection.parse(self._request.topics or ("*",))
        selected = selection.select(names, internal=INTERNAL_TOPICS, where=where)
        if not selected:
            raise ConfigurationError(f"no topic of {where} matches the selection; nothing to restore")
        return selected

    def _note_failures(self, capture: Capture, names: Sequence[str]) -> None:
        for failure in capture.failures:
            if failure.topic is not None and failure.topic in names:
                self._findings.note(
                    "partial_capture",
                    failure.topic,
                    f"capture {capture.capture_id} did not save it: {failure.message}; what is restored is older",
                    failure.partition,
                )

    def _logs(self, topic: str) -> Sequence[CommitLog]:
        """The incarnations of a topic that have commits, oldest first; none after a problem."""
        try:
            logs = [log for log in self._repository.commit_logs(topic) if log.head is not None]
        except DamagedError as error:
            self._findings.problem("damaged_log", topic, str(error))
            return ()
        if not logs:
            self._findings.problem(
                "not_captured", topic, "its first capture was interrupted; nothing of it is in the repository"
            )
        return logs

    def _check_incarnation(self, logs: Mapping[str, Sequence[CommitLog]]) -> None:
        wanted = self._request.incarnation
        if wanted is not None and not any(log.topic_id == wanted for each in logs.values() for log in each):
            self._findings.problem(
                "no_such_incarnation",
                None,
                f"none of the topics has an incarnation {wanted} in the repository",
            )

    def _source(self, topic: str, logs: Sequence[CommitLog], capture: Capture | None) -> SourceTopic | None:
        wanted = next((log for log in logs if log.topic_id == self._request.incarnation), None)
        head: int | None = None
        if capture is not None:
            entry = next(entry for entry in capture.topics if entry.topic == topic)
            log = next((log for log in logs if log.topic_id == entry.topic_id), None)
            if log is None:
                self._findings.problem(
                    "damaged_log",
                    topic,
                    f"capture {capture.capture_id} names an incarnation without a commit",
                )
                return None
            if wanted is not None and wanted is not log:
                self._findings.problem(
                    "no_such_incarnation",
                    topic,
                    f"capture {capture.capture_id} saw incarnation {log.topic_id}, not {wanted.topic_id}",
                )
                return None
            head = entry.head
        elif wanted is not None:
            log = wanted
        else:
            chosen = self._live_incarnation(topic, logs)
            if chosen is None:
                return None
            log = chosen
        if head is None:
            assert log.head is not None
            head = log.head
        if wanted is None and not _records(log, head) and _older_has_records(log, logs):
            self._refuse(topic, logs, f"{log.topic_id} is empty and an older one is not")
            return None
        if len(logs) > 1:
            others = ", ".join(_described(other) for other in logs if other is not log)
            self._findings.note(
                "incarnations", topic, f"{_described(log)} is restored; the repository also holds {others}"
            )
        # A capture says which settings it saw; a time says it only where no capture is named.
        return SourceTopic.at(topic, log, head, until_ms=None if capture else self._request.until_ms)

    def _live_incarnation(self, topic: str, logs: Sequence[CommitLog]) -> CommitLog | None:
        """The incarnation meant where none is named; None where only the user can know."""
        until = self._request.until_ms
        if until is None:
            if len(logs) > 1 and sum(1 for log in logs if _records(log, None)) > 1:
                self._refuse(topic, logs, "several hold records")
                return None
            return logs[-1]
        # Incarnations follow each other, and the first sight of one is always committed.
        seen = [log for log in logs if log.began_at <= until]
        log = seen[-1] if seen else logs[0]
        later = logs[logs.index(log) + 1 :]
        if later and log.commits[-1].committed_at < until and self._may_hold(later[0], until):
            self._refuse(
                topic,
                logs,
                f"{log.topic_id} was last captured before {format_time(until)}, and {later[0].topic_id}, first "
                "captured after it, holds records of that time",
            )
            return None
        return log

    def _may_hold(self, log: CommitLog, until: int) -> bool:
        """Whether an incarnation's first records are from before `until`, as far as their times tell."""
        for partition in range(_partition_count(log)):
            for segment in log.segments(partition)[:1]:
                header = _first_header(self._repository.store, segment)
                if header is None or header.has_delete_horizon:
                    return True
                first = header.max_timestamp if header.is_log_append_time else header.base_timestamp
                if first <= until:
                    return True
        return False

    def _refuse(self, topic: str, logs: Sequence[CommitLog], why: str) -> None:
        described = ", ".join(_described(log) for log in logs)
        self._findings.problem(
            "several_incarnations",
            topic,
            f"the topic was deleted and re-created, and {why}; say which with --incarnation: {described}",
        )


def _described(log: CommitLog) -> str:
    first = format_time(log.began_at)
    return f"{log.topic_id} ({_records(log, None)} records, captured from {first} on)"


def _records(log: CommitLog, head: int | None) -> int:
    return sum(log.records(partition, until_commit=head) for partition in range(_partition_count(log)))


def _partition_count(log: CommitLog) -> int:
    return log.incarnation.partition_count if log.incarnation is not None else 0


def _older_has_records(log: CommitLog, logs: Sequence[CommitLog]) -> bool:
    return any(_records(other, None) for other in logs[: logs.index(log)])


def _first_header(store: Store, segment: StoredSegment) -> BatchHeader | None:
    """The first batch's header, from the beginning of the object alone; None if it cannot be read."""
    try:
        data = store.get(segment.key, 0, _BEGINNING)
        if segment.entry.compression == "zstd":
            data = next(zstd_chunks([data]), b"")
        return read_header(data) if len(data) >= HEADER_SIZE else None
    except DamagedError:
        return None


def check_objects(
    source: SourceTopic,
    segments: Sequence[StoredSegment],
    store: Store,
    found: Callable[[str, str | None, str, int | None], None],
) -> None:
    """Find the needed objects that are missing or have another size, by listing what is there.

    Their contents are checked when they are read.
    """
    wanted = {segment.key: segment for segment in segments}
    partitions = {segment.partition for segment in segments}
    folder = layout.incarnation_folder(source.topic, source.log.topic_id)
    everything = len(partitions) == source.commit.incarnation.partition_count
    folders = [folder] if everything else [f"{folder}{partition}/" for partition in sorted(partitions)]
    for each in folders:
        for info in store.list(each):
            if (segment := wanted.pop(info.key, None)) is not None:
                _check_size(source, segment, info.size, found)
    for place, (key, segment) in enumerate(wanted.items()):
        size = store.size(key) if place < _ASKED_BY_NAME else None
        if size is None:
            detail = (
                f"the object {key} is missing, and with it source offsets [{segment.start}, {segment.end})"
            )
            found("missing_object", source.topic, detail, segment.partition)
        else:
            _check_size(source, segment, size, found)


def _check_size(
    source: SourceTopic,
    segment: StoredSegment,
    size: int,
    found: Callable[[str, str | None, str, int | None], None],
) -> None:
    if size != segment.entry.stored_size:
        found(
            "damaged_object",
            source.topic,
            f"the object {segment.key} with source offsets [{segment.start}, {segment.end}) has {size} bytes instead of "
            f"{segment.entry.stored_size}",
            segment.partition,
        )
