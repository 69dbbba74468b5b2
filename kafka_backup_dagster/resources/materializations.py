"""What became of a capture, as Dagster's events: one materialization for each asset that is safe."""

from collections.abc import Iterator, Sequence, Set
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
    reset_link,
    restore_link,
    table,
    timestamp,
)
from kafka_backup_dagster.resources.capture import CaptureOutcome, Selected, TopicOutcome, failure_line

if TYPE_CHECKING:
    from kafka_backup.progress import CaptureFinished, GroupSnapshotTaken

_SUMS = ("kafka_backup/raw_bytes", "kafka_backup/stored_bytes", "kafka_backup/seconds")
_TOPIC_COLUMNS = ("records", "raw_bytes", "stored_bytes", "commit", "lost")
_TRANSACTION_COLUMNS = ("topic", "partition", "producer_id", "first_offset", "held_back")


def materializations(
    context: dg.AssetExecutionContext,
    asked: Selected,
    outcome: CaptureOutcome,
    *,
    restore: Launchpad,
    reset: Launchpad,
) -> Iterator[dg.MaterializeResult[None]]:
    """Yield a materialization for each asset that is safe, then fail if one is not.

    `restore` and `reset` are where its links lead.

    Raises:
        Failure: naming everything that was not saved, lost offsets, or gave no result. It allows
            retries if one of the causes may go away.
    """
    from kafka_backup.progress import GroupFailed, TopicFailed
    from kafka_backup.selection import TopicSelection

    failed = {failure.topic for failure in outcome.failures if isinstance(failure, TopicFailed)}
    has_groups = not any(isinstance(failure, GroupFailed) for failure in outcome.failures)
    reported = _reported_before(context)
    silent = []
    for key, topics in asked.topics.items():
        selection = TopicSelection.parse(topics.filters, topics.exclude)
        if any(selection.includes(topic) for topic in failed):
            continue
        mine = [found for name, found in sorted(outcome.topics.items()) if selection.includes(name)]
        if topics.exact is not None and not mine:
            silent.append(key)
            continue
        if key in reported and not any(topic.changed for topic in mine):
            continue
        yield _topics_result(context, key, topics, mine, outcome, launchpad=restore)
    if asked.groups is not None and has_groups:
        if outcome.groups is not None:
            yield groups_result(context, asked.groups, outcome.groups, launchpad=reset)
        elif outcome.finished.status == "held":
            yield _held_groups(context, asked.groups, outcome.finished)
        else:
            silent.append(asked.groups)
    _fail_if_incomplete(outcome, silent)


def _reported_before(context: dg.AssetExecutionContext) -> Set[dg.AssetKey]:
    """Return what earlier attempts of this step have materialized.

    That stands: a second event of what is unchanged since would show no records.
    """
    if context.retry_number == 0:
        return frozenset()
    entries = context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = (entry.dagster_event for entry in entries)
    return {event.asset_key for event in events if event is not None and event.asset_key is not None}


def _records_key(context: dg.AssetExecutionContext, key: dg.AssetKey, counted: Sequence[str] = ()) -> str:
    """Say under which key rows are counted; of a range of windows only the newest one counts.

    A range run is one capture, and all its windows would get the same metadata.

    Args:
        context: of the run.
        key: of the asset.
        counted: other metadata of the capture that is a sum over windows.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        return "dagster/row_count"
    newest = context.partition_keys[-1]
    for partition_key in context.partition_keys[:-1]:
        context.add_asset_metadata(
            {
                "kafka_backup/status": f"held by the capture of window {newest}, in the same run",
                **dict.fromkeys(("dagster/partition_row_count", *counted), 0),
            },
            asset_key=key,
            partition_key=partition_key,
        )
    return "dagster/partition_row_count"


def _topics_result(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    topics: AssetTopics,
    found: Sequence[TopicOutcome],
    outcome: CaptureOutcome,
    *,
    launchpad: Launchpad,
) -> dg.MaterializeResult[None]:
    records = dg.MetadataValue.int(sum(topic.records for topic in found))
    shown = (
        _losses(found)
        | _way_back(outcome.finished, found, name=key.path[-1], launchpad=launchpad)
        | {_records_key(context, key, _SUMS): records}
        | _numbers(outcome, found)
        | (_topics_metadata(found) if topics.exact is None else _topic_metadata(found[0]))
        | _open_transactions(found)
    )
    return dg.MaterializeResult(
        asset_key=key, metadata=shown, data_version=dg.DataVersion(_data_version(found))
    )


def groups_result(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    taken: "GroupSnapshotTaken",
    *,
    launchpad: Launchpad,
) -> dg.MaterializeResult[None]:
    """Return the materialization of a snapshot of consumer groups."""
    return dg.MaterializeResult(
        asset_key=key,
        metadata={
            "kafka_backup/reset": reset_link(launchpad, snapshot=taken.snapshot),
            _records_key(context, key): dg.MetadataValue.int(taken.positions),
            "kafka_backup/groups": dg.MetadataValue.int(taken.groups),
            "kafka_backup/positions": dg.MetadataValue.int(taken.positions),
            "kafka_backup/snapshot": dg.MetadataValue.text(taken.snapshot),
            "kafka_backup/seconds": dg.MetadataValue.float(round(taken.seconds, 3)),
            "dagster/uri": dg.MetadataValue.text(taken.object_uri),
        },
        data_version=dg.DataVersion(taken.snapshot),
    )


def _held_groups(
    context: dg.AssetExecutionContext, key: dg.AssetKey, finished: "CaptureFinished"
) -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(
        asset_key=key,
        metadata={_records_key(context, key): 0, "kafka_backup/status": _held(finished)},
        data_version=dg.DataVersion(finished.capture),
    )


def _data_version(topics: Sequence[TopicOutcome]) -> str:
    """The commit's SHA-256; for several topics, one over their ids and commits."""
    if len(topics) == 1 and not topics[0].is_gone:
        return topics[0].head_sha256
    return sha256("".join(f"{topic.topic_id} {topic.head_sha256}\n" for topic in topics).encode()).hexdigest()


