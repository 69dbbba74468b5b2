"""Tokens: from whom, for how long, and what is said when there is none."""

import base64
import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto import mock_aws

from kafka_backup.errors import AuthorizationError, ConfigurationError, UnreachableError
from kafka_backup.kafka import auth
from kafka_backup.kafka.settings import Address, ConnectionSettings
from kafka_backup.kafka.tokens import Token, TokenSource
from tests.support.certificates import Authority
from tests.support.token_endpoint import Signer, TokenEndpoint

SECRET = "canary-secret"
BEARER = {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}


def dotted(_config: str) -> tuple[str, float]:
    """Found by its path."""
    return "by-path", time.time() + 300


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture
def endpoint(signer: Signer) -> Iterator[TokenEndpoint]:
    with TokenEndpoint(signer, SECRET) as serving:
        yield serving


def oidc(endpoint: TokenEndpoint, **more: str) -> TokenSource:
    """A source at this endpoint; `more` with ``_`` for dots."""
    properties = BEARER | {
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": "backup",
        "sasl.oauthbearer.client.secret": SECRET,
        "sasl.oauthbearer.token.endpoint.url": endpoint.url,
    }
    given = properties | {name.replace("_", "."): value for name, value in more.items()}
    source = ConnectionSettings.from_properties("a:1", given).tokens
    assert source is not None
    return source


def test_one_token_serves_all_until_it_is_nearly_over() -> None:
    """What: how often a source asks, for a long life, a short one, and one that is over.

    Why: hundreds of connections share it; a token that expires on the way is refused.
    Risk: a token endpoint asked for each connection, or a token used beyond its life.
    """
    made: list[float] = []

    def get() -> Token:
        made.append(time.time() + lives.pop(0))
        return Token(value=str(len(made)), expires_at=made[-1])

    lives = [0.05, 1000.0]
    source = TokenSource(get, "me")
    assert source.token().value == "1"
    asked = time.time()
    while source.token().value == "1":
        assert asked < made[0]
        asked = time.time()
    assert [source.token().value for _ in range(3)] == ["2"] * 3
    lives = [-1.0, -1.0]
    old = TokenSource(get, "me")
    assert [old.token().value for _ in range(2)] == ["3", "4"]


@pytest.mark.parametrize(
    "answer", [("t", 5e9), ("t", 5e9, "me"), ("t", 5e9, "me", {"org": "1"}), ["t", 5_000_000_000]]
)
def test_a_callback_may_return_what_confluent_kafka_takes(answer: object) -> None:
    """What: pairs, triples and quadruples.

    Why: a company has this function already, written for confluent-kafka.
    Risk: it works there and not here.
    """
    source = ConnectionSettings.from_properties("a:1", BEARER, oauth_cb=lambda _: answer).tokens
    assert source is not None
    token = source.token()
    assert (token.value, token.expires_at) == ("t", 5e9)
    assert token.extensions == ({"org": "1"} if len(answer) == 4 else {})  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["canary", ("canary",), ("canary", "soon"), None, ("canary", 1, "", 5), 7])
def test_a_callback_that_returns_something_else_is_told_so_without_the_token(answer: object) -> None:
    """What: a bare token, one without expiry, a wrong type.

    Why: Python's own message would quote what it could not convert.
    Risk: a stack trace with a token in it.
    """
    source = ConnectionSettings.from_properties("a:1", BEARER, oauth_cb=lambda _: answer).tokens
    assert source is not None
    with pytest.raises(ConfigurationError, match="oauth_cb must return") as caught:
        source.token()
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_callback_that_fails_is_asked_again() -> None:
    """What: an exception of the user's own.

    Why: whoever gives out tokens may be away for a minute; only time tells.
    Risk: one lost packet ends the night's backup; or "this is a bug in kafka-backup".
    """

    def fail(_config: str) -> None:
        raise RuntimeError("vault is sealed")

    source = ConnectionSettings.from_properties("a:1", BEARER, oauth_cb=fail).tokens
    assert source is not None
    with pytest.raises(UnreachableError, match="RuntimeError: vault is sealed"):
        source.token()


