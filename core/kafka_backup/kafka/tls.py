"""How connections are encrypted: certificate authorities, our own certificate, host names."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator, Mapping

from kafka_backup.errors import ConfigurationError

_HOST_NAME_MISMATCH = frozenset({62, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL."""
_REFUSES_CERTIFICATE = (
    "ALERT_CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_UNKNOWN_CA",
    "ALERT_ACCESS_DENIED",
)
"""What OpenSSL calls a peer's complaints about our certificate (RFC 8446, 6.2)."""


class Tls:
    """The TLS settings of a cluster; certificates are read once, when first needed."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        """Remember the ``ssl.*`` properties; nothing is read yet."""
        self._properties = properties
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def wrap(self, raw: socket.socket, host: str) -> ssl.SSLSocket:
        """Encrypt a connected socket to `host`.

        Raises:
            ConfigurationError: a certificate or key cannot be used.
            ssl.SSLError, OSError: the handshake failed.
        """
        with self._lock:
            if self._context is None:
                self._context = _context(self._properties)
        return self._context.wrap_socket(raw, server_hostname=host.partition("%")[0])


def _context(properties: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl_context(properties, "ssl")
    certificate, key = properties["ssl.certificate.location"], properties["ssl.key.location"]
    with contextlib.ExitStack() as files:
        try:
            if pem := properties["ssl.certificate.pem"]:
                certificate = files.enter_context(_as_file(pem))
            if pem := properties["ssl.key.pem"]:
                key = files.enter_context(_as_file(pem))
            if certificate:
                context.load_cert_chain(certificate, key or None, properties["ssl.key.password"])
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"our certificate (ssl.certificate.*) with its key (ssl.key.*) cannot be used: {_reason(error)}"
            ) from error
    if properties["ssl.endpoint.identification.algorithm"] == "none":
        context.check_hostname = False
    if properties["enable.ssl.certificate.verification"] == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def ssl_context(properties: Mapping[str, str], prefix: str) -> ssl.SSLContext:
    """Make a context that trusts ``<prefix>.ca.location`` or ``<prefix>.ca.pem``, else what this machine trusts.

    Raises:
        ConfigurationError: naming the property whose certificates cannot be used.
    """
    location, pem = properties[f"{prefix}.ca.location"], properties[f"{prefix}.ca.pem"]
    is_folder = os.path.isdir(location)
    try:
        return ssl.create_default_context(
            cafile=None if is_folder else location or None,
            capath=location if is_folder else None,
            cadata=pem or None,
        )
    except (OSError, ValueError) as error:
        name = f"{prefix}.ca.location {location}" if location else f"{prefix}.ca.pem"
        raise ConfigurationError(f"{name} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, ssl.SSLError) and "PEM lib" in str(error):
        return "it is no PEM, or the key's password (ssl.key.password) is missing or wrong"
    return str(error)


@contextlib.contextmanager
def _as_file(pem: str) -> Iterator[str]:
    """A path for what Python's ssl takes from files only; the file has no name, so nothing can stay behind."""
    with tempfile.TemporaryFile() as file:
        file.write(pem.encode())
        file.flush()
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def is_about_host_name(error: ssl.SSLCertVerificationError) -> bool:
    """Whether the certificate is trusted, but made for other names."""
    return error.verify_code in _HOST_NAME_MISMATCH


def refuses_our_certificate(error: OSError) -> bool:
    """Whether the broker ended the connection because it wants a certificate, or another one than ours."""
    return isinstance(error, ssl.SSLError) and any(alert in str(error) for alert in _REFUSES_CERTIFICATE)
