"""How far a restore is, for whoever watches it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kafka_backup.progress import RestoreProgress
from kafka_backup.repository.restore_documents import PlannedTopic, RestorePlan

_SECONDS = 0.5
"""Between two tellings."""


@dataclass(slots=True)
class _Tally:
    """Progress of one target topic, written by the threads of its partitions."""

    topic: PlannedTopic
    records: dict[str, int] = field(default_factory=lambda: {"produce": 0, "verify": 0})
    raw_bytes: dict[str, int] = field(default_factory=lambda: {"produce": 0, "verify": 0})


class ProgressTally:
    """Counts what the partitions of a restore have done, and tells it by topic."""

    def __init__(self, plan: RestorePlan, on_progress: Callable[[RestoreProgress], None] | None) -> None:
        """Begin now.

        Args:
            plan: of the restore.
            on_progress: whom to tell; None: nobody.
        """
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._tallies = {topic.target: _Tally(topic) for topic in plan.topics}
        self._began = time.monotonic()
        self._told = 0.0

    def counter(self, target: str) -> Callable[[str, int, int], None]:
        """What a partition of this target calls with phase, records and bytes; safe for many threads."""
        tally = self._tallies[target]

        def count(phase: str, records: int, size: int) -> None:
            with self._lock:
                tally.records[phase] += records
                tally.raw_bytes[phase] += size

        return count

    def tell(self, *, final: bool = False) -> None:
        """Tell how far each topic is, if that is due."""
        now = time.monotonic()
        if self._on_progress is None or (not final and now - self._told < _SECONDS):
            return
        self._told = now
        for tally in self._tallies.values():
            with self._lock:
                phase = "verify" if tally.records["verify"] else "produce"
                done, raw_bytes = tally.records[phase], tally.raw_bytes[phase]
            self._on_progress(
                RestoreProgress(
                    phase="verify" if phase == "verify" else "produce",
                    source=tally.topic.source,
                    target=tally.topic.target,
                    records_done=done,
                    records_total=sum(part.records for part in tally.topic.partitions),
                    raw_bytes=raw_bytes,
                    seconds=now - self._began,
                )
            )
