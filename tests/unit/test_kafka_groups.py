"""The group coordinators' bad moments: moving, loading, forgetful."""

import datetime
import uuid
from collections.abc import Iterator, Mapping
from itertools import chain, repeat
from typing import Any

import pytest
from kio.schema.errors import ErrorCode
from kio.schema.find_coordinator.v4.request import FindCoordinatorRequest
from kio.schema.find_coordinator.v4.response import Coordinator, FindCoordinatorResponse
from kio.schema.list_groups.v4.response import ListedGroup, ListGroupsResponse
from kio.schema.list_offsets.v7.request import ListOffsetsRequest
from kio.schema.list_offsets.v7.response import (
    ListOffsetsPartitionResponse,
    ListOffsetsResponse,
    ListOffsetsTopicResponse,
)
from kio.schema.metadata.v12.request import MetadataRequest
from kio.schema.offset_fetch.v8.request import OffsetFetchRequest
from kio.schema.offset_fetch.v8.response import (
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopics,
)

from kafka_backup.errors import UnreachableError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.groups import OFFSETS_TOPIC, CommittedOffset, GroupClient, probe_groups
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.scripted_broker import ScriptedBroker, metadata

OK, NOT_COORDINATOR = ErrorCode.none, ErrorCode.not_coordinator
NO_TIME: Any = datetime.timedelta(0)


def java_hash(text: str) -> int:
    """String.hashCode, by its definition: s[0]*31^(n-1) + ... + s[n-1], in 32 bits with a sign."""
    value = sum(ord(c) * 31 ** (len(text) - 1 - i) for i, c in enumerate(text)) % 2**32
    return value - 2**32 if value >= 2**31 else value


@pytest.mark.parametrize("partitions", [1, 3, 50])
def test_probe_groups_reach_every_partition(partitions: int) -> None:
    """What: one made-up group for each partition of the offsets topic, by Java's hash.

    Why: a coordinator is proved to be there by asking about a group of each of its partitions.
    Risk: a partition that no probe reaches is one whose groups may be missing without a word.
    """
    assert (java_hash("abc"), java_hash("polygenelubricants")) == (96354, -(2**31))
    probes = probe_groups(partitions)
    assert sorted(probes) == list(range(partitions))
    assert all(abs(java_hash(name)) % partitions == number for number, name in probes.items())


class Coordinators:
    """One broker that is coordinator of everything; what it says of groups is changed by the tests."""

    def __init__(self) -> None:
        self.broker = ScriptedBroker(
            {2: self.ends, 3: self.metadata, 9: self.fetch, 10: self.find, 16: self.list_groups}
        )
        self.epoch = 0
        self.epochs: Iterator[int] = repeat(0)
        self.ready: Iterator[ErrorCode] = repeat(OK)
        self.served: Iterator[ErrorCode] = repeat(OK)
        self.listings: Iterator[list[str]] = repeat([])
        self.offsets: Iterator[Mapping[str, int | ErrorCode | None]] = iter(())

    def metadata(self, request: MetadataRequest) -> Any:
        self.epoch = epoch = next(self.epochs) if request.topics else self.epoch
        return metadata({1: self.broker}, OFFSETS_TOPIC, uuid.UUID(int=7), [(1, epoch)])

    def ends(self, request: ListOffsetsRequest) -> Any:
        (asked,) = request.topics[0].partitions
        part = ListOffsetsPartitionResponse(
            partition_index=asked.partition_index,
            error_code=next(self.ready),
            offset=9,  # type: ignore[arg-type]
            leader_epoch=asked.current_leader_epoch,
        )
        topic = ListOffsetsTopicResponse(name=OFFSETS_TOPIC, partitions=(part,))  # type: ignore[arg-type]
        return ListOffsetsResponse(throttle_time=NO_TIME, topics=(topic,))

    def find(self, request: FindCoordinatorRequest) -> Any:
        return FindCoordinatorResponse(
            throttle_time=NO_TIME,
            coordinators=tuple(
                Coordinator(
                    key=key,
                    node_id=1,  # type: ignore[arg-type]
                    host="127.0.0.1",
                    port=self.broker.port,  # type: ignore[arg-type]
                    error_code=OK,
                    error_message=None,
                )
                for key in request.coordinator_keys
            ),
        )

    def list_groups(self, _request: Any) -> Any:
        groups = tuple(
            ListedGroup(group_id=name, protocol_type="consumer", group_state="Empty")  # type: ignore[arg-type]
            for name in next(self.listings)
        )
        return ListGroupsResponse(throttle_time=NO_TIME, error_code=OK, groups=groups)

    def fetch(self, request: OffsetFetchRequest) -> Any:
        names = [str(group.group_id) for group in request.groups]
        if names[0].startswith("kafka-backup-probe"):
            answers: Mapping[str, int | ErrorCode | None] = dict.fromkeys(names, next(self.served))
        else:
            assert request.require_stable
            answers = next(self.offsets)
        groups = tuple(
            self._group(name, answers[name]) for name in names if answers.get(name, None) is not None
        )
        return OffsetFetchResponse(throttle_time=NO_TIME, groups=groups)

    def _group(self, name: str, answer: int | ErrorCode | None) -> OffsetFetchResponseGroup:
        if isinstance(answer, ErrorCode) and answer is not ErrorCode.unstable_offset_commit:
            return OffsetFetchResponseGroup(group_id=name, topics=(), error_code=answer)  # type: ignore[arg-type]
        unstable = isinstance(answer, ErrorCode)
        part = OffsetFetchResponsePartitions(
            partition_index=0,  # type: ignore[arg-type]
            committed_offset=-1 if unstable else answer,  # type: ignore[arg-type]
            metadata="m",
            error_code=ErrorCode.unstable_offset_commit if unstable else OK,
        )
        topic = OffsetFetchResponseTopics(name="orders", partitions=(part,))  # type: ignore[arg-type]
        return OffsetFetchResponseGroup(group_id=name, topics=(topic,))  # type: ignore[arg-type]


