"""The last commits before a group coordinator took over, from the log that it took over.

A coordinator shows what lies below the high watermark. Kafka 4 looks at it while it loads, and is told of
changes only when it has loaded (``CoordinatorLoaderImpl``, ``CoordinatorRuntime``): what is replicated in
between is shown to nobody until the next write to that partition of the offsets topic. Those commits are
acknowledged, and they are in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kafka_backup.kafka.cluster import Cluster, Partition
from kafka_backup.kafka.fetch import PartitionFetcher
from kafka_backup.records.batch import BatchHeader
from kafka_backup.records.codec import COMMIT, decode_batch, read_control_type
from kafka_backup.records.offset_commits import (
    OffsetCommitValue,
    parse_group_key,
    parse_offset_commit_key,
    parse_offset_commit_value,
)

OFFSETS_TOPIC = "__consumer_offsets"
_SPAN_MS = 120_000
"""How far back is read: a replica whose high watermark is older than replica.lag.time.max.ms (30 s by default)
is not elected, and what it has on disk is renewed every 5 s."""
_LEAST = 1000
"""Offsets that are read at least, whatever the clocks said."""
_GROWTH = 8
_PATIENCE_SECONDS = 5.0

Positions = Mapping[Partition, OffsetCommitValue | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LastCommits:
    """What the end of one partition of the offsets topic says.

    Attributes:
        positions: by group, the last commit of each position that is named there; None: it was deleted.
        pending: by group, positions with a transactional commit that has not come to its end.
        types: type of each group of which there is more than commits: it has, or had, members.
    """

    positions: Mapping[str, Positions]
    pending: Mapping[str, frozenset[Partition]]
    types: Mapping[str, str]


def read_last_commits(
    cluster: Cluster, topic_id: str, partition: int, *, log_start: int, end: int
) -> LastCommits:
    """Read the commits of the last minutes before an offset, by the clock of those who took them.

    Args:
        cluster: where.
        topic_id: of the offsets topic.
        partition: its number.
        log_start: its first offset.
        end: where to stop; the high watermark, or below.

    Raises:
        AuthorizationError: the right READ on the offsets topic is missing.
        UnreachableError: the partition cannot be read now.
    """
    size = _LEAST
    while True:
        start = max(log_start, end - size)
        replay = _Replay()
        fetcher = PartitionFetcher(
            cluster,
            OFFSETS_TOPIC,
            topic_id,
            partition,
            start=start,
            end=end,
            isolation="read_uncommitted",
            retry_seconds=_PATIENCE_SECONDS,
            check_stop=cluster.check_stop,
        )
        with fetcher:
            for fetched in fetcher:
                for position, header in fetched.batches:
                    if header.base_offset < end:
                        replay.take(fetched.records[position : position + header.size], header)
        if start == log_start or replay.span_ms >= _SPAN_MS:
            return replay.result()
        size *= _GROWTH


class _Replay:
    """Takes the records as a coordinator does (``OffsetMetadataManager.replay``)."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, Partition], tuple[int, OffsetCommitValue | None]] = {}
        self._pending: dict[int, dict[tuple[str, Partition], tuple[int, OffsetCommitValue | None]]] = {}
        self._types: dict[str, str] = {}
        self._times: tuple[int, int] | None = None

    @property
    def span_ms(self) -> int:
        """From the first batch's time to the latest."""
        return 0 if self._times is None else self._times[1] - self._times[0]

    def take(self, data: memoryview, header: BatchHeader) -> None:
        first, last = self._times or (header.max_timestamp, header.max_timestamp)
        self._times = first, max(last, header.max_timestamp)
        if header.is_control:
            self._end_transaction(header.producer_id, committed=read_control_type(data, 0, header) == COMMIT)
            return
        for record in decode_batch(data):
            if (of_group := parse_group_key(record.key)) is not None:
                self._types.pop(of_group.group, None)
                if record.value is not None:
                    self._types[of_group.group] = of_group.type
            key = parse_offset_commit_key(record.key)
            if key is None:
                continue
            value = None if record.value is None else parse_offset_commit_value(record.value)
            commit = (key.group, (key.topic, key.partition)), (record.offset, value)
            self._take_commit(*commit, header.producer_id if header.is_transactional else None)

    def _take_commit(
        self,
        key: tuple[str, Partition],
        commit: tuple[int, OffsetCommitValue | None],
        producer: int | None,
    ) -> None:
        if producer is not None:
            self._pending.setdefault(producer, {})[key] = commit
            return
        self._last[key] = commit
        if commit[1] is None:
            for pending in self._pending.values():
                pending.pop(key, None)

    def _end_transaction(self, producer: int, *, committed: bool) -> None:
        for key, commit in self._pending.pop(producer, {}).items():
            if committed and commit[0] > self._last.get(key, (-1, None))[0]:
                self._last[key] = commit

    def result(self) -> LastCommits:
        positions: dict[str, dict[Partition, OffsetCommitValue | None]] = {}
        for (group, part), (_, value) in self._last.items():
            positions.setdefault(group, {})[part] = value
        pending: dict[str, frozenset[Partition]] = {}
        for group, part in (key for commits in self._pending.values() for key in commits):
            pending[group] = pending.get(group, frozenset()) | {part}
        return LastCommits(positions=positions, pending=pending, types=self._types)
