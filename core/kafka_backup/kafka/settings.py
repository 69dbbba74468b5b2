"""How to reach a cluster, in librdkafka's property names, for the raw client and the admin client alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kafka_backup.errors import ConfigurationError
from kafka_backup.kafka import tokens
from kafka_backup.kafka.tls import Tls
from kafka_backup.kafka.tokens import TokenCallback, TokenSource

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_PROPERTIES = {
    "security.protocol": "PLAINTEXT",
    "ssl.ca.location": "",
    "ssl.ca.pem": "",
    "ssl.certificate.location": "",
    "ssl.certificate.pem": "",
    "ssl.key.location": "",
    "ssl.key.pem": "",
    "ssl.key.password": "",
    "ssl.endpoint.identification.algorithm": "https",
    "enable.ssl.certificate.verification": "true",
    "sasl.mechanism": "",
    "sasl.username": "",
    "sasl.password": "",
    "sasl.oauthbearer.method": "default",
    "sasl.oauthbearer.config": "",
    "sasl.oauthbearer.client.id": "",
    "sasl.oauthbearer.client.secret": "",
    "sasl.oauthbearer.token.endpoint.url": "",
    "sasl.oauthbearer.scope": "",
    "sasl.oauthbearer.extensions": "",
    "https.ca.location": "",
    "https.ca.pem": "",
    "aws.region": "",
    "aws.profile": "",
    "aws.role.arn": "",
    "aws.role.session.name": "",
    "client.id": "kafka-backup",
    "client.rack": "",
    "socket.timeout.ms": "10000",
    "socket.connection.setup.timeout.ms": "5000",
    "request.timeout.ms": "10000",
}
"""Every property that is understood, with its default. Any other is refused, never ignored."""
_CHOICES = {
    "ssl.endpoint.identification.algorithm": ("https", "none"),
    "enable.ssl.certificate.verification": ("true", "false"),
    "sasl.oauthbearer.method": ("default", "oidc", "aws_msk_iam"),
}
_ONE_OF = (
    ("ssl.ca.location", "ssl.ca.pem"),
    ("ssl.certificate.location", "ssl.certificate.pem"),
    ("ssl.key.location", "ssl.key.pem"),
    ("https.ca.location", "https.ca.pem"),
    ("aws.profile", "aws.role.arn"),
)
_FOR_METHOD = {
    "sasl.oauthbearer.config": "default",
    "sasl.oauthbearer.client.id": "oidc",
    "sasl.oauthbearer.client.secret": "oidc",
    "sasl.oauthbearer.token.endpoint.url": "oidc",
    "sasl.oauthbearer.scope": "oidc",
    "sasl.oauthbearer.extensions": "oidc",
    "https.ca.location": "oidc",
    "https.ca.pem": "oidc",
    "aws.region": "aws_msk_iam",
    "aws.profile": "aws_msk_iam",
    "aws.role.arn": "aws_msk_iam",
    "aws.role.session.name": "aws_msk_iam",
}
"""Properties that only one way to get a token reads."""
_NEEDED = {
    "oidc": (
        "sasl.oauthbearer.client.id",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.token.endpoint.url",
    ),
    "aws_msk_iam": ("aws.region",),
}
_ALIASES = {
    "sasl.mechanisms": "sasl.mechanism",
    "sasl.oauthbearer.client.credentials.client.id": "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.credentials.client.secret": "sasl.oauthbearer.client.secret",
}
"""librdkafka's other names."""
_FOR_LIBRDKAFKA = (
    "ssl.",
    "enable.ssl.",
    "security.protocol",
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "client.rack",
)
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
    """A checked set of properties. Timeouts in seconds; secrets never appear in the repr.

    Attributes:
        request_timeout: how long a broker may hold what a restore writes until it is replicated. As long a run that takes
            over waits until it believes that nothing of an earlier one is on its way.
        tokens: where OAUTHBEARER's tokens come from; None for other mechanisms.
        tls: how connections are encrypted; None if they are not.
    """

    bootstrap: Sequence[Address]
    security_protocol: str
    client_id: str
    client_rack: str
    socket_timeout: float
    connect_timeout: float
    request_timeout: float
    properties: Mapping[str, str] = field(repr=False)
    tokens: TokenSource | None = field(repr=False, compare=False)
    tls: Tls | None = field(repr=False, compare=False)

    @classmethod
    def from_properties(
        cls, bootstrap_servers: str, properties: Mapping[str, str], *, oauth_cb: TokenCallback | None = None
    ) -> Self:
        """Check the properties of a cluster. Files that they name are read when they are needed.

        Args:
            bootstrap_servers: ``host:port``, comma-separated; IPv6 addresses in brackets.
            properties: librdkafka's names and values.
            oauth_cb: gets tokens for OAUTHBEARER, as confluent-kafka's property of that name does.

        Raises:
            ConfigurationError: naming the address or property that is malformed, not supported, or without
                effect beside the others.
        """
        given = _by_one_name(properties)
        if unknown := sorted(set(given) - set(_PROPERTIES)):
            raise ConfigurationError(
                f"cluster property {unknown[0]} is not supported; known are: {', '.join(_PROPERTIES)}"
            )
        values = _PROPERTIES | given
        values["security.protocol"] = protocol = values["security.protocol"].upper()
        if protocol not in _PROTOCOLS:
            raise ConfigurationError(f"security.protocol {protocol!r} is none of {', '.join(_PROTOCOLS)}")
        values["sasl.mechanism"] = mechanism = values["sasl.mechanism"].upper()
        if protocol.startswith("SASL_") and mechanism not in _MECHANISMS:
            raise ConfigurationError(f"sasl.mechanism {mechanism!r} is none of {', '.join(_MECHANISMS)}")
        for name, choices in _CHOICES.items():
            values[name] = values[name].lower()
            if values[name] not in choices:
                raise ConfigurationError(f"{name} {values[name]!r} is none of {', '.join(choices)}")
        _check_effect(values, oauth_cb)
        _check_complete(values, oauth_cb)
        return cls(
            bootstrap=tuple(_address(text) for text in bootstrap_servers.split(",")),
            security_protocol=protocol,
            client_id=values["client.id"],
            client_rack=values["client.rack"],
            socket_timeout=_seconds("socket.timeout.ms", values),
            connect_timeout=_seconds("socket.connection.setup.timeout.ms", values),
            request_timeout=_seconds("request.timeout.ms", values, least=1000),
            properties=values,
            tokens=tokens.source(values, oauth_cb) if mechanism == "OAUTHBEARER" else None,
            tls=Tls(values) if protocol.endswith("SSL") else None,
        )

    @property
    def uses_sasl(self) -> bool:
        """Whether connections authenticate by SASL."""
        return self.security_protocol.startswith("SASL_")

    @property
    def user(self) -> str:
        """Who we say we are, for messages."""
        if self.tokens is not None:
            return self.tokens.description
        return f"user {self.properties['sasl.username']!r}"

    def for_librdkafka(self) -> dict[str, Any]:
        """The same settings for a confluent-kafka client; tokens come from the same source."""
        chosen: dict[str, Any] = {
            name: value
            for name, value in self.properties.items()
            if value and value != _PROPERTIES[name] and name.startswith(_FOR_LIBRDKAFKA)
        }
        if self.properties["ssl.certificate.location"] and not self.properties["ssl.key.pem"]:
            # One file may hold both; librdkafka wants to be told.
            chosen.setdefault("ssl.key.location", self.properties["ssl.certificate.location"])
        if self.tokens is not None:
            chosen["oauth_cb"] = self.tokens.for_librdkafka
        return {
            **chosen,
            "bootstrap.servers": ",".join(map(str, self.bootstrap)),
            "client.id": self.client_id,
            "socket.timeout.ms": str(max(10, int(self.socket_timeout * 1000))),
            "socket.connection.setup.timeout.ms": str(max(1000, int(self.connect_timeout * 1000))),
        }