@pytest.fixture
def coordinators() -> Iterator[Coordinators]:
    """A coordinator that follows its script."""
    made = Coordinators()
    with made.broker:
        yield made


def client(coordinators: Coordinators, *, retry_seconds: float = 30) -> GroupClient:
    settings = ConnectionSettings.from_properties(coordinators.broker.address, {})
    return GroupClient(Cluster(settings, retry_seconds=retry_seconds))


@pytest.mark.parametrize(
    ("served", "epochs"),
    [
        ([NOT_COORDINATOR, OK, OK], [1]),
        ([OK, NOT_COORDINATOR, OK, OK], [1]),
        ([OK, ErrorCode.coordinator_load_in_progress, OK, OK], [1]),
        ([OK, OK, OK, OK], [1, 2]),
    ],
    ids=["not_yet", "not_any_more", "loading", "moved"],
)
def test_a_listing_is_not_believed_while_a_coordinator_moves(
    coordinators: Coordinators, served: list[ErrorCode], epochs: list[int]
) -> None:
    """What: a broker that lists no groups while its coordinator is not there, before, after or meanwhile.

    Why: brokers leave the groups out of a listing then, without an error, at every rolling restart.
    Risk: a snapshot without half of the groups, that looks whole.
    """
    coordinators.served, coordinators.epochs = iter(served), chain(epochs, repeat(epochs[-1]))
    first = [[]] if served[0] is OK else []
    coordinators.listings = iter([*first, ["late"]])
    listing = client(coordinators).list_groups()
    assert list(listing.groups) == ["late"]
    assert listing.is_proved
    assert next(coordinators.served, None) is None


def test_a_new_coordinator_is_not_asked_before_it_shows_everything(coordinators: Coordinators) -> None:
    """What: a leader of the offsets topic whose high watermark is not yet where its predecessor's was.

    Why: it lists and shows only what lies below: the last commits before a failover are missing for a while.
    Risk: a group, or the newest position of one, that is left out although its commit was acknowledged.
    """
    late = ErrorCode.offset_not_available
    coordinators.ready = chain([late] * 3, repeat(OK))
    coordinators.listings = iter([["late"]])
    assert list(client(coordinators).list_groups().groups) == ["late"]
    coordinators.ready = chain([late] * 3, repeat(OK))
    coordinators.offsets = iter([{"a": 9}])
    (found,) = client(coordinators).fetch(["a"]).values()
    assert found == {("orders", 0): CommittedOffset(offset=9, metadata="m")}
    coordinators.ready = repeat(late)
    (unread,) = client(coordinators, retry_seconds=0.5).fetch(["a"]).values()
    assert isinstance(unread, UnreachableError)


def test_a_group_that_is_left_out_is_an_error_and_not_empty(coordinators: Coordinators) -> None:
    """What: an answer to a question about two groups that holds only one of them, again and again.

    Why: a partial response during a network partition was taken for "this group has no offsets" elsewhere.
    Risk: that consumers of the group begin anew after a restore.
    """
    coordinators.offsets = iter([{"a": 5}] + [{}] * 1000)
    found = client(coordinators, retry_seconds=0.5).fetch(["a", "b"])
    assert found["a"] == {("orders", 0): CommittedOffset(offset=5, metadata="m")}
    assert isinstance(found["b"], UnreachableError)
    assert "'b'" in str(found["b"])


def test_an_unstable_offset_is_asked_for_again(coordinators: Coordinators) -> None:
    """What: a position with a transactional commit under way, until that has ended.

    Why: before the marker the old offset is shown, which is wrong by a whole transaction a moment later.
    Risk: records done twice after a restore.
    """
    unstable = ErrorCode.unstable_offset_commit
    coordinators.offsets = iter([{"a": unstable, "b": 1}, {"a": unstable}, {"a": 9}])
    found = client(coordinators).fetch(["a", "b"])
    assert {name: [o.offset for o in answer.values()] for name, answer in found.items()} == {  # type: ignore[union-attr]
        "a": [9],
        "b": [1],
    }
