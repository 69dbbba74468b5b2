"""TLS on a real broker: whom we trust, what we are called, what we show."""

import subprocess
from pathlib import Path

import pytest

from kafka_backup import Engine, RestoreRequest, parse_config
from kafka_backup.errors import AuthorizationError, ConfigurationError, KafkaBackupError, UnreachableError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.certificates import Identities
from tests.support.clients import get_in
from tests.support.engine import capture
from tests.support.records import NewRecord, renumbered
from tests.support.secure_cluster import SecureCluster
from tests.support.topics import new_topic, produce, read_topic


def refusal(secure: SecureCluster, listener: str, properties: dict[str, str]) -> KafkaBackupError:
    """How the raw client is refused, at once: no retry mends it."""
    settings = ConnectionSettings.from_properties(secure.servers(listener), properties)
    with pytest.raises(KafkaBackupError) as caught:
        Cluster(settings, retry_seconds=300).metadata([])
    return caught.value


@pytest.mark.parametrize("form", ["file", "folder", "pem"])
def test_an_authority_of_our_own_is_trusted(form: str, secure: SecureCluster, tmp_path: Path) -> None:
    """What: the certificate authority as a file, as a hashed folder and as text, for both clients.

    Why: few clusters have a certificate that the machine trusts already.
    Risk: records are moved by a client that trusts the broker, topics made by one that does not.
    """
    pem = secure.identities.authority.pem
    (tmp_path / "ca.pem").write_text(pem)
    if form == "folder":  # its files are found by the hash of their subject
        subprocess.run(["openssl", "rehash", str(tmp_path)], check=True)
    properties = {"security.protocol": "SSL"} | {
        "file": {"ssl.ca.location": str(tmp_path / "ca.pem")},
        "folder": {"ssl.ca.location": str(tmp_path)},
        "pem": {"ssl.ca.pem": pem},
    }[form]
    assert get_in(secure.servers("TLS"), properties) == secure.cluster_id


@pytest.mark.parametrize("authority", ["another", "none", "the machine's"])
def test_a_broker_that_nobody_vouches_for_is_refused(authority: str, secure: SecureCluster) -> None:
    """What: the wrong authority; none given; one that is not there.

    Why: an encrypted connection to the wrong party is worth nothing, and no retry mends it.
    Risk: credentials and data for whoever answers at the address.
    """
    properties = {"security.protocol": "SSL"}
    if authority == "another":
        properties["ssl.ca.pem"] = Identities.new().authority.pem
    elif authority == "none":
        properties["ssl.ca.location"] = "/nowhere/ca.pem"
    refused = refusal(secure, "TLS", properties)
    assert isinstance(refused, ConfigurationError)
    if authority == "none":
        assert "ssl.ca.location /nowhere/ca.pem cannot be used: there is no such file" in str(refused)
    else:
        assert f"broker {secure.servers('TLS')} is not trusted" in str(refused)
        assert "ssl.ca.location" in str(refused)


def test_a_certificate_for_another_name(secure: SecureCluster) -> None:
    """What: a trusted certificate that names another host; with the check, and with the check turned off.

    Why: any holder of a certificate of the same authority could stand in for the broker.
    Risk: the check is off by default; or whoever must turn it off cannot.
    """
    properties = secure.properties("MISNAMED")
    refused = refusal(secure, "MISNAMED", properties)
    assert isinstance(refused, ConfigurationError)
    assert "made for another name" in str(refused)
    assert "'localhost'" in str(refused)
    for name, value in (
        ("ssl.endpoint.identification.algorithm", "none"),
        ("enable.ssl.certificate.verification", "false"),
    ):
        assert get_in(secure.servers("MISNAMED"), properties | {name: value}) == secure.cluster_id
    blind = {"security.protocol": "SSL", "enable.ssl.certificate.verification": "false"}
    assert get_in(secure.servers("TLS"), blind) == secure.cluster_id


def test_a_broker_at_an_ipv6_address(secure: SecureCluster) -> None:
    """What: TLS to ::1, whose address is in the certificate; the broker names itself so in its metadata.

    Why: brackets in the configuration, none in the certificate's check, brackets again in messages.
    Risk: clusters on IPv6 cannot be backed up.
    """
    assert secure.servers("V6").startswith("[::1]:")
    assert get_in(secure.servers("V6"), secure.properties("V6")) == secure.cluster_id


