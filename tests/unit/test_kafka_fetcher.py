"""A partition is read to its end, once and in order, whatever the brokers do on the way."""

import base64
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from kio.schema.errors import ErrorCode
from kio.schema.fetch.v13.request import FetchRequest
from kio.schema.fetch.v13.response import FetchResponse

from kafka_backup.errors import BrokerError, CancelledError, DamagedError, UnreachableError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.fetch import FetchedPartition, OffsetOutOfRangeError, PartitionFetcher
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.records import NewRecord, encode_batch
from tests.support.scripted_broker import ScriptedBroker, fetched, metadata

TOPIC = "orders"
TOPIC_ID = uuid.UUID(int=0x1234567890ABCDEF1234567890ABCDEF)
ID_TEXT = base64.urlsafe_b64encode(TOPIC_ID.bytes).decode().rstrip("=")


def make_log(batches: int, seed: int = 1) -> list[bytes]:
    """Batches of 1 to 5 records, contiguous from offset 0."""
    dice, log, offset = random.Random(seed), [], 0
    for _ in range(batches):
        count = dice.randint(1, 5)
        records = [NewRecord(dice.randbytes(50), None, [], 1_000 + n) for n in range(count)]
        log.append(encode_batch(records, base_offset=offset))
        offset += count
    return log


LOG = make_log(40)
ENDS = [int.from_bytes(batch[:8], "big") for batch in LOG[1:]]
END = ENDS[-1] + int.from_bytes(LOG[-1][57:61], "big")


class Partition:
    """Brokers 1..n of a scripted cluster; one of them leads the only partition."""

    def __init__(self, brokers: int, stack: ExitStack) -> None:
        self.brokers = {n: stack.enter_context(ScriptedBroker()) for n in range(1, brokers + 1)}
        self.leader, self.epoch, self.topic_id = 1, 0, TOPIC_ID
        self.fetches: list[tuple[int, FetchRequest]] = []
        self.trouble: dict[int, Callable[[int, FetchRequest], Any]] = {}
        for number, broker in self.brokers.items():
            broker.script[3] = lambda _: metadata(
                self.brokers, TOPIC, self.topic_id, [(self.leader, self.epoch)]
            )
            broker.script[1] = lambda request, number=number: self.fetch(number, request)

    def fetch(self, broker: int, request: FetchRequest) -> Any:
        """One thing of `trouble` by its number, else up to three batches and a half."""
        self.fetches.append((broker, request))
        if (trouble := self.trouble.pop(len(self.fetches), None)) is not None:
            return trouble(broker, request)
        return self.answer(broker, request)

    def answer(self, broker: int, request: FetchRequest, **more: Any) -> FetchResponse:
        """What a healthy broker says."""
        asked = request.topics[0].partitions[0]
        if broker != self.leader or asked.current_leader_epoch < self.epoch:
            return fetched(error=ErrorCode.not_leader_or_follower)
        return fetched(records_from(int(asked.fetch_offset)), end=END, **more)

    def cluster(self, **properties: str) -> Cluster:
        """A client of it."""
        servers = ",".join(broker.address for broker in self.brokers.values())
        settings = ConnectionSettings.from_properties(servers, {"socket.timeout.ms": "500"} | properties)
        return Cluster(settings, retry_seconds=5)


def records_from(offset: int) -> bytes:
    """Three batches from the one that holds the offset, and the beginning of a fourth."""
    first = sum(end <= offset for end in ENDS)
    tail = LOG[first + 3][:30] if first + 3 < len(LOG) else b""
    return b"".join(LOG[first : first + 3]) + tail


@pytest.fixture
def partition() -> Iterator[Partition]:
    """A cluster of three scripted brokers."""
    with ExitStack() as stack:
        yield Partition(3, stack)


def read(
    cluster: Cluster,
    *,
    start: int = 0,
    end: int = END,
    retry_seconds: float = 10,
    check_stop: Callable[[], None] = lambda: None,
) -> Iterator[FetchedPartition]:
    """What the engine does."""
    with PartitionFetcher(
        cluster,
        TOPIC,
        ID_TEXT,
        0,
        start=start,
        end=end,
        isolation="read_committed",
        retry_seconds=retry_seconds,
        check_stop=check_stop,
    ) as fetcher:
        yield from fetcher


