"""What happens on a new connection before the first request: TLS, then SASL."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping

from scramp import ScramClient, ScramException

from kafka_backup.errors import AuthorizationError, ConfigurationError
from kafka_backup.kafka.settings import Address, ConnectionSettings

Exchange = Callable[[bytes], bytes]
"""Sends one SASL token to the broker and returns its answer (SaslAuthenticate)."""


def wrap_tls(raw: socket.socket, address: Address, settings: ConnectionSettings) -> ssl.SSLSocket:
    """Encrypt a connected socket.

    Raises:
        ConfigurationError: a certificate or key file cannot be used.
        ssl.SSLError, OSError: the handshake failed.
    """
    return _tls_context(settings.properties).wrap_socket(raw, server_hostname=address.host)


def _tls_context(properties: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=properties["ssl.ca.location"] or None, cadata=properties["ssl.ca.pem"] or None
        )
        if properties["ssl.certificate.location"]:
            context.load_cert_chain(
                properties["ssl.certificate.location"],
                properties["ssl.key.location"] or None,
                properties["ssl.key.password"] or None,
            )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the cluster's ssl.* files cannot be used: {error}") from error
    if properties["ssl.endpoint.identification.algorithm"].lower() == "none":
        context.check_hostname = False
    if properties["enable.ssl.certificate.verification"].lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def authenticate(exchange: Exchange, settings: ConnectionSettings, address: Address) -> None:
    """Prove who we are, by PLAIN (RFC 4616) or SCRAM (RFC 5802), over SaslAuthenticate exchanges.

    Raises:
        AuthorizationError: the broker does not accept the credentials, or proved not to know them.
    """
    properties = settings.properties
    user, password = properties["sasl.username"], properties["sasl.password"]
    if properties["sasl.mechanism"] == "PLAIN":
        exchange(b"\0" + user.encode() + b"\0" + password.encode())
        return
    client = ScramClient([properties["sasl.mechanism"]], user, password)
    try:
        client.set_server_first(exchange(client.get_client_first().encode()).decode())
        client.set_server_final(exchange(client.get_client_final().encode()).decode())
    except ScramException as error:
        raise AuthorizationError(f"broker {address}: SCRAM authentication failed: {error}") from error
