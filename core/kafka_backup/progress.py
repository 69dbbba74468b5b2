"""What the engine tells its caller while it works, and how the caller tells it to stop.

Events are plain frozen values. The engine never prints: the command line draws bars from them,
Dagster turns them into materializations and log lines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kafka_backup.errors import CancelledError, KafkaBackupError
from kafka_backup.repository.documents import LostSpan, OffsetSpan, Window


class StopToken:
    """A request to stop, shared by all threads of one run. A child also stops with its parent."""

    def __init__(self, parent: StopToken | None = None) -> None:
        self._event = threading.Event()
        self._parent = parent

    def stop(self) -> None:
        """Ask the run to end at its next safe point; may be called from any thread."""
        self._event.set()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set() or (self._parent is not None and self._parent.stopped)

    def check(self) -> None:
        """Raise CancelledError if somebody asked to stop."""
        if self.stopped:
            raise CancelledError("stopped on request; what was committed before stays")

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, or raise CancelledError soon after somebody asks to stop."""
        deadline = Deadline(seconds)
        while not deadline.passed:
            self.check()
            self._event.wait(min(deadline.left, 0.2))
        self.check()


class Deadline:
    """A point in time after which a retried operation gives up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionResult:
    """One partition of a commit: offsets ``[start, end)`` and their ledger.

    Attributes:
        truncated: offsets that earlier captures hold and that are not in the log any more: an unclean
            leader election cut it back to the beginning of this span.
        not_captured: offsets below `start` that are left out, as the configuration's `start` says.
    """

    partition: int
    start: int
    end: int
    records: int
    control: int
    aborted: int
    compacted: int
    lost: int
    lost_spans: Sequence[LostSpan] = ()
    truncated: OffsetSpan | None = None
    not_captured: OffsetSpan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSnapshotTaken:
    """The positions of consumer groups are in the repository.

    Attributes:
        capture: the capture id.
        snapshot: the snapshot's id.
        groups: how many groups are in it, and `positions` how many positions they have.
        object_uri: where it is.
        seconds: that it took.
    """

    capture: str
    snapshot: str
    groups: int
    positions: int
    object_uri: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFailed:
    """The positions of a group could not be saved; with no group named, those of groups that we cannot see."""

    capture: str
    group: str | None
    error: KafkaBackupError


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicCommitted:
    """A commit exists from now on: everything in it can be restored.

    Attributes:
        capture: the capture id.
        commit: number of the commit in the topic's commit log, and its SHA-256.
        stored_bytes: bytes of its segment objects; `raw_bytes` of the record batches in them.
        object_uri: where the commit object is.
        seconds: since the capture began to fetch this topic.
    """

    capture: str
    topic: str
    topic_id: str
    commit: int
    commit_sha256: str
    records: int
    stored_bytes: int
    raw_bytes: int
    segments: int
    partitions: Sequence[PartitionResult]
    object_uri: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicUnchanged:
    """Nothing happened to the topic since commit `commit`, which also stands for this capture."""

    capture: str
    topic: str
    topic_id: str
    commit: int
    commit_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFailed:
    """The topic (or one of its partitions) stays at its old end; the others go on."""

    capture: str
    topic: str
    partition: int | None
    error: KafkaBackupError


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionOpen:
    """A transaction was open when the ends were asked; what lies behind its first record waits for it.

    Attributes:
        first_offset: of its first record in this partition.
        opened_at: that record's time, ms; where it could not be read, that of the producer's last one.
        held_back: offsets from the last stable offset to the high watermark, which no capture can
            take before all open transactions of the partition end.
    """

    capture: str
    topic: str
    partition: int
    producer_id: int
    producer_epoch: int
    first_offset: int
    opened_at: int
    held_back: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRecreated:
    """A topic has another id than its newest commit: it was deleted and made again, and begins anew.

    What was written after that commit and before the deletion is gone, as with any deletion.
    """

    capture: str
    topic: str
    topic_id: str
    previous_topic_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMissing:
    """A topic that was captured before is gone, and somebody accepted that. What is captured stays."""

    capture: str
    topic: str
    topic_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupProgress:
    """How far one topic of a running capture is. Offsets are counts over all its partitions.

    Attributes:
        records: kept by now; control and aborted records and gaps are offsets, not records.
        raw_bytes: of the record batches kept by now.
        seconds: since the capture began to fetch this topic.
    """

    capture: str
    topic: str
    offsets_done: int
    offsets_total: int
    records: int
    raw_bytes: int
    seconds: float

    @property
    def lag(self) -> int:
        """Offsets that are still to be read."""
        return self.offsets_total - self.offsets_done

    @property
    def bytes_per_second(self) -> float:
        """Of the record batches kept."""
        return self.raw_bytes / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureFinished:
    """The last event of every capture.

    Attributes:
        status: ``complete``; ``partial`` (a topic, partition or group failed); ``lossy`` (all that the
            brokers still had is saved, but offsets were lost, or a log was cut back); ``held`` (nothing was done: the
            window is held by capture `capture`, which began at or after its end).
        recovery_point: everything that was in Kafka before this time (ms) is in the repository.
    """

    capture: str
    status: Literal["complete", "partial", "lossy", "held"]
    window: Window | None
    recovery_point: int
    seconds: float


BackupNews = (
    GroupSnapshotTaken
    | GroupFailed
    | TopicCommitted
    | TopicUnchanged
    | TopicFailed
    | TopicMissing
    | TopicRecreated
    | TransactionOpen
    | CaptureFinished
)
"""What a capture comes to."""

BackupEvent = BackupNews | BackupProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyProgress:
    """How far a verification is, in topic `topic`.

    `segments` and `stored_bytes` were looked at so far; with the level ``data`` they were read.
    """

    topic: str
    topics_done: int
    topics_total: int
    segments: int
    stored_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreProgress:
    """How far one target topic of a running restore is."""

    phase: Literal["prepare", "produce", "verify", "configure"]
    source: str
    target: str
    records_done: int
    records_total: int
    raw_bytes: int
    seconds: float
