"""Where consumer groups were at a time in the past, from the captured log of their commits.

A position is the last commit of its key in ``__consumer_offsets`` up to that time, as the group
coordinator replays them (``OffsetMetadataManager.replay``): a transactional commit counts from its
COMMIT marker on, and then only if no later commit stands in the log already; a tombstone ends a position
and whatever is pending of it. Whatever may have been in the log and is not in the repository any more
(compaction before a capture, losses, expiry) is a doubt about the position, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import ConfigurationError, DamagedError
from kafka_backup.kafka.coordinators import partition_for
from kafka_backup.kafka.last_commits import OFFSETS_TOPIC
from kafka_backup.offset_mapping import OffsetState
from kafka_backup.progress import StopToken
from kafka_backup.records.batch import BatchHeader
from kafka_backup.records.codec import COMMIT, decode_batch, read_control_type
from kafka_backup.records.offset_commits import (
    OffsetCommitKey,
    parse_offset_commit_key,
    parse_offset_commit_value,
)
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Capture, Commit, PartitionRange
from kafka_backup.repository.group_documents import GroupSnapshot
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.segments import SegmentReader
from kafka_backup.selection import FilterKind, GroupSelection
from kafka_backup.times import format_time

_DELETE_RETENTION_MS = 86_400_000
"""Kafka's default of ``delete.retention.ms``: how long a tombstone stays at least."""
Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoricPosition:
    """A position at a time in the past.

    Attributes:
        state: the position; its timestamp is that of the commit.
        doubt: why it may have been another one; None if it was this one.
    """

    state: OffsetState
    doubt: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupHistory:
    """Where groups were at `at_ms`.

    Attributes:
        capture_id: the capture that holds the log up to then.
        groups: positions by group; a group without any did not exist, or had none.
        topics: topic id of each captured topic, where it was the same before and after that time.
        doubts: why groups or positions may be missing altogether.
    """

    at_ms: int
    capture_id: str
    groups: Mapping[str, Sequence[HistoricPosition]]
    topics: Mapping[str, str]
    doubts: Sequence[str]


def history_at(
    at_ms: int, selection: GroupSelection, *, repository: Repository, stop: StopToken
) -> GroupHistory:
    """Replay the captured commits up to a time; see `Groups.history`.

    Raises:
        ConfigurationError: ``__consumer_offsets`` was not captured, or not up to that time.
        DamagedError: a segment is not what its commit says.
    """
    captures = repository.captures()
    capture, log, head = _holder(at_ms, captures, repository)
    partition_count = log.commits[head].incarnation.partition_count
    topics = _topic_ids(at_ms, captures)
    replays = []
    for partition in _partitions(selection, partition_count):
        replay = _Replay(at_ms, selection, partition)
        replay.run(log, head, repository, stop)
        replays.append(replay)
    base = None
    if any(replay.is_cut for replay in replays):
        base = _snapshot_before(at_ms, GroupStore(repository.store))
    groups: dict[str, list[HistoricPosition]] = {}
    doubts: list[str] = []
    for replay in replays:
        for position in replay.positions(topics, base, partition_count):
            groups.setdefault(position.state.group_id, []).append(position)
        doubts += replay.doubts(base)
    return GroupHistory(
        at_ms=at_ms,
        capture_id=capture.capture_id,
        groups={
            group: sorted(found, key=lambda p: (p.state.topic, p.state.partition))
            for group, found in sorted(groups.items())
        },
        topics=topics,
        doubts=doubts,
    )


def _holder(
    at_ms: int, captures: Sequence[Capture], repository: Repository
) -> tuple[Capture, CommitLog, int]:
    """The oldest capture that began after a time and holds the commits up to then."""
    newest = None
    for capture in captures:
        entry = next((topic for topic in capture.topics if topic.topic == OFFSETS_TOPIC), None)
        if entry is None or any(failure.topic == OFFSETS_TOPIC for failure in capture.failures):
            continue
        newest = capture
        if capture.started_at > at_ms:  # in the same millisecond something may have been committed after it
            log = repository.commit_log(OFFSETS_TOPIC, entry.topic_id)
            return capture, log, entry.head
    if newest is None:
        raise ConfigurationError(
            f"{OFFSETS_TOPIC} is not in the repository, and with it the history of positions; capture it by name "
            f"(backup.topics: [..., {OFFSETS_TOPIC}]), or use a group snapshot (groups list)"
        )
    raise ConfigurationError(
        f"the history of positions reaches to {format_time(newest.started_at)}, when capture {newest.capture_id} "
        f"began, and not to {format_time(at_ms)}; run a capture of {OFFSETS_TOPIC}"
    )


def _topic_ids(at_ms: int, captures: Sequence[Capture]) -> dict[str, str]:
    """The id that each captured topic had both in the last capture before and the first one after a time."""
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for capture in captures:
        for topic in capture.topics:
            if capture.started_at <= at_ms:
                before[topic.topic] = topic.topic_id
            if capture.started_at >= at_ms:
                after.setdefault(topic.topic, topic.topic_id)
    # Before its first capture a topic was what it was then, unless it was deleted and made again unseen.
    return {name: topic_id for name, topic_id in after.items() if before.get(name, topic_id) == topic_id}


