"""What became of a capture, as Dagster's events: one materialization for each asset that is safe."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.assets.specs import AssetTopics
from kafka_backup_dagster.metadata import (
    MAX_ROWS,
    Launchpad,
    Metadata,
    mb_per_second,
    partitions_table,
    red_lines,
    restore_link,
    table,
    timestamp,
)
from kafka_backup_dagster.resources.capture import CaptureOutcome, TopicOutcome, failure_line

if TYPE_CHECKING:
    from kafka_backup.progress import CaptureFinished

_TOPIC_COLUMNS = ("records", "raw_bytes", "stored_bytes", "commit", "lost")


def materializations(
    context: dg.AssetExecutionContext,
    assets: Mapping[dg.AssetKey, AssetTopics],
    outcome: CaptureOutcome,
    *,
    launchpad: Launchpad,
) -> Iterator[dg.MaterializeResult[None]]:
    """Yield a materialization for each asset whose topics are all safe, then fail if one is not.

    Raises:
        Failure: naming every topic that was not saved, lost offsets, or gave no result. It allows
            retries if one of the causes may go away.
    """
    from kafka_backup.progress import TopicFailed
    from kafka_backup.selection import TopicSelection

    failed = {failure.topic for failure in outcome.failures if isinstance(failure, TopicFailed)}
    silent = []
    for key, topics in assets.items():
        selection = TopicSelection.parse(topics.filters, topics.exclude)
        if any(selection.includes(topic) for topic in failed):
            continue
        mine = [found for name, found in sorted(outcome.topics.items()) if selection.includes(name)]
        is_exact = topics.exact is not None
        if is_exact and not mine:
            silent.append(key)
            continue
        yield _result(context, key, mine, outcome, is_exact=is_exact, launchpad=launchpad)
    _fail_if_incomplete(outcome, silent)


def _result(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    topics: Sequence[TopicOutcome],
    outcome: CaptureOutcome,
    *,
    is_exact: bool,
    launchpad: Launchpad,
) -> dg.MaterializeResult[None]:
    is_partitioned = context.has_partition_key or context.has_partition_key_range
    records_key = "dagster/partition_row_count" if is_partitioned else "dagster/row_count"
    if is_partitioned:
        # A range run is one capture: its records count once, for the newest window.
        newest = context.partition_keys[-1]
        for partition_key in context.partition_keys[:-1]:
            context.add_asset_metadata(
                {
                    records_key: 0,
                    "kafka_backup/status": f"held by the capture of window {newest}, in the same run",
                },
                asset_key=key,
                partition_key=partition_key,
            )
    records = dg.MetadataValue.int(sum(topic.records for topic in topics))
    shown = (
        _losses(topics)
        | _way_back(outcome.finished, topics, name=key.path[-1], launchpad=launchpad)
        | {records_key: records}
        | _numbers(outcome, topics)
        | (_topic_metadata(topics[0]) if is_exact else _topics_metadata(topics))
    )
    return dg.MaterializeResult(
        asset_key=key, metadata=shown, data_version=dg.DataVersion(_data_version(topics))
    )


def _data_version(topics: Sequence[TopicOutcome]) -> str:
    """The commit's SHA-256; for several topics, one over their ids and commits."""
    if len(topics) == 1:
        return topics[0].head_sha256
    return sha256("".join(f"{topic.topic_id} {topic.head_sha256}\n" for topic in topics).encode()).hexdigest()


def _losses(topics: Sequence[TopicOutcome]) -> Metadata:
    """What comes first, in red, if there is any."""
    lines = _loss_lines(topics)
    count = sum(span.end - span.start for topic in topics for _, span in topic.lost)
    return (
        {"kafka_backup/LOST": red_lines(f"{count:,} offsets that no reader can get any more", lines)}
        if lines
        else {}
    )


def _way_back(
    finished: "CaptureFinished", topics: Sequence[TopicOutcome], *, name: str, launchpad: Launchpad
) -> Metadata:
    """The link to the restore, and whether there was anything to save."""
    if finished.status == "held":
        status = f"held by capture {finished.capture}, which began after the window's end; nothing was done"
    else:
        status = "committed" if any(topic.changed for topic in topics) else "unchanged"
    return {
        "kafka_backup/restore": restore_link(
            launchpad, capture=finished.capture, name=name, topics=[topic.topic for topic in topics]
        ),
        "kafka_backup/status": dg.MetadataValue.text(status),
    }


