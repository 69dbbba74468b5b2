"""The evidence of restore drills: the stored document, and where it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from kafka_backup.repository import layout
from kafka_backup.repository.documents import Count, Document, Identifier, Milliseconds, Part, TopicName
from kafka_backup.repository.store import Store, put_once, read_in_place


class DrilledCapture(Part):
    """One capture that a drill restored.

    Attributes:
        restore_id: under which its plan, attempts and report are stored.
        capture: the capture, and when it began.
        topics: what was restored of it.
        raw_bytes: of record batches.
        seconds: from planning to the last verified topic: the recovery time.
        problem: why it failed; None if every record was verified.
    """

    restore_id: Identifier
    capture: Identifier
    captured_at: Milliseconds
    topics: tuple[TopicName, ...]
    records: Count
    raw_bytes: Count
    seconds: float = Field(ge=0)
    problem: str | None


class DrillReport(Document):
    """``drills/<drill id>.json``: what a restore drill proved. Written last, after the clean-up.

    Attributes:
        status: ``passed`` if everything was restored and verified, and nothing was left behind.
        left_behind: scratch topics that could not be deleted, and why; the next drill tries again.
    """

    kind: ClassVar[str] = "drill report"

    drill_id: Identifier
    nonce: Identifier
    started_at: Milliseconds
    ended_at: Milliseconds
    target_cluster_id: str
    status: Literal["passed", "failed"]
    captures: tuple[DrilledCapture, ...]
    left_behind: tuple[str, ...] = ()


class DrillStore:
    """The drills of one repository."""

    def __init__(self, store: Store) -> None:
        """Prepare; nothing is read yet."""
        self._store = store

    def ids(self) -> Sequence[str]:
        """Return the ids of all drills that came to an end, oldest first."""
        return [
            drill_id
            for info in self._store.list(layout.DRILLS)
            if (drill_id := layout.parse_drill_key(info.key)) is not None
        ]

    def report(self, drill_id: str) -> DrillReport | None:
        """Return the report of a drill, None if it has none."""
        return read_in_place(
            self._store,
            layout.drill_key(drill_id),
            DrillReport,
            lambda found: layout.drill_key(found.drill_id),
        )

    def newest_first(self) -> Iterator[DrillReport]:
        """Yield the reports from the newest back, each read when it is asked for."""
        for drill_id in reversed(self.ids()):
            report = self.report(drill_id)
            if report is not None:
                yield report

    def put(self, report: DrillReport) -> None:
        """Store the report of a drill.

        Raises:
            WriterConflictError: the drill has another report.
        """
        put_once(self._store, layout.drill_key(report.drill_id), report.to_bytes())

    def restore_ids(self) -> Sequence[str]:
        """Return the ids of all restores that drills began, oldest first."""
        return [name for name in self._store.folders(layout.RESTORES) if layout.is_drill_restore(name)]
