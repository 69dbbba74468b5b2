"""Everything that belongs to one cluster, put together: what `build_definitions` and the component share."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.assets.decorator import Execute, build_kafka_backup_assets
from kafka_backup_dagster.assets.specs import (
    build_kafka_cluster_spec,
    build_kafka_restored_specs,
    build_kafka_topic_specs,
    build_restore_drill_spec,
    split_filters,
)
from kafka_backup_dagster.assets.translator import KafkaBackupTranslator, storage_kind
from kafka_backup_dagster.checks import (
    CheckLimits,
    build_coverage_check,
    build_drill_check,
    build_kafka_backup_checks,
)
from kafka_backup_dagster.jobs.drill import DRILL_JOB, build_restore_drill_job, build_restore_drill_schedule
from kafka_backup_dagster.jobs.expire import EXPIRE_JOB, build_expire_job
from kafka_backup_dagster.jobs.reset_offsets import build_reset_offsets_job
from kafka_backup_dagster.jobs.restore import build_restore_job
from kafka_backup_dagster.jobs.rollback_offsets import build_rollback_offsets_job
from kafka_backup_dagster.jobs.verify import VERIFY_JOB, build_verify_job
from kafka_backup_dagster.metadata import RESET_JOB, RESTORE_JOB, ROLLBACK_JOB
from kafka_backup_dagster.schedules import (
    BACKUP_JOB,
    build_kafka_backup_job,
    build_kafka_backup_schedule,
    windows_of,
)
from kafka_backup_dagster.sensors.drill_age import build_drill_age_sensor
from kafka_backup_dagster.sensors.new_topics import build_new_topics_sensor
from kafka_backup_dagster.sensors.restore_requests import build_restore_request_sensor
from kafka_backup_dagster.sensors.time_to_loss import build_time_to_loss_sensor

if TYPE_CHECKING:
    from kafka_backup import BackupConfig

TOPICS_GROUP, BACKUPS_GROUP, RESTORED_GROUP = "kafka_topics", "kafka_backup", "kafka_restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the jobs and the resource of a cluster are called, so that several clusters can live together."""

    prefix: str

    @classmethod
    def of(cls, cluster_name: str) -> "Names":
        """Names of the cluster ``default`` have no prefix, all others that of the cluster."""
        clean = re.sub(r"[^A-Za-z0-9_]", "_", cluster_name)
        return cls(prefix="" if cluster_name == "default" else f"{clean}_")

    @property
    def resource(self) -> str:
        """Key of the `KafkaBackupResource`, and name of the job that backs up."""
        return f"{self.prefix}{BACKUP_JOB}"

    @property
    def restore(self) -> str:
        """Name of the restore job."""
        return f"{self.prefix}{RESTORE_JOB}"

    @property
    def reset_offsets(self) -> str:
        """Name of the job that resets consumer groups."""
        return f"{self.prefix}{RESET_JOB}"

    def job(self, name: str) -> str:
        """Name of another job."""
        return f"{self.prefix}{name}"


