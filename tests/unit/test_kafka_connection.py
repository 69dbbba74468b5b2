"""A connection to a broker that is old, silent, slow, confused or gone."""

import socket
import struct
import threading
import time

import pytest
from kio.schema.errors import ErrorCode
from kio.schema.metadata.v12.request import MetadataRequest
from kio.schema.metadata.v12.response import MetadataResponse

from kafka_backup.errors import AuthorizationError, CancelledError, ConfigurationError, UnreachableError
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.scripted_broker import APIS, ScriptedBroker, api_versions

QUESTION = MetadataRequest(topics=(), include_topic_authorized_operations=False)


def connect(broker: ScriptedBroker | int, **properties: str) -> Connection:
    """A connection with short timeouts."""
    port = broker if isinstance(broker, int) else broker.port
    settings = ConnectionSettings.from_properties(
        f"127.0.0.1:{port}",
        {"socket.timeout.ms": "500"} | {k.replace("_", "."): v for k, v in properties.items()},
    )
    return Connection(settings.bootstrap[0], settings)


def test_nobody_at_the_address() -> None:
    """What: a port on which nothing listens.

    Why: the most common failure of all; it must name the address and take no time.
    Risk: a stack trace, or a minute of silence.
    """
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}"):
        connect(port)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("lacking", ["Fetch", "Produce"])
def test_a_broker_that_is_too_old_is_named_with_what_it_lacks(lacking: str) -> None:
    """What: a broker that speaks all but one API in our version.

    Why: brokers before Kafka 3.1 have no topic ids in Fetch: the request would fail later, half way.
    Risk: a backup that begins and cannot go on.
    """
    api = {"Produce": 0, "Fetch": 1}[lacking]
    with (
        ScriptedBroker({18: lambda _: api_versions(APIS | {api: APIS[api] - 1})}) as broker,
        pytest.raises(
            ConfigurationError, match=rf"{broker.address} .* {lacking} version {APIS[api]}.*Kafka 3.1"
        ),
    ):
        connect(broker)


def test_a_broker_that_does_not_even_know_our_question_about_versions() -> None:
    """What: UNSUPPORTED_VERSION to ApiVersions, in the old format that such brokers answer in (KIP-511).

    Why: that format is another one; read as the new one it is garbage.
    Risk: a decoding error instead of "Kafka 3.1 or newer is needed".
    """
    old = struct.pack(">ihihhh", 1, 35, 1, 18, 0, 2)
    with (
        ScriptedBroker({18: lambda _: old}) as broker,
        pytest.raises(ConfigurationError, match=r"Kafka 3.1 or newer"),
    ):
        connect(broker)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (struct.pack(">i", 99) + b"\0", "nobody asked for"),
        (struct.pack(">i", 2) + b"\0" + b"\xff" * 40, "cannot be read"),
    ],
)
def test_an_answer_that_makes_no_sense_ends_the_connection(answer: bytes, complaint: str) -> None:
    """What: another question's id, a body that is not what the schema says.

    Why: after one wrong answer every later one would be taken for another question's.
    Risk: the end offset of one partition believed of another.
    """
    with ScriptedBroker({3: lambda _: answer}) as broker:
        connection = connect(broker)
        with pytest.raises(UnreachableError, match=complaint):
            connection.request(QUESTION, MetadataResponse)
        assert connection.closed


def test_a_silent_broker_is_given_up_in_time_and_a_later_answer_never_used() -> None:
    """What: a broker that takes the question and says nothing.

    Why: a paused machine looks like this; the connection's next answer would be the old question's.
    Risk: a hanging backup, or an answer taken for another's.
    """
    with ScriptedBroker({3: lambda _: None}) as broker:
        connection = connect(broker)
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=rf"{broker.address} .* sent nothing for 0.5 s"):
            connection.request(QUESTION, MetadataResponse)
        assert time.monotonic() - began < 30
        assert connection.closed
        with pytest.raises(UnreachableError, match="we closed it"):
            connection.request(QUESTION, MetadataResponse)


def test_a_stop_is_seen_while_a_broker_is_silent() -> None:
    """What: a wait of a minute for an answer, and a caller that asks to stop.

    Why: Terminate in Dagster's UI and Ctrl-C must not wait for a dead broker.
    Risk: an operator who kills the process, and doubts what was committed.
    """

    def stop() -> None:
        raise CancelledError("enough")

    with ScriptedBroker({3: lambda _: None}) as broker:
        connection = connect(broker)
        connection.send(3, 12, b"\1\0\0\0")
        began = time.monotonic()
        with pytest.raises(CancelledError):
            connection.receive(timeout=60, check_stop=stop)
        assert time.monotonic() - began < 30
        assert connection.closed


