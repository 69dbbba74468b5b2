"""The JSON documents of the command line, made from what the engine returns.

Times are RFC 3339 in UTC, offsets and counts integers, ranges half-open, sizes bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kafka_backup.cli.session import (
    EXIT_BUG,
    EXIT_DAMAGED,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_REQUEST,
    EXIT_UNREACHABLE,
    kind_of,
)
from kafka_backup.errors import KafkaBackupError, TopicMissingError
from kafka_backup.progress import (
    BackupNews,
    CaptureFinished,
    GroupFailed,
    GroupSnapshotTaken,
    PartitionResult,
    TopicCommitted,
    TopicFailed,
    TopicMissing,
    TopicRecreated,
    TopicUnchanged,
    TransactionOpen,
)
from kafka_backup.repository.commit_log import CommitLog
from kafka_backup.repository.documents import (
    Capture,
    Commit,
    Expiry,
    LostSpan,
    OffsetSpan,
    PartitionRange,
    Window,
)
from kafka_backup.repository.layout import report_page_key
from kafka_backup.times import format_time

if TYPE_CHECKING:
    from kafka_backup.losses import Loss
    from kafka_backup.offset_mapping import OffsetMap
    from kafka_backup.repository.restore_documents import (
        PlannedMove,
        PlannedTopic,
        RestoredTopic,
        RestorePlan,
        RestoreReport,
    )
    from kafka_backup.verify import VerifyReport

Document = dict[str, Any]

_WORST_FIRST = (EXIT_BUG, EXIT_DAMAGED, EXIT_REFUSED, EXIT_REQUEST, EXIT_UNREACHABLE)
"""Of several failures the one decides that must not be missed. Unreachable comes last: its exit code
says that the same command may succeed later, which is true only if nothing else is wrong."""
_COUNTS = ("records", "control", "aborted", "compacted", "lost")
_SIZES = ("records", "stored_bytes", "raw_bytes", "segments")


def worst_of(codes: Iterable[int]) -> int:
    """Return the exit code for several failures: the one that must not be missed; 0 for none."""
    given = set(codes)
    return next((code for code in _WORST_FIRST if code in given), EXIT_OK)


def _window(window: Window | None) -> Document | None:
    if window is None:
        return None
    return {"start": format_time(window.start), "end": format_time(window.end)}


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_time(milliseconds)


def _lost_spans(spans: Iterable[LostSpan]) -> list[Document]:
    return [{"start": span.start, "end": span.end, "reason": span.reason} for span in spans]


def _span(span: OffsetSpan | None) -> Document | None:
    return None if span is None else {"start": span.start, "end": span.end}


class CaptureAnswer:
    """The answer to ``backup``, which grows with each event of the capture."""

    def __init__(self) -> None:
        self._topics: dict[str, Document] = {}
        self._groups: Document | None = None
        self._failures: list[Document] = []
        self._transactions: list[Document] = []
        self._codes: set[int] = set()
        self._capture: str | None = None
        self._finished: CaptureFinished | None = None

    def add(self, event: BackupNews) -> None:
        """Take in an event. Several commits of one topic become one entry with one joined range."""
        self._capture = event.capture
        match event:
            case TopicCommitted():
                self._add_commit(event)
            case TopicUnchanged():
                topic = self._topic(event.topic, event.topic_id)
                topic |= {"status": "unchanged", "commit": event.commit}
            case GroupSnapshotTaken():
                self._groups = {
                    "snapshot": event.snapshot,
                    "groups": event.groups,
                    "positions": event.positions,
                }
            case GroupFailed():
                self._fail(event.error, group=event.group)
            case TopicFailed():
                missing = isinstance(event.error, TopicMissingError)
                self._topic(event.topic, None)["status"] = "missing" if missing else "failed"
                self._fail(event.error, topic=event.topic, partition=event.partition)
            case TopicMissing():
                self._topic(event.topic, event.topic_id)["status"] = "missing"
            case TopicRecreated():
                topic = self._topic(event.topic, event.topic_id)
                topic["previous_topic_id"] = event.previous_topic_id
            case TransactionOpen():
                age = max(0.0, time.time() - event.opened_at / 1000)
                self._transactions.append(
                    {
                        "topic": event.topic,
                        "partition": event.partition,
                        "producer_id": event.producer_id,
                        "producer_epoch": event.producer_epoch,
                        "first_offset": event.first_offset,
                        "opened_at": format_time(event.opened_at),
                        "age_seconds": round(age, 3),
                        "held_back": event.held_back,
                    }
                )
            case CaptureFinished():
                self._finished = event

    def _fail(
        self,
        error: KafkaBackupError,
        *,
        topic: str | None = None,
        partition: int | None = None,
        group: str | None = None,
    ) -> None:
        self._codes.add(error.exit_code)
        self._failures.append(
            {
                "topic": topic,
                "partition": partition,
                "group": group,
                "kind": kind_of(error),
                "message": str(error),
            }
        )

    def _topic(self, name: str, topic_id: str | None) -> Document:
        topic = self._topics.setdefault(
            name,
            {
                "topic": name,
                "topic_id": topic_id,
                "status": "committed",
                "previous_topic_id": None,
                "commit": None,
                **dict.fromkeys(_SIZES, 0),
                "partitions": [],
            },
        )
        topic["topic_id"] = topic_id or topic["topic_id"]
        return topic

    def _add_commit(self, event: TopicCommitted) -> None:
        topic = self._topic(event.topic, event.topic_id)
        topic["commit"] = event.commit
        for size in _SIZES:
            topic[size] += getattr(event, size)
        known = {entry["partition"]: entry for entry in topic["partitions"]}
        for part in event.partitions:
            if (entry := known.get(part.partition)) is None:
                known[part.partition] = _partition_result(part)
                continue
            entry["end"] = part.end
            for count in _COUNTS:
                entry[count] += getattr(part, count)
            entry["lost_spans"] += _lost_spans(part.lost_spans)
            entry["truncated"] = _span(part.truncated) or entry["truncated"]
            entry["not_captured"] = _span(part.not_captured) or entry["not_captured"]
        topic["partitions"] = [known[partition] for partition in sorted(known)]

    @property
    def exit_code(self) -> int:
        """0 only if all that was asked for is in the repository."""
        lost = any(
            part["lost"] or part["truncated"]
            for topic in self._topics.values()
            for part in topic["partitions"]
        )
        codes = self._codes | ({EXIT_DAMAGED} if lost else set())
        if worst := worst_of(codes):
            return worst
        status = self._finished and self._finished.status
        return {"complete": EXIT_OK, "held": EXIT_OK, "lossy": EXIT_DAMAGED}.get(status or "", EXIT_BUG)

    @property
    def document(self) -> Document:
        """What is known so far."""
        finished = self._finished
        return {
            "capture": self._capture,
            "status": finished and finished.status,
            "window": finished and _window(finished.window),
            "recovery_point": finished and format_time(finished.recovery_point),
            "groups": self._groups,
            "topics": [self._topics[name] for name in sorted(self._topics)],
            "open_transactions": self._transactions,
            "failures": self._failures,
            "seconds": finished and round(finished.seconds, 3),
        }


def failure_line(failure: Document) -> str:
    """Say a failure of a capture with its place; the message may name the place already."""
    place = ""
    if failure["topic"] is not None:
        place = failure["topic"] + ("" if failure["partition"] is None else f" [{failure['partition']}]")
    elif failure["group"] is not None:
        place = f"group {failure['group']!r}"
    message = str(failure["message"])
    return message if not place or message.startswith(place) else f"{place}: {message}"


def _partition_result(part: PartitionResult) -> Document:
    return {
        "partition": part.partition,
        "start": part.start,
        "end": part.end,
        **{count: getattr(part, count) for count in _COUNTS},
        "lost_spans": _lost_spans(part.lost_spans),
        "truncated": _span(part.truncated),
        "not_captured": _span(part.not_captured),
    }


def captures(
    found: Sequence[Capture], topics: Sequence[tuple[str, str]], expiries: Sequence[Expiry]
) -> Document:
    """Return the answer to ``list``: captures, newest last, and the topics with their incarnations."""
    gone = {capture_id for expiry in expiries for capture_id in expiry.captures}
    incarnations: dict[str, list[str]] = {}
    for topic, topic_id in topics:
        incarnations.setdefault(topic, []).append(topic_id)
    return {
        "status": "ok",
        "captures": [
            {
                "capture": capture.capture_id,
                "status": capture.status,
                "expired": capture.capture_id in gone,
                "started_at": format_time(capture.started_at),
                "ended_at": format_time(capture.ended_at),
                "window": _window(capture.window),
                "topics": len(capture.topics),
                "changed": sum(topic.changed for topic in capture.topics),
                "failures": [failure.model_dump() for failure in capture.failures],
            }
            for capture in found
        ],
        "topics": [{"topic": topic, "topic_ids": ids} for topic, ids in sorted(incarnations.items())],
    }


def commits(topic: str, logs: Sequence[CommitLog]) -> Document:
    """Return the answer to ``show``: the commits of all incarnations of a topic."""
    return {
        "status": "ok",
        "topic": topic,
        "commits": [_commit(commit) for log in logs for commit in log.commits],
    }


def _commit(commit: Commit) -> Document:
    parts = commit.partitions
    return {
        "topic_id": commit.incarnation.topic_id,
        "commit": commit.number,
        "action": commit.action,
        "capture": commit.capture_id,
        "committed_at": format_time(commit.committed_at),
        "window": _window(commit.window),
        "partition_count": commit.incarnation.partition_count,
        "replication_factor": commit.incarnation.replication_factor,
        "configuration": {
            name: value.value
            for name, value in sorted(commit.incarnation.configuration.items())
            if value.source == "DYNAMIC_TOPIC_CONFIG"
        },
        **{count: sum(getattr(part.ledger, count) for part in parts) for count in _COUNTS},
        "segments": sum(len(part.segments) for part in parts),
        "expired": len(commit.expired),
        "swept": len(commit.swept),
        "stored_bytes": sum(segment.stored_size for part in parts for segment in part.segments),
        "raw_bytes": sum(segment.raw_size for part in parts for segment in part.segments),
        "partitions": [_partition_range(part) for part in parts],
    }


def _partition_range(part: PartitionRange) -> Document:
    return {
        "partition": part.partition,
        "start": part.start,
        "end": part.end,
        **{count: getattr(part.ledger, count) for count in _COUNTS},
        "lost_spans": _lost_spans(part.lost),
        "truncated_to": part.truncated_to,
        "not_captured": _span(part.not_captured),
        "segments": len(part.segments),
    }


def losses(found: Sequence[Loss]) -> Document:
    """Return the answer to ``losses list`` and ``losses accept``."""
    return {"status": "ok", "losses": [asdict(loss) for loss in found]}


def planned(plan: RestorePlan, *, skip_damaged: bool) -> Document:
    """Return the answer to ``restore`` without ``--execute``: what would be done.

    Args:
        plan: the plan.
        skip_damaged: damaged segments, not all of which are known yet, would be left out.
    """
    return {
        "restore_id": plan.request.restore_id,
        "status": "refused" if plan.problems else "planned",
        "topics": [_planned_topic(topic) for topic in plan.topics],
        "group_snapshot": None if plan.groups is None else plan.groups.snapshot_id,
        "group_snapshot_taken_at": _time(None if plan.groups is None else plan.groups.taken_at),
        "groups": [_planned_move(move) for move in plan.moves(skip_damaged=skip_damaged)],
        "problems": [problem.model_dump() for problem in plan.problems],
        "notes": [note.model_dump() for note in plan.notes],
        "steps": [step.model_dump() for step in plan.steps],
        "target_cluster": plan.target_cluster_id,
        "from": _time(plan.request.from_ms),
        "until": _time(plan.request.until_ms),
    }


def _planned_move(move: PlannedMove) -> Document:
    return {
        "group": move.group,
        "source_group": move.source_group,
        "topic": move.topic,
        "partition": move.partition,
        "source_topic": move.source_topic,
        "source_offset": move.source_offset,
        "before": None,
        "after": move.offset,
        "remaining": move.remaining,
        "clamped_from": move.source_offset if move.is_beyond else None,
        "error": None,
    }


def _planned_topic(topic: PlannedTopic) -> Document:
    return {
        "source": topic.source,
        "source_topic_id": topic.source_topic_id,
        "target": topic.target,
        "creates_target": topic.target_topic_id is None,
        "replaces": topic.replaces and topic.replaces.topic_id,
        "replication_factor": topic.replication_factor,
        "configuration": dict(topic.configuration),
        "not_applied": dict(topic.not_applied),
        "partitions": [
            {
                "partition": part.partition,
                "source_start": part.source_start,
                "source_end": part.source_end,
                "records": part.records,
                "raw_bytes": part.raw_bytes,
                "newest": _time(part.newest),
                "fast_batches": part.batches - part.reencoded_batches,
                "slow_batches": part.reencoded_batches,
                "target_start": part.initial_end,
                "target_end": None,
                "verified": False,
            }
            for part in topic.partitions
        ],
    }


def restored(report: RestoreReport) -> Document:
    """Return the answer to ``restore --execute``: what was done, and that it was verified."""
    return {
        "restore_id": report.restore_id,
        "status": report.status,
        "attempt": report.attempt,
        "topics": [_restored_topic(topic) for topic in report.topics],
        "group_snapshot": None if report.groups is None else report.groups.snapshot_id,
        "rollback": None if report.groups is None else report.groups.reset_id,
        "groups": [
            {**position.model_dump(), "error": None}
            for position in (report.groups.positions if report.groups is not None else ())
        ],
        "problems": [],
        "command": report.command,
        "page": report_page_key(report.restore_id, report.attempt),
        "seconds": round(report.seconds, 3),
    }


def _restored_topic(topic: RestoredTopic) -> Document:
    return {
        "source": topic.source,
        "target": topic.target,
        "target_topic_id": topic.target_topic_id,
        "replaced_topic_id": topic.replaced_topic_id,
        "configuration": dict(topic.configuration),
        "not_applied": dict(topic.not_applied),
        "retention_held": topic.retention_held,
        "partitions": [part.model_dump() for part in topic.partitions],
    }


def offsets(
    request: Mapping[str, Any], offset_map: OffsetMap, asked: Sequence[int], *, to_source: bool
) -> Document:
    """Return the answer to ``offset-map``.

    `exact` says whether that very record was restored, `missing` whether it was left out as damaged.
    Asked for the source of a target offset without a record, `source` is null.
    """
    found = []
    for offset in asked:
        source = offset_map.to_source(offset) if to_source else offset
        target = offset if to_source else offset_map.to_target(offset)
        exact = source is not None and offset_map.to_source(target) == source
        found.append(
            {
                "source": source,
                "target": target,
                "exact": exact,
                "missing": source is not None and offset_map.is_missing(source),
            }
        )
    return {"status": "ok", **request, "offsets": found}


def verified(report: VerifyReport) -> Document:
    """Return the answer to ``verify``."""
    return {
        "status": report.status,
        "level": report.level,
        "topics": report.topics,
        "commits": report.commits,
        "segments": report.segments,
        "records": report.records,
        "stored_bytes": report.stored_bytes,
        "problems": [
            {"kind": problem.kind, "object": problem.object, "detail": problem.detail}
            for problem in report.problems
        ],
        "seconds": round(report.seconds, 3),
    }
