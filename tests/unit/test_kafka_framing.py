"""Fetch and Produce are framed by hand; kio's slow, generated reader and writer are the judge."""

import base64
import datetime
import io
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.errors import ErrorCode
from kio.schema.fetch.v13.request import FetchRequest
from kio.schema.fetch.v13.response import (
    AbortedTransaction,
    EpochEndOffset,
    FetchableTopicResponse,
    FetchResponse,
    LeaderIdAndEpoch,
    PartitionData,
)
from kio.schema.produce.v9.request import ProduceRequest
from kio.schema.produce.v9.response import (
    BatchIndexAndErrorMessage,
    PartitionProduceResponse,
    ProduceResponse,
    TopicProduceResponse,
)
from kio.serial import entity_reader, entity_writer

from kafka_backup.errors import AuthorizationError, BrokerError
from kafka_backup.kafka.fetch import fetch_request, parse_fetch_response, read_varint, varint
from kafka_backup.kafka.produce import (
    ProduceResult,
    parse_produce_response,
    produce_request,
)

INT16 = st.integers(-(2**15), 2**15 - 1)
INT32 = st.integers(0, 2**31 - 1)
INT64 = st.integers(-1, 2**63 - 1)
CODES = st.sampled_from([each for each in ErrorCode if each])
TOPIC_IDS = st.uuids()
TOPICS = st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True)


def written(entity: Any) -> bytes:
    """The entity by kio's writer."""
    buffer = io.BytesIO()
    entity_writer(type(entity))(buffer, entity)
    return buffer.getvalue()


def as_received(entity: Any) -> memoryview:
    """A response as `Connection.receive` returns it: correlation id, no header tags, body."""
    return memoryview(bytearray(b"\0\0\0\7\0" + written(entity)))


def id_text(topic_id: uuid.UUID) -> str:
    """As Kafka prints it."""
    return base64.urlsafe_b64encode(topic_id.bytes).decode().rstrip("=")


@given(st.integers(0, 2**32 - 1))
def test_varints_come_back(number: int) -> None:
    """What: unsigned varints of every length, written and read.

    Why: each length and count of the flexible protocol versions is one.
    Risk: at 128 or 16,384 the length of a batch would be read wrongly.
    """
    data = memoryview(b"x" + varint(number) + b"y")
    assert read_varint(data, 1) == (number, len(data) - 1)


@given(
    topic_id=TOPIC_IDS,
    partition=INT32,
    offset=INT64,
    epoch=st.integers(-1, 2**31 - 1),
    max_bytes=INT32,
    committed=st.booleans(),
    rack=st.text(max_size=200),
)
def test_fetch_requests_say_what_they_must(
    topic_id: uuid.UUID, partition: int, offset: int, epoch: int, max_bytes: int, committed: bool, rack: str
) -> None:
    """What: our Fetch v13 request, read back by kio from the first byte to the last.

    Why: a broker believes what it reads: another offset or isolation is a valid request, too.
    Risk: uncommitted records in a backup, or a fetch from the wrong place.
    """
    data = fetch_request(
        topic_id=id_text(topic_id),
        partition=partition,
        offset=offset,
        leader_epoch=epoch,
        isolation="read_committed" if committed else "read_uncommitted",
        max_bytes=max_bytes,
        rack=rack,
    )
    request, size = entity_reader(FetchRequest)(data, 0)
    assert size == len(data)
    assert (request.replica_id, request.isolation_level, request.max_bytes) == (-1, committed, max_bytes)
    assert (request.session_id, request.session_epoch, request.rack_id) == (0, -1, rack)
    assert request.min_bytes == 1
    assert not request.forgotten_topics_data
    ((topic,),) = [request.topics]
    assert topic.topic_id == topic_id or topic_id.int == 0
    ((asked,),) = [topic.partitions]
    assert (asked.partition, asked.fetch_offset, asked.current_leader_epoch) == (partition, offset, epoch)
    assert (asked.last_fetched_epoch, asked.log_start_offset) == (-1, -1)
    assert asked.partition_max_bytes == max_bytes


