"""The schedule that captures each window as it ends, and leaves no gap."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    # Dagster returns it and does not export it.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

BACKUP_JOB = "kafka_backup"
UNPARTITIONED_CRON = "0 * * * *"
MAX_WINDOWS = 100
"""Windows that one run makes up for: each is an event of each asset. A backfill does the rest."""
_UNDER_WAY = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def build_kafka_backup_job(
    backups: Sequence[dg.AssetsDefinition],
    *,
    name: str = BACKUP_JOB,
    executor_def: dg.ExecutorDefinition | None = dg.in_process_executor,
) -> "UnresolvedAssetJobDefinition":
    """Make the job that backs up everything in one run.

    Args:
        backups: the multi-assets of one cluster.
        name: of the job.
        executor_def: where the steps run: by default all in one process, because the engine brings
            its own threads; ``k8s_job_executor`` gives each shard a pod of its own.
    """
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(
            *(key for shard in backups for key in shard.keys)
        ).without_checks(),
        description="Back up all topics and the positions of consumer groups.",
        tags={"kafka_backup/kind": "backup"},
        executor_def=executor_def,
    )


def build_kafka_backup_schedule(
    backups: Sequence[dg.AssetsDefinition],
    *,
    job: "UnresolvedAssetJobDefinition",
    name: str | None = None,
    cron_schedule: str | None = None,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.RUNNING,
) -> dg.ScheduleDefinition:
    """Make the schedule that captures each window as it ends.

    A tick asks for one run, for all windows since the newest captured one: those that were missed
    or failed become green with it, because a capture holds everything that was in Kafka before it
    began. While a run of the job is under way a tick asks for nothing, and the next one makes up
    for it; the check ``recovery_point`` notices a run that never ends.

    Args:
        backups: the multi-assets of one cluster.
        job: of `build_kafka_backup_job`.
        name: of the schedule; by default the job's with ``_schedule``.
        cron_schedule: where the assets have no windows; by default every hour.
        default_status: RUNNING, because a backup that nobody has switched on is none.

    Raises:
        DagsterInvalidDefinitionError: a cron schedule for assets whose windows say when.
    """
    windows = windows_of(backups)
    if windows is not None and cron_schedule is not None:
        raise dg.DagsterInvalidDefinitionError(
            "cron_schedule: the windows of the assets say when they are captured; leave it out"
        )

    @dg.schedule(
        name=name or f"{job.name}_schedule",
        cron_schedule=(cron_schedule or UNPARTITIONED_CRON)
        if windows is None
        else windows.get_cron_schedule(),
        execution_timezone=None if windows is None else windows.timezone,
        job=job,
        default_status=default_status,
        description="Captures each window as it ends, and those that were missed.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if (busy := run_under_way(context.instance, job.name)) is not None:
            return dg.SkipReason(f"run {busy} is still at work; the next tick makes up for this one")
        at = context.scheduled_execution_time
        if windows is None:
            return dg.RunRequest(run_key=at.isoformat())
        missing = missing_windows(context.instance, backups, windows, now=at)
        if missing is None:
            return dg.SkipReason("no window has ended yet")
        first, last = missing
        if first == last:
            return dg.RunRequest(run_key=last, partition_key=last)
        return dg.RunRequest(run_key=last, tags=range_tags(first, last))

    return schedule


def missing_windows(
    instance: dg.DagsterInstance,
    backups: Sequence[dg.AssetsDefinition],
    windows: dg.TimeWindowPartitionsDefinition,
    *,
    now: datetime,
) -> tuple[str, str] | None:
    """Return the first and the last window that a run at `now` should be for; None: none has ended.

    The first one comes after the newest window that every asset has; where an asset has none at all
    it is the last one, because what was before the first backup is for a backfill to say.
    """
    keys = windows.get_partition_keys(current_time=now)
    if not keys:
        return None
    first = len(keys) - 1
    for shard in backups:
        for asset_key in shard.keys:
            done = instance.get_materialized_partitions(asset_key)
            newest = next((at for at in range(len(keys) - 1, -1, -1) if keys[at] in done), None)
            if newest is not None:
                first = min(first, newest + 1)
    first = max(first, len(keys) - MAX_WINDOWS)
    return keys[first], keys[-1]


def windows_of(backups: Sequence[dg.AssetsDefinition]) -> dg.TimeWindowPartitionsDefinition | None:
    """Return the windows that all assets of a cluster share, None if they have none."""
    found = backups[0].partitions_def
    return found if isinstance(found, dg.TimeWindowPartitionsDefinition) else None


def newest_window(windows: dg.TimeWindowPartitionsDefinition, *, now: datetime) -> str | None:
    """Return the newest window that has ended, None before the first has."""
    keys = windows.get_partition_keys(current_time=now)
    return keys[-1] if keys else None


def range_tags(first: str, last: str) -> dict[str, str]:
    """Return the tags that make one run of all windows from `first` to `last` (inclusive)."""
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def run_under_way(instance: dg.DagsterInstance, job_name: str) -> str | None:
    """Return the id of a run of a job that has not ended, if there is one."""
    runs = instance.get_runs(
        dg.RunsFilter(job_name=job_name, statuses=list(_UNDER_WAY)),
        limit=1,
    )
    return runs[0].run_id if runs else None