def test_a_callback_by_its_path() -> None:
    """What: module:function as text, right and wrong.

    Why: a configuration file and Dagster's resource can hold text only.
    Risk: exit code 1 for a typo.
    """
    by_path = f"{__name__}:dotted"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, __name__, types.SimpleNamespace(dotted=dotted))
        source = ConnectionSettings.from_properties("a:1", BEARER, oauth_cb=by_path).tokens
    assert source is not None
    assert source.token().value == "by-path"
    for wrong in ("nowhere:function", "json:nothing", "json", "a b", ""):
        with pytest.raises(ConfigurationError, match="oauth_cb"):
            ConnectionSettings.from_properties("a:1", BEARER, oauth_cb=wrong)


def test_client_credentials_are_exchanged_for_a_token(endpoint: TokenEndpoint) -> None:
    """What: a token endpoint's answer: the token, its life, whose it is, the scope asked for, extensions.

    Why: this is how machines prove who they are to a company's identity provider.
    Risk: a token without the scope that the broker wants.
    """
    source = oidc(endpoint, sasl_oauthbearer_scope="a b", sasl_oauthbearer_extensions="org=5, pool=x=y")
    endpoint.lifetime = 77
    token = source.token()
    assert endpoint.scopes == ["a b"]
    assert token.principal == "backup"
    assert token.extensions == {"org": "5", "pool": "x=y"}
    assert 60 < token.expires_at - time.time() <= 77
    source.token()
    assert len(endpoint.scopes) == 1


def test_the_token_endpoints_certificate_is_checked(signer: Signer, tmp_path: Path) -> None:
    """What: https with an authority of our own, by file and by text; without it.

    Why: the client secret goes there.
    Risk: it goes to anybody who answers.
    """
    authority = Authority("the authority")
    (tmp_path / "ca.pem").write_text(authority.pem)
    with TokenEndpoint(signer, SECRET, authority.issue("id", "localhost")) as endpoint:
        assert oidc(endpoint, https_ca_pem=authority.pem).token().value
        assert oidc(endpoint, https_ca_location=str(tmp_path / "ca.pem")).token().value
        with pytest.raises(ConfigurationError, match=r"not trusted.*https\.ca\.location"):
            oidc(endpoint).token()


@pytest.mark.parametrize(
    ("failure", "kind", "says"),
    [
        (None, AuthorizationError, "401 (invalid_client: client backup may not: ...)"),
        ((400, b'{"error": "invalid_scope"}'), AuthorizationError, "400 (invalid_scope)"),
        ((302, b""), AuthorizationError, "302"),
        ((503, b"<html>canary"), UnreachableError, "503"),
        ((429, b""), UnreachableError, "429"),
        ((200, b"<html>canary"), UnreachableError, "no access_token"),
        ((200, b"[]"), UnreachableError, "no access_token"),
        ((200, b'{"access_token": "canary"}'), UnreachableError, "no access_token with an expiry"),
        ((200, b'{"access_token": "canary", "expires_in": "soon"}'), UnreachableError, "no access_token"),
    ],
)
def test_a_token_endpoint_that_gives_no_token(
    failure: tuple[int, bytes] | None, kind: type[Exception], says: str, endpoint: TokenEndpoint
) -> None:
    """What: a wrong secret, a wrong scope, a redirect, an outage, answers of another form.

    Why: what will not go away by itself is told at once, an outage is waited for.
    Risk: the secret sent on to another address, or shown in the endpoint's own words.
    """
    endpoint.failure = failure
    source = oidc(endpoint, sasl_oauthbearer_client_secret="canary-wrong")
    with pytest.raises(kind) as caught:
        source.token()
    assert says in str(caught.value)
    assert endpoint.url in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_token_endpoint_that_does_not_answer(signer: Signer) -> None:
    """What: nobody listens there any more.

    Why: it may be back in a minute.
    Risk: exit code 2, and nobody tries again.
    """
    with TokenEndpoint(signer, SECRET) as endpoint:
        source = oidc(endpoint)
    with pytest.raises(UnreachableError, match="cannot be asked"):
        source.token()


def test_the_life_of_a_token_that_only_the_token_tells(signer: Signer, endpoint: TokenEndpoint) -> None:
    """What: an answer without expires_in, whose token is a JWT with an expiry.

    Why: RFC 6749 only recommends it.
    Risk: a token that is never replaced, or a provider that cannot be used.
    """
    answer = {"access_token": signer.token("backup", lifetime=50)}
    endpoint.failure = (200, json.dumps(answer).encode())
    assert 40 < oidc(endpoint).token().expires_at - time.time() <= 50


