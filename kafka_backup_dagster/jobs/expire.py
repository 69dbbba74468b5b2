"""The expire job: lets old captures go, and deletes what nothing needs any more."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.jobs.forms import DRY_RUN, build_form_job, refuse_bad_form
from kafka_backup_dagster.metadata import Metadata
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup.retention import ExpirePlan, ExpireReport, RetentionPolicy

EXPIRE_JOB = "expire"


class ExpireConfig(dg.Config):
    """Which captures to keep: those that either setting keeps; without any, all of them.

    The newest capture of each topic always stays, and so does what an unfinished restore reads.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    mode: Literal["dry_run", "execute"] = Field(
        default="dry_run", description="dry_run shows what would go and changes nothing; execute deletes it."
    )
    keep_days: int | None = Field(
        default=None, description="Keep the captures of so many days up to the newest."
    )
    keep_captures: int | None = Field(
        default=None, description="Keep, of each topic, the newest so many captures that hold it."
    )
    unfinished: bool = Field(
        default=False,
        description=(
            "Also delete what captures stored that neither ended nor were followed by another; one that still "
            "runs stops then."
        ),
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> "ExpireConfig":
        refuse_bad_form(self.policy)
        return self

    def policy(self) -> "RetentionPolicy":
        """Return the engine's policy.

        Raises:
            ConfigurationError: a setting makes no sense.
        """
        from kafka_backup.retention import RetentionPolicy

        return RetentionPolicy(keep_days=self.keep_days, keep_captures=self.keep_captures)


def build_expire_job(*, name: str = EXPIRE_JOB, resource_key: str = "kafka_backup") -> dg.JobDefinition:
    """Make an expire job for one cluster; it is the only one that needs the right to delete objects.

    Args:
        name: of the job.
        resource_key: of the `KafkaBackupResource`.
    """

    @dg.op(
        name=f"{name}_captures",
        out=dg.Out(dg.Nothing),
        tags={"kafka_backup/kind": "expire"},
        required_resource_keys={resource_key},
    )
    def expire_captures(context: dg.OpExecutionContext, config: ExpireConfig) -> Iterator[dg.Output[None]]:
        """Let old captures go and delete what nothing needs any more. A dry run by default."""
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        with as_failure(), resource.engine() as engine:
            plan = run_interruptibly(
                lambda stop: engine.plan_expire(config.policy(), unfinished=config.unfinished, stop=stop)
            )
            if config.mode == "dry_run":
                yield dg.Output(None, metadata=DRY_RUN | _plan_metadata(plan))
                return
            report = run_interruptibly(lambda stop: engine.expire(plan, stop=stop))
        yield dg.Output(None, metadata=_report_metadata(report))

    return build_form_job(expire_captures, ExpireConfig, name=name, kind="expire")


def _plan_metadata(plan: "ExpirePlan") -> Metadata:
    return {
        "kafka_backup/captures": dg.MetadataValue.json(list(plan.captures)),
        "kafka_backup/captures_let_go": dg.MetadataValue.int(len(plan.captures)),
        "kafka_backup/objects_to_delete": dg.MetadataValue.int(len(plan.deletes)),
        "kafka_backup/bytes_to_free": dg.MetadataValue.int(sum(info.size for info in plan.deletes)),
        "kafka_backup/pinned_by_restores": dg.MetadataValue.json(list(plan.pins)),
    }


def _report_metadata(report: "ExpireReport") -> Metadata:
    return {
        "kafka_backup/status": dg.MetadataValue.text("done"),
        "kafka_backup/captures": dg.MetadataValue.json(list(report.captures)),
        "kafka_backup/captures_let_go": dg.MetadataValue.int(len(report.captures)),
        "kafka_backup/deleted_objects": dg.MetadataValue.int(report.deleted),
        "kafka_backup/freed_bytes": dg.MetadataValue.int(report.freed_bytes),
        "kafka_backup/pinned": dg.MetadataValue.int(report.pinned),
    }


expire_job = build_expire_job()