def batches_of(responses: Iterator[FetchedPartition]) -> list[bytes]:
    """The whole batches, copied out."""
    return [
        bytes(response.records[place : place + header.size])
        for response in responses
        for place, header in response.batches
    ]


def new_leader(partition: Partition) -> Callable[[int, FetchRequest], Any]:
    """The old leader notices that it is none any more."""

    def move(_broker: int, _request: FetchRequest) -> Any:
        partition.leader, partition.epoch = 2, 1
        return fetched(error=ErrorCode.not_leader_or_follower)

    return move


def drop(_broker: int, _request: FetchRequest) -> Any:
    """The connection breaks."""
    raise ConnectionError


def half(partition: Partition) -> Callable[[int, FetchRequest], Any]:
    """The connection breaks in the middle of an answer."""

    def answer(broker: int, _request: FetchRequest) -> Any:
        partition.brokers[broker].send_to_last(b"\0\0\1\0" + bytes(100))
        raise ConnectionError

    return answer


def with_code(code: ErrorCode) -> Callable[[int, FetchRequest], Any]:
    """An error once."""
    return lambda _broker, _request: fetched(error=code)


TROUBLES: dict[str, Callable[[Partition], Callable[[int, FetchRequest], Any]]] = {
    "leader moved": new_leader,
    "connection dropped": lambda _: drop,
    "dropped in the middle of an answer": half,
    "silence": lambda _: lambda _b, _r: None,
    "empty": lambda _: lambda _b, _r: fetched(end=END),
    "left out": lambda _: lambda _b, _r: fetched(left_out=True),
    "throttled": lambda _: lambda _b, _r: fetched(left_out=True, throttle_ms=300),
    "fenced": lambda _: with_code(ErrorCode.fenced_leader_epoch),
    "unknown epoch": lambda _: with_code(ErrorCode.unknown_leader_epoch),
    "storage": lambda _: with_code(ErrorCode.kafka_storage_error),
    "topic id not known yet": lambda _: with_code(ErrorCode.unknown_topic_id),
    "half a batch": lambda _: lambda _b, _r: fetched(LOG[0][:40], end=END),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_every_batch_comes_once_and_in_order_through(name: str, partition: Partition) -> None:
    """What: one kind of trouble at the first, the fifth and the seventh fetch; then all batches compared.

    Why: a backup of hours meets each of them.
    Risk: a batch lost or doubled at the place where the reading went on.
    """
    for number in (1, 5, 7):
        partition.trouble[number] = TROUBLES[name](partition)
    assert batches_of(read(partition.cluster())) == LOG
    assert not partition.trouble


def test_reading_may_start_and_end_anywhere(partition: Partition) -> None:
    """What: ranges that start inside a batch, and end before the log does.

    Why: captures go on from where the last one ended, to the last stable offset.
    Risk: the first or the last batch of a range missing.
    """
    cluster = partition.cluster()
    firsts = [0, *ENDS]
    for start in range(0, END, 7):
        for end in (start + 1, ENDS[len(ENDS) // 2], END):
            got = batches_of(read(cluster, start=start, end=end))
            wanted = [batch for first, batch in zip(firsts, LOG, strict=True) if start < end and first < end]
            wanted = [
                b for b in wanted if int.from_bytes(b[:8], "big") + int.from_bytes(b[57:61], "big") > start
            ]
            assert got[: len(wanted)] == wanted


def test_a_response_stays_valid_until_the_one_after_the_next(partition: Partition) -> None:
    """What: the bytes of each response, looked at again after the next one has come.

    Why: the engine stores one response while the next one is received into the other buffer.
    Risk: segments that hold a mixture of two responses, with every CRC wrong or, worse, right.
    """
    responses = read(partition.cluster())
    before = next(responses)
    copy = bytes(before.records)
    for response in responses:
        assert before.records == copy
        before, copy = response, bytes(response.records)
    assert before.records == copy


def test_the_next_fetch_is_asked_before_a_response_is_handed_out(partition: Partition) -> None:
    """What: how many fetches the broker has seen when the caller gets the first response.

    Why: the network fills one buffer while the caller works on the other.
    Risk: half of the throughput.
    """
    responses = read(partition.cluster())
    next(responses)
    end = time.monotonic() + 10
    while len(partition.fetches) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert len(partition.fetches) == 2
    assert partition.fetches[1][1].topics[0].partitions[0].fetch_offset == ENDS[2]


def test_a_quota_is_waited_for_and_is_no_failure(partition: Partition) -> None:
    """What: a broker that throttles for longer than the socket timeout and the retry time together.

    Why: client quotas are how operators protect producers from backups.
    Risk: a throttled backup that fails, or reconnects and so evades the quota.
    """
    throttled: list[float] = []

    def throttle(_broker: int, _request: FetchRequest) -> Any:
        throttled.append(time.monotonic())
        return fetched(left_out=True, throttle_ms=900)

    def muted(broker: int, request: FetchRequest) -> Any:
        while time.monotonic() < throttled[-1] + 0.9:
            time.sleep(0.01)
        return throttle(broker, request)

    partition.trouble = {2: throttle, 3: muted, 4: muted}
    assert batches_of(read(partition.cluster(), retry_seconds=0.8)) == LOG
    assert partition.brokers[partition.leader].connections <= 2  # metadata, and this


def test_a_nearby_replica_is_read_and_left_when_it_fails(partition: Partition) -> None:
    """What: a leader that names a replica in our rack; that replica serves some fetches, then fails.

    Why: reading across racks costs money; a replica may lag or die, the leader counts (KIP-392).
    Risk: with client.rack set, a leader that sends nothing but that name, for ever.
    """

    def fetch(broker: int, request: FetchRequest) -> Any:
        partition.fetches.append((broker, request))
        if broker == 1 and request.rack_id == "b":
            return fetched(end=END, preferred_replica=3)
        served = sum(number == 3 for number, _ in partition.fetches)
        if broker == 3 and served > 4:
            raise ConnectionError
        return fetched(records_from(int(request.topics[0].partitions[0].fetch_offset)), end=END)

    partition.fetch = fetch  # type: ignore[method-assign]
    assert batches_of(read(partition.cluster(**{"client.rack": "b"}))) == LOG
    readers = [number for number, _ in partition.fetches]
    assert readers[0] == 1
    assert readers[1:6] == [3] * 5
    assert set(readers[6:]) == {1}
    assert not partition.fetches[-1][1].rack_id


def test_a_nearby_replica_that_is_behind_is_no_proof(partition: Partition) -> None:
    """What: OFFSET_OUT_OF_RANGE from a replica, while the leader has the offset.

    Why: only the leader knows where the log begins and ends.
    Risk: records declared lost that are there.
    """

    def fetch(broker: int, request: FetchRequest) -> Any:
        if broker == 3:
            return fetched(error=ErrorCode.offset_out_of_range)
        if request.rack_id:
            return fetched(end=END, preferred_replica=3)
        return fetched(records_from(int(request.topics[0].partitions[0].fetch_offset)), end=END)

    partition.fetch = fetch  # type: ignore[method-assign]
    assert batches_of(read(partition.cluster(**{"client.rack": "b"}))) == LOG


def test_out_of_range_is_told_at_once(partition: Partition) -> None:
    """What: OFFSET_OUT_OF_RANGE from the leader.

    Why: retention overtook the backup, or the log was cut back; the caller must find out which, now.
    Risk: retries of what cannot succeed, or an offset reset as consumers do it: silent loss.
    """
    partition.trouble[2] = with_code(ErrorCode.offset_out_of_range)
    responses = read(partition.cluster(), retry_seconds=60)
    began = time.monotonic()
    next(responses)
    with pytest.raises(OffsetOutOfRangeError, match=rf"orders \[0\] at offset {ENDS[2]}, broker 127"):
        next(responses)
    assert time.monotonic() - began < 10


def test_a_topic_that_was_created_anew_is_never_read_as_the_old_one(partition: Partition) -> None:
    """What: UNKNOWN_TOPIC_ID after some batches; the metadata then names another id under the same name.

    Why: a deleted and re-created topic starts at offset 0 with other records.
    Risk: two topics' records in one backup.
    """

    def recreate(_broker: int, _request: FetchRequest) -> Any:
        partition.topic_id = uuid.UUID(int=7)
        return fetched(error=ErrorCode.unknown_topic_id)

    partition.trouble[3] = recreate
    with pytest.raises(BrokerError, match=r"orders .*deleted and re-created") as caught:
        batches_of(read(partition.cluster()))
    assert not caught.value.retriable


@pytest.mark.parametrize("silent", [True, False])
def test_giving_up_names_partition_offset_and_broker(silent: bool, partition: Partition) -> None:
    """What: from the third fetch on the leader says nothing, or sends empty answers.

    Why: the message is all that an operator has at three in the morning.
    Risk: a backup that hangs for ever, or "timed out".
    """
    good = partition.fetch

    def fetch(broker: int, request: FetchRequest) -> Any:
        if len(partition.fetches) >= 2:
            return None if silent else fetched(end=END)
        return good(broker, request)

    partition.fetch = fetch  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"orders \[0\].*offset {ENDS[5]}") as caught:
        batches_of(read(partition.cluster(), retry_seconds=2))
    assert partition.brokers[1].address in str(caught.value)
    assert time.monotonic() - began < 15


def test_no_leader_is_waited_for(partition: Partition) -> None:
    """What: no leader at first; one after two seconds.

    Why: elections take seconds.
    Risk: a failed partition at each rolling restart.
    """
    partition.leader = -1
    began = time.monotonic()

    def stop() -> None:
        if time.monotonic() - began > 1:
            partition.leader = 2

    assert batches_of(read(partition.cluster(), check_stop=stop)) == LOG


def test_a_stop_is_seen_while_the_leader_is_silent(partition: Partition) -> None:
    """What: a leader that never answers, a retry time of minutes, and a caller that asks to stop.

    Why: Ctrl-C and Terminate.
    Risk: a process that must be killed.
    """
    partition.trouble[1] = lambda _broker, _request: None
    began = time.monotonic()

    def stop() -> None:
        if len(partition.fetches) == 1:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        batches_of(
            read(partition.cluster(**{"socket.timeout.ms": "60000"}), retry_seconds=300, check_stop=stop)
        )
    assert time.monotonic() - began < 10


def test_old_batches_name_their_partition(partition: Partition) -> None:
    """What: a batch of message format version 1, as topics of very old producers hold.

    Why: such a topic cannot be copied; the operator must know which, and where.
    Risk: an error about bytes, or a topic silently left out.
    """
    old = bytearray(LOG[0])
    old[16] = 1
    partition.trouble[2] = lambda _broker, _request: fetched(bytes(old), end=END)
    with pytest.raises(DamagedError, match=r"orders \[0\].*format version 1"):
        batches_of(read(partition.cluster()))


def test_one_huge_batch_does_not_keep_its_memory(partition: Partition) -> None:
    """What: a batch twenty times the fetch size among small ones.

    Why: brokers send the first batch whole, however large (KIP-74); buffers are kept for the next responses.
    Risk: eight partitions with two buffers of 100 MB each.
    """
    huge = encode_batch([NewRecord(bytes(20 << 16), None, [], 1)], base_offset=END)
    small = encode_batch([NewRecord(b"x", None, [], 1)], base_offset=END + 1)
    answers: Sequence[bytes] = [*(b"".join(LOG[n : n + 3]) for n in range(0, 39, 3)), LOG[39], huge, small]
    partition.trouble = {
        n: lambda _broker, _request, records=records: fetched(records, end=END + 2)
        for n, records in enumerate(answers, 1)
    }
    with PartitionFetcher(
        partition.cluster(),
        TOPIC,
        ID_TEXT,
        0,
        start=0,
        end=END + 2,
        isolation="read_committed",
        retry_seconds=5,
        check_stop=lambda: None,
        max_bytes=1 << 16,
    ) as fetcher:
        assert batches_of(iter(fetcher)) == [*LOG, huge, small]
        assert max(map(len, fetcher._buffers)) <= 1 << 17


@pytest.mark.parametrize("broken", range(2, 12))
def test_an_answer_counts_though_the_next_question_cannot_be_sent(
    partition: Partition, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """Tests a connection that breaks just when the next fetch is sent, with an answer already received.

    It matters because the next fetch is sent before the answer at hand is given out.
    The position has moved on by then: an answer dropped here is never asked for again.
    """
    send, sent = Connection.send, 0

    def fail_once(connection: Connection, api_key: int, *rest: Any, **more: Any) -> None:
        nonlocal sent
        sent += api_key == 1
        if api_key == 1 and sent == broken:
            connection.close()
            raise UnreachableError("reset by peer")
        send(connection, api_key, *rest, **more)

    monkeypatch.setattr(Connection, "send", fail_once)
    assert batches_of(read(partition.cluster())) == LOG
    assert sent > broken
