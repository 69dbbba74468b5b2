"""A cluster in a few dictionaries, captures of it by the engine's own writers, and what must be restorable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from kafka_backup.errors import WriterConflictError
from kafka_backup.records.codec import Record, decode_batch, encode_batch
from kafka_backup.repository import layout
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import (
    Capture,
    CapturedTopic,
    LeaderEpoch,
    Ledger,
    LostSpan,
    PartitionRange,
    SegmentEntry,
)
from kafka_backup.repository.repository import Repository
from kafka_backup.repository.segments import SegmentReader
from kafka_backup.repository.store import Store
from kafka_backup.times import time_in_id
from tests.unit.repositories import CLUSTER, incarnation, write_segment

DAY = 86_400_000
EPOCH = 1_700_000_000_000
Records = Mapping[int, bytes]


@dataclass
class Log:
    """A partition of the cluster: the records that it holds, by offset."""

    records: dict[int, bytes] = field(default_factory=dict)
    log_start: int = 0
    end: int = 0
    epoch: int = 0
    cuts: list[tuple[int, int]] = field(default_factory=list)

    def produce(self, count: int) -> None:
        for _ in range(count):
            self.records[self.end] = b"epoch %d offset %d" % (self.epoch, self.end)
            self.end += 1

    def delete_below(self, offset: int) -> None:
        """DeleteRecords, or retention."""
        self.log_start = max(self.log_start, min(offset, self.end))
        self.records = {o: value for o, value in self.records.items() if o >= self.log_start}

    def cut_back(self, offset: int) -> None:
        """An unclean leader election."""
        self.end = max(self.log_start, min(self.end, offset))
        self.records = {o: value for o, value in self.records.items() if o < self.end}
        self.epoch += 1
        self.cuts.append((self.epoch, self.end))

    def cut_since(self, epoch: int) -> int | None:
        """What an engine that knows epochs up to this one finds out about the log's divergence."""
        return min((offset for each, offset in self.cuts if each > epoch), default=None)


@dataclass
class Topic:
    """An incarnation of a topic."""

    name: str
    topic_id: str
    logs: dict[int, Log] = field(default_factory=lambda: {0: Log(), 1: Log()})

    def state(self) -> dict[int, dict[int, bytes]]:
        return {number: dict(log.records) for number, log in self.logs.items()}


@dataclass
class Cluster:
    """Topics by name, and each state that was captured whole: by capture id, topic and partition."""

    topics: dict[str, Topic] = field(default_factory=dict)
    captured: dict[str, dict[str, dict[int, dict[int, bytes]]]] = field(default_factory=dict)
    now: int = EPOCH
    _made: int = 0

    def create(self, name: str) -> Topic:
        """Create a topic, or delete it and create it again."""
        self._made += 1
        self.topics[name] = Topic(name, f"{self._made:022}")
        return self.topics[name]


def capture(
    store: Store,
    cluster: Cluster,
    *topics: str,
    pieces: int = 1,
    ends: bool = True,
    commits: bool = True,
    capture_id: str | None = None,
) -> str:
    """Capture topics in the order in which the engine does: heads, segments, commits, the capture.

    Args:
        store: of the repository.
        cluster: what is captured.
        topics: their names; none means all.
        pieces: segments, and commits, that what is new of a topic becomes.
        ends: whether the capture object is written; without, the run was killed just before.
        commits: whether the last commits are written; without, the run was killed before.
        capture_id: of the capture.

    Raises:
        WriterConflictError: somebody else committed meanwhile.
    """
    cluster.now += 1000
    started_at = cluster.now
    capture_id = capture_id or f"{time_in_id(started_at)}-{len(cluster.captured):08x}"
    wanted = [cluster.topics[name] for name in topics or sorted(cluster.topics)]
    states = {topic.name: topic.state() for topic in wanted}
    repository = Repository.open(store, cluster_id=CLUSTER, create=True)
    logs = repository.logs_to_append([(topic.name, topic.topic_id) for topic in wanted])
    bounds = {
        topic.name: {number: (log.log_start, log.end) for number, log in topic.logs.items()}
        for topic in wanted
    }
    captured = []
    for topic, log in zip(wanted, logs, strict=True):
        if not _is_unchanged(log, topic, bounds[topic.name]):
            epochs = {number: _epoch(log, number) for number in topic.logs}
            for piece in range(pieces):
                is_last = piece == pieces - 1
                parts = [
                    _range(
                        store,
                        log,
                        topic,
                        number,
                        states[topic.name],
                        bounds[topic.name],
                        capture_id,
                        piece,
                        pieces,
                        topic.logs[number].cut_since(epochs[number]) if piece == 0 else None,
                    )
                    for number in topic.logs
                ]
                if not is_last or commits:
                    log.append(
                        nonce=capture_id,
                        capture_id=capture_id,
                        window=None,
                        committed_at=started_at,
                        incarnation=incarnation(topic=topic.name, topic_id=topic.topic_id),
                        partitions=parts,
                    )
        if log.head is not None and log.head_sha256 is not None:
            captured.append(
                CapturedTopic(
                    topic=topic.name,
                    topic_id=topic.topic_id,
                    head=log.head,
                    head_sha256=log.head_sha256,
                    changed=True,
                )
            )
    if ends and commits:
        cluster.captured[capture_id] = states
        repository.put_capture(
            Capture(
                capture_id=capture_id,
                nonce=capture_id,
                started_at=started_at,
                ended_at=started_at + 1,
                window=None,
                status="complete",
                topics=tuple(captured),
            )
        )
    return capture_id


