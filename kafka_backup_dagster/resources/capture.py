"""One capture: the topics that a run asks for, and what became of each."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from kafka_backup_dagster.assets.specs import AssetTopics, group_filters_of
from kafka_backup_dagster.errors import at_place

if TYPE_CHECKING:
    from kafka_backup import Engine, RecoveryPoint, StopToken, Window
    from kafka_backup.progress import (
        BackupEvent,
        BackupProgress,
        CaptureFinished,
        GroupFailed,
        GroupSnapshotTaken,
        PartitionResult,
        TopicCommitted,
        TopicFailed,
        TopicUnchanged,
        TransactionOpen,
    )

LOG_SECONDS = 10.0
"""Progress is logged no more often: each line costs Dagster milliseconds, and a row for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostOffsets:
    """Offsets ``[start, end)`` that readers of the topic do not get any more, and why."""

    partition: int
    start: int
    end: int
    reason: str


@dataclass(slots=True, kw_only=True)
class TopicOutcome:
    """What a capture did with one topic; a large topic is committed in several pieces.

    Attributes:
        head: number of the commit that holds its state, and `head_sha256` its SHA-256.
        changed: whether this capture committed something.
        uri: where that commit is; None where nothing changed.
        seconds: from the first fetch to the last commit.
        partitions: what was captured of each, by number.
        transactions: those that hold records back from this capture.
        previous_topic_id: of the topic of this name that was deleted since the capture before.
        is_gone: the topic was deleted, and somebody accepted that.
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
    transactions: Sequence["TransactionOpen"] = ()
    previous_topic_id: str | None = None
    is_gone: bool = False

    @property
    def lost(self) -> Sequence[LostOffsets]:
        """Everything that was lost, or cut off the log after it had been captured."""
        return [
            LostOffsets(partition=part.partition, start=start, end=end, reason=reason)
            for part in self.partitions.values()
            for start, end, reason in _spans(part)
        ]

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


def _spans(part: "PartitionResult") -> Iterator[tuple[int, int, str]]:
    for span in part.lost_spans:
        yield span.start, span.end, span.reason
    if part.truncated is not None:
        yield (
            part.truncated.start,
            part.truncated.end,
            "cut off by an unclean leader election; earlier captures hold them",
        )


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
        groups: the snapshot of consumer groups; None where none was taken.
    """

    finished: "CaptureFinished"
    topics: Mapping[str, TopicOutcome]
    failures: Sequence["TopicFailed | GroupFailed"]
    points_before: Mapping[str, int]
    groups: "GroupSnapshotTaken | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What a run is asked for.

    Attributes:
        topics: the topics behind each asset, sorted by key.
        groups: the asset of the consumer groups, and `group_filters` its filters; None where it is
            not asked for.
    """

    topics: Mapping[dg.AssetKey, AssetTopics]
    groups: dg.AssetKey | None
    group_filters: tuple[str, ...]

    def filters(self, *, excluded: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Return the filters to take and to leave out, for one capture of all these assets.

        A topic with an asset of its own is left out of the patterns, unless that asset is wanted too.

        Args:
            excluded: filters that the configuration leaves out anyway.
        """
        include = dict.fromkeys(text for topics in self.topics.values() for text in topics.filters)
        leave_out = dict.fromkeys(text for topics in self.topics.values() for text in topics.exclude)
        return list(include), [*excluded, *(text for text in leave_out if text not in include)]


def selected(context: dg.AssetExecutionContext) -> Selected:
    """Return what this run is asked for.

    Raises:
        DagsterInvariantViolationError: this is not an asset, or not one of this package.
    """
    if not context.has_assets_def:
        raise dg.DagsterInvariantViolationError(
            "KafkaBackupResource.run needs the context of assets made by @kafka_backup_assets; in an op, use "
            "`with kafka_backup.engine() as engine: ...`"
        )
    metadata = context.assets_def.metadata_by_key
    keys = {key: metadata.get(key, {}) for key in sorted(context.selected_asset_keys)}
    groups = [(key, filters) for key in keys if (filters := group_filters_of(keys[key])) is not None]
    return Selected(
        topics={
            key: AssetTopics.of(found, asset_key=key)
            for key, found in keys.items()
            if group_filters_of(found) is None
        },
        groups=groups[0][0] if groups else None,
        group_filters=groups[0][1] if groups else (),
    )


def window_of(context: dg.AssetExecutionContext) -> "Window | None":
    """Return the span of all partitions of this run in ms, None for assets without windows."""
    from kafka_backup.repository.documents import Window

    is_windowed = isinstance(context.assets_def.partitions_def, dg.TimeWindowPartitionsDefinition)
    if not is_windowed or not (context.has_partition_key or context.has_partition_key_range):
        return None
    span = context.partition_time_window
    return Window(start=round(span.start.timestamp() * 1000), end=round(span.end.timestamp() * 1000))


