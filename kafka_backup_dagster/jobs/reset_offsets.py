"""The job that moves consumer groups in bulk: to saved positions, a time, an offset, an end of the log."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.jobs.forms import (
    DRY_RUN,
    RenameConfig,
    build_form_job,
    check_filters,
    identifier,
    milliseconds,
    refuse_bad_form,
    rename_rules,
    sentences,
)
from kafka_backup_dagster.jobs.moves import moves_table, refuse, results_metadata
from kafka_backup_dagster.metadata import (
    RESET_JOB,
    ROLLBACK_JOB,
    Launchpad,
    Metadata,
    launchpad_link,
    location_of,
)
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup.groups import PlannedReset
    from kafka_backup.offset_automation import ResetReport
    from kafka_backup.repository.group_documents import ResetPlan, ResetRequest


class ResetOffsetsConfig(dg.Config):
    """Which consumer groups to move, and where to.

    Name one place to go: a snapshot, a time of the history, or a place in the log. Launch
    it once as it is: the dry run says where everything would go, and everything that forbids it. How the
    groups were is stored first, so that the rollback job can put it back.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    groups: list[str] = Field(
        description='Exact names, wildcards (app_*) or /regular expressions/ of groups; ["*"] is all of them.'
    )
    mode: Literal["dry_run", "execute"] = Field(
        default="dry_run", description="dry_run changes nothing and shows the plan; execute carries it out."
    )
    topics: list[str] = Field(
        default=[],
        description=(
            "Only positions on these topics, by their names in the source; empty: all. A group that does not "
            "exist yet needs exact names."
        ),
    )
    snapshot: str | None = Field(
        default=None, description="To the positions in this group snapshot; its id is shown on its asset."
    )
    at_time: str | None = Field(
        default=None,
        description=(
            "To where the groups were at this time (2026-01-31T12:00:00Z), from the captured history: "
            "__consumer_offsets has to be backed up."
        ),
    )
    to: str | None = Field(
        default=None,
        description=(
            'To earliest, to latest, to an offset in quotes ("4711"), or to the first record of a time or later '
            "(2026-01-31T12:00:00Z), in each partition."
        ),
    )
    restore_id: str | None = Field(
        default=None,
        description=(
            "Translate the saved positions to where this restore put the records; the groups are those of its "
            "target. Goes with snapshot and at_time."
        ),
    )
    rename: list[RenameConfig] = Field(
        default=[], description="The first rule that matches a group's whole name gives its new name."
    )
    atomic: bool = Field(default=False, description="All groups in one transaction, or none.")
    clamp: bool = Field(
        default=False,
        description="Take the nearest offset that exists for one that is out of bounds, instead of refusing it.",
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> "ResetOffsetsConfig":
        refuse_bad_form(self.request)
        return self

    def request(self) -> "ResetRequest":
        """Return the engine's request.

        Raises:
            ValueError: a value is wrong; the message names it.
        """
        from kafka_backup.repository.group_documents import ResetRequest
        from kafka_backup.reset_plan import parse_destination

        if not self.groups:
            raise ValueError('groups: name at least one; ["*"] is all of them')
        check_filters(topics=self.topics, groups=self.groups)
        places = {"snapshot": self.snapshot, "at_time": self.at_time, "to": self.to}
        given = [name for name, value in places.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of snapshot, at_time and to, not {' and '.join(given) or 'none'}")
        if self.restore_id is not None and self.to is not None:
            raise ValueError(
                "restore_id translates saved positions: it goes with snapshot or at_time, not with to"
            )
        with sentences("to"):
            to = {} if self.to is None else parse_destination(self.to)
        rules = rename_rules(self.rename)
        with sentences():
            return ResetRequest(
                groups=tuple(self.groups),
                topics=tuple(self.topics),
                snapshot_id=None if self.snapshot is None else identifier("snapshot", self.snapshot),
                at_ms=milliseconds("at_time", self.at_time),
                restore_id=self.restore_id,
                atomic=self.atomic,
                clamp=self.clamp,
                rename=rules,
                **to,
            )


def build_reset_offsets_job(
    *,
    name: str = RESET_JOB,
    resource_key: str = "kafka_backup",
    rollback_job_name: str = ROLLBACK_JOB,
) -> dg.JobDefinition:
    """Make a job that moves consumer groups of one cluster.

    Args:
        name: of the job.
        resource_key: of the `KafkaBackupResource`.
        rollback_job_name: of `build_rollback_offsets_job`, for the link that opens it filled in.
    """

    @dg.op(
        name=f"{name}_of_groups",
        out=dg.Out(dg.Nothing),
        tags={"kafka_backup/kind": "reset_offsets"},
        required_resource_keys={resource_key},
    )
    def reset_offsets(
        context: dg.OpExecutionContext, config: ResetOffsetsConfig
    ) -> Iterator[dg.Output[None]]:
        """Move consumer groups to saved positions, a time or an offset, and look again. A dry run by default.

        If it was interrupted, launch it again with the same form, or re-execute the run, to go on.
        """
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        launchpad = Launchpad(
            location_name=resource.location_name or location_of(context), job_name=rollback_job_name
        )
        yield dg.Output(None, metadata=_reset(context, config, resource, launchpad))

    return build_form_job(reset_offsets, ResetOffsetsConfig, name=name, kind="reset_offsets", priority=10)


def _reset(
    context: dg.OpExecutionContext,
    config: ResetOffsetsConfig,
    resource: KafkaBackupResource,
    rollback: Launchpad,
) -> Metadata:
    with as_failure(), resource.engine() as engine:
        planned = run_interruptibly(lambda stop: engine.groups.plan_reset(config.request(), stop=stop))
        _refuse_problems(planned.plan)
        if planned.is_continued:
            context.log.info(f"goes on with reset {planned.plan.reset_id}, which was interrupted")
        if config.mode == "dry_run":
            return DRY_RUN | _plan_metadata(planned)
        report = run_interruptibly(lambda stop: engine.groups.reset(planned.plan, stop=stop))
    return _report_metadata(report, rollback)


def _refuse_problems(plan: "ResetPlan") -> None:
    if plan.problems:
        refuse(
            "the reset is refused",
            [problem.detail for problem in plan.problems],
            {"kafka_backup/positions": _plan_table(plan)},
        )


def _plan_metadata(planned: "PlannedReset") -> Metadata:
    plan = planned.plan
    positions = [position for group in plan.groups for position in group.positions]
    shown: Metadata = {}
    if planned.is_continued:
        shown["kafka_backup/continues"] = dg.MetadataValue.text(plan.reset_id)
    return shown | {
        "kafka_backup/positions": _plan_table(plan),
        "kafka_backup/group_count": dg.MetadataValue.int(len(plan.groups)),
        "kafka_backup/position_count": dg.MetadataValue.int(len(positions)),
        "kafka_backup/to_change": dg.MetadataValue.int(
            sum(position.before != position.offset for position in positions)
        ),
        "kafka_backup/clamped": dg.MetadataValue.int(
            sum(position.clamped_from is not None for position in positions)
        ),
        "kafka_backup/offsets_to_read": dg.MetadataValue.int(
            sum(position.remaining for position in positions)
        ),
    }


def _plan_table(plan: "ResetPlan") -> dg.TableMetadataValue:
    return moves_table(
        (group.group, position.topic, position.partition, position.before, position.offset)
        for group in plan.groups
        for position in group.positions
    )


def _report_metadata(report: "ResetReport", rollback: Launchpad) -> Metadata:
    shown: Metadata = {}
    if report.reset_id is not None:
        form = {"reset_id": report.reset_id, "mode": "dry_run"}
        shown["kafka_backup/rollback"] = launchpad_link("Roll this back", rollback, form)
        shown["kafka_backup/reset_id"] = dg.MetadataValue.text(report.reset_id)
    shown["kafka_backup/status"] = dg.MetadataValue.text(report.status)
    return shown | results_metadata(report.results, "not all positions are where they should be", shown)


reset_offsets_job = build_reset_offsets_job()
