"""SASL on a real broker, in plain text and encrypted: PLAIN and SCRAM, right and wrong passwords."""

import pytest

from kafka_backup.errors import AuthorizationError, UnreachableError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.clients import get_in
from tests.support.secure_cluster import USER, SecureCluster

MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
LISTENERS = ["SASL", "SASL_TLS"]


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_both_clients_get_in(listener: str, mechanism: str, secure: SecureCluster) -> None:
    """What: our own connection and the admin client, by each mechanism; passwords with odd characters.

    Why: most clusters outside of a laptop want one of these.
    Risk: a tool that works in the demo only.
    """
    assert get_in(secure.servers(listener), secure.properties(listener, mechanism)) == secure.cluster_id


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_wrong_password_is_told_at_once(listener: str, mechanism: str, secure: SecureCluster) -> None:
    """What: the right user, a wrong password.

    Why: no retry mends it: exit 2, not 3 after a minute; the message names the user, never the password.
    Risk: a locked account, or a password in a log.
    """
    properties = secure.properties(listener, mechanism, sasl_password="not-it")
    cluster = Cluster(
        ConnectionSettings.from_properties(secure.servers(listener), properties), retry_seconds=300
    )
    with pytest.raises(AuthorizationError, match=USER) as caught:
        cluster.metadata([])
    assert "not-it" not in str(caught.value)


def test_a_mechanism_that_the_broker_does_not_offer_is_named(secure: SecureCluster) -> None:
    """What: OAUTHBEARER's listener asked for by a mechanism that is turned off there.

    Why: the broker lists what it offers; the user can choose from that.
    Risk: "the connection broke", and a search in the broker's log.
    """
    properties = secure.properties("SCRAM_ONLY", "PLAIN")
    cluster = Cluster(
        ConnectionSettings.from_properties(secure.servers("SCRAM_ONLY"), properties), retry_seconds=300
    )
    with pytest.raises(AuthorizationError, match=r"does not offer PLAIN, only SCRAM-SHA-512"):
        cluster.metadata([])


def test_plain_text_at_a_listener_that_wants_sasl(secure: SecureCluster) -> None:
    """What: no security at all, at that listener.

    Why: a forgotten security.protocol is a common mistake.
    Risk: an endless retry without a hint.
    """
    plain = ConnectionSettings.from_properties(secure.servers("SASL"), {"socket.timeout.ms": "2000"})
    with pytest.raises(UnreachableError, match=f"{secure.servers('SASL')}.*security.protocol"):
        Cluster(plain, retry_seconds=2).metadata([])
