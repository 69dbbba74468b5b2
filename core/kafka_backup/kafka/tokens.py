"""Tokens for SASL/OAUTHBEARER: from the user's own function, an OIDC token endpoint, or AWS.

One source serves the raw connections and the admin client, so that both prove the same identity and a
token endpoint is asked once for all connections.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import pkgutil
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kafka_backup.errors import AuthorizationError, ConfigurationError, KafkaBackupError, UnreachableError
from kafka_backup.kafka import tls

TokenCallback = str | Callable[[str], Any]
"""``module:function``, or the function itself. As confluent-kafka's ``oauth_cb``: takes ``sasl.oauthbearer.config``, returns ``(token, expiry)``,
``(token, expiry, principal)`` or ``(token, expiry, principal, extensions)``; expiry in seconds since 1970."""
_USED_OF_LIFE = 0.8
"""A token is replaced when this part of its life is over, as librdkafka does."""
_TIMEOUT_SECONDS = 20.0
_LARGEST_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One bearer token; `expires_at` in seconds since 1970."""

    value: str = field(repr=False)
    expires_at: float
    principal: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)


class TokenSource:
    """Gives out a token, and gets a new one before it expires. Safe to use from many threads."""

    def __init__(self, get: Callable[[], Token], description: str) -> None:
        """Prepare; nothing is contacted yet.

        Args:
            get: gets a new token; raises UnreachableError where trying again may help.
            description: whose tokens they are, for messages.
        """
        self.description = description
        self._get = get
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._replace_at = 0.0

    def token(self) -> Token:
        """Return a token that is not about to expire.

        Raises:
            AuthorizationError: whoever gives out tokens refuses us.
            UnreachableError: it does not answer.
        """
        with self._lock:
            now = time.time()
            if self._token is None or now >= self._replace_at:
                self._token = self._get()
                self._replace_at = now + (self._token.expires_at - now) * _USED_OF_LIFE
            return self._token

    def for_librdkafka(self, _config: str | None) -> tuple[str, float, str, dict[str, str]]:
        """A token as confluent-kafka's ``oauth_cb`` returns it."""
        token = self.token()
        return token.value, token.expires_at, token.principal, dict(token.extensions)


def source(properties: Mapping[str, str], oauth_cb: TokenCallback | None) -> TokenSource:
    """Make the source that checked properties describe (``sasl.oauthbearer.*``, ``aws.*``).

    Raises:
        ConfigurationError: the token endpoint's URL is none, or an extension is no ``key=value``.
    """
    method = properties["sasl.oauthbearer.method"]
    if method == "oidc":
        return _oidc_source(properties)
    if method == "aws_msk_iam":
        return TokenSource(lambda: _aws_token(properties), "AWS IAM's credentials")
    callback = _resolved(oauth_cb)
    return TokenSource(lambda: _from_callback(callback, properties), "the token of oauth_cb")


def _resolved(oauth_cb: TokenCallback | None) -> Callable[[str], Any]:
    if isinstance(oauth_cb, str):
        try:
            oauth_cb = pkgutil.resolve_name(oauth_cb)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigurationError(
                f"oauth_cb {oauth_cb!r} is not module:function, or cannot be imported: {error}"
            ) from error
    if not callable(oauth_cb):
        raise ConfigurationError(f"oauth_cb is a {type(oauth_cb).__name__}, not a function")
    return oauth_cb


def _from_callback(callback: Callable[[str], Any], properties: Mapping[str, str]) -> Token:
    try:
        answer = callback(properties["sasl.oauthbearer.config"])
    except KafkaBackupError:
        raise
    except Exception as error:  # the user's own code: whatever it raises, we have no token
        raise UnreachableError(f"oauth_cb gave no token: {type(error).__name__}: {error}") from error
    try:
        given = tuple(answer)
        value, expires_at, principal, extensions = given + ("", {})[len(given) - 2 :]
        return Token(
            value=str(value),
            expires_at=float(expires_at),
            principal=str(principal),
            extensions=dict(extensions),
        )
    except (TypeError, ValueError) as error:
        # Not chained: the original may quote the token.
        raise ConfigurationError(
            "oauth_cb must return (token, expiry in seconds since 1970[, principal[, extensions]]), "
            f"not a {type(answer).__name__} of another form ({type(error).__name__})"
        ) from None


def _oidc_source(properties: Mapping[str, str]) -> TokenSource:
    url = properties["sasl.oauthbearer.token.endpoint.url"]
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("sasl.oauthbearer.token.endpoint.url is not an http:// or https:// URL")
    client = properties["sasl.oauthbearer.client.id"]
    extensions = _extensions(properties["sasl.oauthbearer.extensions"])
    return TokenSource(lambda: _ask_endpoint(properties, extensions), f"client {client!r}")


