"""A proxy before a real S3 server that fails in every way in which a store can fail on the network."""

import enum
import http.client
import http.server
import re
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
_FORWARDED = ("content-type", "content-length", "etag", "last-modified", "content-range", "accept-ranges")


class S3Fault(enum.Enum):
    """What happens to a request."""

    SLOW_DOWN = "503, and the server never sees it"
    ERROR = "500 after the server did the work"
    RESET_BEFORE = "the connection is reset, and the server never sees it"
    RESET_AFTER = "the connection is reset after the server did the work"
    SILENT_BEFORE = "nothing comes back, and the server never sees it"
    SILENT_AFTER = "nothing comes back, although the server did the work"
    CUT_ANSWER = "the answer ends in the middle of its body"
    CUT_REQUEST = "the connection breaks in the middle of the request's body"
    WRONG_BYTES = "a bit of the answer's body is flipped"
    EXPIRED = "403: the credentials are not valid any more"
    STALE_LISTING = "a listing is the one from before the last change"


class S3FaultProxy:
    """Passes requests on; `choose` says for each request, by its number from 1, which fault it meets.

    Attributes:
        requests: how many came in since `choose` was set.
        met: how many met a fault.
    """

    def __init__(self, server: str) -> None:
        """Takes the address of the real server: ``http://127.0.0.1:port``."""
        self._host = server.removeprefix("http://")
        self._lock = threading.Lock()
        self._listings: dict[str, list[bytes]] = {}
        self._choose: Callable[[int], S3Fault | None] = lambda _: None
        self._released = threading.Event()
        self.requests = 0
        self.met = 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = lambda self: proxy._serve(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def choose(self, choose: Callable[[int], S3Fault | None]) -> None:
        """From now on this says what happens to each request."""
        with self._lock:
            self._choose = choose
            self.requests = self.met = 0

    def heal(self) -> None:
        """From now on all requests are passed on."""
        self.choose(lambda _: None)

    def _serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.requests += 1
            fault = self._choose(self.requests)
            if fault is not None:
                self.met += 1
        size = int(request.headers.get("Content-Length") or 0)
        if fault is S3Fault.CUT_REQUEST and size > 1:
            request.rfile.read(size // 2)
            return _reset(request)
        body = request.rfile.read(size)
        match fault:
            case S3Fault.SLOW_DOWN:
                return _answer(request, 503, _SLOW_DOWN)
            case S3Fault.EXPIRED:
                return _answer(request, 403, _EXPIRED)
            case S3Fault.RESET_BEFORE | S3Fault.CUT_REQUEST:
                return _reset(request)
            case S3Fault.SILENT_BEFORE:
                return self._stay_silent(request)
        status, headers, content = self._ask(request, body)
        match fault:
            case S3Fault.ERROR:
                return _answer(request, 500, b"<Error><Code>InternalError</Code></Error>")
            case S3Fault.RESET_AFTER:
                return _reset(request)
            case S3Fault.SILENT_AFTER:
                return self._stay_silent(request)
            case S3Fault.CUT_ANSWER if content:
                _answer(request, status, content[: len(content) // 2], headers)
                return _reset(request)
            case S3Fault.WRONG_BYTES if content and request.command == "GET":
                content = _flipped(content)
        if request.command == "GET" and "list-type=2" in request.path and status == 200:
            content = self._listing(request.path, content, stale=fault is S3Fault.STALE_LISTING)
            headers["content-length"] = str(len(content))
        _answer(request, status, content, headers)

    def _ask(
        self, request: http.server.BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        try:
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            headers = {
                name.lower(): value for name, value in answer.getheaders() if name.lower() in _FORWARDED
            }
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _listing(self, path: str, content: bytes, *, stale: bool) -> bytes:
        """Remember what each listing said; a stale one is the last that said something else."""
        with self._lock:
            said = self._listings.setdefault(
                path, [re.sub(rb"<Contents>.*</Contents>", b"", content, flags=re.S)]
            )
            old = next((each for each in reversed(said) if each != content), content)
            said.append(content)
        return old if stale else content

    def _stay_silent(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self._released.wait(30)
        _reset(request)


def _answer(
    request: http.server.BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    headers: dict[str, str] | None = None,
) -> None:
    request.send_response(status)
    for name, value in (headers or {"content-length": str(len(content))}).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def _reset(request: http.server.BaseHTTPRequestHandler) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.connection.close()


def _flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)
