"""What `dagster_aws.s3.S3Resource` says of an S3 server, as the engine's options."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kafka_backup import EngineConfig

_OPTIONS = {
    "region_name": "region",
    "endpoint_url": "endpoint",
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}


def with_s3(config: "EngineConfig", s3: Any | None) -> "EngineConfig":
    """Return a configuration whose repository is reached as an S3Resource says.

    What the repository's own options say counts more. Keys that neither gives come from the
    environment or the machine, as everywhere.

    Raises:
        ConfigurationError: the repository is not in S3, or the S3Resource names a profile.
    """
    from kafka_backup.errors import ConfigurationError

    if s3 is None:
        return config
    if not config.repository.url.startswith("s3://"):
        raise ConfigurationError(f"s3: the repository is not in S3: {config.repository.url}")
    if s3.profile_name is not None:
        raise ConfigurationError(
            "s3.profile_name: profiles are not read here; give the keys (EnvVar), or leave them to the "
            "environment or the machine"
        )
    options = {
        option: getattr(s3, name) for name, option in _OPTIONS.items() if getattr(s3, name) is not None
    }
    switches = {
        "allow_http": options.get("endpoint", "").startswith("http://"),
        "allow_invalid_certificates": s3.verify is False,
        "skip_signature": s3.use_unsigned_session,
    }
    options |= {option: "true" for option, is_on in switches.items() if is_on}
    repository = config.repository.model_copy(update={"options": options | config.repository.options})
    return config.model_copy(update={"repository": repository})