def _numbers(outcome: CaptureOutcome, topics: Sequence[TopicOutcome]) -> Metadata:
    """What is the same for one topic and for many, and worth a plot."""
    finished = outcome.finished
    raw_bytes = sum(topic.raw_bytes for topic in topics)
    seconds = max((topic.seconds for topic in topics), default=0.0)
    shown: Metadata = {"kafka_backup/recovery_point": timestamp(finished.recovery_point)}
    before = [
        outcome.points_before[name] for topic in topics if (name := topic.topic) in outcome.points_before
    ]
    if before:
        shown["kafka_backup/recovery_point_seconds"] = dg.MetadataValue.float(
            (finished.recovery_point - min(before)) / 1000
        )
    return shown | {
        "kafka_backup/raw_bytes": dg.MetadataValue.int(raw_bytes),
        "kafka_backup/stored_bytes": dg.MetadataValue.int(sum(topic.stored_bytes for topic in topics)),
        "kafka_backup/mb_per_second": mb_per_second(raw_bytes, seconds),
        "kafka_backup/seconds": dg.MetadataValue.float(round(seconds, 3)),
        "kafka_backup/capture": dg.MetadataValue.text(finished.capture),
    }


def _topic_metadata(topic: TopicOutcome) -> Metadata:
    """Details of one topic: its commit, and the ranges and ledgers of its partitions."""
    shown: Metadata = {
        "kafka_backup/commit": dg.MetadataValue.int(topic.head),
        "kafka_backup/topic_id": dg.MetadataValue.text(topic.topic_id),
    }
    if topic.changed:
        shown["kafka_backup/segments"] = dg.MetadataValue.int(topic.segments)
        shown["kafka_backup/partitions"] = partitions_table(list(topic.partitions.values()))
    if topic.uri is not None:
        shown["dagster/uri"] = dg.MetadataValue.text(topic.uri)
    return shown


def _topics_metadata(topics: Sequence[TopicOutcome]) -> Metadata:
    """Details of the topics that patterns matched, the largest first."""
    largest = sorted(topics, key=lambda topic: (-topic.raw_bytes, topic.topic))[:MAX_ROWS]
    return {
        "kafka_backup/topic_count": dg.MetadataValue.int(len(topics)),
        "kafka_backup/topics": table(
            [
                {
                    "topic": topic.topic,
                    "records": topic.records,
                    "raw_bytes": topic.raw_bytes,
                    "stored_bytes": topic.stored_bytes,
                    "commit": topic.head,
                    "lost": sum(part.lost for part in topic.partitions.values()),
                }
                for topic in largest
            ],
            {"topic": "string"} | dict.fromkeys(_TOPIC_COLUMNS, "integer"),
        ),
    }


def _loss_lines(topics: Sequence[TopicOutcome]) -> list[str]:
    return [
        f"{topic.topic} [{partition}]: offsets {span.start} to {span.end} (exclusive), {span.reason}"
        for topic in topics
        for partition, span in topic.lost
    ] + [
        f"{topic.topic} [{part.partition}]: an unclean leader election cut the log back to offset "
        f"{part.truncated.start}; up to {part.truncated.end} only earlier captures hold what was there"
        for topic in topics
        for part in topic.partitions.values()
        if part.truncated is not None
    ]


def _fail_if_incomplete(outcome: CaptureOutcome, silent: Sequence[dg.AssetKey]) -> None:
    lost = _loss_lines(list(outcome.topics.values()))
    lines = [
        *(f"not saved: {failure_line(failure)}" for failure in outcome.failures),
        *(f"lost: {line}" for line in lost),
        *(["offsets were lost"] if outcome.finished.status == "lossy" and not lost else []),
        *(f"no result: {key.to_user_string()} (does backup.exclude leave its topic out?)" for key in silent),
    ]
    if not lines:
        return
    raise dg.Failure(
        description=(
            f"capture {outcome.finished.capture} is not complete; all other topics are safe\n"
            + "\n".join(lines)
        ),
        metadata={
            "kafka_backup/capture": outcome.finished.capture,
            "kafka_backup/failures": dg.MetadataValue.md("\n".join(f"* {line}" for line in lines)),
        },
        allow_retries=any(failure.error.retriable for failure in outcome.failures),
    )
