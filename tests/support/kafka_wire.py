"""A few requests to exactly one broker, written by hand from the Kafka protocol documentation.

librdkafka asks whichever broker it likes, so it cannot tell what a broker that was cut off believes, nor who
leads the metadata quorum; and confluent-kafka cannot read or write header keys that are not UTF-8.
"""

import socket
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

EARLIEST, LATEST = -2, -1


class Partition(NamedTuple):
    """A partition as one broker sees it."""

    leader: int
    epoch: int
    replicas: list[int]
    isr: list[int]


class Metadata(NamedTuple):
    """Live brokers and the partitions of the topic that was asked for."""

    brokers: dict[int, tuple[str, int]]
    partitions: dict[int, Partition]


class Fetched(NamedTuple):
    """One partition of a fetch response; `aborted` is `[(producer id, first offset)]`."""

    error: int
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    aborted: list[tuple[int, int]]
    records: bytes


class Produced(NamedTuple):
    """One partition of a produce response."""

    error: int
    base_offset: int
    log_append_time: int


class _Reply:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def int(self, fmt: str = "i") -> int:
        (value,) = struct.unpack_from(">" + fmt, self.data, self.at)
        self.at += struct.calcsize(fmt)
        return int(value)

    def raw(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def str(self) -> str:
        return self.raw(max(0, self.int("h"))).decode()

    def bytes(self) -> bytes:
        return self.raw(max(0, self.int()))

    def list(self, item: Callable[[], Item]) -> list[Item]:
        return [item() for _ in range(self.int())]


def _string(text: str | None) -> bytes:
    return struct.pack(">h", -1) if text is None else struct.pack(">h", len(text.encode())) + text.encode()


def _array(*items: bytes) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the broker closed the connection")
        data += part
    return bytes(data)


def _ask(address: tuple[str, int], api: int, version: int, body: bytes, timeout: float) -> _Reply:
    request = struct.pack(">hhi", api, version, 1) + _string("tests") + body
    with socket.create_connection(address, timeout) as connection:
        connection.settimeout(timeout)
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _read(connection, 4))
        reply = _Reply(_read(connection, size))
    if reply.int() != 1:
        raise ConnectionError("not the answer to this question")
    return reply


def metadata(port: int, topic: str = "", timeout: float = 0.5) -> Metadata:
    """Metadata v7, of the broker at this port of 127.0.0.1. OSError or struct.error: no answer."""
    topics = _array(_string(topic)) if topic else _array()
    reply = _ask(("127.0.0.1", port), 3, 7, topics + b"\0", timeout)
    reply.int()  # throttle time

    def broker() -> tuple[int, tuple[str, int]]:
        node, host, its_port, _rack = reply.int(), reply.str(), reply.int(), reply.str()
        return node, (host, its_port)

    def partition() -> tuple[int, Partition]:
        _error, index, leader, epoch = reply.int("h"), reply.int(), reply.int(), reply.int()
        replicas, isr, _offline = reply.list(reply.int), reply.list(reply.int), reply.list(reply.int)
        return index, Partition(leader, epoch, replicas, isr)

    def one_topic() -> list[tuple[int, Partition]]:
        _error, _name, _internal = reply.int("h"), reply.str(), reply.int("b")
        return reply.list(partition)

    brokers = dict(reply.list(broker))
    reply.str(), reply.int()  # cluster id; any broker, as "controller"
    topics_seen = reply.list(one_topic)
    return Metadata(brokers, dict(topics_seen[0]) if topics_seen else {})


def quorum_leader(port: int, timeout: float = 2) -> int:
    """Node id of the active controller (DescribeQuorum v0), or -1."""
    topic = b"__cluster_metadata"
    # Flexible versions: an (empty) list of tagged fields ends the header; lengths are one more than they say.
    body = b"\0" + bytes([2, len(topic) + 1]) + topic + b"\2" + bytes(7)
    reply = _ask(("127.0.0.1", port), 55, 0, body, timeout)
    reply.at += 1  # tagged fields
    error = reply.int("h")
    reply.at += 2 + len(topic) + 1 + 4 + 2
    return reply.int() if error == 0 else -1


