"""How far a job is, in the log of its run."""

import threading
import time
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from kafka_backup import RestoreProgress, VerifyProgress

LOG_SECONDS = 10.0


class ProgressLog:
    """The newest progress of each topic, told by the engine's threads and logged by the main one."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._newest: dict[str, str] = {}
        self._logged = time.monotonic()

    def restore(self, progress: "RestoreProgress") -> None:
        """Keep how far a restore is until the next line is due; may be called from any thread."""
        rate = progress.raw_bytes / progress.seconds / 1e6 if progress.seconds else 0.0
        self._note(
            progress.target,
            f"{progress.source} -> {progress.target}: {progress.phase}, {progress.records_done:,} of "
            f"{progress.records_total:,} records, {rate:.1f} MB/s",
        )

    def verify(self, progress: "VerifyProgress") -> None:
        """Keep how far a verification is; as `restore`."""
        self._note(
            "",
            f"{progress.topic}: {progress.topics_done:,} of {progress.topics_total:,} topics are done, "
            f"{progress.segments:,} segments, {progress.stored_bytes / 1e6:,.1f} MB",
        )

    def _note(self, subject: str, line: str) -> None:
        with self._lock:
            self._newest[subject] = line

    def log_when_due(self) -> None:
        """Log what came since the last line, not more often than each `LOG_SECONDS`."""
        if time.monotonic() - self._logged < LOG_SECONDS:
            return
        self._logged = time.monotonic()
        with self._lock:
            newest, self._newest = self._newest, {}
        if newest:
            self._log.info("\n".join(line for _, line in sorted(newest.items())))
