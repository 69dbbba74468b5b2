"""The job that puts consumer groups back to where they were before a reset."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.jobs.forms import DRY_RUN, build_form_job, identifier, refuse_bad_form
from kafka_backup_dagster.jobs.moves import moves_table, offset_of, refuse, results_metadata
from kafka_backup_dagster.metadata import ROLLBACK_JOB, Metadata
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup.offset_rollback import RollbackPlan
    from kafka_backup.position_mover import MoveResult


class RollbackOffsetsConfig(dg.Config):
    """Which reset to take back. Commits and groups that were not there before it are removed again."""

    model_config = ConfigDict(hide_input_in_errors=True)

    reset_id: str = Field(description="The reset; its run shows the id, and a link to this form.")
    mode: Literal["dry_run", "execute"] = Field(
        default="dry_run", description="dry_run changes nothing and shows the plan; execute carries it out."
    )
    force: bool = Field(
        default=False, description="Also put back positions that a consumer has moved on since."
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> "RollbackOffsetsConfig":
        refuse_bad_form(lambda: identifier("reset_id", self.reset_id))
        return self


def build_rollback_offsets_job(
    *, name: str = ROLLBACK_JOB, resource_key: str = "kafka_backup"
) -> dg.JobDefinition:
    """Make a job that takes resets of consumer groups back.

    Args:
        name: of the job.
        resource_key: of the `KafkaBackupResource`.
    """

    @dg.op(
        name=f"{name}_of_groups",
        out=dg.Out(dg.Nothing),
        tags={"kafka_backup/kind": "rollback_offsets"},
        required_resource_keys={resource_key},
    )
    def rollback_offsets(
        context: dg.OpExecutionContext, config: RollbackOffsetsConfig
    ) -> Iterator[dg.Output[None]]:
        """Put positions back that a reset has changed, and look again. A dry run by default.

        If it was interrupted, launch it again with the same form, or re-execute the run, to go on.
        """
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        yield dg.Output(None, metadata=_roll_back(config, resource))

    return build_form_job(
        rollback_offsets, RollbackOffsetsConfig, name=name, kind="rollback_offsets", priority=10
    )


def _roll_back(config: RollbackOffsetsConfig, resource: KafkaBackupResource) -> Metadata:
    with as_failure(), resource.engine() as engine:
        plan = run_interruptibly(lambda _: engine.groups.plan_rollback(config.reset_id, force=config.force))
        if plan.errors:
            errors = [str(error) for error in plan.errors.values()]
            refuse("the rollback is refused", errors, _plan_metadata(plan))
        if config.mode == "dry_run":
            return DRY_RUN | _plan_metadata(plan)
        results = run_interruptibly(lambda stop: engine.groups.rollback(plan, stop=stop))
    return _report_metadata(plan, results)


def _plan_metadata(plan: "RollbackPlan") -> Metadata:
    return {
        "kafka_backup/reset_id": dg.MetadataValue.text(plan.reset_id),
        "kafka_backup/positions": moves_table(
            (move.group, move.topic, move.partition, offset_of(move.start), offset_of(move.goal))
            for move in plan.moves
        ),
        "kafka_backup/position_count": dg.MetadataValue.int(len(plan.moves)),
        "kafka_backup/to_change": dg.MetadataValue.int(sum(not move.changes_nothing for move in plan.moves)),
        "kafka_backup/groups_to_remove": dg.MetadataValue.json(list(plan.deletes)),
    }


def _report_metadata(plan: "RollbackPlan", results: Sequence["MoveResult"]) -> Metadata:
    shown: Metadata = {
        "kafka_backup/status": dg.MetadataValue.text("rolled_back"),
        "kafka_backup/reset_id": dg.MetadataValue.text(plan.reset_id),
        "kafka_backup/removed_groups": dg.MetadataValue.json(list(plan.deletes)),
    }
    if any(result.error is not None for result in results):
        shown["kafka_backup/status"] = dg.MetadataValue.text("failed")
    return shown | results_metadata(results, "not all positions are back where they were", shown)


rollback_offsets_job = build_rollback_offsets_job()
