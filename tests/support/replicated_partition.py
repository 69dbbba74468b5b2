"""One partition on three scripted brokers that goes through any elections, clean and unclean.

Each broker acts by what it believes itself: who leads under which epoch, and its own log. So one that was cut
off names itself leader, and a follower that has not cut its log back yet still serves the old records.
"""

import datetime
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from kio.schema.errors import ErrorCode
from kio.schema.fetch.v13.request import FetchRequest
from kio.schema.fetch.v13.response import FetchableTopicResponse, FetchResponse, PartitionData
from kio.schema.list_offsets.v7.request import ListOffsetsRequest
from kio.schema.list_offsets.v7.response import (
    ListOffsetsPartitionResponse,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)
from kio.schema.offset_for_leader_epoch.v4.request import OffsetForLeaderEpochRequest
from kio.schema.offset_for_leader_epoch.v4.response import (
    EpochEndOffset,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)

from tests.support.records import NewRecord, encode_batch
from tests.support.scripted_broker import ScriptedBroker, metadata

_NO_TIME = datetime.timedelta(0)
_EARLIEST = -2
_BATCHES = 2
"""In one fetch response."""


@dataclass
class Replica:
    """A broker's own log, as (epoch, value) of each offset, and what it believes of the leader."""

    log: list[tuple[int, bytes]] = field(default_factory=list)
    log_start: int = 0
    leader: int = 1
    epoch: int = 0

    def epoch_end(self, asked: int) -> tuple[int, int]:
        """Kafka's LeaderEpochFileCache.endOffsetFor, of a cache that is cut at the log start."""
        if asked == self.epoch:
            return asked, len(self.log)
        starts: dict[int, int] = {}
        for offset, (epoch, _) in enumerate(self.log):
            if offset >= self.log_start:
                starts.setdefault(epoch, offset)
        starts.setdefault(self.epoch, len(self.log))
        higher = [start for epoch, start in sorted(starts.items()) if epoch > asked]
        if not higher:
            return -1, -1
        return max((epoch for epoch in starts if epoch <= asked), default=asked), higher[0]


