"""`KafkaBackupComponent`: everything for one cluster, from YAML."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import dagster as dg
from dagster.components.resolved.core_models import (
    DailyPartitionsDefinitionModel,
    HourlyPartitionsDefinitionModel,
    OpSpec,
    StaticPartitionsDefinitionModel,
    TimeWindowPartitionsDefinitionModel,
    WeeklyPartitionsDefinitionModel,
    resolve_partitions_def,
)
from dagster.components.utils.defs_state import DefsStateConfig, DefsStateConfigArgs, ResolvedDefsStateConfig
from dagster.components.utils.translation import (
    ComponentTranslator,
    TranslationFn,
    TranslationFnResolver,
    create_component_translator_cls,
)
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from kafka_backup_dagster.assets.specs import split_filters
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator, KafkaBackupTranslatorData
from kafka_backup_dagster.assets.windows import hourly_windows
from kafka_backup_dagster.cluster import Names, cluster_definitions
from kafka_backup_dagster.components.models import (
    BackupSection,
    ClusterSection,
    LimitsSection,
    RepositorySection,
)
from kafka_backup_dagster.components.scaffolder import KafkaBackupScaffolder
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup.config import EngineConfig

_STATE_VERSION = 1
_LOOK_UP_SECONDS = 10.0


def _beside(context: dg.ResolutionContext, value: str | None) -> str | None:
    """Take a path as it is meant: from the folder of the file that names it."""
    return None if value is None else str(context.resolve_source_relative_path(context.resolve_value(value)))


@dg.scaffold_with(KafkaBackupScaffolder)
class KafkaBackupComponent(dg.StateBackedComponent, dg.Model, dg.Resolvable):
    """Backups of one Kafka cluster: assets, checks, jobs, a schedule and sensors.

    The sections ``cluster``, ``target``, ``repository`` and ``backup`` are those of a
    ``kafka-backup.yaml``, which ``config_file`` may name instead. Values written ``${NAME}`` come from
    the environment of the run; Dagster neither stores nor shows them.

    Where ``backup.topics`` has patterns, the topics that they match are looked up when the state of the
    definitions is refreshed (by `dg dev`, or `dg utils refresh-defs-state`), and each gets an asset of
    its own. Topics that appear later are captured all the same, together in one asset. Loading the
    definitions asks neither brokers nor store.

    Example:
        .. code-block:: yaml

            type: kafka_backup_dagster.KafkaBackupComponent
            attributes:
              cluster_name: prod
              start_date: "2026-11-24"
              cluster:
                bootstrap_servers: kafka:9092
              repository:
                url: s3://backups/kafka
              backup:
                topics: [orders, "app_*"]
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    cluster_name: Annotated[
        str,
        dg.Resolver.default(
            description=(
                "How the people here call the cluster: part of the asset keys, and before the names of jobs and of "
                "the resource (prod_restore) unless it is default."
            ),
            examples=["prod"],
        ),
    ] = "default"
    config_file: Annotated[
        str | None,
        dg.Resolver(
            _beside,
            model_field_type=str | None,
            description="A kafka-backup.yaml, beside this file, instead of the four sections below.",
            examples=["kafka-backup.yaml"],
        ),
    ] = None
    cluster: Annotated[
        ClusterSection | None, dg.Resolver.default(description="The cluster that is backed up.")
    ] = None
    target: Annotated[
        ClusterSection | None,
        dg.Resolver.default(description="The cluster that restores write to; by default the same one."),
    ] = None
    repository: Annotated[
        RepositorySection | None, dg.Resolver.default(description="Where the backups are.")
    ] = None
    backup: Annotated[BackupSection, dg.Resolver.default(description="What a capture takes.")] = Field(
        default_factory=BackupSection
    )
    discover_topics: Annotated[
        bool,
        dg.Resolver.default(
            description=(
                "Give each topic that a pattern matches an asset of its own. If false, all of them are one asset, "
                "with a table of the topics: less to store and to look at."
            )
        ),
    ] = True
    start_date: Annotated[
        str | None,
        dg.Resolver.default(
            description="The day of the first backup: hourly windows (UTC) from then on. Leave it as it is later.",
            examples=["2026-11-24"],
        ),
    ] = None
    partitions_def: Annotated[
        dg.PartitionsDefinition | None,
        dg.Resolver(
            resolve_partitions_def,
            model_field_type=HourlyPartitionsDefinitionModel
            | DailyPartitionsDefinitionModel
            | WeeklyPartitionsDefinitionModel
            | TimeWindowPartitionsDefinitionModel
            | StaticPartitionsDefinitionModel
            | None,
            description="Other windows, instead of start_date; not shorter than 5 minutes.",
            examples=[
                {
                    "type": "time_window",
                    "start_date": "2026-11-24T00:00",
                    "cron_schedule": "*/15 * * * *",
                    "fmt": "%Y-%m-%dT%H:%M",
                }
            ],
        ),
    ] = None
    cron_schedule: Annotated[
        str | None,
        dg.Resolver.default(
            description="Assets without windows, captured by this clock (UTC), instead of start_date.",
            examples=["*/30 * * * *"],
        ),
    ] = None
    automation: Annotated[
        bool,
        dg.Resolver.default(
            description="Whether the schedule and the sensors run without being switched on."
        ),
    ] = True
    limits: Annotated[LimitsSection, dg.Resolver.default(description="What the checks allow.")] = Field(
        default_factory=LimitsSection
    )
    allow_restore_requests: Annotated[
        bool,
        dg.Resolver.default(
            description=(
                "Whether requests in restore-requests/ of the repository may execute a restore, not only plan one: "
                "who may write there may then write into the target cluster."
            )
        ),
    ] = False
    op: Annotated[
        OpSpec | None,
        dg.Resolver.default(
            description="Name, tags, pool and backfill policy of the step that captures.",
            examples=[{"pool": "kafka_prod"}],
        ),
    ] = None
    translation: Annotated[
        TranslationFn[KafkaBackupTranslatorData] | None,
        TranslationFnResolver(
            template_vars_for_translation_fn=lambda data: {
                "topic": data.topic,
                "content": data.content,
                "cluster_name": data.cluster_name,
            }
        ),
    ] = None
    defs_state: ResolvedDefsStateConfig = DefsStateConfigArgs.local_filesystem()

    _is_loading: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _is_whole(self) -> "KafkaBackupComponent":
        sections = (self.cluster, self.target, self.repository)
        if self.config_file is not None:
            if any(section is not None for section in sections) or "backup" in self.model_fields_set:
                raise ValueError(
                    "give either config_file, or the sections cluster, repository and backup; not both"
                )
        elif self.cluster is None or self.repository is None:
            raise ValueError("give the sections cluster and repository, or config_file")
        whens = [self.start_date, self.partitions_def, self.cron_schedule]
        if sum(when is not None for when in whens) != 1:
            raise ValueError(
                "say once when to back up: start_date (every hour from that day on), partitions_def (other windows), "
                "or cron_schedule (no windows)"
            )
        return self

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Refresh the state, where Dagster does that while it loads, and build the definitions."""
        self._is_loading = True
        return super().build_defs(context)

    @property
    def defs_state_config(self) -> DefsStateConfig:
        """Where the topics that were found are kept; see Dagster's `StateBackedComponent`."""
        return DefsStateConfig.from_args(
            self.defs_state, default_key=f"{type(self).__name__}[{self.cluster_name}]"
        )

    @cached_property
    def _base_translator(self) -> KafkaBackupTranslator:
        return KafkaBackupTranslator()

    def get_asset_spec(self, data: KafkaBackupTranslatorData) -> dg.AssetSpec:
        """Return the spec of one backup. Override it in a subclass, and call `super()`."""
        return self._base_translator.get_asset_spec(data)

    def execute(
        self, context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        """Capture what a run asks for. Override it in a subclass to do something before or after."""
        yield from kafka_backup.run(context)

    def kafka_backup_resource(self) -> KafkaBackupResource:
        """Return the resource, with the environment's values in it.

        Raises:
            ConfigurationError: a variable is not set, or a value is wrong.
        """
        names = Names.of(self.cluster_name)
        return KafkaBackupResource.from_config(
            self._engine_config(None),
            restore_job_name=names.restore,
            reset_job_name=names.reset_offsets,
        )

    def write_state_to_path(self, state_path: Path) -> None:
        """Look up the topics that the patterns match, and keep their names.

        Raises:
            UnreachableError: no broker answers. Where the state is refreshed while the definitions load
                (`dg dev`), that is a warning only, and all topics that the patterns match are one asset: on
                the day when the cluster is gone, the page with the restore must not be gone, too.
        """
        from kafka_backup.errors import UnreachableError

        try:
            found = self._matching_topics()
        except UnreachableError as error:
            if not self._is_loading:
                raise
            dg.get_dagster_logger().warning(
                f"the topics of cluster {self.cluster_name} cannot be looked up, and are one asset for now: {error}"
            )
            found = []
        state_path.parent.mkdir(parents=True, exist_ok=True)
        state_path.write_text(json.dumps({"version": _STATE_VERSION, "topics": found}), encoding="utf-8")

    def _matching_topics(self) -> list[str]:
        from kafka_backup.engine import Engine
        from kafka_backup.selection import TopicSelection

        _, patterns = split_filters(self._engine_config(_Lenient()).backup.topics)
        if not self.discover_topics or not patterns:
            return []
        config = self._engine_config(None)
        seconds = min(config.cluster.retry_seconds, _LOOK_UP_SECONDS)
        cluster = config.cluster.model_copy(update={"retry_seconds": seconds})
        selection = TopicSelection.parse(patterns)
        with Engine.open(config.model_copy(update={"cluster": cluster})) as engine:
            return [name for name in engine.cluster_topics() if selection.includes(name)]

    def build_defs_from_state(
        self, context: dg.ComponentLoadContext, state_path: Path | None
    ) -> dg.Definitions:
        """Return everything for the cluster; without a state, the patterns' topics are one asset."""
        config = self._engine_config(_Lenient())
        names = Names.of(self.cluster_name)
        op = self.op or OpSpec()
        partitions_def = self.partitions_def
        if self.start_date is not None:
            partitions_def = hourly_windows(self.start_date)
        defs = cluster_definitions(
            config.backup,
            repository_url=config.repository.url,
            cluster_name=self.cluster_name,
            partitions_def=partitions_def,
            discovered=_topics_in(state_path) if self.discover_topics and state_path is not None else (),
            kafka_backup_translator=_ComponentTranslator(self),
            limits=self.limits.over,
            cron_schedule=self.cron_schedule,
            automation=self.automation,
            allow_restore_requests=self.allow_restore_requests,
            op_name=op.name,
            op_tags=op.tags,
            pool=op.pool,
            backfill_policy=op.backfill_policy,
            execute=self.execute,
        )
        resource = dg.ResourceDefinition(
            resource_fn=lambda _: self.kafka_backup_resource(),
            description=f"Kafka cluster {self.cluster_name} and its repository; the values are not shown.",
        )
        return dg.Definitions.merge(defs, dg.Definitions(resources={names.resource: resource}))

    def _engine_config(self, environment: Mapping[str, str] | None) -> "EngineConfig":
        from kafka_backup.config import load_config, parse_config

        if self.config_file is not None:
            return load_config(self.config_file, environment=environment)
        sections = {
            "cluster": self.cluster,
            "target": self.target,
            "repository": self.repository,
            "backup": self.backup,
        }
        content = {
            name: section.model_dump(exclude_none=True)
            for name, section in sections.items()
            if section is not None
        }
        return parse_config(
            content, source=f"KafkaBackupComponent {self.cluster_name}", environment=environment
        )


class _ComponentTranslator(
    create_component_translator_cls(KafkaBackupComponent, KafkaBackupTranslator),  # type: ignore[misc]
    ComponentTranslator[KafkaBackupComponent],
):
    """Makes specs as the component says, and then as its YAML says."""

    def __init__(self, component: KafkaBackupComponent) -> None:
        self._component = component

    def get_asset_spec(self, data: KafkaBackupTranslatorData) -> dg.AssetSpec:
        spec = super().get_asset_spec(data)
        translation = self._component.translation
        return spec if translation is None else translation(spec, data)


def _topics_in(state_path: Path) -> list[str]:
    """Read the topics that were found.

    Raises:
        DagsterInvalidDefinitionError: the state is not one of this release.
    """
    try:
        state = json.loads(state_path.read_text(encoding="utf-8"))
        if state["version"] == _STATE_VERSION:
            return [str(name) for name in state["topics"]]
    except (ValueError, KeyError, TypeError) as error:
        raise dg.DagsterInvalidDefinitionError(
            f"{state_path} is no state of this component: {error}"
        ) from error
    raise dg.DagsterInvalidDefinitionError(
        f"{state_path} was written by another release; run dg utils refresh-defs-state"
    )


class _Lenient(Mapping[str, str]):
    """An environment in which every variable is set: definitions load without secrets."""

    def __getitem__(self, name: str) -> str:
        return os.environ.get(name, "unset")

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(os.environ)

    def __len__(self) -> int:
        return len(os.environ)
