"""How far a restore is, in the log of its run."""

import threading
import time
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from kafka_backup import RestoreProgress

LOG_SECONDS = 10.0


class RestoreProgressLog:
    """The newest progress of each topic, told by the engine's threads and logged by the main one."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._newest: dict[str, RestoreProgress] = {}
        self._logged = time.monotonic()

    def note(self, progress: "RestoreProgress") -> None:
        """Keep it until the next line is due; may be called from any thread."""
        with self._lock:
            self._newest[progress.target] = progress

    def log_when_due(self) -> None:
        """Log what came since the last line, not more often than each `LOG_SECONDS`."""
        if time.monotonic() - self._logged < LOG_SECONDS:
            return
        self._logged = time.monotonic()
        with self._lock:
            newest, self._newest = self._newest, {}
        if newest:
            self._log.info("\n".join(_progress_line(item) for _, item in sorted(newest.items())))


def _progress_line(item: "RestoreProgress") -> str:
    rate = item.raw_bytes / item.seconds / 1e6 if item.seconds else 0.0
    return (
        f"{item.source} -> {item.target}: {item.phase}, {item.records_done:,} of {item.records_total:,} "
        f"records, {rate:.1f} MB/s"
    )
