"""The resource: one Kafka cluster and its repository."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import Field, ValidationError, model_validator

from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.metadata import RESET_JOB, RESTORE_JOB, Launchpad, location_of
from kafka_backup_dagster.resources.capture import run_capture, selected, take_groups, window_of
from kafka_backup_dagster.resources.materializations import groups_result, materializations
from kafka_backup_dagster.resources.s3 import with_s3

if TYPE_CHECKING:
    from kafka_backup import Engine, EngineConfig


def _path_of(oauth_cb: "str | Callable[[str], Any] | None") -> str | None:
    """Return a function's path: a resource's fields hold text."""
    if callable(oauth_cb):
        return f"{oauth_cb.__module__}:{oauth_cb.__qualname__}"
    return oauth_cb


class KafkaBackupResource(dg.ConfigurableResource["KafkaBackupResource"]):
    """A Kafka cluster and the repository of its backups.

    Configure it with a ``kafka-backup.yaml`` (`from_yaml`), which keeps secrets out of Dagster's own
    configuration, or field by field, with `EnvVar` for everything secret.

    Example:
        KafkaBackupResource(
            bootstrap_servers="kafka:9092",
            properties={"sasl.password": dg.EnvVar("KAFKA_PASSWORD"), ...},
            repository_url="s3://backups/kafka",
            s3=S3Resource(region_name="eu-central-1"),
        )
    """

    config_path: str | None = Field(
        default=None, description="A kafka-backup.yaml; then leave all other connection fields out."
    )
    bootstrap_servers: str | None = Field(
        default=None, description="host:port of some brokers, comma-separated."
    )
    properties: dict[str, str] = Field(
        default={}, description="Further librdkafka properties, such as sasl.password (use EnvVar)."
    )
    oauth_cb: str | None = Field(
        default=None, description="module:function that returns tokens for OAUTHBEARER (docs/security.md)."
    )
    retry_seconds: float = Field(
        default=60.0, description="How long one operation on the cluster is retried."
    )
    target_bootstrap_servers: str | None = Field(
        default=None, description="Brokers of the cluster that restores write to; by default the same one."
    )
    target_properties: dict[str, str] = Field(
        default={}, description="librdkafka properties for the target cluster."
    )
    target_oauth_cb: str | None = Field(
        default=None, description="module:function that returns tokens for the target cluster."
    )
    target_retry_seconds: float = Field(
        default=60.0, description="How long one operation on the target cluster is retried."
    )
    repository_url: str | None = Field(
        default=None, description="Where the backups are: file:///path, s3://bucket/prefix, gs://, az://."
    )
    repository_options: dict[str, str] = Field(
        default={}, description="obstore's options for that store (use EnvVar for secrets)."
    )
    # dagster_aws is an extra, and takes a second to import.
    s3: dg.ResourceDependency[Any] = Field(
        default=None,
        description="A dagster_aws.s3.S3Resource: endpoint, region and keys of a repository in S3.",
    )
    topics: list[str] = Field(
        default=["*"], description="Filters that engine().backup() takes; assets bring their own."
    )
    exclude: list[str] = Field(default=[], description="Filters of topics that no capture takes.")
    consumer_groups: list[str] = Field(
        default=["*"], description="Filters of the consumer groups whose positions each capture saves."
    )
    compression: Literal["auto", "zstd", "none"] = Field(
        default="auto", description="Of segments; auto compresses where the producer did not."
    )
    segment_bytes: int = Field(default=32 << 20, description="Raw bytes at which a segment is closed.")
    max_concurrent_partitions: int = Field(
        default=8, description="Partitions fetched or restored at the same time."
    )
    max_bytes_per_second: int | None = Field(
        default=None, description="What a capture fetches at most, all partitions together."
    )
    start: int | None = Field(
        default=None,
        description="Time (ms) at which partitions begin that were never captured; by default their log start.",
    )
    location_name: str | None = Field(
        default=None,
        description="Code location that has the restore job, for links; by default the one of the run.",
    )
    restore_job_name: str = Field(
        default=RESTORE_JOB, description="Name of the restore job that the links open."
    )
    reset_job_name: str = Field(
        default=RESET_JOB, description="Name of the job that resets consumer groups, for the links."
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> "KafkaBackupResource":
        if self.config_path is not None:
            if self.bootstrap_servers is not None or self.repository_url is not None:
                raise ValueError("give either config_path, or bootstrap_servers and repository_url; not both")
        elif self.bootstrap_servers is None or self.repository_url is None:
            raise ValueError("give bootstrap_servers and repository_url, or config_path")
        return self

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        *,
        location_name: str | None = None,
        restore_job_name: str = RESTORE_JOB,
        reset_job_name: str = RESET_JOB,
    ) -> "KafkaBackupResource":
        """Return a resource that reads a ``kafka-backup.yaml`` when it is first used."""
        return cls(
            config_path=str(Path(path).absolute()),
            location_name=location_name,
            restore_job_name=restore_job_name,
            reset_job_name=reset_job_name,
        )

    @classmethod
    def from_config(
        cls,
        config: "EngineConfig",
        *,
        location_name: str | None = None,
        restore_job_name: str = RESTORE_JOB,
        reset_job_name: str = RESET_JOB,
    ) -> "KafkaBackupResource":
        """Return a resource for an engine's configuration.

        Its fields hold the secrets of `config`: give it to Dagster `hidden`.
        """
        target = config.target
        return cls(
            bootstrap_servers=config.cluster.bootstrap_servers,
            properties=dict(config.cluster.properties),
            oauth_cb=_path_of(config.cluster.oauth_cb),
            retry_seconds=config.cluster.retry_seconds,
            target_bootstrap_servers=target.bootstrap_servers if target else None,
            target_properties=dict(target.properties) if target else {},
            target_oauth_cb=_path_of(target.oauth_cb) if target else None,
            target_retry_seconds=target.retry_seconds if target else 60.0,
            repository_url=config.repository.url,
            repository_options=dict(config.repository.options),
            topics=list(config.backup.topics),
            exclude=list(config.backup.exclude),
            consumer_groups=list(config.backup.consumer_groups),
            compression=config.backup.compression,
            segment_bytes=config.backup.segment_bytes,
            max_concurrent_partitions=config.backup.max_concurrent_partitions,
            max_bytes_per_second=config.backup.max_bytes_per_second,
            start=config.backup.start,
            location_name=location_name,
            restore_job_name=restore_job_name,
            reset_job_name=reset_job_name,
        )

    def hidden(self) -> dg.ResourceDefinition:
        """Return this resource for `Definitions`, without anything of it in Dagster's configuration.

        Plain fields of a configurable resource can be read in the Launchpad and in snapshots by
        everybody who may look at Dagster. The environment variables of `EnvVar` fields are read in
        each run.
        """

        def resource(_: dg.InitResourceContext) -> "KafkaBackupResource":
            with self.process_config_and_initialize_cm() as initialized:
                return initialized

        return dg.ResourceDefinition(
            resource_fn=resource,
            description="A Kafka cluster and its repository; the values are not shown.",
        )

    def engine_config(self) -> "EngineConfig":
        """Return the engine's configuration.

        Raises:
            ConfigurationError: the file cannot be read, or a value is wrong.
        """
        from kafka_backup.config import EngineConfig, load_config
        from kafka_backup.errors import ConfigurationError

        if self.config_path is not None:
            return with_s3(load_config(self.config_path), self.s3)
        content = {
            "cluster": {
                "bootstrap_servers": self.bootstrap_servers,
                "properties": self.properties,
                "oauth_cb": self.oauth_cb,
                "retry_seconds": self.retry_seconds,
            },
            "repository": {"url": self.repository_url, "options": self.repository_options},
            "backup": {
                "topics": self.topics,
                "exclude": self.exclude,
                "consumer_groups": self.consumer_groups,
                "compression": self.compression,
                "segment_bytes": self.segment_bytes,
                "max_concurrent_partitions": self.max_concurrent_partitions,
                "max_bytes_per_second": self.max_bytes_per_second,
                "start": self.start,
            },
        }
        if self.target_bootstrap_servers is not None:
            content["target"] = {
                "bootstrap_servers": self.target_bootstrap_servers,
                "properties": self.target_properties,
                "oauth_cb": self.target_oauth_cb,
                "retry_seconds": self.target_retry_seconds,
            }
        try:
            return with_s3(EngineConfig.model_validate(content), self.s3)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False)
            )
            raise ConfigurationError(f"KafkaBackupResource: {problems}") from error

    @contextmanager
    def engine(self) -> Iterator["Engine"]:
        """Open the engine, for anything that the assets and jobs here do not do.

        Example:
            with kafka_backup.engine() as engine:
                report = engine.verify(level="data")
        """
        from kafka_backup.engine import Engine

        with Engine.open(self.engine_config()) as engine:
            yield engine

    def run(self, context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        """Capture the topics of the selected assets, once for all windows of the run.

        A topic's materialization says: everything that was in Kafka before the end of the window is
        in the repository. It comes after the capture is complete, so that its link can be followed.

        Raises:
            Failure: naming every topic that was not saved or lost offsets, after the
                materializations of the others; retries are allowed where they may help.
            DagsterInvariantViolationError: these are not assets of this package.
        """
        from kafka_backup.engine import Engine

        asked = selected(context)
        location = self.location_name or location_of(context)
        restore = Launchpad(location_name=location, job_name=self.restore_job_name)
        reset = Launchpad(location_name=location, job_name=self.reset_job_name)
        with as_failure():
            config = self.engine_config()
            include, exclude = asked.filters(excluded=config.backup.exclude)
            changed: dict[str, object] = {"exclude": tuple(exclude)}
            if asked.groups is not None:
                changed["consumer_groups"] = asked.group_filters
            backup = config.backup.model_copy(update=changed)
            with Engine.open(config.model_copy(update={"backup": backup})) as engine:
                if not asked.topics and asked.groups is not None:
                    taken = run_interruptibly(lambda stop: take_groups(engine, stop=stop))
                    yield groups_result(context, asked.groups, taken, launchpad=reset)
                    return
                outcome = run_capture(engine, include, window=window_of(context), log=context.log)
        yield from materializations(context, asked, outcome, restore=restore, reset=reset)