def cluster_definitions(
    backup: "BackupConfig",
    *,
    repository_url: str,
    cluster_name: str,
    partitions_def: dg.PartitionsDefinition | None,
    discovered: Sequence[str] = (),
    kafka_backup_translator: KafkaBackupTranslator | None = None,
    limits: Callable[[CheckLimits], CheckLimits] = lambda defaults: defaults,
    cron_schedule: str | None = None,
    automation: bool = True,
    allow_restore_requests: bool = False,
    op_name: str | None = None,
    op_tags: Mapping[str, object] | None = None,
    pool: str | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    execute: Execute | None = None,
) -> dg.Definitions:
    """Return assets, checks, jobs, schedule and sensors of one cluster; the resource is the caller's.

    Args:
        backup: which topics and groups.
        repository_url: for the kind of store that the assets show.
        cluster_name: how the people here call the cluster.
        partitions_def: the windows.
        discovered: topics that the patterns are known to match: each gets an asset of its own.
        kafka_backup_translator: makes the specs of the backups.
        limits: makes what the checks allow of the defaults: a recovery point two windows old.
        cron_schedule: when to back up where there are no windows.
        automation: whether schedule and sensors run without being switched on.
        allow_restore_requests: whether restore requests may be executed, not only planned.
        op_name: of the op that backs up.
        op_tags: of the same.
        pool: of the same.
        backfill_policy: of the same.
        execute: its body.
    """
    from kafka_backup.selection import TopicSelection

    names = Names.of(cluster_name)
    exact, patterns = split_filters(backup.topics)
    left_out = TopicSelection.parse(backup.exclude)
    topics = [
        name for name in dict.fromkeys([*exact, *discovered]) if not left_out.includes(name, internal=True)
    ]
    filters = [*topics, *patterns]
    backups = build_kafka_backup_assets(
        topics=filters,
        consumer_groups=backup.consumer_groups,
        cluster_name=cluster_name,
        name=op_name or f"{names.resource}_capture",
        group_name=BACKUPS_GROUP,
        partitions_def=partitions_def,
        backfill_policy=backfill_policy,
        kafka_backup_translator=kafka_backup_translator,
        storage_kind=storage_kind(repository_url),
        op_tags=op_tags,
        pool=pool,
        resource_key=names.resource,
        execute=execute,
    )
    specs = [spec for shard in backups for spec in shard.specs]
    allowed = limits(_limits_for(backups))
    job = build_kafka_backup_job(backups, name=names.resource)
    restore = build_restore_job(name=names.restore, cluster_name=cluster_name, resource_key=names.resource)
    drill = build_restore_drill_job(
        name=names.job(DRILL_JOB), cluster_name=cluster_name, resource_key=names.resource
    )
    schedule_status = dg.DefaultScheduleStatus.RUNNING if automation else dg.DefaultScheduleStatus.STOPPED
    sensor_status = dg.DefaultSensorStatus.RUNNING if automation else dg.DefaultSensorStatus.STOPPED
    return dg.Definitions(
        assets=[
            build_kafka_cluster_spec(cluster_name=cluster_name, group_name=TOPICS_GROUP),
            *build_kafka_topic_specs(filters, cluster_name=cluster_name, group_name=TOPICS_GROUP),
            *backups,
            *build_kafka_restored_specs(specs, cluster_name=cluster_name, group_name=RESTORED_GROUP),
            build_restore_drill_spec(specs, cluster_name=cluster_name, group_name=RESTORED_GROUP),
        ],
        asset_checks=[
            *(
                build_kafka_backup_checks(shard, limits=allowed, resource_key=names.resource)
                for shard in backups
            ),
            build_coverage_check(
                backups, exclude=backup.exclude, cluster_name=cluster_name, resource_key=names.resource
            ),
            build_drill_check(limits=allowed, cluster_name=cluster_name, resource_key=names.resource),
        ],
        jobs=[
            job,
            restore,
            drill,
            build_reset_offsets_job(
                name=names.reset_offsets,
                resource_key=names.resource,
                rollback_job_name=names.job(ROLLBACK_JOB),
            ),
            build_rollback_offsets_job(name=names.job(ROLLBACK_JOB), resource_key=names.resource),
            build_verify_job(name=names.job(VERIFY_JOB), resource_key=names.resource),
            build_expire_job(name=names.job(EXPIRE_JOB), resource_key=names.resource),
        ],
        schedules=[
            build_kafka_backup_schedule(
                backups, job=job, cron_schedule=cron_schedule, default_status=schedule_status
            ),
            build_restore_drill_schedule(drill),
        ],
        sensors=[
            build_time_to_loss_sensor(
                backups, job=job, limits=allowed, resource_key=names.resource, default_status=sensor_status
            ),
            build_new_topics_sensor(
                backups,
                job=job,
                exclude=backup.exclude,
                cluster_name=cluster_name,
                resource_key=names.resource,
                default_status=sensor_status,
            ),
            build_drill_age_sensor(
                limits=allowed,
                cluster_name=cluster_name,
                name=names.job("restore_drill_age"),
                resource_key=names.resource,
                default_status=sensor_status,
            ),
            build_restore_request_sensor(
                restore, allow_execute=allow_restore_requests, resource_key=names.resource
            ),
        ],
    )


def _limits_for(backups: Sequence[dg.AssetsDefinition]) -> CheckLimits:
    """Allow a recovery point to be two windows old: one that is being captured, and one that has begun."""
    windows = windows_of(backups)
    window = None if windows is None else windows.get_first_partition_window()
    if window is None:
        return CheckLimits()
    length = window.end - window.start
    return CheckLimits(
        recovery_point_age=2 * length, time_to_loss=max(CheckLimits().time_to_loss, 2 * length)
    )