def _partitions(selection: GroupSelection, count: int) -> Sequence[int]:
    if all(each.kind is FilterKind.EXACT for each in selection.include):
        return sorted({partition_for(each.text, count) for each in selection.include})
    return range(count)


def _snapshot_before(at_ms: int, store: GroupStore) -> GroupSnapshot | None:
    for snapshot_id in reversed(store.snapshot_ids()):
        snapshot = store.snapshot(snapshot_id)
        if snapshot.ended_at <= at_ms:
            return snapshot
    return None


@dataclass(slots=True)
class _Last:
    """A commit of a key.

    Attributes:
        offset: of its record, and the number of the captured range that holds it.
        state: the position; None: a tombstone.
        gap_at: last offset before it, in the same range, that the cleaner may have taken; -1: none.
        is_followed: another commit of the key stands in the log after our time.
    """

    offset: int
    range: int
    state: OffsetState | None
    gap_at: int
    is_followed: bool = False
    doubt: str | None = None


_NEVER = _Last(offset=-1, range=-1, state=None, gap_at=-1)


class _Replay:
    """The commits of one partition of the offsets topic up to a time, and what follows them."""

    def __init__(self, at_ms: int, selection: GroupSelection, partition: int) -> None:
        self._at_ms = at_ms
        self._selection = selection
        self._partition = partition
        self._last: dict[Key, _Last] = {}
        self._pending: dict[int, dict[Key, _Last]] = {}
        self._followed: set[Key] = set()
        self._doubts: list[str] = []
        self._is_over = False
        self._first_time: int | None = None
        self._time = -(2**63)
        self._range = 0
        self._gap_at = -1
        self._is_paused = False
        self._pauses: set[int] = set()
        self.is_cut = False

    def run(self, log: CommitLog, head: int, repository: Repository, stop: StopToken) -> None:
        """Read the partition as of commit `head`."""
        ranges = log.ranges_with_commits(self._partition, head)
        segments = log.segments(self._partition, until_commit=head)
        self.is_cut = log.whole_from(self._partition, until_commit=head) > 0
        for index, (commit, part) in enumerate(ranges):
            self._range, self._gap_at = index, -1
            self._is_paused = index == 0 or _outlives_tombstones(ranges[index - 1][0], commit)
            position = part.start
            for segment in (each for each in segments if each.commit == commit.number):
                for data, header in SegmentReader(repository.store, segment).batches():
                    stop.check()
                    if header.last_offset < segment.start or header.base_offset >= segment.end:
                        continue
                    self._note_gap(part, position, header.base_offset)
                    self._take(part, data, header)
                    position = header.next_offset
            self._note_gap(part, position, part.end)
            if index in self._pauses and commit.committed_at > self._at_ms:
                self._doubts.append(
                    f"groups that are not shown may have had positions: commits and the tombstones after them were "
                    f"compacted away in {OFFSETS_TOPIC} [{self._partition}] before capture {commit.capture_id}"
                )
            self._doubts += [
                f"{OFFSETS_TOPIC} [{self._partition}]: offsets [{span.start}, {span.end}) are lost ({span.reason})"
                for span in part.lost
            ]
        self._close()
        if ranges and self._time <= self._at_ms:
            _refuse_open_transaction(self._partition, ranges[-1][1])

    def _note_gap(self, part: PartitionRange, start: int, end: int) -> None:
        """Offsets are missing that the cleaner may have taken, from a time that is not after ours."""
        if start < end and part.ledger.compacted and not self._is_over:
            self._gap_at = max(self._gap_at, start)
            if self._is_paused:
                self._pauses.add(self._range)  # of keys of an earlier range, so the first does no harm

    def _take(self, part: PartitionRange, data: memoryview, header: BatchHeader) -> None:
        if header.is_control:
            for record in decode_batch(data):
                self._tick(record.timestamp)
            self._end_transaction(header.producer_id, committed=read_control_type(data, 0, header) == COMMIT)
            return
        producer = header.producer_id if header.is_transactional else None
        expected = header.base_offset
        for record in decode_batch(data):
            self._note_gap(part, expected, record.offset)
            expected = record.offset + 1
            self._tick(record.timestamp)
            key = parse_offset_commit_key(record.key)
            if key is not None and record.offset >= part.start and self._selection.includes(key.group):
                state = None if record.value is None else _state(key, record.value, record.timestamp)
                self._take_commit(
                    (key.group, key.topic, key.partition),
                    _Last(offset=record.offset, range=self._range, state=state, gap_at=self._gap_at),
                    producer,
                )
        self._note_gap(part, expected, header.next_offset)

    def _tick(self, timestamp: int) -> None:
        """The coordinator's clock: the first record that is later than our time ends what counts."""
        self._first_time = timestamp if self._first_time is None else self._first_time
        self._time = max(self._time, timestamp)
        self._is_over = self._is_over or timestamp > self._at_ms

    def _take_commit(self, key: Key, commit: _Last, producer: int | None) -> None:
        if self._is_over:
            if key not in self._followed:
                self._followed.add(key)
                self._follow(key, commit)
        elif producer is not None:
            self._pending.setdefault(producer, {})[key] = commit
        else:
            self._last[key] = commit
            if commit.state is None:
                for pending in self._pending.values():
                    pending.pop(key, None)

    def _end_transaction(self, producer: int, *, committed: bool) -> None:
        if self._is_over:
            return
        for key, commit in self._pending.pop(producer, {}).items():
            if committed and self._last.get(key, _NEVER).offset < commit.offset:
                self._last[key] = commit

    def _follow(self, key: Key, commit: _Last) -> None:
        """What the cleaner took before a capture, a later commit of the same key in that range has replaced.

        So between the last commit that counts and the next one in the log, there may have been others, if
        offsets are missing there; and nowhere else.
        """
        known = self._last.get(key, _NEVER)
        if commit.gap_at <= known.offset:
            return
        doubt = (
            f"offset {commit.gap_at} of {OFFSETS_TOPIC} [{self._partition}] was compacted away before it could be "
            "captured, and may have been a later commit"
        )
        if known.state is None:
            self._doubts.append(f"group {key[0]!r}, {key[1]} [{key[2]}] may have had a position: {doubt}")
        else:
            known.doubt = doubt

    def _close(self) -> None:
        """What is still pending came to its end after our time."""
        for pending in self._pending.values():
            for key, commit in pending.items():
                if self._last.get(key, _NEVER).offset < commit.offset:
                    self._follow(key, commit)

    def positions(
        self, topics: Mapping[str, str], base: GroupSnapshot | None, partition_count: int
    ) -> Iterator[HistoricPosition]:
        """Yield where the groups of this partition were."""
        for (_, topic, _), last in self._last.items():
            if last.state is None:
                continue
            state = last.state
            if state.topic_id is None:
                state = state.model_copy(update={"topic_id": topics.get(topic)})
            doubt = last.doubt
            if doubt is None and any(number > last.range for number in self._pauses):
                doubt = (
                    f"captures of {OFFSETS_TOPIC} were further apart than its delete.retention.ms, so that the end of "
                    "this position may have been compacted away between them"
                )
            yield HistoricPosition(state=state, doubt=doubt)
        if self.is_cut and base is not None:
            yield from self._from_snapshot(base, partition_count)

    def _from_snapshot(self, base: GroupSnapshot, partition_count: int) -> Iterator[HistoricPosition]:
        """Positions whose commits have expired: they stand in the group snapshots still."""
        doubt = None
        if self._first_time is None or self._first_time > base.taken_at:
            doubt = (
                f"commits between group snapshot {base.snapshot_id} and what is left of the log have expired"
            )
        for group in base.groups:
            if (
                not self._selection.includes(group.group)
                or partition_for(group.group, partition_count) != self._partition
            ):
                continue
            if group.status == "failed":
                self._doubts.append(
                    f"group {group.group!r} could not be read in group snapshot {base.snapshot_id}"
                )
            for position in group.positions:
                if (group.group, position.topic, position.partition) not in self._last:
                    yield HistoricPosition(
                        state=OffsetState(
                            group_id=group.group,
                            topic=position.topic,
                            partition=position.partition,
                            committed_offset=position.offset,
                            timestamp=base.taken_at,
                            topic_id=position.topic_id,
                            leader_epoch=position.leader_epoch,
                            metadata=position.metadata,
                        ),
                        doubt=doubt,
                    )

    def doubts(self, base: GroupSnapshot | None) -> Sequence[str]:
        """Why positions may be missing; asked after `positions`."""
        if self.is_cut and base is None:
            self._doubts.append(
                f"the beginning of {OFFSETS_TOPIC} [{self._partition}] has expired, and no group snapshot is old enough"
            )
        return self._doubts


