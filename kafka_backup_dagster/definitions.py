"""Dagster definitions from a ``kafka-backup.yaml``; `defs` is what `dagster dev` loads."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.assets.decorator import build_kafka_backup_assets
from kafka_backup_dagster.assets.specs import (
    build_kafka_restored_specs,
    build_kafka_topic_specs,
    split_filters,
)
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator, storage_kind
from kafka_backup_dagster.assets.windows import HOURLY, hourly_windows
from kafka_backup_dagster.jobs.restore import build_restore_job
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
    start_date: str | None = None,
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
        start_date: the day of the first backup, such as 2026-11-24: hourly windows from then on.
        partitions_def: other windows; None for assets without partitions.
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
        resource = KafkaBackupResource.from_config(config, location_name=location_name).hidden()
    exact, patterns = split_filters(config.backup.topics)
    excluded = TopicSelection.parse(config.backup.exclude)
    topics = [topic for topic in exact if not excluded.includes(topic)] + list(patterns)
    backups = build_kafka_backup_assets(
        topics=topics,
        consumer_groups=config.backup.consumer_groups,
        cluster_name=cluster_name,
        group_name="kafka_backup",
        partitions_def=partitions_def if start_date is None else hourly_windows(start_date),
        kafka_backup_translator=kafka_backup_translator,
        storage_kind=storage_kind(config.repository.url),
    )
    specs = [spec for shard in backups for spec in shard.specs]
    return dg.Definitions(
        assets=[
            *build_kafka_topic_specs(topics, cluster_name=cluster_name, group_name="kafka_topics"),
            *backups,
            *build_kafka_restored_specs(specs, cluster_name=cluster_name, group_name="kafka_restored"),
        ],
        jobs=[build_restore_job(cluster_name=cluster_name)],
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
