"""Properties of a cluster: what is understood, what is refused, what must never be shown."""

import time

import pytest
from confluent_kafka.admin import AdminClient

from kafka_backup.errors import ConfigurationError
from kafka_backup.kafka.settings import Address, ConnectionSettings
from kafka_backup.kafka.tokens import Token

PLAIN = {"sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "p"}
OIDC = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.client.id": "backup",
    "sasl.oauthbearer.client.secret": "s",
    "sasl.oauthbearer.token.endpoint.url": "https://id.example/token",
}
AWS = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "aws_msk_iam",
    "aws.region": "eu-central-1",
}


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("127.0.0.1:9092", [Address("127.0.0.1", 9092)]),
        ("a:1, b.example.org:65535", [Address("a", 1), Address("b.example.org", 65535)]),
        ("[::1]:9092,[fe80::1%eth0]:9093", [Address("::1", 9092), Address("fe80::1%eth0", 9093)]),
    ],
)
def test_bootstrap_servers_are_hosts_and_ports(text: str, addresses: list[Address]) -> None:
    """What: names, IPv4 and bracketed IPv6 addresses, several at once, with blanks.

    Why: this is the first thing that a user types.
    Risk: a list of which only the first server is used would fail on the day that one is down.
    """
    settings = ConnectionSettings.from_properties(text, {})
    assert list(settings.bootstrap) == addresses
    again = ConnectionSettings.from_properties(",".join(map(str, addresses)), {})
    assert list(again.bootstrap) == addresses


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":9092", "host:0", "host:65536", "::1:9092", "http://host:9092", "a:1,,b:2"]
)
def test_malformed_bootstrap_servers_are_named(text: str) -> None:
    """What: addresses without port, with an impossible one, or with something around them.

    Why: exit code 2, before anything happens, names the place.
    Risk: a typo would show up as a minute of connection errors.
    """
    with pytest.raises(ConfigurationError, match=r"bootstrap server .* is not host:port"):
        ConnectionSettings.from_properties(text, {})


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"acks": "all"}, "acks"),
        ({"security.protocol": "TLS"}, "security.protocol"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "GSSAPI"}, "sasl.mechanism"),
        ({"security.protocol": "SASL_SSL"}, "sasl.mechanism"),
        ({"socket.timeout.ms": "5s"}, "socket.timeout.ms"),
        ({"socket.timeout.ms": "0"}, "socket.timeout.ms"),
        ({"socket.connection.setup.timeout.ms": "-1"}, "socket.connection.setup.timeout.ms"),
        ({"request.timeout.ms": "999"}, "request.timeout.ms must be at least 1000 milliseconds, not '999'"),
        ({"enable.ssl.certificate.verification": "no"}, "enable.ssl.certificate.verification"),
        ({"ssl.endpoint.identification.algorithm": "dns"}, "ssl.endpoint.identification.algorithm"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}, "sasl.username"),
        ({"security.protocol": "SSL", "ssl.keystore.location": "x.p12"}, "ssl.keystore.location"),
        ({"security.protocol": "SSL", "ssl.ca.pem": "x", "ssl.ca.location": "y"}, "ssl.ca.location"),
        ({"security.protocol": "SSL", "ssl.key.location": "x"}, "ssl.certificate.location"),
        ({"security.protocol": "SSL", "ssl.certificate.pem": "x"}, "ssl.key.pem"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "oauth_cb"),
        (OIDC | {"sasl.oauthbearer.client.secret": ""}, "sasl.oauthbearer.client.secret"),
        (OIDC | {"sasl.oauthbearer.token.endpoint.url": "localhost"}, "sasl.oauthbearer.token.endpoint.url"),
        (OIDC | {"sasl.oauthbearer.token.endpoint.url": "file:///x"}, "sasl.oauthbearer.token.endpoint.url"),
        (OIDC | {"sasl.oauthbearer.extensions": "a"}, "sasl.oauthbearer.extensions"),
        (OIDC | {"sasl.oauthbearer.extensions": "auth=x"}, "sasl.oauthbearer.extensions"),
        (OIDC | {"sasl.oauthbearer.client.credentials.client.id": "b"}, "another name"),
        (OIDC | {"sasl.oauthbearer.method": "azure"}, "sasl.oauthbearer.method"),
        (AWS | {"aws.region": ""}, "aws.region"),
        (AWS | {"aws.profile": "p", "aws.role.arn": "r"}, "aws.profile"),
        (AWS | {"aws.role.session.name": "s"}, "aws.role.session.name"),
    ],
)
def test_what_is_not_understood_is_refused(properties: dict[str, str], named: str) -> None:
    """What: unknown properties, unknown values, numbers that are none.

    Why: a property that is silently ignored may be the one that encrypts.
    Risk: a user believes in TLS, or in a timeout, that is not there.
    """
    with pytest.raises(ConfigurationError, match=named):
        ConnectionSettings.from_properties("a:1", properties)


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"ssl.ca.location": "/ca.pem"}, "ssl.ca.location"),
        ({"enable.ssl.certificate.verification": "false"}, "enable.ssl.certificate.verification"),
        ({"security.protocol": "SASL_PLAINTEXT", "ssl.ca.pem": "x", **PLAIN}, "ssl.ca.pem"),
        (PLAIN, "sasl.mechanism"),
        ({"security.protocol": "SSL", **PLAIN}, "sasl.mechanism"),
        ({"security.protocol": "SASL_SSL", **PLAIN, "sasl.oauthbearer.scope": "x"}, "sasl.oauthbearer.scope"),
        (OIDC | {"sasl.password": "x"}, "sasl.password"),
        (OIDC | {"sasl.oauthbearer.config": "x"}, "sasl.oauthbearer.config"),
        (OIDC | {"aws.region": "x"}, "aws.region"),
        (AWS | {"https.ca.pem": "x"}, "https.ca.pem"),
    ],
)
def test_what_would_have_no_effect_is_refused(properties: dict[str, str], named: str) -> None:
    """What: encryption's and credentials' properties beside a protocol or mechanism that does not read them.

    Why: librdkafka ignores them; whoever wrote them believes that the connection is encrypted.
    Risk: a password given, security.protocol forgotten, and everything in plain text.
    """
    with pytest.raises(ConfigurationError, match=f"{named} has no effect while"):
        ConnectionSettings.from_properties("a:1", properties)


