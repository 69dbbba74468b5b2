"""The commit log of one topic incarnation: create-only objects, chained by SHA-256.

The log is the lock. A writer opens the log (head n) before its first upload and can only ever create
commit n+1; of two writers one is told that the place is taken, and nothing of its work becomes
visible. So no lock server, lease or clock is needed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

from kafka_backup.errors import DamagedError, WriterConflictError
from kafka_backup.repository.checkpoints import (
    CHECKPOINT_COMMITS,
    PACK_COMMITS,
    CommitReader,
    newest_state,
    put_checkpoint,
    put_pack,
    read_back,
)
from kafka_backup.repository.commit_flaws import CommitFlaw, commit_flaws
from kafka_backup.repository.documents import (
    Commit,
    Incarnation,
    PartitionRange,
    SegmentEntry,
    Window,
    sha256_of,
)
from kafka_backup.repository.layout import (
    commit_key,
    commits_folder,
    named_segment_key,
    parse_commit_key,
    segment_key,
)
from kafka_backup.repository.log_state import LogState, PartitionState
from kafka_backup.repository.segments import StoredSegment
from kafka_backup.repository.store import ObjectNotFoundError, Store, put_once

_READERS = 8


def _live_start(part: PartitionRange, entry: SegmentEntry) -> int:
    """Where the offsets of a segment begin to count: its first batch may begin in what does not."""
    start = max(part.start, entry.first_offset)
    for span in part.lost:
        if span.start <= start < span.end:
            start = span.end
    return start


class CommitLog:
    """The commits of one incarnation, as they were when the log was opened, and what we appended.

    Opening reads the newest checkpoint and the commits after it, however many came before; these are
    only read when somebody asks for them. Safe for many threads, except that one alone may append.

    Attributes:
        topic, topic_id: whose log it is.
    """

    def __init__(self, store: Store, topic: str, topic_id: str, state: LogState) -> None:
        """Use `open`; this begins at a state that was proved already."""
        self.topic = topic
        self.topic_id = topic_id
        self._store = store
        self._state = state
        self._base = state.number
        self._base_sha256 = state.sha256
        self._tail: list[Commit] = []
        self._tail_bytes: list[bytes] = []
        self._before: list[Commit] | None = [] if state.sha256 is None else None
        self._ranges: dict[int, list[tuple[Commit, PartitionRange]]] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, store: Store, topic: str, topic_id: str, *, known_head: int = -1) -> Self:
        """Open a log; an incarnation without any commit has an empty one.

        Args:
            store: where it is.
            topic: whose log it is.
            topic_id: the incarnation.
            known_head: a commit that is known to exist; opening is quicker with it.

        Raises:
            DamagedError: a commit is missing, unreadable, or breaks the chain. An unreadable newest
                commit is damage too, never "not there": what it makes real would be lost silently.
        """
        log = cls(store, topic, topic_id, newest_state(store, topic, topic_id, known_head=known_head))
        reader = CommitReader()
        for number, data in read_commits(store, topic, topic_id, after=log._base):
            key = commit_key(topic, topic_id, number)
            if data is None:
                raise DamagedError(
                    f"{store.url}/{key} is missing although later commits exist; put it back from a copy of "
                    "the repository"
                )
            commit = reader.read(data, key=f"{store.url}/{key}")
            log._check(commit, number)
            log.take(commit, data)
        return log

    def _check(self, commit: Commit, number: int) -> None:
        flaws = self._flaws(commit, number)
        if (flaw := next(flaws, None)) is not None:
            raise DamagedError(
                f"{self.uri(number)} breaks the commit log: {flaw.detail}; run verify to see everything that is "
                "wrong, and put the objects back from a copy of the repository"
            )

    def _flaws(self, commit: Commit, number: int) -> Iterator[CommitFlaw]:
        return commit_flaws(
            commit,
            topic=self.topic,
            topic_id=self.topic_id,
            number=number,
            previous_sha256=self.head_sha256,
            ends=self._state.ends,
        )

    @property
    def commits(self) -> tuple[Commit, ...]:
        """All commits: commit n is ``commits[n]``. Reads what was not read yet.

        Raises:
            DamagedError: one is missing, unreadable, or breaks the chain.
        """
        with self._lock:
            if self._before is None:
                assert self._base_sha256 is not None
                newest_first = read_back(
                    self._store, self.topic, self.topic_id, last=self._base, sha256=self._base_sha256
                )
                self._before = [read.commit for read in newest_first][::-1]
            return (*self._before, *self._tail)

    @property
    def state(self) -> LogState:
        """What the commits come to; not to be changed."""
        return self._state

    @property
    def head(self) -> int | None:
        """Number of the newest commit; None in an empty log."""
        return None if self._state.sha256 is None else self._state.number

    @property
    def head_sha256(self) -> str | None:
        """SHA-256 of the newest commit's object."""
        return self._state.sha256

    @property
    def began_at(self) -> int:
        """When commit 0 was made, ms; 0 in an empty log."""
        return self._state.began_at

    @property
    def incarnation(self) -> Incarnation | None:
        """The topic as the newest commit knows it; None in an empty log."""
        return self._state.incarnation

    @property
    def partitions(self) -> Sequence[int]:
        """The partitions that were ever captured, ascending."""
        return sorted(self._state.partitions)

    @property
    def compacts(self) -> bool:
        """Whether the topic was ever seen with a cleanup policy that holds ``compact``."""
        return self._state.compacts

    def sha256_of(self, number: int) -> str:
        """SHA-256 of the object of commit `number`; an IndexError if there is none."""
        if not 0 <= number <= self._state.number:
            raise IndexError(f"{self.topic} has no commit {number}")
        if number == self._state.number:
            assert self._state.sha256 is not None
            return self._state.sha256
        if number >= self._base:
            sha256 = self._tail[number - self._base].previous_sha256
            assert sha256 is not None
            return sha256
        return sha256_of(self._store.get(commit_key(self.topic, self.topic_id, number)))

    def uri(self, number: int) -> str:
        """Where the object of commit `number` is."""
        return f"{self._store.url}/{commit_key(self.topic, self.topic_id, number)}"

    def end_of(self, partition: int) -> int | None:
        """The offset where the next capture begins; None if the partition was never captured."""
        known = self._state.partitions.get(partition)
        return None if known is None else known.end

    def state_of(self, partition: int) -> PartitionState | None:
        """What the next capture must know of a partition; None if it was never captured."""
        return self._state.partitions.get(partition)

    def ranges(self, partition: int) -> Sequence[PartitionRange]:
        """What each commit covers of a partition, oldest first. Reads all commits."""
        return [part for _, part in self.ranges_with_commits(partition)]

    def segments(
        self, partition: int, *, until_commit: int | None = None, start: int | None = None
    ) -> list[StoredSegment]:
        """Return the live segments of a partition in offset order, each with the offsets that count.

        Here, and only here, is decided what a partition holds. A segment's first batch may begin
        below its range (log start was inside it) or in offsets that were reported lost, and an
        unclean election may have taken away its end: `StoredSegment.start` and `end` cut all that off.

        Args:
            partition: its number.
            until_commit: as of this commit (inclusive); None means the head. An older state still
                has what a later truncation took away.
            start: only those that reach above this offset; None means `whole_from`: nothing that expired.
        """
        if start is None:
            start = self.whole_from(partition, until_commit=until_commit)
        live: list[StoredSegment] = []
        for commit, part in self.ranges_with_commits(partition, until_commit):
            cut = part.truncated_to
            if cut is not None:
                live = [replace(old, end=min(old.end, cut)) for old in live if old.start < cut]
            live += [self.stored_segment(commit, part, entry) for entry in part.segments]
        return [segment for segment in live if segment.end > start]

    def records(self, partition: int, *, until_commit: int | None = None) -> int:
        """Count the live records of a partition that have not expired; an upper limit where a segment was cut.

        Args:
            partition: its number.
            until_commit: as of this commit (inclusive); None means the head.
        """
        start = self.whole_from(partition, until_commit=until_commit)
        live: dict[int, int] = defaultdict(int)
        for segment in self.segments(partition, until_commit=until_commit, start=start):
            live[segment.commit] += min(segment.entry.records, segment.end - segment.start)
        count = 0
        cut: int | None = None
        for commit, part in reversed(self.ranges_with_commits(partition, until_commit)):
            is_whole = (cut is None or part.end <= cut) and part.start >= start
            count += part.ledger.records if is_whole else live[commit.number]
            if part.truncated_to is not None:
                cut = part.truncated_to if cut is None else min(cut, part.truncated_to)
        return count

    def whole_from(self, partition: int, *, until_commit: int | None = None) -> int:
        """Where a state begins of which nothing has expired: what lies below is promised no more.

        Args:
            partition: its number.
            until_commit: as of this commit (inclusive); None means the head.

        Returns:
            An offset; 0 if nothing of the state has expired.
        """
        expired = self.expired
        if not expired:
            return 0
        gone = [s for s in self.segments(partition, until_commit=until_commit, start=0) if s.key in expired]
        return gone[-1].end if gone else 0

    def is_whole(self, partition: int, *, until_commit: int | None = None) -> bool:
        """Whether everything is there that the broker had of a partition when a state was captured."""
        ranges = self.ranges_with_commits(partition, until_commit)
        return not ranges or self.whole_from(partition, until_commit=until_commit) <= (
            ranges[-1][1].log_start_offset
        )

    @property
    def expired(self) -> frozenset[str]:
        """Keys of all segments that are promised no more. Reads all commits."""
        return self._named(lambda commit: commit.expired)

    @property
    def swept(self) -> frozenset[str]:
        """Keys of all segments that were deleted, or are about to be. Reads all commits."""
        return self._named(lambda commit: commit.swept)

    def _named(self, names: Callable[[Commit], Sequence[str]]) -> frozenset[str]:
        return frozenset(
            named_segment_key(self.topic, self.topic_id, name)
            for commit in self.commits
            if commit.action != "capture"
            for name in names(commit)
        )

    def ranges_with_commits(
        self, partition: int, until_commit: int | None = None
    ) -> Sequence[tuple[Commit, PartitionRange]]:
        """What commits cover of a partition, oldest first, each with its commit. Reads all commits.

        Args:
            partition: its number.
            until_commit: only this commit and those before it; None: all.
        """
        commits = self.commits
        with self._lock:
            if not self._ranges:
                for commit in commits:
                    for part in commit.partitions:
                        self._ranges.setdefault(part.partition, []).append((commit, part))
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
        return self._create(
            Commit(
                number=self._state.number + 1,
                previous_sha256=self.head_sha256,
                nonce=nonce,
                capture_id=capture_id,
                window=window,
                committed_at=committed_at,
                incarnation=incarnation,
                partitions=tuple(partitions),
            )
        )

    def append_expiry(
        self,
        *,
        nonce: str,
        expiry_id: str,
        committed_at: int,
        names: Sequence[str],
        kept_from: int | None,
    ) -> Commit:
        """Promise nothing of some segments any more, in the commit after the head; see `append`.

        Args:
            nonce: random, made once per process.
            expiry_id: the run of expiry.
            committed_at: ms.
            names: of the segments.
            kept_from: states as of this commit and later ones need none of them; None: none is kept.
        """
        return self._create(
            self._no_capture(nonce, expiry_id, committed_at).model_copy(
                update={"action": "expire", "expired": tuple(names), "kept_from": kept_from}
            )
        )

    def append_sweep(self, *, nonce: str, expiry_id: str, committed_at: int, names: Sequence[str]) -> Commit:
        """Name segments that will be deleted, in the commit after the head; see `append`.

        Once this returned, no writer that began before it can make any of them part of a commit.

        Args:
            nonce: random, made once per process.
            expiry_id: the run of expiry.
            committed_at: ms.
            names: of segments that expired, or that no commit names.
        """
        return self._create(
            self._no_capture(nonce, expiry_id, committed_at).model_copy(
                update={"action": "sweep", "swept": tuple(names)}
            )
        )

    def _no_capture(self, nonce: str, expiry_id: str, committed_at: int) -> Commit:
        if self._state.incarnation is None:
            raise ValueError(f"{self.topic} has no commit after which anything could expire")
        return Commit(
            number=self._state.number + 1,
            previous_sha256=self.head_sha256,
            nonce=nonce,
            capture_id=expiry_id,
            window=None,
            committed_at=committed_at,
            incarnation=self._state.incarnation,
            partitions=(),
        )

    def _create(self, commit: Commit) -> Commit:
        number = commit.number
        if (flaw := next(self._flaws(commit, number), None)) is not None:
            raise ValueError(f"commit {number} of {self.topic} does not fit its log: {flaw.detail}")
        data = commit.to_bytes()
        try:
            put_once(self._store, commit_key(self.topic, self.topic_id, number), data)
        except WriterConflictError as error:
            raise WriterConflictError(
                f"another writer committed {number} of {self.topic} meanwhile; nothing of this run is visible in "
                f"it. Make sure that only one run captures {self.topic}, then run again"
            ) from error
        self.take(commit, data)
        self._store_caches(number)
        return commit

    def renew_checkpoint(self) -> None:
        """Store a checkpoint, and packs, if opening this log had to read many commits.

        They are missing where a writer was killed between a commit and its checkpoint, or somebody
        deleted them. Only who may append to the log should call this.
        """
        if len(self._tail) < 2 * CHECKPOINT_COMMITS:
            return
        first = self._base + 1
        for size in PACK_COMMITS:
            while first % size == 0 and first + size <= self._state.number + 1:
                begin = first - self._base - 1
                commits = self._tail_bytes[begin : begin + size]
                put_pack(self._store, self.topic, self.topic_id, last=first + size - 1, commits=commits)
                first += size
        put_checkpoint(self._store, self.topic, self.topic_id, self._state)

    def _store_caches(self, number: int) -> None:
        """After each tenth commit: what lets the next one open the log without reading all commits."""
        size = next((size for size in PACK_COMMITS if (number + 1) % size == 0), None)
        if size is None:
            return
        put_checkpoint(self._store, self.topic, self.topic_id, self._state)
        commits = self._tail_bytes[-size:]
        if len(commits) < size:
            first = number - size + 1
            assert self._base_sha256 is not None
            newest_first = read_back(
                self._store,
                self.topic,
                self.topic_id,
                first=first,
                last=self._base,
                sha256=self._base_sha256,
            )
            commits = [*[read.data for read in newest_first][::-1], *commits]
        put_pack(self._store, self.topic, self.topic_id, last=number, commits=commits)

    def take(self, commit: Commit, data: bytes) -> None:
        """Go on by one commit that the caller has read and proved, without storing anything."""
        with self._lock:
            self._state.take(commit, sha256_of(data))
            self._tail.append(commit)
            self._tail_bytes.append(data)
            self._ranges.clear()


def read_commits(
    store: Store, topic: str, topic_id: str, *, after: int = -1
) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and bytes of every commit object of an incarnation, unchecked, in order.

    A missing one below the last is None. A listing may be stale, so each number is asked for by name,
    and the next one after the last that was listed, until one is not there.

    Args:
        store: where they are.
        topic: whose they are.
        topic_id: the incarnation.
        after: begin with the next number.
    """
    start_after = commit_key(topic, topic_id, after) if after >= 0 else ""
    listed = [
        number
        for info in store.list(commits_folder(topic, topic_id), start_after)
        if (number := parse_commit_key(info.key, topic=topic, topic_id=topic_id)) is not None
    ]
    numbers = range(after + 1, max(listed, default=after) + 1)

    def read(number: int) -> bytes | None:
        try:
            return store.get(commit_key(topic, topic_id, number))
        except ObjectNotFoundError:
            return None

    if len(numbers) <= CHECKPOINT_COMMITS:
        yield from zip(numbers, map(read, numbers), strict=True)
    else:
        with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="commits") as pool:
            yield from zip(numbers, pool.map(read, numbers), strict=True)
    number = numbers.stop
    while (data := read(number)) is not None:
        yield number, data
        number += 1
