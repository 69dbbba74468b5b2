"""Dagster definitions from a ``kafka-backup.yaml``; `defs` is what `dagster dev` loads."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.assets.decorator import HOURLY, kafka_backup_assets
from kafka_backup_dagster.assets.specs import build_kafka_topic_specs, split_filters
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator, storage_kind
from kafka_backup_dagster.jobs.restore import restore_job
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup import EngineConfig

CONFIG_VARIABLE = "KAFKA_BACKUP_CONFIG"
DEFAULT_CONFIG = "kafka-backup.yaml"


def build_definitions(
    config: "EngineConfig | str | Path",
    *,
    cluster_name: str = "default",
    location_name: str | None = None,
    partitions_def: dg.TimeWindowPartitionsDefinition | None = HOURLY,
    kafka_backup_translator: KafkaBackupTranslator | None = None,
) -> dg.Definitions:
    """Return everything for one cluster: assets, the resource ``kafka_backup`` and the restore job.

    Contacts neither broker nor store. Each exact name in ``backup.topics`` becomes an asset, all
    patterns together one more. Everything runs in one process: the engine brings its own threads.

    Args:
        config: a ``kafka-backup.yaml``, which each run reads again, or a configuration. Neither
            shows secrets in Dagster.
        cluster_name: how the people here call the cluster; part of the asset keys.
        location_name: the code location, for links to the restore job; by default the run's own.
        partitions_def: the windows, hourly by default; None for assets without partitions.
        kafka_backup_translator: makes the asset specs.

    Raises:
        ConfigurationError: the configuration is wrong.
        DagsterInvalidDefinitionError: two topics would be one asset, or the windows are too short.
    """
    from kafka_backup.config import load_config
    from kafka_backup.selection import TopicSelection

    if isinstance(config, str | Path):
        resource: object = KafkaBackupResource.from_yaml(config, location_name=location_name)
        config = load_config(config)
    else:
        resource = dg.ResourceDefinition.hardcoded_resource(
            KafkaBackupResource.from_config(config, location_name=location_name),
            description="A Kafka cluster and its repository; the values are not shown.",
        )
    exact, patterns = split_filters(config.backup.topics)
    excluded = TopicSelection.parse(config.backup.exclude)
    topics = [topic for topic in exact if not excluded.includes(topic)] + list(patterns)

    @kafka_backup_assets(
        name="kafka_backup",
        topics=topics,
        cluster_name=cluster_name,
        group_name="kafka_backup",
        partitions_def=partitions_def,
        kafka_backup_translator=kafka_backup_translator,
        storage_kind=storage_kind(config.repository.url),
    )
    def backups(
        context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        yield from kafka_backup.run(context)

    sources = build_kafka_topic_specs(topics, cluster_name=cluster_name)
    return dg.Definitions(
        assets=[backups, *(spec.replace_attributes(group_name="kafka_backup") for spec in sources)],
        jobs=[restore_job],
        resources={"kafka_backup": resource},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of ``$KAFKA_BACKUP_CONFIG``, else of ``kafka-backup.yaml`` if it is here."""
    named = os.environ.get(CONFIG_VARIABLE)
    if named is None and not Path(DEFAULT_CONFIG).exists():
        dg.get_dagster_logger().warning(
            f"there is no {DEFAULT_CONFIG} in {Path.cwd()} and ${CONFIG_VARIABLE} is not set, so there is "
            "nothing to show; write one (README, Configuration), or type `make dev` for a cluster to try"
        )
        return dg.Definitions()
    return build_definitions(named or DEFAULT_CONFIG)
