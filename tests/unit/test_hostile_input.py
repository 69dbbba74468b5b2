"""Input that somebody made to hurt: only our own errors come out, little memory goes in, no path leads out.

Everything that is read from outside is mutated here under right checksums, for whoever can write into a bucket
can compute a checksum.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import struct
import tempfile
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.create_topics.v7.response import CreateTopicsResponse
from kio.schema.errors import ErrorCode
from kio.schema.fetch.v13.response import (
    AbortedTransaction,
    FetchableTopicResponse,
    FetchResponse,
    PartitionData,
)
from kio.schema.init_producer_id.v4.response import InitProducerIdResponse
from kio.schema.list_offsets.v7.response import ListOffsetsResponse
from kio.schema.metadata.v12.response import MetadataResponse
from kio.schema.produce.v9.response import PartitionProduceResponse, ProduceResponse, TopicProduceResponse
from kio.serial import entity_writer

from kafka_backup.config import load_config
from kafka_backup.errors import ConfigurationError, DamagedError, RefusedError, UnreachableError
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.fetch import parse_fetch_response
from kafka_backup.kafka.produce import parse_produce_response
from kafka_backup.kafka.settings import Address
from kafka_backup.records.aborted import AbortedFilter
from kafka_backup.records.batch import HEADER_SIZE, walk
from kafka_backup.records.codec import decode_batch
from kafka_backup.records.convert import Bounds, convert
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import Capture, Commit, Document, open_document, seal_document
from kafka_backup.repository.group_documents import GroupSnapshot
from kafka_backup.repository.group_store import GroupStore
from kafka_backup.repository.layout import commit_key
from kafka_backup.repository.restore_documents import (
    OffsetMapDocument,
    RestoreAttempt,
    RestorePlan,
    RestoreReport,
    RestoreVerification,
)
from kafka_backup.repository.restore_folder import key_of
from kafka_backup.repository.segments import SegmentReader
from kafka_backup.repository.store import check_key
from tests.unit.repositories import batch, capture, memory_store, replace_object
from tests.unit.strategies import stored_batches
from tests.unit.whole_repository import DOCUMENTS, SNAPSHOTS, restorable

MIB = 1 << 20
LAST_OFFSET = 2**63 - 1


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fails if Python's memory grows by more than `size` bytes meanwhile."""
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before <= size
    finally:
        if started:
            tracemalloc.stop()


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytearray:
    """Some bytes changed, a piece cut out, put in or repeated."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        match draw(st.sampled_from(["byte", "byte", "byte", "cut", "insert", "repeat"])):
            case "byte" if changed:
                changed[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
            case "cut":
                del changed[place : place + draw(st.integers(1, 40))]
            case "insert":
                changed[place:place] = draw(st.binary(max_size=20))
            case _:
                changed[place:place] = changed[place : place + draw(st.integers(1, 40))]
    return changed


@st.composite
def hostile_batches(draw: st.DrawFn) -> bytearray:
    """A batch that was changed, most of them with a length and checksum that fit."""
    data = draw(mutated(draw(stored_batches())[0]))
    if len(data) >= HEADER_SIZE and draw(st.integers(0, 9)):
        struct.pack_into(">i", data, 8, len(data) - 12)
        data[16] = 2
        struct.pack_into(">I", data, 17, crc32c.crc32c(memoryview(data)[21:]))
    return data


@given(
    data=hostile_batches(),
    times=st.tuples(st.none() | st.just(1_700_000_000_050), st.none() | st.just(1_700_000_000_060)),
    offsets=st.sampled_from([(0, LAST_OFFSET), (1, LAST_OFFSET), (0, 3), (2**31, 2**40)]),
    largest=st.sampled_from([70, 200, MIB]),
)
def test_any_record_batch_is_read_or_refused(
    data: bytearray, times: tuple[int | None, int | None], offsets: tuple[int, int], largest: int
) -> None:
    """Tests mutated batches with right checksums: decoded, judged, converted; with a few MiB of memory.

    It matters because clients with bugs write such batches, and brokers store them with a checksum that fits.
    A bare IndexError names neither topic nor offset, and a count of 2 billion fills the memory.
    """
    bounds = Bounds(first_offset=offsets[0], end_offset=offsets[1], from_ms=times[0], until_ms=times[1])

    def convert_all() -> object:
        whole = ((memoryview(bytearray(data))[at : at + h.size], h) for at, h in walk(data))
        return list(convert(whole, bounds, max_batch_bytes=largest))

    def judge_all() -> object:
        judge = AbortedFilter([(7, 0), (-1, 0)])
        return [judge.is_aborted(at, header, data) for at, header in walk(data)]

    for read in (lambda: list(walk(data)), lambda: decode_batch(data), convert_all, judge_all):
        with at_most(4 * MIB):
            try:
                read()
            except (DamagedError, RefusedError):
                continue


@st.composite
def hostile_values(draw: st.DrawFn) -> object:
    """What nobody expects in the place of a value."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([2**31, 2**40, 2**63 - 1, 2**63, -1, 0]),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(
            ["..", "../x", "/etc/passwd", "a/b", "\0", "a\nb", "", ".", "x" * 300, "con", "%2e%2e"]
        ),
    )
    nested = st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=5), leaves, max_size=3)
    return draw(leaves | nested)


