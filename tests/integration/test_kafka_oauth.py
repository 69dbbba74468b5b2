"""OAUTHBEARER on a real broker that verifies signatures: tokens from a callback and from a token endpoint."""

import time
from collections.abc import Iterator

import pytest

from kafka_backup.errors import AuthorizationError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.clients import get_in
from tests.support.secure_cluster import USER, SecureCluster
from tests.support.token_endpoint import Signer, TokenEndpoint

SECRET = "canary-secret"


@pytest.fixture
def endpoint(secure: SecureCluster) -> Iterator[TokenEndpoint]:
    certificate = secure.identities.authority.issue("id", "localhost")
    with TokenEndpoint(secure.signer, SECRET, certificate) as serving:
        yield serving


def oidc(secure: SecureCluster, listener: str, endpoint: TokenEndpoint, **more: str) -> dict[str, str]:
    """The properties of a client with a secret."""
    return (
        secure.properties(listener, "OAUTHBEARER")
        | {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": USER,
            "sasl.oauthbearer.client.secret": SECRET,
            "sasl.oauthbearer.token.endpoint.url": endpoint.url,
            "https.ca.pem": secure.identities.authority.pem,
        }
        | {name.replace("_", "."): value for name, value in more.items()}
    )


@pytest.mark.parametrize("listener", ["SASL", "SASL_TLS"])
def test_a_callback_gives_both_clients_their_tokens(listener: str, secure: SecureCluster) -> None:
    """What: a Python function that returns a signed token, for our connections and for the admin client.

    Why: a company's own way to get tokens can always be put into a function.
    Risk: the admin client waits for a token for ever, or asks at each turn.
    """
    calls: list[str] = []

    def oauth_cb(config: str) -> tuple[str, float, str, dict[str, str]]:
        calls.append(config)
        return secure.signer.token(USER), time.time() + 300, USER, {"team": "storage"}

    properties = secure.properties(listener, "OAUTHBEARER", sasl_oauthbearer_config="for=me")
    assert get_in(secure.servers(listener), properties, oauth_cb=oauth_cb) == secure.cluster_id
    assert calls == ["for=me"]


@pytest.mark.parametrize("listener", ["SASL", "SASL_TLS"])
def test_client_credentials_get_both_clients_in(
    listener: str, secure: SecureCluster, endpoint: TokenEndpoint
) -> None:
    """What: librdkafka's properties for OIDC, against a token endpoint with https and a broker with its key.

    Why: Keycloak, Entra, Okta and others all work this way.
    Risk: two clients that ask for tokens each in their own way, and one of them fails.
    """
    properties = oidc(
        secure,
        listener,
        endpoint,
        sasl_oauthbearer_scope="kafka",
        sasl_oauthbearer_extensions="team=storage",
    )
    assert get_in(secure.servers(listener), properties) == secure.cluster_id
    assert endpoint.scopes == ["kafka"]


@pytest.mark.parametrize("problem", ["signature", "audience", "expired", "not a token"])
def test_a_token_that_the_broker_does_not_take(problem: str, secure: SecureCluster) -> None:
    """What: a token of another issuer's key, for another audience, too old, or none at all.

    Why: told at once, with whose token it is, and never the token.
    Risk: a token in a log; or a minute of retries.
    """
    token = {
        "signature": lambda: Signer().token(USER),
        "audience": lambda: secure.signer.token(USER, aud="canary"),
        "expired": lambda: secure.signer.token(USER, lifetime=-600),
        "not a token": lambda: "canary",
    }[problem]()
    settings = ConnectionSettings.from_properties(
        secure.servers("SASL_TLS"),
        secure.properties("SASL_TLS", "OAUTHBEARER"),
        oauth_cb=lambda _: (token, time.time() + 300),
    )
    with pytest.raises(AuthorizationError, match=r"refused the token of oauth_cb") as caught:
        Cluster(settings, retry_seconds=300).metadata([])
    assert token not in str(caught.value)


def test_a_wrong_secret_is_told_before_any_broker_is_asked(
    secure: SecureCluster, endpoint: TokenEndpoint
) -> None:
    """What: a client secret that the token endpoint does not take.

    Why: the broker has no part in it; the message must send people to the right place.
    Risk: exit code 3 after a minute, or the secret in the message.
    """
    properties = oidc(secure, "SASL_TLS", endpoint, sasl_oauthbearer_client_secret="canary-wrong")
    with pytest.raises(AuthorizationError, match="token endpoint") as caught:
        get_in(secure.servers("SASL_TLS"), properties)
    assert "canary" not in str(caught.value)