def test_a_callback_that_nobody_would_call_is_refused() -> None:
    """What: oauth_cb beside PLAIN, and beside a method that gets tokens itself.

    Why: as above.
    Risk: a company's own tokens configured, and others used.
    """
    for properties in ({"security.protocol": "SASL_SSL", **PLAIN}, OIDC, {}):
        with pytest.raises(ConfigurationError, match="oauth_cb has no effect"):
            ConnectionSettings.from_properties("a:1", properties, oauth_cb=lambda _: ("t", 0))


def test_secrets_do_not_show() -> None:
    """What: the repr of settings that hold a password and a key password.

    Why: reprs end in logs, in Dagster's event log and in bug reports.
    Risk: a cluster's password for everybody who may read a log.
    """
    settings = ConnectionSettings.from_properties(
        "a:1",
        {
            "security.protocol": "sasl_ssl",
            "sasl.mechanisms": "scram-sha-512",
            "sasl.username": "backup",
            "sasl.password": "canary-1",
            "ssl.certificate.pem": "-----BEGIN CERTIFICATE-----",
            "ssl.key.pem": "canary-2",
            "ssl.key.password": "canary-3",
        },
    )
    assert "canary" not in repr(settings)
    oidc = ConnectionSettings.from_properties("a:1", OIDC | {"sasl.oauthbearer.client.secret": "canary-4"})
    assert "canary" not in repr(oidc)
    assert "canary" not in repr(Token(value="canary-5", expires_at=1.0))


def test_the_admin_client_gets_the_same_settings() -> None:
    """What: what confluent-kafka's client is configured with.

    Why: topics are created by that client, records are moved by ours; both must reach the same cluster alike.
    Risk: an admin client that talks in plain text, or waits a minute where the user said a second.
    """
    settings = ConnectionSettings.from_properties(
        "a:1,[::1]:2",
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "backup",
            "sasl.password": "secret",
            "socket.timeout.ms": "4000",
        },
    )
    given = settings.for_librdkafka()
    assert given["bootstrap.servers"] == "a:1,[::1]:2"
    assert given["security.protocol"] == "SASL_PLAINTEXT"
    assert given["sasl.mechanism"] == "PLAIN"
    assert given["sasl.password"] == "secret"
    assert given["socket.timeout.ms"] == "4000"


def test_timeouts_that_librdkafka_would_refuse_are_raised_for_it() -> None:
    """What: a connect timeout of half a second, for our client and for confluent-kafka's.

    Why: librdkafka takes at least a second there and throws at once otherwise.
    Risk: a legal configuration that ends in a stack trace.
    """
    settings = ConnectionSettings.from_properties(
        "127.0.0.1:1", {"socket.connection.setup.timeout.ms": "500", "socket.timeout.ms": "5"}
    )
    assert (settings.connect_timeout, settings.socket_timeout) == (0.5, 0.005)
    AdminClient({**settings.for_librdkafka(), "log_level": 0})


def test_the_admin_client_takes_every_property() -> None:
    """What: confluent-kafka's client made from settings of each kind; tokens come from the same source.

    Why: what librdkafka does not know, or wants otherwise, it throws at once.
    Risk: a configuration that our own client likes and the admin client does not.
    """
    calls: list[str] = []

    def oauth_cb(config: str) -> tuple[str, float]:
        calls.append(config)
        return "token", time.time() + 300

    bearer = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.config": "for-me",
    }
    settings = ConnectionSettings.from_properties("127.0.0.1:1", bearer, oauth_cb=oauth_cb)
    AdminClient({**settings.for_librdkafka(), "log_level": 0})
    assert settings.tokens is not None
    assert settings.tokens.token().value == "token"
    assert calls == ["for-me"]
    names = {"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "NONE", "client.rack": "r"}
    names["ssl.certificate.location"] = "/both.pem"
    given = ConnectionSettings.from_properties("127.0.0.1:1", names).for_librdkafka()
    assert given["ssl.endpoint.identification.algorithm"] == "none"
    assert given["ssl.key.location"] == "/both.pem"
    assert given["client.rack"] == "r"
