"""What materializations show: numbers, tables of offsets, and the way back.

Keys that Dagster knows (``dagster/...``) are used where they fit, so that it plots them; all others
are in the namespace ``kafka_backup/``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import dagster as dg
import yaml

from kafka_backup_dagster.errors import at_place, in_words_of_forms

if TYPE_CHECKING:
    from kafka_backup.progress import PartitionResult
    from kafka_backup.repository.restore_documents import Finding, RestoredTopic, RestorePlan, RestoreReport

MAX_ROWS = 100
"""Rows of one table; every one is stored with the event, in each window."""
MAX_LINKED_TOPICS = 50
RESTORE_JOB, RESET_JOB, ROLLBACK_JOB = "restore", "reset_offsets", "rollback_offsets"
DEFAULT_LOCATION = "kafka_backup"
"""The code location's name in workspace.yaml."""

Metadata = dict[str, dg.MetadataValue]
Row = Mapping[str, str | int | float | bool]


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> dg.TableMetadataValue:
    """Return rows as a table, cut at `MAX_ROWS`; `columns` are names with Dagster's column types."""
    return dg.MetadataValue.table(
        records=[dg.TableRecord(dict(row)) for row in rows[:MAX_ROWS]],
        schema=dg.TableSchema(
            columns=[dg.TableColumn(name=name, type=kind) for name, kind in columns.items()]
        ),
    )


def partitions_table(partitions: Sequence["PartitionResult"]) -> dg.TableMetadataValue:
    """Return the captured offset ranges ``[start, end)`` with their ledgers, busiest partitions first."""
    columns = ("partition", "start", "end", "records", "control", "aborted", "compacted", "lost")
    busiest = sorted(partitions, key=lambda part: (part.start - part.end, part.partition))[:MAX_ROWS]
    return table(
        [
            {name: getattr(part, name) for name in columns}
            for part in sorted(busiest, key=lambda part: part.partition)
        ],
        dict.fromkeys(columns, "integer"),
    )


def mb_per_second(raw_bytes: int, seconds: float) -> dg.FloatMetadataValue:
    """Return a rate in MB/s (10^6 bytes), 0 where nothing took no time."""
    return dg.MetadataValue.float(round(raw_bytes / seconds / 1e6, 3) if seconds > 0 else 0.0)


