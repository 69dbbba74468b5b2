"""The commit log of one topic incarnation: create-only objects, chained by SHA-256.

The log is the lock. A writer opens the log (head n) before its first upload and can only ever create
commit n+1; of two writers one is told that the place is taken, and nothing of its work becomes
visible. So no lock server, lease or clock is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, Self

from kafka_backup.errors import DamagedError, WriterConflictError
from kafka_backup.repository.documents import (
    Commit,
    Incarnation,
    PartitionRange,
    SegmentEntry,
    Window,
    sha256_of,
)
from kafka_backup.repository.layout import commit_key, commits_folder, parse_commit_key, segment_key
from kafka_backup.repository.segments import StoredSegment
from kafka_backup.repository.store import ObjectNotFoundError, Store, put_once

_READERS = 8


@dataclass(frozen=True, slots=True)
class CommitFlaw:
    """What is wrong with a commit: with its place in the ``chain``, or ``foreign``, of another log."""

    kind: Literal["chain", "foreign"]
    detail: str


def commit_flaws(
    commit: Commit,
    *,
    topic: str,
    topic_id: str,
    number: int,
    previous_sha256: str | None,
    ends: Mapping[int, int],
) -> Iterator[CommitFlaw]:
    """Yield every reason why a commit cannot be commit `number` of a log.

    Args:
        commit: as it was read.
        topic: of the place where it was found.
        topic_id: the same.
        number: the same.
        previous_sha256: of commit `number` - 1, None for commit 0.
        ends: where each partition ended before this commit; a missing one was never captured.
    """
    named = commit.incarnation
    if (named.topic, named.topic_id) != (topic, topic_id):
        yield CommitFlaw("foreign", f"it belongs to {named.topic} ({named.topic_id})")
    if commit.number != number:
        yield CommitFlaw("foreign", f"it says that it is commit {commit.number}")
    if commit.previous_sha256 != previous_sha256:
        yield CommitFlaw(
            "chain", f"it follows a commit with SHA-256 {commit.previous_sha256}, not {previous_sha256}"
        )
    seen: set[int] = set()
    for part in commit.partitions:
        name = f"partition {part.partition}"
        if part.partition in seen or part.partition >= named.partition_count:
            yield CommitFlaw("chain", f"{name} is named twice, or the topic has no such partition")
        seen.add(part.partition)
        end = ends.get(part.partition)
        if end is not None and part.start != end and not _may_begin_elsewhere(part, end):
            yield CommitFlaw(
                "chain", f"{name} begins at offset {part.start}, but the commits before it end at {end}"
            )
        previous = -1
        for entry in part.segments:
            in_order = previous < entry.first_offset <= entry.last_offset
            if not in_order or not part.start <= entry.last_offset < part.end:
                yield CommitFlaw(
                    "chain",
                    f"{name}: the segment of offsets [{entry.first_offset}, {entry.last_offset + 1}) is out of "
                    f"place in the range [{part.start}, {part.end})",
                )
            previous = entry.last_offset


def _may_begin_elsewhere(part: PartitionRange, end: int) -> bool:
    if part.start < end:
        return part.truncated_to == part.start
    span = part.not_captured
    return span is not None and (span.start, span.end) == (end, part.start)


def _live_start(part: PartitionRange, entry: SegmentEntry) -> int:
    """Where the offsets of a segment begin to count: its first batch may begin in what does not."""
    start = max(part.start, entry.first_offset)
    for span in part.lost:
        if span.start <= start < span.end:
            start = span.end
    return start


class CommitLog:
    """The commits of one incarnation, as they were when the log was opened, and what we appended.

    Attributes:
        topic, topic_id: whose log it is.
        commits: all of them; commit n is ``commits[n]``.
    """

    def __init__(
        self, store: Store, topic: str, topic_id: str, commits: Sequence[Commit], sha256s: Sequence[str]
    ) -> None:
        """Use `open`; this takes commits that were proved already, with their SHA-256s."""
        self.topic = topic
        self.topic_id = topic_id
        self._store = store
        self._commits = list(commits)
        self._sha256s = list(sha256s)
        self._ranges: dict[int, list[tuple[Commit, PartitionRange]]] = {}
        for commit in commits:
            self._index(commit)

    @classmethod
    def open(cls, store: Store, topic: str, topic_id: str) -> Self:
        """Read and check the whole log; an incarnation without any commit has an empty one.

        Raises:
            DamagedError: a commit is missing, unreadable, or breaks the chain. An unreadable newest
                commit is damage too, never "not there": what it makes real would be lost silently.
        """
        read = dict(read_commits(store, topic, topic_id))
        log = cls(store, topic, topic_id, (), ())
        for number in range(max(read, default=-1) + 1):
            key = commit_key(topic, topic_id, number)
            data = read.get(number)
            if data is None:
                raise DamagedError(
                    f"{store.url}/{key} is missing although later commits exist; put it back from a copy of "
                    "the repository"
                )
            commit = Commit.from_bytes(data, key=key)
            flaws = commit_flaws(
                commit,
                topic=topic,
                topic_id=topic_id,
                number=number,
                previous_sha256=log.head_sha256,
                ends=log._ends(),
            )
            if (flaw := next(flaws, None)) is not None:
                raise DamagedError(
                    f"{store.url}/{key} breaks the commit log: {flaw.detail}; run verify to see everything that is "
                    "wrong, and put the objects back from a copy of the repository"
                )
            log._take(commit, sha256_of(data))
        return log

    @property
    def commits(self) -> tuple[Commit, ...]:
        """All commits, commit 0 first."""
        return tuple(self._commits)

    @property
    def head(self) -> int | None:
        """Number of the newest commit; None in an empty log."""
        return len(self._commits) - 1 if self._commits else None

    @property
    def head_sha256(self) -> str | None:
        """SHA-256 of the newest commit's object."""
        return self._sha256s[-1] if self._sha256s else None

    def sha256_of(self, number: int) -> str:
        """SHA-256 of the object of commit `number`; an IndexError if there is none."""
        return self._sha256s[number]

    def uri(self, number: int) -> str:
        """Where the object of commit `number` is."""
        return f"{self._store.url}/{commit_key(self.topic, self.topic_id, number)}"

    def ranges(self, partition: int) -> Sequence[PartitionRange]:
        """What each commit covers of a partition, oldest first."""
        return [part for _, part in self._ranges.get(partition, ())]

    def end_of(self, partition: int) -> int | None:
        """The offset where the next capture begins; None if the partition was never captured."""
        ranges = self._ranges.get(partition)
        return ranges[-1][1].end if ranges else None

    def segments(self, partition: int, *, until_commit: int | None = None) -> list[StoredSegment]:
        """Return the live segments of a partition in offset order, each with the offsets that count.

        Here, and only here, is decided what a partition holds. A segment's first batch may begin
        below its range (log start was inside it) or in offsets that were reported lost, and an
        unclean election may have taken away its end: `StoredSegment.start` and `end` cut all that off.

        Args:
            partition: its number.
            until_commit: as of this commit (inclusive); None means the head. An older state still
                has what a later truncation took away.
        """
        live: list[StoredSegment] = []
        for commit, part in self._ranges_until(partition, until_commit):
            cut = part.truncated_to
            if cut is not None:
                live = [replace(old, end=min(old.end, cut)) for old in live if old.start < cut]
            live += [self.stored_segment(commit, part, entry) for entry in part.segments]
        return live

    def records(self, partition: int, *, until_commit: int | None = None) -> int:
        """Count the live records of a partition; an upper limit where a truncation cut a segment.

        Args:
            partition: its number.
            until_commit: as of this commit (inclusive); None means the head.
        """
        live: dict[int, int] = defaultdict(int)
        for segment in self.segments(partition, until_commit=until_commit):
            live[segment.commit] += min(segment.entry.records, segment.end - segment.start)
        count = 0
        cut: int | None = None
        for commit, part in reversed(self._ranges_until(partition, until_commit)):
            is_whole = cut is None or part.end <= cut
            count += part.ledger.records if is_whole else live[commit.number]
            if part.truncated_to is not None:
                cut = part.truncated_to if cut is None else min(cut, part.truncated_to)
        return count

    def _ranges_until(
        self, partition: int, until_commit: int | None
    ) -> Sequence[tuple[Commit, PartitionRange]]:
        return [
            (commit, part)
            for commit, part in self._ranges.get(partition, ())
            if until_commit is None or commit.number <= until_commit
        ]

    def segment_key(self, commit: Commit, partition: int, entry: SegmentEntry) -> str:
        """The key of a segment that a commit names."""
        return segment_key(
            topic=self.topic,
            topic_id=self.topic_id,
            partition=partition,
            first_offset=entry.first_offset,
            capture_id=commit.capture_id,
            index=entry.index,
            compression=entry.compression,
        )

    def stored_segment(self, commit: Commit, part: PartitionRange, entry: SegmentEntry) -> StoredSegment:
        """A segment as its own commit knows it; later truncations are not looked at."""
        return StoredSegment(
            key=self.segment_key(commit, part.partition, entry),
            partition=part.partition,
            entry=entry,
            capture_id=commit.capture_id,
            commit=commit.number,
            start=_live_start(part, entry),
            end=entry.last_offset + 1,
        )

    def append(
        self,
        *,
        nonce: str,
        capture_id: str,
        window: Window | None,
        committed_at: int,
        incarnation: Incarnation,
        partitions: Sequence[PartitionRange],
    ) -> Commit:
        """Create the commit after the head; everything that it names must be durable already.

        Args:
            nonce: random, made once per process.
            capture_id: whose segments these are.
            window: the capture's label.
            committed_at: ms.
            incarnation: the topic as the capture found it.
            partitions: the ranges; each begins where the log ends.

        Raises:
            WriterConflictError: another writer took the place; nothing of ours is visible, and this
                log must not be used any more.
            ValueError: the commit does not fit the log.
        """
        number = len(self._commits)
        commit = Commit(
            number=number,
            previous_sha256=self.head_sha256,
            nonce=nonce,
            capture_id=capture_id,
            window=window,
            committed_at=committed_at,
            incarnation=incarnation,
            partitions=tuple(partitions),
        )
        flaws = commit_flaws(
            commit,
            topic=self.topic,
            topic_id=self.topic_id,
            number=number,
            previous_sha256=self.head_sha256,
            ends=self._ends(),
        )
        if (flaw := next(flaws, None)) is not None:
            raise ValueError(f"commit {number} of {self.topic} does not fit its log: {flaw.detail}")
        data = commit.to_bytes()
        try:
            put_once(self._store, commit_key(self.topic, self.topic_id, number), data)
        except WriterConflictError as error:
            raise WriterConflictError(
                f"another writer committed {number} of {self.topic} meanwhile; nothing of this run is visible in "
                f"it. Make sure that only one run captures {self.topic}, then run again"
            ) from error
        self._take(commit, sha256_of(data))
        return commit

    def _take(self, commit: Commit, sha256: str) -> None:
        self._commits.append(commit)
        self._sha256s.append(sha256)
        self._index(commit)

    def _index(self, commit: Commit) -> None:
        for part in commit.partitions:
            self._ranges.setdefault(part.partition, []).append((commit, part))

    def _ends(self) -> Mapping[int, int]:
        return {partition: ranges[-1][1].end for partition, ranges in self._ranges.items()}


def read_commits(store: Store, topic: str, topic_id: str) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of every commit object of an incarnation, unchecked, in order.

    A listing may be stale, so after the last listed number each next one is asked for by name.
    """
    listed = [
        number
        for info in store.list(commits_folder(topic, topic_id))
        if (number := parse_commit_key(info.key, topic=topic, topic_id=topic_id)) is not None
    ]

    def read(number: int) -> bytes:
        return store.get(commit_key(topic, topic_id, number))

    with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="commits") as pool:
        yield from zip(listed, pool.map(read, listed), strict=True)
    number = listed[-1] + 1 if listed else 0
    while True:
        try:
            data = read(number)
        except ObjectNotFoundError:
            return
        yield number, data
        number += 1