def _outlives_tombstones(before: Commit, commit: Commit) -> bool:
    """Whether a tombstone could come and go between two captures."""
    setting = commit.incarnation.configuration.get("delete.retention.ms")
    kept = int(setting.value) if setting is not None and setting.value else _DELETE_RETENTION_MS
    return commit.committed_at - before.committed_at > kept


def _refuse_open_transaction(partition: int, part: PartitionRange) -> None:
    if part.last_stable_offset < part.high_watermark:
        raise ConfigurationError(
            f"{OFFSETS_TOPIC} [{partition}]: a transaction was open when the log was captured, so that what follows "
            f"offset {part.last_stable_offset} is not in the repository yet; capture it again"
        )


def _state(key: OffsetCommitKey, value: bytes, timestamp: int) -> OffsetState:
    commit = parse_offset_commit_value(value)
    if commit.offset < 0:
        raise DamagedError(
            f"group {key.group!r}, {key.topic} [{key.partition}]: the committed offset {commit.offset} is no position"
        )
    return OffsetState(
        group_id=key.group,
        topic=key.topic,
        partition=key.partition,
        committed_offset=commit.offset,
        timestamp=timestamp,
        topic_id=commit.topic_id,
        leader_epoch=commit.leader_epoch,
        metadata=commit.metadata,
    )