def _losses(topics: Sequence[TopicOutcome]) -> Metadata:
    """What comes first, in red, if there is any."""
    lines = _loss_lines(topics)
    count = sum(span.end - span.start for topic in topics for span in topic.lost)
    if not lines:
        return {}
    return {"kafka_backup/LOST": red_lines(f"{count:,} offsets that no reader can get any more", lines)}


def _held(finished: "CaptureFinished") -> str:
    return f"held by capture {finished.capture}, which began after the window's end; nothing was done"


def _way_back(
    finished: "CaptureFinished", topics: Sequence[TopicOutcome], *, name: str, launchpad: Launchpad
) -> Metadata:
    """The link to the restore, and whether there was anything to save."""
    there = [topic.topic for topic in topics if not topic.is_gone]
    if finished.status == "held":
        status = _held(finished)
    elif not topics:
        status = "no topic matches that has no asset of its own"
    elif not there:
        status = "gone from the cluster, as was accepted; what is captured stays"
    else:
        status = "committed" if any(topic.changed for topic in topics) else "unchanged"
    shown: Metadata = {"kafka_backup/status": dg.MetadataValue.text(status)}
    if recreated := [topic for topic in topics if topic.previous_topic_id is not None]:
        shown["kafka_backup/recreated"] = dg.MetadataValue.md(
            "\n".join(
                f"* {topic.topic} was deleted and made again; its id was {topic.previous_topic_id}"
                for topic in recreated
            )
        )
    if not there:
        return shown
    link = restore_link(launchpad, capture=finished.capture, name=name, topics=there)
    return {"kafka_backup/restore": link} | shown


def _numbers(outcome: CaptureOutcome, topics: Sequence[TopicOutcome]) -> Metadata:
    """What is the same for one topic and for many, and worth a plot."""
    finished = outcome.finished
    raw_bytes = sum(topic.raw_bytes for topic in topics)
    seconds = max((topic.seconds for topic in topics), default=0.0)
    shown: Metadata = {"kafka_backup/recovery_point": timestamp(finished.recovery_point)}
    before = [outcome.points_before[each.topic] for each in topics if each.topic in outcome.points_before]
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
    shown: Metadata = {"kafka_backup/topic_id": dg.MetadataValue.text(topic.topic_id)}
    if not topic.is_gone:
        shown["kafka_backup/commit"] = dg.MetadataValue.int(topic.head)
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


def _open_transactions(topics: Sequence[TopicOutcome]) -> Metadata:
    """Transactions without an end: what they hold back is in no capture, and its readers wait too."""
    found = [transaction for topic in topics for transaction in topic.transactions]
    if not found:
        return {}
    held_back = {(each.topic, each.partition): each.held_back for each in found}
    return {
        "kafka_backup/held_back": dg.MetadataValue.int(sum(held_back.values())),
        "kafka_backup/open_transactions": table(
            [{name: getattr(each, name) for name in _TRANSACTION_COLUMNS} for each in found],
            {"topic": "string"} | dict.fromkeys(_TRANSACTION_COLUMNS[1:], "integer"),
        ),
    }


def _loss_lines(topics: Sequence[TopicOutcome]) -> list[str]:
    return [
        f"{topic.topic} [{span.partition}]: offsets {span.start} to {span.end} (exclusive), {span.reason}"
        for topic in topics
        for span in topic.lost
    ]


def _fail_if_incomplete(outcome: CaptureOutcome, silent: Sequence[dg.AssetKey]) -> None:
    lost = _loss_lines(list(outcome.topics.values()))
    lines = [
        *(f"not saved: {failure_line(failure)}" for failure in outcome.failures),
        *(f"lost: {line}" for line in lost),
        *(f"no result: {key.to_user_string()} (does the configuration leave it out?)" for key in silent),
    ]
    if not lines and outcome.finished.status not in ("complete", "held"):
        lines = [f"the capture is {outcome.finished.status}"]
    if not lines:
        return
    raise dg.Failure(
        description=(
            f"capture {outcome.finished.capture} is not complete; everything else is safe\n"
            + "\n".join(lines)
        ),
        metadata={
            "kafka_backup/capture": outcome.finished.capture,
            "kafka_backup/failures": red_lines("Not complete", lines),
        },
        allow_retries=any(failure.error.retriable for failure in outcome.failures),
    )
