"""The verify job: proves a repository, or a restored topic, on demand."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import dagster as dg
from pydantic import ConfigDict, Field, model_validator

from kafka_backup_dagster.errors import as_failure
from kafka_backup_dagster.interrupts import run_interruptibly
from kafka_backup_dagster.jobs.forms import build_form_job, check_filters, identifier, refuse_bad_form
from kafka_backup_dagster.jobs.progress import ProgressLog
from kafka_backup_dagster.jobs.restore import whole
from kafka_backup_dagster.metadata import MAX_ROWS, Metadata, red_lines, report_metadata
from kafka_backup_dagster.resources.resource import KafkaBackupResource

if TYPE_CHECKING:
    from kafka_backup import VerifyReport

VERIFY_JOB = "verify"


class VerifyConfig(dg.Config):
    """What to prove: the repository, by default, or what a restore made."""

    model_config = ConfigDict(hide_input_in_errors=True)

    level: Literal["structure", "data"] = Field(
        default="structure",
        description="structure: every object is there and every ledger adds up; data: every byte is read, too.",
    )
    topics: list[str] = Field(
        default=[],
        description="Exact names, wildcards (app_*) or /regular expressions/; empty: all of the repository.",
    )
    restore_id: str | None = Field(
        default=None,
        description="Compare what this restore made with the repository again, batch by batch, instead.",
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> "VerifyConfig":
        def ask() -> None:
            check_filters(topics=self.topics)
            if self.restore_id is None:
                return
            identifier("restore_id", self.restore_id)
            if self.topics:
                raise ValueError("topics: a restore is verified as a whole; leave them out, or restore_id")

        refuse_bad_form(ask)
        return self


def build_verify_job(*, name: str = VERIFY_JOB, resource_key: str = "kafka_backup") -> dg.JobDefinition:
    """Make a verify job for one cluster.

    Args:
        name: of the job.
        resource_key: of the `KafkaBackupResource`.
    """

    @dg.op(
        name=f"{name}_repository",
        out=dg.Out(dg.Nothing),
        tags={"kafka_backup/kind": "verify"},
        required_resource_keys={resource_key},
    )
    def verify_repository(context: dg.OpExecutionContext, config: VerifyConfig) -> Iterator[dg.Output[None]]:
        """Prove that the repository is what its commits say, or that a restore is what it should be."""
        resource: KafkaBackupResource = getattr(context.resources, resource_key)
        yield dg.Output(None, metadata=_verify(config, resource, ProgressLog(context.log)))

    return build_form_job(verify_repository, VerifyConfig, name=name, kind="verify")


def _verify(config: VerifyConfig, resource: KafkaBackupResource, progress: ProgressLog) -> Metadata:
    with as_failure(), resource.engine() as engine:
        if (restore_id := config.restore_id) is not None:
            return report_metadata(
                whole(run_interruptibly(lambda stop: engine.verify_restore(restore_id, stop=stop)))
            )
        report = run_interruptibly(
            lambda stop: engine.verify(
                config.topics or None, level=config.level, stop=stop, on_progress=progress.verify
            ),
            on_slice=progress.log_when_due,
        )
    lines = [f"{problem.kind}: {problem.object}: {problem.detail}" for problem in report.problems]
    shown = _report(report, lines)
    if report.status != "ok":
        raise dg.Failure(
            description=f"the repository is {report.status}\n" + "\n".join(lines),
            metadata=shown,
            allow_retries=False,
        )
    return shown


def _report(report: "VerifyReport", problems: Sequence[str]) -> Metadata:
    shown: Metadata = {}
    if problems:
        shown["kafka_backup/problems"] = red_lines(f"{len(problems):,} problems", problems[:MAX_ROWS])
    return shown | {
        "kafka_backup/status": dg.MetadataValue.text(report.status),
        "kafka_backup/level": dg.MetadataValue.text(report.level),
        "kafka_backup/topic_count": dg.MetadataValue.int(report.topics),
        "kafka_backup/commits": dg.MetadataValue.int(report.commits),
        "kafka_backup/segments": dg.MetadataValue.int(report.segments),
        "kafka_backup/records": dg.MetadataValue.int(report.records),
        "kafka_backup/stored_bytes": dg.MetadataValue.int(report.stored_bytes),
        "kafka_backup/seconds": dg.MetadataValue.float(round(report.seconds, 3)),
    }


verify_job = build_verify_job()