def _places(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Every place in a JSON value."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places(item, (*path, index))


def _documents() -> dict[str, tuple[type[Document], bytes]]:
    """One document of each kind, as JSON without its checksum."""
    store = restorable()
    found = {name: (kind, store.get(key)) for name, (key, kind) in DOCUMENTS.items()}
    found["group snapshot"] = (GroupSnapshot, GroupStore(store).snapshot(SNAPSHOTS[0]).to_bytes())
    return {name: (kind, open_document(data, key=name, kind=name)) for name, (kind, data) in found.items()}


KINDS = _documents()


@st.composite
def hostile_documents(draw: st.DrawFn, kind: str) -> bytes:
    """A document of which one value was replaced or left out, or one field added; its checksum fits."""
    document = json.loads(KINDS[kind][1])
    *path, last = draw(st.sampled_from(list(_places(document))))
    holder = document
    for step in path:
        holder = holder[step]
    match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"])):
        case "replace":
            holder[last] = draw(hostile_values())
        case "remove":
            del holder[last]
        case _ if isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = draw(hostile_values())
    return seal_document(json.dumps(document).encode(errors="surrogatepass"))


def _keys(document: Document) -> Iterator[str]:
    """Every key that we compute from what a document says."""
    match document:
        case Commit():
            named = document.incarnation
            yield commit_key(named.topic, named.topic_id, document.number)
            log = CommitLog.open(memory_store(), named.topic, named.topic_id)
            for part in document.partitions:
                for entry in part.segments:
                    yield log.stored_segment(document, part, entry).key
        case RestorePlan() | RestoreAttempt() | RestoreVerification() | RestoreReport() | OffsetMapDocument():
            yield key_of(document)
        case Capture():
            for topic in document.topics:
                yield commit_key(topic.topic, topic.topic_id, topic.head)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_document_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Tests documents of each kind with one hostile value: refused, or every key computed from it is harmless.

    It matters because a document says where to read and, for an expiry, what to delete.
    "../" in a topic's name would reach other people's files with our rights.
    """
    stored = data.draw(hostile_documents(kind))
    with at_most(4 * MIB):
        try:
            document = KINDS[kind][0].from_bytes(stored, key="some/key")
        except DamagedError as error:
            assert "some/key" in str(error)
            return
    for key in _keys(document):
        assert check_key(key) == key
        assert key.startswith(("topics/", "restores/"))


@given(data=st.data())
def test_any_segment_under_any_commit_is_read_or_refused(data: st.DataObject) -> None:
    """Tests an object and a commit entry that both were changed, the SHA-256 so that it fits.

    It matters because whoever can write into the bucket can write both.
    A size of 2 GiB taken on its word, a loop without an end, or a bare error in the middle of a restore.
    """
    store = memory_store()
    log = capture(
        store, {0: [batch(0, 3) + batch(3, 4)]}, compression=data.draw(st.sampled_from(["none", "zstd"]))
    )
    (segment,) = log.segments(0)
    content = bytes(data.draw(mutated(store.get(segment.key))))
    replace_object(store, segment.key, content)
    small = st.integers(0, 300)
    changes = {
        "stored_size": st.just(len(content)) | small,
        "sha256": st.just(hashlib.sha256(content).hexdigest()),
        "raw_size": st.just(segment.entry.raw_size) | small | st.just(2 * MIB),
        "first_offset": small,
        "last_offset": small | st.just(LAST_OFFSET),
        "batches": small,
        "records": small,
    }
    names = data.draw(st.sets(st.sampled_from(sorted(changes))))
    entry = segment.entry.model_copy(update={name: data.draw(changes[name]) for name in sorted(names)})
    reader = SegmentReader(store, replace(segment, entry=entry))
    with at_most(6 * MIB):
        try:
            for _, header in reader.batches(check_crc=True):
                assert header.size >= HEADER_SIZE
        except DamagedError as error:
            assert segment.key in str(error)


def _frame(entity: Any) -> bytes:
    """A response by kio's writer, as `Connection.receive` returns it."""
    buffer = io.BytesIO()
    entity_writer(type(entity))(buffer, entity)
    return b"\0\0\0\7\0" + buffer.getvalue()


FETCHED = _frame(
    FetchResponse(
        throttle_time=datetime.timedelta(0),  # type: ignore[arg-type]
        error_code=ErrorCode.none,
        session_id=0,  # type: ignore[arg-type]
        responses=(
            FetchableTopicResponse(
                topic_id=uuid.UUID(int=5),
                partitions=(
                    PartitionData(
                        partition_index=0,  # type: ignore[arg-type]
                        error_code=ErrorCode.none,
                        high_watermark=9,  # type: ignore[arg-type]
                        last_stable_offset=9,  # type: ignore[arg-type]
                        log_start_offset=0,  # type: ignore[arg-type]
                        aborted_transactions=(AbortedTransaction(producer_id=7, first_offset=3),),  # type: ignore[arg-type]
                        records=batch(0, 9),
                    ),
                ),
            ),
        ),
    )
)
PRODUCED = _frame(
    ProduceResponse(
        responses=(
            TopicProduceResponse(
                name="orders",  # type: ignore[arg-type]
                partition_responses=(
                    PartitionProduceResponse(
                        index=0,  # type: ignore[arg-type]
                        error_code=ErrorCode.none,
                        base_offset=5,  # type: ignore[arg-type]
                        record_errors=(),
                    ),
                ),
            ),
        ),
        throttle_time=datetime.timedelta(0),  # type: ignore[arg-type]
    )
)


@given(data=st.data())
def test_any_answer_of_a_broker_is_read_or_refused(data: st.DataObject) -> None:
    """Tests mutated Fetch and Produce responses, and typed ones whose fields contradict each other.

    It matters because a broken proxy, or another service on the port, answers anything.
    A bare error from inside the parser would be taken for a bug, and not be retried.
    """
    for parse, valid in ((parse_fetch_response, FETCHED), (parse_produce_response, PRODUCED)):
        frame = memoryview(data.draw(mutated(valid)))
        with at_most(MIB):
            try:
                parse(frame)
            except (IndexError, struct.error):
                continue


@pytest.mark.parametrize("parse", [parse_fetch_response, parse_produce_response])
@pytest.mark.parametrize("byte", [0x80, 0xFF])
def test_a_number_without_an_end_is_refused_at_once(parse: Callable[[memoryview], object], byte: int) -> None:
    """Tests an answer of a million bytes that all say "the number goes on".

    It matters because each more byte makes the number longer, and the work for the next one larger.
    Reading it to its end would take hours.
    """
    with pytest.raises(IndexError):
        parse(memoryview(b"\0" * 4 + bytes([byte]) * 1_000_000))


@pytest.mark.parametrize(
    "response", [MetadataResponse, ListOffsetsResponse, CreateTopicsResponse, InitProducerIdResponse]
)
@given(body=st.binary(max_size=60).map(lambda data: bytes(byte & 0x7F for byte in data)))
def test_a_typed_answer_is_read_or_the_broker_is_named(response: type[Any], body: bytes) -> None:
    """Tests any short bytes as a typed response; unknown tagged fields are among them.

    It matters because a newer broker may say more than we know (KIP-482).
    An error of the library underneath would look like a bug of ours.
    """
    connection = Connection.__new__(Connection)
    connection.address = Address("broker", 9092)
    connection.close = lambda: None  # type: ignore[method-assign]
    try:
        connection._decode(memoryview(b"\0\0\0\7\0" + body), response)
    except UnreachableError as error:
        assert "broker:9092" in str(error)


CONFIG = """
cluster: &cluster
  bootstrap_servers: 127.0.0.1:9092
  properties: {security.protocol: SASL_SSL, sasl.password: "${KAFKA_PASSWORD}", socket.timeout.ms: 500}
target: *cluster
repository:
  url: s3://bucket/prefix
  options: {region: "eu-1"}
backup:
  topics: ["orders", "app_*", '/^events\\..*/']
  segment_bytes: 32MiB
"""
YAML = ["&a ", "*a", "<<: ", "!!timestamp ", "!!set", "!!int ", "!!python/name:os.system ", "? ", "- ", ": ", "{", "]",
        "|\n", "${X}", "${", "'", '"', "\t", "\n", "1e999", "0x_", "0b_", ".nan", "2001-99-99", "\0", "\ufeff", "---\n",
        "9" * 5000]  # fmt: skip


@given(data=st.data())
def test_any_configuration_is_read_or_refused(data: st.DataObject) -> None:
    """Tests a configuration file with pieces of YAML put in, cut out and repeated, and bytes that are no text.

    It matters because people edit it by hand, on the worst day of the year.
    A stack trace of the YAML library names no line, and may show the line with the password.
    """
    text = CONFIG
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(text)))
        more = data.draw(st.sampled_from(YAML) | st.text(max_size=5))
        text = text[:place] + more + text[place + data.draw(st.sampled_from([0, 0, 1, 5, 30])) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kafka-backup.yaml"
        path.write_bytes(text.encode(errors="replace") + data.draw(st.sampled_from([b"", b"", b"", b"\xff"])))
        with at_most(4 * MIB):
            try:
                load_config(path, environment={"KAFKA_PASSWORD": "hunter2hunter2", "X": "y"})
            except ConfigurationError as error:
                assert "hunter2hunter2" not in str(error)


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    """Tests the "billion laughs": a few lines of YAML that stand for 9 to the power of 20 values.

    It matters because a configuration may come from a repository of many hands.
    Expanding each alias again would take all memory and time there is.
    """
    lines = ['a0: &a0 ["${X}"]', *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 21))]
    path = tmp_path / "kafka-backup.yaml"
    path.write_text("\n".join(lines) + CONFIG)
    with at_most(4 * MIB), pytest.raises(ConfigurationError, match="a20: unknown key"):
        load_config(path, environment={"KAFKA_PASSWORD": "secret", "X": "y"})
