"""The restore job: a flat form in the Launchpad, a dry run unless told otherwise."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from kafka_backup_dagster.assets.translator import restored_topic_key
from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.jobs.forms import (
    DRY_RUN,
    RenameConfig,
    build_form_job,
    check_filters,
    milliseconds,
    refuse_bad_form,
    rename_rules,
    sentences,
)
from kafka_backup_dagster.jobs.moves import moves_table
from kafka_backup_dagster.jobs.progress import ProgressLog
from kafka_backup_dagster.metadata import (
    RESTORE_JOB,
    Metadata,
    Row,
    plan_metadata,
    problem_lines,
    report_metadata,
    restored_topic_metadata,
    table,
)
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup import Engine, RestoreLimits, RestorePlan, RestoreReport, RestoreRequest


class RestoreConfig(dg.Config):
    """What to restore, under which names, up to which moment.

    Launch it once as it is: the dry run says what would happen, and everything that forbids it.
    Then launch it again with mode execute and the same restore_id.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    restore_id: str = Field(
        description=(
            "Name of this restore. The same id with the same request goes on where it stopped, with another "
            "request it is refused."
        )
    )
    mode: Literal["dry_run", "execute"] = Field(
        default="dry_run", description="dry_run changes nothing and shows the plan; execute carries it out."
    )
    topics: list[str] = Field(
        default=[],
        description="Exact names, wildcards (app_*) or /regular expressions/; empty: every topic there is.",
    )
    partitions: list[int] = Field(default=[], description="Only these partitions; empty: all.")
    rename: list[RenameConfig] = Field(
        default=[], description="The first rule that matches a topic's whole name gives its new name."
    )
    prefix: str = Field(default="", description="Put before the (renamed) name of each restored topic.")
    from_time: str | None = Field(
        default=None,
        description=(
            "Take records of this time or later: 2026-01-31T12:00:00Z, 2026-01-31T13:00:00+01:00, "
            'or milliseconds in quotes: "1769860800000".'
        ),
    )
    until_time: str | None = Field(
        default=None, description="Take records of this time or earlier; written as from_time."
    )
    capture: str | None = Field(
        default=None, description="Restore the state as of this capture; by default the newest."
    )
    incarnation: str | None = Field(
        default=None, description="The topic id to restore, where a topic was deleted and made again."
    )
    groups: list[str] = Field(
        default=[],
        description=(
            "Put the positions of these consumer groups where their records went, once all is verified: exact "
            "names, wildcards or /regular expressions/. They are those of the capture, or the newest not later "
            "than until_time. Empty: no group is moved."
        ),
    )
    rename_groups: list[RenameConfig] = Field(
        default=[], description="The first rule that matches a group's whole name gives its new name."
    )
    replication_factor: int | None = Field(
        default=None, description="Of the topics that are made; by default as in the source."
    )
    original_offset_header: bool = Field(
        default=False,
        description="Give each record the header x-original-offset; the records are other ones then.",
    )
    original_timestamp_header: bool = Field(
        default=False,
        description="Give each record the header x-original-timestamp; the records are other ones then.",
    )
    replace: bool = Field(
        default=False,
        description=(
            "In place: a target that holds records is captured to its end, deleted, and made anew. "
            "Nothing may write into it meanwhile."
        ),
    )
    skip_damaged: bool = Field(
        default=False,
        description=(
            "Leave damaged segments out. The run fails all the same, and says which source offsets are missing."
        ),
    )
    max_bytes_per_second: int | None = Field(
        default=None, ge=1, description="Write no faster than this, all partitions together, nor read back."
    )
    max_records_per_second: int | None = Field(
        default=None, ge=1, description="Write no faster than this, all partitions together."
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> "RestoreConfig":
        refuse_bad_form(self.request)
        return self

    def request(self) -> "RestoreRequest":
        """Return the engine's request.

        Raises:
            ValueError: a value is wrong; the message names it.
        """
        from kafka_backup.repository.restore_documents import RestoreRequest

        check_filters(topics=self.topics, groups=self.groups)
        if self.rename_groups and not self.groups:
            raise ValueError("rename_groups: there are no groups to rename; name them in groups")
        if self.skip_damaged and self.replace:
            raise ValueError("skip_damaged does not go with replace")
        if any(partition < 0 for partition in self.partitions):
            raise ValueError(f"partitions: {self.partitions} has a negative number")
        from_ms, until_ms = (
            milliseconds("from_time", self.from_time),
            milliseconds("until_time", self.until_time),
        )
        if from_ms is not None and until_ms is not None and from_ms > until_ms:
            raise ValueError(f"from_time {self.from_time} is after until_time {self.until_time}")
        with sentences():
            return RestoreRequest(
                restore_id=self.restore_id,
                topics=tuple(self.topics),
                partitions=tuple(self.partitions),
                rename=rename_rules(self.rename),
                prefix=self.prefix,
                from_ms=from_ms,
                until_ms=until_ms,
                capture=self.capture,
                incarnation=self.incarnation,
                groups=tuple(self.groups),
                rename_groups=rename_rules(self.rename_groups, "rename_groups"),
                replication_factor=self.replication_factor,
                original_offset_header=self.original_offset_header,
                original_timestamp_header=self.original_timestamp_header,
                replace=self.replace,
            )

    def limits(self) -> "RestoreLimits":
        """Return how fast the engine may go."""
        from kafka_backup.restore_context import RestoreLimits

        return RestoreLimits(
            max_bytes_per_second=self.max_bytes_per_second,
            max_records_per_second=self.max_records_per_second,
        )


def build_restore_job(
    *, name: str = RESTORE_JOB, cluster_name: str = "default", resource_key: str = "kafka_backup"
) -> dg.JobDefinition:
    """Make a restore job for one cluster.

    Args:
        name: of the job; where it is another one, tell the resource (``restore_job_name``).
        cluster_name: as in the assets: restored topics are materialized below their backups, as
            ``kafka_restored/<cluster>/<source topic>``.
        resource_key: of the `KafkaBackupResource`.
    """

    @dg.op(
        name=f"{name}_topics",
        out=dg.Out(dg.Nothing),
        tags={"kafka_backup/kind": "restore"},
        required_resource_keys={resource_key},
    )
    def restore_topics(
        context: dg.OpExecutionContext, config: RestoreConfig
    ) -> Iterator[dg.AssetMaterialization | dg.Output[None]]:
        """Restore topics from the repository, verify them, and report. A dry run by default.

        Terminating it stops cleanly; executing it again with the same restore_id goes on.
        """
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        yield from _restore(context, config, resource, cluster_name)

    return build_form_job(restore_topics, RestoreConfig, name=name, kind="restore", priority=10)


def _restore(
    context: dg.OpExecutionContext, config: RestoreConfig, resource: KafkaBackupResource, cluster_name: str
) -> Iterator[dg.AssetMaterialization | dg.Output[None]]:
    with as_failure(), resource.engine() as engine:
        plan = run_interruptibly(
            lambda _: engine.plan_restore(config.request(), skip_damaged=config.skip_damaged)
        )
        context.log.info(_plan_lines(plan, config))
        _refuse_problems(plan, config)
        if config.mode == "dry_run":
            yield dg.Output(None, metadata=DRY_RUN | plan_metadata(plan) | _planned_moves(plan, config))
            return
        report = _execute(context, config, engine, plan)
    for topic in report.topics:
        yield dg.AssetMaterialization(
            asset_key=restored_topic_key(cluster_name, topic.source),
            description=f"Topic {topic.target}, restored and verified by restore {report.restore_id}.",
            metadata=restored_topic_metadata(topic, report),
        )
    yield dg.Output(None, metadata=report_metadata(report) | _moves(report))


def _execute(
    context: dg.OpExecutionContext, config: RestoreConfig, engine: "Engine", plan: "RestorePlan"
) -> "RestoreReport":
    progress = ProgressLog(context.log)
    return whole(
        run_interruptibly(
            lambda stop: engine.restore(
                plan,
                limits=config.limits(),
                skip_damaged=config.skip_damaged,
                stop=stop,
                on_progress=progress.restore,
            ),
            on_slice=progress.log_when_due,
        )
    )


def whole(report: "RestoreReport") -> "RestoreReport":
    """Return a report, unless damaged data was left out: then the run fails, and says what is missing."""
    if missing := report.missing():
        raise dg.Failure(
            description=f"restore {report.restore_id} is {report.status}:\n" + "\n".join(missing),
            metadata=report_metadata(report),
            allow_retries=False,
        )
    return report


def _refuse_problems(plan: "RestorePlan", config: RestoreConfig) -> None:
    if plan.problems:
        lines = problem_lines(plan.problems)
        raise dg.Failure(
            description=f"restore {plan.request.restore_id} is refused, nothing was changed:\n"
            + "\n".join(lines),
            metadata=plan_metadata(plan) | _planned_moves(plan, config),
            allow_retries=False,
        )


def _planned_moves(plan: "RestorePlan", config: RestoreConfig) -> Metadata:
    """Return where the positions of consumer groups will go; what only the records tell is left open."""
    if plan.groups is None:
        return {}
    bounded = _is_bounded(config)
    rows: list[Row] = [
        {
            "group": move.group,
            "source": move.source_topic,
            "partition": move.partition,
            "source_offset": move.source_offset,
            "target": move.topic,
            "target_offset": "by its records" if move.offset is None else str(move.offset),
            "to_read": ("at most " if bounded or move.offset is None else "") + str(move.remaining),
        }
        for move in plan.moves(skip_damaged=config.skip_damaged)
    ]
    columns = dict.fromkeys(("group", "source", "target", "target_offset", "to_read"), "string") | {
        "partition": "integer",
        "source_offset": "integer",
    }
    return {
        "kafka_backup/group_snapshot": dg.MetadataValue.text(plan.groups.snapshot_id),
        "kafka_backup/positions": table(rows, columns),
    }


def _moves(report: "RestoreReport") -> Metadata:
    if report.groups is None:
        return {}
    moved: Metadata = {
        "kafka_backup/group_snapshot": dg.MetadataValue.text(report.groups.snapshot_id),
        "kafka_backup/positions": moves_table(
            (each.group, each.topic, each.partition, each.before, each.after)
            for each in report.groups.positions
        ),
    }
    if report.groups.reset_id is not None:
        moved["kafka_backup/reset_id"] = dg.MetadataValue.text(report.groups.reset_id)
    return moved


def _is_bounded(config: RestoreConfig) -> bool:
    """Whether a plan knows only how many records it is at most: of bounds of time, or of damage to be left out."""
    return config.skip_damaged or config.from_time is not None or config.until_time is not None


def _plan_lines(plan: "RestorePlan", config: RestoreConfig) -> str:
    lines = [f"restore {plan.request.restore_id} into cluster {plan.target_cluster_id}:"]
    for topic in plan.topics:
        records = sum(part.records for part in topic.partitions)
        raw_bytes = sum(part.raw_bytes for part in topic.partitions)
        bound = "at most " if _is_bounded(config) else ""
        lines.append(
            f"{topic.source} -> {topic.target}: {len(topic.partitions)} partitions, {bound}{records:,} "
            f"records, {raw_bytes / 1e6:.1f} MB"
        )
    if plan.groups is not None:
        lines.append(
            f"positions of group snapshot {plan.groups.snapshot_id}: {len(plan.groups.moves)} are moved"
        )
    return "\n".join(lines)


restore_job = build_restore_job()
