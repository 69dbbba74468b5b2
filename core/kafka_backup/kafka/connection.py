"""One blocking connection to one broker: framed requests and responses, in order.

Blocking sockets and plain threads, because ``recv_into`` with MSG_WAITALL and ``sendmsg`` run outside the
GIL: a thread that waits for the network costs nothing, and record bytes are never copied on the way.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from kio.schema.api_versions.v3.request import ApiVersionsRequest
from kio.schema.api_versions.v3.response import ApiVersionsResponse
from kio.schema.errors import ErrorCode
from kio.schema.sasl_authenticate.v2.request import SaslAuthenticateRequest
from kio.schema.sasl_authenticate.v2.response import SaslAuthenticateResponse
from kio.schema.sasl_handshake.v1.request import SaslHandshakeRequest
from kio.schema.sasl_handshake.v1.response import SaslHandshakeResponse
from kio.serial import entity_reader, entity_writer
from kio.serial.errors import SerialError

from kafka_backup.errors import AuthorizationError, ConfigurationError, UnreachableError
from kafka_backup.kafka import auth, tls
from kafka_backup.kafka.settings import Address, ConnectionSettings

Buffer = bytes | bytearray | memoryview
Response = TypeVar("Response")

NEEDED_APIS = {
    0: ("Produce", 9),
    1: ("Fetch", 13),
    2: ("ListOffsets", 7),
    3: ("Metadata", 12),
    19: ("CreateTopics", 7),
    22: ("InitProducerId", 4),
    23: ("OffsetForLeaderEpoch", 4),
}
"""The one version that we speak of each API; all of them came by Kafka 3.1 and are in 4.x."""
_RECEIVE_BUFFER = 4 << 20
_LARGEST_FRAME = 1 << 30
_SLICE_SECONDS = 0.2
_TIMEVAL = struct.Struct("@ll")
_UNSUPPORTED_VERSION = 35
_USED_OF_SESSION = 0.85
"""The part of a session's life after which we prove our identity again, as Kafka's own client does."""
_SHORTEST_SESSION = 1.05
"""Seconds between two renewals: brokers refuse to be asked again within a second (SaslServerAuthenticator)."""
_MILLISECOND = datetime.timedelta(milliseconds=1)
_SIZE = struct.Struct(">i")
_REQUEST_HEADER = struct.Struct(">hhih")


class Connection:
    """A connection that is ready for requests: encrypted, authenticated, versions checked.

    One thread uses it at a time. After any error it is closed, because a half-read response cannot be
    skipped. `close` may be called from another thread, and ends a blocked read at once.

    Where the broker limits the life of a session (KIP-368), the connection proves its identity again by
    itself, before a request that would come too late.

    Attributes:
        address: of the broker.
        authentications: how often the broker has accepted our credentials on it.
    """

    def __init__(self, address: Address, settings: ConnectionSettings) -> None:
        """Connect.

        Raises:
            UnreachableError: nobody answers at the address.
            AuthorizationError: the broker does not accept the credentials.
            ConfigurationError: the broker is older than Kafka 3.1, or a certificate file is unusable.
        """
        self.address = address
        self._settings = settings
        self._client_id = settings.client_id.encode()
        self._correlation_id = 0
        self._expected: deque[int] = deque()
        self._early: deque[memoryview] = deque()
        self._renew_at: float | None = None
        self._muted_until = self._throttle_seconds = 0.0
        self.authentications = 0
        self._answered = False
        self._closed = False
        self._spoken: dict[int, tuple[int, int]] = {}
        self._in_use = threading.RLock()
        try:
            self._socket = _connect(address, settings)
        except ssl.SSLCertVerificationError as error:
            raise _untrusted(address, error) from error
        except OSError as error:
            if tls.refuses_our_certificate(error):
                raise _refused(address, error) from error
            raise UnreachableError(
                f"cannot connect to broker {address}: {error}; does it run, and is security.protocol right?"
            ) from error
        self._tls = isinstance(self._socket, ssl.SSLSocket)
        try:
            self._check_versions()
            if settings.uses_sasl:
                self._authenticate()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the connection can no longer be used."""
        return self._closed

    def speaks(self, api_key: int, version: int) -> bool:
        """Whether the broker knows this version of an API."""
        oldest, newest = self._spoken.get(api_key, (0, -1))
        return oldest <= version <= newest

    def close(self) -> None:
        """Close it; a read that is blocked in another thread ends with UnreachableError."""
        self._closed = True
        with contextlib.suppress(OSError):  # not connected any more: that is what we want
            # Not SSLSocket's own method: after that one a reader in another thread goes on in plain text.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        with self._in_use:  # a descriptor freed under a reader could be a new connection's already
            self._socket.close()

    @property
    def is_reusable(self) -> bool:
        """Whether it is open, quiet and not throttled: no response is outstanding, nobody has hung up."""
        if self._closed or self._expected or self._early or self._muted_seconds:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def throttle(self, milliseconds: int) -> None:
        """Note that the broker will read nothing from here for that long, a quota's doing (KIP-219)."""
        self._throttle_seconds = milliseconds / 1000
        self._muted_until = time.monotonic() + self._throttle_seconds

    @property
    def _muted_seconds(self) -> float:
        return max(0.0, self._muted_until - time.monotonic())

    def request(
        self,
        payload: Any,
        response_type: type[Response],
        *,
        timeout: float | None = None,
        check_stop: Callable[[], None] | None = None,
    ) -> Response:
        """Send one typed request and wait for its response.

        Args:
            payload: a request entity of kio.
            response_type: the response entity of the same API and version.
            timeout: seconds without a byte until the broker counts as gone; by default socket.timeout.ms. The
                time for which it throttles us is added.
            check_stop: called a few times a second while nothing comes; raises to stop.

        Raises:
            UnreachableError: no whole answer came, or none that can be read.
        """
        self._renew_session()
        self._send_entity(payload)
        answer = self._decode(self.receive(timeout=timeout, check_stop=check_stop), response_type)
        if (throttle := getattr(answer, "throttle_time", None)) is not None:
            self.throttle(throttle // _MILLISECOND)
        return answer

    def _send_entity(self, payload: Any) -> None:
        body = io.BytesIO()
        entity_writer(type(payload))(body, payload)
        self._send(payload.__api_key__, payload.__version__, body.getvalue(), flexible=payload.__flexible__)

    def _decode(self, frame: memoryview, response_type: type[Response]) -> Response:
        # ApiVersions responses have the old header, so that any client can read them (KIP-511).
        flexible = response_type.__header_schema__.__version__ == 1  # type: ignore[attr-defined]
        try:
            entity, _ = entity_reader(response_type)(bytes(frame), 5 if flexible else 4)  # type: ignore[type-var]
        except (SerialError, ValueError, LookupError, OverflowError) as error:
            self.close()
            raise UnreachableError(
                f"broker {self.address} sent a {response_type.__name__} that cannot be read: {error}"
            ) from error
        return entity

    def send(self, api_key: int, version: int, *buffers: Buffer, flexible: bool = True) -> None:
        """Send one request, gathered from buffers that are not copied; its response must be received."""
        self._renew_session()
        self._send(api_key, version, *buffers, flexible=flexible)

    def _send(self, api_key: int, version: int, *buffers: Buffer, flexible: bool = True) -> None:
        self._correlation_id = (self._correlation_id + 1) & 0x7FFFFFFF
        header = _REQUEST_HEADER.pack(api_key, version, self._correlation_id, len(self._client_id))
        header += self._client_id + (b"\0" if flexible else b"")
        size = len(header) + sum(map(len, buffers))
        with self._working():
            self._expected.append(self._correlation_id)
            self._send_all([_SIZE.pack(size) + header, *buffers])

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Close the connection after any error in the block, and name the broker in it."""
        try:
            with self._in_use:
                if self._closed:
                    raise OSError("we closed it")
                yield
        except OSError as error:
            reason = "we closed it" if self._closed else str(error)
            self.close()
            if tls.refuses_our_certificate(error):
                raise _refused(self.address, error) from error
            raise UnreachableError(f"the connection to broker {self.address} broke: {reason}") from error
        except BaseException:
            self.close()
            raise

    def _send_all(self, buffers: Sequence[Buffer]) -> None:
        views = deque(memoryview(buffer) for buffer in buffers if len(buffer))
        last_progress = time.monotonic()
        while views:
            try:
                # TLS cannot gather; the buffers go one after the other.
                sent = self._socket.send(views[0]) if self._tls else self._socket.sendmsg(views)
            except (BlockingIOError, TimeoutError):
                if time.monotonic() - last_progress > self._settings.socket_timeout:
                    raise OSError(f"it took nothing for {self._settings.socket_timeout:g} s") from None
                continue
            last_progress = time.monotonic()
            while views and sent >= len(views[0]):
                sent -= len(views.popleft())
            if sent:
                views[0] = views[0][sent:]

    def receive(
        self,
        buffer: bytearray | None = None,
        *,
        timeout: float | None = None,
        check_stop: Callable[[], None] | None = None,
    ) -> memoryview:
        """Receive the next response, correlation id included (4 bytes), as one writable view.

        Args:
            buffer: taken if it is large enough, else a new one is made; the view is into it.
            timeout: seconds without a byte until the broker counts as gone; by default socket.timeout.ms. The
                time for which it throttles us is added.
            check_stop: called a few times a second while nothing comes; raises to stop.

        Raises:
            UnreachableError: the connection ended, timed out, or answered something else.
        """
        if self._early:
            return self._early.popleft()
        frame = self._receive(buffer, timeout=timeout, check_stop=check_stop)
        self._answered = True
        return frame

    def _receive(
        self,
        buffer: bytearray | None = None,
        *,
        timeout: float | None = None,
        check_stop: Callable[[], None] | None = None,
    ) -> memoryview:
        patience = self._settings.socket_timeout if timeout is None else timeout
        patience += self._muted_seconds
        prefix = bytearray(8)
        with self._working():
            self._read(memoryview(prefix), patience, check_stop)
            size, correlation_id = struct.unpack(">ii", prefix)
            expected = self._expected.popleft() if self._expected else None
            if correlation_id != expected or not 4 <= size <= _LARGEST_FRAME:
                raise OSError(f"an answer that nobody asked for (id {correlation_id}, {size} bytes)")
            if buffer is None or len(buffer) < size:
                buffer = bytearray(size)
            view = memoryview(buffer)[:size]
            view[:4] = prefix[4:]
            self._read(view[4:], patience, check_stop)
        return view

    def _read(self, view: memoryview, patience: float, check_stop: Callable[[], None] | None) -> None:
        flags = 0 if self._tls else socket.MSG_WAITALL
        last_progress = time.monotonic()
        while view:
            try:
                count = self._socket.recv_into(view, len(view), flags)
            except (BlockingIOError, TimeoutError):
                if check_stop is not None:
                    check_stop()
                if time.monotonic() - last_progress > patience:
                    raise OSError(f"it sent nothing for {patience:g} s") from None
                continue
            if count == 0:
                if self._answered:
                    raise OSError("the broker closed it")
                protocol = self._settings.security_protocol
                raise OSError(f"the broker closed it at once; is security.protocol {protocol} right?")
            view = view[count:]
            last_progress = time.monotonic()

    def _check_versions(self) -> None:
        self._send_entity(
            ApiVersionsRequest(client_software_name="kafka-backup", client_software_version="1")
        )
        frame = self._receive()
        # Who does not know this version answers in version 0, whose error code is in the same place (KIP-511).
        if int.from_bytes(frame[4:6], "big") == _UNSUPPORTED_VERSION:
            raise ConfigurationError(
                f"broker {self.address} does not speak ApiVersions version 3; Kafka 3.1 or newer is needed"
            )
        self._spoken = {
            int(api.api_key): (int(api.min_version), int(api.max_version))
            for api in self._decode(frame, ApiVersionsResponse).api_keys
        }
        for key, (name, version) in NEEDED_APIS.items():
            if not self.speaks(key, version):
                raise ConfigurationError(
                    f"broker {self.address} does not speak {name} version {version}; Kafka 3.1 or newer is needed"
                )

    def _authenticate(self) -> None:
        mechanism = self._settings.properties["sasl.mechanism"]
        shake = self._ask(SaslHandshakeRequest(mechanism=mechanism), SaslHandshakeResponse)
        began = time.monotonic()  # not before: a broker that throttles us reads the request late
        if shake.error_code not in (ErrorCode.none, ErrorCode.unsupported_sasl_mechanism):
            raise UnreachableError(
                f"broker {self.address} refused the SASL handshake: {shake.error_code.name.upper()}"
            )
        if shake.error_code:
            raise AuthorizationError(
                f"broker {self.address} does not offer {mechanism}, only {', '.join(shake.mechanisms)}"
            )
        lifetime = 0.0

        def exchange(token: bytes) -> bytes:
            nonlocal lifetime
            answer = self._ask(SaslAuthenticateRequest(auth_bytes=token), SaslAuthenticateResponse)
            if answer.error_code:
                raise AuthorizationError(
                    f"broker {self.address} refused {self._settings.user}: "
                    f"{answer.error_message or answer.error_code.name}; check the cluster's sasl.* properties"
                )
            lifetime = answer.session_lifetime.total_seconds()
            return answer.auth_bytes

        auth.authenticate(exchange, self._settings, self.address)
        self._renew_at = began + max(lifetime * _USED_OF_SESSION, _SHORTEST_SESSION) if lifetime > 0 else None
        self.authentications += 1

    def _renew_session(self) -> None:
        """Authenticate again when it is time; responses still to come arrive before the broker's answers.

        What counts is when the broker will read the next request: a throttled one reads late, and hangs up
        if the session is over by then. Only a renewal may come after its end.
        """
        if self._renew_at is None:
            return
        read_at = time.monotonic() + self._muted_seconds + len(self._expected) * self._throttle_seconds
        if read_at < self._renew_at:
            return
        while self._expected:
            self._early.append(self._receive())
        try:
            self._authenticate()
        except BaseException:
            self.close()
            raise

    def _ask(self, payload: Any, response_type: type[Response]) -> Response:
        """Ask as a part of the handshake itself."""
        self._send_entity(payload)
        return self._decode(self._receive(), response_type)


def _untrusted(address: Address, error: ssl.SSLCertVerificationError) -> ConfigurationError:
    if tls.is_about_host_name(error):
        return ConfigurationError(
            f"the certificate of broker {address} was made for another name: {error.verify_message} Use a name "
            "that is in it (bootstrap_servers, the broker's advertised.listeners), or set "
            "ssl.endpoint.identification.algorithm to none"
        )
    return ConfigurationError(
        f"the certificate of broker {address} is not trusted: {error.verify_message}; check ssl.ca.location"
    )


def _refused(address: Address, error: OSError) -> AuthorizationError:
    return AuthorizationError(
        f"broker {address} refused our certificate, or wants one and got none ({error}); check "
        "ssl.certificate.* and ssl.key.*"
    )


def _connect(address: Address, settings: ConnectionSettings) -> socket.socket:
    raw = socket.create_connection((address.host, address.port), timeout=settings.connect_timeout)
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if settings.tls is not None:
            raw = settings.tls.wrap(raw, address.host)
            raw.settimeout(_SLICE_SECONDS)
            return raw
        # The kernel's timeouts, because settimeout() makes the socket non-blocking and MSG_WAITALL void.
        raw.settimeout(None)
        slice_ = _TIMEVAL.pack(0, int(_SLICE_SECONDS * 1_000_000))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, slice_)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, slice_)
    except BaseException:
        raw.close()
        raise
    return raw
