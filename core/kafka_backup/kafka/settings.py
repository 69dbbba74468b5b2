"""How to reach a cluster, in librdkafka's property names, for the raw client and the admin client alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from kafka_backup.errors import ConfigurationError

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_PROPERTIES = {
    "security.protocol": "PLAINTEXT",
    "ssl.ca.location": "",
    "ssl.ca.pem": "",
    "ssl.certificate.location": "",
    "ssl.key.location": "",
    "ssl.key.password": "",
    "ssl.endpoint.identification.algorithm": "https",
    "enable.ssl.certificate.verification": "true",
    "sasl.mechanism": "",
    "sasl.username": "",
    "sasl.password": "",
    "client.id": "kafka-backup",
    "client.rack": "",
    "socket.timeout.ms": "10000",
    "socket.connection.setup.timeout.ms": "5000",
}
"""Every property that is understood, with its default. Any other is refused, never ignored."""
_CHOICES = {
    "ssl.endpoint.identification.algorithm": ("https", "none"),
    "enable.ssl.certificate.verification": ("true", "false"),
}
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+(?:%\w+)?)\]|(?P<host>[^:\[\]\s/]+)):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A broker's host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As people write it; IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """A checked set of properties. Timeouts in seconds; secrets never appear in the repr."""

    bootstrap: Sequence[Address]
    security_protocol: str
    client_id: str
    client_rack: str
    socket_timeout: float
    connect_timeout: float
    properties: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_properties(cls, bootstrap_servers: str, properties: Mapping[str, str]) -> Self:
        """Check the properties of a cluster.

        Args:
            bootstrap_servers: ``host:port``, comma-separated; IPv6 addresses in brackets.
            properties: librdkafka's names and values.

        Raises:
            ConfigurationError: naming the address or property that is malformed or not supported.
        """
        given = {("sasl.mechanism" if k == "sasl.mechanisms" else k): v for k, v in properties.items()}
        if unknown := sorted(set(given) - set(_PROPERTIES)):
            raise ConfigurationError(
                f"cluster property {unknown[0]} is not supported; known are: {', '.join(_PROPERTIES)}"
            )
        values = _PROPERTIES | given
        protocol = values["security.protocol"].upper()
        if protocol not in _PROTOCOLS:
            raise ConfigurationError(f"security.protocol {protocol!r} is none of {', '.join(_PROTOCOLS)}")
        mechanism = values["sasl.mechanism"].upper()
        if protocol.startswith("SASL_") and mechanism not in _MECHANISMS:
            raise ConfigurationError(f"sasl.mechanism {mechanism!r} is none of {', '.join(_MECHANISMS)}")
        if protocol.startswith("SASL_") and not values["sasl.username"]:
            raise ConfigurationError(f"security.protocol {protocol} needs sasl.username and sasl.password")
        for name, choices in _CHOICES.items():
            values[name] = values[name].lower()
            if values[name] not in choices:
                raise ConfigurationError(f"{name} {values[name]!r} is none of {', '.join(choices)}")
        return cls(
            bootstrap=tuple(_address(text) for text in bootstrap_servers.split(",")),
            security_protocol=protocol,
            client_id=values["client.id"],
            client_rack=values["client.rack"],
            socket_timeout=_seconds("socket.timeout.ms", values),
            connect_timeout=_seconds("socket.connection.setup.timeout.ms", values),
            properties=values | {"security.protocol": protocol, "sasl.mechanism": mechanism},
        )

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        """Whether connections authenticate by SASL."""
        return self.security_protocol.startswith("SASL_")

    def for_librdkafka(self) -> dict[str, str]:
        """The same settings for a confluent-kafka client."""
        chosen = {
            name: value for name, value in self.properties.items() if value and value != _PROPERTIES[name]
        }
        return {
            **chosen,
            "bootstrap.servers": ",".join(map(str, self.bootstrap)),
            "client.id": self.client_id,
            "socket.timeout.ms": str(max(10, int(self.socket_timeout * 1000))),
            "socket.connection.setup.timeout.ms": str(max(1000, int(self.connect_timeout * 1000))),
        }


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ConfigurationError(
            f"bootstrap server {text.strip()!r} is not host:port (an IPv6 address needs brackets)"
        )
    return Address(match["v6"] or match["host"], int(match["port"]))


def _seconds(name: str, values: Mapping[str, str]) -> float:
    if not values[name].isdecimal() or int(values[name]) == 0:
        raise ConfigurationError(f"{name} must be a number of milliseconds above 0, not {values[name]!r}")
    return int(values[name]) / 1000
