"""Kafka backups as Dagster assets.

Example:
    @kafka_backup_assets(topics=["orders", "payments"])
    def backups(context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource):
        yield from kafka_backup.run(context)

    defs = dg.Definitions(
        assets=[backups],
        jobs=[restore_job],
        resources={"kafka_backup": KafkaBackupResource.from_yaml("kafka-backup.yaml")},
    )
"""

from importlib.metadata import version

from dagster_shared.libraries import DagsterLibraryRegistry

from kafka_backup_dagster.assets.decorator import build_kafka_backup_assets, kafka_backup_assets
from kafka_backup_dagster.assets.specs import (
    build_kafka_backup_asset_specs,
    build_kafka_restored_specs,
    build_kafka_topic_specs,
)
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator, KafkaBackupTranslatorData
from kafka_backup_dagster.assets.windows import hourly_windows
from kafka_backup_dagster.definitions import build_definitions
from kafka_backup_dagster.jobs.restore import RenameConfig, RestoreConfig, build_restore_job, restore_job
from kafka_backup_dagster.resources.resource import KafkaBackupResource

__version__ = version("kafka-backup-dagster")

__all__ = [
    "KafkaBackupResource",
    "KafkaBackupTranslator",
    "KafkaBackupTranslatorData",
    "RenameConfig",
    "RestoreConfig",
    "build_definitions",
    "build_kafka_backup_asset_specs",
    "build_kafka_backup_assets",
    "build_kafka_restored_specs",
    "build_kafka_topic_specs",
    "build_restore_job",
    "hourly_windows",
    "kafka_backup_assets",
    "restore_job",
]

DagsterLibraryRegistry.register("kafka-backup-dagster", __version__, is_dagster_package=False)
