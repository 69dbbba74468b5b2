"""What a cluster says of itself: brokers, topics, leaders, ends; and connections to its brokers."""

from __future__ import annotations

import copy
import datetime
import queue
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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

from kafka_backup.errors import (
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    KafkaBackupError,
    UnreachableError,
)
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.connection_pool import ConnectionPool
from kafka_backup.kafka.metadata import ClusterMetadata, TopicMetadata, agreed, newest, read_metadata
from kafka_backup.kafka.settings import Address, ConnectionSettings

EARLIEST = -2
LATEST = -1
_AUTHORIZATION = frozenset({29, 30, 31, 53, 58, 65})
_ISOLATION = {"read_uncommitted": 0, "read_committed": 1}
_SILENCE_SECONDS = 2.0
"""How long a survey waits for the rest once most brokers have answered: one of them may be frozen."""
_UNANIMITY_SECONDS = 2.0
"""How long brokers may differ on which topics there are before the majority decides: news travel in ms."""
_AGREEMENT_SECONDS = 10.0
"""How long a majority is waited for."""
Partition = tuple[str, int]
Answer = TypeVar("Answer")
Found = TypeVar("Found")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetAnswer:
    """An offset, and the epoch of the leader that named it."""

    offset: int
    leader_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnd:
    """Where a leader epoch ends in a leader's log (KIP-101, OffsetForLeaderEpoch).

    Attributes:
        epoch: the largest epoch in the log that is not above the one asked for; -1: there is none.
        end_offset: first offset of the next epoch, or the log's end; -1: unknown.
        leader_epoch: of the leader that answered.
    """

    epoch: int
    end_offset: int
    leader_epoch: int


