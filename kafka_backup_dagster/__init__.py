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
    build_kafka_cluster_spec,
    build_kafka_restored_specs,
    build_kafka_topic_specs,
    build_restore_drill_spec,
)
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator, KafkaBackupTranslatorData
from kafka_backup_dagster.assets.windows import hourly_windows
from kafka_backup_dagster.checks import (
    CheckLimits,
    build_coverage_check,
    build_drill_check,
    build_kafka_backup_checks,
)
from kafka_backup_dagster.components.component import KafkaBackupComponent
from kafka_backup_dagster.definitions import build_definitions
from kafka_backup_dagster.jobs.drill import (
    DrillConfig,
    build_restore_drill_job,
    build_restore_drill_schedule,
    restore_drill_job,
)
from kafka_backup_dagster.jobs.expire import ExpireConfig, build_expire_job, expire_job
from kafka_backup_dagster.jobs.forms import RenameConfig
from kafka_backup_dagster.jobs.reset_offsets import (
    ResetOffsetsConfig,
    build_reset_offsets_job,
    reset_offsets_job,
)
from kafka_backup_dagster.jobs.restore import RestoreConfig, build_restore_job, restore_job
from kafka_backup_dagster.jobs.rollback_offsets import (
    RollbackOffsetsConfig,
    build_rollback_offsets_job,
    rollback_offsets_job,
)
from kafka_backup_dagster.jobs.verify import VerifyConfig, build_verify_job, verify_job
from kafka_backup_dagster.resources.resource import KafkaBackupResource
from kafka_backup_dagster.schedules import build_kafka_backup_job, build_kafka_backup_schedule
from kafka_backup_dagster.sensors.drill_age import build_drill_age_sensor
from kafka_backup_dagster.sensors.new_topics import build_new_topics_sensor
from kafka_backup_dagster.sensors.restore_requests import build_restore_request_sensor
from kafka_backup_dagster.sensors.time_to_loss import build_time_to_loss_sensor

__version__ = version("kafka-backup-dagster")

__all__ = [
    "CheckLimits",
    "DrillConfig",
    "ExpireConfig",
    "KafkaBackupComponent",
    "KafkaBackupResource",
    "KafkaBackupTranslator",
    "KafkaBackupTranslatorData",
    "RenameConfig",
    "ResetOffsetsConfig",
    "RestoreConfig",
    "RollbackOffsetsConfig",
    "VerifyConfig",
    "build_coverage_check",
    "build_definitions",
    "build_drill_age_sensor",
    "build_drill_check",
    "build_expire_job",
    "build_kafka_backup_asset_specs",
    "build_kafka_backup_assets",
    "build_kafka_backup_checks",
    "build_kafka_backup_job",
    "build_kafka_backup_schedule",
    "build_kafka_cluster_spec",
    "build_kafka_restored_specs",
    "build_kafka_topic_specs",
    "build_new_topics_sensor",
    "build_reset_offsets_job",
    "build_restore_drill_job",
    "build_restore_drill_schedule",
    "build_restore_drill_spec",
    "build_restore_job",
    "build_restore_request_sensor",
    "build_rollback_offsets_job",
    "build_time_to_loss_sensor",
    "build_verify_job",
    "expire_job",
    "hourly_windows",
    "kafka_backup_assets",
    "reset_offsets_job",
    "restore_drill_job",
    "restore_job",
    "rollback_offsets_job",
    "verify_job",
]

DagsterLibraryRegistry.register("kafka-backup-dagster", __version__, is_dagster_package=False)