def timestamp(milliseconds: int) -> dg.TimestampMetadataValue:
    """Return a time in ms since the epoch as Dagster shows it."""
    return dg.MetadataValue.timestamp(milliseconds / 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launchpad:
    """Where a form is launched: the code location that has the job, and the job's name."""

    location_name: str
    job_name: str = RESTORE_JOB


def launchpad_link(text: str, launchpad: Launchpad, form: Mapping[str, object]) -> dg.MarkdownMetadataValue:
    """Return a link that opens a job's Launchpad with its form filled in."""
    config = yaml.safe_dump(dict(form), sort_keys=False)
    path = f"/locations/{quote(launchpad.location_name, safe='@')}/jobs/{launchpad.job_name}/playground/setup"
    return dg.MetadataValue.md(f"[{text}]({path}?config={quote(config, safe='')})")


def restore_link(
    launchpad: Launchpad, *, capture: str, name: str, topics: Sequence[str]
) -> dg.MarkdownMetadataValue:
    """Return a link that opens the restore job's Launchpad, filled in for one capture.

    It is filled in so that launching it at once changes nothing: a dry run under new names.

    Args:
        launchpad: where it leads.
        capture: the capture to go back to.
        name: what is restored, for the restore id.
        topics: exact names; the filter list of the form stays empty above `MAX_LINKED_TOPICS`.
    """
    config = {
        "restore_id": f"{capture}-{name}"[:120],
        "mode": "dry_run",
        "topics": list(topics) if len(topics) <= MAX_LINKED_TOPICS else [],
        "prefix": "restored-",
        "capture": capture,
    }
    return launchpad_link("Restore to this point", launchpad, config)


def reset_link(launchpad: Launchpad, *, snapshot: str) -> dg.MarkdownMetadataValue:
    """Return a link that opens the Launchpad of the reset job, filled in for one group snapshot.

    Launching it at once changes nothing: it is a dry run.
    """
    form = {"groups": ["*"], "mode": "dry_run", "snapshot": snapshot}
    return launchpad_link("Reset groups to this point", launchpad, form)


def red_lines(heading: str, lines: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Return a heading and lines in red: Dagster's pages show no colour but that of a diff."""
    return dg.MetadataValue.md(
        f"**{heading}**\n\n```diff\n" + "\n".join(f"- {line}" for line in lines) + "\n```"
    )


def location_of(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> str:
    """Return the name of the code location that launched this run, as far as Dagster says."""
    origin = context.run.remote_job_origin
    return DEFAULT_LOCATION if origin is None else origin.location_name


def plan_metadata(plan: "RestorePlan") -> Metadata:
    """Return what a restore will do, as people want to read it before they say yes."""
    rows: list[Row] = [
        {
            "source": topic.source,
            "target": topic.target,
            "partitions": len(topic.partitions),
            "records": sum(part.records for part in topic.partitions),
            "raw_mb": round(sum(part.raw_bytes for part in topic.partitions) / 1e6, 3),
            "batches": sum(part.batches for part in topic.partitions),
            "reencoded_batches": sum(part.reencoded_batches for part in topic.partitions),
            "commit": topic.head,
        }
        for topic in plan.topics
    ]
    columns = dict.fromkeys(rows[0] if rows else (), "integer") | {
        "source": "string",
        "target": "string",
        "raw_mb": "float",
    }
    shown: Metadata = {}
    if plan.problems:
        shown["kafka_backup/problems"] = red_lines(
            "Refused: nothing was changed", problem_lines(plan.problems)
        )
    return shown | {
        "kafka_backup/restore_id": dg.MetadataValue.text(plan.request.restore_id),
        "kafka_backup/target_cluster": dg.MetadataValue.text(plan.target_cluster_id),
        "kafka_backup/topics": table(rows, columns),
        "kafka_backup/records": dg.MetadataValue.int(
            sum(part.records for topic in plan.topics for part in topic.partitions)
        ),
        "kafka_backup/raw_bytes": dg.MetadataValue.int(
            sum(part.raw_bytes for topic in plan.topics for part in topic.partitions)
        ),
        "kafka_backup/configuration": dg.MetadataValue.json(
            {topic.target: dict(topic.configuration) for topic in plan.topics}
        ),
        "kafka_backup/not_applied": dg.MetadataValue.json(
            {topic.target: dict(topic.not_applied) for topic in plan.topics if topic.not_applied}
        ),
    }


def problem_lines(problems: Iterable["Finding"]) -> list[str]:
    """Return one line for each problem, with its place."""
    lines = []
    for problem in problems:
        place = problem.topic or ""
        if problem.partition is not None:
            place += f" [{problem.partition}]"
        lines.append(at_place(place, in_words_of_forms(problem.detail)))
    return lines


def report_metadata(report: "RestoreReport") -> Metadata:
    """Return what a restore did, all topics together."""
    raw_bytes = sum(part.raw_bytes for topic in report.topics for part in topic.partitions)
    return {
        "kafka_backup/status": dg.MetadataValue.text(report.status),
        "kafka_backup/restore_id": dg.MetadataValue.text(report.restore_id),
        "kafka_backup/attempt": dg.MetadataValue.int(report.attempt),
        "kafka_backup/target_cluster": dg.MetadataValue.text(report.target_cluster_id),
        "kafka_backup/topics": table(
            [
                {
                    "source": topic.source,
                    "target": topic.target,
                    "partitions": len(topic.partitions),
                    "records": sum(part.records for part in topic.partitions),
                    "verified": all(part.verified for part in topic.partitions),
                }
                for topic in report.topics
            ],
            {
                "source": "string",
                "target": "string",
                "partitions": "integer",
                "records": "integer",
                "verified": "bool",
            },
        ),
        "kafka_backup/records": dg.MetadataValue.int(
            sum(part.records for topic in report.topics for part in topic.partitions)
        ),
        "kafka_backup/raw_bytes": dg.MetadataValue.int(raw_bytes),
        "kafka_backup/seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        "kafka_backup/mb_per_second": mb_per_second(raw_bytes, report.seconds),
    }


def restored_topic_metadata(topic: "RestoredTopic", report: "RestoreReport") -> Metadata:
    """Return what a restore did for one topic: the proof, partition by partition."""
    columns = ("partition", "target_start", "target_end", "records", "fast_batches", "slow_batches")
    return {
        "dagster/row_count": dg.MetadataValue.int(sum(part.records for part in topic.partitions)),
        "kafka_backup/restore_id": dg.MetadataValue.text(report.restore_id),
        "kafka_backup/attempt": dg.MetadataValue.int(report.attempt),
        "kafka_backup/source_topic": dg.MetadataValue.text(topic.source),
        "kafka_backup/target_topic": dg.MetadataValue.text(topic.target),
        "kafka_backup/target_cluster": dg.MetadataValue.text(report.target_cluster_id),
        "kafka_backup/target_topic_id": dg.MetadataValue.text(topic.target_topic_id),
        "kafka_backup/raw_bytes": dg.MetadataValue.int(sum(part.raw_bytes for part in topic.partitions)),
        "kafka_backup/partitions": table(
            [
                {name: getattr(part, name) for name in columns} | {"verified": part.verified}
                for part in topic.partitions
            ],
            dict.fromkeys(columns, "integer") | {"verified": "bool"},
        ),
        "kafka_backup/retention_held": dg.MetadataValue.bool(topic.retention_held),
        "kafka_backup/not_applied": dg.MetadataValue.json(dict(topic.not_applied)),
    }