def test_the_first_message_to_the_broker() -> None:
    """What: the bytes of OAUTHBEARER's one message, with and without extensions, and the answer to a refusal.

    Why: RFC 7628, section 3.1; a refusal must be answered, or the broker's reason never comes.
    Risk: extensions that the broker never sees.
    """
    sent: list[bytes] = []
    answers = [b"", b"", b'{"status":"invalid_token"}', b""]

    def exchange(message: bytes) -> bytes:
        sent.append(message)
        return answers.pop(0)

    for token in (("t", 5e9), ("t", 5e9, "", {"a": "1", "b": "2"}), ("t", 5e9)):
        settings = ConnectionSettings.from_properties("a:1", BEARER, oauth_cb=lambda _, token=token: token)
        auth.authenticate(exchange, settings, Address("a", 1))
    assert sent == [
        b"n,,\1auth=Bearer t\1\1",
        b"n,,\1auth=Bearer t\1a=1\1b=2\1\1",
        b"n,,\1auth=Bearer t\1\1",
        b"\1",
    ]


AWS = BEARER | {"sasl.oauthbearer.method": "aws_msk_iam", "aws.region": "eu-central-1"}


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without AWS credentials; returns its credentials file, which is not there yet."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path / "credentials"


@pytest.mark.parametrize("by", ["environment", "profile"])
def test_aws_credentials_sign_a_token(by: str, no_aws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What: made-up credentials, from the environment and from a profile; the token is a signed URL.

    Why: AWS MSK takes such a URL for a token; nothing is sent to AWS to make one.
    Risk: another region's endpoint, another identity, or the secret key in the token.
    """
    properties = dict(AWS)
    if by == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    else:
        no_aws.write_text("[backup]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = canary\n")
        properties["aws.profile"] = "backup"
    source = ConnectionSettings.from_properties("a:1", properties).tokens
    assert source is not None
    token = source.token()
    url = base64.urlsafe_b64decode(token.value + "=" * (-len(token.value) % 4)).decode()
    assert url.startswith("https://kafka.eu-central-1.amazonaws.com/?Action=kafka-cluster%3AConnect")
    assert "X-Amz-Credential=AKIAEXAMPLE" in url
    assert "X-Amz-Signature=" in url
    assert "canary" not in url
    assert 800 < token.expires_at - time.time() <= 900


def test_an_assumed_role_signs_a_token(no_aws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What: a role by its ARN, assumed at an imitation of AWS STS.

    Why: in a company the role that may read the cluster is seldom the machine's own.
    Risk: the machine's own identity is shown, which may do nothing.
    """
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    role = {"aws.role.arn": "arn:aws:iam::123456789012:role/backup", "aws.role.session.name": "nightly"}
    source = ConnectionSettings.from_properties("a:1", AWS | role).tokens
    assert source is not None
    with mock_aws():
        token = source.token().value
    url = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    assert "X-Amz-Security-Token=" in url
    assert "X-Amz-Credential=AKIAEXAMPLE" not in url


@pytest.mark.parametrize(("profile", "says"), [("", "no AWS credentials"), ("nobody", "nobody")])
def test_a_machine_without_aws_credentials(profile: str, says: str, no_aws: Path) -> None:
    """What: no credentials anywhere; a profile that is not there.

    Why: the first thing that goes wrong in a new deployment.
    Risk: "NoneType has no attribute access_key".
    """
    more = {"aws.profile": profile} if profile else {}
    source = ConnectionSettings.from_properties("a:1", AWS | more).tokens
    assert source is not None
    with pytest.raises(AuthorizationError, match=says):
        source.token()
    assert not no_aws.exists()


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What: aws_msk_iam where the signer is not installed.

    Why: it is an extra, because it brings boto3.
    Risk: an ImportError with exit code 1.
    """
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    source = ConnectionSettings.from_properties("a:1", AWS).tokens
    assert source is not None
    with pytest.raises(ConfigurationError, match=r"kafka-backup-dagster\[msk\]"):
        source.token()
