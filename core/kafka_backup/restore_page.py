"""A restore's report as a page that people read: Markdown, stored beside the JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from kafka_backup.repository.restore_documents import (
    RestoredPartition,
    RestoredTopic,
    RestorePlan,
    RestoreReport,
    RestoreRequest,
)
from kafka_backup.restore_context import RestoreLimits
from kafka_backup.times import format_time


def command_of(request: RestoreRequest, *, limits: RestoreLimits, skip_damaged: bool) -> str:
    """The command line that asks for the same; each option of the request is in it."""
    words = ["kafka-backup", "restore", "--id", request.restore_id]
    for name, values in (
        ("--topic", request.topics),
        ("--partition", request.partitions),
        ("--rename", [f"{rule.pattern}={rule.replacement}" for rule in request.rename]),
        ("--groups", request.groups),
        ("--rename-groups", [f"{rule.pattern}={rule.replacement}" for rule in request.rename_groups]),
    ):
        for value in values:
            words += (name, str(value))
    singles: Sequence[tuple[str, str | int | None]] = (
        ("--prefix", request.prefix or None),
        ("--from", _time(request.from_ms)),
        ("--until", _time(request.until_ms)),
        ("--capture", request.capture),
        ("--incarnation", request.incarnation),
        ("--replication-factor", request.replication_factor),
        ("--max-bytes-per-second", limits.max_bytes_per_second),
        ("--max-records-per-second", limits.max_records_per_second),
    )
    for name, single in singles:
        if single is not None:
            words += (name, str(single))
    for name, given in (
        ("--original-offset-header", request.original_offset_header),
        ("--original-timestamp-header", request.original_timestamp_header),
        ("--replace", request.replace),
        ("--skip-damaged", skip_damaged),
    ):
        if given:
            words.append(name)
    return shlex.join([*words, "--execute"])


def page_of(report: RestoreReport, plan: RestorePlan) -> str:
    """The page of a report and of the plan that it carried out."""
    return (
        "\n".join(
            [
                *_head(report, plan),
                *_topics(report),
                *_details(report, plan),
                *_groups(report),
                *_next(report),
            ]
        )
        + "\n"
    )


def _head(report: RestoreReport, plan: RestorePlan) -> Iterable[str]:
    yield f"# Restore {report.restore_id}: {report.status}"
    yield ""
    if report.status == "verified":
        yield "Every record that the plan takes was read back from the target and compared with the repository."
    else:
        yield "**Damaged segments were left out: source offsets are missing, see below.** All the rest was read back"
        yield "from the target and compared with the repository."
    yield ""
    yield f"* begun {_time(report.started_at)}, verified {_time(report.verified_at)}, ended {_time(report.ended_at)}: "
    yield f"  {report.seconds:.1f} s, attempt {report.attempt}"
    yield f"* into cluster `{report.target_cluster_id}`, from repository `{plan.repository_id}`"
    for word, bound in (("from", plan.request.from_ms), ("until", plan.request.until_ms)):
        if bound is not None:
            yield f"* records {word} {_time(bound)} (inclusive)"
    yield ""
    yield "The same again:"
    yield ""
    yield f"    {report.command}"
    yield ""


def _topics(report: RestoreReport) -> Iterable[str]:
    yield "## Topics"
    yield ""
    yield from _table(
        ("source", "target", "topic id", "records", "bytes", "written", "read back", "retention"),
        [
            (
                topic.source,
                topic.target,
                topic.target_topic_id
                + (f" (replaces {topic.replaced_topic_id})" if topic.replaced_topic_id else ""),
                f"{sum(part.records for part in topic.partitions):,}",
                f"{sum(part.raw_bytes for part in topic.partitions):,}",
                _rate(topic, "produce_seconds"),
                _rate(topic, "verify_seconds"),
                "held back" if topic.retention_held else "as saved",
            )
            for topic in report.topics
        ],
    )


def _details(report: RestoreReport, plan: RestorePlan) -> Iterable[str]:
    for topic in report.topics:
        yield f"## {topic.source} → {topic.target}"
        yield ""
        yield from _table(
            (
                "partition",
                "source offsets",
                "target offsets",
                "records",
                "oldest batch",
                "newest batch",
                "as stored",
                "built anew",
                "digest (SHA-256)",
            ),
            [_partition(part) for part in topic.partitions],
        )
        missing = [(part.partition, span) for part in topic.partitions for span in part.missing]
        if missing:
            yield "**Missing:**"
            yield ""
            for partition, span in missing:
                yield f"* partition {partition}: source offsets [{span.start}, {span.end}), up to {span.records:,} records: "
                yield f"  {span.damage}"
            yield ""
        settings = [(name, value, "yes") for name, value in sorted(topic.configuration.items())]
        settings += [(name, value, "**no**") for name, value in sorted(topic.not_applied.items())]
        if settings:
            yield from _table(("setting", "saved value", "applied"), settings)
    if plan.notes:
        yield "## To be seen"
        yield ""
        for note in plan.notes:
            place = f"{note.topic or ''}{'' if note.partition is None else f' [{note.partition}]'}"
            yield f"* {place}: {note.detail}" if place else f"* {note.detail}"
        yield ""


def _groups(report: RestoreReport) -> Iterable[str]:
    if report.groups is None:
        return
    yield f"## Consumer groups, from group snapshot {report.groups.snapshot_id}"
    yield ""
    yield from _table(
        ("group", "topic", "partition", "in the source", "before", "now", "to the end"),
        [
            (
                position.group,
                position.topic,
                str(position.partition),
                *(
                    "none" if offset is None else str(offset)
                    for offset in (position.source_offset, position.before, position.after)
                ),
                str(position.remaining),
            )
            for position in report.groups.positions
        ],
    )


def _next(report: RestoreReport) -> Iterable[str]:
    yield "## What can be done now"
    yield ""
    yield f"    kafka-backup verify --restore {report.restore_id}        # compare target and repository again"
    if any(topic.retention_held for topic in report.topics):
        yield f"    kafka-backup restore --release-retention {report.restore_id}   # let the saved retention delete old records"
    yield f"    kafka-backup offset-map --restore {report.restore_id} --topic T --partition N OFFSET   # where an offset went"


def _partition(part: RestoredPartition) -> Sequence[str]:
    return (
        str(part.partition),
        f"[{part.source_start}, {part.source_end})",
        f"[{part.target_start}, {part.target_end})",
        f"{part.records:,}",
        _time(part.oldest) or "",
        _time(part.newest) or "",
        f"{part.fast_batches:,}",
        f"{part.slow_batches:,}",
        f"`{part.digest}`",
    )


def _rate(topic: RestoredTopic, seconds: str) -> str:
    """Bytes per second; partitions work at the same time, so the slowest one's time counts."""
    longest = max((getattr(part, seconds) for part in topic.partitions), default=0.0)
    raw_bytes = sum(part.raw_bytes for part in topic.partitions)
    return f"{raw_bytes / longest / 1e6:.1f} MB/s" if longest else ""


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_time(milliseconds)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        # A "|" would end the cell.
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
    yield ""
