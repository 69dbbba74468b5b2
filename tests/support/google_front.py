"""Google's storage as its clients see it, in front of a real S3 server.

Google's XML API is S3's but for a few headers, which are translated here as its reference describes them; keeping
objects, conditions, ranges and listings is the server's work. No emulator does that: those that there are speak
the JSON API, and take a conditional write of the XML API for a plain one.
"""

import contextlib
import http.client
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

TOKEN = "a-token-of-google"
_ASKED = {"Range": "Range", "Content-Type": "Content-Type"}
_ANSWERED = ("ETag", "Last-Modified", "Content-Range", "Content-Type")


@contextlib.contextmanager
def google_front(s3: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Serves the buckets of an S3 server, given by its options, to clients of Google; yields their options."""

    class Handler(_Handler):
        server_options = s3

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="google-front", daemon=True)
        thread.start()
        try:
            base_url = f"http://127.0.0.1:{server.server_address[1]}"
            yield {"base_url": base_url, "bearer_token": TOKEN, "allow_http": "true"}
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_options: Mapping[str, str]

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {}, b"")
            return
        wanted = {ours: self.headers[name] for name, ours in _ASKED.items() if name in self.headers}
        generation = self.headers.get("x-goog-if-generation-match")
        if generation is not None:
            assert (self.command, generation) == ("PUT", "0")  # 0: there is no object
            wanted["If-None-Match"] = "*"
        status, headers, content = self._ask_server(wanted, body)
        answer = {name: headers[name] for name in _ANSWERED if name in headers}
        if self.command == "HEAD":
            answer["Content-Length"] = headers.get("Content-Length", "0")
        self._answer(status, answer, content)

    do_PUT = do_HEAD = do_DELETE = do_GET

    def _ask_server(self, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Sends the request on, signed as S3 wants it."""
        options, asked = self.server_options, urlsplit(self.path)
        query = urlencode(parse_qsl(asked.query, keep_blank_values=True), quote_via=quote)
        target = quote(unquote(asked.path)) + (f"?{query}" if query else "")
        request = AWSRequest(self.command, options["endpoint"] + target, dict(headers), body)
        credentials = Credentials(options["access_key_id"], options["secret_access_key"])
        S3SigV4Auth(credentials, "s3", options["region"]).add_auth(request)
        connection = http.client.HTTPConnection(urlsplit(options["endpoint"]).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, target, body, dict(request.headers.items()))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers, "x-goog-generation": "1"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