def test_closing_ends_a_read_in_another_thread() -> None:
    """What: close() while another thread waits for an answer for up to a minute.

    Why: an engine that is closed must not leave threads behind.
    Risk: a process that does not end, or a descriptor freed under a reader and used by somebody else.
    """
    problems: list[BaseException] = []
    with ScriptedBroker({3: lambda _: None}) as broker:
        connection = connect(broker)
        connection.send(3, 12, b"\1\0\0\0")
        reading = threading.Event()

        def read() -> None:
            try:
                connection.receive(timeout=60, check_stop=reading.set)
            except UnreachableError as error:
                problems.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert reading.wait(10)
        connection.close()
        reader.join(10)
        assert not reader.is_alive()
    assert len(problems) == 1
    assert "we closed it" in str(problems[0])


def test_a_large_request_in_many_pieces_arrives_whole() -> None:
    """What: 30 MB in pieces of all sizes, to a broker that reads slower than we send.

    Why: the kernel takes a part of what sendmsg gathers; the rest must follow, from the right byte.
    Risk: record batches with a hole, or doubled bytes.
    """
    received: list[bytes] = []

    def produce(body: bytes) -> bytes:
        received.append(body)
        return struct.pack(">i", 2) + b"\0"

    with ScriptedBroker({0: produce}) as broker:
        connection = connect(broker, socket_timeout_ms="20000")
        broker.slowness = 0.7
        pieces = [
            bytes([n % 251]) * size for n, size in enumerate([1, 0, 10_000_000, 3, 65_536, 19_999_999, 0, 5])
        ]
        connection.send(0, 9, *[memoryview(piece) for piece in pieces])
        connection.receive()
    assert received == [b"".join(pieces)]


def test_an_answer_lands_in_the_callers_memory_if_it_fits() -> None:
    """What: the same answer into a buffer that is large enough, and into one that is not.

    Why: record bytes are never copied; buffers are used again and again.
    Risk: a copy of every byte, or an answer cut off at the buffer's end.
    """
    body = bytes(range(256)) * 1000
    answers = iter(range(2, 10))
    with ScriptedBroker({0: lambda _: struct.pack(">i", next(answers)) + b"\0" + body}) as broker:
        connection = connect(broker)
        roomy, small = bytearray(300_000), bytearray(1000)
        connection.send(0, 9, b"")
        view = connection.receive(roomy)
        assert view.obj is roomy
        assert view[5:] == body
        connection.send(0, 9, b"")
        view = connection.receive(small)
        assert view.obj is not small
        assert view[5:] == body
        assert not view.readonly


def test_an_error_code_of_a_newer_broker_is_no_crash() -> None:
    """What: a Metadata answer with an error code that kio's schema does not know.

    Why: brokers get newer than this program.
    Risk: exit code 1, "a bug", where a broker's answer is the cause.
    """
    with ScriptedBroker() as broker:
        good = bytearray(b"\0\0\0\2\0" + b"\0\0\0\0" + b"\1" + b"\2x" + b"\0\0\0\1" + b"\2")
        good += struct.pack(">h", 12_345) + b"\2t" + bytes(16) + b"\0\1" + b"\0\0\0\0" + b"\0" + b"\0"
        broker.script[3] = lambda _: bytes(good)
        connection = connect(broker)
        with pytest.raises(UnreachableError, match=r"MetadataResponse that cannot be read.*12345"):
            connection.request(QUESTION, MetadataResponse)
    assert 12_345 not in list(ErrorCode)


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (33, AuthorizationError, "does not offer PLAIN, only SCRAM-SHA-512"),
        (34, UnreachableError, "ILLEGAL_SASL_STATE"),
    ],
)
def test_a_refused_sasl_handshake(code: int, kind: type[Exception], says: str) -> None:
    """What: a mechanism that is not offered, and a handshake that comes at a wrong moment.

    Why: the first no retry mends; the second, as after two renewals within a second, a new connection does.
    Risk: an hour's capture ended by a broker that was only slow.
    """
    offered = b"\0\0\0\1\0\x0dSCRAM-SHA-512"
    with (
        ScriptedBroker({17: lambda _: struct.pack(">ih", 2, code) + offered}) as broker,
        pytest.raises(kind, match=says),
    ):
        connect(
            broker,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username="u",
            sasl_password="p",
        )
