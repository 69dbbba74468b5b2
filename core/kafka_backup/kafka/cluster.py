"""What a cluster says of itself: brokers, topics, leaders, ends; and connections to its brokers."""

from __future__ import annotations

import base64
import copy
import datetime
import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from kio.schema.errors import ErrorCode
from kio.schema.init_producer_id.v4.request import InitProducerIdRequest
from kio.schema.init_producer_id.v4.response import InitProducerIdResponse
from kio.schema.list_offsets.v7.request import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kio.schema.list_offsets.v7.response import ListOffsetsResponse
from kio.schema.metadata.v12.request import MetadataRequest, MetadataRequestTopic
from kio.schema.metadata.v12.response import MetadataResponse
from kio.schema.offset_for_leader_epoch.v4.request import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from kio.schema.offset_for_leader_epoch.v4.response import OffsetForLeaderEpochResponse

from kafka_backup.errors import AuthorizationError, BrokerError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.settings import Address, ConnectionSettings

EARLIEST = -2
LATEST = -1
_AUTHORIZATION = frozenset({29, 30, 31, 53, 58, 65})
_ISOLATION = {"read_uncommitted": 0, "read_committed": 1}
Partition = tuple[str, int]
Answer = TypeVar("Answer")


def broker_error(code: int, what: str) -> KafkaBackupError:
    """Make the error for a protocol error code; `what` says what was asked, and where."""
    try:
        known = ErrorCode(code)
        name, retriable = known.name.upper(), known.retriable
    except ValueError:
        name, retriable = f"error {code}", False
    if code in _AUTHORIZATION:
        return AuthorizationError(f"{what}: {name}; grant the right and run again")
    return BrokerError(f"{what}: {name}", code=code, name=name, retriable=retriable)


