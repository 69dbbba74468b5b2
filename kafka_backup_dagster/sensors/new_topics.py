"""The sensor that finds topics: new ones to capture at once, and those that nobody backs up."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.checks import coverage, topics_of
from kafka_backup_dagster.schedules import newest_window, run_under_way, windows_of
from kafka_backup_dagster.sensors.looking import Told, look

if TYPE_CHECKING:
    # Dagster returns it and does not export it.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    from kafka_backup_dagster.resources.resource import KafkaBackupResource


def build_new_topics_sensor(
    backups: Sequence[dg.AssetsDefinition],
    *,
    job: "UnresolvedAssetJobDefinition",
    exclude: Sequence[str] = (),
    cluster_name: str = "default",
    name: str | None = None,
    resource_key: str = "kafka_backup",
    minimum_interval_seconds: int = 300,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Make the sensor that looks at which topics the cluster has.

    A new topic that a pattern matches is captured at once, and not only when its window ends. The
    check ``every_topic_is_backed_up`` of the cluster's asset fails while there is a topic that no
    filter takes and none leaves out; it is recorded when it changes, and every hour while it fails.

    Args:
        backups: the multi-assets of one cluster.
        job: of `build_kafka_backup_job`; captures are asked of it.
        exclude: filters of topics that are left out on purpose.
        cluster_name: as in the assets.
        name: of the sensor.
        resource_key: of the `KafkaBackupResource`.
        minimum_interval_seconds: between two looks.
        default_status: RUNNING.
    """
    assets = topics_of([spec for shard in backups for spec in shard.specs])
    windows = windows_of(backups)

    @dg.sensor(
        name=name or f"{job.name}_new_topics",
        job=job,
        required_resource_keys={resource_key},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Captures new topics at once, and finds those that nobody backs up.",
    )
    def new_topics(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        names = look(resource, lambda engine, _: engine.cluster_topics())
        now = datetime.now(UTC)
        told = Told.of(context)
        evaluation = coverage(names, assets, exclude, cluster_name=cluster_name).evaluation()
        events, checks = told.news([evaluation], now=now.timestamp())
        fresh = set(names) - set(told.known) if told.known else set()
        request, reason = None, evaluation.description
        for key, topics in assets.items():
            found = topics.among(fresh) if topics.exact is None else []
            if not found:
                continue
            reason = f"new topics: {', '.join(found)}"
            context.log.info(f"{reason}; asking for their first capture")
            window = None if windows is None else newest_window(windows, now=now)
            if run_under_way(context.instance, job.name) is not None or (
                window is None and windows is not None
            ):
                # Not known yet: the next look finds them new again.
                names = [name for name in names if name not in found]
                reason = f"{reason}; captured as soon as the run that is at work has ended"
                continue
            request = dg.RunRequest(
                run_key=f"new-topics-{int(now.timestamp())}",
                asset_selection=[key],
                asset_check_keys=[],
                partition_key=window,
            )
        return dg.SensorResult(
            run_requests=[request] if request is not None else None,
            skip_reason=reason if request is None else None,
            asset_events=events,
            cursor=Told.cursor(checks, names),
        )

    return new_topics