@pytest.mark.parametrize("form", ["files", "one file", "pem", "encrypted file", "encrypted pem"])
def test_our_own_certificate_is_shown(form: str, secure: SecureCluster, tmp_path: Path) -> None:
    """What: mutual TLS with certificate and key in two files, in one, as text, and with an encrypted key.

    Why: this is how clusters without passwords know their clients.
    Risk: one of the two clients shows no certificate.
    """
    chain, password = secure.identities.client.chain, 'its "password"'
    key = (
        secure.identities.client.encrypted_key(password)
        if "encrypted" in form
        else secure.identities.client.key
    )
    properties = secure.properties("MTLS")
    if "encrypted" in form:
        properties["ssl.key.password"] = password
    if "pem" in form:
        properties |= {"ssl.certificate.pem": chain, "ssl.key.pem": key}
    elif form == "one file":
        (tmp_path / "both").write_text(chain + key)
        properties |= {"ssl.certificate.location": str(tmp_path / "both")}
    else:
        (tmp_path / "chain").write_text(chain)
        (tmp_path / "key").write_text(key)
        properties |= {
            "ssl.certificate.location": str(tmp_path / "chain"),
            "ssl.key.location": str(tmp_path / "key"),
        }
    for listener in ("MTLS", "OLD_MTLS"):
        assert get_in(secure.servers(listener), properties) == secure.cluster_id


@pytest.mark.parametrize("listener", ["MTLS", "OLD_MTLS"])
@pytest.mark.parametrize("problem", ["none", "of another authority"])
def test_a_certificate_that_the_broker_does_not_take(
    listener: str, problem: str, secure: SecureCluster
) -> None:
    """What: no certificate where one is wanted; one that the broker does not trust; with TLS 1.3 and 1.2.

    Why: with TLS 1.3 the broker complains only after the handshake is over for us, with 1.2 during it.
    Risk: a minute of retries and "the connection broke" instead of the cause.
    """
    properties = secure.properties(listener)
    if problem != "none":
        other = Identities.new().client
        properties |= {"ssl.certificate.pem": other.chain, "ssl.key.pem": other.key}
    refused = refusal(secure, listener, properties)
    assert isinstance(refused, AuthorizationError)
    assert f"broker {secure.servers(listener)} refused our certificate" in str(refused)
    assert "ssl.certificate" in str(refused)


@pytest.mark.parametrize("password", ["wrong-canary", ""])
def test_a_key_that_cannot_be_read(password: str, secure: SecureCluster) -> None:
    """What: an encrypted key with a wrong password, and with none.

    Why: OpenSSL would ask on the terminal for a password that is not given.
    Risk: a scheduled backup that waits for somebody to type; a password in a message.
    """
    client = secure.identities.client
    more = {"ssl.certificate.pem": client.chain, "ssl.key.pem": client.encrypted_key("right-canary")}
    if password:
        more["ssl.key.password"] = password
    refused = refusal(secure, "MTLS", secure.properties("MTLS") | more)
    assert isinstance(refused, ConfigurationError)
    assert "ssl.key.password" in str(refused)
    assert "canary" not in str(refused)


@pytest.mark.parametrize(("listener", "protocol"), [("TLS", "PLAINTEXT"), ("SASL", "SSL")])
def test_plain_text_and_tls_do_not_meet(listener: str, protocol: str, secure: SecureCluster) -> None:
    """What: plain text to a listener that wants TLS, and TLS to one that does not know it.

    Why: a forgotten security.protocol is the most common mistake of all.
    Risk: an endless retry without a hint.
    """
    settings = ConnectionSettings.from_properties(
        secure.servers(listener), {"security.protocol": protocol, "socket.timeout.ms": "2000"}
    )
    with pytest.raises(UnreachableError, match=r"security\.protocol"):
        Cluster(settings, retry_seconds=1).metadata([])


def test_a_topic_goes_there_and_back_over_tls(secure: SecureCluster, tmp_path: Path) -> None:
    """What: a capture and a restore with both clients over mutual TLS; the records are compared.

    Why: fetching and producing use connections and buffers of their own.
    Risk: bytes that are cut or doubled where TLS delivers them in pieces of 16 KiB.
    """
    topic = new_topic(secure, 3)
    for partition in range(3):
        values = [bytes([partition, n % 256]) * (n * 37 % 40_000) for n in range(400)]
        produce(secure.bootstrap_servers, topic, [NewRecord(value) for value in values], partition=partition)
    client = secure.identities.client
    properties = secure.properties("MTLS") | {
        "ssl.certificate.pem": client.chain,
        "ssl.key.pem": client.key,
    }
    config = parse_config(
        {
            "cluster": {"bootstrap_servers": secure.servers("MTLS"), "properties": properties},
            "repository": {"url": f"file://{tmp_path}"},
        },
        source="test",
    )
    with Engine.open(config) as engine:
        capture(engine, topic)
        plan = engine.plan_restore(RestoreRequest(restore_id="r", topics=(topic,), prefix="again-"))
        engine.restore(plan)
    again = read_topic(secure.bootstrap_servers, f"again-{topic}")
    for partition, records in read_topic(secure.bootstrap_servers, topic).items():
        assert again[partition] == renumbered(records)