class _Capture:
    """Collects the events of one capture."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self.topics: dict[str, TopicOutcome] = {}
        self.failures: list[TopicFailed | GroupFailed] = []
        self.groups: GroupSnapshotTaken | None = None
        self.finished: CaptureFinished | None = None
        self._previous_ids: dict[str, str] = {}
        self._transactions: dict[str, list[TransactionOpen]] = defaultdict(list)
        self._log = log
        self._logged = time.monotonic()

    def add(self, event: "BackupEvent") -> None:
        """Take in an event. There is none that may be overlooked."""
        from kafka_backup import progress

        match event:
            case progress.TopicCommitted():
                self._topic(event).add(event)
            case progress.TopicUnchanged():
                self._topic(event)
            case progress.TopicMissing():
                self._log.warning(f"{event.topic} is gone, as was accepted; what is captured of it stays")
                self.topics[event.topic] = TopicOutcome(
                    topic=event.topic, topic_id=event.topic_id, head=-1, head_sha256="", is_gone=True
                )
            case progress.TopicRecreated():
                self._log.warning(
                    f"{event.topic} was deleted and made again: its id was {event.previous_topic_id}, now it is "
                    f"{event.topic_id}; what is captured of the old one stays"
                )
                self._previous_ids[event.topic] = event.previous_topic_id
            case progress.TopicFailed() | progress.GroupFailed():
                self.failures.append(event)
                self._log.error(failure_line(event))
            case progress.TransactionOpen():
                self._transactions[event.topic].append(event)
            case progress.GroupSnapshotTaken():
                self.groups = event
            case progress.BackupProgress():
                if time.monotonic() - self._logged >= LOG_SECONDS:
                    self._logged = time.monotonic()
                    self._log.info(_progress_line(event))
            case progress.CaptureFinished():
                self.finished = event
            case _:
                raise dg.DagsterInvariantViolationError(
                    f"an event of a capture that is not known here: {event}"
                )

    def _topic(self, event: "TopicCommitted | TopicUnchanged") -> TopicOutcome:
        found = self.topics.setdefault(
            event.topic,
            TopicOutcome(
                topic=event.topic,
                topic_id=event.topic_id,
                head=event.commit,
                head_sha256=event.commit_sha256,
                previous_topic_id=self._previous_ids.get(event.topic),
            ),
        )
        found.transactions = self._transactions[event.topic]
        return found


def run_capture(
    engine: "Engine", filters: Sequence[str], *, window: "Window | None", log: dg.DagsterLogManager
) -> CaptureOutcome:
    """Run one capture to its end and say what came of it.

    The engine waits in short slices, so Dagster's interrupt is raised inside its iterator; closing
    the iterator stops and joins the engine's threads, with nothing half-committed.

    Raises:
        KafkaBackupError: the capture as a whole failed.
    """
    capture = _Capture(log)
    with closing(engine.backup(filters, window=window)) as events:
        for event in events:
            capture.add(event)
    finished = capture.finished
    if finished is None:
        raise dg.DagsterInvariantViolationError("the capture ended without saying how: a bug in kafka_backup")
    topics = capture.topics
    points: Mapping[str, RecoveryPoint] = {}
    if finished.status == "held":
        topics = _held_topics(engine, finished.capture)
    else:
        points = engine.recovery_points(topics, before=finished.capture)
    return CaptureOutcome(
        finished=finished,
        topics=topics,
        failures=capture.failures,
        points_before={topic: point.time for topic, point in points.items()},
        groups=capture.groups,
    )


def take_groups(engine: "Engine", *, stop: "StopToken") -> "GroupSnapshotTaken":
    """Save the positions of the configured consumer groups, without a capture.

    Raises:
        Failure: naming every group that could not be read.
        KafkaBackupError: none could.
    """
    from kafka_backup.progress import GroupSnapshotTaken
    from kafka_backup.repository import layout

    began = time.monotonic()
    taken = engine.groups.snapshot(stop=stop)
    snapshot = taken.snapshot
    lines = [f"consumer group {name}: {error}" for name, error in sorted(taken.errors.items())]
    if lines := [*lines, *snapshot.incomplete]:
        raise dg.Failure(
            description=f"snapshot {snapshot.snapshot_id} is not complete\n" + "\n".join(lines),
            metadata={"kafka_backup/snapshot": snapshot.snapshot_id},
            allow_retries=any(error.retriable for error in taken.errors.values()),
        )
    key = layout.group_snapshot_key(snapshot.snapshot_id)
    return GroupSnapshotTaken(
        capture="",
        snapshot=snapshot.snapshot_id,
        groups=len(snapshot.groups),
        positions=sum(len(group.positions) for group in snapshot.groups),
        object_uri=f"{engine.repository().store.url}/{key}",
        seconds=time.monotonic() - began,
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
        return f"consumer group {failure.group}: {failure.error}" if failure.group else f"{failure.error}"
    place = failure.topic if failure.partition is None else f"{failure.topic} [{failure.partition}]"
    return at_place(place, str(failure.error))


def _progress_line(event: "BackupProgress") -> str:
    rate = event.raw_bytes / event.seconds / 1e6 if event.seconds else 0.0
    return f"{event.topic}: {event.offsets_done:,} of {event.offsets_total:,} offsets, {rate:.1f} MB/s"
