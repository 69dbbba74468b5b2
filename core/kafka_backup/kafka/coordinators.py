"""Who coordinates which group or transaction, and which group coordinators may not show everything yet.

A group belongs to one partition of the offsets topic, and the leader of that is its coordinator.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from kio.schema.errors import ErrorCode
from kio.schema.find_coordinator.v4.request import FindCoordinatorRequest
from kio.schema.find_coordinator.v4.response import FindCoordinatorResponse

from kafka_backup.errors import (
    AuthorizationError,
    BrokerError,
    DamagedError,
    KafkaBackupError,
    UnreachableError,
)
from kafka_backup.kafka.cluster import EARLIEST, LATEST, Cluster, EpochEnd, OffsetAnswer, broker_error
from kafka_backup.kafka.last_commits import OFFSETS_TOPIC, LastCommits, read_last_commits
from kafka_backup.kafka.metadata import TopicMetadata
from kafka_backup.kafka.settings import Address

GROUP_KEY, TRANSACTION_KEY = 0, 1
"""What a coordinator is asked for (FindCoordinator's key types)."""
THREADS = 8
"""Requests under way at the same time, over all coordinators."""
_KEYS = 500
"""Keys in one FindCoordinator request."""
_READY_SECONDS = 1.0
"""How long the other groups wait for a coordinator that is not ready, before it is asked for again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetsLeader:
    """The leader of one partition of the offsets topic.

    Attributes:
        address: where it is; None: whoever leads would not show everything that was acknowledged.
        epoch: its leader epoch.
        start: first offset of that epoch in the log; -1: it does not say, and is believed.
        is_untouched: nothing was written since, so that the last commits below `start` may not be shown.
    """

    address: Address | None
    epoch: int
    start: int
    is_untouched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetsTopic:
    """The partitions of the offsets topic; none before the first group, which makes that topic."""

    topic_id: str
    leaders: Mapping[int, OffsetsLeader]

    def partition_of(self, group: str) -> int:
        """Return the partition that holds a group."""
        return partition_for(group, len(self.leaders))


def partition_for(group: str, partitions: int) -> int:
    """Return the partition of the offsets topic that holds a group, whose leader is its coordinator.

    As ``GroupCoordinatorService.partitionFor``: the absolute value of Java's ``String.hashCode``, modulo.
    """
    units = group.encode("utf-16-be", "surrogatepass")
    value = 0
    for high, low in zip(units[::2], units[1::2], strict=True):
        value = (31 * value + (high << 8 | low)) & 0xFFFFFFFF
    absolute = (1 << 32) - value if value >= 1 << 31 else value
    return (absolute & 0x7FFFFFFF) % partitions  # Kafka takes 0 for Integer.MIN_VALUE


def probe_groups(partitions: int) -> Mapping[int, str]:
    """Return for each partition of the offsets topic the name of a group that belongs there."""
    names: dict[int, str] = {}
    for number in count():
        name = f"kafka-backup-probe-{number}"
        names.setdefault(partition_for(name, partitions), name)
        if len(names) == partitions:
            break
    return names


class Coordinators:
    """Finds the coordinators of one cluster. Safe for many threads."""

    def __init__(self, cluster: Cluster) -> None:
        """Prepare; nothing is contacted yet."""
        self._cluster = cluster
        self._lock = threading.Lock()
        self._starts: dict[tuple[int, int], int] = {}
        self._last_commits: dict[tuple[int, int], LastCommits | KafkaBackupError] = {}

    def offsets_topic(self) -> OffsetsTopic | None:
        """Return who leads each partition of the offsets topic; None if we may not see that.

        All brokers are asked: one that was cut off goes on answering as coordinator, with the positions of
        before. A coordinator shows what lies below its high watermark, and that of a new leader may be too
        low for a while: the last commits before the election are acknowledged, and neither they nor their
        groups are shown. Brokers do not tell such a watermark (OFFSET_NOT_AVAILABLE, KIP-207), so a leader
        that tells it is ready. What it may keep back even then, see `last_commits`.

        Raises:
            UnreachableError: not more than half of the brokers answered in time.
        """
        metadata = self._cluster.survey([OFFSETS_TOPIC])
        if code := metadata.errors.get(OFFSETS_TOPIC):
            error = broker_error(code, f"describing {OFFSETS_TOPIC}")
            if isinstance(error, AuthorizationError):
                return None
            raise error
        topic = metadata.topics.get(OFFSETS_TOPIC)
        if topic is None:
            return OffsetsTopic(topic_id="", leaders={})
        starts = self._epoch_starts(topic)
        ends = self._cluster.list_offsets(
            {(OFFSETS_TOPIC, number): LATEST for number in topic.partitions},
            isolation="read_uncommitted",
            deadline=_READY_SECONDS,
        )
        leaders = {}
        for number, part in topic.partitions.items():
            end, start = ends[OFFSETS_TOPIC, number], starts.get(number)
            is_ready = (
                start is not None and isinstance(end, OffsetAnswer) and end.leader_epoch == part.leader_epoch
            )
            leaders[number] = OffsetsLeader(
                address=metadata.brokers.get(part.leader) if is_ready else None,
                epoch=part.leader_epoch,
                start=-1 if start is None else start,
                is_untouched=is_ready and isinstance(end, OffsetAnswer) and end.offset == start,
            )
        return OffsetsTopic(topic_id=topic.topic_id, leaders=leaders)

    def _epoch_starts(self, topic: TopicMetadata) -> Mapping[int, int]:
        """Where the epoch of each partition's leader begins in its log; without those who did not say."""
        epochs = {number: part.leader_epoch for number, part in topic.partitions.items()}
        with self._lock:
            starts = {
                number: self._starts[number, epoch]
                for number, epoch in epochs.items()
                if (number, epoch) in self._starts
            }
        # The first leader began with an empty log.
        starts |= {number: 0 for number, epoch in epochs.items() if epoch == 0}
        asked = {(OFFSETS_TOPIC, n): epoch - 1 for n, epoch in epochs.items() if n not in starts}
        for (_, number), end in self._cluster.epoch_ends(asked, deadline=_READY_SECONDS).items():
            if isinstance(end, EpochEnd) and end.leader_epoch == epochs[number]:
                starts[number] = end.end_offset
        with self._lock:
            self._starts |= {(number, epochs[number]): start for number, start in starts.items()}
        return starts

    def last_commits(
        self, topic: OffsetsTopic, partitions: Collection[int]
    ) -> Mapping[int, LastCommits | KafkaBackupError]:
        """Return what was committed right before their leaders took over partitions that are untouched since.

        Those commits may not be shown; but as long as a partition is untouched, they are the last ones.
        The other partitions are left out. An error stands for a log that cannot be read: now, if it is
        retriable; or for want of the right READ on the offsets topic, or because it holds what is not known here.
        """
        untouched = {
            number: leader
            for number, leader in topic.leaders.items()
            if number in partitions and leader.is_untouched
        }
        with self._lock:
            known = {
                number: self._last_commits[number, leader.epoch]
                for number, leader in untouched.items()
                if (number, leader.epoch) in self._last_commits
            }
        unread = [number for number in untouched if number not in known]
        if unread:
            starts = self._cluster.list_offsets(
                {(OFFSETS_TOPIC, number): EARLIEST for number in unread}, isolation="read_uncommitted"
            )

            def read(number: int) -> LastCommits | KafkaBackupError:
                log_start = starts[OFFSETS_TOPIC, number]
                if isinstance(log_start, KafkaBackupError):
                    return log_start
                try:
                    return read_last_commits(
                        self._cluster,
                        topic.topic_id,
                        number,
                        log_start=log_start.offset,
                        end=untouched[number].start,
                    )
                except (AuthorizationError, BrokerError, DamagedError, UnreachableError) as error:
                    return error

            with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="commits") as pool:
                known |= dict(zip(unread, pool.map(read, unread), strict=True))
            with self._lock:
                self._last_commits |= {
                    (n, untouched[n].epoch): known[n] for n in unread if not may_succeed_later(known[n])
                }
        return known

    def of_groups(
        self, groups: Sequence[str]
    ) -> tuple[OffsetsTopic | None, Mapping[str, Address | KafkaBackupError]]:
        """Find the coordinator of each group, and say what it was found by.

        It is the leader of the group's partition of the offsets topic. Where we may not see those, or there
        are none yet, any broker is asked for it, and believed.
        """
        try:
            topic = self.offsets_topic()
        except UnreachableError as error:
            return None, dict.fromkeys(groups, error)
        if topic is None or not topic.leaders:
            return None, self._find(groups, GROUP_KEY)
        nobody = broker_error(
            ErrorCode.coordinator_not_available, f"{OFFSETS_TOPIC} has no leader that is ready"
        )
        return topic, {group: topic.leaders[topic.partition_of(group)].address or nobody for group in groups}

    def of_transaction(self, transactional_id: str) -> Address | KafkaBackupError:
        """Find the coordinator of a transactional id; asks until there is one, or time is over."""
        return self._find([transactional_id], TRANSACTION_KEY)[transactional_id]

    def _find(self, keys: Sequence[str], key_type: int) -> Mapping[str, Address | KafkaBackupError]:
        found: dict[str, Address | KafkaBackupError] = {}
        missing = UnreachableError("no broker names its coordinator")

        def ask() -> None:
            waiting = [key for key in keys if may_succeed_later(found.get(key, missing))]
            for start in range(0, len(waiting), _KEYS):
                request = FindCoordinatorRequest(
                    key_type=key_type,  # type: ignore[arg-type]
                    coordinator_keys=tuple(waiting[start : start + _KEYS]),
                )
                answer = self._cluster.ask_any("finding coordinators", request, FindCoordinatorResponse)
                for each in answer.coordinators:
                    found[each.key] = (
                        broker_error(each.error_code, f"finding the coordinator of {each.key!r}")
                        if each.error_code
                        else Address(each.host, int(each.port))
                    )
            for key in keys:
                answer_of = found.get(key, missing)
                if isinstance(answer_of, KafkaBackupError) and answer_of.retriable:
                    raise answer_of

        try:
            self._cluster.retry("finding coordinators", ask)
        except UnreachableError as error:
            return {key: error if may_succeed_later(found.get(key, missing)) else found[key] for key in keys}
        return found


def may_succeed_later(answer: object) -> bool:
    """Whether an answer is an error that another try may mend."""
    return isinstance(answer, KafkaBackupError) and answer.retriable