class Cluster:
    """Answers questions about one cluster; safe to use from many threads.

    Attributes:
        connections: what questions and those who move records share.
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
        self.connections = ConnectionPool(settings)
        self._brokers: dict[int, Address] = {}
        self._topics: dict[str, TopicMetadata] = {}
        self._check_stop: Callable[[], None] | None = None

    def stoppable(self, check_stop: Callable[[], None]) -> Cluster:
        """The same cluster, connections and all, whose questions end when `check_stop` raises."""
        view = copy.copy(self)
        view._check_stop = check_stop
        return view

    def check_stop(self) -> None:
        """Raise if somebody asked to stop."""
        if self._check_stop is not None:
            self._check_stop()

    def close(self) -> None:
        """Close the idle connections."""
        self.connections.close()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check_stop()
            time.sleep(min(left, 0.2))

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
                with self.connections.lent(address) as connection:
                    return self._request(connection, payload, response_type)
            except UnreachableError as error:
                problems.append(str(error))
        raise UnreachableError("; ".join(problems))

    def ask_any(self, what: str, payload: Any, response_type: type[Answer]) -> Answer:
        """Ask any broker a typed question, with retries; `what` names it in errors."""
        return self._retry(what, self.retry_seconds, lambda: self._ask_any(payload, response_type))

    def ask(self, address: Address, payload: Any, response_type: type[Answer]) -> Answer:
        """Ask one broker a typed question, once.

        Raises:
            UnreachableError: it does not answer; whether it did what was asked is unknown.
            ConfigurationError: it does not know this version of the API.
        """
        with self.connections.lent(address) as connection:
            key, version = int(payload.__api_key__), int(payload.__version__)
            if not connection.speaks(key, version):
                raise ConfigurationError(
                    f"broker {address} does not speak {type(payload).__name__} version {version}; Kafka 3.1 or "
                    "newer is needed"
                )
            return self._request(connection, payload, response_type)

    def speaks(self, address: Address, api_key: int, version: int) -> bool:
        """Whether a broker knows this version of an API."""
        with self.connections.lent(address) as connection:
            return connection.speaks(api_key, version)

    def retry(self, what: str, ask: Callable[[], Answer]) -> Answer:
        """Call `ask` until it answers, a final error comes, or the retry time is over.

        Raises:
            UnreachableError: the time is over; names `what` and the last error.
            KafkaBackupError: the first error that no retry mends.
        """
        return self._retry(what, self.retry_seconds, ask)

    def pause(self, attempt: int) -> None:
        """Wait before try number `attempt` + 1 of something: longer each time, 2 s at most."""
        self._wait(_pause(attempt))

    def metadata(self, topics: Sequence[str] | None) -> ClusterMetadata:
        """Ask one broker for the cluster and some topics (None: all). Never creates a topic.

        A topic that does not exist is left out. What must not be an old truth is asked by `survey`.

        Raises:
            UnreachableError: no broker answers in time.
            AuthorizationError: a topic may not be described.
        """
        request = _metadata_request(topics)

        def ask() -> ClusterMetadata:
            found = read_metadata(self._ask_any(request, MetadataResponse))
            for name, code in found.errors.items():
                raise _described(name, code)
            return self._learn(found, certain=False)

        return self._retry("asking for metadata", self.retry_seconds, ask)

    def survey(self, topics: Sequence[str] | None, *, deadline: float | None = None) -> ClusterMetadata:
        """Ask every broker for the cluster and some topics (None: all), and join what they say.

        A broker that was cut off, or is just back, names itself leader, with an end that is too low. So
        leaders come from the highest leader epoch that any broker reports, topics and their ids from
        most of them, and a minority that answers alone is not believed at all. Whoever then asks the
        leaders under these epochs sees all that was acknowledged before the survey began.

        Args:
            topics: names; one that does not exist is left out, one that may not be described is in `errors`.
            deadline: seconds until it counts as unanswered; by default `retry_seconds`.

        Raises:
            UnreachableError: not more than half of the brokers answered in time.
        """
        request = _metadata_request(topics)
        seconds = self.retry_seconds if deadline is None else deadline
        began = time.monotonic()
        attempt = 0
        while True:
            answers = self._retry("asking all brokers for metadata", seconds, lambda: self._ask_most(request))
            found, unanimous = agreed(answers)
            age = time.monotonic() - began
            if unanimous or age > (_AGREEMENT_SECONDS if found.disputed else _UNANIMITY_SECONDS):
                break
            self._wait(_pause(attempt))
            attempt += 1
        return self._learn(found, certain=True)

    def _ask_most(self, request: MetadataRequest) -> Sequence[ClusterMetadata]:
        """Ask each broker once; the answers of more than half of all that any of them knows."""
        with self._lock:
            unasked = dict(self._brokers)
        if not unasked:
            unasked = dict(read_metadata(self._ask_any(_metadata_request(()), MetadataResponse)).brokers)
        answers: list[ClusterMetadata] = []
        problems: dict[int, str] = {}
        listed: dict[int, Address] = {}
        asked: set[int] = set()
        while unasked:
            asked |= set(unasked)
            for number, answer in self._ask_each(unasked, request).items():
                if isinstance(answer, UnreachableError):
                    problems[number] = str(answer)
                else:
                    answers.append(read_metadata(answer))
                    listed |= answers[-1].brokers
            unasked = {number: address for number, address in listed.items() if number not in asked}
        if 2 * len(answers) <= len(listed) or not answers:
            with self._lock:
                self._brokers.clear()  # so that the next try begins at the bootstrap servers
            raise UnreachableError(
                f"{len(answers)} of {len(listed) or len(asked)} brokers answered, and a few alone may be cut off and "
                f"out of date ({'; '.join(problems.values())}); this machine must reach every broker at the "
                "address that it advertises"
            )
        return answers

    def _ask_each(
        self, brokers: Mapping[int, Address], request: MetadataRequest
    ) -> Mapping[int, MetadataResponse | UnreachableError]:
        """Ask brokers at the same time; one that stays silent while most have answered is left behind."""
        results: queue.SimpleQueue[tuple[int, MetadataResponse | BaseException]] = queue.SimpleQueue()

        def ask(number: int, address: Address) -> None:
            try:
                with self.connections.lent(address) as connection:
                    results.put((number, self._request(connection, request, MetadataResponse)))
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                results.put((number, error))

        for number, address in brokers.items():
            threading.Thread(target=ask, args=(number, address), name="survey", daemon=True).start()
        answers: dict[int, MetadataResponse | UnreachableError] = {}
        patience: float | None = None
        while len(answers) < len(brokers):
            self.check_stop()
            try:
                number, answer = results.get(timeout=0.1)
            except queue.Empty:
                if patience is not None and time.monotonic() > patience:
                    break
                continue
            if isinstance(answer, BaseException) and not isinstance(answer, UnreachableError):
                raise answer
            answers[number] = answer
            good = sum(not isinstance(each, UnreachableError) for each in answers.values())
            if patience is None and 2 * good > len(brokers):
                patience = time.monotonic() + _SILENCE_SECONDS
        for number, address in brokers.items():
            silent = UnreachableError(f"broker {address} did not answer within {_SILENCE_SECONDS:g} s")
            answers.setdefault(number, silent)
        return answers

    def _learn(self, found: ClusterMetadata, *, certain: bool) -> ClusterMetadata:
        """Remember what was found; returns it with what was known already, where that is newer."""
        with self._lock:
            self._brokers.clear()
            self._brokers.update(found.brokers)
            topics = {name: newest(self._topics.get(name), topic) for name, topic in found.topics.items()}
            for name, topic in topics.items():
                known = self._topics.get(name)
                if certain or known is None or known.topic_id == topic.topic_id:
                    self._topics[name] = topic
        return replace(found, topics=topics)

    def leader(self, topic: str, topic_id: str, partition: int, *, fresh: bool = True) -> tuple[Address, int]:
        """Return the address of a partition's leader and its epoch.

        Args:
            topic: its name.
            topic_id: the incarnation that is meant.
            partition: its number.
            fresh: ask; else what is known already will do. A leader that is asked under an old epoch
                refuses.

        Raises:
            BrokerError: the topic is gone or re-created (UNKNOWN_TOPIC_ID), the partition has no leader
                (LEADER_NOT_AVAILABLE, retriable).
        """
        with self._lock:
            found = self._topics.get(topic)
            brokers: Mapping[int, Address] = dict(self._brokers)
        if fresh or found is None or found.topic_id != topic_id:
            metadata = self.survey([topic])
            if (code := metadata.errors.get(topic)) is not None:
                raise _described(topic, code)
            found, brokers = metadata.topics.get(topic), metadata.brokers
        if found is None:  # it may be too new for these brokers; who asks has a time limit
            raise broker_error(ErrorCode.unknown_topic_or_partition, f"topic {topic} ({topic_id})")
        if found.topic_id != topic_id:
            raise BrokerError(
                f"topic {topic} ({topic_id}) was deleted and re-created meanwhile",
                code=int(ErrorCode.unknown_topic_id),
                name="UNKNOWN_TOPIC_ID",
                retriable=False,
            )
        part = found.partitions.get(partition)
        address = brokers.get(part.leader) if part is not None else None
        if part is None or address is None:
            raise broker_error(ErrorCode.leader_not_available, f"{topic} [{partition}]")
        return address, part.leader_epoch

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
                    for topic, numbers in by_topic(group).items()
                ),
            )

        def read(
            answer: ListOffsetsResponse, epochs: Mapping[Partition, int]
        ) -> Iterator[tuple[Partition, OffsetAnswer | int]]:
            for topic in answer.topics:
                for part in topic.partitions:
                    key = str(topic.name), int(part.partition_index)
                    yield (
                        key,
                        int(part.error_code)
                        or OffsetAnswer(offset=int(part.offset), leader_epoch=epochs[key]),
                    )

        return self.ask_leaders(list(positions), payload, ListOffsetsResponse, read, deadline)

    def log_ends(
        self, partitions: Sequence[Partition], *, deadline: float | None = None
    ) -> Mapping[Partition, OffsetAnswer | KafkaBackupError]:
        """Ask each leader for its own log end, replicated or not (OffsetForLeaderEpoch of its epoch)."""
        ends = self.epoch_ends(dict.fromkeys(partitions), deadline=deadline)
        return {
            key: OffsetAnswer(offset=end.end_offset, leader_epoch=end.leader_epoch)
            if isinstance(end, EpochEnd)
            else end
            for key, end in ends.items()
        }

    def epoch_ends(
        self, wanted: Mapping[Partition, int | None], *, deadline: float | None = None
    ) -> Mapping[Partition, EpochEnd | KafkaBackupError]:
        """Ask each leader where an epoch ends in its log: one request per broker.

        Args:
            wanted: the epoch of each (topic, partition); None is the leader's own, which ends at its log end.
            deadline: seconds; partitions that have no answer by then carry their last error.
        """

        def payload(
            group: Sequence[Partition], epochs: Mapping[Partition, int]
        ) -> OffsetForLeaderEpochRequest:
            def one(topic: str, number: int) -> OffsetForLeaderPartition:
                current = epochs[topic, number]
                asked = wanted[topic, number]
                return OffsetForLeaderPartition(
                    partition=number,  # type: ignore[arg-type]
                    current_leader_epoch=current,  # type: ignore[arg-type]
                    leader_epoch=current if asked is None else asked,  # type: ignore[arg-type]
                )

            return OffsetForLeaderEpochRequest(
                replica_id=-1,  # type: ignore[arg-type]
                topics=tuple(
                    OffsetForLeaderTopic(topic=topic, partitions=tuple(one(topic, n) for n in numbers))  # type: ignore[arg-type]
                    for topic, numbers in by_topic(group).items()
                ),
            )

        def read(
            answer: OffsetForLeaderEpochResponse, epochs: Mapping[Partition, int]
        ) -> Iterator[tuple[Partition, EpochEnd | int]]:
            for topic in answer.topics:
                for part in topic.partitions:
                    key = str(topic.topic), int(part.partition)
                    yield (
                        key,
                        int(part.error_code)
                        or EpochEnd(
                            epoch=int(part.leader_epoch),
                            end_offset=int(part.end_offset),
                            leader_epoch=epochs[key],
                        ),
                    )

        return self.ask_leaders(list(wanted), payload, OffsetForLeaderEpochResponse, read, deadline)

    def ask_leaders(
        self,
        partitions: Sequence[Partition],
        payload: Callable[[Sequence[Partition], Mapping[Partition, int]], Any],
        response_type: type[Answer],
        read: Callable[[Answer, Mapping[Partition, int]], Iterable[tuple[Partition, Found | int]]],
        deadline: float | None,
    ) -> Mapping[Partition, Found | KafkaBackupError]:
        """Ask the leaders, all brokers at once; ask again where leaders moved, until the deadline.

        The first question goes to the leaders that are known, under their epochs: one that is none any
        more refuses, and only then the brokers are asked who is.

        Args:
            partitions: about which.
            payload: makes the request to one broker, from its partitions and all leader epochs.
            response_type: its response.
            read: gives answer or error code of each partition in a response.
            deadline: seconds, by default `retry_seconds`; partitions without an answer by then carry
                their last error.
        """
        end = time.monotonic() + (self.retry_seconds if deadline is None else deadline)
        answers: dict[Partition, Found | KafkaBackupError] = {}
        waiting = list(partitions)
        attempt = 0
        while waiting:
            groups, epochs = self._by_leader(waiting, answers, fresh=attempt > 0, deadline=end)

            def ask(
                pair: tuple[Address, Sequence[Partition]], epochs: Mapping[Partition, int] = epochs
            ) -> Iterable[tuple[Partition, Found | int | KafkaBackupError]]:
                address, group = pair
                try:
                    with self.connections.lent(address) as connection:
                        return read(self._request(connection, payload(group, epochs), response_type), epochs)
                except UnreachableError as error:
                    return [(key, error) for key in group]

            with ThreadPoolExecutor(max_workers=max(1, len(groups))) as pool:
                for found in pool.map(ask, groups.items()):
                    for (topic, number), answer in found:
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
        self,
        partitions: Sequence[Partition],
        answers: dict[Partition, Found | KafkaBackupError],
        *,
        fresh: bool,
        deadline: float,
    ) -> tuple[dict[Address, list[Partition]], dict[Partition, int]]:
        """Group partitions by the leaders' addresses; those without one get their error in `answers`."""
        names = sorted({topic for topic, _ in partitions})
        groups: dict[Address, list[Partition]] = defaultdict(list)
        epochs: dict[Partition, int] = {}
        with self._lock:
            topics = {name: self._topics[name] for name in names if name in self._topics}
            brokers: Mapping[int, Address] = dict(self._brokers)
        errors: Mapping[str, int] = {}
        if fresh or len(topics) < len(names):
            try:
                found = self.survey(names, deadline=max(0.0, deadline - time.monotonic()))
            except UnreachableError as error:
                answers |= dict.fromkeys(partitions, error)
                return groups, epochs
            topics, brokers, errors = dict(found.topics), found.brokers, found.errors
        for topic, number in partitions:
            described = topics.get(topic)
            part = described.partitions.get(number) if described is not None else None
            if topic in errors:
                answers[topic, number] = _described(topic, errors[topic])
            elif part is None:
                answers[topic, number] = broker_error(
                    ErrorCode.unknown_topic_or_partition, f"{topic} [{number}]"
                )
            elif part.leader not in brokers:
                answers[topic, number] = broker_error(ErrorCode.leader_not_available, f"{topic} [{number}]")
            else:
                groups[brokers[part.leader]].append((topic, number))
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


def _metadata_request(topics: Sequence[str] | None) -> MetadataRequest:
    return MetadataRequest(
        topics=None if topics is None else tuple(map(_topic_question, topics)),
        allow_auto_topic_creation=False,
        include_topic_authorized_operations=False,
    )


def _described(topic: str, code: int) -> KafkaBackupError:
    return broker_error(code, f"describing topic {topic}")


def _topic_question(name: str) -> MetadataRequestTopic:
    return MetadataRequestTopic(topic_id=None, name=name)  # type: ignore[arg-type]


def _may_succeed_later(answer: object) -> bool:
    return answer is None or (isinstance(answer, KafkaBackupError) and answer.retriable)


def _pause(attempt: int) -> float:
    """Seconds to wait before the next try: doubling to 2 s, with jitter."""
    return float(min(2.0, 0.05 * 2 ** min(attempt, 8)) * random.uniform(0.5, 1.0))


def by_topic(partitions: Sequence[Partition]) -> Mapping[str, Sequence[int]]:
    """Group partitions by their topics, as most requests want them."""
    topics: dict[str, list[int]] = defaultdict(list)
    for topic, number in partitions:
        topics[topic].append(number)
    return topics
