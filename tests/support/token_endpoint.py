"""A token endpoint on this machine (RFC 6749, client credentials) whose tokens a broker can verify."""

import base64
import json
import ssl
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.certificates import Certificate


class Signer:
    """Signs tokens; `jwks` is what a broker needs to verify them."""

    def __init__(self, issuer: str = "tests", audience: str = "kafka") -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.issuer, self.audience = issuer, audience

    @property
    def jwks(self) -> str:
        """The public key as a JSON Web Key Set (RFC 7517)."""
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig"}
        key |= {"n": _number(numbers.n), "e": _number(numbers.e)}
        return json.dumps({"keys": [key]})

    def token(self, subject: str, *, lifetime: float = 300, **claims: Any) -> str:
        """A JWT (RFC 7519) that is good for `lifetime` seconds."""
        now = int(time.time())
        known = {"iss": self.issuer, "aud": self.audience, "sub": subject, "iat": now, "exp": now + lifetime}
        signed = f"{_json({'alg': 'RS256', 'kid': '1'})}.{_json(known | claims)}"
        return f"{signed}.{_text(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


class TokenEndpoint:
    """Gives a client that knows the secret a token whose subject is the client's id.

    Attributes:
        lifetime: of tokens, seconds.
        failure: (status, body) to answer with instead, while set.
        scopes: what each answered request asked for.
    """

    def __init__(self, signer: Signer, secret: str, certificate: Certificate | None = None) -> None:
        self.lifetime = 300.0
        self.failure: tuple[int, bytes] | None = None
        self.scopes: list[str] = []
        self._signer, self._secret = signer, secret
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status, answer = endpoint._answer(self.headers["Authorization"] or "", form)
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._scheme = "http"
        if certificate is not None:
            self._scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with tempfile.TemporaryDirectory() as folder:
                chain, key = Path(folder, "chain"), Path(folder, "key")
                chain.write_text(certificate.chain)
                key.write_text(certificate.key)
                context.load_cert_chain(chain, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """For clients."""
        return f"{self._scheme}://localhost:{self._server.server_address[1]}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, authorization: str, form: str) -> tuple[int, bytes]:
        if self.failure is not None:
            return self.failure
        fields: Mapping[str, str] = dict(urllib.parse.parse_qsl(form))
        scheme, _, encoded = authorization.partition(" ")
        client, _, secret = base64.b64decode(encoded).decode().partition(":")
        if scheme != "Basic" or secret != self._secret or fields.get("grant_type") != "client_credentials":
            problem = {"error": "invalid_client", "error_description": f"client {client} may not: {secret}"}
            return 401, json.dumps(problem).encode()
        self.scopes.append(fields.get("scope", ""))
        granted = {"scope": fields["scope"]} if "scope" in fields else {}
        token = self._signer.token(client, lifetime=self.lifetime, **granted)
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime}
        return 200, json.dumps(answer).encode()


def _number(value: int) -> str:
    return _text(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _json(value: Mapping[str, Any]) -> str:
    return _text(json.dumps(value).encode())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