@st.composite
def partition_answers(draw: st.DrawFn) -> PartitionData:
    """One partition of a Fetch response, with and without tagged fields."""
    aborted = st.builds(AbortedTransaction, producer_id=INT64, first_offset=INT64)
    extra: dict[str, Any] = {}
    if draw(st.booleans()):
        extra["diverging_epoch"] = EpochEndOffset(epoch=3, end_offset=draw(INT64))  # type: ignore[arg-type]
    if draw(st.booleans()):
        extra["current_leader"] = LeaderIdAndEpoch(leader_id=2, leader_epoch=draw(INT32))  # type: ignore[arg-type]
    return PartitionData(
        partition_index=draw(INT32),  # type: ignore[arg-type]
        error_code=draw(CODES | st.just(ErrorCode.none)),
        high_watermark=draw(INT64),  # type: ignore[arg-type]
        last_stable_offset=draw(INT64),  # type: ignore[arg-type]
        log_start_offset=draw(INT64),  # type: ignore[arg-type]
        aborted_transactions=draw(st.none() | st.lists(aborted, max_size=200).map(tuple)),
        preferred_read_replica=draw(st.integers(-1, 100)),  # type: ignore[arg-type]
        records=draw(st.none() | st.binary(max_size=20_000)),
        **extra,
    )


@given(topic_id=TOPIC_IDS, part=partition_answers(), throttle=INT32, code=CODES | st.just(ErrorCode.none))
def test_fetch_responses_are_read_as_they_were_written(
    topic_id: uuid.UUID, part: PartitionData, throttle: int, code: ErrorCode
) -> None:
    """What: a Fetch v13 response by kio's writer, any fields and sizes, parsed by us.

    Why: which batches were aborted, and where the log starts, is decided by these numbers.
    Risk: records of aborted transactions restored as if they had been committed.
    """
    response = FetchResponse(
        throttle_time=datetime.timedelta(milliseconds=throttle),  # type: ignore[arg-type]
        error_code=code,
        session_id=0,  # type: ignore[arg-type]
        responses=(FetchableTopicResponse(topic_id=topic_id, partitions=(part,)),),
    )
    frame = as_received(response)
    answer = parse_fetch_response(frame)
    assert (answer.throttle_ms, answer.error_code) == (throttle, code or part.error_code)
    assert answer.high_watermark == part.high_watermark
    assert answer.last_stable_offset == part.last_stable_offset
    assert answer.log_start_offset == part.log_start_offset
    assert answer.preferred_replica == part.preferred_read_replica
    assert answer.aborted == [(a.producer_id, a.first_offset) for a in part.aborted_transactions or ()]
    assert answer.records == (part.records or b"")
    assert answer.records.obj is frame.obj, "the records were copied"
    assert not answer.records.readonly


@given(throttle=INT32, code=CODES | st.just(ErrorCode.none), empty_topic=st.booleans())
def test_a_throttled_fetch_response_has_no_partition(
    throttle: int, code: ErrorCode, empty_topic: bool
) -> None:
    """What: responses without a topic, or with a topic without partitions.

    Why: so brokers answer who is over a quota; one tool took it for the end and lost half of a topic.
    Risk: an end that is none.
    """
    topics = (FetchableTopicResponse(topic_id=uuid.uuid4(), partitions=()),) if empty_topic else ()
    response = FetchResponse(
        throttle_time=datetime.timedelta(milliseconds=throttle),  # type: ignore[arg-type]
        error_code=code,
        session_id=0,  # type: ignore[arg-type]
        responses=topics,
    )
    answer = parse_fetch_response(as_received(response))
    assert (answer.throttle_ms, answer.error_code, bytes(answer.records)) == (throttle, code, b"")


def test_a_fetch_response_that_is_cut_off_is_an_error() -> None:
    """What: a response, shortened byte by byte.

    Why: what cannot be read must not be taken for "no records".
    Risk: the records of a damaged answer silently missing.
    """
    part = PartitionData(
        partition_index=0,  # type: ignore[arg-type]
        error_code=ErrorCode.none,
        high_watermark=9,  # type: ignore[arg-type]
        last_stable_offset=9,  # type: ignore[arg-type]
        log_start_offset=0,  # type: ignore[arg-type]
        aborted_transactions=None,
        records=b"r" * 300,
    )
    response = FetchResponse(
        throttle_time=datetime.timedelta(0),  # type: ignore[arg-type]
        error_code=ErrorCode.none,
        session_id=0,  # type: ignore[arg-type]
        responses=(FetchableTopicResponse(topic_id=uuid.uuid4(), partitions=(part,)),),
    )
    frame = as_received(response)
    tags = 3  # of partition, topic and response, after the records
    for size in range(16, len(frame) - tags):
        with pytest.raises((IndexError, struct.error)):
            parse_fetch_response(frame[:size])


