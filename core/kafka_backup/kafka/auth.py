"""SASL: how a new connection proves who we are."""

from __future__ import annotations

from collections.abc import Callable

from kafka_backup.errors import AuthorizationError
from kafka_backup.kafka.scram import ScramClient, ScramError
from kafka_backup.kafka.settings import Address, ConnectionSettings
from kafka_backup.kafka.tokens import Token

Exchange = Callable[[bytes], bytes]
"""Sends one SASL token to the broker and returns its answer (SaslAuthenticate)."""


def authenticate(exchange: Exchange, settings: ConnectionSettings, address: Address) -> None:
    """Prove who we are over SaslAuthenticate exchanges.

    By PLAIN (RFC 4616), SCRAM (RFC 5802) or OAUTHBEARER (RFC 7628).

    Raises:
        AuthorizationError: the broker does not accept the credentials, or proved not to know them.
        UnreachableError: whoever gives out tokens does not answer.
    """
    if settings.tokens is not None:
        _show_token(exchange, settings.tokens.token())
        return
    properties = settings.properties
    user, password = properties["sasl.username"], properties["sasl.password"]
    if properties["sasl.mechanism"] == "PLAIN":
        exchange(b"\0" + user.encode() + b"\0" + password.encode())
        return
    client = ScramClient(properties["sasl.mechanism"], user, password)
    try:
        client.check(exchange(client.final(exchange(client.first()))))
    except ScramError as error:
        raise AuthorizationError(f"broker {address}: SCRAM authentication failed: {error}") from error


def _show_token(exchange: Exchange, token: Token) -> None:
    fields = [f"auth=Bearer {token.value}", *(f"{key}={value}" for key, value in token.extensions.items())]
    complaint = exchange("n,,\1{}\1\1".format("\1".join(fields)).encode())
    if complaint:
        # It says what is wrong, and fails the exchange when it gets this answer (RFC 7628, 3.2.3).
        exchange(b"\1")
