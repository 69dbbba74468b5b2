"""Prove that a repository is what its commits say, or list everything that is wrong."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.progress import StopToken
from kafka_backup.records.batch import BatchHeader
from kafka_backup.records.codec import decode_batch
from kafka_backup.repository import layout
from kafka_backup.repository.acceptances import AcceptedCommit, accepted_absences, accepted_losses
from kafka_backup.repository.checkpoints import CommitReader, check_checkpoint, checkpoint_numbers
from kafka_backup.repository.commit_log import CommitLog, commit_flaws, read_commits
from kafka_backup.repository.documents import Capture, Commit, PartitionRange, sha256_of
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.log_state import LogState
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.restore_documents import RestoreAttempt, RestorePlan
from kafka_backup.repository.restore_folder import read_restore_document
from kafka_backup.repository.segments import DamagedSegmentError, SegmentReader, StoredSegment
from kafka_backup.repository.store import ObjectNotFoundError
from kafka_backup.selection import TopicSelection

Level = Literal["structure", "data"]
"""``structure``: chain, ledger, and that every object is there with its size. ``data``: also every byte."""

Kind = Literal[
    "missing",
    "unreadable",
    "foreign",
    "chain",
    "head",
    "size",
    "sha256",
    "crc",
    "offsets",
    "count",
    "ledger",
    "lost",
    "truncated",
    "checkpoint",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: of a document: ``missing``, ``unreadable``, ``foreign`` (it belongs somewhere else),
            ``chain`` (a commit does not follow from the one before), ``head`` (a capture names a commit
            that is not there). Of a segment: ``missing``, ``size``, ``sha256``, ``unreadable``, ``crc``,
            ``offsets``, ``count``. Of a range: ``ledger`` (its records are not as many as its segments
            hold), ``lost`` (offsets that no capture could save). Of a cache: ``checkpoint`` (it says something
            else than the commits, and captures would believe it; one that nobody believes is no problem).
        object: the key of the object; for ``lost``, ``truncated`` and ``ledger`` of the commit that says it.
        detail: a sentence for people.
    """

    kind: Kind
    object: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification looked at, and what it found.

    `status` is ``ok``; ``lossy`` (all stored data is right, but offsets were lost, or a log cut back, before the capture); ``damaged``.
    `stored_bytes` and `records` are of the segments that the commits name.
    """

    status: Literal["ok", "lossy", "damaged"]
    level: Level
    problems: Sequence[Problem]
    topics: int
    commits: int
    segments: int
    stored_bytes: int
    records: int
    seconds: float


def verify(
    repository: Repository,
    *,
    selection: TopicSelection | None,
    level: Level,
    stop: StopToken | None,
    threads: int = 4,
) -> VerifyReport:
    """Check a repository; collects all problems instead of stopping at the first.

    Args:
        repository: what to check.
        selection: only these topics; None: all.
        level: how deep.
        stop: ends the check with CancelledError.
        threads: segments read at the same time; each holds the stored and raw bytes of one.

    Raises:
        ConfigurationError: no topic of the repository matches the selection.
        CancelledError: somebody asked to stop.
    """
    began = time.monotonic()
    token = stop or StopToken()
    problems: list[Problem] = []
    logs: list[_Log] = []
    accepted, damaged = _acceptances(repository)
    problems += damaged
    for topic, topic_id in _selected(repository, selection):
        token.check()
        log = _Log(repository, topic, topic_id, accepted)
        problems += log.replay()
        problems += log.objects()
        logs.append(log)
    problems += _heads(repository, logs, selection)
    if selection is None:
        problems += _restores(repository, token)
        problems += _group_snapshots(repository, token)
    segments = [pair for log in logs for pair in log.segments()]
    if level == "data":
        problems += _data(repository, segments, known=problems, token=token, threads=threads)
    kinds = {problem.kind for problem in problems}
    return VerifyReport(
        status="ok" if not kinds else "lossy" if kinds <= {"lost", "truncated"} else "damaged",
        level=level,
        problems=tuple(problems),
        topics=len({log.topic for log in logs}),
        commits=sum(len(log.commits) for log in logs),
        segments=len(segments),
        stored_bytes=sum(segment.entry.stored_size for _, segment in segments),
        records=sum(segment.entry.records for _, segment in segments),
        seconds=time.monotonic() - began,
    )


def _acceptances(repository: Repository) -> tuple[Set[AcceptedCommit], list[Problem]]:
    """The commits whose losses are accepted, and the acceptances that cannot be read."""
    accepted: set[AcceptedCommit] = set()
    problems = []
    for key, losses in accepted_losses(repository.store):
        if isinstance(losses, DamagedError):
            problems.append(Problem(kind="unreadable", object=key, detail=str(losses)))
        else:
            accepted.update(losses.commits)
    for key, absence in accepted_absences(repository.store):
        if isinstance(absence, DamagedError):
            problems.append(Problem(kind="unreadable", object=key, detail=str(absence)))
    return accepted, problems


def _selected(repository: Repository, selection: TopicSelection | None) -> Sequence[tuple[str, str]]:
    found = repository.topics()
    if selection is None:
        return found
    names = selection.select({name for name, _ in found}, where="the repository")
    if not names:
        raise ConfigurationError("no topic of the repository matches the selection; nothing to verify")
    return [(name, topic_id) for name, topic_id in found if name in names]


@dataclass(frozen=True, slots=True)
class _RangePlace:
    """A range and the key of the commit that holds it."""

    commit_key: str
    part: PartitionRange


class _Log:
    """A commit log that is read on past whatever is wrong with it."""

    def __init__(
        self, repository: Repository, topic: str, topic_id: str, accepted: Set[AcceptedCommit]
    ) -> None:
        self._accepted = accepted
        self.topic = topic
        self.topic_id = topic_id
        self.commits: dict[int, Commit] = {}
        self.sha256s: dict[int, str] = {}
        self._store = repository.store

    def key(self, number: int) -> str:
        return layout.commit_key(self.topic, self.topic_id, number)

    def replay(self) -> Iterator[Problem]:
        """Read all commits, from 0 on, and hold each against the ones before it."""
        ends: dict[int, int] = {}
        state: LogState | None = LogState()
        checkpoints = set(checkpoint_numbers(self._store, self.topic, self.topic_id))
        reader = CommitReader()
        for number, data in read_commits(self._store, self.topic, self.topic_id):
            key = self.key(number)
            if data is None:
                yield Problem(kind="missing", object=key, detail="later commits exist, this one does not")
                state = None
                ends.clear()
                continue
            self.sha256s[number] = sha256_of(data)
            try:
                commit = reader.read(data, key=key)
            except DamagedError as error:
                yield Problem(kind="unreadable", object=key, detail=str(error))
                state = None
                ends.clear()
                continue
            # Behind a gap nothing is known to compare with but the commit's own word.
            is_known = number == 0 or number - 1 in self.sha256s
            previous = self.sha256s.get(number - 1) if is_known else commit.previous_sha256
            for flaw in commit_flaws(
                commit,
                topic=self.topic,
                topic_id=self.topic_id,
                number=number,
                previous_sha256=previous,
                ends=ends,
            ):
                yield Problem(kind=flaw.kind, object=key, detail=flaw.detail)
            ends.update((part.partition, part.end) for part in commit.partitions)
            self.commits[number] = commit
            if state is not None:
                state.take(commit, self.sha256s[number])
                if number in checkpoints:
                    yield from self._checkpoint(state)
            if not self._is_accepted(number):
                yield from _lost(commit, key)
            yield from _ledgers(commit, key)

    def _is_accepted(self, number: int) -> bool:
        named = AcceptedCommit(
            topic=self.topic, topic_id=self.topic_id, number=number, sha256=self.sha256s[number]
        )
        return named in self._accepted

    def _checkpoint(self, state: LogState) -> Iterator[Problem]:
        key = layout.checkpoint_key(self.topic, self.topic_id, state.number)
        try:
            data = self._store.get(key)
        except ObjectNotFoundError:
            return
        if check_checkpoint(data, state, topic=self.topic, topic_id=self.topic_id) is False:
            detail = "it says something else than the commits; delete it, it is only a cache"
            yield Problem(kind="checkpoint", object=key, detail=detail)

    def segments(self) -> Iterator[tuple[_RangePlace, StoredSegment]]:
        """Every segment of every readable commit, with the range that names it."""
        log = CommitLog(self._store, self.topic, self.topic_id, LogState())
        for number, commit in self.commits.items():
            for part in commit.partitions:
                place = _RangePlace(self.key(number), part)
                for entry in part.segments:
                    yield place, log.stored_segment(commit, part, entry)

    def objects(self) -> Iterator[Problem]:
        """Hold what the commits name against one listing of what is there."""
        folder = layout.incarnation_folder(self.topic, self.topic_id)
        sizes = {info.key: info.size for info in self._store.list(folder)}
        for _, segment in self.segments():
            size = sizes.get(segment.key)
            if size is None:
                detail = f"commit {segment.commit} names it and it does not exist"
                yield Problem(kind="missing", object=segment.key, detail=detail)
            elif size != segment.entry.stored_size:
                detail = f"{size} bytes instead of {segment.entry.stored_size}"
                yield Problem(kind="size", object=segment.key, detail=detail)


def _lost(commit: Commit, key: str) -> Iterator[Problem]:
    for part in commit.partitions:
        for span in part.lost:
            detail = (
                f"{commit.incarnation.topic} [{part.partition}]: offsets [{span.start}, {span.end}) were lost "
                f"({span.reason}) before capture {commit.capture_id} could save them; `losses accept` accepts it"
            )
            yield Problem(kind="lost", object=key, detail=detail)
        if part.truncated_to is not None:
            detail = (
                f"{commit.incarnation.topic} [{part.partition}]: its log was cut back to offset {part.truncated_to} "
                f"by an unclean leader election, as capture {commit.capture_id} found; what earlier captures hold "
                "above that is only restored as of them; `losses accept` accepts it"
            )
            yield Problem(kind="truncated", object=key, detail=detail)


def _ledgers(commit: Commit, key: str) -> Iterator[Problem]:
    """What the counts of the segments already tell about the ledgers, without reading any."""
    for part in commit.partitions:
        stored = sum(entry.records for entry in part.segments)
        # Only a batch that reaches out of the range, or into a lost span, holds more than counts.
        may_be_more = part.lost or (part.segments and part.segments[0].first_offset < part.start)
        if stored < part.ledger.records or (stored > part.ledger.records and not may_be_more):
            detail = (
                f"partition {part.partition}: the segments of range [{part.start}, {part.end}) hold {stored} "
                f"records, the ledger says {part.ledger.records}"
            )
            yield Problem(kind="ledger", object=key, detail=detail)


def _heads(
    repository: Repository, logs: Sequence[_Log], selection: TopicSelection | None
) -> Iterator[Problem]:
    """Every capture must find the commits that it names: a log that was cut short shows here."""
    known: Mapping[tuple[str, str], _Log] = {(log.topic, log.topic_id): log for log in logs}
    for info in repository.store.list(layout.CAPTURES):
        capture_id = layout.parse_capture_key(info.key)
        if capture_id is None:
            yield Problem(kind="foreign", object=info.key, detail="not a key of a capture; remove it")
            continue
        try:
            capture = repository.capture(capture_id)
        except DamagedError as error:
            yield Problem(kind="unreadable", object=info.key, detail=str(error))
            continue
        yield from _heads_of(capture, info.key, known, selection)


def _heads_of(
    capture: Capture, key: str, logs: Mapping[tuple[str, str], _Log], selection: TopicSelection | None
) -> Iterator[Problem]:
    for entry in capture.topics:
        if selection is not None and not selection.includes(
            entry.topic, internal=entry.topic.startswith("__")
        ):
            continue
        log = logs.get((entry.topic, entry.topic_id))
        found = log.sha256s.get(entry.head) if log is not None else None
        if found != entry.head_sha256:
            state = "does not exist" if found is None else f"has another SHA-256 ({found})"
            detail = f"it names commit {entry.head} of {entry.topic} ({entry.topic_id}), which {state}"
            yield Problem(kind="head", object=key, detail=detail)


def _restores(repository: Repository, token: StopToken) -> Iterator[Problem]:
    """Read all that restores stored, and hold each attempt against the plan that it was begun with."""
    plans: dict[str, str] = {}
    attempts: dict[str, dict[int, str]] = defaultdict(dict)
    for info in repository.store.list(layout.RESTORES):
        token.check()
        try:
            document = read_restore_document(repository.store, info.key)
        except DamagedError as error:
            yield Problem(kind="unreadable", object=info.key, detail=str(error))
            continue
        match document:
            case RestorePlan():
                plans[document.request.restore_id] = sha256_of(document.to_bytes())
            case RestoreAttempt():
                attempts[document.restore_id][document.attempt] = document.plan_sha256
    for restore_id, found in attempts.items():
        for number in range(1, max(found) + 1):
            key = layout.attempt_key(restore_id, number)
            if number not in found:
                yield Problem(kind="missing", object=key, detail="later attempts exist, this one does not")
            elif found[number] != plans.get(restore_id):
                detail = f"it was begun with a plan with SHA-256 {found[number]}, which is not there"
                yield Problem(kind="chain", object=key, detail=detail)


def _group_snapshots(repository: Repository, token: StopToken) -> Iterator[Problem]:
    groups = GroupStore(repository.store)
    for info in repository.store.list(layout.GROUPS):
        token.check()
        snapshot_id = layout.parse_group_snapshot_key(info.key)
        if snapshot_id is None:
            yield Problem(kind="foreign", object=info.key, detail="not a key of a group snapshot; remove it")
            continue
        try:
            groups.snapshot(snapshot_id)
        except DamagedError as error:
            yield Problem(kind="unreadable", object=info.key, detail=str(error))


@dataclass(slots=True)
class _Read:
    """What reading one segment showed: records that count for its range, or what is wrong."""

    records: int = 0
    problems: list[Problem] = field(default_factory=list)


def _data(
    repository: Repository,
    segments: Sequence[tuple[_RangePlace, StoredSegment]],
    *,
    known: Sequence[Problem],
    token: StopToken,
    threads: int,
) -> Iterator[Problem]:
    """Read every segment, and hold each range's ledger against the records in it."""
    bad = {problem.object for problem in known}

    def read(pair: tuple[_RangePlace, StoredSegment]) -> _Read | None:
        token.check()
        return None if pair[1].key in bad else _read(repository, pair[0].part, pair[1], token)

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="verify") as pool:
        results = zip(segments, pool.map(read, segments), strict=True)
        for (commit_key, partition), group in groupby(
            results, key=lambda result: (result[0][0].commit_key, result[0][0].part.partition)
        ):
            reads = list(group)
            part = reads[0][0][0].part
            for _, result in reads:
                if result is not None:
                    yield from result.problems
            counts = [result.records for _, result in reads if result is not None and not result.problems]
            if len(counts) == len(reads) and sum(counts) != part.ledger.records:
                detail = (
                    f"partition {partition}: the segments hold {sum(counts)} records in the range [{part.start}, "
                    f"{part.end}), the ledger says {part.ledger.records}"
                )
                yield Problem(kind="ledger", object=commit_key, detail=detail)


def _read(repository: Repository, part: PartitionRange, segment: StoredSegment, token: StopToken) -> _Read:
    result = _Read()
    try:
        for batch, header in SegmentReader(repository.store, segment).batches(check_crc=True):
            token.check()
            result.records += _records_inside(part, batch, header)
    except DamagedSegmentError as error:
        result.problems.append(Problem(kind=error.flaw, object=error.key, detail=error.detail))
    except DamagedError as error:
        result.problems.append(Problem(kind="unreadable", object=segment.key, detail=str(error)))
    return result


def _records_inside(part: PartitionRange, batch: memoryview, header: BatchHeader) -> int:
    """Records of a batch that the range accounts for: a batch may begin below it, or in a lost span."""
    whole = header.base_offset >= part.start and header.last_offset < part.end
    if whole and not any(s.start <= header.last_offset and header.base_offset < s.end for s in part.lost):
        return header.record_count
    return sum(
        part.start <= record.offset < part.end
        and not any(s.start <= record.offset < s.end for s in part.lost)
        for record in decode_batch(batch)
    )
