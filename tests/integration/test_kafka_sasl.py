"""SASL on a real broker: PLAIN and SCRAM, right and wrong passwords."""

import sys
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from kafka_backup.errors import AuthorizationError, UnreachableError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from kafka_backup.kafka.topics import TopicAdmin
from tests.support.kafka_cluster import KafkaCluster

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="a container's own address is reached on Linux only"
)

USER, PASSWORD = "backup", 'pass "word" with, =signs ünd so'
PLAIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_backup="secret";'
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


class SaslCluster(KafkaCluster):
    """One broker with a second listener for clients, on the container's own address."""

    @property
    def sasl_servers(self) -> str:
        """The listener that wants SASL."""
        return f"{self.addresses[1]}:9095"

    def _settings(self, broker_id: int) -> dict[str, str | int]:
        given = super()._settings(broker_id)
        return given | {
            "listeners": f"{given['listeners']},SASL://:9095",
            "advertised.listeners": f"{given['advertised.listeners']},SASL://{self.sasl_servers}",
            "listener.security.protocol.map": f"{given['listener.security.protocol.map']},SASL:SASL_PLAINTEXT",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl.plain.sasl.jaas.config": PLAIN,
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": SCRAM,
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": SCRAM,
        }


@pytest.fixture(scope="module")
def sasl() -> Iterator[SaslCluster]:
    """A broker that knows the user by all three mechanisms."""
    with SaslCluster(1) as cluster:
        admin = cluster.admin()
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            new = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            for future in admin.alter_user_scram_credentials([new]).values():
                future.result(30)
        yield cluster


def settings(sasl: SaslCluster, mechanism: str, password: str) -> ConnectionSettings:
    """As a user writes them."""
    return ConnectionSettings.from_properties(
        sasl.sasl_servers,
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": USER,
            "sasl.password": password,
        },
    )


def right_password(mechanism: str) -> str:
    """PLAIN's is written into the broker's configuration."""
    return "secret" if mechanism == "PLAIN" else PASSWORD


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_both_clients_get_in(mechanism: str, sasl: SaslCluster) -> None:
    """What: our own connection and the admin client, by each mechanism; passwords with odd characters.

    Why: most clusters outside of a laptop want one of these.
    Risk: a tool that works in the demo only.
    """
    known = settings(sasl, mechanism, right_password(mechanism))
    cluster = Cluster(known, retry_seconds=30)
    assert cluster.metadata([]).cluster_id == sasl.cluster_id
    cluster.close()
    admin = TopicAdmin(known, retry_seconds=30)
    topic = f"by-{mechanism}"
    admin.create_topic(topic, partitions=1, replication_factor=1, configs={})
    admin.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_told_at_once(mechanism: str, sasl: SaslCluster) -> None:
    """What: the right user, a wrong password.

    Why: no retry mends it: exit 2, not 3 after a minute; the message names the user, never the password.
    Risk: a locked account, or a password in a log.
    """
    cluster = Cluster(settings(sasl, mechanism, "not-it"), retry_seconds=300)
    with pytest.raises(AuthorizationError, match=USER) as caught:
        cluster.metadata([])
    assert "not-it" not in str(caught.value)


def test_plain_text_at_a_listener_that_wants_sasl(sasl: SaslCluster) -> None:
    """What: no security at all, at that listener.

    Why: a forgotten security.protocol is a common mistake.
    Risk: an endless retry without a hint.
    """
    plain = ConnectionSettings.from_properties(sasl.sasl_servers, {"socket.timeout.ms": "2000"})
    with pytest.raises(UnreachableError, match=sasl.sasl_servers):
        Cluster(plain, retry_seconds=2).metadata([])