def leader_address(bootstrap_servers: str, topic: str, partition: int, timeout: float = 5) -> tuple[str, int]:
    """Host and port of the partition's leader, as the first broker that knows tells."""
    problem: Exception | None = None
    for server in bootstrap_servers.split(","):
        try:
            known = metadata(int(server.rpartition(":")[2]), topic, timeout)
            return known.brokers[known.partitions[partition].leader]
        except (OSError, struct.error, KeyError) as error:
            problem = error
    raise ConnectionError(f"no broker names a leader of {topic} [{partition}]") from problem


def partitions_of(bootstrap_servers: str, topic: str, timeout: float = 5) -> list[int]:
    """The topic's partition numbers."""
    return sorted(
        metadata(int(bootstrap_servers.split(",")[0].rpartition(":")[2]), topic, timeout).partitions
    )


def fetch(
    address: tuple[str, int],
    topic: str,
    partition: int,
    offset: int,
    *,
    read_committed: bool = True,
    max_bytes: int = 8 << 20,
    timeout: float = 10,
) -> Fetched:
    """Fetch v11 of one partition: whole record batches as they are stored, the last one maybe cut short."""
    one = struct.pack(">iiqqi", partition, -1, offset, -1, max_bytes)
    head = struct.pack(">iiiibii", -1, 100, 1, max_bytes, read_committed, 0, -1)
    body = head + _array(_string(topic) + _array(one)) + _array() + _string("")
    reply = _ask(address, 1, 11, body, timeout)
    _throttle, error, _session = reply.int(), reply.int("h"), reply.int()
    if error:
        raise ConnectionError(f"fetch of {topic}: error {error}")

    def answer() -> Fetched:
        _index, its_error, high, stable, start = (reply.int(f) for f in ("i", "h", "q", "q", "q"))
        aborted = reply.list(lambda: (reply.int("q"), reply.int("q")))
        _preferred = reply.int()
        return Fetched(its_error, high, stable, start, aborted, reply.bytes())

    return reply.list(lambda: (reply.str(), reply.list(answer)))[0][1][0]


def list_offset(
    address: tuple[str, int],
    topic: str,
    partition: int,
    at: int = LATEST,
    *,
    read_committed: bool = True,
    timeout: float = 5,
) -> int:
    """ListOffsets v2: EARLIEST, LATEST (last stable, if read_committed), or the first from a time on."""
    body = struct.pack(">ib", -1, read_committed) + _array(
        _string(topic) + _array(struct.pack(">iq", partition, at))
    )
    reply = _ask(address, 2, 2, body, timeout)
    reply.int()  # throttle time
    reply.int(), reply.str(), reply.int(), reply.int()  # one topic, its name, one partition, its number
    error, _timestamp, offset = reply.int("h"), reply.int("q"), reply.int("q")
    if error:
        raise ConnectionError(f"offsets of {topic} [{partition}]: error {error}")
    return offset


def produce_bytes(
    address: tuple[str, int],
    topic: str,
    partition: int,
    batches: bytes,
    *,
    acks: int = -1,
    timeout: float = 10,
) -> Produced:
    """Produce v7 of one record batch (a broker refuses several for one partition), exactly these bytes."""
    body = _string(None) + struct.pack(">hi", acks, int(timeout * 1000))
    body += _array(_string(topic) + _array(struct.pack(">ii", partition, len(batches)) + batches))
    reply = _ask(address, 0, 7, body, timeout + 1)
    reply.int(), reply.str(), reply.int(), reply.int()  # one topic, its name, one partition, its number
    return Produced(reply.int("h"), reply.int("q"), reply.int("q"))
