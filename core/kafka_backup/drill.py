"""Restore drills: prove that a restore works, and how long it takes, before it is needed.

A drill restores the newest capture, and an older one in turn, into scratch topics, verifies them as
every restore is verified, deletes them, and stores what it found. It takes topics in turn, too, up to
a number of bytes, so that each has its day and no drill takes all night.

Only topics that a drill has made are ever deleted: by the name and the topic id that its own restore
recorded. What a drill that was killed left behind, the next one clears away first.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kafka_backup.errors import CancelledError, ConfigurationError, KafkaBackupError, RefusedError
from kafka_backup.kafka.cluster import Cluster
from kafka_backup.kafka.topics import delete_topic
from kafka_backup.progress import RestoreProgress, StopToken
from kafka_backup.recovery_point import captured_topics
from kafka_backup.repository.documents import Capture
from kafka_backup.repository.drills import DrilledCapture, DrillReport, DrillStore
from kafka_backup.repository.restore_documents import (
    PlannedTopic,
    RenameRule,
    RestorePlan,
    RestoreRequest,
)
from kafka_backup.selection import TopicSelection
from kafka_backup.times import time_in_id

if TYPE_CHECKING:
    from kafka_backup.engine import Engine

DRILL_BYTES = 10 << 30
"""Raw bytes that a drill restores of each capture, unless told otherwise."""
_PREFIX = "drill-"
_MAX_TOPICS = 50
"""Topics of one capture in one drill: each has to be planned before its size is known."""


def run(
    engine: Engine,
    *,
    cluster: Cluster,
    selection: TopicSelection,
    max_raw_bytes: int,
    stop: StopToken,
    on_progress: Callable[[RestoreProgress], None] | None,
) -> DrillReport:
    """Run a drill; see `Engine.drill`. `cluster` is the one that restores write to."""
    drill = _Drill(
        engine,
        cluster=cluster,
        max_raw_bytes=max_raw_bytes,
        stop=stop,
        on_progress=on_progress,
    )
    drill.clear_away()
    return drill.run(selection)


class _Drill:
    """One drill, from the choice of captures to the report."""

    def __init__(
        self,
        engine: Engine,
        *,
        cluster: Cluster,
        max_raw_bytes: int,
        stop: StopToken,
        on_progress: Callable[[RestoreProgress], None] | None,
    ) -> None:
        self._started_at = time.time_ns() // 1_000_000
        self.id = f"{_PREFIX}{time_in_id(self._started_at)}-{secrets.token_hex(4)}"
        self._engine = engine
        self._cluster = cluster
        self._max_raw_bytes = max_raw_bytes
        self._stop = stop
        self._on_progress = on_progress
        self._repository = engine.repository()
        self._drills = DrillStore(self._repository.store)

    def clear_away(self) -> None:
        """Delete what drills without a clean end left behind.

        Raises:
            RefusedError: something is still there that cannot be deleted.
        """
        left = []
        for restore_id in self._drills.restore_ids():
            report = self._drills.report(restore_id.rpartition("-")[0])
            if report is None or report.left_behind:
                left += self._delete_targets(restore_id)
        if left:
            raise RefusedError(
                f"scratch topics of an earlier drill cannot be deleted: {'; '.join(left)}; delete them by hand"
            )

    def run(self, selection: TopicSelection) -> DrillReport:
        """Restore, verify and delete; then store the evidence."""
        captures = []
        left: list[str] = []
        for number, (capture, topics) in enumerate(self._choose(selection), 1):
            restore_id = f"{self.id}-{number}"
            try:
                captures.append(self._restore(restore_id, capture, topics))
            finally:
                left += self._delete_targets(restore_id)
        passed = not left and all(capture.problem is None for capture in captures)
        report = DrillReport(
            drill_id=self.id,
            nonce=secrets.token_hex(16),
            started_at=self._started_at,
            ended_at=time.time_ns() // 1_000_000,
            target_cluster_id=self._cluster.metadata([]).cluster_id,
            status="passed" if passed else "failed",
            captures=tuple(captures),
            left_behind=tuple(left),
        )
        self._drills.put(report)
        return report

    def _choose(self, selection: TopicSelection) -> Iterator[tuple[Capture, Sequence[str]]]:
        """Yield the newest capture of the topic whose turn it is, and an older one in turn."""
        names = captured_topics(self._repository, selection)
        if not names:
            raise ConfigurationError("no selected topic is captured yet; run a backup before a drill")
        turn = len(self._drills.ids())
        names = [*names[turn % len(names) :], *names[: turn % len(names)]]
        newest = next((each for each in self._repository.newest_captures() if names[0] in _whole(each)), None)
        if newest is None:
            raise ConfigurationError(
                f"topic {names[0]} was never captured whole; a drill would prove nothing"
            )
        yield newest, [name for name in names if name in _whole(newest)]
        gone = {capture for expiry in self._repository.expiries() for capture in expiry.captures}
        older = [
            capture_id
            for capture_id in self._repository.capture_ids()
            if capture_id < newest.capture_id and capture_id not in gone
        ]
        for capture_id in older[turn % len(older) :] if older else ():
            capture = self._repository.capture(capture_id)
            if found := [name for name in names if name in _whole(capture)]:
                yield capture, found
                return

    def _restore(self, restore_id: str, capture: Capture, topics: Sequence[str]) -> DrilledCapture:
        began = time.monotonic()
        problem = None
        names, records, raw_bytes = tuple(topics[:1]), 0, 0
        try:
            plan = self._plan(restore_id, capture, topics[:_MAX_TOPICS])
            names = tuple(topic.source for topic in plan.topics)
            raw_bytes = sum(_size(topic) for topic in plan.topics)
            report = self._engine.restore(plan, stop=self._stop, on_progress=self._on_progress)
            records = sum(part.records for topic in report.topics for part in topic.partitions)
        except CancelledError:
            raise
        except KafkaBackupError as error:
            problem = str(error)
        return DrilledCapture(
            restore_id=restore_id,
            capture=capture.capture_id,
            captured_at=capture.started_at,
            topics=names,
            records=records,
            raw_bytes=raw_bytes,
            seconds=round(time.monotonic() - began, 3),
            problem=problem,
        )

    def _plan(self, restore_id: str, capture: Capture, topics: Sequence[str]) -> RestorePlan:
        """Plan as many topics as fit into the bytes of a drill, and one at least.

        Raises:
            RefusedError: the plan has problems.
        """
        plan = self._engine.plan_restore(_request(restore_id, capture, topics))
        sizes = {topic.source: _size(topic) for topic in plan.topics}
        fitting: list[str] = []
        for name in topics:
            if fitting and sum(sizes.get(each, 0) for each in [*fitting, name]) > self._max_raw_bytes:
                break
            fitting.append(name)
        if len(fitting) < len(topics):
            plan = self._engine.plan_restore(_request(restore_id, capture, fitting))
        if plan.problems:
            raise RefusedError("; ".join(problem.detail for problem in plan.problems))
        return plan

    def _delete_targets(self, restore_id: str) -> list[str]:
        """Give a restore up, unless it is finished, and delete the topics that it made; say what stays."""
        folder = self._repository.restore_folder(restore_id)
        if folder.plan() is None:
            return []
        left = []
        for target in self._engine.abandon_restore(restore_id).targets:
            try:
                delete_topic(self._cluster, target.topic, target.topic_id)
            except KafkaBackupError as error:
                left.append(f"{target.topic}: {error}")
        return left


def _request(restore_id: str, capture: Capture, topics: Sequence[str]) -> RestoreRequest:
    """Ask for some topics under names that nobody else has, and that are never too long."""
    return RestoreRequest(
        restore_id=restore_id,
        topics=tuple(topics),
        capture=capture.capture_id,
        rename=tuple(
            RenameRule(pattern=re.escape(name), replacement=f"{restore_id}-{number}")
            for number, name in enumerate(topics, 1)
        ),
    )


def _size(topic: PlannedTopic) -> int:
    return sum(part.raw_bytes for part in topic.partitions)


def _whole(capture: Capture) -> set[str]:
    """Topics that a capture has without a failed partition."""
    return {entry.topic for entry in capture.topics} - {failure.topic for failure in capture.failures}
