"""One capture: the topics that a run asks for, and what became of each."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.assets.specs import AssetTopics

if TYPE_CHECKING:
    from kafka_backup import Engine, RecoveryPoint, Window
    from kafka_backup.progress import (
        BackupProgress,
        CaptureFinished,
        GroupFailed,
        PartitionResult,
        TopicCommitted,
        TopicFailed,
    )
    from kafka_backup.repository.documents import LostSpan

LOG_SECONDS = 10.0
"""Progress is logged no more often: each line costs Dagster milliseconds, and a row for ever."""


@dataclass(slots=True, kw_only=True)
class TopicOutcome:
    """What a capture did with one topic; a large topic is committed in several pieces.

    Attributes:
        head: number of the commit that holds its state, and `head_sha256` its SHA-256.
        changed: whether this capture committed something.
        uri: where that commit is; None where nothing changed.
        seconds: from the first fetch to the last commit.
        partitions: what was captured of each, by number.
    """

    topic: str
    topic_id: str
    head: int
    head_sha256: str
    changed: bool = False
    records: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    segments: int = 0
    seconds: float = 0.0
    uri: str | None = None
    partitions: dict[int, "PartitionResult"] = field(default_factory=dict)

    @property
    def lost(self) -> Sequence[tuple[int, "LostSpan"]]:
        """Lost spans with their partitions."""
        return [(part.partition, span) for part in self.partitions.values() for span in part.lost_spans]

    def add(self, event: "TopicCommitted") -> None:
        """Take one more commit into account."""
        self.changed = True
        self.head, self.head_sha256, self.uri = event.commit, event.commit_sha256, event.object_uri
        self.records += event.records
        self.stored_bytes += event.stored_bytes
        self.raw_bytes += event.raw_bytes
        self.segments += event.segments
        self.seconds = event.seconds
        for part in event.partitions:
            known = self.partitions.get(part.partition)
            self.partitions[part.partition] = part if known is None else _joined(known, part)


def _joined(first: "PartitionResult", second: "PartitionResult") -> "PartitionResult":
    from kafka_backup.progress import PartitionResult

    return PartitionResult(
        partition=first.partition,
        start=first.start,
        end=second.end,
        records=first.records + second.records,
        control=first.control + second.control,
        aborted=first.aborted + second.aborted,
        compacted=first.compacted + second.compacted,
        lost=first.lost + second.lost,
        lost_spans=(*first.lost_spans, *second.lost_spans),
        truncated=second.truncated or first.truncated,
        not_captured=first.not_captured,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureOutcome:
    """What a capture did, all topics together.

    Attributes:
        points_before: the recovery point (ms) that each topic had before, if it had one.
    """

    finished: "CaptureFinished"
    topics: Mapping[str, TopicOutcome]
    failures: Sequence["TopicFailed | GroupFailed"]
    points_before: Mapping[str, int]


def selected_topics(context: dg.AssetExecutionContext) -> Mapping[dg.AssetKey, AssetTopics]:
    """Return the topics behind each asset that this run is asked for, sorted by key.

    Raises:
        DagsterInvariantViolationError: this is not an asset, or not one of this package.
    """
    if not context.has_assets_def:
        raise dg.DagsterInvariantViolationError(
            "KafkaBackupResource.run needs the context of assets made by @kafka_backup_assets; in an op, use "
            "`with kafka_backup.engine() as engine: ...`"
        )
    metadata = context.assets_def.metadata_by_key
    return {
        key: AssetTopics.of(metadata.get(key, {}), asset_key=key)
        for key in sorted(context.selected_asset_keys)
    }


def filters_of(
    assets: Mapping[dg.AssetKey, AssetTopics], *, excluded: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the filters to take and to leave out, for one capture of all these assets.

    A topic with an asset of its own is left out of the patterns, unless that asset is wanted too.

    Args:
        assets: the assets wanted and their topics.
        excluded: filters that the configuration leaves out anyway.
    """
    include = dict.fromkeys(text for topics in assets.values() for text in topics.filters)
    leave_out = dict.fromkeys(text for topics in assets.values() for text in topics.exclude)
    return list(include), [*excluded, *(text for text in leave_out if text not in include)]