BATCHES = st.dictionaries(INT32, st.binary(min_size=1, max_size=20_000), min_size=1, max_size=5)


@given(topic=TOPICS, batches=BATCHES)
def test_produce_requests_say_what_they_must(topic: str, batches: dict[int, bytes]) -> None:
    """What: our Produce v9 request around some batches, read back by kio from the first byte to the last.

    Why: the batches go out untouched between hand-made pieces.
    Risk: acks that are not "all", or a batch in the wrong partition.
    """
    data = b"".join(produce_request(topic, list(batches.items()), timeout_seconds=2.5))
    request, size = entity_reader(ProduceRequest)(data, 0)
    assert size == len(data)
    assert (request.transactional_id, request.acks) == (None, -1)
    assert request.timeout == datetime.timedelta(seconds=2.5)
    ((asked,),) = [request.topic_data]
    assert asked.name == topic
    assert [(part.index, part.records) for part in asked.partition_data] == list(batches.items())


RESULTS = st.dictionaries(
    INT32,
    st.tuples(
        CODES | st.just(ErrorCode.none),
        INT64,
        st.none() | st.text(max_size=300),
        st.lists(st.none() | st.text(max_size=50), max_size=5),
    ),
    min_size=1,
    max_size=5,
)


@given(topic=TOPICS, results=RESULTS, throttle=INT32)
def test_produce_responses_are_read_as_they_were_written(
    topic: str,
    results: dict[int, tuple[ErrorCode, int, str | None, list[str | None]]],
    throttle: int,
) -> None:
    """What: a Produce v9 response for some partitions by kio's writer, parsed by us.

    Why: the base offset is the tripwire of every restore.
    Risk: a wire that trips at nothing, or never, or of another partition.
    """
    response = ProduceResponse(
        responses=(
            TopicProduceResponse(
                name=topic,  # type: ignore[arg-type]
                partition_responses=tuple(
                    PartitionProduceResponse(
                        index=number,  # type: ignore[arg-type]
                        error_code=code,
                        base_offset=base_offset,  # type: ignore[arg-type]
                        record_errors=tuple(
                            BatchIndexAndErrorMessage(batch_index=n, batch_index_error_message=text)  # type: ignore[arg-type]
                            for n, text in enumerate(details)
                        ),
                        error_message=message,
                    )
                    for number, (code, base_offset, message, details) in results.items()
                ),
            ),
        ),
        throttle_time=datetime.timedelta(milliseconds=throttle),  # type: ignore[arg-type]
    )
    found, throttle_ms = parse_produce_response(as_received(response))
    assert throttle_ms == throttle
    assert found == {
        number: (code, base_offset, "; ".join(filter(None, [message, *details])))
        for number, (code, base_offset, message, details) in results.items()
    }


def test_errors_of_a_write_name_the_partition_and_say_what_may_be_done() -> None:
    """What: a produce error as an exception: retriable, final, a missing right, and a code of a newer broker.

    Why: the class alone decides between another try, exit 3 and exit 2.
    Risk: a restore that retries for ever what no retry mends, or gives up where one would have.
    """
    moved = ProduceResult(error_code=6, base_offset=-1).to_error("orders [3]")
    assert isinstance(moved, BrokerError)
    assert (moved.name, moved.code, moved.retriable) == ("NOT_LEADER_OR_FOLLOWER", 6, True)
    refused = ProduceResult(error_code=87, base_offset=-1, error_message="bad batch").to_error("orders [3]")
    assert not refused.retriable
    assert "orders [3]" in str(refused)
    assert "bad batch" in str(refused)
    assert isinstance(ProduceResult(error_code=29, base_offset=-1).to_error("t"), AuthorizationError)
    newer = ProduceResult(error_code=9999, base_offset=-1).to_error("t")
    assert isinstance(newer, BrokerError)
    assert not newer.retriable