class ReplicatedPartition:
    """Brokers 1 to 3 and partition 0 of `topic`. All calls that change it are for one thread at a time.

    Attributes:
        replicas: by broker.
        leader, epoch: the truth.
        on_fetch: called before each fetch is answered, under the lock.
    """

    topic = "orders"
    topic_id = uuid.UUID(int=7)

    def __init__(self) -> None:
        self.replicas = {number: Replica() for number in (1, 2, 3)}
        self.leader, self.epoch = 1, 0
        self.on_fetch: Any = None
        self.lock = threading.RLock()
        self._written = 0
        self._stack = ExitStack()
        self.brokers: dict[int, ScriptedBroker] = {}

    def __enter__(self) -> Self:
        for number in self.replicas:
            self.brokers[number] = self._stack.enter_context(
                ScriptedBroker(
                    {
                        1: lambda request, number=number: self._fetch(number, request),
                        2: lambda request, number=number: self._list_offsets(number, request),
                        3: lambda _request, number=number: self._metadata(number),
                        23: lambda request, number=number: self._epoch_ends(number, request),
                    }
                )
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def servers(self) -> str:
        """For clients."""
        return ",".join(broker.address for broker in self.brokers.values())

    def append(self, count: int, followers: set[int]) -> None:
        """Write records to the leader; some others follow, cutting their logs back to its own."""
        with self.lock:
            log = self.replicas[self.leader].log
            for _ in range(count):
                log.append((self.epoch, b"%d" % self._written))
                self._written += 1
            for each in followers - {self.leader}:
                self.follow(each)

    def follow(self, number: int) -> None:
        """A follower learns who leads, and takes over that log."""
        with self.lock:
            replica, leader = self.replicas[number], self.replicas[self.leader]
            replica.leader, replica.epoch = self.leader, self.epoch
            replica.log, replica.log_start = list(leader.log), leader.log_start

    def elect(self, number: int, unaware: set[int]) -> None:
        """Another broker leads, with whatever it has; all learn it, but for some that are cut off."""
        with self.lock:
            self.leader = number
            self.epoch += 1
            for each, replica in self.replicas.items():
                if each == number or each not in unaware:
                    replica.leader, replica.epoch = number, self.epoch

    def remove(self, below: int) -> None:
        """Retention, on the leader and on all that follow."""
        with self.lock:
            for replica in self.replicas.values():
                replica.log_start = min(len(replica.log), max(replica.log_start, below))

    def heal(self) -> None:
        """All brokers know the leader and have its log."""
        for number in self.replicas:
            self.follow(number)

    def holds(self) -> Mapping[int, bytes]:
        """What the leader has: the value of each offset from its log start on."""
        leader = self.replicas[self.leader]
        return {n: value for n, (_, value) in enumerate(leader.log) if n >= leader.log_start}

    def _metadata(self, number: int) -> Any:
        with self.lock:
            replica = self.replicas[number]
            return metadata(self.brokers, self.topic, self.topic_id, [(replica.leader, replica.epoch)])

    def _refusal(self, number: int, epoch: int) -> ErrorCode:
        replica = self.replicas[number]
        if epoch < replica.epoch:
            return ErrorCode.fenced_leader_epoch
        if epoch > replica.epoch:
            return ErrorCode.unknown_leader_epoch
        return ErrorCode.none if replica.leader == number else ErrorCode.not_leader_or_follower

    def _list_offsets(self, number: int, request: ListOffsetsRequest) -> ListOffsetsResponse:
        with self.lock:
            asked = request.topics[0].partitions[0]
            replica = self.replicas[number]
            part = ListOffsetsPartitionResponse(
                partition_index=0,  # type: ignore[arg-type]
                error_code=self._refusal(number, int(asked.current_leader_epoch)),
                offset=replica.log_start if asked.timestamp == _EARLIEST else len(replica.log),  # type: ignore[arg-type]
                leader_epoch=replica.epoch,  # type: ignore[arg-type]
            )
            topic = ListOffsetsTopicResponse(name=self.topic, partitions=(part,))  # type: ignore[arg-type]
            return ListOffsetsResponse(throttle_time=_NO_TIME, topics=(topic,))  # type: ignore[arg-type]

    def _epoch_ends(self, number: int, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse:
        with self.lock:
            asked = request.topics[0].partitions[0]
            epoch, end = self.replicas[number].epoch_end(int(asked.leader_epoch))
            part = EpochEndOffset(
                partition=0,  # type: ignore[arg-type]
                error_code=self._refusal(number, int(asked.current_leader_epoch)),
                leader_epoch=epoch,  # type: ignore[arg-type]
                end_offset=end,  # type: ignore[arg-type]
            )
            topic = OffsetForLeaderTopicResult(topic=self.topic, partitions=(part,))  # type: ignore[arg-type]
            return OffsetForLeaderEpochResponse(throttle_time=_NO_TIME, topics=(topic,))  # type: ignore[arg-type]

    def _fetch(self, number: int, request: FetchRequest) -> FetchResponse:
        with self.lock:
            if self.on_fetch is not None:
                self.on_fetch()
            asked = request.topics[0].partitions[0]
            replica = self.replicas[number]
            offset = int(asked.fetch_offset)
            error = self._refusal(number, int(asked.current_leader_epoch))
            nearby = -1
            if request.rack_id and error is ErrorCode.none:
                nearby = next(each for each in self.replicas if each != number)
            elif error is ErrorCode.not_leader_or_follower:
                error = ErrorCode.none  # a follower that is asked under its own epoch serves too
            if error is ErrorCode.none and not replica.log_start <= offset <= len(replica.log):
                error = ErrorCode.offset_out_of_range
            records = b"" if error or nearby >= 0 else self._records(replica, offset)
            part = PartitionData(
                partition_index=0,  # type: ignore[arg-type]
                error_code=error,
                high_watermark=len(replica.log),  # type: ignore[arg-type]
                last_stable_offset=len(replica.log),  # type: ignore[arg-type]
                log_start_offset=replica.log_start,  # type: ignore[arg-type]
                aborted_transactions=None,
                preferred_read_replica=nearby,  # type: ignore[arg-type]
                records=records,
            )
        if not records:
            time.sleep(0.01)
        topic = FetchableTopicResponse(topic_id=self.topic_id, partitions=(part,))
        return FetchResponse(
            throttle_time=_NO_TIME,  # type: ignore[arg-type]
            error_code=ErrorCode.none,
            session_id=0,  # type: ignore[arg-type]
            responses=(topic,),
        )

    def _records(self, replica: Replica, offset: int) -> bytes:
        """Some batches from the offset on; a batch is what one epoch wrote, three records at most."""
        batches = []
        while offset < len(replica.log) and len(batches) < _BATCHES:
            epoch = replica.log[offset][0]
            until = offset
            while until < min(len(replica.log), offset + 3) and replica.log[until][0] == epoch:
                until += 1
            records = [NewRecord(value, timestamp=1000) for _, value in replica.log[offset:until]]
            batches.append(encode_batch(records, base_offset=offset, partition_leader_epoch=epoch))
            offset = until
        return b"".join(batches)
