"""Dagster definitions from a ``kafka-backup.yaml``; `defs` is what `dagster dev` loads."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.assets.translator import KafkaBackupTranslator
from kafka_backup_dagster.assets.windows import HOURLY, hourly_windows
from kafka_backup_dagster.checks import CheckLimits
from kafka_backup_dagster.cluster import Names, cluster_definitions
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup import EngineConfig

CONFIG_VARIABLE = "KAFKA_BACKUP_CONFIG"
START_DATE_VARIABLE = "KAFKA_BACKUP_START_DATE"
DEFAULT_CONFIG = "kafka-backup.yaml"


def build_definitions(
    config: "EngineConfig | str | Path",
    *,
    cluster_name: str = "default",
    location_name: str | None = None,
    start_date: str | None = None,
    partitions_def: dg.TimeWindowPartitionsDefinition | None = HOURLY,
    kafka_backup_translator: KafkaBackupTranslator | None = None,
    limits: CheckLimits | None = None,
    automation: bool = True,
) -> dg.Definitions:
    """Return everything for one cluster: assets, checks, jobs, the schedule, sensors and the resource.

    Contacts neither broker nor store. Each exact name in ``backup.topics`` becomes an asset, all
    patterns together one more. Everything runs in one process: the engine brings its own threads.

    Args:
        config: a ``kafka-backup.yaml``, which each run reads again, or a configuration. Neither
            shows secrets in Dagster.
        cluster_name: how the people here call the cluster; part of the asset keys. Jobs and resource
            are called ``restore``, ``kafka_backup`` and so on, with ``<cluster>_`` before it unless
            the cluster is the ``default``.
        location_name: the code location, for links to the restore job; by default the run's own.
        start_date: the day of the first backup, such as 2026-11-24: hourly windows from then on.
        partitions_def: other windows; None for assets without partitions.
        kafka_backup_translator: makes the asset specs.
        limits: what the checks allow; by default a recovery point two windows old.
        automation: whether the schedule and the sensors run without being switched on.

    Raises:
        ConfigurationError: the configuration is wrong.
        DagsterInvalidDefinitionError: two topics would be one asset, or the windows are too short.
    """
    from kafka_backup.config import load_config

    names = Names.of(cluster_name)
    if isinstance(config, str | Path):
        resource: object = KafkaBackupResource.from_yaml(
            config,
            location_name=location_name,
            restore_job_name=names.restore,
            reset_job_name=names.reset_offsets,
        )
        config = load_config(config)
    else:
        resource = KafkaBackupResource.from_config(
            config,
            location_name=location_name,
            restore_job_name=names.restore,
            reset_job_name=names.reset_offsets,
        ).hidden()
    defs = cluster_definitions(
        config.backup,
        repository_url=config.repository.url,
        cluster_name=cluster_name,
        partitions_def=partitions_def if start_date is None else hourly_windows(start_date),
        kafka_backup_translator=kafka_backup_translator,
        limits=lambda defaults: limits or defaults,
        automation=automation,
    )
    return dg.Definitions.merge(
        defs, dg.Definitions(resources={names.resource: resource}, executor=dg.in_process_executor)
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of ``$KAFKA_BACKUP_CONFIG``, else of ``kafka-backup.yaml`` if it is here.

    ``$KAFKA_BACKUP_START_DATE`` is the day of the first backup; see `build_definitions`.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named is None and not Path(DEFAULT_CONFIG).exists():
        dg.get_dagster_logger().warning(
            f"there is no {DEFAULT_CONFIG} in {Path.cwd()} and ${CONFIG_VARIABLE} is not set, so there is "
            "nothing to show; write one (see README.md), or type `make dev` for a cluster to try"
        )
        return dg.Definitions()
    return build_definitions(named or DEFAULT_CONFIG, start_date=os.environ.get(START_DATE_VARIABLE))
