"""The sensor that alarms when nobody has proved for too long that a restore works."""

from time import time
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.checks import CheckLimits, judge_drill
from kafka_backup_dagster.sensors.looking import Told, look

if TYPE_CHECKING:
    from kafka_backup_dagster.resources.resource import KafkaBackupResource


def build_drill_age_sensor(
    *,
    limits: CheckLimits | None = None,
    cluster_name: str = "default",
    name: str = "restore_drill_age",
    resource_key: str = "kafka_backup",
    minimum_interval_seconds: int = 3600,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Make the sensor that records the check ``drill_age`` when it changes, and every hour while it fails.

    Args:
        limits: what the check allows.
        cluster_name: as in the assets.
        name: of the sensor.
        resource_key: of the `KafkaBackupResource`.
        minimum_interval_seconds: between two looks.
        default_status: RUNNING.
    """
    allowed = limits or CheckLimits()

    @dg.sensor(
        name=name,
        required_resource_keys={resource_key},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Alarms when no restore drill has passed for too long.",
    )
    def drill_age(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        newest = look(resource, lambda engine, _: engine.last_good_drill())
        evaluation = judge_drill(newest, allowed, cluster_name=cluster_name).evaluation()
        events, checks = Told.of(context).news([evaluation], now=time())
        return dg.SensorResult(
            skip_reason=evaluation.description, asset_events=events, cursor=Told.cursor(checks)
        )

    return drill_age
