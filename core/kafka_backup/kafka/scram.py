"""SCRAM (RFC 5802, RFC 7677) as Kafka speaks it: without SASLprep, which would change some passwords.

Kafka's admin tools derive credentials from the password's bytes as they are (``ScramFormatter``), so a
client that prepares the password first is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
_FEWEST_ITERATIONS = 4096
"""As Kafka's own client: fewer would help whoever listens to guess the password (RFC 7677, 4)."""
_MOST_ITERATIONS = 10_000_000
"""More would only keep us busy; Kafka itself allows 16,384."""
_HEADER = "n,,"


class ScramError(Exception):
    """The server's message is malformed, or it does not know the password."""


class ScramClient:
    """One exchange, without input and output of its own."""

    def __init__(self, mechanism: str, user: str, password: str, *, nonce: str | None = None) -> None:
        """Begin; `nonce` is random unless a test knows better."""
        self._hash = _HASHES[mechanism]
        self._password = password.encode()
        self._nonce = nonce or secrets.token_urlsafe(24)
        self._bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={self._nonce}"
        self._server_signature = b""

    def first(self) -> bytes:
        """The client-first-message."""
        return (_HEADER + self._bare).encode()

    def final(self, server_first: bytes) -> bytes:
        """The client-final-message, which proves that we know the password.

        Raises:
            ScramError: the server-first-message is none, or not an answer to ours.
        """
        fields = _fields(server_first)
        try:
            nonce, salt = fields["r"], base64.b64decode(fields["s"], validate=True)
            iterations = int(fields["i"])
        except (KeyError, ValueError, binascii.Error):
            raise ScramError("the server's first message is malformed") from None
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ScramError("the server answers somebody else")
        if not _FEWEST_ITERATIONS <= iterations <= _MOST_ITERATIONS:
            raise ScramError(f"the server asks for {iterations} iterations")
        salted = hashlib.pbkdf2_hmac(self._hash, self._password, salt, iterations)
        without_proof = f"c={base64.b64encode(_HEADER.encode()).decode()},r={nonce}"
        signed = b",".join((self._bare.encode(), server_first, without_proof.encode()))
        client_key = self._hmac(salted, b"Client Key")
        signature = self._hmac(hashlib.new(self._hash, client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = self._hmac(self._hmac(salted, b"Server Key"), signed)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def check(self, server_final: bytes) -> None:
        """Make sure that the server knows the password, too.

        Raises:
            ScramError: it does not, or it refuses us.
        """
        fields = _fields(server_final)
        if "e" in fields:
            raise ScramError(f"the server refuses: {fields['e']}")
        try:
            shown = base64.b64decode(fields["v"], validate=True)
        except (KeyError, binascii.Error):
            raise ScramError("the server's final message is malformed") from None
        if not self._server_signature or not hmac.compare_digest(shown, self._server_signature):
            raise ScramError("the server does not know the password")

    def _hmac(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, self._hash)


def _fields(message: bytes) -> dict[str, str]:
    """``a=1,b=2`` as a mapping."""
    try:
        parts = message.decode().split(",")
    except UnicodeDecodeError:
        raise ScramError("the server's message is no text") from None
    return {part[0]: part[2:] for part in parts if part[1:2] == "="}