def window_of(context: dg.AssetExecutionContext) -> "Window | None":
    """Return the span of all partitions of this run in ms, None for assets without windows."""
    from kafka_backup.repository.documents import Window

    is_windowed = isinstance(context.assets_def.partitions_def, dg.TimeWindowPartitionsDefinition)
    if not is_windowed or not (context.has_partition_key or context.has_partition_key_range):
        return None
    span = context.partition_time_window
    return Window(start=round(span.start.timestamp() * 1000), end=round(span.end.timestamp() * 1000))


def run_capture(
    engine: "Engine", filters: Sequence[str], *, window: "Window | None", log: dg.DagsterLogManager
) -> CaptureOutcome:
    """Run one capture to its end and say what came of it.

    The engine waits in short slices, so Dagster's interrupt is raised inside its iterator; closing
    the iterator stops and joins the engine's threads, with nothing half-committed.

    Raises:
        KafkaBackupError: the capture as a whole failed.
    """
    from kafka_backup.progress import (
        BackupProgress,
        CaptureFinished,
        GroupFailed,
        TopicCommitted,
        TopicFailed,
        TopicUnchanged,
    )

    topics: dict[str, TopicOutcome] = {}
    failures: list[TopicFailed | GroupFailed] = []
    finished: CaptureFinished | None = None
    logged = time.monotonic()
    with closing(engine.backup(filters, window=window)) as events:
        for event in events:
            match event:
                case TopicCommitted() | TopicUnchanged():
                    outcome = topics.setdefault(
                        event.topic,
                        TopicOutcome(
                            topic=event.topic,
                            topic_id=event.topic_id,
                            head=event.commit,
                            head_sha256=event.commit_sha256,
                        ),
                    )
                    if isinstance(event, TopicCommitted):
                        outcome.add(event)
                case TopicFailed() | GroupFailed():
                    failures.append(event)
                    log.error(failure_line(event))
                case BackupProgress():
                    if time.monotonic() - logged >= LOG_SECONDS:
                        logged = time.monotonic()
                        log.info(_progress_line(event))
                case CaptureFinished():
                    finished = event
    if finished is None:
        raise dg.DagsterInvariantViolationError("the capture ended without saying how: a bug in kafka_backup")
    points: Mapping[str, RecoveryPoint] = {}
    if finished.status == "held":
        topics = _held_topics(engine, finished.capture)
    else:
        points = engine.recovery_points(topics, before=finished.capture)
    return CaptureOutcome(
        finished=finished,
        topics=topics,
        failures=failures,
        points_before={topic: point.time for topic, point in points.items()},
    )


def _held_topics(engine: "Engine", capture: str) -> dict[str, TopicOutcome]:
    """The topics of an earlier capture, as it left them."""
    return {
        entry.topic: TopicOutcome(
            topic=entry.topic, topic_id=entry.topic_id, head=entry.head, head_sha256=entry.head_sha256
        )
        for entry in engine.repository().capture(capture).topics
    }


def failure_line(failure: "TopicFailed | GroupFailed") -> str:
    """Return a failure with its place; the engine's message may name it already."""
    from kafka_backup.progress import GroupFailed

    if isinstance(failure, GroupFailed):
        return f"consumer groups: {failure.error}"
    place = failure.topic if failure.partition is None else f"{failure.topic} [{failure.partition}]"
    message = str(failure.error)
    return message if message.startswith(place) else f"{place}: {message}"


def _progress_line(event: "BackupProgress") -> str:
    rate = event.raw_bytes / event.seconds / 1e6 if event.seconds else 0.0
    return f"{event.topic}: {event.offsets_done:,} of {event.offsets_total:,} offsets, {rate:.1f} MB/s"