def topic_id_text(topic_id: uuid.UUID | None) -> str:
    """Return a topic id as Kafka prints it: 22 characters of URL-safe base64 (Kafka's Uuid)."""
    raw = bytes(16) if topic_id is None else topic_id.bytes
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionMetadata:
    """One partition; `leader` is -1 while there is none."""

    leader: int
    leader_epoch: int
    replicas: Sequence[int]
    isr: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMetadata:
    """One topic as the brokers describe it."""

    name: str
    topic_id: str
    is_internal: bool
    partitions: Mapping[int, PartitionMetadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMetadata:
    """One answer to a metadata question: the cluster, its live brokers, the topics asked for."""

    cluster_id: str
    brokers: Mapping[int, Address]
    topics: Mapping[str, TopicMetadata]


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetAnswer:
    """An offset and the leader epoch that the leader names with it (-1: none)."""

    offset: int
    leader_epoch: int


class Cluster:
    """Answers questions about one cluster; safe to use from many threads.

    Short questions share pooled connections; who moves records opens a connection of its own.
    """

    def __init__(self, settings: ConnectionSettings, *, retry_seconds: float) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            settings: where and how to connect.
            retry_seconds: how long a question is retried before it counts as unanswered.
        """
        self.settings = settings
        self.retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._idle: dict[Address, list[Connection]] = defaultdict(list)
        self._brokers: dict[int, Address] = {}
        self._leaders: dict[tuple[str, str, int], PartitionMetadata] = {}
        self._check_stop: Callable[[], None] | None = None

    def stoppable(self, check_stop: Callable[[], None]) -> Cluster:
        """The same cluster, connections and all, whose questions end when `check_stop` raises."""
        view = copy.copy(self)
        view._check_stop = check_stop
        return view

    def close(self) -> None:
        """Close the pooled connections."""
        with self._lock:
            idle = [connection for pooled in self._idle.values() for connection in pooled]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._check_stop is not None:
                self._check_stop()
            time.sleep(min(left, 0.2))

    @contextmanager
    def _leased(self, address: Address) -> Iterator[Connection]:
        with self._lock:
            pooled = self._idle[address]
            connection = pooled.pop() if pooled else None
        if connection is None or connection.closed:
            connection = Connection(address, self.settings)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle[address].append(connection)

    def _request(self, connection: Connection, payload: Any, response_type: type[Answer]) -> Answer:
        return connection.request(payload, response_type, check_stop=self._check_stop)

    def _retry(self, what: str, deadline: float, ask: Callable[[], Answer]) -> Answer:
        """Call `ask` until it answers, a final error comes, or `deadline` seconds have passed."""
        end = time.monotonic() + deadline
        attempt = 0
        while True:
            try:
                return ask()
            except KafkaBackupError as error:
                if not error.retriable:
                    raise
                pause = _pause(attempt)
                if time.monotonic() + pause > end:
                    raise UnreachableError(
                        f"{what} did not succeed within {deadline:g} s: {error}"
                    ) from error
                attempt += 1
                self._wait(pause)

    def _ask_any(self, payload: Any, response_type: type[Answer]) -> Answer:
        """Ask whichever broker answers: those known first, then the bootstrap servers."""
        with self._lock:
            known = list(self._brokers.values())
        random.shuffle(known)
        problems = []
        for address in dict.fromkeys([*known, *self.settings.bootstrap]):
            try:
                with self._leased(address) as connection:
                    return self._request(connection, payload, response_type)
            except UnreachableError as error:
                problems.append(str(error))
        raise UnreachableError("; ".join(problems))

    def ask_any(self, what: str, payload: Any, response_type: type[Answer]) -> Answer:
        """Ask any broker a typed question, with retries; `what` names it in errors."""
        return self._retry(what, self.retry_seconds, lambda: self._ask_any(payload, response_type))

    def metadata(self, topics: Sequence[str] | None) -> ClusterMetadata:
        """Describe the cluster and some topics (None: all). Never creates a topic.

        A topic that does not exist is left out. Of a partition's leader, the answer with the highest leader
        epoch ever seen counts: a broker that was cut off goes on naming itself.

        Raises:
            UnreachableError: no broker answers in time.
            AuthorizationError: a topic may not be described.
        """
        wanted = None if topics is None else tuple(map(_topic_question, topics))
        request = MetadataRequest(
            topics=wanted, allow_auto_topic_creation=False, include_topic_authorized_operations=False
        )

        def ask() -> ClusterMetadata:
            return self._read_metadata(self._ask_any(request, MetadataResponse))

        return self._retry("asking for metadata", self.retry_seconds, ask)

    def _read_metadata(self, answer: MetadataResponse) -> ClusterMetadata:
        brokers = {int(b.node_id): Address(b.host, int(b.port)) for b in answer.brokers}
        described = {}
        for topic in answer.topics:
            name = str(topic.name)
            if topic.error_code in (ErrorCode.unknown_topic_or_partition, ErrorCode.unknown_topic_id):
                continue
            if topic.error_code:
                raise broker_error(topic.error_code, f"describing topic {name}")
            topic_id = topic_id_text(topic.topic_id)
            partitions = {}
            for p in topic.partitions:
                number = int(p.partition_index)
                found = PartitionMetadata(
                    leader=int(p.leader_id),
                    leader_epoch=int(p.leader_epoch),
                    replicas=tuple(map(int, p.replica_nodes)),
                    isr=tuple(map(int, p.isr_nodes)),
                )
                partitions[number] = self._newest((name, topic_id, number), found)
            described[name] = TopicMetadata(
                name=name, topic_id=topic_id, is_internal=topic.is_internal, partitions=partitions
            )
        with self._lock:
            self._brokers.clear()
            self._brokers.update(brokers)
        return ClusterMetadata(cluster_id=str(answer.cluster_id), brokers=brokers, topics=described)

    def _newest(self, key: tuple[str, str, int], found: PartitionMetadata) -> PartitionMetadata:
        with self._lock:
            known = self._leaders.get(key)
            if known is None or found.leader_epoch >= known.leader_epoch:
                self._leaders[key] = known = found
            return known

    def leader(self, topic: str, topic_id: str, partition: int) -> tuple[Address, int]:
        """Return the address of a partition's leader and its epoch, freshly asked.

        Raises:
            BrokerError: the topic is gone or re-created (UNKNOWN_TOPIC_ID), the partition has no leader
                (LEADER_NOT_AVAILABLE, retriable).
        """
        metadata = self.metadata([topic])
        found = metadata.topics.get(topic)
        if found is None:  # it may be too new for this broker; who asks has a time limit
            raise broker_error(ErrorCode.unknown_topic_or_partition, f"topic {topic} ({topic_id})")
        if found.topic_id != topic_id:
            raise BrokerError(
                f"topic {topic} ({topic_id}) was deleted and re-created meanwhile",
                code=int(ErrorCode.unknown_topic_id),
                name="UNKNOWN_TOPIC_ID",
                retriable=False,
            )
        part = found.partitions.get(partition)
        address = metadata.brokers.get(part.leader) if part is not None else None
        if part is None or address is None:
            raise broker_error(ErrorCode.leader_not_available, f"{topic} [{partition}]")
        return address, part.leader_epoch

    def open_connection(self, address: Address) -> Connection:
        """Open a connection that the caller owns and closes."""
        return Connection(address, self.settings)

    def list_offsets(
        self, positions: Mapping[Partition, int], *, isolation: str, deadline: float | None = None
    ) -> Mapping[Partition, OffsetAnswer | KafkaBackupError]:
        """Ask for the offsets at EARLIEST, LATEST or a time (ms): one request per broker.

        Args:
            positions: what to ask of each (topic, partition).
            isolation: ``read_committed`` gives the last stable offset for LATEST.
            deadline: seconds; partitions that have no answer by then carry their last error.
        """

        def payload(group: Sequence[Partition], epochs: Mapping[Partition, int]) -> ListOffsetsRequest:
            def one(topic: str, number: int) -> ListOffsetsPartition:
                return ListOffsetsPartition(
                    partition_index=number,  # type: ignore[arg-type]
                    current_leader_epoch=epochs[topic, number],  # type: ignore[arg-type]
                    timestamp=positions[topic, number],  # type: ignore[arg-type]
                )

            return ListOffsetsRequest(
                replica_id=-1,  # type: ignore[arg-type]
                isolation_level=_ISOLATION[isolation],  # type: ignore[arg-type]
                topics=tuple(
                    ListOffsetsTopic(name=topic, partitions=tuple(one(topic, n) for n in numbers))  # type: ignore[arg-type]
                    for topic, numbers in _by_topic(group).items()
                ),
            )

        def read(answer: ListOffsetsResponse) -> dict[Partition, OffsetAnswer | int]:
            return {
                (str(topic.name), int(part.partition_index)): int(part.error_code)
                or OffsetAnswer(offset=int(part.offset), leader_epoch=int(part.leader_epoch))
                for topic in answer.topics
                for part in topic.partitions
            }

        return self._ask_leaders(list(positions), payload, ListOffsetsResponse, read, deadline)

    def log_ends(
        self, partitions: Sequence[Partition], *, deadline: float | None = None
    ) -> Mapping[Partition, OffsetAnswer | KafkaBackupError]:
        """Ask each leader for its own log end, replicated or not (OffsetForLeaderEpoch of its epoch)."""

        def payload(
            group: Sequence[Partition], epochs: Mapping[Partition, int]
        ) -> OffsetForLeaderEpochRequest:
            def one(topic: str, number: int) -> OffsetForLeaderPartition:
                return OffsetForLeaderPartition(
                    partition=number,  # type: ignore[arg-type]
                    current_leader_epoch=epochs[topic, number],  # type: ignore[arg-type]
                    leader_epoch=epochs[topic, number],  # type: ignore[arg-type]
                )

            return OffsetForLeaderEpochRequest(
                replica_id=-1,  # type: ignore[arg-type]
                topics=tuple(
                    OffsetForLeaderTopic(topic=topic, partitions=tuple(one(topic, n) for n in numbers))  # type: ignore[arg-type]
                    for topic, numbers in _by_topic(group).items()
                ),
            )

        def read(answer: OffsetForLeaderEpochResponse) -> dict[Partition, OffsetAnswer | int]:
            return {
                (str(topic.topic), int(part.partition)): int(part.error_code)
                or OffsetAnswer(offset=int(part.end_offset), leader_epoch=int(part.leader_epoch))
                for topic in answer.topics
                for part in topic.partitions
            }

        return self._ask_leaders(list(partitions), payload, OffsetForLeaderEpochResponse, read, deadline)

    def _ask_leaders(
        self,
        partitions: Sequence[Partition],
        payload: Callable[[Sequence[Partition], Mapping[Partition, int]], Any],
        response_type: type[Answer],
        read: Callable[[Answer], Mapping[Partition, OffsetAnswer | int]],
        deadline: float | None,
    ) -> Mapping[Partition, OffsetAnswer | KafkaBackupError]:
        """Ask the leaders, all brokers at once; ask again where leaders moved, until the deadline."""
        end = time.monotonic() + (self.retry_seconds if deadline is None else deadline)
        answers: dict[Partition, OffsetAnswer | KafkaBackupError] = {}
        waiting = list(partitions)
        attempt = 0
        while waiting:
            groups, epochs = self._by_leader(waiting, answers)

            def ask(
                pair: tuple[Address, Sequence[Partition]], epochs: Mapping[Partition, int] = epochs
            ) -> Mapping[Partition, OffsetAnswer | int | KafkaBackupError]:
                address, group = pair
                try:
                    with self._leased(address) as connection:
                        return read(self._request(connection, payload(group, epochs), response_type))
                except UnreachableError as error:
                    return dict.fromkeys(group, error)

            with ThreadPoolExecutor(max_workers=max(1, len(groups))) as pool:
                for found in pool.map(ask, groups.items()):
                    for (topic, number), answer in found.items():
                        answers[topic, number] = (
                            broker_error(answer, f"{topic} [{number}]") if isinstance(answer, int) else answer
                        )
            waiting = [key for key in waiting if _may_succeed_later(answers.get(key))]
            pause = _pause(attempt)
            if not waiting or time.monotonic() + pause > end:
                break
            attempt += 1
            self._wait(pause)
        missing = UnreachableError("the leader did not answer for it")
        return {key: answers.get(key, missing) for key in partitions}

    def _by_leader(
        self, partitions: Sequence[Partition], answers: dict[Partition, OffsetAnswer | KafkaBackupError]
    ) -> tuple[dict[Address, list[Partition]], dict[Partition, int]]:
        metadata = self.metadata(sorted({topic for topic, _ in partitions}))
        groups: dict[Address, list[Partition]] = defaultdict(list)
        epochs: dict[Partition, int] = {}
        for topic, number in partitions:
            described = metadata.topics.get(topic)
            part = described.partitions.get(number) if described is not None else None
            if part is None:
                answers[topic, number] = broker_error(
                    ErrorCode.unknown_topic_or_partition, f"{topic} [{number}]"
                )
            elif part.leader not in metadata.brokers:
                answers[topic, number] = broker_error(ErrorCode.leader_not_available, f"{topic} [{number}]")
            else:
                groups[metadata.brokers[part.leader]].append((topic, number))
                epochs[topic, number] = part.leader_epoch
        return groups, epochs

    def init_producer_id(self) -> tuple[int, int]:
        """Get a producer id and epoch for an idempotent producer without transactions (KIP-98)."""
        request = InitProducerIdRequest(
            transactional_id=None,
            transaction_timeout=datetime.timedelta(seconds=60),  # type: ignore[arg-type]
        )

        def ask() -> tuple[int, int]:
            answer = self._ask_any(request, InitProducerIdResponse)
            if answer.error_code:
                raise broker_error(answer.error_code, "asking for a producer id")
            return int(answer.producer_id), int(answer.producer_epoch)

        return self._retry("asking for a producer id", self.retry_seconds, ask)


def _topic_question(name: str) -> MetadataRequestTopic:
    return MetadataRequestTopic(topic_id=None, name=name)  # type: ignore[arg-type]


def _may_succeed_later(answer: OffsetAnswer | KafkaBackupError | None) -> bool:
    return answer is None or (isinstance(answer, KafkaBackupError) and answer.retriable)


def _pause(attempt: int) -> float:
    """Seconds to wait before the next try: doubling to 2 s, with jitter."""
    return float(min(2.0, 0.05 * 2 ** min(attempt, 8)) * random.uniform(0.5, 1.0))


def _by_topic(partitions: Sequence[Partition]) -> Mapping[str, Sequence[int]]:
    topics: dict[str, list[int]] = defaultdict(list)
    for topic, number in partitions:
        topics[topic].append(number)
    return topics
