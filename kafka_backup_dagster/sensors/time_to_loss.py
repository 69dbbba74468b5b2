"""The sensor that compares what is not captured with retention: "partition 7 loses data in 43 minutes"."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.checks import CheckLimits, judge, topics_of
from kafka_backup_dagster.schedules import newest_window, run_under_way, windows_of
from kafka_backup_dagster.sensors.looking import Told, look

if TYPE_CHECKING:
    # Dagster returns it and does not export it.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from kafka_backup_dagster.resources.resource import KafkaBackupResource

_TRY_AGAIN_SECONDS = 600


def build_time_to_loss_sensor(
    backups: Sequence[dg.AssetsDefinition],
    *,
    job: "UnresolvedAssetJobDefinition",
    limits: CheckLimits | None = None,
    name: str | None = None,
    resource_key: str = "kafka_backup",
    minimum_interval_seconds: int = 300,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Make the sensor that watches how long what is not captured is still in Kafka.

    It records the checks ``time_to_loss`` and ``recovery_point`` of each asset when they change (and
    every hour while they fail), and asks for a capture of what is about to be lost.

    Args:
        backups: the multi-assets of one cluster, with the checks of `build_kafka_backup_checks`.
        job: of `build_kafka_backup_job`; captures are asked of it.
        limits: what the checks allow.
        name: of the sensor.
        resource_key: of the `KafkaBackupResource`.
        minimum_interval_seconds: between two looks.
        default_status: RUNNING: an alarm that nobody has switched on is none.
    """
    allowed = limits or CheckLimits()
    assets = topics_of([spec for shard in backups for spec in shard.specs])
    windows = windows_of(backups)

    @dg.sensor(
        name=name or f"{job.name}_time_to_loss",
        job=job,
        required_resource_keys={resource_key},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Watches how long what is not captured yet is still in Kafka, and captures it in time.",
    )
    def time_to_loss(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        now = datetime.now(UTC)
        verdicts = look(
            resource,
            lambda engine, stop: [
                *judge("time_to_loss", engine, assets, allowed, stop=stop),
                *judge("recovery_point", engine, assets, allowed, stop=stop),
            ],
        )
        told = Told.of(context)
        events, checks = told.news([verdict.evaluation() for verdict in verdicts], now=now.timestamp())
        urgent = [each for each in verdicts if each.check == "time_to_loss" and not each.passed]
        request, skipped = None, "nothing that is not captured is about to be deleted"
        if urgent:
            skipped = "; ".join(verdict.description for verdict in urgent)
            context.log.warning(skipped)
            request = _request(context, job.name, [each.asset_key for each in urgent], windows, now)
        return dg.SensorResult(
            run_requests=[request] if request is not None else None,
            skip_reason=skipped if request is None else None,
            asset_events=events,
            cursor=Told.cursor(checks),
        )

    return time_to_loss


def _request(
    context: dg.SensorEvaluationContext,
    job_name: str,
    keys: Sequence[dg.AssetKey],
    windows: dg.TimeWindowPartitionsDefinition | None,
    now: datetime,
) -> dg.RunRequest | None:
    """Ask for a capture, every ten minutes at most; a run that is under way may be that capture."""
    window = None if windows is None else newest_window(windows, now=now)
    if run_under_way(context.instance, job_name) is not None or (window is None and windows is not None):
        return None
    return dg.RunRequest(
        run_key=f"time-to-loss-{int(now.timestamp()) // _TRY_AGAIN_SECONDS}",
        asset_selection=list(keys),
        asset_check_keys=[],
        partition_key=window,
        tags={"dagster/priority": "5"},
    )
