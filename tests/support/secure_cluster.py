"""One broker with everything that a client may have to prove: TLS, SASL, tokens, rights."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from kafka_backup.errors import AuthorizationError
from kafka_backup.kafka.connection import Connection
from kafka_backup.kafka.settings import ConnectionSettings
from tests.support.certificates import Certificate, Identities
from tests.support.kafka_cluster import KafkaCluster, Listener
from tests.support.token_endpoint import Signer
from tests.support.waiting import wait_for

USER, PASSWORD = "backup", 'pass "word" with, =signs ünd ﬁ²½ so'
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_PLAIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_backup="secret";'
_BEARER = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;"
_VALIDATOR = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"
_KEYS = "file:///mnt/keys/jwks.json"
SESSION_MS = 2000
"""Life of a session at the listener SHORT."""


class SecureCluster(KafkaCluster):
    """A broker whose listeners are these; names are localhost except V6's.

    TLS, MTLS (wants a certificate), OLD_MTLS (the same with TLS 1.2), MISNAMED (its certificate is for another name), V6 (TLS on ::1), SASL (in plain text), SASL_TLS, SCRAM_ONLY, SHORT (as SASL_TLS,
    with sessions of 2 s). `USER` (`PASSWORD`; with PLAIN `secret`), the client of `identities` and tokens of
    `signer` for `USER` may do everything, as may those who prove nothing; others what ACLs say.
    """

    def __init__(self, folder: Path) -> None:
        self.identities, self.signer = Identities.new(), Signer()
        (folder / "jwks.json").write_text(self.signer.jwks)
        super().__init__(
            1,
            config={
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": f"User:ANONYMOUS;User:{USER};User:CN=backup",
            },
            listeners=self._make_listeners(),
            java_options=f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={_KEYS}",
            files={"/mnt/keys": folder},
        )

    def _make_listeners(self) -> list[Listener]:
        ssl: dict[str, str | int] = {
            **_store(self.identities.broker),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": self.identities.authority.pem,
        }
        sasl: dict[str, str | int] = {
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "plain.sasl.jaas.config": _PLAIN,
            "scram-sha-256.sasl.jaas.config": _SCRAM,
            "scram-sha-512.sasl.jaas.config": _SCRAM,
            "oauthbearer.sasl.jaas.config": _BEARER,
            "oauthbearer.sasl.server.callback.handler.class": _VALIDATOR,
            "oauthbearer.sasl.oauthbearer.jwks.endpoint.url": _KEYS,
            "oauthbearer.sasl.oauthbearer.expected.audience": self.signer.audience,
            "oauthbearer.sasl.oauthbearer.expected.issuer": self.signer.issuer,
        }
        old: dict[str, str | int] = {"ssl.enabled.protocols": "TLSv1.2", "ssl.protocol": "TLSv1.2"}
        scram: dict[str, str | int] = {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "scram-sha-512.sasl.jaas.config": _SCRAM,
        }
        short = {
            f"{each}.connections.max.reauth.ms": SESSION_MS
            for each in ("plain", "scram-sha-256", "scram-sha-512", "oauthbearer")
        }
        return [
            Listener("TLS", "SSL", ssl, "localhost"),
            Listener("MTLS", "SSL", ssl | {"ssl.client.auth": "required"}, "localhost"),
            Listener("OLD_MTLS", "SSL", ssl | old | {"ssl.client.auth": "required"}, "localhost"),
            Listener("MISNAMED", "SSL", ssl | _store(self.identities.misnamed), "localhost"),
            Listener("V6", "SSL", ssl, "::1"),
            Listener("SASL", "SASL_PLAINTEXT", sasl, "localhost"),
            Listener("SASL_TLS", "SASL_SSL", ssl | sasl, "localhost"),
            Listener("SCRAM_ONLY", "SASL_PLAINTEXT", scram, "localhost"),
            Listener("SHORT", "SASL_SSL", ssl | sasl | short, "localhost"),
        ]

    def add_user(self, name: str, password: str) -> None:
        """Lets a user in by SCRAM, and waits until the broker knows."""
        admin = self.admin()
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            new = UserScramCredentialUpsertion(name, ScramCredentialInfo(mechanism, 4096), password.encode())
            for future in admin.alter_user_scram_credentials([new]).values():
                future.result(30)
            properties = self.properties("SASL", mechanism.name.replace("_", "-"))
            properties |= {"sasl.username": name, "sasl.password": password}
            wait_for(lambda known=properties: self._lets_in(known), what=f"user {name}")

    def _lets_in(self, properties: dict[str, str]) -> bool:
        settings = ConnectionSettings.from_properties(self.servers("SASL"), properties)
        try:
            Connection(settings.bootstrap[0], settings).close()
        except AuthorizationError:
            return False
        return True

    def properties(self, listener: str, mechanism: str = "", **more: str) -> dict[str, str]:
        """What a client needs to get in at a listener; `more` with ``_`` for dots."""
        given = {"security.protocol": self._listeners[listener].protocol}
        if given["security.protocol"].endswith("SSL"):
            given["ssl.ca.pem"] = self.identities.authority.pem
        if mechanism:
            given |= {"sasl.mechanism": mechanism}
        if mechanism.startswith(("PLAIN", "SCRAM")):
            given |= {"sasl.username": USER, "sasl.password": right_password(mechanism)}
        return given | {name.replace("_", "."): value for name, value in more.items()}


def _store(certificate: Certificate) -> dict[str, str | int]:
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": certificate.chain,
        "ssl.keystore.key": certificate.key,
    }


def right_password(mechanism: str) -> str:
    """PLAIN's is written into the broker's configuration."""
    return "secret" if mechanism == "PLAIN" else PASSWORD


@contextlib.contextmanager
def secure_cluster() -> Iterator[SecureCluster]:
    """Starts one that knows `USER`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the broker is another user
        with SecureCluster(folder) as cluster:
            cluster.add_user(USER, PASSWORD)
            yield cluster