def _is_unchanged(log: CommitLog, topic: Topic, bounds: Mapping[int, tuple[int, int]]) -> bool:
    for number, bound in bounds.items():
        known = log.state_of(number)
        if known is None or (known.log_start_offset, known.end) != bound:
            return False
        if known.leader_epoch != topic.logs[number].epoch:
            return False
    return True


def _epoch(log: CommitLog, partition: int) -> int:
    known = log.state_of(partition)
    return -1 if known is None else known.leader_epoch


def _range(
    store: Store,
    log: CommitLog,
    topic: Topic,
    number: int,
    state: Mapping[int, Records],
    bounds: Mapping[int, tuple[int, int]],
    capture_id: str,
    piece: int,
    pieces: int,
    cut: int | None,
) -> PartitionRange:
    """Piece `piece` of what is new in a partition: what was there when the capture began."""
    log_start, end = bounds[number]
    known = log.end_of(number)
    start = log_start if known is None else known
    truncated_to: int | None = None
    if known is not None and cut is not None and cut < known:
        start = truncated_to = cut
    lost = [LostSpan(start=start, end=log_start, reason="retention")] if start < log_start else []
    first = max(start, log_start)
    stop = end if piece == pieces - 1 else first + (end - first) // pieces
    entries: list[SegmentEntry] = []
    if stop > first:
        data = encode_batch(
            [Record(offset=o, timestamp=o, key=None, value=state[number][o]) for o in range(first, stop)]
        )
        entries.append(
            write_segment(
                store,
                data,
                topic=topic.name,
                topic_id=topic.topic_id,
                partition=number,
                capture_id=capture_id,
                index=piece,
            )
        )
    return PartitionRange(
        partition=number,
        start=start,
        end=max(stop, first),
        log_start_offset=log_start,
        last_stable_offset=end,
        high_watermark=end,
        leader_epoch=topic.logs[number].epoch,
        leader_epochs=(LeaderEpoch(epoch=topic.logs[number].epoch, start_offset=first),),
        ledger=Ledger(records=max(0, stop - first), lost=first - start),
        lost=tuple(lost),
        truncated_to=truncated_to,
        segments=tuple(entries),
    )


def read(store: Store, log: CommitLog, partition: int, *, head: int, start: int) -> dict[int, bytes]:
    """What a restore as of a commit reads from an offset on."""
    found: dict[int, bytes] = {}
    for segment in log.segments(partition, until_commit=head, start=start):
        for data, _ in SegmentReader(store, segment).batches(check_crc=True):
            for record in decode_batch(data):
                if segment.start <= record.offset < segment.end:
                    assert record.value is not None
                    found[record.offset] = record.value
    return found


class _Held:
    """What a repository holds; each of its logs is opened once."""

    def __init__(self, store: Store) -> None:
        repository = Repository.open(store, cluster_id=None, create=False)
        self.log_of: Callable[[str, str], CommitLog] = cache(repository.commit_log)
        self.captures = repository.captures()

    def whole(self) -> Iterator[tuple[str, CapturedTopic, bool]]:
        """Each capture and topic, and whether it can be restored: not a record of it has expired."""
        for capture in self.captures:
            for entry in capture.topics:
                log = self.log_of(entry.topic, entry.topic_id)
                whole = all(log.is_whole(partition, until_commit=entry.head) for partition in log.partitions)
                yield capture.capture_id, entry, whole


def whole_captures(store: Store) -> Iterator[tuple[str, str, bool]]:
    """Each capture and topic, and whether it can be restored."""
    return ((capture_id, entry.topic, is_whole) for capture_id, entry, is_whole in _Held(store).whole())


def check_captures(store: Store, cluster: Cluster, *, whole: Sequence[str] = ()) -> None:
    """Every capture that says that it is whole gives back exactly what the cluster held.

    Args:
        store: of the repository.
        cluster: what was captured.
        whole: ids of captures that must be whole.
    """
    held = _Held(store)
    told = list(held.whole())
    for capture_id in whole:
        assert all(is_whole for each, _, is_whole in told if each == capture_id), capture_id
    for capture_id, entry, is_whole in told:
        if not is_whole:
            continue
        log = held.log_of(entry.topic, entry.topic_id)
        for partition, records in cluster.captured[capture_id][entry.topic].items():
            start = log.whole_from(partition, until_commit=entry.head)
            found = read(store, log, partition, head=entry.head, start=start)
            # What the topic held no more may be there all the same, until it expires.
            assert {o: found.get(o) for o in records} == records, (capture_id, entry.topic, partition)
            assert not records or all(o < min(records) for o in found.keys() - records.keys())


def segment_keys(store: Store) -> set[str]:
    """All segment objects."""
    return {info.key for info in store.list(layout.TOPICS) if ".log" in info.key}


def is_conflict(error: BaseException) -> bool:
    """Whether a writer was told to stop."""
    return isinstance(error, WriterConflictError)
