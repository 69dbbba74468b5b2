"""Prove that a repository is what its commits say, or list everything that is wrong."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.progress import StopToken, VerifyProgress
from kafka_backup.records.batch import BatchHeader
from kafka_backup.records.codec import decode_batch
from kafka_backup.repository import layout
from kafka_backup.repository.acceptances import AcceptedCommit, accepted_absences, accepted_losses
from kafka_backup.repository.buffers import Buffers
from kafka_backup.repository.checkpoints import CommitReader, check_checkpoint, checkpoint_numbers
from kafka_backup.repository.commit_flaws import commit_flaws
from kafka_backup.repository.commit_log import CommitLog, read_commits
from kafka_backup.repository.documents import CapturedTopic, Commit, PartitionRange, sha256_of
from kafka_backup.repository.drills import DrillStore
from kafka_backup.repository.expiry import expired_group_snapshots, find_expiries, needed
from kafka_backup.repository.group_store import GroupStore, reset_flaws
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
    "expired",
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
            hold), ``lost`` (offsets that no capture could save). Of an expiry: ``expired`` (it took away what it had
            promised to keep). Of a cache: ``checkpoint`` (it says something
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
    on_progress: Callable[[VerifyProgress], None] | None = None,
) -> VerifyReport:
    """Check a repository; collects all problems instead of stopping at the first.

    Args:
        repository: what to check.
        selection: only these topics; None: all.
        level: how deep.
        stop: ends the check with CancelledError.
        threads: segments read at the same time; each holds the stored and raw bytes of one.
        on_progress: told after each topic, and each segment that was read.

    Raises:
        ConfigurationError: no topic of the repository matches the selection.
        CancelledError: somebody asked to stop.
    """
    began = time.monotonic()
    token = stop or StopToken()
    problems: list[Problem] = []
    accepted, damaged = _acceptances(repository)
    problems += damaged
    heads: dict[tuple[str, str], Mapping[int, str]] = {}
    commits = segments = stored_bytes = records = 0
    selected = _selected(repository, selection)
    teller = _Teller(on_progress, len(selected), began)
    for topic, topic_id in selected:
        token.check()
        log = _Log(repository, topic, topic_id, accepted)
        found = [*log.replay(), *log.promises(), *log.objects()]
        if level == "data":
            found += _data(log, known=found, token=token, threads=threads, teller=teller)
        problems += found
        heads[topic, topic_id] = log.sha256s
        commits += len(log.commits)
        for _, segment in log.segments():
            segments += 1
            stored_bytes += segment.entry.stored_size
            records += segment.entry.records
        teller.topic(topic, segments=segments, stored_bytes=stored_bytes)
    problems += _captures(repository, heads, selection, token)
    if selection is None:
        problems += _restores(repository, token)
        problems += (Problem(kind=k, object=o, detail=d) for k, o, d in reset_flaws(repository.store))
        problems += _drills(repository)
        problems += _group_snapshots(repository, token)
    kinds = {problem.kind for problem in problems}
    return VerifyReport(
        status="ok" if not kinds else "lossy" if kinds <= {"lost", "truncated"} else "damaged",
        level=level,
        problems=tuple(problems),
        topics=len({topic for topic, _ in heads}),
        commits=commits,
        segments=segments,
        stored_bytes=stored_bytes,
        records=records,
        seconds=time.monotonic() - began,
    )


@dataclass(slots=True)
class _Teller:
    """Tells how far a verification is: what was read so far, and all of the topics that are done."""

    on_progress: Callable[[VerifyProgress], None] | None
    topics_total: int
    began: float
    topics_done: int = 0
    segments: int = 0
    stored_bytes: int = 0

    def segment(self, topic: str, stored_size: int) -> None:
        self.segments += 1
        self.stored_bytes += stored_size
        self._tell(topic)

    def topic(self, topic: str, *, segments: int, stored_bytes: int) -> None:
        self.topics_done += 1
        self.segments, self.stored_bytes = segments, stored_bytes
        self._tell(topic)

    def _tell(self, topic: str) -> None:
        if self.on_progress is not None:
            self.on_progress(
                VerifyProgress(
                    topic=topic,
                    topics_done=self.topics_done,
                    topics_total=self.topics_total,
                    segments=self.segments,
                    stored_bytes=self.stored_bytes,
                    seconds=time.monotonic() - self.began,
                )
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
    """A commit log that is read on past whatever is wrong with it.

    Attributes:
        commits: every readable one, by number.
        sha256s: of every commit that is there.
    """

    def __init__(
        self, repository: Repository, topic: str, topic_id: str, accepted: Set[AcceptedCommit]
    ) -> None:
        self._accepted = accepted
        self.topic = topic
        self.topic_id = topic_id
        self.commits: dict[int, Commit] = {}
        self.sha256s: dict[int, str] = {}
        self.store = repository.store
        self._folder = layout.incarnation_folder(topic, topic_id)
        self._log = CommitLog(self.store, topic, topic_id, LogState())
        self._is_whole = True
        self._named: set[str] = set()
        self._expired: set[str] = set()
        self._swept: set[str] = set()
        self._lock = threading.Lock()

    def key(self, number: int) -> str:
        return layout.commit_key(self.topic, self.topic_id, number)

    def replay(self) -> Iterator[Problem]:
        """Read all commits, from 0 on, and hold each against the ones before it."""
        ends: dict[int, int] = {}
        checkpoints = set(checkpoint_numbers(self.store, self.topic, self.topic_id))
        reader = CommitReader()
        for number, data in read_commits(self.store, self.topic, self.topic_id):
            key = self.key(number)
            if data is None:
                yield Problem(kind="missing", object=key, detail="later commits exist, this one does not")
                self._is_whole = False
                ends.clear()
                continue
            self.sha256s[number] = sha256_of(data)
            try:
                commit = reader.read(data, key=key)
            except DamagedError as error:
                yield Problem(kind="unreadable", object=key, detail=str(error))
                self._is_whole = False
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
            if self._is_whole:
                self._log.take(commit, data)
                if number in checkpoints:
                    yield from self._checkpoint()
            yield from self._names(commit, key)
            if not self._is_accepted(number):
                yield from _lost(commit, key)
            yield from _ledgers(commit, key)

    def _is_accepted(self, number: int) -> bool:
        named = AcceptedCommit(
            topic=self.topic, topic_id=self.topic_id, number=number, sha256=self.sha256s[number]
        )
        return named in self._accepted

    def _checkpoint(self) -> Iterator[Problem]:
        state = self._log.state
        key = layout.checkpoint_key(self.topic, self.topic_id, state.number)
        try:
            data = self.store.get(key)
        except ObjectNotFoundError:
            return
        if check_checkpoint(data, state, topic=self.topic, topic_id=self.topic_id) is False:
            detail = "it says something else than the commits; delete it, it is only a cache"
            yield Problem(kind="checkpoint", object=key, detail=detail)

    def _names(self, commit: Commit, key: str) -> Iterator[Problem]:
        """Hold the segments that a commit names against those that earlier ones named, and deleted."""
        mine = {
            self._log.segment_key(commit, part.partition, entry)
            for part in commit.partitions
            for entry in part.segments
        }
        expired = {self._folder + name for name in commit.expired}
        swept = {self._folder + name for name in commit.swept}
        wrong = [
            (mine & self._swept, "it names {}, which an earlier commit swept away"),
            (mine & self._named, "it names {}, which an earlier commit names already"),
            (expired - self._named, "it lets {} expire, which no commit before it names"),
            (expired & self._expired, "it lets {} expire, which expired before"),
            (swept & self._named - self._expired, "it sweeps {} away, which has not expired"),
        ]
        for keys, detail in wrong:
            # Behind a gap it may have been named, or have expired, in what is missing.
            if keys and self._is_whole:
                yield Problem(kind="chain", object=key, detail=detail.format(", ".join(sorted(keys))))
        self._named |= mine
        self._expired |= expired
        self._swept |= swept

    def promises(self) -> Iterator[Problem]:
        """Every state that expiry promised to keep must still be whole."""
        expiries = [commit for commit in self.commits.values() if commit.action == "expire"]
        promises = [commit.kept_from for commit in expiries if commit.kept_from is not None]
        # An incarnation of which nothing was kept has no whole state any more.
        if not promises or len(promises) < len(expiries) or not self._is_whole:
            return
        kept_from = max(promises)
        for key in sorted(needed(self._log, since=kept_from) & self._expired):
            detail = (
                f"{key} has expired, although states from commit {kept_from} on were to stay whole and need it; do "
                "not run expire again, and put it back from a copy of the repository if it is gone"
            )
            yield Problem(kind="expired", object=self.key(expiries[-1].number), detail=detail)

    def segments(self) -> Iterator[tuple[_RangePlace, StoredSegment]]:
        """Every segment of every readable commit that was not swept away, with the range that names it."""
        for number, commit in self.commits.items():
            for part in commit.partitions:
                place = _RangePlace(self.key(number), part)
                for entry in part.segments:
                    segment = self._log.stored_segment(commit, part, entry)
                    if segment.key not in self._swept:
                        yield place, segment

    def objects(self) -> Iterator[Problem]:
        """Hold what the commits name against one listing of what is there."""
        sizes = {info.key: info.size for info in self.store.list(self._folder)}
        for _, segment in self.segments():
            size = sizes.get(segment.key)
            if size is None:
                if not self.is_swept_by_now(segment.key):
                    detail = f"commit {segment.commit} names it and it does not exist"
                    yield Problem(kind="missing", object=segment.key, detail=detail)
            elif size != segment.entry.stored_size:
                detail = f"{size} bytes instead of {segment.entry.stored_size}"
                yield Problem(kind="size", object=segment.key, detail=detail)

    def is_swept_by_now(self, key: str) -> bool:
        """Whether an object that is gone was swept away since the log was read."""
        with self._lock:
            after = self._log.state.number
            for number, data in read_commits(self.store, self.topic, self.topic_id, after=after):
                if data is not None and self._is_whole:
                    commit = Commit.from_bytes(data, key=self.key(number))
                    self._swept |= {self._folder + name for name in commit.swept}
                    self._log.take(commit, data)
            return key in self._swept


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


def _captures(
    repository: Repository,
    heads: Mapping[tuple[str, str], Mapping[int, str]],
    selection: TopicSelection | None,
    token: StopToken,
) -> Iterator[Problem]:
    """Every capture must find the commits that it names: a log that was cut short shows here."""
    for info in repository.store.list(layout.CAPTURES):
        token.check()
        capture_id = layout.parse_capture_key(info.key)
        if capture_id is None:
            yield Problem(kind="foreign", object=info.key, detail="not a key of a capture; remove it")
            continue
        try:
            capture = repository.read_capture(capture_id)
        except DamagedError as error:
            yield Problem(kind="unreadable", object=info.key, detail=str(error))
            continue
        for entry in capture.topics:
            is_internal = entry.topic.startswith("__")
            if selection is None or selection.includes(entry.topic, internal=is_internal):
                yield from _head(repository, entry, info.key, heads.get((entry.topic, entry.topic_id), {}))


def _head(
    repository: Repository, entry: CapturedTopic, key: str, sha256s: Mapping[int, str]
) -> Iterator[Problem]:
    found = sha256s.get(entry.head)
    if found is None and entry.head > max(sha256s, default=-1):
        # It may have been committed after the log was read.
        with suppress(ObjectNotFoundError):
            commit = layout.commit_key(entry.topic, entry.topic_id, entry.head)
            found = sha256_of(repository.store.get(commit))
    if found != entry.head_sha256:
        state = "does not exist" if found is None else f"has another SHA-256 ({found})"
        detail = f"it names commit {entry.head} of {entry.topic} ({entry.topic_id}), which {state}"
        yield Problem(kind="head", object=key, detail=detail)


def _group_snapshots(repository: Repository, token: StopToken) -> Iterator[Problem]:
    """Every capture must find its group snapshot, and each must be as it was stored."""
    expired: set[str] = set()
    all_expiries_known = True
    for key, expiry in find_expiries(repository.store):
        if isinstance(expiry, DamagedError):
            all_expiries_known = False
            yield Problem(kind="unreadable", object=key, detail=str(expiry))
        else:
            expired.update(expiry.group_snapshots)
    groups = GroupStore(repository.store)
    there = set()
    for info in repository.store.list(layout.GROUPS):
        if (snapshot_id := layout.parse_group_snapshot_key(info.key)) is not None:
            there.add(snapshot_id)
        else:
            yield Problem(kind="foreign", object=info.key, detail="not a key of a group snapshot; remove it")
    sha256s: dict[str, str] = {}
    for capture_id in repository.capture_ids():
        token.check()
        with suppress(DamagedError):  # reported with the captures
            capture = repository.read_capture(capture_id)
            if capture.groups is not None:
                sha256s[capture.groups.snapshot_id] = capture.groups.sha256
    for snapshot_id in sorted({*there, *sha256s} - expired):
        token.check()
        key = layout.group_snapshot_key(snapshot_id)
        if snapshot_id not in there:
            if all_expiries_known and snapshot_id not in expired_group_snapshots(repository.store):
                yield Problem(kind="missing", object=key, detail="a capture names it and it does not exist")
        else:
            yield from _group_snapshot(repository, groups, snapshot_id, sha256s.get(snapshot_id))


def _group_snapshot(
    repository: Repository, groups: GroupStore, snapshot_id: str, sha256: str | None
) -> Iterator[Problem]:
    key = layout.group_snapshot_key(snapshot_id)
    try:
        groups.snapshot(snapshot_id)
        found = sha256_of(repository.store.get(key))
    except (ConfigurationError, ObjectNotFoundError):
        return  # it expired meanwhile
    except DamagedError as error:
        yield Problem(kind="unreadable", object=key, detail=str(error))
        return
    if sha256 is not None and found != sha256:
        detail = f"SHA-256 {found} instead of {sha256}, as its capture says"
        yield Problem(kind="sha256", object=key, detail=detail)


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


def _drills(repository: Repository) -> Iterator[Problem]:
    drills = DrillStore(repository.store)
    for drill_id in drills.ids():
        try:
            drills.report(drill_id)
        except DamagedError as error:
            yield Problem(kind="unreadable", object=layout.drill_key(drill_id), detail=str(error))


@dataclass(slots=True)
class _Read:
    """What reading one segment showed: records that count for its range, or what is wrong."""

    records: int = 0
    problems: list[Problem] = field(default_factory=list)


def _data(
    log: _Log,
    *,
    known: Sequence[Problem],
    token: StopToken,
    threads: int,
    teller: _Teller,
) -> Iterator[Problem]:
    """Read every segment, and hold each range's ledger against the records in it."""
    bad = {problem.object for problem in known}
    segments = list(log.segments())
    of_thread = threading.local()

    def read(pair: tuple[_RangePlace, StoredSegment]) -> _Read | None:
        token.check()
        if pair[1].key in bad:
            return None
        if not hasattr(of_thread, "buffers"):
            of_thread.buffers = Buffers()
        reader = SegmentReader(log.store, pair[1], buffers=of_thread.buffers)
        return _read(log, reader, pair[0].part, pair[1], token)

    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="verify") as pool:
        results = zip(segments, pool.map(read, segments), strict=True)
        for (commit_key, partition), group in groupby(
            results, key=lambda result: (result[0][0].commit_key, result[0][0].part.partition)
        ):
            reads = []
            for pair in group:
                reads.append(pair)
                teller.segment(log.topic, pair[0][1].entry.stored_size)
            part = reads[0][0][0].part
            for _, result in reads:
                if result is not None:
                    yield from result.problems
            counts = [result.records for _, result in reads if result is not None and not result.problems]
            if len(counts) == len(part.segments) and sum(counts) != part.ledger.records:
                detail = (
                    f"partition {partition}: the segments hold {sum(counts)} records in the range [{part.start}, "
                    f"{part.end}), the ledger says {part.ledger.records}"
                )
                yield Problem(kind="ledger", object=commit_key, detail=detail)


def _read(
    log: _Log, reader: SegmentReader, part: PartitionRange, segment: StoredSegment, token: StopToken
) -> _Read | None:
    """Read one segment; None if it was swept away meanwhile."""
    result = _Read()
    try:
        for batch, header in reader.batches(check_crc=True):
            token.check()
            result.records += _records_inside(part, batch, header)
    except DamagedSegmentError as error:
        if error.flaw == "missing" and log.is_swept_by_now(segment.key):
            return None
        result.problems.append(Problem(kind=error.flaw, object=error.key, detail=error.detail))
    except DamagedError as error:
        result.problems.append(Problem(kind="unreadable", object=segment.key, detail=str(error)))
    return result


def _records_inside(part: PartitionRange, batch: memoryview, header: BatchHeader) -> int:
    """Records of a batch that the range accounts for: a batch may begin below it, or in a lost span."""
    if header.is_control:
        return 0
    whole = header.base_offset >= part.start and header.last_offset < part.end
    if whole and not any(s.start <= header.last_offset and header.base_offset < s.end for s in part.lost):
        return header.record_count
    return sum(
        part.start <= record.offset < part.end
        and not any(s.start <= record.offset < s.end for s in part.lost)
        for record in decode_batch(batch)
    )
