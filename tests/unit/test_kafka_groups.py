"""The group coordinators' bad moments: moving, loading, forgetful."""

import datetime
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import pytest
from kio.schema.errors import ErrorCode
from kio.schema.fetch.v13.request import FetchRequest
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
from kio.schema.offset_for_leader_epoch.v4.request import OffsetForLeaderEpochRequest
from kio.schema.offset_for_leader_epoch.v4.response import (
    EpochEndOffset,
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)

from kafka_backup.errors import AuthorizationError, DamagedError, UnreachableError
from kafka_backup.kafka import last_commits
from kafka_backup.kafka.cluster import EARLIEST, Cluster
from kafka_backup.kafka.coordinators import probe_groups
from kafka_backup.kafka.groups import CommittedOffset, GroupClient
from kafka_backup.kafka.last_commits import OFFSETS_TOPIC
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.records.codec import Record, encode_batch
from tests.support.scripted_broker import ScriptedBroker, fetched, metadata
from tests.unit.offset_commits import commit_key, commit_value, text

OK, NOT_COORDINATOR = ErrorCode.none, ErrorCode.not_coordinator
UNSTABLE = ErrorCode.unstable_offset_commit
NO_COMMIT = -1
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
            {
                1: self.read,
                2: self.ends,
                3: self.metadata,
                9: self.fetch,
                10: self.find,
                16: self.list_groups,
                23: self.epoch_ends,
            }
        )
        self.log: list[tuple[int, bytes]] = []
        """Batches, each with its last offset."""
        self.log_start = self.epoch_start = 0
        self.ends_at: Iterator[int] = repeat(9)
        self.log_error = OK
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
        first = int(asked.timestamp) == EARLIEST
        part = ListOffsetsPartitionResponse(
            partition_index=asked.partition_index,
            error_code=OK if first else next(self.ready),
            offset=self.log_start if first else next(self.ends_at),  # type: ignore[arg-type]
            leader_epoch=asked.current_leader_epoch,
        )
        topic = ListOffsetsTopicResponse(name=OFFSETS_TOPIC, partitions=(part,))  # type: ignore[arg-type]
        return ListOffsetsResponse(throttle_time=NO_TIME, topics=(topic,))

    def epoch_ends(self, request: OffsetForLeaderEpochRequest) -> Any:
        (asked,) = request.topics[0].partitions
        assert asked.leader_epoch == asked.current_leader_epoch - 1
        part = EpochEndOffset(
            error_code=OK,
            partition=asked.partition,
            leader_epoch=asked.leader_epoch,
            end_offset=self.epoch_start,  # type: ignore[arg-type]
        )
        topic = OffsetForLeaderTopicResult(topic=OFFSETS_TOPIC, partitions=(part,))  # type: ignore[arg-type]
        return OffsetForLeaderEpochResponse(throttle_time=NO_TIME, topics=(topic,))

    def read(self, request: FetchRequest) -> Any:
        if self.log_error:
            return fetched(error=self.log_error)
        first = int(request.topics[0].partitions[0].fetch_offset)
        assert first >= self.log_start
        return fetched(b"".join(batch for last, batch in self.log if last >= first), end=self.epoch_start)

    def write(
        self, *records: tuple[bytes, bytes | None], time: int = 0, producer: int = -1, control: bool = False
    ) -> None:
        """Append a batch to the log that a new leader takes over."""
        batch = encode_batch(
            [
                Record(offset=self.epoch_start + i, timestamp=time, key=key, value=value)
                for i, (key, value) in enumerate(records)
            ],
            producer_id=producer,
            transactional=producer >= 0,
            control=control,
        )
        self.epoch_start += len(records)
        self.log.append((self.epoch_start - 1, batch))

    def take_over(self) -> None:
        """Be the second leader, which has written nothing yet."""
        self.epochs, self.ends_at = repeat(1), repeat(self.epoch_start)

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
        if isinstance(answer, ErrorCode) and answer is not UNSTABLE:
            return OffsetFetchResponseGroup(group_id=name, topics=(), error_code=answer)  # type: ignore[arg-type]
        unstable = isinstance(answer, ErrorCode)
        part = OffsetFetchResponsePartitions(
            partition_index=0,  # type: ignore[arg-type]
            committed_offset=NO_COMMIT if unstable else answer,  # type: ignore[arg-type]
            metadata="m",
            error_code=UNSTABLE if unstable else OK,
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
    coordinators.offsets = iter([{"a": UNSTABLE, "b": 1}, {"a": UNSTABLE}, {"a": 9}])
    found = client(coordinators).fetch(["a", "b"])
    assert {name: [o.offset for o in answer.values()] for name, answer in found.items()} == {  # type: ignore[union-attr]
        "a": [9],
        "b": [1],
    }


def position(group: str, offset: int | None, *, metadata: str = "m") -> tuple[bytes, bytes | None]:
    """The record of a commit; None: its tombstone."""
    value = None if offset is None else commit_value(3, offset, -1, metadata)
    return commit_key(group, "orders", 0), value


def marker(*, committed: bool) -> tuple[bytes, bytes]:
    return b"\0\0\0" + bytes([committed]), bytes(6)


def found_by(client: GroupClient, groups: Sequence[str]) -> dict[str, list[int]]:
    """Where groups are, all of which must be read."""
    answers = client.fetch(groups)
    assert not any(isinstance(answer, Exception) for answer in answers.values()), answers
    return {name: [o.offset for o in answer.values()] for name, answer in answers.items()}  # type: ignore[union-attr]


def test_what_a_new_coordinator_does_not_show_is_read_from_its_log(coordinators: Coordinators) -> None:
    """What: commits, a deletion, transactions right before a coordinator took over, which shows none of them.

    Why: Kafka 4 looks at the high watermark while it loads, and is told of changes only afterwards.
    Risk: a group that is missing without an error; positions from before the failover; an aborted one.
    """
    coordinators.write(position("moved", 3), position("gone", 4), position("aborted", 5))
    coordinators.write(position("moved", 7), position("fresh", 8))
    coordinators.write(position("exactly", 9), producer=70)
    coordinators.write(position("aborted", 99), producer=71)
    coordinators.write(position("overtaken", 10), producer=72)
    coordinators.write(position("ended", 10), producer=73)
    coordinators.write(position("overtaken", 11), position("ended", None))
    coordinators.write(marker(committed=True), producer=70, control=True)
    coordinators.write(marker(committed=False), producer=71, control=True)
    coordinators.write(marker(committed=True), producer=72, control=True)
    coordinators.write(position("gone", None))
    coordinators.write((b"\0\2" + text("joined"), b"x"), position("joined", 2))
    coordinators.take_over()
    shown: dict[str, int | ErrorCode | None] = {
        "moved": 3,
        "gone": 4,
        "aborted": 5,
        "fresh": NO_COMMIT,
        "exactly": NO_COMMIT,
        "joined": NO_COMMIT,
        "overtaken": NO_COMMIT,
    }
    coordinators.listings = repeat(["moved", "gone", "aborted"])
    coordinators.offsets = repeat(shown)
    asker = client(coordinators)
    listing = asker.list_groups()
    assert (listing.is_proved, listing.unread) == (True, {})
    assert sorted(listing.groups) == sorted(shown)
    fresh, joined = listing.groups["fresh"], listing.groups["joined"]
    assert (fresh.type, fresh.state, fresh.has_members) == ("classic", "Empty", False)
    assert (joined.type, joined.state, joined.has_members) == ("classic", "Unknown", True)
    assert found_by(asker, list(shown)) == {
        "moved": [7],
        "gone": [],
        "aborted": [5],
        "fresh": [8],
        "exactly": [9],
        "joined": [2],
        "overtaken": [11],
    }
    (named,) = asker.fetch({"moved": [("orders", 1)]}).values()
    assert named == {("orders", 0): CommittedOffset(offset=3, metadata="m")}  # nobody asked for [0]
    coordinators.offsets = repeat({"ended": 1})
    assert found_by(asker, ["ended"]) == {"ended": []}


def test_a_coordinator_that_has_written_since_is_believed(coordinators: Coordinators) -> None:
    """What: while it is asked a new coordinator writes, so that it shows everything; it is asked again.

    Why: the end of the log that it took over is not the end any more.
    Risk: a position from before the failover put over a newer one, which a consumer has committed since.
    """
    coordinators.write(position("a", 7), position("b", 1))
    coordinators.take_over()
    quiet, busy = coordinators.epoch_start, coordinators.epoch_start + 1
    coordinators.ends_at = chain([quiet], repeat(busy))
    coordinators.offsets = iter([{"a": 3}, {"a": 8}])
    assert found_by(client(coordinators), ["a"]) == {"a": [8]}
    coordinators.ends_at = chain([quiet], repeat(busy))
    coordinators.listings = iter([[], ["a"]])
    assert list(client(coordinators).list_groups().groups) == ["a"]  # "b" was deleted meanwhile


def test_a_transaction_that_a_new_coordinator_does_not_show_is_waited_for(coordinators: Coordinators) -> None:
    """What: a transactional commit right before a coordinator took over, without its end.

    Why: a coordinator that shows it says "unstable"; this one shows the old position as if nothing were under way.
    Risk: a position from before a transaction that is committed a moment later.
    """
    coordinators.write(position("a", 3), position("b", 1))
    coordinators.write(position("a", 9), producer=70)
    coordinators.take_over()
    coordinators.ends_at = chain([coordinators.epoch_start] * 4, repeat(coordinators.epoch_start + 1))
    coordinators.offsets = iter([{"a": 3, "b": 1}, {"a": 3}, {"a": 9}])
    assert found_by(client(coordinators), ["a", "b"]) == {"a": [9], "b": [1]}


@pytest.mark.parametrize("why", ["no right", "unknown record"])
def test_a_log_that_cannot_be_read_is_a_doubt(coordinators: Coordinators, why: str) -> None:
    """What: no READ on the offsets topic, or a record of a version that is not known here.

    Why: the right is not needed for anything else, and nearly always nothing is missing.
    Risk: no snapshots any more without that right; or a doubt about which nobody hears.
    """
    coordinators.write(position("a", 3))
    coordinators.write((commit_key("a", "orders", 0), b"\0\x63"))
    coordinators.take_over()
    coordinators.log_error = ErrorCode.topic_authorization_failed if why == "no right" else OK
    coordinators.listings, coordinators.offsets = repeat(["a"]), repeat({"a": 3})
    asker = client(coordinators)
    listing = asker.list_groups()
    assert list(listing.groups) == ["a"]
    (error,) = listing.unread.values()
    assert isinstance(error, AuthorizationError if why == "no right" else DamagedError)
    assert found_by(asker, ["a"]) == {"a": [3]}


def test_a_log_that_cannot_be_read_now_is_waited_for(
    coordinators: Coordinators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What: a new coordinator answers, and its log does not, for a while or for good.

    Why: whether it shows everything is not known then.
    Risk: an answer that is believed because the proof did not come in time.
    """
    monkeypatch.setattr(last_commits, "_PATIENCE_SECONDS", 0.1)
    coordinators.write(position("a", 3))
    coordinators.take_over()
    coordinators.listings, coordinators.offsets = repeat(["a"]), repeat({"a": 2})
    coordinators.log_error = ErrorCode.kafka_storage_error
    with pytest.raises(UnreachableError):
        client(coordinators, retry_seconds=0.3).list_groups()
    asker = client(coordinators, retry_seconds=0.3)
    (unread,) = asker.fetch(["a"]).values()
    assert isinstance(unread, UnreachableError)
    coordinators.log_error = OK
    assert found_by(asker, ["a"]) == {"a": [3]}


def test_a_leader_that_does_not_say_where_its_epoch_begins_is_believed(coordinators: Coordinators) -> None:
    """What: a coordinator whose log knows no epochs.

    Why: whether it took over without a write since cannot be told then, as it never could.
    Risk: a cluster whose groups cannot be saved any more, because of a proof that is nearly never needed.
    """
    coordinators.epochs, coordinators.epoch_start = repeat(1), -1
    coordinators.listings, coordinators.offsets = repeat(["a"]), repeat({"a": 2})
    asker = client(coordinators, retry_seconds=1)
    assert list(asker.list_groups().groups) == ["a"]
    assert found_by(asker, ["a"]) == {"a": [2]}


@pytest.mark.parametrize(("seconds", "shown"), [(2, 5), (15, 4)])
def test_the_end_of_a_log_is_read_as_far_back_as_a_replica_may_lag(
    coordinators: Coordinators, seconds: int, shown: int
) -> None:
    """What: a commit behind thousands of others, within the time that an elected replica may lag, and before.

    Why: how far back a coordinator's view may be is a matter of time, and not of bytes.
    Risk: a busy partition whose last second is more than what is looked at; or all of the log read each time.
    """
    coordinators.write(position("a", 5))
    for i in range(30):
        coordinators.write(*(position("other", n) for n in range(100)), time=1000 * seconds * i)
    coordinators.take_over()
    coordinators.offsets = repeat({"a": 4})
    assert found_by(client(coordinators), ["a"]) == {"a": [shown]}


def test_an_offset_that_is_none_is_an_error_in_the_log_too(coordinators: Coordinators) -> None:
    """What: negative numbers as positions, which old clients could commit.

    Why: brokers show -1 as "no commit"; anything below means nothing.
    Risk: a snapshot that cannot be stored, because of one group.
    """
    coordinators.write(position("a", -1), position("b", -7))
    coordinators.take_over()
    coordinators.offsets = repeat({"a": 2, "b": 2})
    found = client(coordinators).fetch(["a", "b"])
    assert found["a"] == {}
    assert "-7 is no position" in str(found["b"])