def _extensions(text: str) -> dict[str, str]:
    extensions = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.isalpha() or key == "auth":
            raise ConfigurationError("sasl.oauthbearer.extensions is not key=value[,key=value...] (RFC 7628)")
        extensions[key] = value
    return extensions


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would show the client secret to somebody else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _ask_endpoint(properties: Mapping[str, str], extensions: Mapping[str, str]) -> Token:
    """Get a token by client credentials (RFC 6749, 4.4)."""
    url = properties["sasl.oauthbearer.token.endpoint.url"]
    where = _without_secrets(url)
    form = {"grant_type": "client_credentials"}
    if scope := properties["sasl.oauthbearer.scope"]:
        form["scope"] = scope
    client, secret = properties["sasl.oauthbearer.client.id"], properties["sasl.oauthbearer.client.secret"]
    request = urllib.request.Request(
        url,
        data=urllib.parse.urlencode(form).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode(),
            "Accept": "application/json",
        },
    )
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=tls.ssl_context(properties, "https")), _NoRedirect()
    )
    asked_at = time.time()
    try:
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            body = response.read(_LARGEST_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            reason = _oauth_error(error.read(_LARGEST_ANSWER)).replace(secret, "...")
        message = f"the token endpoint {where} answers {error.code}{reason} to client {client!r}"
        if error.code >= 500 or error.code in (408, 429):
            raise UnreachableError(message) from None
        raise AuthorizationError(f"{message}; check sasl.oauthbearer.client.id and .client.secret") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise ConfigurationError(
                f"the certificate of the token endpoint {where} is not trusted: "
                f"{error.reason.verify_message}; check https.ca.location"
            ) from error
        raise UnreachableError(f"the token endpoint {where} cannot be asked: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"the token endpoint {where} cannot be asked: {error}") from error
    return _read_answer(body, asked_at, where, extensions)


def _read_answer(body: bytes, asked_at: float, where: str, extensions: Mapping[str, str]) -> Token:
    try:
        answer = json.loads(body)
        value = answer["access_token"]
        claims = _claims(value)
        lifetime = answer.get("expires_in")
        expires_at = float(claims["exp"]) if lifetime is None else asked_at + float(lifetime)
        return Token(
            value=value, expires_at=expires_at, principal=str(claims.get("sub", "")), extensions=extensions
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        # Not chained: the original may quote the token.
        raise UnreachableError(
            f"the token endpoint {where} sent no access_token with an expiry, but something else"
        ) from None


def _claims(token: str) -> Mapping[str, Any]:
    """What a JWT claims, unverified (the broker verifies it); nothing for an opaque token."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, binascii.Error):
        return {}
    return claims if isinstance(claims, dict) else {}


def _oauth_error(body: bytes) -> str:
    """The error of a token endpoint in its own words (RFC 6749, 5.2); other bodies are not shown."""
    try:
        answer = json.loads(body)
        return f" ({': '.join(str(answer[k]) for k in ('error', 'error_description') if k in answer)})"
    except (ValueError, TypeError):
        return ""


def _without_secrets(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _aws_token(properties: Mapping[str, str]) -> Token:
    """Sign a token for AWS MSK with IAM credentials."""
    try:
        import botocore.session
        from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
        from botocore import exceptions
    except ImportError as error:
        raise ConfigurationError(
            "sasl.oauthbearer.method aws_msk_iam needs the package aws-msk-iam-sasl-signer-python: "
            "pip install 'kafka-backup-dagster[msk]'"
        ) from error
    region, profile, role = (properties[f"aws.{name}"] for name in ("region", "profile", "role.arn"))
    try:
        if role:
            session = properties["aws.role.session.name"] or "kafka-backup"
            answer = MSKAuthTokenProvider.generate_auth_token_from_role_arn(region, role, session)
        elif botocore.session.Session(profile=profile or None).get_credentials() is None:
            raise AuthorizationError(
                "AWS IAM: this machine has no AWS credentials; give it a role or a profile"
            )
        elif profile:
            answer = MSKAuthTokenProvider.generate_auth_token_from_profile(region, profile)
        else:
            answer = MSKAuthTokenProvider.generate_auth_token(region)
    except (
        exceptions.HTTPClientError,
        exceptions.ConnectionError,
        exceptions.MetadataRetrievalError,
        exceptions.CredentialRetrievalError,
    ) as error:
        raise UnreachableError(f"AWS IAM: no credentials now: {error}") from error
    except (exceptions.BotoCoreError, exceptions.ClientError, ValueError) as error:
        raise AuthorizationError(f"AWS IAM: no credentials: {error}") from error
    value, expiry_ms = answer
    return Token(value=value, expires_at=expiry_ms / 1000)
