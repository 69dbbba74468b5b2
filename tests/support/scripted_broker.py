"""A broker that says what a test wants, for what a real one does only on a bad day.

It speaks our versions of the protocol through kio's generated reader and writer, on 127.0.0.1.
"""

import contextlib
import datetime
import io
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from kio.schema.api_versions.v3.request import ApiVersionsRequest
from kio.schema.api_versions.v3.response import ApiVersion, ApiVersionsResponse
from kio.schema.errors import ErrorCode
from kio.schema.fetch.v13.request import FetchRequest
from kio.schema.fetch.v13.response import FetchableTopicResponse, FetchResponse, PartitionData
from kio.schema.find_coordinator.v4.request import FindCoordinatorRequest
from kio.schema.list_groups.v4.request import ListGroupsRequest
from kio.schema.list_offsets.v7.request import ListOffsetsRequest
from kio.schema.metadata.v12.request import MetadataRequest
from kio.schema.metadata.v12.response import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from kio.schema.offset_fetch.v8.request import OffsetFetchRequest
from kio.schema.offset_for_leader_epoch.v4.request import OffsetForLeaderEpochRequest
from kio.serial import entity_reader, entity_writer

REQUESTS = {
    1: FetchRequest,
    2: ListOffsetsRequest,
    3: MetadataRequest,
    9: OffsetFetchRequest,
    10: FindCoordinatorRequest,
    16: ListGroupsRequest,
    18: ApiVersionsRequest,
    23: OffsetForLeaderEpochRequest,
}
APIS = {0: 9, 1: 13, 2: 7, 3: 12, 9: 8, 10: 4, 16: 4, 18: 3, 19: 7, 22: 4, 23: 4}

Answer = bytes | Any | None
"""A response entity; or a whole frame without its size; or None: silence."""


class ScriptedBroker:
    """Answers each request with what the function in `script` for its API key returns.

    A function gets the request entity (raw bytes for APIs not in REQUESTS) and may raise ConnectionError to
    drop the connection. ApiVersions is answered unless the script does.
    """

    def __init__(self, script: Mapping[int, Callable[[Any], Answer]] | None = None) -> None:
        self.script = dict(script or {})
        self.connections = 0
        self.slowness = 0.0
        """Seconds before the rest of a request is read, once its size was."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def address(self) -> str:
        """For a client."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening and drops everybody."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.drop_all()

    def drop_all(self) -> None:
        """Drops everybody who is connected."""
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def send_to_last(self, data: bytes) -> None:
        """Sends raw bytes on the connection that was opened last."""
        self._open[-1].sendall(data)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                self.connections += 1
                self._open.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            stream = peer.makefile("rb")
            while size := stream.read(4):
                time.sleep(self.slowness)
                frame = stream.read(struct.unpack(">i", size)[0])
                api, _version, correlation_id, client = struct.unpack_from(">hhih", frame)
                body = frame[10 + client + 1 :]
                request = entity_reader(REQUESTS[api])(body, 0)[0] if api in REQUESTS else body
                answer = self.script[api](request) if api in self.script else _default(api)
                if answer is None:
                    continue
                if not isinstance(answer, bytes):
                    header = struct.pack(">i", correlation_id) + (b"" if api == 18 else b"\0")
                    answer = header + written(answer)
                peer.sendall(struct.pack(">i", len(answer)) + answer)


def written(entity: Any) -> bytes:
    """The entity by kio's writer."""
    buffer = io.BytesIO()
    entity_writer(type(entity))(buffer, entity)
    return buffer.getvalue()


def _default(api: int) -> Answer:
    if api == 18:
        return api_versions(APIS)
    raise ConnectionError(f"no script for API {api}")


def api_versions(newest: Mapping[int, int]) -> ApiVersionsResponse:
    """What a broker says that knows each API from version 0 to the given one."""
    return ApiVersionsResponse(
        error_code=ErrorCode.none,
        api_keys=tuple(
            ApiVersion(api_key=api, min_version=0, max_version=version)  # type: ignore[arg-type]
            for api, version in newest.items()
        ),
        throttle_time=datetime.timedelta(0),  # type: ignore[arg-type]
    )


def metadata(
    brokers: Mapping[int, ScriptedBroker],
    topic: str,
    topic_id: uuid.UUID,
    leaders: Sequence[tuple[int, int]],
    *,
    error: ErrorCode = ErrorCode.none,
) -> MetadataResponse:
    """Brokers and one topic; `leaders` holds (leader, leader epoch) of each partition."""
    return MetadataResponse(
        throttle_time=datetime.timedelta(0),  # type: ignore[arg-type]
        brokers=tuple(
            MetadataResponseBroker(node_id=number, host="127.0.0.1", port=broker.port)  # type: ignore[arg-type]
            for number, broker in brokers.items()
        ),
        cluster_id="scripted",
        topics=(
            MetadataResponseTopic(
                error_code=error,
                name=topic,  # type: ignore[arg-type]
                topic_id=topic_id,
                partitions=tuple(
                    MetadataResponsePartition(
                        error_code=ErrorCode.none,
                        partition_index=index,  # type: ignore[arg-type]
                        leader_id=leader,  # type: ignore[arg-type]
                        leader_epoch=epoch,  # type: ignore[arg-type]
                        replica_nodes=(leader,),  # type: ignore[arg-type]
                        isr_nodes=(leader,),  # type: ignore[arg-type]
                    )
                    for index, (leader, epoch) in enumerate(leaders)
                ),
            ),
        ),
    )


def fetched(
    records: bytes = b"",
    *,
    error: ErrorCode = ErrorCode.none,
    end: int = 0,
    throttle_ms: int = 0,
    preferred_replica: int = -1,
    left_out: bool = False,
) -> FetchResponse:
    """A Fetch response for partition 0."""
    part = PartitionData(
        partition_index=0,  # type: ignore[arg-type]
        error_code=error,
        high_watermark=end,  # type: ignore[arg-type]
        last_stable_offset=end,  # type: ignore[arg-type]
        log_start_offset=0,  # type: ignore[arg-type]
        aborted_transactions=None,
        preferred_read_replica=preferred_replica,  # type: ignore[arg-type]
        records=records,
    )
    topic = FetchableTopicResponse(topic_id=uuid.UUID(int=1), partitions=(part,))
    return FetchResponse(
        throttle_time=datetime.timedelta(milliseconds=throttle_ms),  # type: ignore[arg-type]
        error_code=ErrorCode.none,
        session_id=0,  # type: ignore[arg-type]
        responses=() if left_out else (topic,),
    )
