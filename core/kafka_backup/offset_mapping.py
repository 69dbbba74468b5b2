"""Where a source offset went in a restored topic, and back; and the positions of groups that it moves.

The map is built from runs of consecutive source offsets that landed on consecutive target offsets,
so it needs no headers in the data and stays small: a topic without gaps is one run.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kafka_backup.errors import DamagedError
from kafka_backup.repository.documents import Count, Milliseconds, OffsetSpan, Part, TopicId, TopicName
from kafka_backup.repository.group_documents import GroupSnapshot, LeaderEpochOrNone
from kafka_backup.repository.restore_documents import OffsetMapDocument


class OffsetMap:
    """Source offsets of one partition to target offsets: total, monotonic, and invertible on records.

    A committed position is "the next record to read", so a source offset that was not restored (a
    gap, an aborted record, a record outside the time bounds) maps to the next restored record, and
    one at or past the last restored record's successor maps to the target's end.

    Attributes:
        missing: source offsets ``[start, end)`` that were left out because they are damaged.
    """

    def __init__(self, *, target_start: int = 0) -> None:
        """Start an empty map whose first record will be at `target_start` of the target."""
        self._sources = array("q")
        self._targets = array("q")
        self._lengths = array("q")
        self._target_end = target_start
        self.missing: Sequence[tuple[int, int]] = ()

    @property
    def records(self) -> int:
        """Number of restored records."""
        return sum(self._lengths)

    @property
    def target_end(self) -> int:
        """Exclusive end of the target range."""
        return self._target_end

    @property
    def source_end(self) -> int:
        """One past the last restored source offset; 0 if nothing was restored."""
        return self._sources[-1] + self._lengths[-1] if self._sources else 0

    @property
    def runs(self) -> Sequence[tuple[int, int, int]]:
        """The runs as (first source offset, first target offset, length)."""
        return list(zip(self._sources, self._targets, self._lengths, strict=True))

    def add(self, source_offset: int, count: int) -> None:
        """Append `count` records that begin at `source_offset` and follow the last ones in the target.

        Raises:
            DamagedError: the offsets do not ascend, so the records are out of order or doubled.
        """
        end = self.source_end
        if source_offset < end or count <= 0:
            raise DamagedError(f"source offset {source_offset} ({count} records) does not follow {end - 1}")
        if source_offset == end and self._sources:
            self._lengths[-1] += count
        else:
            self._sources.append(source_offset)
            self._targets.append(self._target_end)
            self._lengths.append(count)
        self._target_end += count

    def to_target(self, source_offset: int) -> int:
        """Return the target position that reads on where `source_offset` would have."""
        i = bisect_right(self._sources, source_offset) - 1
        if i >= 0 and source_offset - self._sources[i] < self._lengths[i]:
            return self._targets[i] + source_offset - self._sources[i]
        return self._targets[i + 1] if i + 1 < len(self._targets) else self._target_end

    def to_source(self, target_offset: int) -> int | None:
        """Return the source offset of the record at `target_offset`, None if no record is there."""
        i = bisect_right(self._targets, target_offset) - 1
        if i >= 0 and target_offset - self._targets[i] < self._lengths[i]:
            return self._sources[i] + target_offset - self._targets[i]
        return None

    def is_missing(self, source_offset: int) -> bool:
        """Whether the record at `source_offset`, if there was one, was left out because it is damaged."""
        return any(start <= source_offset < end for start, end in self.missing)

    def to_document(self, *, restore_id: str, source: str, target: str, partition: int) -> OffsetMapDocument:
        """Return the map as it is stored."""
        return OffsetMapDocument(
            restore_id=restore_id,
            source=source,
            target=target,
            partition=partition,
            source_end=self.source_end,
            target_end=self._target_end,
            source_runs=tuple(self._sources),
            target_runs=tuple(self._targets),
            lengths=tuple(self._lengths),
            missing=tuple(OffsetSpan(start=start, end=end) for start, end in self.missing),
        )

    @classmethod
    def from_document(cls, document: OffsetMapDocument) -> OffsetMap:
        """Read a stored map.

        Raises:
            DamagedError: the runs contradict each other.
        """
        start = document.target_runs[0] if document.target_runs else document.target_end
        result = cls(target_start=start)
        try:
            for source, target, length in zip(
                document.source_runs, document.target_runs, document.lengths, strict=True
            ):
                if target != result.target_end:
                    raise DamagedError(f"target offset {target} does not follow {result.target_end - 1}")
                result.add(source, length)
        except ValueError as error:
            raise DamagedError("the lists of runs have different lengths") from error
        if (result.source_end, result.target_end) != (document.source_end, document.target_end):
            raise DamagedError("the ends do not match the runs")
        result.missing = [(span.start, span.end) for span in document.missing]
        return result


class OffsetState(Part):
    """The position of one group on one partition at one time; `model_dump_json` keeps all of it.

    Attributes:
        topic_id: the incarnation; None where it is not known.
        committed_offset: the next record to read.
        timestamp: when that was so, ms.
    """

    group_id: str
    topic: TopicName
    partition: Count
    committed_offset: Count
    timestamp: Milliseconds
    topic_id: TopicId | None = None
    leader_epoch: LeaderEpochOrNone = -1
    metadata: str = ""


def states_of(snapshot: GroupSnapshot) -> list[OffsetState]:
    """Return every position in a group snapshot."""
    return [
        OffsetState(
            group_id=group.group,
            topic=position.topic,
            partition=position.partition,
            committed_offset=position.offset,
            timestamp=snapshot.taken_at,
            topic_id=position.topic_id,
            leader_epoch=position.leader_epoch,
            metadata=position.metadata,
        )
        for group in snapshot.groups
        for position in group.positions
    ]


def deduplicate_by_group(states: Iterable[OffsetState]) -> list[OffsetState]:
    """Keep the latest state of each group on each partition, in the order of their first mention.

    Of two at the same time the one that is farther on is the later: without a rewind a position only
    grows.
    """
    latest: dict[tuple[str, str, int], OffsetState] = {}
    for state in states:
        key = state.group_id, state.topic, state.partition
        known = latest.get(key)
        if known is None or _age(known) <= _age(state):
            latest[key] = state
    return list(latest.values())


def _age(state: OffsetState) -> tuple[int, int]:
    return state.timestamp, state.committed_offset


def group_by_group_id(states: Iterable[OffsetState]) -> dict[str, list[OffsetState]]:
    """Return the states of each group, in the order given."""
    grouped: dict[str, list[OffsetState]] = {}
    for state in states:
        grouped.setdefault(state.group_id, []).append(state)
    return grouped


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredPartition:
    """What a restore did with one source partition.

    Attributes:
        target: the topic that it went to.
        offsets: where each record went.
        captured_end: end of the captured offsets, exclusive: a position beyond it is of records that
            were never saved.
    """

    target: str
    offsets: OffsetMap
    captured_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A position translated through an offset map.

    Attributes:
        state: the position in the source.
        target, target_offset: where its group reads on.
        remaining: restored records that are still to be read from there.
        is_beyond: the position lay beyond the captured end; it was put to the end of the target.
    """

    state: OffsetState
    target: str
    target_offset: int
    remaining: int
    is_beyond: bool


def translate(
    states: Iterable[OffsetState], restored: Mapping[tuple[str, int], RestoredPartition]
) -> tuple[list[Move], list[OffsetState]]:
    """Translate positions to where a restore put the records that they mean.

    Args:
        states: positions in the source.
        restored: each restored partition by source topic and number.

    Returns:
        The moves, and the positions on partitions that were not restored.
    """
    moves, left = [], []
    for state in states:
        part = restored.get((state.topic, state.partition))
        if part is None:
            left.append(state)
            continue
        offset = part.offsets.to_target(state.committed_offset)
        moves.append(
            Move(
                state=state,
                target=part.target,
                target_offset=offset,
                remaining=part.offsets.target_end - offset,
                is_beyond=state.committed_offset > part.captured_end,
            )
        )
    return moves, left
