"""The restore drill: proves that a restore works, and how long it takes, before it is needed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from kafka_backup_dagster.assets.translator import drill_key
from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.jobs.forms import build_form_job, check_filters, refuse_bad_form, sentences
from kafka_backup_dagster.jobs.progress import ProgressLog
from kafka_backup_dagster.metadata import Metadata, mb_per_second, red_lines, table
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup import DrillReport

DRILL_JOB = "restore_drill"
_COLUMNS = ("capture", "topics", "records", "raw_mb", "seconds", "verified")


class DrillConfig(dg.Config):
    """What to restore for practice. Launch it as it is: the engine chooses the captures and the topics."""

    model_config = ConfigDict(hide_input_in_errors=True)

    topics: list[str] = Field(
        default=[],
        description="Only among these: exact names, wildcards (app_*) or /regular expressions/; empty: all.",
    )
    max_size: str = Field(
        default="10GiB",
        description="How much to restore of each capture at most; topics take their turns from drill to drill.",
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> "DrillConfig":
        def ask() -> None:
            check_filters(topics=self.topics)
            if self.max_bytes() <= 0:
                raise ValueError("max_size: must be more than nothing")

        refuse_bad_form(ask)
        return self

    def max_bytes(self) -> int:
        """Return the size in bytes.

        Raises:
            ValueError: it is no size.
        """
        from kafka_backup.config import Size

        with sentences("max_size"):
            return TypeAdapter(Size).validate_python(self.max_size)


def build_restore_drill_job(
    *, name: str = DRILL_JOB, cluster_name: str = "default", resource_key: str = "kafka_backup"
) -> dg.JobDefinition:
    """Make the restore drill of one cluster.

    Args:
        name: of the job.
        cluster_name: as in the assets: each drill materializes ``kafka_restore_drill/<cluster>/restore_drill``.
        resource_key: of the `KafkaBackupResource`.
    """

    @dg.op(
        name=f"{name}_restore",
        out=dg.Out(dg.Nothing),
        tags={"kafka_backup/kind": "drill"},
        required_resource_keys={resource_key},
    )
    def drill(
        context: dg.OpExecutionContext, config: DrillConfig
    ) -> Iterator[dg.AssetMaterialization | dg.AssetObservation | dg.Output[None]]:
        """Restore the newest capture, and an older one in turn, into scratch topics; verify and delete them."""
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        progress = ProgressLog(context.log)
        with as_failure(), resource.engine() as engine:
            report = run_interruptibly(
                lambda stop: engine.drill(
                    config.topics or None,
                    max_raw_bytes=config.max_bytes(),
                    stop=stop,
                    on_progress=progress.restore,
                ),
                on_slice=progress.log_when_due,
            )
        shown = drill_metadata(report)
        if report.status != "passed":
            yield dg.AssetObservation(
                asset_key=drill_key(cluster_name),
                description=f"Restore drill {report.drill_id} failed.",
                metadata=shown,
            )
            raise dg.Failure(
                description=f"restore drill {report.drill_id} failed\n" + "\n".join(drill_problems(report)),
                metadata=shown,
                allow_retries=False,
            )
        yield dg.AssetMaterialization(
            asset_key=drill_key(cluster_name),
            description=f"Restore drill {report.drill_id} passed: every record was restored and verified.",
            metadata=shown,
        )
        yield dg.Output(None, metadata=shown)

    return build_form_job(drill, DrillConfig, name=name, kind="drill")


def build_restore_drill_schedule(
    job: dg.JobDefinition,
    *,
    cron_schedule: str = "0 4 * * 0",
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.STOPPED,
) -> dg.ScheduleDefinition:
    """Make the schedule of a restore drill: on Sunday at 4 in the morning (UTC), unless told otherwise.

    Args:
        job: of `build_restore_drill_job`.
        cron_schedule: when.
        default_status: STOPPED, because a drill makes topics in your cluster: switch it on.
    """
    return dg.ScheduleDefinition(
        name=f"{job.name}_schedule",
        cron_schedule=cron_schedule,
        job=job,
        default_status=default_status,
        description="Proves regularly that a restore works.",
    )


def drill_problems(report: "DrillReport") -> list[str]:
    """Return what went wrong, a line for each."""
    return [
        *(f"capture {each.capture}: {each.problem}" for each in report.captures if each.problem is not None),
        *(f"not deleted: {line}" for line in report.left_behind),
    ]


def drill_metadata(report: "DrillReport") -> Metadata:
    """Return what a drill proved: numbers that are plotted, and a line for each capture."""
    raw_bytes = sum(each.raw_bytes for each in report.captures)
    seconds = sum(each.seconds for each in report.captures)
    shown: Metadata = {}
    if problems := drill_problems(report):
        shown["kafka_backup/problems"] = red_lines("The drill failed", problems)
    return shown | {
        "kafka_backup/status": dg.MetadataValue.text(report.status),
        "kafka_backup/recovery_seconds": dg.MetadataValue.float(
            max((each.seconds for each in report.captures), default=0.0)
        ),
        "kafka_backup/records": dg.MetadataValue.int(sum(each.records for each in report.captures)),
        "kafka_backup/raw_bytes": dg.MetadataValue.int(raw_bytes),
        "kafka_backup/mb_per_second": mb_per_second(raw_bytes, seconds),
        "kafka_backup/captures": table(
            [
                {
                    "capture": each.capture,
                    "topics": len(each.topics),
                    "records": each.records,
                    "raw_mb": round(each.raw_bytes / 1e6, 3),
                    "seconds": each.seconds,
                    "verified": each.problem is None,
                }
                for each in report.captures
            ],
            dict(zip(_COLUMNS, ("string", "integer", "integer", "float", "float", "bool"), strict=True)),
        ),
        "kafka_backup/topics": dg.MetadataValue.json(
            {each.capture: list(each.topics) for each in report.captures}
        ),
        "kafka_backup/target_cluster": dg.MetadataValue.text(report.target_cluster_id),
        "kafka_backup/drill": dg.MetadataValue.text(report.drill_id),
    }


restore_drill_job = build_restore_drill_job()
