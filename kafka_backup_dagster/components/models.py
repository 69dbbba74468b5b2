"""What a ``defs.yaml`` may say: the sections of a ``kafka-backup.yaml``, described for editors and `dg`."""

from datetime import timedelta
from typing import Annotated, Literal

import dagster as dg
from pydantic import Field

from kafka_backup_dagster.checks import CheckLimits

Scalar = str | int | float | bool


class ClusterSection(dg.Model, dg.Resolvable):
    """Where a Kafka cluster is, and how to talk to it."""

    bootstrap_servers: Annotated[
        str,
        dg.Resolver.default(
            description="host:port of some brokers, comma-separated.", examples=["kafka-1:9092,kafka-2:9092"]
        ),
    ]
    properties: Annotated[
        dict[str, Scalar],
        dg.Resolver.default(
            description='Further librdkafka properties. Write secrets as "${NAME}": the environment variable is read in each '
            "run, and Dagster never sees its value.",
            examples=[
                {
                    "security.protocol": "SASL_SSL",
                    "sasl.mechanism": "SCRAM-SHA-512",
                    "sasl.username": "backup",
                    "sasl.password": "${KAFKA_PASSWORD}",
                }
            ],
        ),
    ] = Field(default_factory=dict)
    oauth_cb: Annotated[
        str | None,
        dg.Resolver.default(
            description="module:function that returns tokens for OAUTHBEARER.",
            examples=["my_project.tokens:get"],
        ),
    ] = None
    retry_seconds: Annotated[
        float | None,
        dg.Resolver.default(description="How long one operation is retried (60).", examples=[60]),
    ] = None


class RepositorySection(dg.Model, dg.Resolvable):
    """Where the backups are."""

    url: Annotated[
        str,
        dg.Resolver.default(
            description="A folder, or a bucket and a prefix: file:///path, s3://, gs://, az://.",
            examples=["s3://backups/kafka", "file:///var/backups/kafka"],
        ),
    ]
    options: Annotated[
        dict[str, Scalar],
        dg.Resolver.default(
            description='obstore\'s options for that store. Write secrets as "${NAME}".',
            examples=[{"region": "eu-central-1"}],
        ),
    ] = Field(default_factory=dict)


class BackupSection(dg.Model, dg.Resolvable):
    """What a capture takes, and how it stores it."""

    topics: Annotated[
        list[str],
        dg.Resolver.default(
            description="Exact names, wildcards, or /regular expressions/.",
            examples=[["orders", "app_*", "/^events\\..*/"]],
        ),
    ] = Field(default_factory=lambda: ["*"])
    exclude: Annotated[
        list[str], dg.Resolver.default(description="Filters of topics to leave out.", examples=[["tmp_*"]])
    ] = Field(default_factory=list)
    consumer_groups: Annotated[
        list[str],
        dg.Resolver.default(
            description="Filters of the consumer groups whose positions are saved; an empty list: none.",
            examples=[["*"]],
        ),
    ] = Field(default_factory=lambda: ["*"])
    compression: Annotated[
        Literal["auto", "zstd", "none"] | None,
        dg.Resolver.default(
            description="Of segments; auto (the default) compresses where the producer did not."
        ),
    ] = None
    segment_bytes: Annotated[
        str | int | None,
        dg.Resolver.default(description="Raw size at which a segment is closed (32MiB).", examples=["32MiB"]),
    ] = None
    max_concurrent_partitions: Annotated[
        int | None,
        dg.Resolver.default(description="Partitions fetched or restored at the same time (8).", examples=[8]),
    ] = None
    max_bytes_per_second: Annotated[
        str | int | None,
        dg.Resolver.default(
            description="What a capture fetches at most, all partitions together.", examples=["50MB"]
        ),
    ] = None
    start: Annotated[
        str | int | None,
        dg.Resolver.default(
            description="Where partitions begin that were never captured, if not at their log start.",
            examples=["2026-11-24T00:00:00Z"],
        ),
    ] = None


class LimitsSection(dg.Model, dg.Resolvable):
    """What the checks allow."""

    recovery_point_minutes: Annotated[
        float | None,
        dg.Resolver.default(description="How old a recovery point may be (two windows).", examples=[120]),
    ] = None
    time_to_loss_minutes: Annotated[
        float | None,
        dg.Resolver.default(
            description="How long what is not captured must still be in Kafka (240).", examples=[240]
        ),
    ] = None
    drill_days: Annotated[
        float | None,
        dg.Resolver.default(
            description="How old the newest restore drill that passed may be (31).", examples=[31]
        ),
    ] = None

    def over(self, defaults: CheckLimits) -> CheckLimits:
        """Return the limits, the default ones where nothing is said."""

        def or_default(value: float | None, unit: timedelta, default: timedelta) -> timedelta:
            return default if value is None else value * unit

        return CheckLimits(
            recovery_point_age=or_default(
                self.recovery_point_minutes, timedelta(minutes=1), defaults.recovery_point_age
            ),
            time_to_loss=or_default(self.time_to_loss_minutes, timedelta(minutes=1), defaults.time_to_loss),
            drill_age=or_default(self.drill_days, timedelta(days=1), defaults.drill_age),
        )