def _by_one_name(properties: Mapping[str, str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in properties.items():
        known = _ALIASES.get(name, name)
        if known in given:
            raise ConfigurationError(f"{name} is another name of a property that is given already")
        given[known] = value
    return given


def _check_effect(values: Mapping[str, str], oauth_cb: TokenCallback | None) -> None:
    """Refuse what would be ignored: whoever wrote it believes in it."""
    protocol, mechanism = values["security.protocol"], values["sasl.mechanism"]
    method = values["sasl.oauthbearer.method"]
    bearer = mechanism == "OAUTHBEARER"
    for name, default in _PROPERTIES.items():
        if values[name] == default:
            continue
        if name.startswith(("ssl.", "enable.ssl.")) and not protocol.endswith("SSL"):
            raise ConfigurationError(f"{name} has no effect while security.protocol is {protocol}")
        if name.startswith(("sasl.", "aws.", "https.")) and not protocol.startswith("SASL_"):
            raise ConfigurationError(f"{name} has no effect while security.protocol is {protocol}")
        if name in ("sasl.username", "sasl.password") and bearer:
            raise ConfigurationError(f"{name} has no effect while sasl.mechanism is OAUTHBEARER")
        if name.startswith(("sasl.oauthbearer.", "aws.", "https.")) and not bearer:
            raise ConfigurationError(f"{name} has no effect while sasl.mechanism is {mechanism}")
        if _FOR_METHOD.get(name, method) != method:
            raise ConfigurationError(f"{name} has no effect while sasl.oauthbearer.method is {method}")
    if oauth_cb is not None and not (bearer and method == "default" and protocol.startswith("SASL_")):
        raise ConfigurationError(
            "oauth_cb has no effect without a SASL security.protocol, sasl.mechanism OAUTHBEARER and "
            "sasl.oauthbearer.method default"
        )


def _check_complete(values: Mapping[str, str], oauth_cb: TokenCallback | None) -> None:
    protocol, mechanism = values["security.protocol"], values["sasl.mechanism"]
    method = values["sasl.oauthbearer.method"]
    for one, other in _ONE_OF:
        if values[one] and values[other]:
            raise ConfigurationError(f"{one} and {other} are both given; only one of them can be meant")
    has_certificate = values["ssl.certificate.location"] or values["ssl.certificate.pem"]
    has_key = values["ssl.key.location"] or values["ssl.key.pem"]
    if (has_key or values["ssl.key.password"]) and not has_certificate:
        raise ConfigurationError("ssl.key.* has no effect without ssl.certificate.location or .pem")
    if values["aws.role.session.name"] and not values["aws.role.arn"]:
        raise ConfigurationError("aws.role.session.name has no effect without aws.role.arn")
    if values["ssl.certificate.pem"] and not has_key:
        raise ConfigurationError("ssl.certificate.pem needs ssl.key.pem or ssl.key.location")
    if not protocol.startswith("SASL_"):
        return
    if mechanism != "OAUTHBEARER":
        if not values["sasl.username"]:
            raise ConfigurationError(f"sasl.mechanism {mechanism} needs sasl.username and sasl.password")
        return
    for name in _NEEDED.get(method, ()):
        if not values[name]:
            raise ConfigurationError(f"sasl.oauthbearer.method {method} needs {name}")
    if method == "default" and oauth_cb is None:
        raise ConfigurationError(
            "sasl.mechanism OAUTHBEARER needs a source of tokens: sasl.oauthbearer.method oidc or aws_msk_iam, "
            "or oauth_cb"
        )


def _address(text: str) -> Address:
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ConfigurationError(
            f"bootstrap server {text.strip()!r} is not host:port (an IPv6 address needs brackets)"
        )
    return Address(match["v6"] or match["host"], int(match["port"]))


def _seconds(name: str, values: Mapping[str, str], *, least: int = 1) -> float:
    if not values[name].isdecimal() or int(values[name]) < least:
        raise ConfigurationError(f"{name} must be at least {least} milliseconds, not {values[name]!r}")
    return int(values[name]) / 1000
